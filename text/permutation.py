"""Permutation language modelling, the data side: which tokens are predicted, and in which order (Yang et al., 2019, sections 2.2 to 2.6).

An order is a rank for each token; a token sees what has a lower rank than its reach:

    what is read alone         rank r          reach r + 1     r is the lowest of its half: all see it, it sees no target
    what is predicted          rank r + 1 + n  reach r + 1 + n n is its place in a random permutation of the half
    separators, <cls>          rank r + 1 + n  reach r + 2 + n it sees itself, too

So a mask [S, S] is one comparison, made where it is used; examples hold two numbers for each token. The ranks of the second half begin
above those of the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..shared.documents import apart, with_units
from ..shared.errors import UserError
from ..shared.loss import IGNORE
from ..shared.sample import WORD, Sample
from ..shared.system import Batch, Objective, Preview
from ..shared.tokenizer import Tokenizer
from .words import unit_starts

CONTEXT = 6
"""A span of n tokens, or words, is drawn inside a stretch of n more than this many times n."""
UNSEEN = 1 << 30
"""The rank of padding."""


@dataclass(frozen=True)
class PermutationSettings:
    """What of the objective can be set."""

    one_in: float = 6.0
    """One token of this many is predicted, the paper's K: 85 of 512."""
    max_span: int = 5
    """Tokens of the longest span, or words; n of them are drawn with a probability that falls as 1 / n."""
    whole_words: bool | None = None
    """Whether spans are made of words, as the published code means, or of tokens from the start of a word on, as the paper says. None: of
    words where the data says what these are (`pack --kind words`, `--segment`). True takes the vocabulary's elsewhere."""
    max_length: int | None = None
    """The longest row of tokens that is taken; None takes the rows as they were packed. A sequence has two halves of that length."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.one_in >= 1:
            raise UserError(f"one_in is {self.one_in}, expected 1 or more tokens for each that is predicted")
        if self.max_span < 1:
            raise UserError(f"max_span is {self.max_span}, expected at least 1 token")
        if self.max_length is not None and self.max_length < 8:
            raise UserError(f"max_length is {self.max_length}, expected at least 8 tokens")


def choose_spans(
    starts: np.ndarray, allowed: np.ndarray, count: int, max_span: int, rng: np.random.Generator, *, whole: bool = False
) -> np.ndarray:
    """The tokens of one half that are predicted (`_sample_mask` of the published code): bool [L], `count` of them.

    From left to right: n tokens, n from 1 to `max_span` with probability proportional to 1 / n, somewhere in a stretch of `CONTEXT` n
    tokens and themselves, from the start of a word on. At the end single tokens make up the number.

    With `whole`, words stand for tokens in all of this, in the stretch too: counted in tokens, it would use up the number in the front of
    a row. A span that would exceed the number is shortened word by word. Single tokens come last, where no whole word fits any more.

    Args:
        starts: bool [L], where words begin; with `whole`, one begins at place 0.
        allowed: bool [L], no separators; there must be `count` of these tokens or more.
        count: how many.
        max_span: the longest span.
        rng: the sample's generator.
        whole: spans of words.
    """
    edges = np.append(np.flatnonzero(starts), len(starts)) if whole else np.arange(len(starts) + 1)  # of what spans are made of
    begins = np.arange(len(edges) - 1) if whole else np.flatnonzero(starts)
    before = np.concatenate([[0], np.cumsum(allowed)])[edges]  # allowed tokens before each edge
    taken = np.zeros(len(edges) - 1, dtype=bool)
    shares = 1 / np.arange(1, max_span + 1)
    thresholds = np.cumsum(shares / shares.sum())[:-1]
    at, left = 0, count
    while at < len(taken) and left:
        n = min(1 + int(np.searchsorted(thresholds, rng.random(), side="right")), left)
        skipped = int(rng.integers(CONTEXT * n))
        word = int(np.searchsorted(begins, at + skipped))
        if word == len(begins) or begins[word] + n >= len(taken):
            break
        begin = int(begins[word])
        end = begin + int(np.searchsorted(before[begin + 1:begin + n + 1], before[begin] + left, side="right"))
        taken[begin:end] = True
        left -= int(before[end] - before[begin])
        at = begin + n + CONTEXT * n - skipped
    sizes = np.diff(before)
    others = np.flatnonzero((sizes > 0) & ~taken)
    for other in others[rng.permutation(len(others))].tolist():
        if not left:
            break
        if sizes[other] <= left:
            taken[other] = True
            left -= int(sizes[other])
    chosen = np.repeat(taken, np.diff(edges)) & allowed
    if left:
        rest = np.flatnonzero(allowed & ~chosen)
        chosen[rest[rng.permutation(len(rest))[:left]]] = True
    return chosen


def random_order(predicted: np.ndarray, functional: np.ndarray, lowest: int, rng: np.random.Generator) -> np.ndarray:
    """The ranks of one half (`_local_perm` of the published code), int64 [L], from `lowest` to `lowest` + L.

    Args:
        predicted: bool [L].
        functional: bool [L]: separators and <cls>, which are no text.
        lowest: the rank of what is read alone.
        rng: the sample's generator.
    """
    return np.where(predicted | functional, lowest + 1 + rng.permutation(len(predicted)), lowest)


@dataclass(frozen=True, slots=True)
class PermutationExample:
    """One sequence: the row, and a second half behind it."""

    ids: np.ndarray
    """int64 [S]"""
    token_type_ids: np.ndarray
    """int64 [S]: 0 the row and A, 1 B, 2 <cls>."""
    ranks: np.ndarray
    """int64 [S]"""
    places: np.ndarray
    """int64 [T], ascending: what is predicted."""
    reused: int
    """Tokens of the row, whose states are remembered."""


@dataclass(kw_only=True)
class PermutationBatch(Batch):
    """One sequence of each lane, padded on the right."""

    ids: Tensor
    """[B, S]"""
    token_type_ids: Tensor
    """[B, S]"""
    ranks: Tensor
    """[B, S]; of padding `UNSEEN`."""
    reach: Tensor
    """[B, S]: a token sees what has a lower rank than this."""
    target_rows: Tensor
    """[B, T]: the places that are predicted; 0 where there are no more."""
    targets: Tensor
    """[B, T]: the ids there; -100 where there are no more."""
    reuse: Tensor
    """[B]: first tokens of each sequence, whose states are remembered."""

    def hidden(self) -> Tensor:
        """The order as a mask, bool [B, S, S]: the first token may not see the second."""
        return self.ranks[:, None] >= self.reach[:, :, None]


def end_of_document(tokenizer: Tokenizer) -> int | None:
    """What ends a document: <eod>, or <sep> where the vocabulary has none."""
    eod = tokenizer.token_to_id("<eod>")
    return tokenizer.sep_id if eod is None else eod


class PermutationObjective(Objective[PermutationExample]):
    """Some tokens of two halves, in a random order, each from those before it in that order."""

    sequential = True
    needs_partner = True
    needs_next = True

    def __init__(self, tokenizer: Tokenizer, settings: PermutationSettings, row_length: int = 64) -> None:
        """Make the data side; rows that are not there yet are taken to have `row_length` tokens."""
        self.sep_id, self.cls_id = tokenizer.need("permutation language modelling", "sep", "cls")
        if tokenizer.framing.single.parts[-1][0] != self.cls_id:
            raise UserError("XLNet reads the last token of a text, where this tokenizer does not put its classification token: "
                            "train one with --style xlnet")
        end = end_of_document(tokenizer)
        assert end is not None  # there is a separator
        self.end_id = end
        self.tokenizer = tokenizer
        self.settings = settings
        self.row_length = settings.max_length or row_length

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterator[PermutationExample]:
        """The row, and as many tokens of what follows it: [row | A <sep> B <sep> <cls>]."""
        if not sample.tokenized:
            raise UserError(f"permutation language modelling reads rows of tokens in the order of the text, and {sample.key!r} of "
                            f"{sample.source or 'the data'} is raw text: use `polymodal pack --tokenize TOKENIZER --block 256 --in-order`")
        length = len(sample.tokens()[0])
        if self.settings.max_length is not None and length > self.settings.max_length:
            raise UserError(f"{sample.key!r} of {sample.source or 'the data'} has {length} tokens and objective.max_length is "
                            f"{self.settings.max_length}: pack with --block {self.settings.max_length}, or raise it")
        row = self._text(sample)
        second, kinds = self._second(sample, rng)
        ids, units = apart(np.concatenate([row, second]))
        functional = (ids == self.sep_id) | (ids == self.cls_id)
        if functional[:len(row)].all():
            raise sample.bad("the row holds special tokens only")
        total = max(1, int(len(ids) / self.settings.one_in))
        counts = (total - total // 2, total // 2) if len(second) else (total, 0)
        predicted, ranks, lowest = np.zeros(len(ids), dtype=bool), np.zeros(len(ids), dtype=np.int64), 0
        for part, count in zip((slice(0, len(row)), slice(len(row), len(ids))), counts, strict=True):
            allowed = ~functional[part]
            whole = self.settings.whole_words
            predicted[part] = choose_spans(self._starts(ids[part], units[part]), allowed, min(count, int(allowed.sum())),
                                           self.settings.max_span, rng, whole=bool(units[part].any()) if whole is None else whole)
            ranks[part] = random_order(predicted[part], functional[part], lowest, rng)
            lowest += len(row) + 1
        kinds = np.concatenate([np.zeros(len(row), dtype=np.int64), kinds])
        yield PermutationExample(ids, kinds, ranks, np.flatnonzero(predicted), len(row))

    def _text(self, sample: Sample) -> np.ndarray:
        """The tokens of a row [R], with their units as in `documents`.

        A document ends with <eod> where the vocabulary has it, and begins with nothing.
        """
        ids, _ = sample.tokens()
        units, ends = sample.units(), ids == self.sep_id
        text = np.where(ends, self.end_id, ids)
        if units is not None:
            text = with_units(text, np.where(ends, WORD, units))
        return text[ids != self.cls_id]

    def _starts(self, ids: np.ndarray, units: np.ndarray) -> np.ndarray:
        """Where words begin in a part of a row, bool [L]; what is left of a word that began before it is one, too."""
        starts = unit_starts(units, WORD, self.tokenizer.whole_words(ids), np.ones(len(ids), dtype=bool))
        starts[:1] = True
        return starts

    def _second(self, sample: Sample, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A <sep> B <sep> <cls> and its segments, as long as the next row; nothing where no text follows.

        B goes on from A, or is from elsewhere, each with probability one half.
        """
        following, other = sample.next, sample.partner
        follows = np.zeros(0, dtype=np.int64) if following is None else self._text(following)[:len(following.tokens()[0]) - 3]
        if len(follows) < 2:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        words = np.flatnonzero(self._starts(*apart(follows)))[1:]
        cut = int(words[rng.integers(len(words))]) if len(words) else len(follows) // 2
        a, b = follows[:cut], follows[cut:]
        if rng.random() < 0.5 and other is not None:
            elsewhere = self._text(other)
            begin = int(rng.integers(max(1, len(elsewhere) - len(b) + 1)))
            b = elsewhere[begin:begin + len(b)]
        kinds = np.repeat([0, 1, 2], [len(a) + 1, len(b) + 1, 1])
        return np.concatenate([a, [self.sep_id], b, [self.sep_id], [self.cls_id]]), kinds

    def collate(self, examples: list[PermutationExample]) -> PermutationBatch:
        """Put sequences below each other, padded on the right."""
        return stacked(examples)

    def describe(self, example: PermutationExample) -> Preview:
        """The halves, and what is predicted in which order."""
        order = example.places[np.argsort(example.ranks[example.places])]
        words = ", ".join(f"{p}: {self.tokenizer.show(example.ids[p:p + 1])}" for p in order.tolist())
        return Preview((("row", self.tokenizer.show(example.ids[:example.reused])),
                        ("second half", self.tokenizer.show(example.ids[example.reused:])), ("predict, in this order", words)))


def stacked(examples: list[PermutationExample]) -> PermutationBatch:
    """Sequences below each other, padded on the right."""
    ranks = _padded([e.ranks for e in examples], UNSEEN)
    reach = ranks + 1
    for row, example in zip(reach, examples, strict=True):
        row[example.places] -= 1
    return PermutationBatch(
        counts={"targets": sum(len(e.places) for e in examples)}, tokens=sum(len(e.ids) for e in examples),
        ids=torch.from_numpy(_padded([e.ids for e in examples], 0)),
        token_type_ids=torch.from_numpy(_padded([e.token_type_ids for e in examples], 0)),
        ranks=torch.from_numpy(ranks), reach=torch.from_numpy(reach),
        target_rows=torch.from_numpy(_padded([e.places for e in examples], 0)),
        targets=torch.from_numpy(_padded([e.ids[e.places] for e in examples], IGNORE)),
        reuse=torch.tensor([e.reused for e in examples]))  # fmt: skip


def _padded(rows: list[np.ndarray], filling: int) -> np.ndarray:
    """Rows below each other, int64 [B, longest]."""
    out = np.full((len(rows), max(map(len, rows))), filling, dtype=np.int64)
    for place, row in zip(out, rows, strict=True):
        place[:len(row)] = row
    return out
