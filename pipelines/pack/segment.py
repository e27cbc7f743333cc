"""Where words begin in the texts of samples: said by the data (words and their tags), or found by a segmenter."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np

from ...shared.sample import ENTITY, UNITS_FIELD, WORD
from ...text.entities import entities
from .cells import Record


@cache
def segmenter(name: str) -> Callable[[str], list[str]]:
    """What cuts a text into words, white space among them; together they are the text. `name` is one of `SEGMENTERS`."""
    assert name == "jieba"
    import jieba

    found = jieba.Tokenizer()
    # by itself it would read its dictionary from a file in the common folder for temporary files, where anybody may have put another one
    found.FREQ, found.total = found.gen_pfdict(found.get_dict_file())
    found.initialized = True
    return found.lcut


def segmented(record: Record, name: str) -> Record:
    """A text with where its words begin, as a segmenter finds them."""
    data = record.fields["txt"]
    assert isinstance(data, bytes)
    text = data.decode("utf-8")
    words = segmenter(name)(text)
    assert "".join(words) == text, "a segmenter changed the text"
    units = np.zeros(len(text), dtype=np.uint8)
    units[np.cumsum([0, *map(len, words[:-1])])] = WORD
    return replace(record, fields={**record.fields, UNITS_FIELD: units.tobytes()})


def joined(words: Sequence[str], tags: Sequence[str] | None) -> tuple[str, bytes]:
    """The text of words, and where words and (by BIO or BIOES tags) entities begin, as `Sample.units`.

    There is a space between two words, but not beside characters of scripts that have none (Chinese, Japanese).
    """
    parts, starts, length = list[str](), list[int](), 0
    for before, word in zip(["", *words], words, strict=False):
        if before and not (_has_no_spaces(before[-1]) or _has_no_spaces(word[0])):
            parts.append(" ")
            length += 1
        parts.append(word)
        starts.append(length)
        length += len(word)
    units = np.zeros(length, dtype=np.uint8)
    units[starts] = WORD
    if tags is not None:
        inside = {place for _, first, last in entities(tags) for place in range(first + 1, last)}
        units[[start for place, start in enumerate(starts) if place not in inside]] |= ENTITY
    return "".join(parts), units.tobytes()


def _has_no_spaces(character: str) -> bool:
    """Whether a character is of a script without spaces between words; Korean has them."""
    return unicodedata.east_asian_width(character) in ("W", "F") and not "\uac00" <= character <= "\ud7a3"


def words_of(text: str, units: np.ndarray) -> Iterable[str]:
    """The words of a text, without white space around them; blank ones are left out.

    Args:
        text: the text.
        units: uint8, for each character, as `Sample.units`.
    """
    edges = [0, *np.flatnonzero(units & WORD).tolist(), len(text)]
    return (word for first, last in pairwise(edges) if (word := text[first:last].strip()))
