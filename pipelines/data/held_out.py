"""Batches of held-out data: every sample exactly once, whoever reads it.

Two steps. First the samples are dealt: `chosen_samples` and then `even_batches` or `shared_batches`, or `lane_batches` where the objective
is sequential; each gives the sample numbers of this rank's batches. Then `evaluation_batches` makes the batches, with the same draws at
every evaluation.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from ...shared.errors import UserError
from ...shared.system import Batch, Objective
from .dataset import DataSet
from .loader import BatchBuilder, load
from .order import SampleRef, generator, permutation
from .samples import SampleReader


def chosen_samples(samples: int, seed: int, limit: int | None = None) -> list[int]:
    """The numbers of `limit` samples (None: all) of `samples`, drawn by the seed, in the order of the evaluation."""
    return permutation(samples, "evaluation", seed)[: limit or samples].tolist()


def batches(data: DataSet, objective: Objective[Any], size: int, *, seed: int = 0, limit: int | None = None) -> Iterator[Batch]:
    """Batches of a data set as an evaluation on one rank reads them: every sample once, with draws that the seed and the sample decide.

    Args:
        data: from `polymodal.DataSet.open`.
        objective: of a system, which makes examples of samples.
        size: samples of a batch, at most.
        seed: of the order and of every draw.
        limit: as many samples, drawn by the seed; by default all.
    """
    yield from evaluation_batches(data, objective, even_batches(chosen_samples(len(data), seed, limit), size), seed=seed)


def even_batches(chosen: Sequence[int], size: int, unit: int = 1) -> list[Sequence[int]]:
    """Cut samples into batches of at most `size`, as even as can be in units of `unit` samples.

    What shares a batch does not depend on the number of ranks where each takes whole batches: ``even_batches(...)[rank::world]``.
    """
    if size < 1:
        raise UserError(f"the evaluation batch is {size}, expected a positive number")
    count, units = -(-len(chosen) // size), -(-len(chosen) // unit)
    borders = [units * i // count * unit for i in range(count + 1)] if count else [0]
    return [chosen[a:b] for a, b in itertools.pairwise(borders)]


def shared_batches(chosen: Sequence[int], size: int, rank: int, world: int, *, equal: bool = False) -> list[Sequence[int]]:
    """One rank's share of batches that all ranks compute together.

    Args:
        chosen: the samples.
        size: at most this many samples in a batch on each rank.
        rank: number of this process.
        world: number of processes.
        equal: every rank gets the same number of batches of the same size, for a loss that compares the samples of a batch over all
            ranks; up to `world` - 1 samples are left out.
    """
    if not equal:
        return [mine for batch in even_batches(chosen, size * world) if (mine := batch[rank::world])]
    if len(chosen) < world:
        raise UserError(f"{len(chosen)} samples cannot be evaluated on {world} ranks: evaluate on fewer ranks, or give more data")
    return [batch[rank::world] for batch in even_batches(chosen[: len(chosen) // world * world], size * world, world)]


def lane_batches(samples: int, lanes: int, size: int, rank: int = 0, world: int = 1) -> list[list[int]]:
    """One rank's batches for a sequential objective: batch t holds sample t of every lane, a lane being consecutive samples.

    Where there are more lanes than rows, one group of lanes follows the other. Every lane begins without a memory, so the result of an
    evaluation depends on the number of lanes alone.

    Args:
        samples: read this many samples, the first ones.
        lanes: over all ranks, as even as can be.
        size: at most this many lanes in a batch on each rank.
        rank: number of this process.
        world: number of processes.
    """
    if size < 1 or lanes < 1:
        raise UserError(f"the evaluation batch is {size} of {lanes} lanes, expected positive numbers")
    mine = [range(a, b) for a, b in itertools.pairwise(samples * i // lanes for i in range(lanes + 1))][rank::world]
    # the last group first: else a lane would go on from the lane before it, where that has just ended
    groups = [mine[i : i + size] for i in range(0, len(mine), size)][::-1]
    return [[lane[t] for lane in group if t < len(lane)] for group in groups for t in range(max(map(len, group)))]


def evaluation_batches(data: DataSet, objective: Objective[Any], parts: Sequence[Sequence[int]], *, seed: int, on_bad: str = "raise",
                       workers: int = 0, max_tokens: int | None = None, task: str = "") -> Iterator[Batch]:
    """Batches of given samples; one with too many tokens for a forward pass comes in several.

    Args:
        data: the held-out data set.
        objective: of the system; its `evaluation()` variant is used.
        parts: the sample numbers of each batch. One whose samples are all bad is left out.
        seed: of the draws.
        on_bad: as in `Stream`.
        workers: processes that read and prepare; 0 for none.
        max_tokens: as in `Stream`.
        task: of the objective, where tasks take turns.
    """
    source = _HeldOut(data, objective.evaluation(), parts, seed, on_bad, max_tokens, task)
    return itertools.chain.from_iterable(batch.passes() for batch in load(source, range(len(parts)), workers))


class _HeldOut:
    """Batches of given samples, by number."""

    def __init__(self, data: DataSet, objective: Objective[Any], parts: Sequence[Sequence[int]], seed: int, on_bad: str,
                 max_tokens: int | None, task: str) -> None:
        self._objective, self._parts, self._on_bad, self._max_tokens, self._task = objective, parts, on_bad, max_tokens, task
        self._reader = SampleReader([data], seed, self._partner_of if objective.needs_partner else None, needs_next=objective.needs_next)
        if objective.needs_partner and len(data) < 2:
            raise UserError("this objective pairs each sample with another one: a data set of one sample is not enough")

    def read_costs(self) -> dict[str, float]:
        """See `BatchSource`."""
        return self._reader.sets[0].read_costs()

    def __getitem__(self, number: int) -> Batch | None:
        builder = BatchBuilder(self._objective, self._on_bad, self._reader, self._max_tokens, self._task)
        for prepared in self._reader.prepare([SampleRef(0, i, 0, i) for i in self._parts[number]]):
            builder.add(prepared)
        return builder.batch() if builder.examples else None

    def _partner_of(self, ref: SampleRef) -> int:
        """Any other sample."""
        draw = generator(self._reader.seed, 0, ref.sample, "partner")
        return (ref.sample + 1 + int(draw.integers(self._reader.samples - 1))) % self._reader.samples
