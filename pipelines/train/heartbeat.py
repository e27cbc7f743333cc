"""Heartbeats: each rank writes every few seconds what it does; `polymodal inspect RUN` tells from them which rank the others wait for.

    RUN/heartbeats/rank-00000.json     {"rank": 0, "update": 812, "phase": "counting", "since": ..., "written": ..., "at": [...], ...}

The loop marks its phases by storing a tuple. A thread writes the newest one, and the calls that the training thread is in. A rank that is
stuck in a read or in a collective keeps writing, because this thread still runs; one that is stopped, killed or cut off does not. No rank
waits for another: no collective, no server, no lock. `inspection/diagnosis.py` reads the files.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from ..base.redact import redact

FOLDER = "heartbeats"
PHASES = {
    "starting": "sets up its devices and reads the checkpoint",
    "rewinding": "goes back to a checkpoint",
    "reading": "waits for its data",
    "counting": "adds up the counts of the batch with the other ranks",
    "forward": "computes the loss",
    "backward": "computes gradients, and adds them up with the other ranks",
    "stepping": "clips the gradient and steps",
    "logging": "writes the metrics, added up over the ranks",
    "evaluating": "evaluates",
    "saving": "saves a checkpoint, which all ranks do together",
    "exporting": "writes the exported network",
    "ended": "has ended",
    "failed": "has failed",
}
"""What a rank does, in the order of the loop."""
MAKING = frozenset({"reading", "counting", "forward", "backward", "stepping"})
"""The phases of making an update; the others come after one."""
_MEETING = (("torch", "distributed"), ("shared", "dist.py"))
"""Code that talks to other ranks, by the end of its path."""
_PACKAGE = Path(__file__).parents[2]
_CALLS = 4
"""Calls that are written, the innermost first."""
_DEPTH = 12
"""Innermost calls among which code that talks to other ranks is looked for."""


class Heartbeat:
    """What this rank does. Marking costs nearly nothing; nothing is written before `start`."""

    def __init__(self) -> None:
        """Nothing is written yet."""
        self._now: tuple[str, int, int, float] = ("starting", 0, 0, time.time())
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._path: Path | None = None
        self._fixed: dict[str, Any] = {}
        self._watched = 0

    def mark(self, phase: str, update: int, part: int = 0) -> None:
        """This rank now does `phase` (of `PHASES`) in making update number `update`, from 1, or after it; with micro-batch `part`."""
        self._now = (phase, update, part, time.time())

    def start(self, run: Path, rank: int, world: int, every: float) -> Self:
        """Write every `every` seconds from now on; never if that is 0."""
        if every > 0:
            self._path = run / FOLDER / f"rank-{rank:05d}.json"
            self._path.parent.mkdir(parents=True, exist_ok=True)
            pid = os.getpid()
            self._fixed = {"rank": rank, "world": world, "host": socket.gethostname(), "pid": pid, "born": process_birth(pid),
                           "every": every}
            self._watched = threading.get_ident()
            self._write()
            self._thread = threading.Thread(target=self._beat, args=(every,), name="heartbeat", daemon=True)
            self._thread.start()
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        _, update, part, _ = self._now
        self._now = ("ended" if value is None else "failed", update, part, time.time())
        if value is not None:
            self._fixed["why"] = redact(f"{type(value).__name__}: {value}".splitlines()[0])[:500]
        if self._thread is not None:
            self._end.set()
            self._thread.join(1.0)  # a dead file system may hold it for ever
            self._write()

    def _beat(self, every: float) -> None:
        while not self._end.wait(every):
            self._write()

    def _write(self) -> None:
        """Put the newest mark on the disk. Plain system calls: whoever forks meanwhile inherits no lock of a file object."""
        assert self._path is not None
        phase, update, part, since = self._now
        calls, meeting = _where(sys._current_frames().get(self._watched))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        record = {**self._fixed, "update": update, "phase": phase, "part": part, "since": since, "written": time.time(),
                  "at": calls, "meeting": meeting}
        temporary = self._path.with_suffix(".tmp")
        with suppress(OSError):  # if the disk is full, the run itself will say so
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                os.write(handle, json.dumps(record).encode())
            finally:
                os.close(handle)
            temporary.replace(self._path)


def clear(run: Path) -> None:
    """Remove the heartbeats of an earlier start, which may have had other ranks. Only for the process that owns the run."""
    for path in (run / FOLDER).glob("rank-*"):
        path.unlink(missing_ok=True)


def _where(frame: FrameType | None) -> tuple[list[str], bool]:
    """The innermost call and the next ones in this package, and whether the innermost lie in code that talks to other ranks."""
    calls: list[str] = []
    meeting, depth = False, 0
    while frame is not None and len(calls) < _CALLS:
        path = Path(frame.f_code.co_filename)
        if depth == 0 or (path.is_relative_to(_PACKAGE) and "site-packages" not in path.parts):
            calls.append(f"{'/'.join(path.parts[-2:])}:{frame.f_lineno} {frame.f_code.co_name}")
        if depth < _DEPTH:
            meeting = meeting or any(path.parts[i : i + 2] == pair for pair in _MEETING for i in range(len(path.parts) - 1))
        frame, depth = frame.f_back, depth + 1
    return calls, meeting


def process_birth(pid: int) -> int | None:
    """When a process of this machine began, in ticks, which tells it from a later one with its number; None if there is none."""
    return None if (found := process_state(pid)) is None else found[1]


def process_state(pid: int) -> tuple[str, int] | None:
    """State letter and birth of a process of this machine, from /proc; None if there is none."""
    try:
        values = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return values[0], int(values[19])
    except (OSError, IndexError, ValueError):
        return None
