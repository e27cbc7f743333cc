"""`polymodal tag`: the words of texts, and what a network says of them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from ...text.entities import entities
from ...text.tag import Tagger
from ..base.console import Console

_CHINESE = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def words_of(text: str) -> list[tuple[int, int]]:
    """The span (start, end) of each word: what stands between spaces, with punctuation marks and Chinese characters as words of their own.

    A mark between two letters or digits belongs to their word ("it's", "3.5").
    """
    spans: list[tuple[int, int]] = []
    for chunk in re.finditer(r"\S+", text):
        start = chunk.start()
        for place in range(chunk.start(), chunk.end()):
            char, following = text[place], text[place + 1:place + 2]
            inside = start < place and following.isalnum() and not _CHINESE.match(following)
            if _CHINESE.match(char) or (unicodedata.category(char)[0] in "PS" and not inside):
                spans += [(start, place)] * (start < place) + [(place, place + 1)]
                start = place + 1
        if start < chunk.end():
            spans.append((start, chunk.end()))
    return spans


def tag_texts(by: Tagger, texts: Sequence[str], *, batch_size: int, console: Console) -> list[dict[str, Any]]:
    """Each text with its words, their tags, and the entities that they mark: type, text, first character and the one after the last."""
    found: list[dict[str, Any]] = []
    with console.progress("tagging", total=len(texts)) as bar:
        for begin in range(0, len(texts), batch_size):
            part = texts[begin:begin + batch_size]
            spans = [words_of(text) for text in part]
            words = [[text[a:b] for a, b in inside] for text, inside in zip(part, spans, strict=True)]
            for text, inside, mine, tags in zip(part, spans, words, by.answer(words), strict=True):
                row: dict[str, Any] = {"text": text, "words": mine, "tags": tags}
                if by.with_entities:
                    places = [(kind, inside[first][0], inside[last - 1][1]) for kind, first, last in entities(tags)]
                    row["entities"] = [{"type": kind, "text": text[a:b], "start": a, "end": b} for kind, a, b in places]
                found.append(row)
            bar.advance(len(part))
    return found
