"""Who computes which part of an update: its batch divided over ranks and micro-batches."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

from ...shared.errors import UserError, raise_problems
from ..base.ramp import Ramp


@dataclass(frozen=True)
class BatchLayout:
    """How the batch of an update is divided over ranks and micro-batches.

    Every rank has an equal share of every batch. It cuts it into as few micro-batches as may be, all of one size or of two that differ by
    one: so ranks make equally many passes, also where a growing batch has shares that `micro_batch` does not divide.

    Args:
        global_batch: samples of one update, over all ranks; of the largest where the batch grows.
        micro_batch: samples of one forward pass on one rank, at most; None for all of the rank's share.
        rank: number of this process.
        world: number of processes.
        replays: of a single process, the number of ranks whose micro-batches it makes in their place, as they made them.
        ramp: how the batch grows to `global_batch`; None where it does not.
    """

    global_batch: int
    micro_batch: int | None = None
    rank: int = 0
    world: int = 1
    replays: int = 1
    ramp: Ramp | None = None

    def __post_init__(self) -> None:
        assert self.ramp is None or self.ramp.full == self.global_batch, "the batch grows to another size"
        raise_problems(self._problems(), "the batch cannot be divided")

    @property
    def ranks(self) -> int:
        """Ranks that the samples are divided over."""
        return self.world * self.replays

    def _problems(self) -> Iterator[str]:
        assert self.world == 1 or self.replays == 1, "several ranks make their own micro-batches"
        g, world, micro = self.global_batch, self.ranks, self.micro_batch
        if g < 1 or world < 1 or (micro is not None and micro < 1):
            yield f"data.global_batch is {g}, data.micro_batch {micro}, on {world} ranks: all must be positive"
        elif not 0 <= self.rank < self.world:
            yield f"rank is {self.rank}, expected 0 to {self.world - 1}"
        elif g % world:
            near = sorted({max(world, g // world * world), (g // world + 1) * world})
            yield f"data.global_batch {g} is not a multiple of the {world} ranks: use {' or '.join(map(str, near))}"
        elif micro is not None and (g // world) % micro:
            share = g // world
            near = [m for m in range(1, share + 1) if share % m == 0]
            best = sorted(sorted(near, key=lambda m: abs(m - micro))[:2])
            yield f"data.micro_batch {micro} does not divide the {share} samples of a rank: use {' or '.join(map(str, best))}"
        elif self.ramp is not None and (start := self.ramp.start) and start % world:
            near = next(n for n in range(max(start, world), g + 1) if g % n == 0 and n % world == 0)
            yield (f"data.ramp_start {start} is not a multiple of the {world} ranks, which share every batch: use {near}, or "
                   f"{max(n for n in range(1, world) if start % n == 0)} ranks")

    @cached_property
    def batches(self) -> Ramp:
        """The samples of each update."""
        return self.ramp or Ramp(self.global_batch)

    @property
    def size(self) -> int:
        """Samples of one micro-batch of a full batch."""
        return self.global_batch // self.ranks if self.micro_batch is None else self.micro_batch

    @property
    def accumulate(self) -> int:
        """Micro-batches of a full batch on one process."""
        return self.global_batch // self.world // self.size

    # --- micro-batches of an update, and their numbers in the run

    def parts(self, update: int) -> int:
        """Micro-batches of an update on one process."""
        return self._passes(self.batches.batch(update)) * self.replays

    def _passes(self, batch: int) -> int:
        """Micro-batches of a batch on one rank."""
        return -(-batch // self.ranks // self.size)

    def number(self, update: int, part: int = 0) -> int:
        """The number of micro-batch `part` of an update among all that this process makes in a run."""
        level = self.batches.number(update)
        first = self.batches.levels[level]
        return self._numbers[level] + (update - first.update) * self.parts(first.update) + part

    def update_and_part(self, number: int) -> tuple[int, int]:
        """Which micro-batch of which update has a number."""
        level = bisect_right(self._numbers, number) - 1
        first = self.batches.levels[level]
        updates, part = divmod(number - self._numbers[level], self.parts(first.update))
        return first.update + updates, part

    @cached_property
    def _numbers(self) -> tuple[int, ...]:
        """The number of the first micro-batch of each level."""
        levels = self.batches.levels
        return tuple(accumulate(((b.update - a.update) * self.parts(a.update) for a, b in pairwise(levels)), initial=0))

    # --- whose they are, and what is in them

    def rank_and_part(self, update: int, part: int) -> tuple[int, int]:
        """Whose micro-batch number `part` of an update on this process is: (rank, number on that rank)."""
        rank, number = divmod(part, self.parts(update) // self.replays)
        return self.rank + rank, number

    def positions(self, update: int, part: int) -> range:
        """The positions of the order that make up micro-batch `part` of an update on this process.

        Raises:
            UserError: the update is one of `Ramp.earlier`, which had another number of ranks.
        """
        rank, number = self.rank_and_part(update, part)
        batch, passes = self.batches.batch(update), self.parts(update) // self.replays
        if batch % self.ranks:
            raise UserError(f"update {update + 1} has {batch} samples (data.earlier), which {self.ranks} ranks cannot share: use as many "
                            "ranks as made it")
        share = batch // self.ranks
        first = self.batches.before(update) + rank
        return range(first + share * number // passes * self.ranks, first + share * (number + 1) // passes * self.ranks, self.ranks)

    def place(self, position: int) -> tuple[int, int, int]:
        """(update, rank, micro-batch on that rank) that a position of the order stands in."""
        update = self.batches.update_at(position)
        share, passes = self.batches.batch(update) // self.ranks, self.parts(update) // self.replays
        row, rank = divmod(position - self.batches.before(update), self.ranks)
        return update, rank, ((row + 1) * passes - 1) // share
