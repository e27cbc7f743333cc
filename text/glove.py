"""GloVe: vectors of words whose products are the logarithms of how often the words stand near each other.

Pennington, Socher, Manning, "GloVe: Global Vectors for Word Representation", 2014 (https://aclanthology.org/D14-1162). The corpus
is read once, to count (`polymodal pack --kind cooccurrence`); training is a weighted regression on the records of the counts.

Faithful, to the paper and the published C tool: pairs within a window weigh 1 / distance and do not cross documents, f(x) = (x /
100)^(3/4) up to 1, two tables with biases that begin as U(-0.5, 0.5) / (D + 1), AdaGrad that adds up the square of each record's
gradient; the vectors are the sum of both tables. The tool multiplies by its rate of 0.05 before it squares and begins with 1: that
is AdaGrad with a rate of 1 that begins with 1 / 0.05^2 = 400 (`accumulator`). The loss is counted in samples, blocks of records, so
with one for each update a rate of 1 is the tool's. Deviations: an update is the sum over some thousand records with the
accumulators from before it, where the tool makes a step for each. There is no vector for unknown words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..shared import dist
from ..shared.config import Config
from ..shared.convert import Rename, Rule
from ..shared.errors import UserError
from ..shared.family import Card, Context, Family, Format, Net, Task, Vocabulary
from ..shared.sample import Sample
from ..shared.system import Batch, Objective, Preview, Step, System, Term
from ..shared.tokenizer import Tokenizer
from .word_vectors import WordTable, neighbours, vectors_of, write_gensim, write_glove

FIELDS = ("first.npy", "second.npy", "weight.npy")


@dataclass(frozen=True, kw_only=True)
class GloVeConfig(Config):
    """The shape of the tables."""

    vocab_size: int = 400_000
    """V."""
    hidden_size: int = 300
    """D, numbers of a vector."""
    special_token_ids: tuple[int, ...] = ()
    """Ids that are no words."""

    AT_LEAST_ONE = ("vocab_size", "hidden_size")


SIZES: dict[str, dict[str, Any]] = {"tiny": {"hidden_size": 64}, "base": {}}
"""`base` is the paper's: 300 numbers for 400,000 words."""


class GloVe(WordTable):
    """Vectors and biases of words, and of words as contexts."""

    def __init__(self, config: GloVeConfig) -> None:
        super().__init__()
        c = self.config = config
        self.special_tokens = c.special_token_ids
        self.word, self.context = (nn.Embedding(c.vocab_size, c.hidden_size) for _ in range(2))
        self.word_bias, self.context_bias = (nn.Embedding(c.vocab_size, 1) for _ in range(2))
        bound = 0.5 / (c.hidden_size + 1)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def word_vectors(self) -> Tensor:
        """[V, D]: the sum of both tables."""
        return self.word.weight + self.context.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        """Vectors of words, of any shape: [..., D]."""
        return self.word(input_ids) + self.context(input_ids)


# ------------------------------------------------------------------------------------------- the data side


@dataclass(frozen=True)
class GloVeSettings:
    """What of the objective can be set."""

    x_max: float = 100.0
    """Counts from here on have the full weight."""
    alpha: float = 0.75
    """The exponent of the weight below."""
    accumulator: float = 400.0
    """What AdaGrad's accumulators begin with."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if wrong := [f"{name} is {value}, expected a positive number" for name in ("x_max", "alpha", "accumulator")
                     if not (value := getattr(self, name)) > 0]:
            raise UserError("; ".join(wrong))


@dataclass(frozen=True)
class Records:
    """One example: records of the table of counts, both directions of each pair."""

    words: np.ndarray
    """int64 [N]"""
    contexts: np.ndarray
    """int64 [N]"""
    counts: np.ndarray
    """float32 [N]"""


@dataclass(kw_only=True)
class RecordBatch(Batch):
    """Records, as in `Records`."""

    words: Tensor
    contexts: Tensor
    weights: Tensor
    """float32 [N]: X, how near and how often."""


class Cooccurrences(Objective[Records]):
    """Records of the table.

    Args:
        tokenizer: whose ids they hold.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterable[Records]:
        """The records of a sample; nothing is drawn."""
        if lacking := [name for name in FIELDS if name not in sample.fields]:
            raise sample.bad(f"no field {lacking[0]!r}: glove reads counts of pairs of words (`polymodal pack TEXTS --kind cooccurrence "
                             "--tokenize TOKENIZER` makes them)")
        first, second, weight = (sample.array(name) for name in FIELDS)
        if first.dtype.kind not in "iu" or second.dtype.kind not in "iu" or weight.dtype.kind != "f" or not (
                first.shape == second.shape == weight.shape == (len(first),)) or not len(first):
            raise sample.bad("its records are no columns of whole numbers, whole numbers and floating-point numbers of one length")
        if min(first.min(), second.min()) < 0 or max(first.max(), second.max()) >= self.tokenizer.vocab_size:
            raise sample.bad(f"a record names a token beyond the {self.tokenizer.vocab_size} of the vocabulary")
        if not (np.isfinite(weight) & (weight > 0)).all():
            raise sample.bad("a record has a weight that is no positive number")
        other = first != second
        return [Records(np.concatenate([first, second[other]]).astype(np.int64), np.concatenate([second, first[other]]).astype(np.int64),
                        np.concatenate([weight, weight[other]]).astype(np.float32))]

    def collate(self, examples: list[Records]) -> RecordBatch:
        """Lay them end to end; the loss is counted in blocks of records, so that the rate does not depend on their size."""
        words, contexts, counts = (torch.from_numpy(np.concatenate([getattr(e, name) for e in examples])) for name in (
            "words", "contexts", "counts"))
        return RecordBatch(counts={"blocks": len(examples)}, tokens=len(words), words=words, contexts=contexts, weights=counts)

    def describe(self, example: Records) -> Preview:
        """Some records."""
        show = self.tokenizer.show
        rows = zip(example.words[:8].tolist(), example.contexts[:8].tolist(), example.counts[:8].tolist(), strict=True)
        return Preview(tuple((show([word]), f"{show([context])} {count:.3g}") for word, context, count in rows))


# ------------------------------------------------------------------------------------------- the loss side


class _Scaled(torch.autograd.Function):
    """Rows as they are, whose gradient is multiplied."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, factors: Tensor) -> Tensor:
        ctx.save_for_backward(factors)
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        (factors,) = ctx.saved_tensors
        return outer[0] * factors, None


TABLES = ("word", "context", "word_bias", "context_bias")


class GloVeSystem(System[GloVe, Cooccurrences]):
    """GloVe with AdaGrad, which is a part of the loss: its accumulators hold squares of single records' gradients, which no optimizer sees.

    Gradients come divided by the roots of the accumulators, so plain gradient descent with a rate of 1 for each record is AdaGrad.
    """

    def __init__(self, config: GloVeConfig, settings: GloVeSettings, objective: Cooccurrences) -> None:
        super().__init__(GloVe(config), objective)
        self.settings = settings
        for name in TABLES:
            table = self.net.get_parameter(f"{name}.weight").detach()
            self.register_buffer(f"{name}_squares", torch.full_like(table, settings.accumulator))
        self._squares: dict[str, Tensor] = {}  # of the update's records so far, on this rank
        self._update = -1

    def forward(self, batch: RecordBatch, carry: Any = None) -> Step:
        """The summed weighted error."""
        s, rows = self.settings, {}
        for name in TABLES:
            ids = batch.words if name.startswith("word") else batch.contexts
            rows[name] = _Scaled.apply(self.net.get_submodule(name)(ids), self.get_buffer(f"{name}_squares")[ids].rsqrt())
        near = batch.weights.to(rows["word"].dtype)
        log, factor = near.log(), (near / s.x_max).clamp(max=1) ** s.alpha
        product = (rows["word"] * rows["context"]).sum(-1) + (rows["word_bias"] + rows["context_bias"])[:, 0]
        error = product - log
        total = 0.5 * (factor * error.square()).sum()
        if torch.is_grad_enabled():
            self._note(batch, rows, (factor * error).detach()[:, None])
        sums = {"factor": factor, "factor_log": factor * log, "factor_log_squared": factor * log * log}
        return Step({"block": Term(total, "blocks")}, {"squared_error": (total.detach(), len(log)),
                                                       **{name: (value.sum(), len(log)) for name, value in sums.items()}})

    @torch.no_grad()
    def _note(self, batch: RecordBatch, rows: Mapping[str, Tensor], slope: Tensor) -> None:
        """Add the squares of each record's gradient up, until the update is made."""
        if self._update != batch.update or not self._squares:
            self._update = batch.update
            self._squares = {name: torch.zeros_like(self.get_buffer(f"{name}_squares")) for name in TABLES}
        one = torch.ones_like(slope)
        other = {"word": rows["context"], "context": rows["word"], "word_bias": one, "context_bias": one}
        for name in TABLES:
            ids = batch.words if name.startswith("word") else batch.contexts
            self._squares[name].index_add_(0, ids, (slope * other[name]).square())

    def after_update(self, update: int) -> None:
        """Take over the squares of the records of all ranks."""
        for name in TABLES:
            if self._squares:
                self.get_buffer(f"{name}_squares").add_(dist.all_reduce_sum(self._squares[name]))
        self._squares = {}

    def measured(self) -> tuple[str, ...]:
        """The names of all numbers of an evaluation but `loss`."""
        return "block", "squared_error", "factor", "factor_log", "factor_log_squared", "squared_error_chance"

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """The error of always saying the same, the best of these."""
        if "factor_log_squared" not in means:
            return {}
        return {"squared_error_chance": 0.5 * (means["factor_log_squared"] - means["factor_log"] ** 2 / means["factor"])}

    @torch.no_grad()
    def preview(self, batch: RecordBatch, limit: int = 4) -> list[Preview]:
        """The nearest words of some words of the batch."""
        found = vectors_of(self.net, self.objective.tokenizer)
        words = [self.objective.tokenizer.id_to_token(i) or "" for i in dict.fromkeys(batch.words.tolist())]
        return neighbours(found, words, limit)


# ------------------------------------------------------------------------------------------ names in files

MODEL_TYPE = "glove"


def rules(config: GloVeConfig) -> Sequence[Rule]:
    """Our own keys."""
    return tuple(Rename(f"{name}.weight", f"{name}.weight") for name in TABLES)


FORMAT = Format(
    "polymodal", rules, recognises=lambda record: record.get("model_type") == MODEL_TYPE,
    read=lambda record, directory: GloVeConfig.from_dict(record, f"{directory}/config.json"),
    write=lambda net: {**net.config.to_dict(), "model_type": MODEL_TYPE, "architectures": ["GloVe"]},
)  # fmt: skip


def adapt(config: GloVeConfig, context: Context) -> GloVeConfig:
    """Take vocabulary size and special ids from the tokenizer."""
    t = context.tokenizer
    return config if t is None else replace(config, vocab_size=t.vocab_size, special_token_ids=tuple(sorted(t.special_ids)))


def create(config: GloVeConfig, settings: GloVeSettings, context: Context) -> GloVeSystem:
    """The pretraining system with randomly initialized weights."""
    return GloVeSystem(config, settings, context.objective("glove", Cooccurrences))


CARD = Card(
    title="GloVe",
    paper='Pennington, Socher, Manning, "GloVe: Global Vectors for Word Representation", 2014',
    year=2014,
    url="https://aclanthology.org/D14-1162",
    equation=r"\mathcal{L} = \frac{1}{2 N} \sum_{i,j} f(X_{ij}) \left( w_i \cdot \tilde{w}_j + b_i + \tilde{b}_j - \log X_{ij} \right)^2",
    symbols="X_ij adds up 1 / distance over all places where word j stands within a window of word i; the sum is over the N pairs that "
            "occur, and f(x) is (x / 100)^{3/4}, at most 1.",
    masks={},
    reference="the formula of the paper",
)  # fmt: skip

FAMILIES = (
    Family(
        name="glove",
        card=CARD,
        config=GloVeConfig,
        sizes=SIZES,
        adapt=adapt,
        pretraining=Task("logarithms of co-occurrence counts", GloVeSettings, create),
        nets=(Net("GloVe", GloVe, FORMAT, written={"gensim": write_gensim, "glove": write_glove}),),
        vocabulary=Vocabulary("word", "plain"),
    ),
)
