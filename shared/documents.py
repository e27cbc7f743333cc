"""The documents of a sample, as every objective over texts reads them, and where their words begin, where the data says so."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .sample import ENTITY, WORD, Sample
from .tokenizer import Tokenizer

KNOWN = 4
"""Bit of a token's units beside `WORD` and `ENTITY`: the data says whether a unit begins here."""
_SHIFT = 32


def documents(sample: Sample, tokenizer: Tokenizer, *, units: bool = False) -> list[np.ndarray]:
    """The documents of a sample as token ids, int64 [T] each, without the special tokens at their edges.

    A text is one document. A pre-tokenised row holds several; those that are special tokens only are left out.

    Args:
        sample: the sample.
        tokenizer: the vocabulary.
        units: keep where words and entities begin in the upper half of each id, where the data says so. There it stays wherever ids are
            cut, joined and framed; `apart` takes both apart.

    Raises:
        BadSample: no document is left.
    """
    if not sample.tokenized:
        (ids,) = text_ids(sample, tokenizer, [sample.text()], units=units)
        if not len(ids):
            raise sample.bad("the tokenizer makes no tokens of the text")
        return [ids]
    roles = (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.bos_id, tokenizer.eos_id)
    edges = [i for i in roles if i is not None]
    known = sample.units() if units else None
    found: list[np.ndarray] = []
    begin = 0
    for document in row_documents(sample):
        inside = np.flatnonzero(~np.isin(document, edges))
        if len(inside):
            kept = slice(inside[0], inside[-1] + 1)
            found.append(document[kept] if known is None else with_units(document[kept], known[begin:][kept]))
        begin += len(document)
    if not found:
        raise sample.bad("the row holds special tokens only")
    return found


def row_documents(sample: Sample) -> list[np.ndarray]:
    """The documents of a pre-tokenised row as they stand, int64 [T] each: `pack` has framed or ended them."""
    ids, lengths = sample.tokens()
    return np.split(ids, np.cumsum(lengths)[:-1])


def text_ids(sample: Sample, tokenizer: Tokenizer, parts: Sequence[str], *, units: bool = False) -> list[np.ndarray]:
    """Token ids of parts of a sample's text in their order, int64 [T] each, without special tokens; `units` as in `documents`."""
    known = sample.units() if units else None
    if known is None:
        return [np.asarray(ids, dtype=np.int64) for ids in tokenizer.encode_batch(parts, add_special_tokens=False)]
    text, at, found = sample.text(), 0, list[np.ndarray]()
    for part in parts:
        at = text.index(part, at)
        found.append(with_units(*token_units(tokenizer, part, known[at:at + len(part)])))
        at += len(part)
    return found


def token_units(tokenizer: Tokenizer, text: str, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of a text without special tokens, int64 [T], and where units begin among them, uint8 [T].

    A unit begins with the first token that ends behind its first character: where a token holds the end of one word and the beginning of
    the next, that is this token.

    Args:
        tokenizer: the vocabulary.
        text: the text.
        units: uint8, for each character, as `Sample.units`.
    """
    ids, places = tokenizer.offsets(text)
    ends = np.maximum.accumulate(np.array([end for _, end in places], dtype=np.int64))
    found = np.zeros(len(ids), dtype=np.uint8)
    for bit in (WORD, ENTITY):
        tokens = np.searchsorted(ends, np.flatnonzero(units & bit), side="right")
        found[tokens[tokens < len(ids)]] |= bit
    return np.asarray(ids, dtype=np.int64), found


def apart(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ids int64 [S] of `documents`, and their units uint8 [S]: `WORD`, `ENTITY` and `KNOWN`, or 0 where the data says nothing."""
    return ids & ((1 << _SHIFT) - 1), (ids >> _SHIFT).astype(np.uint8)


def with_units(ids: np.ndarray, units: np.ndarray) -> np.ndarray:
    """What `apart` takes apart: ids int64 [S], and uint8 [S] of what the data says."""
    return ids | ((units.astype(np.int64) | KNOWN) << _SHIFT)
