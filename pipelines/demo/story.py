"""The story of a demo: the commands that ran and what they found."""

from __future__ import annotations

import contextlib
import io
import json
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


@dataclass
class Story:
    """What happened, collected for the page and for `--json`."""

    out: Path
    console: Console
    invoke: Callable[[Sequence[str]], object]
    started: float = field(default_factory=time.monotonic)
    commands: list[str] = field(default_factory=list)
    trained_stems: frozenset[str] = frozenset()
    results: dict[str, Any] = field(default_factory=dict)

    def step(self, title: str) -> None:
        """Announce a step with the time since the start."""
        self.console.say(f"[{time.monotonic() - self.started:4.0f} s] {title}")

    def command(self, *arguments: object) -> dict[str, Any]:
        """Run one `polymodal` command and return its JSON result.

        It runs in this process: the same code as on the command line, without importing torch a dozen times.
        """
        words = self._announce(arguments)
        output = io.StringIO()
        lines = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
        try:
            with contextlib.redirect_stdout(output), lines:
                self.invoke([*words, "--json"])
        except UserError as error:
            raise UserError(f"the demo stopped at `{self.commands[-1]}`: {error}") from error
        return json.loads(output.getvalue().strip().splitlines()[-1])

    def command_killed(self, *arguments: object, run: Path, after: int) -> int:
        """Start a `polymodal pretrain` command in a process of its own, and SIGKILL it.

        Args:
            arguments: of the command.
            run: its run directory.
            after: the update that must have been logged.

        Returns:
            The last logged update.
        """
        words = self._announce(arguments)
        line = [sys.executable, "-m", "polymodal", *words]
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while process.poll() is None:
            if _last_update(run) >= after:
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


def _last_update(run: Path) -> int:
    return max((row["update"] for row in Run(run).metrics("train")), default=-1)
