"""BART. Lewis, Liu, Goyal, Ghazvininejad, Mohamed, Levy, Stoyanov and Zettlemoyer, "BART: Denoising Sequence-to-Sequence
Pre-training for Natural Language Generation, Translation, and Comprehension", 2019. https://arxiv.org/abs/1910.13461

    noisy text [S] --> word + position vectors --> norm --> encoder_layers post-norm blocks --> memory
                                                                                                  |
    </s> text [T] --> word + position vectors --> norm --> decoder_layers blocks, each beside it <+--> head --> the whole text [T]

Faithful: networks and outputs as in transformers' `Bart*` classes (post-norm, no final norm, one word table for both sides and the head,
a table of positions for each side whose first two rows are none); the five noises of section 2.2 by the procedures of
facebookresearch/fairseq, of which infilled spans and permuted sentences are the default, as in section 5; the target is the whole text,
and the decoder begins with `</s>`.

Fine-tuned to classify, score, tag or answer (section 3.1, 3.2), the text goes through both sides, and the decoder's top states are read:
that of the last token, or of every token. transformers has no network that tags: it has a format of ours, `polymodal`.

Translation into BART's language (section 3.4, the task `translate`): a fresh encoder reads the other language, and its states take the
place of the encoder's word vectors. First it is trained with BART's positions and the input projection of the encoder's first attention,
all else frozen (recipe `bart-translate`), then everything (`bart-translate-all`).

Deviations, each with its reason:
* A document is a text, and longer ones are cut where a text is full; fairseq fills its blocks with whole documents up to the same length.
* Masked and deleted tokens are a share of the tokens, rounded at random so that it is met on average; fairseq rounds up.
* A sentence ends at a full stop, of English or Chinese, as in fairseq; it is not looked for at other marks.
* Texts and targets of a batch are packed, each in one row, and see only their own.
* The paper turns dropout off for the last tenth of its updates; here that is another phase (`--continue-from`).
* The fresh encoder has word vectors of its own, but BART's vocabulary: a run has one tokenizer, and byte-level BPE encodes any language.
* `final_logits_bias`, which transformers keeps as zeros, is not computed: a file that has something else there is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from ..shared.attention import Attention
from ..shared.attention.mask import Mask
from ..shared.block import Block, FeedForward, LayerNorm
from ..shared.config import Config
from ..shared.convert import Alias, Rename, Rule, Tied, Zeros, affine, fused, layers, prefixed
from ..shared.decoder import DecoderInfo
from ..shared.embed import TokenEmbedding, normal_
from ..shared.encoder import EncoderOutput, last_tokens
from ..shared.errors import UserError
from ..shared.family import Card, Context, Family, Net, Task, Vocabulary, our_own, transformers
from ..shared.generation_config import defaults_files, read_defaults
from ..shared.heads import LMHead
from ..shared.packed import starts
from ..shared.stack import Stack
from ..shared.tokenizer import Tokenizer
from ..text.encoder_tasks import encoder_tasks
from ..text.framing import longest
from ..text.tasks import DenseClassification, QuestionAnswering, TokenClassification
from . import text2text
from .denoising import DenoisingObjective, DenoisingSettings
from .encoder_decoder import EncoderDecoderLM, EncoderDecoderModel, TextEncoder
from .generation.options import as_ids
from .teacher_forcing import Seq2SeqSystem


@dataclass(frozen=True, kw_only=True)
class BartConfig(Config):
    """transformers' `BartConfig`; the defaults are those of the large model."""

    vocab_size: int = 50265
    """Rows of the word table."""
    max_position_embeddings: int = 1024
    """The longest text and the longest target, in tokens."""
    d_model: int = 1024
    """Width D."""
    encoder_layers: int = 12
    """Blocks of the encoder."""
    encoder_attention_heads: int = 16
    """Attention heads of the encoder; they divide `d_model`."""
    encoder_ffn_dim: int = 4096
    """Width of the encoder's feed-forward layers."""
    decoder_layers: int = 12
    """Blocks of the decoder."""
    decoder_attention_heads: int = 16
    """Attention heads of the decoder; they divide `d_model`."""
    decoder_ffn_dim: int = 4096
    """Width of the decoder's feed-forward layers."""
    activation_function: str = "gelu"
    """Activation of the feed-forward layers."""
    dropout: float = 0.1
    """Dropout of embeddings and residuals."""
    attention_dropout: float = 0.0
    """Dropout of the attention weights."""
    activation_dropout: float = 0.0
    """Dropout within the feed-forward layers."""
    init_std: float = 0.02
    """Standard deviation of the initial weights."""
    classifier_dropout: float = 0.0
    """Dropout before and within the head of a classifier."""
    pad_token_id: int = 1
    """Id of padding."""
    bos_token_id: int | None = 0
    """Id that a text begins with."""
    eos_token_id: int | tuple[int, ...] = 2
    """Id that ends a text, or several that do."""
    decoder_start_token_id: int = 2
    """Id the decoder starts from."""
    source_layers: int = 0
    """Blocks of the fresh encoder of another language that stands before the encoder; for the task `translate` alone."""
    num_labels: int = 3
    """Classes of a classifier."""
    labels: tuple[str, ...] | None = None
    """Their names, in the order of their numbers."""

    type_vocab_size: ClassVar[int] = 1
    """There are no token types."""
    summary_token: ClassVar[Literal["first", "last"]] = "first"
    """Where the classification token stands; the summary is read off the last token, the end of the text."""
    question_first: ClassVar[bool] = True
    """A question stands before the text that answers it."""

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = MappingProxyType({
        "scale_embedding": (False,), "tie_word_embeddings": (True,), "is_encoder_decoder": (True,),
        "normalize_before": (False,), "add_final_layer_norm": (False,), "normalize_embedding": (True,),
        "static_position_embeddings": (False,), "extra_pos_embeddings": (2,), "add_bias_logits": (False,),
        "encoder_layerdrop": (0.0, 0), "decoder_layerdrop": (0.0, 0),
    })
    IGNORED: ClassVar[Mapping[str, str]] = MappingProxyType({
        "num_hidden_layers": "repeats encoder_layers",
        "force_bos_token_to_be_generated": "transformers 5 reads forced_bos_token_id, which published files hold beside it",
    })
    SYNONYMS: ClassVar[Mapping[str, str]] = MappingProxyType({
        "hidden_size": "d_model", "num_attention_heads": "encoder_attention_heads", "classif_dropout": "classifier_dropout",
    })

    AT_LEAST_ONE = ("vocab_size", "max_position_embeddings", "d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim",
                    "decoder_layers", "decoder_attention_heads", "decoder_ffn_dim", "num_labels")
    PROBABILITIES = ("dropout", "attention_dropout", "activation_dropout", "classifier_dropout")
    NOT_NEGATIVE = ("init_std", "source_layers")
    ACTIVATION = "activation_function"

    def problems(self) -> list[str]:
        """What is wrong with the fields, alone and together."""
        found = super().problems()
        for side in ("encoder", "decoder"):
            heads: int = getattr(self, f"{side}_attention_heads")
            if heads > 0 and self.d_model % heads:
                found.append(f"{side}_attention_heads {heads} does not divide d_model {self.d_model}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """The keys of config.json; `source_layers` only where there are some, as transformers does not know them."""
        record = super().to_dict()
        if not self.source_layers:
            del record["source_layers"]
        return record

    @property
    def hidden_size(self) -> int:
        """Width D, for the heads of tasks."""
        return self.d_model

    @property
    def hidden_dropout_prob(self) -> float:
        """Dropout of residuals, for the heads of tasks."""
        return self.dropout

    @property
    def initializer_range(self) -> float:
        """Standard deviation of the initial weights, for the heads of tasks."""
        return self.init_std

    @property
    def longest_input(self) -> int:
        """Tokens of the longest text."""
        return self.max_position_embeddings

    @property
    def start_id(self) -> int:
        """Id the decoder starts from."""
        return self.decoder_start_token_id


ConfigT = TypeVar("ConfigT", bound=BartConfig)

_BASE: dict[str, Any] = {
    "d_model": 768, **{f"{side}_{name}": value for side in ("encoder", "decoder")
                       for name, value in (("layers", 6), ("attention_heads", 12), ("ffn_dim", 3072))}}
_TINY: dict[str, Any] = {
    "d_model": 128, "max_position_embeddings": 128, **{f"{side}_{name}": value for side in ("encoder", "decoder")
                                                       for name, value in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 512))}}
SIZES: dict[str, dict[str, Any]] = {"tiny": _TINY, "base": _BASE, "large": {}}
"""`base` and `large` are the paper's."""


# ---------------------------------------------------------------------------------------------- networks


def _stack(config: BartConfig, side: str, *, decoder: bool, num_layers: int | None = None) -> Stack:
    """Post-norm blocks with biases, as the fields that begin with `side` have them; `num_layers` instead of theirs."""
    c, heads = config, getattr(config, f"{side}_attention_heads")

    def attention(*, cross: bool = False) -> Attention:
        return Attention(c.d_model, heads, dropout=c.attention_dropout, cross=cross)

    stack = Stack([
        Block(
            attention(),
            FeedForward(c.d_model, getattr(c, f"{side}_ffn_dim"), c.activation_function, dropout=c.activation_dropout),
            norm=lambda: LayerNorm(c.d_model), order="post", dropout=c.dropout, cross=attention(cross=True) if decoder else None,
        )
        for _ in range(getattr(c, f"{side}_layers") if num_layers is None else num_layers)
    ])  # fmt: skip
    normal_(stack, c.init_std)
    return stack


class BartEmbedding(TokenEmbedding):
    """Word and position vectors, and a norm; the first two rows of positions are none."""

    def __init__(self, config: BartConfig, *, type_vocab_size: int = 0) -> None:
        c = config
        super().__init__(c.vocab_size, c.d_model, max_positions=c.max_position_embeddings + 2, position_offset=2,
                         type_vocab_size=type_vocab_size, norm=lambda: LayerNorm(c.d_model), dropout=c.dropout, std=c.init_std)


class BartModel(EncoderDecoderModel):
    """An encoder and a decoder that share a word table; each has positions and a norm of its own."""

    def __init__(self, config: BartConfig, embedding: Callable[[Any], TokenEmbedding] | None = None) -> None:
        embed, decoder_embed = ((embedding or BartEmbedding)(config) for _ in range(2))
        decoder_embed.word = embed.word
        super().__init__(embed, _stack(config, "encoder", decoder=False), _stack(config, "decoder", decoder=True),
                         decoder_embed=decoder_embed)
        self.config = config


def with_source(config: BartConfig) -> BartConfig:
    """The config with a fresh encoder of another language, by default the paper's 6 blocks."""
    return config if config.source_layers else replace(config, source_layers=6)


class BartTranslator(BartModel):
    """BART behind a fresh encoder, whose states stand in place of the encoder's word vectors (section 3.4)."""

    def __init__(self, config: BartConfig) -> None:
        super().__init__(config)
        self.source = TextEncoder(BartEmbedding(config), _stack(config, "encoder", decoder=False, num_layers=config.source_layers))

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        token_type_ids: Tensor | None = None,
        lengths: tuple[int, ...] | None = None,
        hidden_states: list[Tensor] | None = None,
    ) -> Tensor:
        """The memory of texts in the other language; see `TextEncoder.encode`."""
        x = self.source.encode(input_ids, attention_mask, position_ids, lengths=lengths)
        mask = Mask(keep=None if attention_mask is None else attention_mask.bool(), lengths=lengths)
        return self.dropout(self.encoder(self.embed.placed(x, position_ids), mask, hidden_states=hidden_states))


class BartForConditionalGeneration(EncoderDecoderLM):
    """Encoder, decoder and a language-model head that shares their word table: text in, text out."""

    def __init__(self, config: BartConfig, trunk: BartModel | None = None) -> None:
        c, trunk = config, trunk or BartModel(config)
        head = LMHead(c.d_model, c.vocab_size, weight=cast("nn.Parameter", trunk.embed.word.weight))
        super().__init__(trunk, head, DecoderInfo(max_positions=c.max_position_embeddings, num_layers=c.decoder_layers,
                                                  bos_token_id=c.start_id, eos_token_id=c.eos_token_id, pad_token_id=c.pad_token_id))
        self.config = config


class BartForTranslation(BartForConditionalGeneration):
    """BART that writes in its own language what stands in another one."""

    def __init__(self, config: BartConfig) -> None:
        config = with_source(config)
        super().__init__(config, BartTranslator(config))


class BartReader(BartModel):
    """A text through both sides: a state of each token, beside the whole text and behind what stands before it."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  (one text, where the encoder-decoder reads two)
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        lengths: tuple[int, ...] | None = None,
        output_hidden_states: bool = False,
    ) -> EncoderOutput:
        """Read texts [B, S], padded on the right, or N texts packed in one row; see `Encoder.forward` for the arguments.

        `pooler_output` is the decoder's state of each text's last token; `hidden_states` are the decoder's.
        """
        kept: list[Tensor] | None = [] if output_hidden_states else None
        memory = self.encode(input_ids, attention_mask, position_ids, lengths=lengths)
        first = torch.tensor([0] if lengths is None else starts(lengths)).to(input_ids.device, non_blocking=True)
        shifted = input_ids.roll(1, dims=1).index_fill(1, first, self.config.start_id)
        x = self.decode(shifted, memory, attention_mask, None, position_ids, lengths=lengths, memory_lengths=lengths, hidden_states=kept)
        return EncoderOutput(x, last_tokens(x, attention_mask, lengths), None if kept is None else tuple(kept))


# ------------------------------------------------------------------------------------------ the loss side


class BartSystem(Seq2SeqSystem):
    """BART's pretraining: the whole text is written, beside a noisy one."""

    captions = ("noisy", "text", "written")


# --------------------------------------------------------------------------------------------- the entry


def create(config: BartConfig, settings: DenoisingSettings, context: Context) -> BartSystem:
    """Build BART with randomly initialized weights and its objective."""
    without_source(config, context)

    def objective(tokenizer: Tokenizer) -> DenoisingObjective:
        return DenoisingObjective(tokenizer.fitting(config.vocab_size), settings, longest(config, settings.max_length), config.start_id)

    return BartSystem(BartForConditionalGeneration(config), context.objective("bart", objective), settings.label_smoothing)


def adapt(config: ConfigT, context: Context) -> ConfigT:
    """Take vocabulary size and special ids from the tokenizer."""
    t = context.tokenizer
    if t is None:
        return config
    pad, bos = (config.pad_token_id if t.pad_id is None else t.pad_id), (t.cls_id if t.bos_id is None else t.bos_id)
    eos = next(i for i in (t.eos_id, t.sep_id, *as_ids(config.eos_token_id)) if i is not None)
    return replace(config, vocab_size=t.vocab_size, pad_token_id=pad, bos_token_id=bos, eos_token_id=eos, decoder_start_token_id=eos)


def without_source(config: ConfigT, context: Context) -> ConfigT:
    """The config, which has no encoder of another language."""
    if config.source_layers:
        raise UserError(f"source_layers is {config.source_layers}, and only the task translate has an encoder of another language: "
                        "train that, or start from a model without one")
    return config


def _blocks(name: str, stack: str, num_layers: int, *, decoder: bool) -> tuple[Rule, ...]:
    """The names of the blocks of one side."""
    theirs, ours = f"{name}.layers.{{i}}", f"{stack}.blocks.{{i}}"

    def attention(part: str, norm: str, mine: str, *, cross: bool) -> tuple[Rule, ...]:
        q, k, v = (f"{theirs}.{part}.{n}_proj" for n in "qkv")
        inner = (*affine(q, f"{ours}.{mine}.q"), *fused((k, v), f"{ours}.{mine}.kv")) if cross else fused((q, k, v), f"{ours}.{mine}.qkv")
        return (*inner, *affine(f"{theirs}.{part}.out_proj", f"{ours}.{mine}.out"),
                *affine(f"{theirs}.{norm}", f"{ours}.{mine}_residual.norm"))

    return layers(num_layers, (
        *attention("self_attn", "self_attn_layer_norm", "attention", cross=False),
        *(attention("encoder_attn", "encoder_attn_layer_norm", "cross", cross=True) if decoder else ()),
        *affine(f"{theirs}.fc1", f"{ours}.feed_forward.up"),
        *affine(f"{theirs}.fc2", f"{ours}.feed_forward.down"),
        *affine(f"{theirs}.final_layer_norm", f"{ours}.feed_forward_residual.norm"),
    ))


def _embedding(name: str, ours: str) -> tuple[Rule, ...]:
    """The names of one side's positions and norm."""
    return (Rename(f"{name}.embed_positions.weight", f"{ours}.position.weight"), *affine(f"{name}.layernorm_embedding", f"{ours}.norm"))


def _side(name: str, num_layers: int, embed: str, *, decoder: bool) -> tuple[Rule, ...]:
    """The names of one side, whose stack has the same name here."""
    return (Alias(f"{name}.embed_tokens.weight", "shared.weight"), *_embedding(name, embed),
            *_blocks(name, name, num_layers, decoder=decoder))


def _source(config: BartConfig) -> tuple[Rule, ...]:
    """The names of the encoder of another language, which has words of its own."""
    return (Rename("source.embed_tokens.weight", "source.embed.word.weight"), *_embedding("source", "source.embed"),
            *_blocks("source", "source.encoder", config.source_layers, decoder=False))


def _trunk(config: BartConfig) -> tuple[Rule, ...]:
    return (
        Rename("shared.weight", "embed.word.weight"),
        Tied("decoder_embed.word.weight", "embed.word.weight"),
        *_side("encoder", config.encoder_layers, "embed", decoder=False),
        *_side("decoder", config.decoder_layers, "decoder_embed", decoder=True),
    )


def _writer(config: BartConfig) -> tuple[Rule, ...]:
    return (*prefixed(_trunk(config), "model.", "trunk."), Alias("lm_head.weight", "model.shared.weight"),
            Tied("head.weight", "trunk.embed.word.weight"), Zeros("final_logits_bias", "model.shared.weight"))


NETS = (
    Net("BartForConditionalGeneration", BartForConditionalGeneration, transformers(_writer, files=defaults_files, finish=read_defaults)),
    Net("BartModel", BartModel, transformers(_trunk)),
    Net("BartForSequenceClassification", lambda c: DenseClassification(BartReader(c), c, "tanh"), transformers(lambda c: (
        *prefixed(_trunk(c), "model.", "trunk."), *affine("classification_head.dense", "head.dense"),
        *affine("classification_head.out_proj", "head.out")))),
    Net("BartForQuestionAnswering", lambda c: QuestionAnswering(BartReader(c), c),
        transformers(lambda c: (*prefixed(_trunk(c), "model.", "trunk."), *affine("qa_outputs", "classifier")))),
    Net("BartForTokenClassification", lambda c: TokenClassification(BartReader(c), c), our_own(
        transformers(lambda c: (*prefixed(_trunk(c), "model.", "trunk."), *affine("classifier", "classifier"))),
        "BartForTokenClassification", BartConfig, "polymodal-bart")),
    Net("BartForTranslation", BartForTranslation, our_own(
        transformers(lambda c: (*_writer(c), *prefixed(_source(with_source(c)), "model.", "trunk.")), files=defaults_files,
                     finish=read_defaults),
        "BartForTranslation", BartConfig, "polymodal-bart")),
)

CARD = Card(
    title="BART",
    paper="Lewis, Liu, Goyal, Ghazvininejad, Mohamed, Levy, Stoyanov, Zettlemoyer. BART: Denoising Sequence-to-Sequence Pre-training for "
          "Natural Language Generation, Translation, and Comprehension",
    year=2019,
    url="https://arxiv.org/abs/1910.13461",
    equation=r"\mathcal{L} = -\frac{1}{|x|} \sum_{t=1}^{|x|} \log p_\theta(x_t \mid x_{<t}, \tilde{x})",
    symbols="The text x with a tilde has permuted sentences, and spans that are one mask token each.",
    masks={"Encoder": Mask(keep=torch.arange(16)[None] < 13), "Decoder": Mask(causal=True)},
    reference="transformers.BartForConditionalGeneration",
)

FAMILIES = (
    Family(
        name="bart",
        card=CARD,
        config=BartConfig,
        sizes=SIZES,
        adapt=adapt,
        pretraining=Task("denoised texts", DenoisingSettings, create),
        tasks=(text2text.task("BartForConditionalGeneration", BartForConditionalGeneration, adapt=without_source),
               text2text.task("BartForTranslation", BartForTranslation, "translate", lambda c, _: with_source(c)), *encoder_tasks(NETS)),
        nets=NETS,
        heads=("head", "classifier", "trunk.source"),
        model_type="bart",
        vocabulary=Vocabulary("byte-bpe", "roberta"),
    ),
)
