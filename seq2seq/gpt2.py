"""GPT-2. Radford, Wu, Child, Luan, Amodei and Sutskever, "Language Models are Unsupervised Multitask
Learners", 2019. https://openai.com/index/better-language-models/

    ids [B, S] --> word vectors + position vectors --> n_layer blocks --> norm --> head (the word vectors again) --> logits [B, S, V]

    block:  x --+-- norm, causal self-attention --+-- norm, 4 D wide feed-forward --+-->
                +------------------------------> (+) -----------------------------> (+)

Faithful: network, initialisation (writers to the residual stream scaled by 1/sqrt(2 layers)) and outputs as
in transformers' `GPT2LMHeadModel`; every token of a document is predicted from those before it, and the end
of a document is a token that is predicted too.

Deviations, each with its reason:
* Documents packed in one row do not see each other, and positions start anew in each; the paper let text
  flow across the end-of-text token. The first token of a document has nothing before it and is no target.
* Long texts are cut into consecutive blocks; neighbouring blocks share one token, so that each token but
  the first of the document is a target exactly once. Where `pack` has cut a document over several rows, the
  first token of each part is no target either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..shared.attention import Attention
from ..shared.attention.cache import KVCache
from ..shared.attention.mask import Mask
from ..shared.block import Block, FeedForward, LayerNorm, depth_scaled_
from ..shared.config import Config
from ..shared.convert import Alias, Ignore, Legacy, Rename, Rule, Tied, Transpose, affine, layers, prefixed
from ..shared.documents import documents, row_documents
from ..shared.embed import TokenEmbedding, normal_
from ..shared.errors import UserError
from ..shared.family import Card, Context, Family, Net, Task, transformers
from ..shared.heads import LMHead
from ..shared.loss import accuracy_sum, cross_entropy_sum, perplexity
from ..shared.packed import PackedBatch, joined, side_by_side
from ..shared.sample import Sample
from ..shared.stack import Stack
from ..shared.system import Objective, Preview, Step, System, Term
from ..shared.tokenizer import Tokenizer
from .generation.decoder import DecoderInfo
from .generation.defaults import defaults_files, read_defaults
from .generation.generate import generate_ids
from .generation.options import as_ids


@dataclass(frozen=True, kw_only=True)
class GPT2Config(Config):
    """transformers' `GPT2Config`."""

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
    n_inner: int | None = None
    """Width of the feed-forward layer; None is 4 D."""
    activation_function: str = "gelu_new"
    """Activation of the feed-forward layer."""
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
    bos_token_id: int | None = 50256
    """Id a text starts from where there is no prompt."""
    eos_token_id: int | tuple[int, ...] | None = 50256
    """Id that ends a document, or several that do."""
    pad_token_id: int | None = None
    """Id of padding; None takes the (first) `eos_token_id`."""

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = MappingProxyType({
        "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,),
        "tie_word_embeddings": (True,), "is_decoder": (False, True), "is_encoder_decoder": (False,),
    })
    IGNORED: ClassVar[Mapping[str, str]] = MappingProxyType({
        "reorder_and_upcast_attn": "about the precision of attention in fp16", **dict.fromkeys((
            "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj",
        ), "about multiple choice, which is not read here"),
    })
    SYNONYMS: ClassVar[Mapping[str, str]] = MappingProxyType({
        "hidden_size": "n_embd", "max_position_embeddings": "n_positions", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer",
    })

    AT_LEAST_ONE = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner")
    PROBABILITIES = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
    NOT_NEGATIVE = ("initializer_range", "layer_norm_epsilon")
    ACTIVATION = "activation_function"

    def problems(self) -> list[str]:
        """What is wrong with the fields, alone and together."""
        found = super().problems()
        if self.n_head > 0 and self.n_embd % self.n_head:
            found.append(f"n_head {self.n_head} does not divide n_embd {self.n_embd}")
        return found


SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"n_embd": 128, "n_layer": 2, "n_head": 2, "n_positions": 128},
    "small": {"n_embd": 384, "n_layer": 6, "n_head": 6, "n_positions": 512},
    "base": {},
    "medium": {"n_embd": 1024, "n_layer": 24, "n_head": 16},
    "large": {"n_embd": 1280, "n_layer": 36, "n_head": 20},
    "xl": {"n_embd": 1600, "n_layer": 48, "n_head": 25},
}
"""`base` (124M) to `xl` (1.5B) are the released sizes; the paper calls `base` its smallest model."""


# ---------------------------------------------------------------------------------------------- networks


@dataclass
class GPT2Output:
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


class GPT2Model(nn.Module):
    """Embeddings of words and positions, causal pre-norm blocks, a final norm."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config

        def norm() -> nn.Module:
            return LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)

        self.embed = TokenEmbedding(config.vocab_size, config.n_embd, max_positions=config.n_positions, dropout=config.embd_pdrop)
        blocks = [
            Block(
                Attention(config.n_embd, config.n_head, dropout=config.attn_pdrop),
                FeedForward(config.n_embd, config.n_inner or 4 * config.n_embd, config.activation_function),
                norm=norm, order="pre", dropout=config.resid_pdrop,
            )
            for _ in range(config.n_layer)
        ]  # fmt: skip
        self.stack = Stack(blocks, final_norm=norm())
        normal_(self, config.initializer_range)
        depth_scaled_(blocks, config.initializer_range)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        lengths: tuple[int, ...] | None = None,
        cache: KVCache | None = None,
        output_hidden_states: bool = False,
    ) -> GPT2Output:
        """Read a padded batch, or documents packed in one row.

        Args:
            input_ids: [B, S].
            attention_mask: [B, S], with a cache [B, past + S]: nonzero where there is no padding.
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
        x = self.stack(self.embed(input_ids, position_ids, offset=past), mask, cache=cache, hidden_states=kept)
        return GPT2Output(x, None if kept is None else tuple(kept))


class GPT2LMHeadModel(nn.Module):
    """The trunk and a language-model head that shares the word table."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.trunk = GPT2Model(config)
        self.head = LMHead(config.n_embd, config.vocab_size, weight=cast("nn.Parameter", self.trunk.embed.word.weight))

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
        """Map ids [B, S] to logits of the next id; arguments as in `GPT2Model.forward`.

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


# ------------------------------------------------------------------------------------------ the data side


@dataclass(frozen=True)
class CausalSettings:
    """What of the objective can be set."""

    max_length: int | None = None
    """Tokens of a block; None takes the model's positions."""

    def __post_init__(self) -> None:
        """Check the range."""
        if self.max_length is not None and self.max_length < 2:
            raise UserError(f"max_length is {self.max_length}, expected at least 2 tokens")


@dataclass(frozen=True, slots=True)
class CausalExample:
    """One block of a document: `ids` int64 [S + 1]; all but the last are read, all but the first predicted."""

    ids: np.ndarray


@dataclass(kw_only=True)
class CausalBatch(PackedBatch):
    """Packed blocks, T tokens."""

    targets: Tensor
    """[T]: the id that follows each token."""


class CausalObjective(Objective[CausalExample]):
    """Every token from those before it in its document."""

    def __init__(self, tokenizer: Tokenizer, max_length: int) -> None:
        """Make the data side for blocks of `max_length` tokens."""
        (self.eos_id,) = tokenizer.need("GPT-2", "eos")
        self.tokenizer = tokenizer
        self.max_length = max_length

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterator[CausalExample]:
        """Yield the blocks of a document, or of each document of a row."""
        found = False
        for document in self._documents(sample):
            for start in range(0, len(document) - 1, self.max_length):
                found = True
                yield CausalExample(document[start:start + self.max_length + 1])
        if not found:
            raise sample.bad("no document of two tokens or more")

    def _documents(self, sample: Sample) -> list[np.ndarray]:
        """The documents of a sample, each with its end-of-text token.

        A pre-tokenised row is taken as it is: `pack` ends each document, and not the pieces of one that fills several rows.
        """
        if sample.tokenized:
            return row_documents(sample)
        return [np.append(ids, self.eos_id) for ids in documents(sample, self.tokenizer)]

    def tokens_of(self, example: CausalExample) -> int:
        """Those that are read."""
        return len(example.ids) - 1

    def collate(self, examples: list[CausalExample]) -> CausalBatch:
        """Pack blocks side by side."""
        packed = side_by_side([e.ids[:-1] for e in examples])
        total = sum(packed.lengths)
        return CausalBatch(
            counts={"targets": total}, tokens=total, input_ids=packed.input_ids, position_ids=packed.position_ids, lengths=packed.lengths,
            targets=joined([e.ids[1:] for e in examples])[0],
        )  # fmt: skip

    def describe(self, example: CausalExample) -> Preview:
        """The block's tokens."""
        return Preview((("input", self.tokenizer.show(example.ids[:-1])),
                        ("predict", f"each token but the first, {len(example.ids) - 1} in all")))


# ------------------------------------------------------------------------------------------ the loss side


class GPT2System(System[GPT2LMHeadModel, CausalObjective]):
    """GPT-2's pretraining: the next token."""

    def forward(self, batch: CausalBatch, carry: Any = None) -> Step:
        """Cross-entropy of the next token, summed."""
        hidden = self.net.trunk(batch.input_ids, None, batch.position_ids, lengths=batch.lengths).last_hidden_state[0]  # [T, D]
        if self.training:
            return Step({"lm": Term(self.net.head.loss(hidden, batch.targets), "targets", labels=batch.targets)})
        logits = self.net.head(hidden)
        step = Step({"lm": Term(cross_entropy_sum(logits, batch.targets), "targets", labels=batch.targets)})
        step.metrics["accuracy"] = (accuracy_sum(logits, batch.targets), len(batch.targets))
        return step

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """Perplexity."""
        return {"perplexity": perplexity(means["lm"])} if "lm" in means else {}

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


def create(config: GPT2Config, settings: CausalSettings, context: Context) -> GPT2System:
    """Build GPT-2 with randomly initialized weights and its objective."""
    length = settings.max_length or config.n_positions
    if length > config.n_positions:
        raise UserError(f"objective.max_length is {length}, the model has {config.n_positions} positions: "
                        f"lower it or raise model.n_positions")

    objective = context.objective("gpt2", lambda tokenizer: CausalObjective(tokenizer.fitting(config.vocab_size), length))
    return GPT2System(GPT2LMHeadModel(config), objective)


def adapt(config: GPT2Config, context: Context) -> GPT2Config:
    """Take vocabulary size and special ids from the tokenizer."""
    t = context.tokenizer
    if t is None:
        return config
    return replace(config, vocab_size=t.vocab_size, bos_token_id=t.bos_id, eos_token_id=t.eos_id, pad_token_id=t.pad_id)


def _trunk(config: GPT2Config) -> tuple[Rule, ...]:
    def conv(theirs: str, ours: str) -> tuple[Rule, ...]:
        return Transpose(f"{theirs}.weight", f"{ours}.weight"), Rename(f"{theirs}.bias", f"{ours}.bias")

    layer = (
        *affine("h.{i}.ln_1", "stack.blocks.{i}.attention_residual.norm"),
        *conv("h.{i}.attn.c_attn", "stack.blocks.{i}.attention.qkv"),
        *conv("h.{i}.attn.c_proj", "stack.blocks.{i}.attention.out"),
        *affine("h.{i}.ln_2", "stack.blocks.{i}.feed_forward_residual.norm"),
        *conv("h.{i}.mlp.c_fc", "stack.blocks.{i}.feed_forward.up"),
        *conv("h.{i}.mlp.c_proj", "stack.blocks.{i}.feed_forward.down"),
    )
    return (
        Rename("wte.weight", "embed.word.weight"),
        Rename("wpe.weight", "embed.position.weight"),
        *layers(config.n_layer, layer),
        *affine("ln_f", "stack.final_norm"),
    )


BUFFERS = Ignore(r"(.*\.)?h\.\d+\.attn\.(bias|masked_bias)")
"""Causal masks that older checkpoints saved."""

NETS = (
    Net("GPT2LMHeadModel", GPT2LMHeadModel, transformers(lambda c: (
        *prefixed(_trunk(c), "transformer.", "trunk."),
        Alias("lm_head.weight", "transformer.wte.weight"),
        Tied("head.weight", "trunk.embed.word.weight"),
        BUFFERS,
        Legacy(r"^(?=(wte|wpe|h|ln_f)\.)", "transformer."),  # the released files hold the bare trunk
    ), files=defaults_files, finish=read_defaults)),
    Net("GPT2Model", GPT2Model, transformers(lambda c: (*_trunk(c), BUFFERS))),
)  # fmt: skip

CARD = Card(
    title="GPT-2",
    paper="Radford, Wu, Child, Luan, Amodei, Sutskever. Language Models are Unsupervised Multitask Learners",
    year=2019,
    url="https://openai.com/index/better-language-models/",
    equation=r"\mathcal{L} = -\frac{1}{T} \sum_{t=1}^{T} \log p_\theta(x_t \mid x_{<t})",
    symbols="The tokens before t are those of the same document; T counts the targets of the whole global batch.",
    masks={"Packed documents": Mask(causal=True, lengths=(5, 7, 4))},
    reference="transformers.GPT2LMHeadModel",
)

FAMILIES = (
    Family(
        name="gpt2",
        card=CARD,
        config=GPT2Config,
        sizes=SIZES,
        adapt=adapt,
        pretraining=Task("next token", CausalSettings, create),
        nets=NETS,
        heads=("head",),
        model_type="gpt2",
    ),
)
