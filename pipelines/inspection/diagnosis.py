"""How the ranks of a run are, read from their heartbeats: which one holds up the others, and what it waits for.

Ranks are at a point of the loop (update, phase, micro-batch), and between two points where all of them must meet. So the others wait for
those that are behind, or that do not write, or that are in no collective call while the others are.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ..base.values import duration
from ..train.heartbeat import FOLDER, MAKING, PHASES, process_state

_ORDER = {name: number for number, name in enumerate(PHASES)}
_MISSED = 3
"""Heartbeats that may be missing before a rank counts as silent."""


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
    def has_ended(self) -> bool:
        """Whether it said that it is done."""
        return self.phase in ("ended", "failed")

    @property
    def is_lost(self) -> bool:
        """Whether it cannot go on."""
        return not self.has_ended and (self.process in ("gone", "stopped") or self.silent > _MISSED * self.every + 2)

    @property
    def progress(self) -> tuple[int, int, int, int]:
        """How far it is, to be compared with other ranks."""
        computing = self.phase in ("forward", "backward")  # micro-batch after micro-batch
        order = _ORDER["forward"] if computing else _ORDER[self.phase]
        return self.update, order, self.part if computing else 0, int(self.phase == "backward")

    def describe(self) -> str:
        """What it does, in words."""
        if self.has_ended:
            return f"{PHASES[self.phase]} after update {self.update}, {duration(self.seconds)} ago" + (f": {self.why}" if self.why else "")
        where = f"update {self.update}" if self.phase in MAKING else f"after update {self.update}"
        return f"{PHASES[self.phase]} ({self.phase}, {where}, for {duration(self.seconds)})"


def read_ranks(run: Path, now: float | None = None) -> list[Rank]:
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
        there = process_state(pid)
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
    going = [r for r in ranks if not r.has_ended]
    failed = [r for r in ranks if r.phase == "failed"]
    if not going:
        if failed:
            first = max(failed, key=lambda r: r.seconds)
            return Diagnosis("failed", [first.rank], f"failed {duration(first.seconds)} ago; first rank {first.rank}: {first.why}")
        return Diagnosis("ended", [], f"ended after update {max(r.update for r in ranks)}, {duration(min(r.seconds for r in ranks))} ago")
    lost = [r for r in going if r.is_lost]
    if failed:
        names = "; ".join(f"rank {r.rank}: {r.why}" for r in failed)
        return Diagnosis("failed", [r.rank for r in failed], f"{_ranks(r.rank for r in failed)} failed and {_wait(going)}: {names}")
    if len(lost) == len(going) and all(r.process != "stopped" for r in lost):
        known = all(r.process == "gone" for r in lost)
        why = "their processes are gone" if known else "killed, or their machines cannot write here"
        return Diagnosis("killed", [], f"no rank has shown a sign of life for {duration(min(r.silent for r in lost))}: {why}; "
                                       f"the last update was {max(r.update for r in lost)}")
    quiet = min(r.seconds for r in going if not r.is_lost) if len(lost) < len(going) else 0.0
    if lost:
        how = {"gone": "its process is gone", "stopped": "its process is stopped", "running": "its process is there and does not write",
               "unknown": "its machine does not write"}
        names = "; ".join(f"rank {r.rank} ({r.host}, process {r.pid}) has shown no sign of life for {duration(r.silent)}: "
                          f"{how[r.process]}; at its last, it was {r.phase}, update {r.update}" for r in lost)
        return Diagnosis("hanging", [r.rank for r in lost], names + _wait_for([r for r in going if not r.is_lost]))
    if quiet <= max(_MISSED * max(r.every for r in going), 10 * update_seconds):
        return Diagnosis("running", [], f"running, update {max(r.update for r in going)}")
    behind = [r for r in going if r.progress == min(r.progress for r in going)]
    if unseen:
        return Diagnosis("hanging", unseen, f"{_ranks(unseen)} never showed a sign of life" + _wait_for(going))
    if len(behind) == len(going):
        alone = [r for r in going if not r.meeting]
        if len(going) > 1 and len(alone) in (0, len(going)):
            return Diagnosis("hanging", [], f"no rank has moved for {duration(quiet)}, and none is behind: each {going[0].describe()}; "
                                            "the network between them, or work that takes so long")
        behind = alone or behind
    others = [r for r in going if r not in behind]
    says = "; ".join(f"rank {r.rank} ({r.host}, process {r.pid}) {r.describe()}" for r in behind[:4])
    more = f" and {len(behind) - 4} more" if len(behind) > 4 else ""
    return Diagnosis("hanging", [r.rank for r in behind], f"no rank has moved for {duration(quiet)}: {says}{more}{_wait_for(others)}")


def _wait_for(others: Sequence[Rank]) -> str:
    return "" if not others else f"; {_wait(others)}"


def _wait(others: Sequence[Rank]) -> str:
    phases = sorted({f"{r.phase}, update {r.update}" for r in others})
    return f"{_ranks(r.rank for r in others)} {'waits' if len(others) == 1 else 'wait'} for it ({'; '.join(phases)})"


def _ranks(numbers: Any) -> str:
    listed = [str(n) for n in numbers]
    shown = ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")
    return f"rank {shown}" if len(listed) == 1 else f"ranks {shown}"
