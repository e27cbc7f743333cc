"""From samples to batches, in this process or in workers."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ...shared.errors import BadSample, UserError
from ...shared.sample import Sample
from ...shared.system import BadRecord, Batch, Objective
from .ahead import ReadAhead


class Batches(Protocol):
    """Batches by number; None where every sample of one is bad."""

    def __getitem__(self, number: int) -> Batch | None: ...

    def read_costs(self) -> dict[str, float]:
        """What reading has cost since the last call (`Batch.reads`)."""
        ...


@dataclass(frozen=True)
class _Failure:
    """An error that a worker hands to the process that trains, without its traceback."""

    message: str


class Maker:
    """Collects the examples and the bad samples of one batch."""

    def __init__(self, objective: Objective[Any], on_bad: str) -> None:
        self.objective, self.on_bad = objective, on_bad
        self.examples: list[Any] = []
        self.used: list[int] = []
        self.follows: list[int] = []
        self.bad: list[BadRecord] = []

    def add(self, index: int, sample: Sample | BadSample, rng: np.random.Generator, partner: Sample | BadSample | None,
            name: Callable[[], tuple[str, str]], follows: int | None = None) -> None:
        """Make the examples of one sample, or record why there are none; `follows` as in `Batch`."""
        try:
            for found in (sample, partner):
                if isinstance(found, BadSample):
                    raise found
            assert isinstance(sample, Sample)
            if isinstance(partner, Sample):
                sample.partner = partner
            made = list(self.objective.example(sample, rng))
            if not made:
                raise BadSample(f"sample {sample.key!r} of {sample.source}: the objective makes no example of it")
        except BadSample as error:
            if self.on_bad == "raise":
                raise UserError(f"{error} (data.on_bad=skip leaves such samples out and counts them)") from None
            self.bad.append(BadRecord(index, *name(), str(error)))
            return
        self.examples.extend(made)
        self.used.append(index)
        if follows is not None:
            self.follows.append(follows)

    def batch(self) -> Batch:
        """The batch, with what the stream knows about it."""
        batch = self.objective.collate(self.examples)
        batch.samples, batch.sample_ids, batch.follows, batch.bad = len(self.used), self.used, self.follows, self.bad
        return batch


class From(Sampler[int]):
    """All numbers from a first one on."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.first)


class Caught(Dataset[Any]):
    """Batches by number, with the user's errors as values: an exception that crosses processes carries a traceback in its text."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __getitem__(self, number: int) -> Any:
        try:
            batch = self.batches[number]
            if batch is not None:
                batch.reads = self.batches.read_costs()
            return batch
        except UserError as error:
            return _Failure(str(error))


def added(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Sums by name."""
    sums: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            sums[name] = sums.get(name, 0) + value
    return sums


def load(batches: Caught, numbers: Sampler[int] | range, workers: int, prefetch: int, pin_memory: bool,
          ahead: ReadAhead | None = None) -> Iterator[Batch]:
    """Load batches, in this process or in `workers`."""
    loader: DataLoader[Any] = DataLoader(
        batches, batch_size=None, sampler=numbers, num_workers=workers, prefetch_factor=prefetch if workers else None, collate_fn=_same,
        worker_init_fn=_prepare_worker, pin_memory=pin_memory,
        generator=torch.Generator())  # its own generator: starting a loader must not move the run's random state
    made = iter(loader)  # this forks the workers; threads begin after that
    try:
        if ahead is not None:
            ahead.start()
        for found in made:
            if isinstance(found, _Failure):
                raise UserError(found.message)
            if found is not None:
                yield found
    finally:
        if ahead is not None:
            ahead.close()


def _same(value: Any) -> Any:
    return value


def _prepare_worker(worker: int) -> None:
    """A worker has one thread, and leaves stopping to the process that trains, whose signal handlers it must not inherit."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
