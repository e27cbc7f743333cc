"""Causal language models: what the decoders (GPT, GPT-2, GPT-3) have in common. Each token is predicted from those before it.

A family brings its config, its blocks, its initialisation and its rules; the forward pass and what generating asks for are these, the data
side and the loss those of `text.next_token`. What of a text is a document, and that packed documents do not see each other, the families'
files say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from ..shared.attention import Attention
from ..shared.attention.cache import KVCache
from ..shared.attention.mask import Mask
from ..shared.block import Block, FeedForward, LayerNorm
from ..shared.config import Config
from ..shared.convert import Ignore, Rename, Rule, Transpose, affine, layers
from ..shared.decoder import DecoderInfo
from ..shared.embed import TokenEmbedding, normal_
from ..shared.errors import UserError
from ..shared.family import Context, Task
from ..shared.heads import LMHead
from ..shared.stack import Stack
from ..shared.system import Preview
from ..shared.tokenizer import Tokenizer
from ..text.next_token import CausalBatch, CausalObjective, CausalSettings, NextTokenSystem
from .generation.generate import generate_ids
from .generation.options import as_ids


@dataclass(frozen=True, kw_only=True)
class CausalConfig(Config):
    """What the configs of the decoders have in common."""

    vocab_size: int = 50257
    """Rows of the word table."""
    n_positions: int = 1024
    """Rows of the position table: the longest sequence."""
    n_embd: int = 768
    """Width D."""
    n_layer: int = 12
    """Blocks."""
    n_head: int = 12
    """Attention heads; they divide `n_embd`."""
    resid_pdrop: float = 0.1
    """Dropout before each residual sum."""
    embd_pdrop: float = 0.1
    """Dropout of the embeddings."""
    attn_pdrop: float = 0.1
    """Dropout of the attention weights."""
    layer_norm_epsilon: float = 1e-5
    """Epsilon of every layer norm."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights."""
    bos_token_id: int | None = None
    """Id a text starts from where there is no prompt."""
    eos_token_id: int | tuple[int, ...] | None = None
    """Id that ends a document, or several that do."""
    pad_token_id: int | None = None
    """Id of padding; None takes the (first) `eos_token_id`."""

    SYNONYMS: ClassVar[Mapping[str, str]] = MappingProxyType({
        "hidden_size": "n_embd", "max_position_embeddings": "n_positions", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer",
    })

    AT_LEAST_ONE = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
    PROBABILITIES = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
    NOT_NEGATIVE = ("initializer_range", "layer_norm_epsilon")

    def problems(self) -> list[str]:
        """What is wrong with the fields, alone and together."""
        found = super().problems()
        if self.n_head > 0 and self.n_embd % self.n_head:
            found.append(f"n_head {self.n_head} does not divide n_embd {self.n_embd}")
        return found


# ---------------------------------------------------------------------------------------------- networks


@dataclass
class CausalOutput:
    """Outputs of the trunk."""

    last_hidden_state: Tensor
    """[B, S, D], after the final norm."""
    hidden_states: tuple[Tensor, ...] | None = None
    """The embeddings and every block's output, where asked for; the last one after the final norm."""


@dataclass
class CausalLMOutput:
    """Outputs of a language model."""

    logits: Tensor
    """[B, S, V]"""
    hidden_states: tuple[Tensor, ...] | None = None


class CausalTrunk(nn.Module):
    """Embeddings of words and positions, causal blocks, and behind pre-norm blocks a final norm.

    Args:
        config: of the family.
        order: whether norms stand before (`pre`) or after (`post`) the sums.
        inner: width of the feed-forward nets.
        activation: of the feed-forward nets.
    """

    def __init__(self, config: CausalConfig, *, order: Literal["pre", "post"], inner: int, activation: str) -> None:
        super().__init__()
        self.config = config

        def norm() -> nn.Module:
            return LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)

        self.embed = TokenEmbedding(config.vocab_size, config.n_embd, max_positions=config.n_positions, dropout=config.embd_pdrop)
        blocks = [
            Block(Attention(config.n_embd, config.n_head, dropout=config.attn_pdrop), FeedForward(config.n_embd, inner, activation),
                  norm=norm, order=order, dropout=config.resid_pdrop)
            for _ in range(config.n_layer)
        ]  # fmt: skip
        self.stack = Stack(blocks, final_norm=norm() if order == "pre" else None)
        normal_(self, config.initializer_range)

    def masks(self, mask: Mask) -> Mask | Sequence[Mask]:
        """What each layer shows of `mask`, as `Stack.forward` takes it: all of it, unless a family says otherwise."""
        return mask

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        lengths: tuple[int, ...] | None = None,
        cache: KVCache | None = None,
        output_hidden_states: bool = False,
    ) -> CausalOutput:
        """Read a padded batch, or documents packed in one row.

        Args:
            input_ids: [B, S].
            attention_mask: [B, S], with a cache [B, past + S]: nonzero where there is not padding.
            position_ids: [B, S]; by default 0, 1, ... (after what the cache holds).
            lengths: lengths of packed documents, which do not see each other (then B is 1 and
                `position_ids` restarts in each); excludes `attention_mask`.
            cache: keys and values of earlier positions; the new ones are added to it.
            output_hidden_states: keep the output of every block.
        """
        assert lengths is None or attention_mask is None, "packed documents need no padding mask"
        past = 0 if cache is None else cache.length
        mask = Mask(causal=True, keep=None if attention_mask is None else attention_mask.bool(), lengths=lengths)
        kept: list[Tensor] | None = [] if output_hidden_states else None
        x = self.stack(self.embed(input_ids, position_ids, offset=past), self.masks(mask), cache=cache, hidden_states=kept)
        return CausalOutput(x, None if kept is None else tuple(kept))


class CausalLM(nn.Module):
    """A trunk and a language-model head that shares the word table."""

    def __init__(self, trunk: CausalTrunk) -> None:
        super().__init__()
        self.config = trunk.config
        self.trunk = trunk
        self.head = LMHead(trunk.config.n_embd, trunk.config.vocab_size, weight=cast("nn.Parameter", trunk.embed.word.weight))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        lengths: tuple[int, ...] | None = None,
        cache: KVCache | None = None,
        last_only: bool = False,
        output_hidden_states: bool = False,
    ) -> CausalLMOutput:
        """Map ids [B, S] to logits of the next id; arguments as in `CausalTrunk.forward`.

        `last_only` computes logits [B, 1, V] at the last position alone, which is all that generating needs.
        """
        out = self.trunk(input_ids, attention_mask, position_ids, lengths=lengths, cache=cache, output_hidden_states=output_hidden_states)
        x = out.last_hidden_state[:, -1:] if last_only else out.last_hidden_state
        return CausalLMOutput(self.head(x), out.hidden_states)

    # What `generate` asks of a decoder.

    @property
    def decoder_info(self) -> DecoderInfo:
        """Where generating starts and ends, and how long it may run."""
        c = self.config
        return DecoderInfo(max_positions=c.n_positions, num_layers=c.n_layer, bos_token_id=c.bos_token_id, eos_token_id=c.eos_token_id,
                           pad_token_id=next(iter(as_ids(c.eos_token_id)), None) if c.pad_token_id is None else c.pad_token_id)

    def next_logits(self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor, cache: KVCache) -> Tensor:
        """Read new ids [B, S] after what the cache holds; logits [B, V] of the id that follows."""
        return self(input_ids, attention_mask, position_ids, cache=cache, last_only=True).logits[:, -1]


# ------------------------------------------------------------------------------------------ the loss side


class CausalSystem(NextTokenSystem[CausalLM]):
    """The pretraining of a causal language model: the next token."""

    def read(self, batch: CausalBatch) -> Tensor:
        """See `NextTokenSystem.read`."""
        return self.net.trunk(batch.input_ids, None, batch.position_ids, lengths=batch.lengths).last_hidden_state[0]

    @torch.no_grad()
    def preview(self, batch: CausalBatch, limit: int = 4) -> list[Preview]:
        """The beginnings of held-out documents, the model's continuations, and the true ones."""
        tokenizer = self.objective.tokenizer
        previews: list[Preview] = []
        start = 0
        for length in batch.lengths[:limit]:
            ids = batch.input_ids[:, start:start + length]
            start += length
            cut = min(16, max(1, length // 2))
            room = self.net.config.n_positions - cut
            out = generate_ids(self.net, ids[:, :cut], max_new_tokens=min(48, room), do_sample=True, top_k=40, seed=0)
            previews.append(Preview((
                ("prompt", tokenizer.decode(ids[0, :cut])),
                ("continuation", tokenizer.decode(out[0, cut:])),
                ("truth", tokenizer.decode(ids[0, cut:cut + 48])),
            )))
        return previews


# --------------------------------------------------------------------------------------------- the entry


def adapt(config: CausalConfig, context: Context) -> CausalConfig:
    """Take vocabulary size and special ids from the tokenizer."""
    t = context.tokenizer
    if t is None:
        return config
    return replace(config, vocab_size=t.vocab_size, bos_token_id=t.bos_id, eos_token_id=t.eos_id, pad_token_id=t.pad_id)


def pretraining(title: str, build: Callable[[Any], CausalLM], *, ended: bool = True) -> Task:
    """The pretraining of a family.

    Args:
        title: what messages call it.
        build: makes its language model from a config.
        ended: whether it needs a vocabulary with an end-of-text token.
    """

    def create(config: CausalConfig, settings: CausalSettings, context: Context) -> CausalSystem:
        length = settings.max_length or config.n_positions
        if length > config.n_positions:
            raise UserError(f"objective.max_length is {length}, the model has {config.n_positions} positions: "
                            f"lower it or raise model.n_positions")

        def objective(tokenizer: Tokenizer) -> CausalObjective:
            if ended:
                tokenizer.need(title, "eos")
            return CausalObjective(tokenizer.fitting(config.vocab_size), length)

        return CausalSystem(build(config), context.objective(title, objective))

    return Task("next token", CausalSettings, create)


def block_rules(config: CausalConfig) -> tuple[Rule, ...]:
    """The names of the blocks in transformers' GPT and GPT-2, whose `Conv1D` stores weights as [in, out]."""
    ours = "stack.blocks.{i}"
    linear = (("attn.c_attn", "attention.qkv"), ("attn.c_proj", "attention.out"),
              ("mlp.c_fc", "feed_forward.up"), ("mlp.c_proj", "feed_forward.down"))
    return (
        *layers(config.n_layer, (
            *affine("h.{i}.ln_1", f"{ours}.attention_residual.norm"),
            *affine("h.{i}.ln_2", f"{ours}.feed_forward_residual.norm"),
            *(Transpose(f"h.{{i}}.{theirs}.weight", f"{ours}.{name}.weight") for theirs, name in linear),
            *(Rename(f"h.{{i}}.{theirs}.bias", f"{ours}.{name}.bias") for theirs, name in linear),
        )),
        Ignore(r"(.*\.)?h\.\d+\.attn\.(bias|masked_bias)"),  # causal masks that older checkpoints saved
    )
