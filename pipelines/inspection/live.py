"""`polymodal report --live`: the report of runs in progress, written anew while they go on; a browser that shows it reads it again.

There is no server: the file works from any disk, also one that a cluster shares. It stops reading itself again once the runs have ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...shared.errors import UserError
from ..run.directory import open_run
from . import page
from .report import labels, report
from .status import GOING, Status, cells, status

AGAIN = 30.0
"""Seconds in which a run that was killed or failed may be started again (torchrun, a scheduler), or a new one shows a sign of life."""


def live(directories: Sequence[str | Path], out: str | Path, every: float, say: Callable[[str], None], *,
         again: float = AGAIN) -> dict[str, Any]:
    """Write the report of runs every `every` seconds until all of them have ended; also at an interrupt, so that the page comes to rest.

    Args:
        directories: runs, at least one of them in progress.
        out: the HTML file.
        every: seconds between two pages, at least 1.
        say: told when a run's state changes.
        again: seconds in which a run that was killed or failed may be started again.

    Returns:
        What `report` does, and the `states` of the runs.

    Raises:
        UserError: a run keeps no signs of life, so that nobody knows when it ends.
    """
    if every < 1:
        raise UserError(f"--every is {every:g}, expected at least 1 second")
    for directory in directories:
        if open_run(directory).recipe().health.heartbeat == 0 and not status(Path(directory)).is_over:
            raise UserError(f"{directory} keeps no signs of life (health.heartbeat=0), so --live cannot know when it ends: "
                            "write the report without --live")
    names = labels(directories)
    memory: dict[str, tuple[Any, list[str]]] = {}
    known: dict[str, str] = {}
    since = time.monotonic()

    def write(found: Sequence[Status], refresh: float | None) -> dict[str, Any]:
        header = ("run", "state", "update", "loss", "held-out", "speed", "left", "checkpoint", "")
        rows = [(name, *cells(one)[1:], one.says) for name, one in zip(names, found, strict=True)]
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        note = f"Written at {when}; " + ("the runs have ended." if refresh is None else f"read again every {refresh:g} seconds.")
        return report(directories, out, refresh, [page.table(header, rows), page.paragraph(note, soft=True)], memory)

    found = [status(Path(directory)) for directory in directories]
    try:
        while True:
            for name, one in zip(names, found, strict=True):
                if known.get(name) != one.state:
                    say(f"{name}: {one.state}: {one.says}")
                    since = time.monotonic()
                known[name] = one.state
            if _have_ended(found, time.monotonic() - since, again):
                break
            write(found, every)
            time.sleep(every)
            found = [status(Path(directory)) for directory in directories]
    finally:
        result = write(found, None)
    return {**result, "states": dict(zip(names, (one.state for one in found), strict=True))}


def _have_ended(found: Sequence[Status], seconds: float, again: float) -> bool:
    """Whether no run goes on, after so many seconds without a change of state."""
    if any(one.state in GOING for one in found):
        return False
    return seconds >= again or all(one.state in ("finished", "stopped", "broken") for one in found)
