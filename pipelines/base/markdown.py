"""Markdown that commands and pages of the documentation share."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

_CODE_WITH_BAR = re.compile(r"`([^`]*\|[^`]*)`")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(_CODE_WITH_BAR.sub(_without_bar, cell) for cell in line)} |\n" for line in lines)


def _without_bar(found: re.Match[str]) -> str:
    """Code in a form that no reader of Markdown takes for the end of a cell."""
    return f"<code>{html.escape(found[1], quote=False).replace('|', '&#124;')}</code>"
