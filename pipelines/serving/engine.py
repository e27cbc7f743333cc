"""Waiting prompts run together: one thread, one batch at a time, for any number of requests.

A batch begins with the prompt that has waited longest. With it run those whose tokens are chosen alike (the same model, temperature,
penalties ...), up to `batch_size` rows, in the order in which they came. Each text goes back as soon as it is over; what comes while a
batch runs waits for its end.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ...shared.errors import UserError

LOG = logging.getLogger(__name__)


class Busy(Exception):
    """As many requests wait as may."""


class Failed(Exception):
    """A defect met a batch; the log says more."""


@dataclass(eq=False)
class Item:
    """One prompt or text of a request."""

    request: Request
    kind: Hashable
    """Items of the same kind run together."""
    place: int
    """Its number in the request."""
    payload: Any
    length: int
    """Tokens to read."""
    new: int = 0
    """Tokens to write, at most."""


@dataclass(frozen=True)
class Piece:
    """Text of a continuation that is final, while more comes."""

    place: int
    copy: int
    text: str


@dataclass(frozen=True)
class Result:
    """What was made of an item: one of its `copies`."""

    place: int
    copy: int
    value: Any


class Request:
    """A request's items, and what happens to them; made and read in the event loop, told by the engine's thread.

    Args:
        run: makes the results of items of one kind, and tells their requests.
        room: tokens to read and write of all rows of a batch, at most; None for any number.
        copies: results of each item, each a row.
    """

    def __init__(self, run: Callable[[Sequence[Item]], None], *, room: int | None = None, copies: int = 1) -> None:
        self.run, self.room, self.copies = run, room, copies
        self.items: list[Item] = []
        self.cancelled = False
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Piece | Result | Exception] = asyncio.Queue()

    def add(self, kind: Hashable, payload: Any, length: int, new: int = 0) -> None:
        """Add an item."""
        self.items.append(Item(self, kind, len(self.items), payload, length, new))

    def tell(self, event: Piece | Result | Exception) -> None:
        """Let the event loop know; from any thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def events(self) -> AsyncIterator[Piece | Result]:
        """What happens, until all results are there; raises what went wrong. One that leaves early cancels the rest."""
        left = len(self.items) * self.copies
        try:
            while left:
                event = await self._events.get()
                if isinstance(event, Exception):
                    raise event
                left -= isinstance(event, Result)
                yield event
        finally:
            self.cancelled = True

    async def results(self) -> list[list[Any]]:
        """All results: `copies` of each item."""
        found: list[list[Any]] = [[None] * self.copies for _ in self.items]
        async for event in self.events():
            if isinstance(event, Result):
                found[event.place][event.copy] = event.value
        return found


class Engine:
    """The thread that computes.

    Args:
        batch_size: rows that run together, at most.
        most_waiting: requests that wait for their turn, at most.
    """

    def __init__(self, batch_size: int, most_waiting: int) -> None:
        self.batch_size, self.most_waiting = batch_size, most_waiting
        self._waiting: deque[Item] = deque()
        self._change = threading.Condition()
        self._ending = False
        self.batches = 0
        """How many have run."""
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """Finish what was asked for, and end."""
        with self._change:
            self._ending = True
            self._change.notify()
        self._thread.join()

    @property
    def waiting(self) -> int:
        """Requests that have items whose turn has not come."""
        with self._change:
            return self._count()

    def submit(self, request: Request) -> None:
        """Let a request wait for its turn, or raise `Busy`."""
        with self._change:
            if self._count() >= self.most_waiting:
                raise Busy
            self._waiting.extend(request.items)
            self._change.notify()

    def _count(self) -> int:
        return len({id(item.request) for item in self._waiting if not item.request.cancelled})

    def _work(self) -> None:
        while batch := self._next():
            self.batches += 1
            try:
                batch[0].request.run(batch)
            except UserError as error:
                self._fail(batch, error)
            except Exception as error:
                LOG.exception("a batch failed")
                self._fail(batch, Failed(str(error)))

    @staticmethod
    def _fail(batch: Sequence[Item], error: Exception) -> None:
        """Tell those who wait for a batch; the next batch is another one."""
        for request in {id(item.request): item.request for item in batch}.values():
            request.cancelled = True
            request.tell(error)

    def _next(self) -> list[Item]:
        """The items of the next batch, waiting for them; none at the end."""
        with self._change:
            while True:
                self._waiting = deque(item for item in self._waiting if not item.request.cancelled)
                if self._waiting:
                    return self._chosen()
                if self._ending:
                    return []
                self._change.wait()

    def _chosen(self) -> list[Item]:
        kind, first = self._waiting[0].kind, self._waiting[0].request
        chosen: list[Item] = []
        left: deque[Item] = deque()
        length = new = 0
        for item in self._waiting:
            longest, most = max(length, item.length), max(new, item.new)
            alike = item.kind == kind and (len(chosen) + 1) * first.copies <= max(self.batch_size, first.copies)
            if alike and (not chosen or first.room is None or longest + most <= first.room):
                chosen.append(item)
                length, new = longest, most
            else:
                left.append(item)
        self._waiting = left
        return chosen
