"""Samples of indexed data in the exact order, and the loader that keeps it with any number of workers.

The state is one integer: how many positions of the order (`pipelines/data/order.py`) all ranks together have handed out. From there rank r
of R takes every R-th position, and its batches have numbers, which the loader's workers make in any division. So the samples that follow
a state are the same on any ranks and workers, and each comes once in an epoch.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch.utils.data import IterableDataset, default_collate, get_worker_info

from ....shared import dist
from ....shared.errors import BadSample, UserError
from ....shared.sample import Sample
from ..ahead import ReadAhead
from ..dataset import DataSet
from ..loader import load_numbered
from ..stream import STAND_INS, order_of
from .decode import Decoder, decoded

OnBad = Literal["raise", "skip"]
_ENDLESS = 1 << 62
_READ_TOGETHER = 64
"""Samples that are located and read at once where no batch says how many."""


class ExactSamples(IterableDataset[Any]):
    """The samples of this rank from a position on; see `polymodal.stream` for the arguments."""

    def __init__(self, data: DataSet, decoder: Decoder, *, seed: int, shuffle: bool, lanes: int, window: int, epochs: int | None,
                 drop_last: bool, on_bad: OnBad, rank: int | None, world_size: int | None) -> None:
        super().__init__()
        self._data, self._decoder, self._on_bad = data, decoder, on_bad
        self._drop_last = drop_last
        self._end = None if epochs is None else epochs * len(data)
        self._given = rank, world_size
        self._order = order_of([(data, 1.0)], seed, lanes if shuffle else 1, window, sequential=not shuffle)
        how = {"lanes": lanes, "window": window} if shuffle else {}
        self._settings = {"data": data.fingerprint[:16], "seed": seed, "shuffle": shuffle, **how}
        # shared with the workers of a DataLoader: where an iteration begins; whether they hand out what this process never hears of
        self._state = torch.zeros(2, dtype=torch.int64).share_memory_()

    def __repr__(self) -> str:
        return f"ExactSamples({self._data.directory!r}, {len(self._data)} samples, position {self.position})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_given": self.ranks()}  # a process that is started anew knows no process group

    @property
    def samples_per_epoch(self) -> int:
        """Samples of the data set."""
        return len(self._data)

    @property
    def epoch(self) -> float:
        """Epochs that all ranks together have handed out."""
        return self.position / len(self._data)

    def ranks(self) -> tuple[int, int]:
        """(number of this rank, number of ranks): as given, of the process group, or of the launcher's environment."""
        rank, world = self._given
        if world is None:
            world = dist.world_size() if dist.active() else int(os.environ.get("WORLD_SIZE", 1))
        if rank is None:
            rank = dist.rank() if dist.active() else int(os.environ.get("RANK", 0))
        if not 0 <= rank < world:
            raise UserError(f"rank is {rank} of world_size {world}: expected 0 to {world - 1}")
        return rank, world

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch, counted from 0."""
        if epoch < 0:
            raise UserError(f"epoch is {epoch}, expected 0 or more")
        self._go_to(epoch * len(self._data))

    def state_dict(self) -> dict[str, Any]:
        """`position`, the state; and what the order depends on, to be compared when it is loaded."""
        if self._state[1]:
            raise UserError("a DataLoader with workers has read from this stream, so how far the loop is, it cannot know: use "
                            "stream(...).loader(batch_size, num_workers=...), whose state_dict() counts the batches that were handed out")
        return {"position": self.position, **self._settings}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where a state was taken, on any number of ranks and workers."""
        wrong = [f"{name} was {state.get(name)!r} and is {value!r}" for name, value in self._settings.items() if state.get(name) != value]
        if wrong:
            raise UserError(f"the state is of another order: {'; '.join(wrong)}. Give the data and settings that it was taken with")
        position = state.get("position")
        if type(position) is not int or position < 0:
            raise UserError(f"position is {position!r} in the state, expected a whole number from 0 on")
        self._go_to(position)

    def loader(self, batch_size: int, *, num_workers: int = 0, steps: int | None = None,
               collate_fn: Callable[[list[Any]], Any] = default_collate, prefetch_factor: int = 2, pin_memory: bool = False) -> ExactLoader:
        """Batches in the exact order with any number of workers.

        Args:
            batch_size: samples of a batch of this rank.
            num_workers: processes that read and decode; 0 does it in this one.
            steps: an iteration ends after this many batches, and the next one goes on from there; None: where the stream ends.
            collate_fn: from a list of samples to a batch; torch's own by default.
            prefetch_factor: batches that each worker prepares ahead.
            pin_memory: as in `torch.utils.data.DataLoader`.
        """
        for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0), ("steps", steps, 1)):
            if value is not None and value < least:
                raise UserError(f"{name} is {value}, expected at least {least}")
        return ExactLoader(self, batch_size, num_workers, steps, collate_fn, prefetch_factor, pin_memory)

    def __iter__(self) -> Iterator[Any]:
        """The samples of this rank, one by one; those of a worker, where a plain DataLoader has some."""
        info = get_worker_info()
        positions = iter(self.mine(self.position))
        if info is not None:
            self._state[1] = 1
            positions = itertools.islice(positions, info.id, None, info.num_workers)
        while together := list(itertools.islice(positions, _READ_TOGETHER)):
            for sample in self._read(together):
                if info is None:
                    self.advance(1)
                yield from self._decoded([sample])
        if info is None:
            self.finish()

    def mine(self, state: int) -> range:
        """The positions of this rank from a state on; without an end there are more than anyone counts."""
        rank, world = self.ranks()
        end = _ENDLESS if self._end is None else self._end
        if self._drop_last:
            end -= max(0, end - state) % world
        return range(state + rank, end, world)

    def batch(self, positions: list[int]) -> list[Any]:
        """The samples at some positions; bad ones are left out.

        Where all of them are bad, a good neighbour stands in, so that every rank hands out equally many batches.
        """
        return self._decoded(self._read(positions)) or self._stand_in(positions[0])

    def _stand_in(self, position: int) -> list[Any]:
        """The nearest good sample in the shuffle window of a position."""
        _, window, at = self._order.sources[0].window_of(position)
        for step in range(1, min(len(window), STAND_INS)):
            if found := self._decoded(self._data.read_many([int(window[(at + step) % len(window)])])):
                return found
        raise UserError(f"no usable sample near position {position} of {self._data.directory}")

    def _read(self, positions: list[int]) -> list[Sample | BadSample]:
        return self._data.read_many([self._order.locate(p).sample for p in positions])

    def _decoded(self, samples: list[Sample | BadSample]) -> list[Any]:
        urls = [self._data.address(s.source) if isinstance(s, Sample) else "" for s in samples]
        return decoded(samples, urls, self._decoder, self._on_bad)

    def _go_to(self, position: int) -> None:
        self._state[0] = position

    def finish(self) -> None:
        """Count what is handed out until the end of the stream: a rank whose last samples were others' would lag behind them."""
        if self._end is not None:
            self._go_to(max(self.position, self._end))

    def advance(self, positions: int) -> None:
        """Count what was handed out on this rank, and as much on the others."""
        reached = self.position + positions * self.ranks()[1]
        self._go_to(reached if self._end is None else min(reached, self._end))

    def read_ahead(self) -> ReadAhead | None:
        """What fetches the shards of remote data before they are needed."""
        return ReadAhead.of([self._data], self._order, self.position, *self.ranks())

    @property
    def position(self) -> int:
        """The state: positions that all ranks together have handed out."""
        return int(self._state[0])


class _Batches:
    """The batches of this rank from a state on, by number."""

    def __init__(self, samples: ExactSamples, size: int, collate: Callable[[list[Any]], Any]) -> None:
        self._samples, self._size, self._collate = samples, size, collate
        self._positions = samples.mine(samples.position)

    def __len__(self) -> int:
        return -(-len(self._positions) // self._size)

    def __getitem__(self, number: int) -> Any:
        positions = self._positions[number * self._size : (number + 1) * self._size]
        return self._batch(self._samples.batch(list(positions)))

    def _batch(self, items: list[Any]) -> Any:
        if self._collate is not default_collate:
            return self._collate(items)
        try:
            return default_collate(items)
        except (TypeError, RuntimeError, ValueError) as error:
            raise UserError(f"torch cannot make a batch of these samples ({error}): give transform= or collate_fn=, or fields=") from None


class ExactLoader:
    """Batches of an `ExactSamples`; made by its `loader`. Its state is that of the samples, and counts what was handed out."""

    def __init__(self, samples: ExactSamples, batch_size: int, num_workers: int, steps: int | None,
                 collate_fn: Callable[[list[Any]], Any], prefetch_factor: int, pin_memory: bool) -> None:
        self.samples, self.batch_size, self.num_workers, self.steps = samples, batch_size, num_workers, steps
        self._collate, self._prefetch, self._pin_memory = collate_fn, prefetch_factor, pin_memory

    def __len__(self) -> int:
        """Batches of an iteration."""
        if self.steps is None:
            raise TypeError("this loader has no length: it goes on until the stream ends (steps= gives it one)")
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        """Batches from the state on."""
        batches = _Batches(self.samples, self.batch_size, self._collate)
        ahead = self.samples.read_ahead()
        numbers = range(len(batches) if self.steps is None else min(self.steps, len(batches)))
        for batch in load_numbered(batches, numbers, self.num_workers, self._prefetch, self._pin_memory, ahead):
            # a whole batch, also where this one is shorter: ranks whose last batches differ in size agree about the state
            self.samples.advance(self.batch_size)
            if ahead is not None:
                ahead.reached(self.samples.position)
            yield batch
        if self.steps is None or len(batches) < self.steps:
            self.samples.finish()

    def state_dict(self) -> dict[str, Any]:
        """See `ExactSamples.state_dict`."""
        return self.samples.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `ExactSamples.load_state_dict`; the next iteration begins there."""
        self.samples.load_state_dict(state)

