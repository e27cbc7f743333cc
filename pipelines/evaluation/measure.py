"""What an evaluation is made of: what it needs of a sample, what it measures of a batch, and the numbers that come of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from ...shared import dist
from ...shared.regions import FEATURES_FIELD
from ...shared.sample import IMAGE_FIELDS, TARGET_FIELD, TEXT_FIELDS
from ...shared.system import Objective
from .intervals import Interval
from .subject import Subject

TOKENS = ("tokens.u16", "tokens.u32")
KINDS: dict[str, tuple[str, ...]] = {
    "text": (*TEXT_FIELDS, "json"), "text or rows of tokens": (*TEXT_FIELDS, *TOKENS, "json"), "pictures": IMAGE_FIELDS,
    "pictures or regions": (*IMAGE_FIELDS, FEATURES_FIELD), "regions": (FEATURES_FIELD,),
    "class numbers": ("cls", "json"), "targets": (TARGET_FIELD, "json"), "annotations": ("json",),
}
"""What an evaluation may need of a sample, and the fields that hold it."""


@dataclass
class Numbers:
    """What a measure found."""

    metrics: dict[str, float]
    intervals: dict[str, Interval] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    """Tables: classes, the confusion matrix."""
    predictions: list[dict[str, Any]] = field(default_factory=list)
    """A line for each sample, `index` first, where something is predicted."""

    def put(self, name: str, value: float, interval: Interval | None = None) -> None:
        """Add a number."""
        self.metrics[name] = value
        if interval is not None:
            self.intervals[name] = interval


class Measure(ABC):
    """One pass over the data: what is read of each sample, what is done with a batch, and what comes of it."""

    method: str
    """How it is measured, in a few words."""
    objective: Objective[Any]

    @abstractmethod
    def add(self, batch: Any) -> None:
        """Measure a batch, which is on the device."""

    @abstractmethod
    def result(self) -> Numbers:
        """The numbers over all ranks; every rank calls it."""


class Evaluation(Protocol):
    """One kind of evaluation with its settings: a frozen dataclass of plain values, which the record keeps."""

    name: ClassVar[str]
    """Its name on the command line."""
    needs: ClassVar[tuple[str, ...]]
    """What each sample must hold, keys of `KINDS`."""
    batch_size: ClassVar[int]
    """Samples that run together by default."""

    def measures(self, subject: Subject) -> Mapping[str, Measure]:
        """The passes over the data, by what stands before the names of their numbers ("" for a single one)."""
        ...


def in_order(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The records of all ranks in the order of the samples (their key `index`); every rank calls it."""
    return sorted((r for part in dist.gather_json(list(records)) for r in part), key=lambda r: r["index"])
