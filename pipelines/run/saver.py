"""Saves a run's checkpoints, beside the training where that is wanted.

The loop is held only while each rank copies what it will write to host memory (`Staging`). A thread then writes, hashes and
flushes the files, and renames the checkpoint into place once every rank has reported: what stands under its name is complete, whenever
the processes are killed. The threads of the ranks talk in a process group of their own, because collectives of two threads in one
group have no order and may wait for each other for ever. One checkpoint at a time is under way; the next waits for it. What goes
wrong in the background is raised by the next call, on all ranks alike.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from ...shared import dist
from .checkpoint import without_aliases, write_together
from .chunks import Chunk, Shares, Staging, chunks_of

TIMEOUT = timedelta(hours=1)
"""How long one rank waits for the files of another, which may be on a slow disk."""


class Saver:
    """Writes the checkpoints of one run.

    Args:
        directory: the run's `checkpoints/`; made if it is missing.
        asynchronous: whether `save` returns once the tensors are copied; they take as much host memory as this rank writes.
            Every rank must say the same, and all must make it at the same place, before any of them saves.
    """

    def __init__(self, directory: Path, asynchronous: bool = False) -> None:
        self.directory, self.asynchronous = directory, asynchronous
        self._group = dist.background_group(TIMEOUT) if asynchronous else None
        self._shares, self._staging = Shares(), Staging()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._update: int | None = None

    def save(self, update: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], after: Callable[[], None] | None = None,
             wait: bool = False) -> None:
        """Save what the tensors hold now; every rank calls it with its own.

        Args:
            update: updates made so far.
            tensors: names to tensors; tensors that every rank has are written once, DTensors in their shards. They may change as soon
                as this returns.
            state: JSON values; rank 0's are written.
            after: what rank 0 does once the checkpoint stands, in another thread perhaps.
            wait: return when it stands, asynchronous or not: for the last one, which needs no copy.

        Raises:
            UserError: where this checkpoint or the one before could not be written; earlier ones are as they were.
        """
        self.wait()
        if update == self._update:  # it stands already
            if after is not None:
                dist.on_rank_0(after)
            return
        chunks = self._shares.mine(chunks_of(without_aliases(tensors)))
        text = json.dumps(state, ensure_ascii=False)
        if wait or not self.asynchronous:
            write_together(self.directory, update, chunks, text, after)
            self._update = update
            return
        staged = self._staging.copy(chunks)
        # a daemon: who ends the process at once (a second Ctrl-C) does not wait for a disk
        self._thread = threading.Thread(target=self._write, args=(update, staged, text, after), name="checkpoint", daemon=True)
        self._thread.start()

    def _write(self, update: int, chunks: list[Chunk], state: str, after: Callable[[], None] | None) -> None:
        try:
            write_together(self.directory, update, chunks, state, after, self._group)
            self._update = update
        except BaseException as error:
            self._error = error

    def wait(self) -> None:
        """Return when no checkpoint is under way, so that those on the disk may be read. Raises what went wrong with the last."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def forget(self) -> None:
        """Checkpoints may have been removed: none counts as written any more."""
        self._update = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Wait for the one under way; where the block failed, let its error pass, with the saver's as a note."""
        if value is None:
            self.wait()
        elif isinstance(value, Exception):
            try:
                self.wait()
            except Exception as error:
                value.add_note(f"the last checkpoint was not written either: {error}")
