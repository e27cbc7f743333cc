"""Who computes which part of an update: the global batch divided over ranks and micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...shared.errors import raise_problems


@dataclass(frozen=True)
class BatchLayout:
    """How the global batch is divided over ranks and micro-batches.

    Args:
        global_batch: samples of one update, over all ranks.
        micro_batch: samples of one forward pass on one rank; None for all of the rank's share.
        rank: number of this process.
        world: number of processes.
        replays: of a single process, the number of ranks whose micro-batches it makes in their place, as they made them.
    """

    global_batch: int
    micro_batch: int | None = None
    rank: int = 0
    world: int = 1
    replays: int = 1

    def __post_init__(self) -> None:
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

    @property
    def size(self) -> int:
        """Samples of one micro-batch."""
        return self.global_batch // self.ranks if self.micro_batch is None else self.micro_batch

    @property
    def accumulate(self) -> int:
        """Micro-batches of an update on one process."""
        return self.global_batch // self.world // self.size

    def rank_and_part(self, part: int) -> tuple[int, int]:
        """Whose micro-batch number `part` of this process is: (rank, number on that rank)."""
        rank, number = divmod(part, self.accumulate // self.replays)
        return self.rank + rank, number

    def positions(self, update: int, part: int) -> range:
        """The positions of the order that make up micro-batch `part` of an update on this process."""
        rank, number = self.rank_and_part(part)
        first = update * self.global_batch + rank + number * self.size * self.ranks
        return range(first, first + self.size * self.ranks, self.ranks)
