"""Places to predict that are chosen by words: whole words, n-grams of them, spans.

Where words begin, the data says (`Sample.units`), else `Tokenizer.whole_words`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..shared.documents import KNOWN, apart
from ..shared.sample import Sample
from ..shared.tokenizer import Tokenizer


def unit_starts(units: np.ndarray, level: int, words: np.ndarray, maskable: np.ndarray) -> np.ndarray:
    """Where units begin in a framed sequence, bool [S]: as the data says, elsewhere as the tokenizer does; behind a special token always.

    Args:
        units: uint8 [S], from `apart`.
        level: what units are, `WORD` or `ENTITY`.
        words: bool [S], where words begin by the tokenizer.
        maskable: bool [S], False at special tokens.
    """
    starts = np.where(units & KNOWN, units & level, words) > 0
    starts[1:] |= ~maskable[:-1]
    return starts


def word_bounds(starts: np.ndarray, maskable: np.ndarray) -> np.ndarray:
    """Where the words of a sequence begin and end, int64 [W, 2], in order.

    Args:
        starts: bool [S], where a word starts; each special token is a word of its own.
        maskable: bool [S], False at special tokens, which belong to no word here.
    """
    begins = np.flatnonzero(starts)
    bounds = np.stack([begins, np.append(begins[1:], len(starts))], axis=1)
    return bounds[maskable[begins]]


def choose_words(bounds: np.ndarray, count: int, rng: np.random.Generator, shares: Sequence[float] = (1.0,)) -> np.ndarray:
    """At most `count` places, by whole words or by n-grams of words: int64 [M], ascending.

    Words come in random order, and each is the first of an n-gram whose n is drawn from `shares`. One that would exceed `count` is
    shortened word by word; where even its first word does, it is skipped. So is an n-gram that touches a chosen one. With one share
    this is the whole-word masking of google-research/bert, with more that of google-research/albert (`create_masked_lm_predictions`);
    only that there n-grams run over a separator between texts, and here they end at it.

    Args:
        bounds: int64 [W, 2], from `word_bounds`.
        count: how many places at most, such as `prediction_count`.
        rng: the sample's generator.
        shares: of n-grams of 1, 2, ... words; their sum is 1. Where fewer words follow, the shares of those n that are possible.
    """
    longest, limits = len(shares), np.cumsum(shares)
    chosen = np.zeros(int(bounds[-1, 1]) if len(bounds) else 0, dtype=bool)
    left = count
    for first in rng.permutation(len(bounds)).tolist():
        if not left:
            break
        ahead = 1
        while ahead < longest and first + ahead < len(bounds) and bounds[first + ahead, 0] == bounds[first + ahead - 1, 1]:
            ahead += 1
        drawn = 0 if ahead == 1 else int(np.searchsorted(limits[:ahead - 1], rng.random() * limits[ahead - 1], side="right"))
        begin = int(bounds[first, 0])
        ends = bounds[first:first + drawn + 1, 1]
        fitting = ends[ends - begin <= left]
        if len(fitting) and not chosen[begin:fitting[-1]].any():
            chosen[begin:fitting[-1]] = True
            left -= int(fitting[-1]) - begin
    return np.flatnonzero(chosen)


def choose_units(bounds: np.ndarray, mask_prob: float, rng: np.random.Generator, most: int | None = None) -> np.ndarray:
    """The places of `mask_prob` of the units, at least one unit, each taken whole: int64 [M], ascending.

    Args:
        bounds: int64 [W, 2], from `word_bounds`.
        mask_prob: the fraction of the units.
        rng: the sample's generator.
        most: of the places; units that would exceed it are left out.
    """
    chosen = bounds[rng.permutation(len(bounds))[:max(1, round(len(bounds) * mask_prob))]]
    if most is not None:
        chosen = chosen[np.cumsum(chosen[:, 1] - chosen[:, 0]) <= most]
    chosen = chosen[np.argsort(chosen[:, 0])]
    return np.concatenate([np.arange(begin, end) for begin, end in chosen.tolist()] or [np.zeros(0, dtype=np.int64)])


def units_of(bounds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The number of the word that each place is in, int64 [M], from 0 and without gaps.

    Args:
        bounds: int64 [W, 2], from `word_bounds`.
        positions: int64 [M], ascending.
    """
    words = np.searchsorted(bounds[:, 0], positions, side="right")
    return np.unique(words, return_inverse=True)[1]


def geometric_shares(p: float, longest: int) -> tuple[float, ...]:
    """Shares of the lengths 1 ... `longest` in proportion to p (1 - p)^(length - 1): SpanBERT's lengths of spans, in words."""
    weights = [(1 - p) ** length for length in range(longest)]
    return tuple(weight / sum(weights) for weight in weights)


def choose_spans(bounds: np.ndarray, count: int, rng: np.random.Generator, shares: Sequence[float]) -> np.ndarray:
    """`count` places, or all where there are fewer, in spans of words: int64 [M], ascending.

    As in facebookresearch/SpanBERT (`PairWithSpanMaskingScheme`): a length is drawn in words, then a token; where that is not chosen yet,
    the span begins with its word. Spans may overlap, and the last one is cut where `count` is reached, also within a word.

    Args:
        bounds: int64 [W, 2], from `word_bounds`.
        count: how many places.
        rng: the sample's generator.
        shares: of spans of 1, 2, ... words; their sum is 1.
    """
    limits, sizes = np.cumsum(shares), bounds[:, 1] - bounds[:, 0]
    ends = np.cumsum(sizes)
    places = np.repeat(bounds[:, 0] - ends + sizes, sizes) + np.arange(sizes.sum())
    word = np.repeat(np.arange(len(bounds)), sizes)
    chosen = np.zeros(len(places), dtype=bool)
    left = min(count, len(places))
    while left:
        length = int(np.searchsorted(limits[:-1], rng.random() * limits[-1], side="right")) + 1
        anchor = int(rng.integers(len(places)))
        if not chosen[anchor]:
            first = int(word[anchor])
            span = np.arange(int(ends[first] - sizes[first]), int(ends[min(first + length, len(bounds)) - 1]))
            new = span[~chosen[span]][:left]
            chosen[new] = True
            left -= len(new)
    return places[chosen]


def spans_of(positions: np.ndarray) -> np.ndarray:
    """The number of the span that each place is in, int64 [M]: neighbouring places are one span."""
    return np.cumsum(np.diff(positions, prepend=positions[:1]) > 1)


def single_characters(tokenizer: Tokenizer) -> np.ndarray:
    """Which token ids are one Chinese character, bool [V]."""
    found = np.zeros(tokenizer.vocab_size, dtype=bool)
    for token, number in tokenizer.vocabulary().items():
        plain = token.removeprefix("##").removeprefix("▁")
        found[number] = len(plain) == 1 and any(first <= plain <= last for first, last in CHINESE)
    return found


CHINESE = (("\u3400", "\u4dbf"), ("\u4e00", "\u9fff"), ("\uf900", "\ufaff"), ("\U00020000", "\U0003ffff"))
"""Blocks of Unicode with Chinese characters."""


def need_words(sample: Sample, ids: np.ndarray, single: np.ndarray, what: str) -> None:
    """Refuse Chinese text where nobody says what its words are: most tokens are one character, and the data knows no words.

    Args:
        sample: where the text is from.
        ids: int64 [T], from `documents` with units.
        single: from `single_characters`.
        what: what needs words, for the message ("MacBERT").
    """
    plain, units = apart(ids)
    if not units.any() and single[plain].mean() > 0.5:
        raise sample.bad(f"{what} needs to know where the words of this Chinese text begin: pack it again with --segment jieba, or from "
                         "words with --kind words (`polymodal pack`)")
