"""Where the sentences of a text are: a few rules, no model.

A sentence ends at `.`, `!`, `?` or `…` (with closing quotes and brackets) before a space and something that can begin one,
at their Chinese and Japanese forms, and at an empty line. A full stop after an abbreviation, an initial or a number of a
list ends none. So "He met Dr. Li. They talked." are two; an unknown abbreviation before a capital letter makes one too
many, which does no harm where texts are cut into pieces.
"""

from __future__ import annotations

import re
from itertools import pairwise

_LISTED = (
    "mr mrs ms dr prof st jr sr vs etc fig figs eq eqs sec ch nos vol pp ed eds al ca cf approx dept est gen gov inc ltd co corp "
    "rev sgt col capt lt jan feb mar apr jun jul aug sep sept oct nov dec e.g i.e a.m p.m u.s u.k")
ABBREVIATIONS = frozenset(_LISTED.split())
_BREAK = re.compile(r"""\n[ \t\r]*\n\s*|(?<=[。！？])\s*|(?P<mark>[.!?…]+)["'”’»)\]]*\s+(?=["'“‘«(\[¿¡]*[^\W_a-z]|[-*•#>`])""")
_WORD = re.compile(r"[\w.]*\w$")


def sentences(text: str) -> list[tuple[int, int]]:
    """The span (start, end) of each sentence, without the space around it."""
    borders = [0]
    for found in _BREAK.finditer(text):
        if found["mark"] == "." and _abbreviated(text[borders[-1]:found.start("mark")]):
            continue
        borders.append(found.end())
    borders.append(len(text))
    spans = [(start + len(part) - len(part.lstrip()), start + len(part.rstrip()))
             for start, end in pairwise(borders) if (part := text[start:end]).strip()]
    return [(start, end) for start, end in spans if end > start]


def _abbreviated(before: str) -> bool:
    """Whether a full stop behind `before` belongs to its last word."""
    found = _WORD.search(before[-40:])
    if found is None:
        return False
    word = found.group()
    alone = not before[:len(before) - len(word)].strip()  # "1. First", but not "in 1990. Then"
    return word.lower() in ABBREVIATIONS or (len(word) == 1 and word.isupper() and word != "I") or (word.isdigit() and alone)
