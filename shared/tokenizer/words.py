"""Where words begin, read off the spelling of tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Rule = Callable[[str], tuple[bool, bool]]
"""Maps a token to (it starts a word, the token after it starts a word)."""

# Byte-level BPE spells white bytes shifted by 256: byte 32 is "Ġ". A space belongs to the word after it; other white
# bytes stand alone, and a word begins behind them.
_BREAKS = tuple(chr(256 + byte) for byte in (9, 10, 11, 12, 13, 28, 29, 30, 31))
_SPACE = "Ġ"


def word_rule(described: dict[str, Any]) -> Rule:
    """The rule of a pipeline, given the parsed `tokenizer.json`."""
    model: dict[str, Any] = described["model"]
    kinds = set(_types(described.get("pre_tokenizer")))
    suffix, prefix = model.get("end_of_word_suffix"), model.get("continuing_subword_prefix")
    if suffix:
        return lambda token: (False, token.endswith(suffix))
    if prefix:
        return lambda token: (not token.startswith(prefix), False)
    if "Metaspace" in kinds:
        return lambda token: (token.startswith("▁"), False)
    if "ByteLevel" in kinds:
        return lambda token: (token.startswith((_SPACE, *_BREAKS)), token.endswith(_BREAKS))
    if model["type"] == "WordLevel" and kinds == {"Split"}:
        return lambda token: (token.isspace(), token.isspace())  # characters: white space separates
    return lambda token: (True, True)


def _types(part: dict[str, Any] | None) -> list[str]:
    """Type names of a pre-tokenizer and of those inside it."""
    if part is None:
        return []
    return [part["type"]] + [name for inner in part.get("pretokenizers", ()) for name in _types(inner)]
