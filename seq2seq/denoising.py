"""The data side of BART: a text is corrupted, and its target is the whole text.

Lewis et al. 2019, section 2.2, with the procedures of facebookresearch/fairseq (`DenoisingDataset`). Each of the five noises has a share
of its own, and what is not 0 is applied in the order of the reference: sentences are permuted, tokens masked, deleted, spans infilled,
and last the text is rotated. Special tokens at the ends stay where they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..shared.documents import documents
from ..shared.errors import raise_problems
from ..shared.sample import Sample
from ..shared.tokenizer import Tokenizer
from .teacher_forcing import Seq2SeqExample, Seq2SeqObjective, SmoothingSettings

FULL_STOPS = (".", "。")


@dataclass(frozen=True)
class DenoisingSettings(SmoothingSettings):
    """What of the objective can be set; the defaults are BART's choice, infilling and permuted sentences."""

    max_length: int | None = None
    """Tokens of a text, special ones included; longer documents are cut into several. None takes the model's positions."""
    infill_ratio: float = 0.3
    """Share of the words in spans of which each becomes one mask token ("text infilling")."""
    poisson_lambda: float = 3.0
    """Words of a span, the mean of a Poisson distribution. A span of none is an insertion of a mask token."""
    permute_sentence_ratio: float = 1.0
    """Share of the sentences that change places with each other."""
    mask_ratio: float = 0.0
    """Share of the tokens that become mask tokens, each alone ("token masking")."""
    delete_ratio: float = 0.0
    """Share of the tokens that are left out ("token deletion")."""
    rotate_prob: float = 0.0
    """Probability that a text begins at a token drawn from it, and ends with the tokens before ("document rotation")."""
    random_ratio: float = 0.0
    """Share of the mask tokens, of masking and infilling, that are random tokens instead."""

    SHARES: ClassVar[tuple[str, ...]] = ("infill_ratio", "permute_sentence_ratio", "mask_ratio", "delete_ratio", "rotate_prob",
                                         "random_ratio")

    def __post_init__(self) -> None:
        """Check the ranges."""
        problems = [f"{name} is {getattr(self, name)}, expected a share from 0 to 1"
                    for name in self.SHARES if not 0 <= getattr(self, name) <= 1]
        if self.delete_ratio == 1:
            problems.append("delete_ratio is 1, which leaves nothing of a text: use a share below 1")
        if not 0 < self.poisson_lambda <= 64:
            problems.append(f"poisson_lambda is {self.poisson_lambda}, expected a mean number of words above 0 and at most 64")
        if self.max_length is not None and self.max_length < 8:
            problems.append(f"max_length is {self.max_length}, expected at least 8 tokens")
        raise_problems([*problems, *self.smoothing_problems()])


class DenoisingObjective(Seq2SeqObjective):
    """A corrupted text, and the text.

    Args:
        tokenizer: with tokens for padding, masking and the end of a text.
        settings: which noise.
        max_length: tokens of a text, special ones included.
        start_id: what the decoder starts from.
    """

    def __init__(self, tokenizer: Tokenizer, settings: DenoisingSettings, max_length: int, start_id: int) -> None:
        super().__init__(tokenizer, start_id)
        (self.mask_id,) = tokenizer.need("denoising", "mask")
        self.settings = settings
        self.max_length = max_length
        ends = {tokenizer.encode(before + stop, add_special_tokens=False)[-1] for stop in FULL_STOPS for before in ("", " ", "a")}
        self.full_stops = np.array(sorted(i for i in ends if tokenizer.decode([i]).strip() in FULL_STOPS), dtype=np.int64)
        self.words = np.setdiff1d(np.arange(tokenizer.vocab_size), list(tokenizer.special_ids))

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterator[Seq2SeqExample]:
        """Yield the pieces of a text, or of each document of a row."""
        room = self.max_length - self.specials
        for document in documents(sample, self.tokenizer):
            for start in range(0, len(document), room):
                piece = document[start:start + room]
                yield Seq2SeqExample(self.framed(self.corrupt(piece, rng)), self.framed(piece))

    def corrupt(self, ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A text [S] with all its noise, int64 [S']; at least one token long."""
        s = self.settings
        if s.permute_sentence_ratio:
            ids = permute_sentences(ids, sentence_ends(ids, self.full_stops), s.permute_sentence_ratio, rng)
        if s.mask_ratio:
            ids = self._mask(ids, _places(len(ids), s.mask_ratio, rng), rng)
        if s.delete_ratio:
            ids = np.delete(ids, _places(len(ids), min(s.delete_ratio, 1 - 1 / len(ids)), rng))
        if s.infill_ratio:
            ids = self._infill(ids, rng)
        if s.rotate_prob and rng.random() < s.rotate_prob:
            ids = np.roll(ids, -int(rng.integers(len(ids))))
        return ids

    def _mask(self, ids: np.ndarray, places: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Mask tokens at some places, of which a share are random tokens."""
        ids = ids.copy()
        ids[places] = self.mask_id
        if self.settings.random_ratio:
            drawn = places[rng.random(len(places)) < self.settings.random_ratio]
            ids[drawn] = rng.choice(self.words, len(drawn))
        return ids

    def _infill(self, ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Spans of words become one mask token each, and spans of no word are mask tokens between words."""
        starts = self.tokenizer.whole_words(ids)
        starts[0] = True
        words = np.flatnonzero(starts)
        lengths = span_lengths(math.ceil(len(words) * self.settings.infill_ratio), self.settings.poisson_lambda, rng)
        spans, inserted = lengths[lengths > 0], int((lengths == 0).sum())
        first = rng.permutation(len(words))[:len(spans)]
        keep = np.ones(len(ids), dtype=bool)
        borders = np.append(words, len(ids))
        for begin, end in zip(words[first], borders[np.minimum(first + spans, len(words))]):
            keep[begin + 1:end] = False  # a span that begins within another one is lost in it, as in the reference
        noisy = self._mask(ids, words[first], rng)[keep]
        return self._insert(noisy, min(inserted, self.max_length - self.specials - len(noisy)), rng)

    def _insert(self, ids: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """Mask tokens at places of the longer text, drawn without replacement."""
        places = rng.permutation(len(ids) + count)[:count]
        out = np.empty(len(ids) + count, dtype=np.int64)
        old = np.ones(len(out), dtype=bool)
        old[places] = False
        out[old] = ids
        out[places] = self.mask_id
        return self._mask(out, places, rng)


def span_lengths(budget: int, mean: float, rng: np.random.Generator) -> np.ndarray:
    """Poisson lengths that add up to `budget` words: drawn until they do, the last one shortened; int64 [N], some of them 0."""
    lengths = np.zeros(0, dtype=np.int64)
    while lengths.sum() < budget:
        lengths = np.concatenate([lengths, rng.poisson(mean, max(budget, 1))])
    ends = lengths.cumsum()
    last = int(np.searchsorted(ends, budget))
    lengths = lengths[:last + 1].copy()
    if len(lengths):
        lengths[-1] -= ends[last] - budget
    return lengths


def sentence_ends(ids: np.ndarray, full_stops: np.ndarray) -> np.ndarray:
    """Where each sentence ends (the place behind it): after a run of full stops, and where the text ends; int64 [N], ascending."""
    stops = np.isin(ids, full_stops)
    last = np.append(stops[:-1] & ~stops[1:], True)
    return np.flatnonzero(last) + 1


def permute_sentences(ids: np.ndarray, ends: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A share of the sentences, drawn at random, change places with each other."""
    sentences = np.split(ids, ends[:-1])
    moved = rng.permutation(len(sentences))[:math.ceil(len(sentences) * share)]
    order = np.arange(len(sentences))
    order[moved] = moved[rng.permutation(len(moved))]
    return np.concatenate([sentences[i] for i in order])


def _places(length: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """A share of the places of a text, rounded at random to a whole number, drawn without replacement."""
    exact = length * share
    return rng.permutation(length)[:int(exact) + (rng.random() < exact % 1)]
