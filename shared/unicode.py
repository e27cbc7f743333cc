"""Strings that are no text: Python's can hold halves of characters, which no tokenizer and no file takes."""

from __future__ import annotations


def half_character(text: str) -> str | None:
    r"""What is wrong with a text that holds a lone surrogate, for a message; None where it holds none.

    They come from texts cut inside a pair (half an emoji as ``\ud83d`` in JSON) and from arguments of bytes that are not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half a character ({ascii(text[error.start])[1:-1]} at place {error.start}), which is not Unicode"
    return None
