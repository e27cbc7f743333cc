"""Cleaning before a tokenizer sees a text, where the cleaned characters came from, and cleaning of decoded texts."""

from __future__ import annotations

import html
import re
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


_SPACED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")
_UNSURE = re.compile(r"(?: (?:'|n'?|'[vr])?)+\Z")
"""The end of a text that `clean_up` may still change, depending on what follows: beginnings of what it looks for."""


def clean_up(text: str) -> str:
    """A decoded text without the spaces that a vocabulary of words leaves before marks; transformers' ``clean_up_tokenization``."""
    for spaced in _SPACED:
        text = text.replace(spaced, spaced.strip())
    return text


class CleanUp:
    """`clean_up` for a text that comes in pieces: what it gives back joins to `clean_up` of the whole."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, piece: str) -> str:
        """Add a piece; returns what is final now, perhaps nothing."""
        text = self._held + piece
        unsure = _UNSURE.search(text)
        cut = len(text) if unsure is None else unsure.start()
        self._held = text[cut:]
        return clean_up(text[:cut])

    def finish(self) -> str:
        """The rest, when no more pieces come."""
        rest, self._held = clean_up(self._held), ""
        return rest
