"""The next token: the settings, the data side and the loss of the networks that predict each token of a document from those before it.

The decoders (GPT, GPT-2, GPT-3) and Reformer share them. What of a text is a document, and that packed documents do not see each other, the
families' files say.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from torch import Tensor, nn
from typing_extensions import TypeVar

from ..shared.documents import documents, row_documents
from ..shared.errors import UserError
from ..shared.loss import accuracy_sum, cross_entropy_sum, perplexity
from ..shared.packed import PackedBatch, joined, side_by_side
from ..shared.sample import Sample
from ..shared.system import Objective, Preview, Step, System, Term
from ..shared.tokenizer import Tokenizer

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
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]

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
        """The documents of a sample, each with the end-of-text token, where there is one.

        A pre-tokenised row is taken as it is: `pack` ends each document, and not the pieces of one that fills several rows.
        """
        if sample.tokenized:
            return row_documents(sample)
        return [np.append(ids, self.end).astype(np.int64) for ids in documents(sample, self.tokenizer)]

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

NetT = TypeVar("NetT", bound=nn.Module, covariant=True, default=nn.Module)
ObjectiveT = TypeVar("ObjectiveT", bound=CausalObjective, covariant=True, default=CausalObjective)


class NextTokenSystem(System[NetT, ObjectiveT]):
    """Pretraining by the next token; descendants say how a batch is read, and show what they make of one."""

    @abstractmethod
    def read(self, batch: Any) -> Tensor:
        """What the trunk makes of a batch, [T, D]."""

    def forward(self, batch: CausalBatch, carry: Any = None) -> Step:
        """Cross-entropy of the next token, summed."""
        hidden, head = self.read(batch), cast("Any", self.net).head
        if self.training:
            return Step({"lm": Term(head.loss(hidden, batch.targets, self.chunk), "targets", labels=batch.targets)})
        logits = head(hidden)
        step = Step({"lm": Term(cross_entropy_sum(logits, batch.targets), "targets", labels=batch.targets)})
        step.metrics["accuracy"] = (accuracy_sum(logits, batch.targets), len(batch.targets))
        return step

    @property
    def chunk(self) -> int | None:
        """Tokens that are scored over the vocabulary at a time; None for as many as `LMHead.loss` takes."""
        return None

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        return "lm", "lm_chance", "accuracy", "perplexity"

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """Perplexity."""
        return {"perplexity": perplexity(means["lm"])} if "lm" in means else {}
