"""Cleaning that happens before a tokenizer sees the text, and where the cleaned characters came from."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from difflib import SequenceMatcher


def open_clip_clean(text: str) -> str:
    """What open_clip does to a caption: mend encoding, unescape HTML twice, single spaces, lower case."""
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()


CLEANERS: Mapping[str, Callable[[str], str]] = {"open_clip": open_clip_clean}
"""By the name that `tokenizer_config.json` records."""


def spans(original: str, cleaned: str) -> list[tuple[int, int]]:
    """For every character of `cleaned`, the span of `original` it came from.

    Characters that cleaning left alone or only changed in case map to themselves; a replaced stretch
    maps to the whole stretch it replaces.
    """
    out: list[tuple[int, int]] = []
    # lower() may lengthen a character ("İ"): compare character by character folds, not whole strings
    folded = [c.lower() for c in original]
    for _, a0, a1, b0, b1 in SequenceMatcher(None, folded, list(cleaned), autojunk=False).get_opcodes():
        same = a1 - a0 == b1 - b0
        out += [(a0 + i, a0 + i + 1) if same else (a0, a1) for i in range(b1 - b0)]
    return out
