"""ALBERT. Lan, Chen, Goodman, Gimpel, Sharma and Soricut, "ALBERT: A Lite BERT for Self-supervised Learning of
Language Representations", 2019. https://arxiv.org/abs/1909.11942

BERT with few parameters: narrow word tables with a map behind them, and one block for all layers; the order of segments in place of
the next sentence; n-grams of words in place of words.

    words [V, E] -> map [E, D] -> block -> block -> ... -> block      the same block in every layer
    in order:  [CLS] A [SEP] B [SEP]    swapped:  [CLS] B [SEP] A [SEP]      A and B are neighbours in a document

Faithful: networks and outputs as in transformers' `Albert*` classes. Factorised embedding (section 3.1); layers share all of their
parameters, those of attention, those of the feed-forward net, or none (table 4), where a norm belongs to the part before it. Sentence
order (section 3.1) with label 1 "swapped". N-grams of up to three whole words, p(n) ~ 1/n (equation 1), within 15 % of a sequence and
80/10/10 for each token, as in google-research/albert (`create_masked_lm_predictions`); a single sentence that is left gets a random
second segment with label 1, as there. Dropout 0 is version 2's; the sizes `...-v1` have version 1's 0.1.

Deviations, each with its reason:
* An n-gram ends at a separator: words of two segments are no n-gram. The reference lets it run on.
* The output of the feed-forward net has dropout, as in google-research/albert; transformers has none there.
* GELU is the tanh form in both versions, as in google-research/albert; transformers' files of version 1 name the exact one.
* Networks that share only attention or only the feed-forward net are none of transformers': they have a format of their own.
* Pairs, random documents, sentences, noise and packing are as BERT's file says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from ..shared.attention.mask import Mask
from ..shared.block import Block
from ..shared.convert import Ignore, Rule, Tied, affine, fused, layers, prefixed
from ..shared.embed import normal_
from ..shared.encoder import EMBEDDINGS, LEGACY, Encoder, EncoderConfig
from ..shared.errors import UserError
from ..shared.family import Card, Context, Family, Net, Task, Vocabulary, or_our_own, transformers
from ..shared.tokenizer import Tokenizer
from . import tasks
from .bert import BertObjective, BertSystem, PairedWords, PairSettings, adapt
from .encoder_tasks import encoder_tasks
from .framing import longest
from .masking import MaskedLM, head_rules


@dataclass(frozen=True, kw_only=True)
class AlbertConfig(EncoderConfig):
    """transformers' `AlbertConfig`, with its defaults (those of `xxlarge`), and `sharing`."""

    vocab_size: int = 30000
    """Rows of the word table."""
    embedding_size: int = 128
    """Width E of the embedding tables; a linear map to D follows."""
    hidden_size: int = 4096
    """Width D."""
    num_attention_heads: int = 64
    """Attention heads; they divide `hidden_size`."""
    intermediate_size: int = 16384
    """Width of the feed-forward layer."""
    hidden_act: str = "gelu_new"
    """Activation of the feed-forward layer and of the language-modelling head; `gelu_new` is the tanh form."""
    hidden_dropout_prob: float = 0.0
    """Dropout of the embeddings and before each residual sum."""
    attention_probs_dropout_prob: float = 0.0
    """Dropout of the attention weights."""
    classifier_dropout_prob: float = 0.1
    """Dropout before a task head and before the head for the order of segments."""
    num_hidden_groups: int = 1
    """Groups of consecutive layers; the layers of a group share a block."""
    sharing: Literal["all", "attention", "feed-forward", "none"] = "all"
    """What layers share: all (within a group), attention, the feed-forward net, or nothing (as many groups as layers)."""
    num_labels: int = 2
    """Classes of a task head."""
    labels: tuple[str, ...] | None = None
    """Names of the classes."""

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {**EncoderConfig.FIXED, "inner_group_num": (1,)}
    IGNORED: ClassVar[Mapping[str, str]] = {**EncoderConfig.IGNORED, **dict.fromkeys(
        ("down_scale_factor", "gap_size", "net_structure_type", "num_memory_blocks", "layers_to_keep"),
        "in the published files; no code reads it")}

    AT_LEAST_ONE = (*EncoderConfig.AT_LEAST_ONE, "embedding_size", "num_hidden_groups", "num_labels")
    PROBABILITIES = (*EncoderConfig.PROBABILITIES, "classifier_dropout_prob")

    def __post_init__(self) -> None:
        """Spell "nothing is shared" in one way, whether it was asked for by `sharing` or by `num_hidden_groups`."""
        if self.sharing == "none":
            object.__setattr__(self, "num_hidden_groups", self.num_hidden_layers)
        elif self.sharing == "all" and self.num_hidden_groups == self.num_hidden_layers > 1:
            object.__setattr__(self, "sharing", "none")
        super().__post_init__()

    def problems(self) -> list[str]:
        """What is wrong with the fields, alone and together."""
        found = super().problems()
        if self.num_hidden_groups > 0 and self.num_hidden_layers % self.num_hidden_groups:
            found.append(f"num_hidden_groups {self.num_hidden_groups} does not divide num_hidden_layers {self.num_hidden_layers}")
        if self.is_partial and self.num_hidden_groups != 1:
            found.append(f"num_hidden_groups is {self.num_hidden_groups}, expected 1 where layers share {self.sharing} alone")
        return found

    @property
    def is_partial(self) -> bool:
        """Whether layers share a part of their block, which transformers does not know."""
        return self.sharing in ("attention", "feed-forward")

    @property
    def table_size(self) -> int:
        """Width E."""
        return self.embedding_size

    @property
    def classifier_dropout(self) -> float:
        """What task heads call their dropout."""
        return self.classifier_dropout_prob

    def to_dict(self) -> dict[str, Any]:
        """The keys of config.json; `sharing` where transformers' keys do not say it."""
        record = super().to_dict()
        if not self.is_partial:
            del record["sharing"]
        return record


_SHAPES: dict[str, dict[str, Any]] = {
    "base": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "xlarge": {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 8192},
    "xxlarge": {},
}
_V1: dict[str, Any] = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
_TINY: dict[str, Any] = {"embedding_size": 64, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
                         "intermediate_size": 512, "max_position_embeddings": 128}
SIZES: dict[str, dict[str, Any]] = {
    "tiny": _TINY,
    "tiny-attention": {**_TINY, "sharing": "attention"},
    **_SHAPES,
    **{f"{name}-v1": {**_SHAPES[name], **_V1} for name in ("base", "large", "xlarge")},
}
"""`base` to `xxlarge` are version 2, without dropout; version 1 of `xxlarge` has none either."""


# ---------------------------------------------------------------------------------------------- networks


@dataclass
class AlbertForPreTrainingOutput:
    """Outputs of `AlbertForPreTraining`."""

    prediction_logits: Tensor
    """[B, S, V]"""
    sop_logits: Tensor
    """[B, 2]; class 0: the segments are in order, 1: they are swapped."""
    hidden_states: tuple[Tensor, ...] | None = None


class AlbertModel(Encoder):
    """BERT's trunk with narrow tables, a map behind them (also between equal widths), and blocks that layers share."""

    config: AlbertConfig

    def __init__(self, config: AlbertConfig, *, pooler: bool = True) -> None:
        super().__init__(config, pooler=pooler)
        if self.embed.projection is None:
            self.embed.projection = nn.Linear(config.embedding_size, config.hidden_size)
            normal_(self.embed.projection, config.initializer_range)

    def blocks(self) -> list[Block]:
        """One block for each group, or one for each layer that has a part of the first."""
        if not self.config.is_partial:
            return [self.block(number) for number in range(self.config.num_hidden_groups)]
        made = super().blocks()
        for block in made[1:]:
            if self.config.sharing == "attention":
                block.attention, block.attention_residual = made[0].attention, made[0].attention_residual
            else:
                block.feed_forward, block.feed_forward_residual = made[0].feed_forward, made[0].feed_forward_residual
        return made


class AlbertForMaskedLM(MaskedLM):
    """The trunk without pooler, and the masked-language-model head."""

    def __init__(self, config: AlbertConfig) -> None:
        super().__init__(AlbertModel(config, pooler=False), config)


class AlbertForPreTraining(PairedWords):
    """The trunk, the masked-language-model head and the head for the order of segments."""

    def __init__(self, config: AlbertConfig) -> None:
        super().__init__(AlbertModel(config), config, config.classifier_dropout_prob)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        lengths: tuple[int, ...] | None = None,
        output_hidden_states: bool = False,
    ) -> AlbertForPreTrainingOutput:
        """Map ids [B, S] to logits of both heads; see `Encoder.forward` for the arguments."""
        out = self.trunk(input_ids, attention_mask, token_type_ids, position_ids,
                         lengths=lengths, output_hidden_states=output_hidden_states)
        return AlbertForPreTrainingOutput(self.head(out.last_hidden_state), self.judge(out.pooled), out.hidden_states)


# ------------------------------------------------------------------------------------------ the data side


@dataclass(frozen=True)
class AlbertSettings(PairSettings):
    """What of the objective can be set."""

    whole_words: bool = True
    """Whether words are predicted whole, and in n-grams."""
    max_ngram: int = 3
    """Words of the longest n-gram; n has the probability (1/n) / (1/1 + 1/2 + ... + 1/max_ngram)."""
    sop: bool = True
    """Whether sequences are pairs and the head for their order is trained."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if self.max_ngram < 1:
            raise UserError(f"max_ngram is {self.max_ngram}, expected at least 1 word")
        if not self.whole_words and self.max_ngram not in (1, type(self).max_ngram):
            raise UserError(f"max_ngram is {self.max_ngram} without whole_words: n-grams are made of whole words; set whole_words to true")

    @property
    def paired(self) -> bool:
        """Whether sequences are pairs."""
        return self.sop


class OrderObjective(BertObjective):
    """Masked words, and of pairs whether the segments are in order (ALBERT, MacBERT)."""

    swap = True
    kinds = ("in order", "swapped or random")


class AlbertObjective(OrderObjective):
    """Masked n-grams, and of pairs whether the segments are in order."""

    def __init__(self, tokenizer: Tokenizer, settings: AlbertSettings, max_length: int) -> None:
        """Make the data side for sequences of at most `max_length` tokens."""
        super().__init__(tokenizer, settings, max_length)
        weights = [1 / n for n in range(1, settings.max_ngram + 1)]
        self.ngrams = tuple(weight / sum(weights) for weight in weights)


# ------------------------------------------------------------------------------------------ the loss side


class OrderSystem(BertSystem):
    """Pretraining by masked words, and by the order of segments where the objective makes pairs."""

    pair_term = "sop"


# --------------------------------------------------------------------------------------------- the entry


def create(config: AlbertConfig, settings: AlbertSettings, context: Context) -> OrderSystem:
    """Build ALBERT with randomly initialized weights and its objective."""
    length = longest(config, settings.max_length)
    if settings.sop and config.type_vocab_size < 2:
        raise UserError("the order of segments needs two token types: set model.type_vocab_size to 2 or objective.sop to false")
    objective = context.objective("albert", lambda tokenizer: AlbertObjective(tokenizer.fitting(config.vocab_size), settings, length))
    return OrderSystem(AlbertForPreTraining(config) if settings.sop else AlbertForMaskedLM(config), objective)


def trunk_rules(config: AlbertConfig, *, pooler: bool = True) -> tuple[Rule, ...]:
    """The names of transformers' `AlbertModel`; a part that all layers share stands in the first group."""
    theirs, ours = "encoder.albert_layer_groups.{i}.albert_layers.0", "stack.blocks.{i}"
    attention = (
        *fused(tuple(f"{theirs}.attention.{n}" for n in ("query", "key", "value")), f"{ours}.attention.qkv"),
        *affine(f"{theirs}.attention.dense", f"{ours}.attention.out"),
        *affine(f"{theirs}.attention.LayerNorm", f"{ours}.attention_residual.norm"),
    )
    feed_forward = (
        *affine(f"{theirs}.ffn", f"{ours}.feed_forward.up"),
        *affine(f"{theirs}.ffn_output", f"{ours}.feed_forward.down"),
        *affine(f"{theirs}.full_layer_layer_norm", f"{ours}.feed_forward_residual.norm"),
    )
    if config.is_partial:
        shared, own = (attention, feed_forward) if config.sharing == "attention" else (feed_forward, attention)
        again = (Tied(key.replace("{i}", str(n)), key.replace("{i}", "0"))
                 for n in range(1, config.num_hidden_layers) for rule in shared for key in rule.our_keys)
        blocks = (*layers(1, shared), *again, *layers(config.num_hidden_layers, own))
    else:
        blocks = layers(config.num_hidden_groups, (*attention, *feed_forward))
    return (
        *EMBEDDINGS,
        *affine("encoder.embedding_hidden_mapping_in", "embed.projection"),
        *blocks,
        *(affine("pooler", "pooler.dense") if pooler else ()),
        *LEGACY,
    )


def _trunk(config: AlbertConfig, pooler: bool) -> tuple[Rule, ...]:
    return prefixed(trunk_rules(config, pooler=pooler), "albert.", "trunk.")


def _formats(net: Net) -> Net:
    """A network in transformers' format, or in ours where layers share a part of their block."""
    return or_our_own(net, AlbertConfig, "polymodal-albert", lambda config: f"sharing {config.sharing}" if config.is_partial else "")


_HEAD = head_rules("predictions.dense", "predictions.LayerNorm", "predictions.bias", "predictions.decoder",
                   "albert.embeddings.word_embeddings.weight")
_TASKS = tuple(_formats(net) for net in tasks.task_nets("Albert", AlbertModel, _trunk))

NETS = (
    *(_formats(net) for net in (
        Net("AlbertForPreTraining", AlbertForPreTraining, transformers(
            lambda c: (*_trunk(c, True), *_HEAD, *affine("sop_classifier.classifier", "next_sentence")))),
        Net("AlbertForMaskedLM", AlbertForMaskedLM, transformers(
            # the released files of this architecture hold the other head, too
            lambda c: (*_trunk(c, False), *_HEAD, Ignore(r"albert\.pooler\..*|sop_classifier\..*")))),
        Net("AlbertModel", AlbertModel, transformers(trunk_rules)),
    )),
    *_TASKS,
)

CARD = Card(
    title="ALBERT",
    paper="Lan, Chen, Goodman, Gimpel, Sharma, Soricut. ALBERT: A Lite BERT for Self-supervised Learning of Language Representations",
    year=2019,
    url="https://arxiv.org/abs/1909.11942",
    equation=r"\mathcal{L} = -\frac{1}{|M|} \sum_{i \in M} \log p_\theta(x_i \mid \tilde{x}) "
             r"- \frac{1}{B} \sum_{b=1}^{B} \log p_\theta(o_b \mid \tilde{x}_b), \qquad p(n) = \frac{1/n}{\sum_{k=1}^{N} 1/k}",
    symbols="M are the 15 % of the tokens that are to be predicted, in n-grams of whole words with probability p(n), N = 3; in the input x "
            "with a tilde, 80 % of them are masked, 10 % replaced and 10 % kept. o says whether two segments of a document are in order. "
            "Both means are over the whole global batch.",
    masks={"Packed pairs": Mask(lengths=(5, 7, 4))},
    reference="transformers.AlbertForPreTraining",
)

FAMILIES = (
    Family(
        name="albert",
        card=CARD,
        config=AlbertConfig,
        sizes=SIZES,
        adapt=adapt,
        pretraining=Task("masked n-grams and sentence order", AlbertSettings, create),
        tasks=encoder_tasks(_TASKS),
        nets=NETS,
        heads=("head", "next_sentence", "classifier", "trunk.pooler"),
        model_type="albert",
        vocabulary=Vocabulary("unigram", "albert", lowercase=True),
    ),
)
