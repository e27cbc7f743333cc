"""The BERT-shaped trunk that many systems share: summed embeddings, a stack of post-norm blocks, a pooler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from .attention import Attention
from .attention.mask import Mask
from .attention.plan import Seen
from .attention.position import document_positions
from .block import Block, FeedForward, LayerNorm
from .config import Config
from .convert import Ignore, Legacy, Rename, Rule, affine, fused, layers
from .embed import TokenEmbedding, normal_
from .heads import Pooler
from .packed import starts
from .stack import Stack


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(Config):
    """What describes the trunk, with the names of transformers' `BertConfig`."""

    vocab_size: int = 30522
    """Rows of the word table."""
    hidden_size: int = 768
    """Width D."""
    num_hidden_layers: int = 12
    """Blocks."""
    num_attention_heads: int = 12
    """Attention heads; they divide `hidden_size`."""
    intermediate_size: int = 3072
    """Width of the feed-forward layer."""
    hidden_act: str = "gelu"
    """Activation of the feed-forward layer and of the language-modelling head; `gelu_new` is the tanh form."""
    hidden_dropout_prob: float = 0.1
    """Dropout of the embeddings and before each residual sum."""
    attention_probs_dropout_prob: float = 0.1
    """Dropout of the attention weights."""
    max_position_embeddings: int = 512
    """Rows of the position table: the longest sequence."""
    type_vocab_size: int = 2
    """Rows of the token-type table (segments A and B)."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights."""
    layer_norm_eps: float = 1e-12
    """Epsilon of every layer norm."""
    pad_token_id: int | None = 0
    """Id of padding. Packed training never meets it."""

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = MappingProxyType({
        "is_decoder": (False,), "add_cross_attention": (False,), "is_encoder_decoder": (False,), "tie_word_embeddings": (True,),
        "position_embedding_type": ("absolute", None), "pruned_heads": ({}, None),
    })
    IGNORED: ClassVar[Mapping[str, str]] = MappingProxyType({
        "bos_token_id": "the tokenizer's files say it", "eos_token_id": "the tokenizer's files say it",
    })

    AT_LEAST_ONE = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
                    "max_position_embeddings", "type_vocab_size")
    PROBABILITIES = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    NOT_NEGATIVE = ("initializer_range", "layer_norm_eps")
    ACTIVATION = "hidden_act"

    def problems(self) -> list[str]:
        """What is wrong with the fields, alone and together."""
        found = super().problems()
        if self.num_attention_heads > 0 and self.hidden_size % self.num_attention_heads:
            found.append(f"num_attention_heads {self.num_attention_heads} does not divide hidden_size {self.hidden_size}")
        return found

    @property
    def table_size(self) -> int:
        """Width of the embedding tables; where a family has them narrower than D, a linear map follows them."""
        return self.hidden_size

    @property
    def position_offset(self) -> int:
        """The row of the position table where a text begins; the rows before it are not positions (RoBERTa)."""
        return 0

    @property
    def longest_input(self) -> int:
        """Tokens of the longest text that there are positions for."""
        return self.max_position_embeddings - self.position_offset

    @property
    def summary_token(self) -> Literal["first", "last"]:
        """Which token of a text holds what the network makes of the whole."""
        return "first"

    @property
    def question_first(self) -> bool:
        """Whether a question stands before the text that answers it."""
        return True


class EncoderShape(Protocol):
    """What an `Encoder` reads of its config. Where the reference has other names (DistilBERT), the config has these beside them."""

    # what each is, `EncoderConfig` says
    @property
    def vocab_size(self) -> int: ...  # noqa: D102
    @property
    def hidden_size(self) -> int: ...  # noqa: D102
    @property
    def num_hidden_layers(self) -> int: ...  # noqa: D102
    @property
    def num_attention_heads(self) -> int: ...  # noqa: D102
    @property
    def intermediate_size(self) -> int: ...  # noqa: D102
    @property
    def hidden_act(self) -> str: ...  # noqa: D102
    @property
    def hidden_dropout_prob(self) -> float: ...  # noqa: D102
    @property
    def attention_probs_dropout_prob(self) -> float: ...  # noqa: D102
    @property
    def max_position_embeddings(self) -> int: ...  # noqa: D102
    @property
    def type_vocab_size(self) -> int: ...  # noqa: D102
    @property
    def initializer_range(self) -> float: ...  # noqa: D102
    @property
    def layer_norm_eps(self) -> float: ...  # noqa: D102
    @property
    def pad_token_id(self) -> int | None: ...  # noqa: D102
    @property
    def table_size(self) -> int: ...  # noqa: D102
    @property
    def position_offset(self) -> int: ...  # noqa: D102
    @property
    def longest_input(self) -> int: ...  # noqa: D102


@dataclass
class EncoderOutput:
    """Outputs of an `Encoder`."""

    last_hidden_state: Tensor
    """[B, S, D]"""
    pooler_output: Tensor | None
    """[B, D] ([N, D], one for each document, where they are packed); None for a trunk without pooler."""
    hidden_states: tuple[Tensor, ...] | None = None
    """The embeddings and every block's output, where asked for."""

    @property
    def pooled(self) -> Tensor:
        """`pooler_output`, of a trunk that has a pooler."""
        assert self.pooler_output is not None, "this trunk was built without a pooler"
        return self.pooler_output


class Encoder(nn.Module):
    """Embeddings of words, positions and segments; post-norm blocks; perhaps a pooler.

    A descendant overrides what it has otherwise: `attention`, `block`, `blocks`, `mask`, `default_positions`; the sizes are its config's.

    Args:
        config: the sizes.
        pooler: whether to read a summary off the first token.
    """

    def __init__(self, config: EncoderShape, *, pooler: bool = True) -> None:
        super().__init__()
        self.config = config
        self.embed = TokenEmbedding(config.vocab_size, config.table_size, max_positions=config.max_position_embeddings,
                                    type_vocab_size=config.type_vocab_size,
                                    norm=lambda: LayerNorm(config.table_size, eps=config.layer_norm_eps),
                                    dropout=config.hidden_dropout_prob, position_offset=config.position_offset,
                                    output_size=config.hidden_size)
        self.stack = Stack(self.blocks(), num_layers=config.num_hidden_layers)
        self.pooler = Pooler(config.hidden_size) if pooler else None
        normal_(self, config.initializer_range)

    def attention(self, number: int) -> Attention:
        """The self-attention of layer `number`, counted from 0; it sees `config` alone."""
        c = self.config
        return Attention(c.hidden_size, c.num_attention_heads, dropout=c.attention_probs_dropout_prob)

    def block(self, number: int) -> Block:
        """Layer `number`, counted from 0; it sees `config` alone."""
        c = self.config
        return Block(
            self.attention(number),
            FeedForward(c.hidden_size, c.intermediate_size, c.hidden_act),
            norm=lambda: LayerNorm(c.hidden_size, eps=c.layer_norm_eps), order="post", dropout=c.hidden_dropout_prob,
        )  # fmt: skip

    def blocks(self) -> list[Block]:
        """The blocks of the stack, one for each layer; with fewer, as many consecutive layers share each (ALBERT)."""
        return [self.block(number) for number in range(self.config.num_hidden_layers)]

    def mask(self, input_ids: Tensor, attention_mask: Tensor | None, lengths: tuple[int, ...] | None) -> Mask | Sequence[Mask]:
        """Which keys a token sees, for all layers or in turns; arguments as in `forward`."""
        return Mask(keep=None if attention_mask is None else attention_mask.bool(), lengths=lengths)

    def default_positions(self, input_ids: Tensor) -> Tensor | None:
        """Positions [B or 1, S] of a padded batch [B, S] where none are given, counted from 0; None: 0, 1, ... ."""
        return None

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        lengths: tuple[int, ...] | None = None,
        mask: Mask | Sequence[Mask] | None = None,
        output_hidden_states: bool = False,
        seen: list[Seen] | None = None,
    ) -> EncoderOutput:
        """Encode a padded batch, or documents packed in one row.

        Args:
            input_ids: [B, S].
            attention_mask: [B, S], nonzero where there is not padding; None sees everything.
            token_type_ids: [B, S]; by default zeros.
            position_ids: [B, S], counted from 0 in every family (`EncoderConfig.position_offset` is added here); by default 0, 1, ... ,
                which restart in packed documents.
            lengths: lengths of packed documents, which do not see each other (then B is 1 and
                `position_ids` restarts in each); excludes `attention_mask`.
            mask: which keys a token sees, for all layers or in turns, instead of all that are no padding and in its document; excludes
                `attention_mask`.
            output_hidden_states: keep the output of every block.
            seen: a list that receives the queries and keys of every layer.
        """
        assert attention_mask is None or (lengths is None and mask is None), "packed documents, and other masks, need no padding mask"
        if position_ids is None:
            position_ids = self.default_positions(input_ids) if lengths is None else document_positions(lengths, input_ids.device)
        visible = self.mask(input_ids, attention_mask, lengths) if mask is None else mask
        kept: list[Tensor] | None = [] if output_hidden_states else None
        x = self.stack(self.embed(input_ids, position_ids, token_type_ids), visible, hidden_states=kept, seen=seen)
        pooled = None if self.pooler is None else self.pooler(first_tokens(x, lengths))
        return EncoderOutput(x, pooled, None if kept is None else tuple(kept))


def first_tokens(x: Tensor, lengths: tuple[int, ...] | None) -> Tensor:
    """The first token of each sequence of x [B, S, D]: [B, D], or of packed documents [N, D]."""
    if lengths is None:
        return x[:, 0]
    return x[0, torch.tensor(starts(lengths)).to(x.device, non_blocking=True)]


def last_tokens(x: Tensor, attention_mask: Tensor | None, lengths: tuple[int, ...] | None) -> Tensor:
    """The last token of each sequence of x [B, S, D] that is not padding: [B, D], or of packed documents [N, D]."""
    if lengths is not None:
        return x[0, torch.tensor(lengths).cumsum(0).sub(1).to(x.device, non_blocking=True)]
    if attention_mask is None:
        return x[:, -1]
    places = torch.arange(x.shape[1], device=x.device)
    last = (attention_mask.bool() * places).argmax(1)
    return x.take_along_dim(last[:, None, None], 1)[:, 0]


EMBEDDINGS: tuple[Rule, ...] = (
    Rename("embeddings.word_embeddings.weight", "embed.word.weight"),
    Rename("embeddings.position_embeddings.weight", "embed.position.weight"),
    Rename("embeddings.token_type_embeddings.weight", "embed.token_type.weight"),
    *affine("embeddings.LayerNorm", "embed.norm"),
)
"""The names of the embeddings in transformers' `BertModel`."""


def encoder_rules(config: EncoderConfig, *, pooler: bool = True) -> tuple[Rule, ...]:
    """The names of transformers' `BertModel`; put prefixes before them with `convert.prefixed`."""
    layer = (
        *fused(tuple(f"encoder.layer.{{i}}.attention.self.{n}" for n in ("query", "key", "value")), "stack.blocks.{i}.attention.qkv"),
        *affine("encoder.layer.{i}.attention.output.dense", "stack.blocks.{i}.attention.out"),
        *affine("encoder.layer.{i}.attention.output.LayerNorm", "stack.blocks.{i}.attention_residual.norm"),
        *affine("encoder.layer.{i}.intermediate.dense", "stack.blocks.{i}.feed_forward.up"),
        *affine("encoder.layer.{i}.output.dense", "stack.blocks.{i}.feed_forward.down"),
        *affine("encoder.layer.{i}.output.LayerNorm", "stack.blocks.{i}.feed_forward_residual.norm"),
    )
    return (
        *EMBEDDINGS,
        *layers(config.num_hidden_layers, layer),
        *(affine("pooler.dense", "pooler.dense") if pooler else ()),
    )


LEGACY: tuple[Rule, ...] = (
    Legacy(r"LayerNorm\.gamma$", "LayerNorm.weight"),
    Legacy(r"LayerNorm\.beta$", "LayerNorm.bias"),
    Ignore(r"(.*\.)?embeddings\.(position_ids|token_type_ids)"),
)
"""What older checkpoints call norms, and index buffers that they saved."""
