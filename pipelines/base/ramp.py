"""How many samples each update has: always as many, or growing linearly as GPT-3's (Brown et al. 2020, appendix B).

The batch grows in steps of its first size, so whatever number of ranks divides that divides every batch. With L = full / start sizes, an
update that begins after n samples has

    start * (1 + min(L - 1, n (L - 1) // samples))

of them. It follows from the number of the update alone, in exact integers: which samples an update reads does not depend on ranks,
micro-batches, or where a run was resumed.
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
        samples: over this many samples the batch grows; from the first update behind them on it is full.
    """

    full: int
    start: int | None = None
    samples: int = 0

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
        found = [Level(0, 0, start)]
        while (reached := found[-1]).batch < self.full:
            # the first sample behind which the size is another one, and how many updates it takes to come there
            border = -(-(reached.batch // start) * self.samples // steps)
            updates = -(-(border - reached.sample) // reached.batch)
            sample = reached.sample + updates * reached.batch
            found.append(Level(reached.update + updates, sample, start * (1 + min(steps, sample * steps // self.samples))))
        return tuple(found)

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
