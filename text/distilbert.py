"""DistilBERT. Sanh, Debut, Chaumond and Wolf, "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter", 2019.
https://arxiv.org/abs/1910.01108

A BERT of half the layers, which learns from a trained BERT beside it what that predicts and how it represents a text.

    teacher   layer  0  1  2  3  4  5  6  7  8  9 10 11
    student          0     1     2        3     4     5      its first weights, and the embeddings and the head

Faithful: networks and outputs as in transformers' `DistilBert*` classes (no token types, no pooler, no dropout behind attention);
the losses of the authors' code, 5 for the teacher's soft predictions at temperature 2, at all tokens, 2 for masked words, 1 for the
direction of the last states; 15 % of a sequence are predicted, words that occur c times with weights of c^-0.7, 80/10/10; no next sentence;
layers 0, 2, 4, 7, 9, 11 of a teacher with 12, evenly spaced of any other, with `--model TEACHER`.

Deviations, each with its reason:
* Places are drawn in each sequence, their number rounded; the authors draw over a whole batch, so that one sequence has more than another.
* The head's dense layer and norm are the teacher's, too, as with `--vocab_transform` of the authors' script.
* Sequences are packed side by side without padding; each sees only itself, so nothing changes but speed.
* Random words may be any token, as in BERT; `token_type_ids` are taken, and there is no table for them.
* With `polymodal distill --cache`, the `cache_top` largest predictions of the teacher are known, and the others together; the masks of an
  epoch come again in the next one (`maskings`), and there is no loss of directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..shared.attention.mask import Mask
from ..shared.block import Block
from ..shared.config import Config
from ..shared.convert import Rename, Rule, affine, fused, layers, prefixed
from ..shared.corrupt import prediction_count
from ..shared.encoder import LEGACY, Encoder
from ..shared.errors import UserError
from ..shared.family import Adopt, Card, Context, Family, Net, Task, Vocabulary, transformers
from ..shared.loss import at_least_fp32
from ..shared.packed import Packed
from ..shared.system import Step, Term
from ..shared.tokenizer import Tokenizer
from . import masking, tasks
from .bert import BertConfig
from .distillation import (
    ENCODERS,
    CacheSettings,
    KeptTeacher,
    KeyedBatch,
    Teacher,
    check_sizes,
    divergence_sum,
    find_teacher,
    with_vocabulary,
)
from .encoder_tasks import encoder_tasks
from .framing import longest
from .logit_cache import key_of
from .masking import MaskedExample, MaskedLM, MaskedLMSystem, MaskedWords, MaskingSettings, SingleTexts


@dataclass(frozen=True, kw_only=True)
class DistilBertConfig(Config):
    """transformers' `DistilBertConfig`."""

    vocab_size: int = 30522
    """Rows of the word table."""
    max_position_embeddings: int = 512
    """Rows of the position table: the longest sequence."""
    n_layers: int = 6
    """Blocks."""
    n_heads: int = 12
    """Attention heads; they divide `dim`."""
    dim: int = 768
    """Width D."""
    hidden_dim: int = 3072
    """Width of the feed-forward layer."""
    dropout: float = 0.1
    """Dropout of the embeddings and behind the feed-forward layer."""
    attention_dropout: float = 0.1
    """Dropout of the attention weights."""
    activation: str = "gelu"
    """Activation of the feed-forward layer and of the language-modelling head."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights."""
    qa_dropout: float = 0.1
    """Dropout before the head for answer spans."""
    seq_classif_dropout: float = 0.2
    """Dropout before the classes of a text, and before the number of a choice."""
    pad_token_id: int | None = 0
    """Id of padding. Packed training never meets it."""
    num_labels: int = 2
    """Classes of a task head."""
    labels: tuple[str, ...] | None = None
    """Names of the classes."""

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = MappingProxyType({
        "sinusoidal_pos_embds": (False,), "tie_weights_": (True,), "tie_word_embeddings": (True,), "pruned_heads": ({}, None),
    })
    IGNORED: ClassVar[Mapping[str, str]] = MappingProxyType({
        "bos_token_id": "the tokenizer's files say it", "eos_token_id": "the tokenizer's files say it",
    })
    SYNONYMS: ClassVar[Mapping[str, str]] = MappingProxyType({
        "hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers",
    })

    summary_token: ClassVar[Literal["first"]] = "first"
    """Which token of a text holds what the network makes of the whole."""
    question_first: ClassVar[bool] = True
    """A question stands before the text that answers it."""

    AT_LEAST_ONE = ("vocab_size", "max_position_embeddings", "n_layers", "n_heads", "dim", "hidden_dim", "num_labels")
    PROBABILITIES = ("dropout", "attention_dropout", "qa_dropout", "seq_classif_dropout")
    NOT_NEGATIVE = ("initializer_range",)
    ACTIVATION = "activation"

    def problems(self) -> list[str]:
        """What is wrong with the fields, alone and together."""
        found = super().problems()
        if self.n_heads > 0 and self.dim % self.n_heads:
            found.append(f"n_heads {self.n_heads} does not divide dim {self.dim}")
        return found

    @property
    def type_vocab_size(self) -> int:
        """There is no table of token types."""
        return 0

    @property
    def layer_norm_eps(self) -> float:
        """Epsilon of every layer norm."""
        return 1e-12

    @property
    def position_offset(self) -> int:
        """The row of the position table where a text begins."""
        return 0

    @property
    def hidden_size(self) -> int:
        """`dim`."""
        return self.dim

    @property
    def table_size(self) -> int:
        """`dim`."""
        return self.dim

    @property
    def num_hidden_layers(self) -> int:
        """`n_layers`."""
        return self.n_layers

    @property
    def num_attention_heads(self) -> int:
        """`n_heads`."""
        return self.n_heads

    @property
    def intermediate_size(self) -> int:
        """`hidden_dim`."""
        return self.hidden_dim

    @property
    def hidden_act(self) -> str:
        """`activation`."""
        return self.activation

    @property
    def hidden_dropout_prob(self) -> float:
        """`dropout`."""
        return self.dropout

    @property
    def attention_probs_dropout_prob(self) -> float:
        """`attention_dropout`."""
        return self.attention_dropout

    @property
    def classifier_dropout(self) -> float:
        """`seq_classif_dropout`."""
        return self.seq_classif_dropout

    @property
    def longest_input(self) -> int:
        """`max_position_embeddings`."""
        return self.max_position_embeddings


SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"dim": 128, "n_layers": 1, "n_heads": 2, "hidden_dim": 512, "max_position_embeddings": 128},
    "base": {},
}
"""`base` is the paper's; `tiny` has half the layers of `bert-tiny`."""


# ---------------------------------------------------------------------------------------------- networks


class DistilBertModel(Encoder):
    """BERT's trunk without token types and pooler, and without dropout behind attention."""

    def __init__(self, config: DistilBertConfig, *, pooler: bool = False) -> None:
        assert not pooler, "DistilBERT has no pooler"
        super().__init__(config, pooler=False)

    def block(self, number: int) -> Block:
        """See `Encoder.block`."""
        made = super().block(number)
        made.attention_residual.dropout.p = 0.0
        return made


class DistilBertForMaskedLM(MaskedLM):
    """The trunk and the masked-language-model head."""

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__(DistilBertModel(config), config)


class DistilBertForMultipleChoice(tasks.DenseChoice):
    """Each text scored from its first token, by a dense layer, a ReLU and one number."""

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__(DistilBertModel(config), config, F.relu, config.seq_classif_dropout)


# ------------------------------------------------------------------------------------------ the data side


@dataclass(frozen=True)
class DistilBertSettings(CacheSettings, MaskingSettings):
    """What of the objective can be set; the weights have the names of the authors' script. Without `alpha_ce` and `alpha_cos` there is no
    teacher.
    """

    alpha_ce: float = 5.0
    """Weight of the teacher's soft predictions."""
    alpha_mlm: float = 2.0
    """Weight of the masked words."""
    alpha_cos: float = 1.0
    """Weight of the direction of the last states, of a student that is as wide as its teacher."""
    temperature: float = 2.0
    """By which both logits are divided for the soft predictions."""
    restrict_ce_to_mask: bool = False
    """Whether the soft predictions are learnt at the masked words alone."""
    mlm_smoothing: float = 0.7
    """A token that stands c times in the training data is chosen with the weight c^-this; 0 chooses as BERT does, of data that nobody
    counted, too (`polymodal pack --tokenize` counts)."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        wrong = [f"{name} is {value}, expected at least 0" for name in ("alpha_ce", "alpha_mlm", "alpha_cos")
                 if (value := getattr(self, name)) < 0]
        if not wrong and not (self.alpha_ce or self.alpha_mlm or self.alpha_cos):
            wrong.append("alpha_ce, alpha_mlm and alpha_cos are 0, expected a loss")
        if not 0 <= self.mlm_smoothing <= 10:
            wrong.append(f"mlm_smoothing is {self.mlm_smoothing}, expected a number from 0 to 10")
        wrong += self.cache_problems(self.alpha_ce, self.alpha_cos)
        if self.whole_words:
            wrong.append("whole_words is True, and DistilBERT chooses single tokens: leave it out, or train bert")
        if not self.temperature > 0:
            wrong.append(f"temperature is {self.temperature}, expected a number above 0")
        if wrong:
            raise UserError("; ".join(wrong))

    @property
    def taught(self) -> bool:
        """Whether there is a teacher."""
        return bool(self.alpha_ce or self.alpha_cos)


class DistilBertObjective(SingleTexts):
    """Masked words in single texts, rather rare ones; all of their tokens are learnt from the teacher.

    Args:
        tokenizer: as for `MaskingObjective`, like the next two.
        settings: what can be set.
        max_length: of a sequence.
        counts: int64 [V], how often each token stands in the data; None where each is as likely to be masked.
    """

    def __init__(self, tokenizer: Tokenizer, settings: DistilBertSettings, max_length: int, counts: np.ndarray | None = None) -> None:
        super().__init__(tokenizer, settings, max_length)
        self.restricted, self.cached = settings.restrict_ce_to_mask, settings.cache is not None
        self.draws = settings.draws
        self.weights: np.ndarray | None = None
        if counts is not None:
            self.weights = np.maximum(counts, 1.0) ** -settings.mlm_smoothing
            self.weights[sorted(tokenizer.special_ids)] = 0.0

    def choose(self, ids: np.ndarray, bounds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The places of a framed sequence [S], int64 [M], ascending: drawn by the weights of their tokens, none twice."""
        if self.weights is None:
            return super().choose(ids, bounds, rng)
        weights = self.weights[ids]
        places = np.flatnonzero(weights)
        count = min(len(places), prediction_count(len(ids), self.settings.mask_prob, self.settings.max_predictions))
        # the first arrivals of processes with these rates are a draw without replacement
        arrivals = rng.exponential(size=len(places)) / weights[places]
        return np.sort(places[np.argsort(arrivals)[:count]])

    def collate(self, examples: list[MaskedExample]) -> KeyedBatch:
        """Pack sequences side by side; what the teacher tells is counted in tokens."""
        packed = super().collate(examples)
        told: dict[str, Any] = {**vars(packed), "counts": {**packed.counts, "tokens": packed.tokens}}
        if self.cached:
            told["keys"] = tuple(key_of(e.input_ids, e.positions if self.restricted else None) for e in examples)
            told["places"] = tuple(len(e.positions if self.restricted else e.input_ids) for e in examples)
        return KeyedBatch(**told)


# ------------------------------------------------------------------------------------------ the loss side


class DistilBertSystem(MaskedLMSystem[MaskedLM, DistilBertObjective]):
    """A student: masked words, what its teacher predicts, and the direction of its teacher's last states."""

    def __init__(self, net: MaskedLM, objective: DistilBertObjective, settings: DistilBertSettings, teacher: Teacher | None,
                 kept: KeptTeacher | None = None) -> None:
        super().__init__(net, objective)
        self.settings, self.teacher, self.kept = settings, teacher, kept
        self.companions = {} if teacher is None else {"teacher": teacher.companion}

    def forward(self, batch: KeyedBatch, carry: Any = None) -> Step:
        """The three losses as sums, over the masked words and over all tokens."""
        out, s = self.read(batch), self.settings
        step = self.predict(out, batch)
        step.terms["mlm"].weight = s.alpha_mlm
        if not s.taught:
            return step
        if self.teacher is None:
            raise UserError("this distilbert was built without a teacher: pass companions={\"teacher\": DIR}, or set alpha_ce and "
                            "alpha_cos to 0")
        states, count = out.last_hidden_state[0], "masked" if s.restrict_ce_to_mask else "tokens"  # [T, D]
        rows = batch.target_rows if s.restrict_ce_to_mask else torch.arange(len(states), device=states.device)
        if self.kept is not None:
            total, known = self.kept.divergence_sum(self.net.head, states[rows], batch, rows)
            step.terms["ce"], step.metrics["cached"] = Term(total, count, s.alpha_ce), (known, len(batch.lengths))
            return step
        teacher, theirs = self.teacher.read(self.net.head.weight, Packed(batch.input_ids, batch.position_ids, batch.lengths))
        if s.alpha_ce:
            total = divergence_sum(self.net.head, states[rows], teacher.head, theirs[rows], s.temperature)
            step.terms["ce"] = Term(total, count, s.alpha_ce)
        if s.alpha_cos:
            apart = 1 - F.cosine_similarity(at_least_fp32(states), theirs.to(at_least_fp32(states).dtype), dim=-1)
            step.terms["cos"] = Term(apart.sum(), "tokens", s.alpha_cos)
        return step

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        s = self.settings
        told = (("ce", s.alpha_ce), ("cos", s.alpha_cos), ("cached", self.kept is not None))
        return (*super().measured(), *(name for name, there in told if there))


# --------------------------------------------------------------------------------------------- the entry


def adapt(config: DistilBertConfig, context: Context) -> DistilBertConfig:
    """Take vocabulary size and padding id from the teacher, or from the tokenizer."""
    return replace(config, **with_vocabulary(config, context))


def create(config: DistilBertConfig, settings: DistilBertSettings, context: Context) -> DistilBertSystem:
    """Build a student with randomly initialized weights, and its objective."""
    length = longest(config, settings.max_length)
    teacher = find_teacher(context, "distilbert", MaskedWords, "one that predicts masked words (BertForMaskedLM ...)") if (
        settings.taught) else None
    if teacher is not None:
        check_sizes(teacher, config, length)
        if settings.alpha_cos and (width := teacher.net.config.hidden_size) != config.dim:
            raise UserError(f"the teacher {teacher.companion.source} has states of {width} numbers and the student of {config.dim}: set "
                            f"model.dim={width}, or objective.alpha_cos=0")

    def objective(tokenizer: Tokenizer, counts: np.ndarray | None = None) -> DistilBertObjective:
        return DistilBertObjective(tokenizer.fitting(config.vocab_size), settings, length, counts)

    made = context.counted("distilbert, with mlm_smoothing above 0,", objective) if settings.mlm_smoothing else (
        context.objective("distilbert", objective))
    s = settings
    masks = {"max_length": length, "mask_prob": s.mask_prob, "max_predictions": s.max_predictions, "mlm_smoothing": s.mlm_smoothing,
             "restrict_ce_to_mask": s.restrict_ce_to_mask}
    kept = None if teacher is None or s.cache is None else KeptTeacher.open(teacher, s, s.temperature, context, masks)
    return DistilBertSystem(DistilBertForMaskedLM(config), made, settings, teacher, kept)


def shortened(config: BertConfig) -> DistilBertConfig:
    """The config of a student with half the layers of a BERT."""
    c = config
    return DistilBertConfig(
        vocab_size=c.vocab_size, max_position_embeddings=c.max_position_embeddings, n_layers=max(1, c.num_hidden_layers // 2),
        n_heads=c.num_attention_heads, dim=c.hidden_size, hidden_dim=c.intermediate_size, dropout=c.hidden_dropout_prob,
        attention_dropout=c.attention_probs_dropout_prob, activation=c.hidden_act, initializer_range=c.initializer_range,
        pad_token_id=c.pad_token_id,
    )  # fmt: skip


def spaced(depth: int, count: int) -> list[int]:
    """`count` of `depth` layers, evenly spaced, the first and the last among them: 0, 2, 4, 7, 9, 11 for 6 of 12."""
    return [round(number * (depth - 1) / max(1, count - 1)) for number in range(count)]


def some_layers(tensors: Mapping[str, Tensor], net: DistilBertForMaskedLM) -> Mapping[str, Tensor]:
    """The weights of a BERT with the layers of a student alone; see `spaced`."""
    before = "trunk.stack.blocks."
    numbers = {int(name.removeprefix(before).partition(".")[0]) for name in tensors if name.startswith(before)}
    count = net.config.num_hidden_layers
    if len(numbers) < count:
        raise UserError(f"the student has {count} layers and the model that it begins with {len(numbers)}: set model.n_layers to at most "
                        "as many, or leave --model out")
    place = {f"{before}{theirs}.": f"{before}{ours}." for ours, theirs in enumerate(spaced(len(numbers), count))}
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(before)}
    for name, tensor in tensors.items():
        above = ".".join(name.split(".")[:4]) + "."
        if above in place:
            kept[place[above] + name.removeprefix(above)] = tensor
    return kept


def _trunk(config: DistilBertConfig) -> tuple[Rule, ...]:
    """Transformers' DistilBertModel."""
    their, our = "transformer.layer.{i}.", "stack.blocks.{i}."
    return (
        Rename("embeddings.word_embeddings.weight", "embed.word.weight"),
        Rename("embeddings.position_embeddings.weight", "embed.position.weight"),
        *affine("embeddings.LayerNorm", "embed.norm"),
        *layers(config.n_layers, (
            *fused(tuple(f"{their}attention.{n}_lin" for n in "qkv"), f"{our}attention.qkv"),
            *affine(f"{their}attention.out_lin", f"{our}attention.out"),
            *affine(f"{their}sa_layer_norm", f"{our}attention_residual.norm"),
            *affine(f"{their}ffn.lin1", f"{our}feed_forward.up"),
            *affine(f"{their}ffn.lin2", f"{our}feed_forward.down"),
            *affine(f"{their}output_layer_norm", f"{our}feed_forward_residual.norm"),
        )),
    )  # fmt: skip


def _below(config: DistilBertConfig) -> tuple[Rule, ...]:
    return (*prefixed(_trunk(config), "distilbert.", "trunk."), *LEGACY)


_HEAD = masking.head_rules("vocab_transform", "vocab_layer_norm", "vocab_projector.bias", "vocab_projector",
                           "distilbert.embeddings.word_embeddings.weight")
_TASKS = (
    Net("DistilBertForSequenceClassification", lambda c: tasks.DenseClassification(DistilBertModel(c), c, "relu", drops_first=False),
        transformers(lambda c: (*_below(c), *affine("pre_classifier", "head.dense"), *affine("classifier", "head.out")))),
    Net("DistilBertForTokenClassification", lambda c: tasks.TokenClassification(DistilBertModel(c), c, c.dropout),
        transformers(lambda c: (*_below(c), *affine("classifier", "classifier")))),
    Net("DistilBertForQuestionAnswering", lambda c: tasks.QuestionAnswering(DistilBertModel(c), c, c.qa_dropout),
        transformers(lambda c: (*_below(c), *affine("qa_outputs", "classifier")))),
    Net("DistilBertForMultipleChoice", DistilBertForMultipleChoice, transformers(
        lambda c: (*_below(c), *affine("pre_classifier", "summary"), *affine("classifier", "classifier")))),
)

NETS = (
    Net("DistilBertForMaskedLM", DistilBertForMaskedLM, transformers(lambda c: (*_below(c), *_HEAD))),
    Net("DistilBertModel", DistilBertModel, transformers(lambda c: (*_trunk(c), *LEGACY))),
    *_TASKS,
)

CARD = Card(
    title="DistilBERT",
    paper="Sanh, Debut, Chaumond, Wolf. DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter",
    year=2019,
    url="https://arxiv.org/abs/1910.01108",
    equation=r"\mathcal{L} = \frac{5}{|N|} \sum_{i \in N} T^2\, \mathrm{KL}\big(p^T_i \,\|\, q^T_i\big) "
             r"- \frac{2}{|M|} \sum_{i \in M} \log q_i(x_i) + \frac{1}{|N|} \sum_{i \in N} (1 - \cos(t_i, s_i))",
    symbols="N are all tokens, M the 15 % of them that are to be predicted. p and q are what teacher and student predict, with their "
            "logits divided by the temperature T = 2 where it stands above them, t and s their last states. The means are over the whole "
            "global batch.",
    masks={"Packed texts": Mask(lengths=(5, 7, 4))},
    reference="transformers.DistilBertForMaskedLM",
)

FAMILIES = (
    Family(
        name="distilbert",
        card=CARD,
        config=DistilBertConfig,
        sizes=SIZES,
        adapt=adapt,
        pretraining=Task("a teacher's predictions and states, and masked words", DistilBertSettings, create,
                         companions={"teacher": ENCODERS}, reads_counts=True),
        tasks=encoder_tasks(_TASKS),
        nets=NETS,
        heads=("head", "summary", "classifier"),
        starts=dict.fromkeys(("bert", "macbert", "spanbert"), Adopt(some_layers, shortened)),
        model_type="distilbert",
        vocabulary=Vocabulary("wordpiece", "bert", lowercase=True),
    ),
)
