"""Signs of life: each rank writes every few seconds what it does, and `polymodal inspect RUN` reads which one holds up the others.

    RUN/heartbeats/rank-00000.json     {"rank": 0, "update": 812, "phase": "counting", "since": ..., "written": ..., "at": [...], ...}

The loop marks its phases by storing a tuple. A thread writes the newest one, and where the code stands, in the thread that
trains. A rank that is stuck in a read or in a collective keeps writing, for its thread still runs; one that is stopped, killed or cut
off does not. Nobody waits for anybody: no collective, no server, no lock.

Ranks stand at a place (update, phase, micro-batch), and between two places of the loop where all of them must meet. So the ones that
are behind, or that do not write, or that are in no collective call while the others are, are those that the rest waits for.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self, cast

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
"""What happens in an update; the rest happens after one."""
_ORDER = {name: number for number, name in enumerate(PHASES)}
_MEETING = (("torch", "distributed"), ("shared", "dist.py"))
"""Code that talks to other ranks, by the end of its path."""
_PACKAGE = Path(__file__).parents[2]
_CALLS = 4
_DEEP = 12
_MISSED = 3
"""So many signs of life may be missing before a rank counts as silent."""


class Heartbeat:
    """What this rank does. Marks cost next to nothing; nothing is written before `start`."""

    def __init__(self) -> None:
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
        """Write every so many seconds from now on; never where that is 0."""
        if every > 0:
            self._path = run / FOLDER / f"rank-{rank:05d}.json"
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._fixed = {"rank": rank, "world": world, "host": socket.gethostname(), "pid": os.getpid(), "born": _born(os.getpid()),
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
            self._thread.join(1.0)  # a dead file system keeps it; the run need not wait for that
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
        with suppress(OSError):  # a full disk is the run's trouble, not ours
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                os.write(handle, json.dumps(record).encode())
            finally:
                os.close(handle)
            temporary.replace(self._path)


def clear(run: Path) -> None:
    """Remove the signs of an earlier start, which may have had other ranks. Only for the process that owns the run."""
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
        if depth < _DEEP:
            meeting = meeting or any(path.parts[i : i + 2] == pair for pair in _MEETING for i in range(len(path.parts) - 1))
        frame, depth = frame.f_back, depth + 1
    return calls, meeting


def _born(pid: int) -> int | None:
    """When a process of this machine began, in ticks, which tells it from a later one with its number; None where there is none."""
    return None if (found := _process(pid)) is None else found[1]


def _process(pid: int) -> tuple[str, int] | None:
    """State and birth of a process, from /proc."""
    try:
        values = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return values[0], int(values[19])
    except (OSError, IndexError, ValueError):
        return None


# --- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rank:
    """What a rank last said of itself."""

    rank: int
    world: int
    host: str
    pid: int
    every: float
    update: int
    phase: str
    part: int
    seconds: float
    """Since it began to do that."""
    silent: float
    """Seconds since it wrote."""
    process: str
    """running, stopped, gone; unknown where it is on another machine."""
    meeting: bool
    """Whether it is in code that talks to other ranks."""
    at: list[str] = field(default_factory=list)
    why: str = ""

    @property
    def over(self) -> bool:
        """Whether it said that it is done."""
        return self.phase in ("ended", "failed")

    @property
    def lost(self) -> bool:
        """Whether it cannot go on."""
        return not self.over and (self.process in ("gone", "stopped") or self.silent > _MISSED * self.every + 2)

    @property
    def place(self) -> tuple[int, int, int, int]:
        """How far it is."""
        computing = self.phase in ("forward", "backward")  # micro-batch after micro-batch
        order = _ORDER["forward"] if computing else _ORDER[self.phase]
        return self.update, order, self.part if computing else 0, int(self.phase == "backward")

    def does(self) -> str:
        """What it does, in words."""
        if self.over:
            return f"{PHASES[self.phase]} after update {self.update}, {_seconds(self.seconds)} ago" + (f": {self.why}" if self.why else "")
        where = f"update {self.update}" if self.phase in MAKING else f"after update {self.update}"
        return f"{PHASES[self.phase]} ({self.phase}, {where}, for {_seconds(self.seconds)})"


def read(run: Path, now: float | None = None) -> list[Rank]:
    """What the ranks of a run last wrote; files that say nothing sensible are left out."""
    now = time.time() if now is None else now
    found: list[Rank] = []
    for path in sorted((run / FOLDER).glob("rank-*.json")):
        try:
            found.append(_rank(json.loads(path.read_text(encoding="utf-8")), max(0.0, now - path.stat().st_mtime)))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return found


def _rank(record: Mapping[str, Any], silent: float) -> Rank:
    if record["phase"] not in PHASES:
        raise ValueError(record["phase"])
    host, pid, process = str(record["host"]), int(record["pid"]), "unknown"
    if host == socket.gethostname() and record["born"] is not None:
        there = _process(pid)
        gone = there is None or there[1] != record["born"] or there[0] in "ZX"
        process = "gone" if gone else "stopped" if there is not None and there[0] in "Tt" else "running"
    # the two times are of that machine's clock, `silent` of the file's
    seconds = float(record["written"]) - float(record["since"]) + silent
    return Rank(int(record["rank"]), int(record["world"]), host, pid, float(record["every"]), int(record["update"]), str(record["phase"]),
                int(record["part"]), seconds, silent, process, bool(record["meeting"]), [str(c) for c in cast("list[Any]", record["at"])],
                str(record.get("why", "")))


@dataclass(frozen=True)
class Diagnosis:
    """How the ranks of a run are."""

    state: str
    """running, hanging, ended, failed, killed; unknown without signs of life."""
    ranks: list[int]
    """hanging and failed: the ranks that the others wait for."""
    says: str


def diagnose(ranks: Sequence[Rank], update_seconds: float = 0.0) -> Diagnosis:
    """Which rank holds up the others, and what it waits for.

    Args:
        ranks: what they last wrote.
        update_seconds: what an update takes: a run hangs when no rank has moved for ten times as long, and three signs of life.
    """
    if not ranks:
        return Diagnosis("unknown", [], "no signs of life")
    world = max(r.world for r in ranks)
    unseen = sorted(set(range(world)) - {r.rank for r in ranks})
    going = [r for r in ranks if not r.over]
    failed = [r for r in ranks if r.phase == "failed"]
    if not going:
        if failed:
            first = max(failed, key=lambda r: r.seconds)
            return Diagnosis("failed", [first.rank], f"failed {_seconds(first.seconds)} ago; first rank {first.rank}: {first.why}")
        return Diagnosis("ended", [], f"ended after update {max(r.update for r in ranks)}, {_seconds(min(r.seconds for r in ranks))} ago")
    lost = [r for r in going if r.lost]
    if failed:
        names = "; ".join(f"rank {r.rank}: {r.why}" for r in failed)
        return Diagnosis("failed", [r.rank for r in failed], f"{_ranks(r.rank for r in failed)} failed and {_wait(going)}: {names}")
    if len(lost) == len(going) and all(r.process != "stopped" for r in lost):
        known = all(r.process == "gone" for r in lost)
        why = "their processes are gone" if known else "killed, or their machines cannot write here"
        return Diagnosis("killed", [], f"no rank has shown a sign of life for {_seconds(min(r.silent for r in lost))}: {why}; "
                                       f"the last update was {max(r.update for r in lost)}")
    quiet = min(r.seconds for r in going if not r.lost) if len(lost) < len(going) else 0.0
    if lost:
        how = {"gone": "its process is gone", "stopped": "its process is stopped", "running": "its process is there and does not write",
               "unknown": "its machine does not write"}
        names = "; ".join(f"rank {r.rank} ({r.host}, process {r.pid}) has shown no sign of life for {_seconds(r.silent)}: "
                          f"{how[r.process]}; at its last, it was {r.phase}, update {r.update}" for r in lost)
        return Diagnosis("hanging", [r.rank for r in lost], names + _wait_for([r for r in going if not r.lost]))
    if quiet <= max(_MISSED * max(r.every for r in going), 10 * update_seconds):
        return Diagnosis("running", [], f"running, update {max(r.update for r in going)}")
    behind = [r for r in going if r.place == min(r.place for r in going)]
    if unseen:
        return Diagnosis("hanging", unseen, f"{_ranks(unseen)} never showed a sign of life" + _wait_for(going))
    if len(behind) == len(going):
        alone = [r for r in going if not r.meeting]
        if len(going) > 1 and len(alone) in (0, len(going)):
            return Diagnosis("hanging", [], f"no rank has moved for {_seconds(quiet)}, and none is behind: each {going[0].does()}; "
                                            "the network between them, or work that takes so long")
        behind = alone or behind
    others = [r for r in going if r not in behind]
    says = "; ".join(f"rank {r.rank} ({r.host}, process {r.pid}) {r.does()}" for r in behind[:4])
    more = f" and {len(behind) - 4} more" if len(behind) > 4 else ""
    return Diagnosis("hanging", [r.rank for r in behind], f"no rank has moved for {_seconds(quiet)}: {says}{more}{_wait_for(others)}")


def _wait_for(others: Sequence[Rank]) -> str:
    return "" if not others else f"; {_wait(others)}"


def _wait(others: Sequence[Rank]) -> str:
    phases = sorted({f"{r.phase}, update {r.update}" for r in others})
    return f"{_ranks(r.rank for r in others)} {'waits' if len(others) == 1 else 'wait'} for it ({'; '.join(phases)})"


def _ranks(numbers: Any) -> str:
    listed = [str(n) for n in numbers]
    shown = ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")
    return f"rank {shown}" if len(listed) == 1 else f"ranks {shown}"


def _seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
