"""Batches of held-out data: every sample exactly once, whoever reads it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

from ...shared.errors import UserError
from ...shared.system import Batch, Objective
from .dataset import DataSet
from .loader import Caught, Maker, load
from .order import generator, permutation


def evaluation_batches(data: DataSet, objective: Objective[Any], *, batch: int, seed: int, rank: int = 0, world: int = 1,
                       limit: int | None = None, lanes: int | None = None, coupled: bool = False, on_bad: str = "raise", workers: int = 0,
                       whole: bool = False) -> Iterator[Batch]:
    """Batches of held-out data: every sample once over the ranks, the same draws at every evaluation.

    A sequential objective gets lanes of consecutive samples: batch t holds sample t of every lane; where there are more lanes than
    rows, one group of lanes after the other. Every lane begins without a memory, so the result depends on their number alone.

    Args:
        data: the held-out data set.
        objective: of the system; its `evaluation()` variant is used.
        batch: at most this many samples in a batch on each rank.
        seed: of the draws and of the order.
        rank: number of this process.
        world: number of processes.
        limit: evaluate this many samples (drawn by seed; the first ones where the objective is sequential), or all.
        lanes: of a sequential objective, over all ranks; by default as many as the batches of all ranks have rows.
        coupled: the loss compares the samples of a batch over all ranks: every rank gets the same number of batches of the
            same size, all nearly full, and fewer than `world` samples are left out.
        on_bad: as in `Stream`.
        workers: processes that read and prepare; 0 for none.
        whole: deal whole batches to the ranks, so that what shares a batch does not depend on how many ranks there are (of a
            sequential objective: `batch` lanes over all ranks).
    """
    if batch < 1:
        raise UserError(f"the evaluation batch is {batch}, expected a positive number")
    each = batch if whole else batch * world
    assert not (whole and coupled), "a loss that compares the samples of a batch needs every rank at each of them"
    if objective.sequential:
        assert not coupled, "a loss that compares the samples of a batch has no lanes"
        mine = _lanes(min(limit or len(data), len(data)), lanes or each)[rank::world]
        # the last group first: else a lane would go on from the lane before it, where that has just ended
        groups = [mine[i : i + batch] for i in range(0, len(mine), batch)][::-1]
        parts = [[lane[t] for lane in group if t < len(lane)] for group in groups for t in range(max(map(len, group)))]
        return load(Caught(_Evaluation(data, objective.evaluation(), parts, seed, on_bad)), range(len(parts)), workers, 2, False)
    chosen = permutation(len(data), "evaluation", seed)[: limit or len(data)].tolist()
    if coupled and world > 1:
        if len(chosen) < world:
            raise UserError(f"{len(chosen)} samples cannot be evaluated on {world} ranks: evaluate on fewer ranks, or give more data")
        chosen = chosen[: len(chosen) // world * world]
    count = -(-len(chosen) // each)
    rows = len(chosen) // world if coupled else len(chosen)  # dealt as evenly as can be, in units of `world` where coupled
    unit = world if coupled else 1
    borders = [rows * i // count * unit for i in range(count + 1)]
    dealt = [chosen[a:b] for a, b in itertools.pairwise(borders)]
    parts = dealt[rank::world] if whole else [p for b in dealt if (p := b[rank::world])]
    return load(Caught(_Evaluation(data, objective.evaluation(), parts, seed, on_bad)), range(len(parts)), workers, 2, False)


def _lanes(samples: int, lanes: int) -> list[range]:
    """The first `samples` samples in lanes of consecutive ones, as even as can be."""
    return [range(a, b) for a, b in itertools.pairwise(samples * i // lanes for i in range(lanes + 1))]


class _Evaluation:
    """Batches of given samples, by number."""

    def __init__(self, data: DataSet, objective: Objective[Any], parts: list[list[int]], seed: int, on_bad: str) -> None:
        self.data, self.objective, self.parts, self.seed, self.on_bad = data, objective, parts, seed, on_bad
        if objective.needs_partner and len(data) < 2:
            raise UserError("this objective pairs each sample with another one: a data set of one sample is not enough")

    def read_costs(self) -> dict[str, float]:
        """See `Stream`."""
        return self.data.read_costs()

    def __getitem__(self, number: int) -> Batch | None:
        maker = Maker(self.objective, self.on_bad)
        indexes = self.parts[number]
        for index, sample in zip(indexes, self.data.read_many(indexes), strict=True):
            partner = None
            if self.objective.needs_partner:
                other = (index + 1 + int(generator(self.seed, 0, index, "partner").integers(len(self.data) - 1))) % len(self.data)
                partner = self.data.read_many([other])[0]
            maker.add(index, sample, generator(self.seed, 0, index, "example"), partner,
                      partial(self.data.key_and_shard, index))
        return maker.batch() if maker.examples else None
