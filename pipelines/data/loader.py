"""From samples to batches, in this process or in workers."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ...shared.errors import BadSample, UserError
from ...shared.system import BadRecord, Batch, Objective
from .ahead import ReadAhead
from .samples import PreparedSample, SampleReader

PASS = 2
"""See `BatchBuilder`. Documents that fill a sequence on average, as rows do, keep below it, so their micro-batches stay whole."""


class Numbered(Protocol):
    """Anything by number."""

    def __getitem__(self, number: int) -> Any: ...


class BatchSource(Protocol):
    """Batches by number; None where every sample of one is bad."""

    def __getitem__(self, number: int) -> Batch | None: ...

    def read_costs(self) -> dict[str, float]:
        """What reading has cost in this process since the last call (`Batch.reads`)."""
        ...


class BatchBuilder:
    """Collects the examples and the bad samples of one batch.

    Args:
        objective: makes examples and batches.
        on_bad: as in `Stream`.
        reader: of the samples.
        max_tokens: of a forward pass; None for `PASS` times what as many sequences as there are samples, all as long as the longest
            example, would hold. So the longest document does not decide about memory.
        task: of the objective, where tasks take turns.
        update: that the batch is for.
    """

    def __init__(self, objective: Objective[Any], on_bad: str, reader: SampleReader, max_tokens: int | None = None, task: str = "",
                 update: int = 0) -> None:
        self.objective, self.on_bad, self.max_tokens, self.task, self.update = objective, on_bad, max_tokens, task, update
        self._reader = reader
        self.examples: list[Any] = []
        self.used: list[int] = []
        self.follows: list[int] = []
        self.bad: list[BadRecord] = []

    def add(self, prepared: PreparedSample, follows: int | None = None) -> None:
        """Make the examples of one sample, or record why there are none; `follows` as in `Batch`."""
        try:
            if isinstance(prepared.sample, BadSample):
                raise prepared.sample
            made = list(self.objective.example(prepared.sample, prepared.rng))
            if not made:
                raise BadSample(f"sample {prepared.sample.key!r} of {prepared.sample.source}: the objective makes no example of it")
        except BadSample as error:
            if self.on_bad == "raise":
                raise UserError(f"{error} (data.on_bad=skip leaves such samples out and counts them)") from None
            self.bad.append(BadRecord(prepared.index, *self._reader.key_and_shard(prepared.ref), str(error)))
            return
        self.examples.extend(made)
        self.used.append(prepared.index)
        if follows is not None:
            self.follows.append(follows)

    def batch(self) -> Batch:
        """The batch, with what is known about its samples; in several passes where it has too many tokens for one."""
        batch, *rest = [self.objective.collate(part) for part in self._passes()]
        batch.rest = rest
        for one in (batch, *rest):
            one.task, one.update = self.task, self.update
        batch.samples, batch.sample_ids, batch.follows, batch.bad = len(self.used), self.used, self.follows, self.bad
        return batch

    def _passes(self) -> list[list[Any]]:
        """The examples, cut where the next one would be too much."""
        sizes = [self.objective.tokens_of(example) for example in self.examples]
        limit = PASS * len(self.used) * max(sizes) if self.max_tokens is None else self.max_tokens
        if sum(sizes) <= limit:
            return [self.examples]
        parts: list[list[Any]] = []
        room = 0
        for example, size in zip(self.examples, sizes, strict=True):
            if size > room:
                parts.append([])
                room = limit
            parts[-1].append(example)
            room -= size
        return parts


class CountFrom(Sampler[int]):
    """All numbers from a first one on."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.first)


@dataclass(frozen=True)
class Mistake:
    """A user's error that a worker hands over: an exception that crosses processes carries a traceback in its text."""

    message: str


class _Guarded(Dataset[Any]):
    """What a source has for a number, or the user's error as a value."""

    def __init__(self, source: Numbered) -> None:
        self._source = source

    def __getitem__(self, number: int) -> Any:
        try:
            return self._source[number]
        except UserError as error:
            return Mistake(str(error))


class _Costed:
    """(batch, what reading it cost where it was read)."""

    def __init__(self, source: BatchSource) -> None:
        self._source = source

    def __getitem__(self, number: int) -> tuple[Batch | None, dict[str, float]]:
        return self._source[number], self._source.read_costs()


def added(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Sums by name."""
    sums: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            sums[name] = sums.get(name, 0) + value
    return sums


def load(source: BatchSource, numbers: Sampler[int] | range, workers: int, prefetch: int = 2, pin_memory: bool = False,
         ahead: ReadAhead | None = None) -> Iterator[Batch]:
    """Load batches by their numbers, in this process or in `workers`; a number whose samples are all bad gives none."""
    for batch, costs in load_numbered(_Costed(source), numbers, workers, prefetch, pin_memory, ahead):
        if batch is not None:
            batch.reads = added([costs, source.read_costs()])  # in the worker, and what this process fetched ahead
            yield batch


def load_numbered(source: Numbered, numbers: Sampler[int] | range, workers: int, prefetch: int = 2, pin_memory: bool = False,
                  ahead: ReadAhead | None = None) -> Iterator[Any]:
    """What a source has for each number, in their order, made in this process or in `workers`."""
    loader: DataLoader[Any] = DataLoader(
        _Guarded(source), batch_size=None, sampler=numbers, num_workers=workers, prefetch_factor=prefetch if workers else None,
        collate_fn=_same, worker_init_fn=prepare_worker, pin_memory=pin_memory,
        generator=torch.Generator())  # its own generator: starting a loader must not move the run's random state
    made = iter(loader)  # this forks the workers; threads begin after that
    try:
        if ahead is not None:
            ahead.start()
        for found in made:
            if isinstance(found, Mistake):
                raise UserError(found.message)
            yield found
    finally:
        if ahead is not None:
            ahead.close()


def _same(value: Any) -> Any:
    return value


def prepare_worker(worker: int) -> None:
    """A worker has one thread, and leaves stopping to the process that trains, whose signal handlers it must not inherit."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
