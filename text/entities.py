"""Entities as tags of words: BIO (IOB2), BIOES (IOBES) and their older relative IOB1.

    BIO     John/B-PER Smith/I-PER lives/O in/O Paris/B-LOC
    BIOES   John/B-PER Smith/E-PER lives/O in/O Paris/S-LOC

What is read off a sequence of tags follows conlleval.pl of the CoNLL shared tasks (Tjong Kim Sang and De Meulder, 2003,
https://aclanthology.org/W03-0419): a sequence that breaks off still has entities, as a network may write one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_TAG = re.compile(r"([BIES])-(.+)", re.DOTALL)
Entity = tuple[str, int, int]
"""Type, first word, the word after the last."""


def are_entities(tags: Iterable[str]) -> bool:
    """Whether tags mark entities: each is O or has a prefix, and some has one. Others (parts of speech) are classes of words alone."""
    found = set(tags) - {"O"}
    return bool(found) and all(_TAG.fullmatch(tag) for tag in found)


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of a sentence, as conlleval counts them."""
    found: list[Entity] = []
    before, kind_before, first = "O", "", 0
    for place, tag in enumerate([*tags, "O"]):
        match = _TAG.fullmatch(tag)
        mark, kind = (match[1], match[2]) if match else ("O", "")
        ends = before != "O" and (before in "ES" or mark in "BSO" or kind != kind_before)
        if ends:
            found.append((kind_before, first, place))
        if mark != "O" and (ends or before == "O"):
            first = place
        before, kind_before = mark, kind
    return found


def breaks_off(tags: Sequence[str]) -> str | None:
    """Where a sequence is no whole BIO or BIOES one, in words; None where it is, or where the tags mark no entities.

    It is read as BIOES where it has an E or an S. In BIO (IOB2) an I follows a B or an I of its type.
    """
    if not are_entities(tags):
        return None
    marks = [(m[1], m[2]) if (m := _TAG.fullmatch(tag)) else ("O", "") for tag in tags]
    with_ends = any(mark in "ES" for mark, _ in marks)
    for place, ((before, kind_before), (mark, kind)) in enumerate(zip([("O", ""), *marks], [*marks, ("O", "")], strict=True)):
        goes_on = mark in "IE" and before in "BI" and kind == kind_before
        if mark in "IE" and not goes_on:
            return f"{tags[place]} of word {place + 1} continues nothing: expected B-{kind} before it (BIO, which is IOB2, or BIOES)"
        if with_ends and before in "BI" and not goes_on:
            return f"{tags[place - 1]} of word {place} is not ended: expected E-{kind_before} after it, or S-{kind_before} in its place"
    return None


def counts(truth: Sequence[str], guess: Sequence[str]) -> tuple[int, int, int]:
    """How many entities of a sentence are found with type and borders, how many are guessed, and how many there are."""
    there, found = set(entities(truth)), set(entities(guess))
    return len(there & found), len(found), len(there)
