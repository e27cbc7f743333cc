"""Reading ahead: while samples are read from some remote shards, the next ones are fetched in the background.

The order of the stream is known, so it is known which shard comes when. Threads of the process that trains bring them into the cache,
from where the loader's workers read them. Nothing depends on it: a shard that is not there yet is fetched by whoever needs it.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Self

from .dataset import DataSet
from .order import Order
from .turns import TurnOrder

_THREADS = 4
_BYTES = 8 << 30
"""Bytes that are fetched before they are needed, at most."""


class ReadAhead:
    """Fetches shards in the order in which they will be read.

    Args:
        sets: the data sets.
        coming: (position of the stream, number of the data set, number of its shard): from that position on samples of the shard are
            read; positions never decrease.
        position: where reading begins: all shards of this position are needed at once.
        ahead: shards that are fetched before they are needed, at most.
    """

    def __init__(self, sets: Sequence[DataSet], coming: Iterator[tuple[int, int, int]], position: int, ahead: int) -> None:
        self._sets, self._coming = sets, coming
        self._reached, self._ahead = position, max(1, ahead)
        self._room = min(min(d.cache_limit for d in sets) * 3 / 4, 1 << 60)
        self._pending: deque[tuple[int, int]] = deque()  # (position, bytes) of shards that are here and not needed yet
        self._recent: deque[tuple[int, int]] = deque(maxlen=2 * self._ahead)  # the shards that lanes read from now and next
        self._busy: set[tuple[int, int]] = set()
        self._next = next(self._coming)
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    @classmethod
    def of(cls, sets: Sequence[DataSet], order: Order | TurnOrder, position: int, rank: int, world: int) -> Self | None:
        """What fetches the shards of a rank's lanes from a position on; None where no data set is remote."""
        if not any(d.remote for d in sets):
            return None
        lanes = order.sources[0].lanes
        step = math.gcd(lanes, world)
        mine = range((position + rank) % step, lanes, step)
        coming = ((at, source, sets[source].shard_of(sample)[0]) for at, source, sample in order.upcoming_shards(position, mine))
        return cls(sets, coming, position, len(mine))

    def start(self) -> None:
        """Begin, once the loader's workers are forked."""
        self._threads = [threading.Thread(target=self._run, name="read-ahead", daemon=True) for _ in range(_THREADS)]
        for thread in self._threads:
            thread.start()

    def reached(self, position: int) -> None:
        """Tell that the stream was read up to `position`."""
        with self._changed:
            self._reached = position
            while self._pending and self._pending[0][0] <= position:
                self._pending.popleft()
            self._changed.notify_all()

    def close(self) -> None:
        """End. A shard on its way stays as it is and is continued by the next who wants it."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout=1.0)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._stop.is_set() and not self._due():
                    self._changed.wait()
                if self._stop.is_set():
                    return
                position, source, shard = self._next
                self._next = next(self._coming)
                size = self._sets[source].index.shards[shard].size
                if position > self._reached:
                    self._pending.append((position, size))
                if (source, shard) not in self._recent:
                    self._recent.append((source, shard))
                # more than the cache holds would push out what is read now
                wanted = (source, shard) not in self._busy and self._recent_bytes() <= self._room
                if wanted:
                    self._busy.add((source, shard))
            if wanted:
                try:
                    self._sets[source].prefetch(shard, self._stop)
                finally:
                    with self._changed:
                        self._busy.discard((source, shard))

    def _due(self) -> bool:
        """Whether the next shard is to be fetched now."""
        position, source, shard = self._next
        if position <= self._reached:
            return True
        coming = sum(size for _, size in self._pending) + self._sets[source].index.shards[shard].size
        return not self._pending or (len(self._pending) < self._ahead and coming <= min(_BYTES, self._room))

    def _recent_bytes(self) -> int:
        return sum(self._sets[source].index.shards[shard].size for source, shard in self._recent)
