"""Strings that are not text: Python's can hold halves of characters, which no tokenizer and no file takes, or nothing that can be seen."""

from __future__ import annotations

import unicodedata


def half_character(text: str) -> str | None:
    r"""What is wrong with a text that holds a lone surrogate, for a message; None where it holds none.

    They come from texts cut inside a pair (half an emoji as ``\ud83d`` in JSON) and from arguments of bytes that are not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half a character ({ascii(text[error.start])[1:-1]} at place {error.start}), which is not Unicode"
    return None


def is_blank(text: str) -> bool:
    """Whether a text holds nothing to be read: only spaces of any script (U+00A0, U+3000), controls and marks without a width (U+200B)."""
    return all(c.isspace() or unicodedata.category(c) in ("Cf", "Cc") for c in text)
