"""How many samples each update has: always as many, or growing linearly as GPT-3's (Brown et al. 2020, appendix B).

The batch grows in steps of its first size, so whatever number of ranks divides that divides every batch. With L = full / start sizes, an
update that begins after n samples has

    start * (1 + min(L - 1, n (L - 1) // samples))

of them. It follows from the number of the update alone, in exact integers: which samples an update reads does not depend on ranks,
micro-batches, or where a run was resumed.

A run that goes on with another batch keeps what its updates had before (`Ramp.earlier`): the table of sizes then goes on from the update
and the sample that it had come to.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from ...shared.errors import raise_problems


class Level(NamedTuple):
    """Updates in a row with batches of one size."""

    update: int
    """The first of them."""
    sample: int
    """Samples that were read before it."""
    batch: int
    """Samples of each."""


@dataclass(frozen=True)
class Ramp:
    """The samples of each update, over all ranks.

    Args:
        full: of an update once the batch has grown.
        start: of the first update, a divisor of `full`; None for `full`: the batch does not grow.
        samples: over this many samples of the run the batch grows; from the first update behind them on it is full.
        since: updates that had other batches, before a run went on with this one.
        earlier: their batches; None where there are no such updates.
    """

    full: int
    start: int | None = None
    samples: int = 0
    since: int = 0
    earlier: Ramp | None = None

    def __post_init__(self) -> None:
        raise_problems(self._problems(), "the batch cannot grow")

    def _problems(self) -> Iterator[str]:
        if self.start is None:
            if self.samples:
                yield f"data.ramp_samples is {self.samples} without data.ramp_start: say how many samples the first update has"
        elif self.start < 1 or self.start > self.full or self.full % self.start:
            near = sorted(sorted((n for n in range(1, self.full + 1) if self.full % n == 0), key=lambda n: abs(n - (self.start or 0)))[:2])
            yield (f"data.ramp_start is {self.start}, and the batch grows in steps of it to data.global_batch {self.full}, which is no "
                   f"multiple of it: use {' or '.join(map(str, near))}")
        elif self.samples < 1:
            yield f"data.ramp_samples is {self.samples}: say over how many samples the batch grows from {self.start} to {self.full}"

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """The sizes that occur, in their order; the last one has no end."""
        start = self.start or self.full
        steps = self.full // start - 1

        def size(sample: int) -> int:
            return start * (1 + min(steps, sample * steps // self.samples)) if steps else start

        before = () if self.earlier is None else tuple(level for level in self.earlier.levels if level.update < self.since)
        read = 0 if self.earlier is None else self.earlier.before(self.since)
        found = [*before, Level(self.since, read, size(read))]
        while (reached := found[-1]).batch < self.full:
            # the first sample behind which the size is another one, and how many updates it takes to come there
            border = -(-(reached.batch // start) * self.samples // steps)
            updates = -(-(border - reached.sample) // reached.batch)
            sample = reached.sample + updates * reached.batch
            found.append(Level(reached.update + updates, sample, size(sample)))
        return tuple(found)

    def __str__(self) -> str:
        """In words: 64, or 16 to 64, or 32 and from update 101 on 64."""
        own = str(self.full) if self.start in (None, self.full) else f"{self.start} to {self.full}"
        return own if self.earlier is None else f"{self.earlier} and from update {self.since + 1:,} on {own}"

    def agrees(self, other: Ramp, updates: int) -> bool:
        """Whether the first `updates` updates have the same samples in both."""
        mine, others = ([level for level in ramp.levels if level.update < updates] for ramp in (self, other))
        return mine == others

    @cached_property
    def _updates(self) -> tuple[int, ...]:
        return tuple(level.update for level in self.levels)

    @cached_property
    def _samples(self) -> tuple[int, ...]:
        return tuple(level.sample for level in self.levels)

    def number(self, update: int) -> int:
        """The number of the level of an update; updates count from 0."""
        return max(0, bisect_right(self._updates, update) - 1)

    def level(self, update: int) -> Level:
        """The level of an update."""
        return self.levels[self.number(update)]

    def batch(self, update: int) -> int:
        """Samples of an update."""
        return self.level(update).batch

    def before(self, update: int) -> int:
        """Samples that the updates before this one read; below update 0 counted on backwards."""
        level = self.level(update)
        return level.sample + (update - level.update) * level.batch

    def update_at(self, sample: int) -> int:
        """The update that reads sample number `sample` (from 0) of the stream."""
        level = self.levels[bisect_right(self._samples, sample) - 1]
        return level.update + (sample - level.sample) // level.batch
