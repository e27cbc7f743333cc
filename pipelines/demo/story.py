"""The story of a demo: the commands that ran and what they found."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...shared.errors import UserError
from ..base.console import Console
from ..run.directory import Run

COMPARED = {True: "identical", False: "DIFFERENT", None: "not compared: the time was up"}
"""What there is to say of losses before a kill and after it; None where none was computed twice."""
_EVERY = 15.0
"""Seconds between two lines about a run that goes on."""


@dataclass
class Story:
    """What happened, collected for the page and for `--json`."""

    out: Path
    console: Console
    invoke: Callable[[Sequence[str]], object]
    started: float = field(default_factory=time.monotonic)
    commands: list[str] = field(default_factory=list)
    trained_stems: frozenset[str] = frozenset()
    limit: float = math.inf
    """Seconds that all is meant to take."""
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What the parts that train took, by name."""
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def step(self, title: str) -> None:
        """Announce a step with the time since the start, and the time that is left."""
        self.console.say(f"[{self.clock()}] {title}")

    def clock(self) -> str:
        """The time since the start, and what is left."""
        left = "" if math.isinf(self.limit) else f", {max(0.0, self.limit - self.elapsed):3.0f} s left"
        return f"{self.elapsed:4.0f} s{left}"

    def command(self, *arguments: object) -> dict[str, Any]:
        """Run one `polymodal` command and return its JSON result.

        It runs in this process: the same code as on the command line, without importing torch a dozen times.
        """
        words = self._announce(arguments)
        output = io.StringIO()
        lines = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(_Updates(self))
        try:
            with contextlib.redirect_stdout(output), lines:
                self.invoke([*words, "--json"])
        except UserError as error:
            raise UserError(f"the demo stopped at `{self.commands[-1]}`: {error}") from error
        return json.loads(output.getvalue().strip().splitlines()[-1])

    def command_killed(self, *arguments: object, run: Path, after: int, until: float, saved: int) -> int:
        """Start a `polymodal pretrain` command in a process of its own, and SIGKILL it.

        Args:
            arguments: of the command.
            run: its run directory.
            after: the update that must have been logged.
            until: seconds since the start, after which an earlier update will do.
            saved: updates between two checkpoints; the last update that is logged is not one that was saved.

        Returns:
            The last logged update.
        """
        words = self._announce(arguments)
        line = [sys.executable, "-m", "polymodal", *words]
        before = _last_update(run)
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while process.poll() is None:
            last = _last_update(run)
            if last >= after or (self.elapsed >= until and last > before and last % saved):
                os.kill(process.pid, signal.SIGKILL)
                process.communicate()
                return _last_update(run)
            time.sleep(0.02)
        _, errors = process.communicate()
        last = (errors or "").strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        raise UserError(f"the run that was meant to be killed ended by itself: {last[0].removeprefix('error: ')}")

    def _announce(self, arguments: Sequence[object]) -> list[str]:
        words = [str(a) for a in arguments]
        self.commands.append(" ".join(["polymodal", *(f"'{w}'" if " " in w else w for w in words)]))
        self.console.say(f"         $ {self.commands[-1]}")
        return words


class _Updates(io.TextIOBase):
    """What a command says where no terminal shows its bar: of a run, a line now and then, with the time that is left."""

    def __init__(self, story: Story) -> None:
        self._story = story
        self._shown = sys.stderr if story.console.json else sys.stdout
        self._next = time.monotonic() + _EVERY

    def write(self, text: str, /) -> int:
        if text.startswith("update ") and time.monotonic() >= self._next:
            self._next = time.monotonic() + _EVERY
            print(f"         [{self._story.clock()}] {text.strip()}", file=self._shown, flush=True)
        return len(text)


def _last_update(run: Path) -> int:
    return max((row["update"] for row in Run(run).metrics("train")), default=-1)
