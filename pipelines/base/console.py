"""What commands print: people read lines and bars, programs read one JSON object at the end."""

from __future__ import annotations

import math
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

from .files import json_line


class Bar(Protocol):
    """A running progress bar."""

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Move on by `amount`; `note` is shown after the bar."""
        ...


class _Silent:
    def advance(self, amount: float = 1, note: str = "") -> None: ...


class Console:
    """The output of one command.

    With `json=True` everything for people goes to stderr, and the last line on stdout is one JSON
    object. Bars appear on terminals only, so logs stay readable.
    """

    def __init__(self, json: bool = False, quiet: bool = False) -> None:
        """Write for programs with `json`; `quiet` leaves out lines and bars."""
        self.json = json
        self.quiet = quiet

    def say(self, line: str = "") -> None:
        """Print a line for people."""
        if not self.quiet:
            _print(line, sys.stderr if self.json else sys.stdout)

    def warn(self, line: str) -> None:
        """Print a warning to stderr."""
        _print(f"warning: {line}", sys.stderr)

    @contextmanager
    def progress(self, title: str, total: float | None = None) -> Generator[Bar]:
        """Show a progress bar on stderr while the block runs, if that is a terminal."""
        if self.quiet or not sys.stderr.isatty():
            yield _Silent()
            return
        from rich.console import Console as Rich
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
                   TextColumn("{task.fields[note]}"))
        with Progress(*columns, console=Rich(stderr=True), transient=False) as progress:
            task = progress.add_task(title, total=total, note="")

            class _Bar:
                def advance(self, amount: float = 1, note: str = "") -> None:
                    if note:
                        progress.update(task, advance=amount, note=note)
                    else:
                        progress.update(task, advance=amount)

            yield _Bar()

    def finish(self, result: Mapping[str, Any], text: str | None = None) -> None:
        """Print the command's result: the JSON object, or `text` for people."""
        if self.json:
            _print(json_line(finite(result)).translate(_SEPARATORS), sys.stdout)
        elif text is not None:
            _print(text, sys.stdout)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table for people: each row as a line, its cells below each other. A character of some scripts is two columns wide, or none."""
    from rich.cells import cell_len

    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _print(text: str, file: TextIO) -> None:
    """Print, whatever names of files stand in the text: bytes that are not UTF-8 come as escapes."""
    try:
        print(text, file=file, flush=True)
    except UnicodeEncodeError:
        encoding = file.encoding or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=file, flush=True)


_SEPARATORS = {ord(mark): f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029"}
"""What some readers take for the end of a line, as JSON's escapes: the result stays one line for all of them."""


def finite(value: Any) -> Any:
    """`value` with NaN and infinities as None, so that the output is JSON that every parser reads."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return value
