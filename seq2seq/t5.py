"""T5. Raffel, Shazeer, Roberts, Lee, Narang, Matena, Zhou, Li and Liu, "Exploring the Limits of Transfer
Learning with a Unified Text-to-Text Transformer", 2020. https://arxiv.org/abs/1910.10683

Faithful: networks and outputs as in transformers' `T5*` classes (the paper's net with a shared word table,
and version 1.1 with gated GELU and an output matrix of its own); initialisation of Mesh TensorFlow; span
corruption by the procedure of google-research/text-to-text-transfer-transformer (15% of the tokens, exactly;
spans of 3 on average; the first token is never corrupted and the last always, so the target ends without the
last sentinel that the paper's figure shows); texts cut so that their corrupted form fills the input.

Deviations, each with its reason:
* The documents of a pre-tokenised row are joined and cut, as the paper does; raw texts are cut one by one,
  because a sample is all that an objective sees. `pack --tokenize` with the block that fills the input
  (`span_lengths`: 568 for 512) wastes nothing.
* Texts and targets of a batch are packed, each in one row, and see only their own; the bias of the longest one serves all,
  because it depends on the distance alone.
* The output matrix of version 1.1 starts at 1/sqrt(D) as in Mesh TensorFlow; transformers draws it from N(0, 1).
* Nothing is clamped for fp16, which this library does not train in.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from ..shared.attention import Attention
from ..shared.attention.mask import Mask
from ..shared.attention.position import BucketBias
from ..shared.block import ACTIVATIONS, Block, FeedForward, RMSNorm
from ..shared.config import Config
from ..shared.convert import Alias, Fuse, Ignore, Rename, Rule, Tied, Untied, layers, prefixed
from ..shared.decoder import DecoderInfo
from ..shared.embed import TokenEmbedding
from ..shared.errors import raise_problems
from ..shared.family import Card, Context, Family, Net, Task, Vocabulary, transformers
from ..shared.generation_config import defaults_files, read_defaults
from ..shared.heads import LMHead
from ..shared.keys import Keys, honoured
from ..shared.stack import Stack
from ..shared.tokenizer import Tokenizer
from . import text2text
from .encoder_decoder import EncoderDecoderLM, EncoderDecoderModel, TextEncoder, TextEncoderOutput
from .spans import SpanObjective, SpanSettings
from .teacher_forcing import Seq2SeqSystem


@dataclass(frozen=True, kw_only=True)
class T5Config(Config):
    """transformers' `T5Config`; the defaults are T5-small's."""

    vocab_size: int = 32128
    """Rows of the word table: 32000 pieces, 100 sentinels and 28 rows of padding."""
    d_model: int = 512
    """Width D."""
    d_kv: int = 64
    """Width of an attention head; heads times this need not be D."""
    d_ff: int = 2048
    """Width between the linear layers of the feed-forward net."""
    num_layers: int = 6
    """Blocks of the encoder."""
    num_decoder_layers: int | None = None
    """Blocks of the decoder; None takes `num_layers`."""
    num_heads: int = 8
    """Attention heads."""
    relative_attention_num_buckets: int = 32
    """Buckets of distances."""
    relative_attention_max_distance: int = 128
    """From here on all distances share a bucket."""
    dropout_rate: float = 0.1
    """Dropout of embeddings, attention weights, inner layers, residuals and outputs."""
    layer_norm_epsilon: float = 1e-6
    """Epsilon of every norm."""
    initializer_factor: float = 1.0
    """Factor of all initial standard deviations."""
    feed_forward_proj: str = "relu"
    """Activation, `gated-` before it for the gated kind (version 1.1: `gated-gelu`)."""
    tie_word_embeddings: bool = True
    """Whether the output matrix is the word table; False in version 1.1."""
    scale_decoder_outputs: bool | None = None
    """Whether the output is scaled by 1/sqrt(D) before the output matrix; None where that is the word table."""
    pad_token_id: int = 0
    """Id of padding."""
    eos_token_id: int | tuple[int, ...] = 1
    """Id that ends a text, or several that do."""
    decoder_start_token_id: int | None = None
    """Id the decoder starts from; None takes `pad_token_id`."""

    IGNORED: ClassVar[Mapping[str, str]] = MappingProxyType({
        "is_encoder_decoder": "the network's name says it",
        "n_positions": "positions are relative, so there is no longest text",
        "classifier_dropout": "of a head that is not read here",
    })
    SYNONYMS: ClassVar[Mapping[str, str]] = MappingProxyType({
        "hidden_size": "d_model", "num_attention_heads": "num_heads", "num_hidden_layers": "num_layers", "head_dim": "d_kv",
    })

    AT_LEAST_ONE = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads")
    PROBABILITIES = ("dropout_rate",)
    NOT_NEGATIVE = ("initializer_factor", "layer_norm_epsilon")

    def __post_init__(self) -> None:
        """Check the fields, and say whether the output is scaled."""
        super().__post_init__()
        # An unscaled output is read by a matrix of its own. transformers 5 writes such a config with
        # tie_word_embeddings true and scale_decoder_outputs false, whether the file holds the matrix or not.
        if self.scale_decoder_outputs is None:
            object.__setattr__(self, "scale_decoder_outputs", self.tie_word_embeddings)
        object.__setattr__(self, "tie_word_embeddings", self.tie_word_embeddings and self.scale_decoder_outputs)

    def problems(self) -> list[str]:
        """What is wrong with the fields, alone and together."""
        found = super().problems()
        buckets, farthest = self.relative_attention_num_buckets, self.relative_attention_max_distance
        if buckets < 4 or farthest <= buckets // 2:  # half of the buckets are exact distances, the others reach beyond them
            found.append(f"relative_attention_num_buckets is {buckets} and relative_attention_max_distance {farthest}, "
                         f"expected at least 4 buckets and a distance above half of them")
        if self.activation not in ACTIVATIONS:
            found.append(f"feed_forward_proj is {self.feed_forward_proj!r}, expected one of {', '.join(ACTIVATIONS)}, "
                         f"or one of them behind 'gated-'")
        return found

    @classmethod
    def keys(cls) -> Keys:
        """What becomes of the keys of a config.json, the derived ones with them."""
        derived = honoured("must say what feed_forward_proj says")
        return {**super().keys(), "dense_act_fn": derived, "is_gated_act": derived}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], what: str = "config.json") -> Self:
        """Read a config.json, whose derived keys must say what `feed_forward_proj` says."""
        derived = ("dense_act_fn", "is_gated_act")
        config = super().from_dict({k: v for k, v in record.items() if k not in derived}, what)
        raise_problems([f"{key} = {record[key]!r} contradicts feed_forward_proj = {config.feed_forward_proj!r}"
                        for key, value in zip(derived, (config.activation, config.gated)) if record.get(key, value) != value], what)
        return config

    @property
    def gated(self) -> bool:
        """Whether the feed-forward nets are gated."""
        return self.feed_forward_proj.startswith("gated-")

    @property
    def activation(self) -> str:
        """The activation of the feed-forward nets; the GELU of `gated-gelu` is the tanh form."""
        return "gelu_new" if self.feed_forward_proj == "gated-gelu" else self.feed_forward_proj.removeprefix("gated-")

    @property
    def decoder_layers(self) -> int:
        """Blocks of the decoder."""
        return self.num_layers if self.num_decoder_layers is None else self.num_decoder_layers

    @property
    def start_id(self) -> int:
        """Id the decoder starts from."""
        return self.pad_token_id if self.decoder_start_token_id is None else self.decoder_start_token_id


V1_1: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"d_model": 128, "d_ff": 512, "num_layers": 2, "num_heads": 2},
    "small": {},
    "base": {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
    "large": {"d_model": 1024, "d_ff": 4096, "num_layers": 24, "num_heads": 16},
    "tiny-v1.1": {"d_model": 128, "d_ff": 256, "num_layers": 2, "num_heads": 2, **V1_1},
    "small-v1.1": {"d_ff": 1024, "num_layers": 8, "num_heads": 6, **V1_1},
    "base-v1.1": {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12, **V1_1},
    "large-v1.1": {"d_model": 1024, "d_ff": 2816, "num_layers": 24, "num_heads": 16, **V1_1},
}
"""`small`, `base` (220M, the paper's baseline) and `large` of both versions."""


# ---------------------------------------------------------------------------------------------- networks


class Scale(nn.Module):
    """Multiplication by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Scale [..., D]."""
        return x * self.factor


def _stack(config: T5Config, num_layers: int, *, decoder: bool) -> Stack:
    """Pre-norm blocks without biases and without a scale of the scores, and one table of distances for all of them."""
    c = config

    def norm() -> RMSNorm:
        return RMSNorm(c.d_model, eps=c.layer_norm_epsilon)

    def attention(*, cross: bool = False) -> Attention:
        return Attention(c.d_model, c.num_heads, head_size=c.d_kv, bias=False, scale=1.0, dropout=c.dropout_rate, cross=cross)

    blocks = [
        Block(
            attention(),
            FeedForward(c.d_model, c.d_ff, c.activation, gated=c.gated, bias=False, dropout=c.dropout_rate),
            norm=norm, order="pre", dropout=c.dropout_rate, cross=attention(cross=True) if decoder else None,
        )
        for _ in range(num_layers)
    ]  # fmt: skip
    bias = BucketBias(c.num_heads, num_buckets=c.relative_attention_num_buckets, max_distance=c.relative_attention_max_distance,
                      bidirectional=not decoder)
    stack = Stack(blocks, final_norm=norm(), position_bias=bias)
    _init(stack, c)
    return stack


@torch.no_grad()
def _init(stack: Stack, c: T5Config) -> None:
    """Mesh TensorFlow's standard deviations; the query's takes the place of a scale of the scores."""
    inner = c.num_heads * c.d_kv
    narrow, wide = c.initializer_factor * (c.d_model * c.d_kv) ** -0.5, c.initializer_factor * c.d_model**-0.5
    for block in cast("list[Block]", list(stack.blocks)):
        for part in (block.attention, block.cross):
            if part is None:
                continue
            if part.cross:
                part.q.weight.normal_(std=narrow)
                part.kv.weight.normal_(std=wide)
            else:
                part.qkv.weight[:inner].normal_(std=narrow)
                part.qkv.weight[inner:].normal_(std=wide)
            part.out.weight.normal_(std=c.initializer_factor * inner**-0.5)
        inside = cast("FeedForward", block.feed_forward)
        for layer in (inside.up, inside.gate):
            if layer is not None:
                layer.weight.normal_(std=wide)
        inside.down.weight.normal_(std=c.initializer_factor * c.d_ff**-0.5)
    for part in stack.modules():
        if isinstance(part, RMSNorm):
            part.weight.fill_(c.initializer_factor)
        if isinstance(part, BucketBias):
            part.table.weight.normal_(std=wide)


def _embedding(config: T5Config) -> TokenEmbedding:
    """The word table, which encoder and decoder share; positions are in the stacks."""
    return TokenEmbedding(config.vocab_size, config.d_model, dropout=config.dropout_rate, std=config.initializer_factor)


class T5EncoderModel(TextEncoder):
    """The encoder alone."""

    def __init__(self, config: T5Config) -> None:
        super().__init__(_embedding(config), _stack(config, config.num_layers, decoder=False), dropout=config.dropout_rate)
        self.config = config

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, output_hidden_states: bool = False
    ) -> TextEncoderOutput:
        """Encode texts [B, S]; `attention_mask` [B, S] is nonzero where there is not padding."""
        kept: list[Tensor] | None = [] if output_hidden_states else None
        memory = self.encode(input_ids, attention_mask, hidden_states=kept)
        return TextEncoderOutput(memory, None if kept is None else tuple(kept))


class T5Model(EncoderDecoderModel):
    """An encoder and a decoder that share a word table."""

    def __init__(self, config: T5Config) -> None:
        super().__init__(
            _embedding(config), _stack(config, config.num_layers, decoder=False), _stack(config, config.decoder_layers, decoder=True),
            dropout=config.dropout_rate,
        )  # fmt: skip
        self.config = config


class T5ForConditionalGeneration(EncoderDecoderLM):
    """Encoder, decoder and a language-model head: text in, text out."""

    def __init__(self, config: T5Config) -> None:
        c, trunk = config, T5Model(config)
        scale = Scale(c.d_model**-0.5) if c.scale_decoder_outputs else None
        tied = cast("nn.Parameter", trunk.embed.word.weight) if c.tie_word_embeddings else None
        head = LMHead(c.d_model, c.vocab_size, transform=scale, weight=tied)
        if tied is None:
            nn.init.normal_(head.weight, std=c.initializer_factor * c.d_model**-0.5)
        # positions are relative, so there is no longest sequence
        super().__init__(trunk, head, DecoderInfo(max_positions=sys.maxsize, num_layers=c.decoder_layers, bos_token_id=c.start_id,
                                                  eos_token_id=c.eos_token_id, pad_token_id=c.pad_token_id))
        self.config = config


# ------------------------------------------------------------------------------------------ the loss side


class T5System(Seq2SeqSystem):
    """T5's pretraining: corrupted spans, written like any other target."""

    captions = ("text", "cut out", "guess")


# --------------------------------------------------------------------------------------------- the entry


def create(config: T5Config, settings: SpanSettings, context: Context) -> T5System:
    """Build T5 with randomly initialized weights and its objective."""

    def objective(tokenizer: Tokenizer) -> SpanObjective:
        return SpanObjective(tokenizer.fitting(config.vocab_size), settings, config.start_id)

    return T5System(T5ForConditionalGeneration(config), context.objective("t5", objective), settings.label_smoothing)


def adapt(config: T5Config, context: Context) -> T5Config:
    """Take vocabulary size and special ids from the tokenizer."""
    t = context.tokenizer
    if t is None:
        return config
    pad, eos = (config.pad_token_id if t.pad_id is None else t.pad_id), (config.eos_token_id if t.eos_id is None else t.eos_id)
    return replace(config, vocab_size=t.vocab_size, pad_token_id=pad, eos_token_id=eos, decoder_start_token_id=pad)


def _side(theirs: str, num_layers: int, *, decoder: bool, gated: bool) -> tuple[Rule, ...]:
    """The names of one stack, which has the same name on both sides."""
    block, ours, last = f"{theirs}.block.{{i}}.layer", f"{theirs}.blocks.{{i}}", 2 if decoder else 1
    own, cross, dense = f"{block}.0.SelfAttention", f"{block}.1.EncDecAttention", f"{block}.{last}.DenseReluDense"
    layer: tuple[Rule, ...] = (
        Fuse(tuple(f"{own}.{n}.weight" for n in "qkv"), f"{ours}.attention.qkv.weight"),
        Rename(f"{own}.o.weight", f"{ours}.attention.out.weight"),
        Rename(f"{block}.0.layer_norm.weight", f"{ours}.attention_residual.norm.weight"),
        Rename(f"{dense}.{'wi_1' if gated else 'wi'}.weight", f"{ours}.feed_forward.up.weight"),
        Rename(f"{dense}.wo.weight", f"{ours}.feed_forward.down.weight"),
        Rename(f"{block}.{last}.layer_norm.weight", f"{ours}.feed_forward_residual.norm.weight"),
    )
    if gated:
        layer += (Rename(f"{dense}.wi_0.weight", f"{ours}.feed_forward.gate.weight"),)
    if decoder:
        layer += (
            Rename(f"{cross}.q.weight", f"{ours}.cross.q.weight"),
            Fuse((f"{cross}.k.weight", f"{cross}.v.weight"), f"{ours}.cross.kv.weight"),
            Rename(f"{cross}.o.weight", f"{ours}.cross.out.weight"),
            Rename(f"{block}.1.layer_norm.weight", f"{ours}.cross_residual.norm.weight"),
        )
    return (
        Rename(f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", f"{theirs}.position_bias.table.weight"),
        Rename(f"{theirs}.final_layer_norm.weight", f"{theirs}.final_norm.weight"),
        Alias(f"{theirs}.embed_tokens.weight", "shared.weight"),
        *layers(num_layers, layer),
    )


def _encoder(config: T5Config) -> tuple[Rule, ...]:
    return Rename("shared.weight", "embed.word.weight"), *_side("encoder", config.num_layers, decoder=False, gated=config.gated)


def _trunk(config: T5Config) -> tuple[Rule, ...]:
    unused = Ignore(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight")  # in the first checkpoints
    return *_encoder(config), *_side("decoder", config.decoder_layers, decoder=True, gated=config.gated), unused


def _head(config: T5Config) -> tuple[Rule, ...]:
    if config.tie_word_embeddings:
        return Alias("lm_head.weight", "shared.weight"), Tied("head.weight", "trunk.embed.word.weight")
    return (Untied("lm_head.weight", "head.weight", "shared.weight"),)


NETS = (
    Net("T5ForConditionalGeneration", T5ForConditionalGeneration,
        transformers(lambda c: (*prefixed(_trunk(c), ours="trunk."), *_head(c)), files=defaults_files, finish=read_defaults)),
    Net("T5Model", T5Model, transformers(_trunk)),
    Net("T5EncoderModel", T5EncoderModel, transformers(_encoder)),
)

CARD = Card(
    title="T5",
    paper="Raffel, Shazeer, Roberts, Lee, Narang, Matena, Zhou, Li, Liu. Exploring the Limits of Transfer Learning with a Unified "
          "Text-to-Text Transformer",
    year=2020,
    url="https://arxiv.org/abs/1910.10683",
    equation=r"\mathcal{L} = -\frac{1}{|y|} \sum_{t=1}^{|y|} \log p_\theta(y_t \mid y_{<t}, \tilde{x})",
    symbols="The text x with a tilde has a sentinel for each corrupted span; y is each sentinel and what stood there.",
    masks={"Encoder": Mask(keep=torch.arange(16)[None] < 13), "Decoder": Mask(causal=True)},
    reference="transformers.T5ForConditionalGeneration",
)

FAMILIES = (
    Family(
        name="t5",
        card=CARD,
        config=T5Config,
        sizes=SIZES,
        adapt=adapt,
        pretraining=Task("corrupted spans", SpanSettings, create),
        tasks=(text2text.task("T5ForConditionalGeneration", T5ForConditionalGeneration),),
        nets=NETS,
        heads=("head",),
        model_type="t5",
        vocabulary=Vocabulary("unigram", "t5"),
    ),
)
