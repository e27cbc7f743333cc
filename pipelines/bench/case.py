"""What a benchmark says: a piece of work (`Case`), the sides that do it (`Contender`), and how far their results are apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ...shared.errors import UserError


@dataclass(frozen=True)
class Options:
    """What a benchmark may know about how it is run."""

    device: str = "cpu"
    quick: bool = False
    """Tiny sizes: does everything run, do both sides agree? Times mean nothing then."""
    against: str | None = None
    """The peer; None takes the benchmark's usual ones."""
    repetitions: int = 5
    seconds: float | None = None
    """Seconds after which no further case starts; what was left out is recorded."""
    only: str = ""
    """Run the cases whose name contains this."""

    def peer(self, benchmark: str, known: Sequence[str]) -> str:
        """The peer of a benchmark, by default the first it knows."""
        if self.against is not None and self.against not in known:
            raise UserError(f"bench {benchmark} knows no peer {self.against!r}, expected one of {', '.join(known)}")
        return self.against or known[0]


@dataclass(frozen=True)
class Contender:
    """One side of a case.

    Both functions are picklable (functions of a module, `functools.partial` of them), so that another
    process can weigh the side's memory.
    """

    name: str
    prepare: Callable[[], Any]
    """Builds everything that is not timed: weights, data, optimizer."""
    step: Callable[[Any], object]
    """One unit of the work, on what `prepare` returned."""
    same_work: bool = True
    """False for a side that is shown for orientation and computes something else."""


@dataclass(frozen=True)
class Agreement:
    """How far the sides' results are apart, found before anything is timed."""

    what: str
    difference: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the sides compute the same thing (NaN does not)."""
        return self.difference <= self.tolerance


@dataclass(frozen=True)
class Case:
    """One piece of work and the sides that do it, ours first."""

    name: str
    about: str
    """What one step is, in words and sizes."""
    unit: str
    """What is counted: tokens, images, samples."""
    amount: float
    """Useful units in one step, the same for every side."""
    contenders: tuple[Contender, ...]
    """None where a case only checks that something is right."""
    agree: Callable[[], Agreement]
    flops: float | None = None
    """Useful floating-point operations of one step; None where no rate is meant."""
    precision: str = "float32"
    """The type whose matrix-product rate the share is of."""
    weigh: bool = True
    """Whether peak memory is measured."""
    warmup: int = 1
    limit: float | None = None
    """Seconds for the whole case. A side that is not ready by then (it compiles, say) is left out; what is ready is timed."""
    apart: bool = False
    """The sides run one after the other, each alone in memory, where they do not fit side by side."""
    needs: int = 0
    """Bytes without which it cannot run on a GPU; where the card has less the case is left out."""


Cases = Iterator[Case]
"""What a benchmark's `cases(options)` gives, built one after the other."""
