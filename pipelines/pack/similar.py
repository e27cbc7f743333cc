"""Words that are used alike in a corpus, for MacBERT's table of similar words (`text/similar.py` reads it).

Levy, Goldberg and Dagan, "Improving Distributional Similarity with Lessons Learned from Word Embeddings", 2015.
https://aclanthology.org/Q15-1016: positive pointwise mutual information of words within a window, with smoothed counts of contexts,
reduced by a truncated SVD; similar words are those with the largest cosine. Vectors of word2vec or GloVe can be brought instead.

Memory is bounded by the size of the vocabulary: at most a number for each pair of its words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ...shared.errors import UserError
from ...shared.sample import Sample
from ...shared.tokenizer import Tokenizer
from ...text.words import CHINESE
from .corpus import iterate_samples
from .segment import segmenter, words_of
from .settings import Reading

_WORD = re.compile(r"\w+|[^\w\s]")
_MOST_WORDS = 2_000_000
"""Different words that are counted at once; beyond that, the rarest are forgotten."""
_CHUNK = 4_000_000
"""Pairs that are collected before they are added up."""


@dataclass(frozen=True)
class SimilarSettings:
    """How words are compared."""

    size: int = 20_000
    """Words of the vocabulary: the most frequent ones."""
    min_count: int = 5
    """Rarer words are left out."""
    window: int = 5
    """Words to each side that belong to a word's context."""
    dimensions: int = 100
    """Numbers of a vector."""
    top: int = 10
    """Similar words of a word."""
    least: float = 0.3
    """The smallest cosine of similar words."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("size", "min_count", "window", "dimensions", "top"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 1")


def corpus_vectors(sources: Sequence[str | Path], reading: Reading, settings: SimilarSettings,
                   warn: Callable[[str], None] = lambda line: None) -> tuple[list[str], np.ndarray]:
    """The words of a corpus, the most frequent first, and their vectors, float32 [V, D]. It is read twice.

    Args:
        sources: as in `iterate_samples`.
        reading: how they are read.
        settings: how words are compared.
        warn: told how many files are not read.
    """
    counts: Counter[str] = Counter()
    least, plain = 0, replace(reading, segment=None)  # words are found below, in data sets, too
    for sample in iterate_samples(sources, plain, warn):
        counts.update(_words(sample, reading.segment))
        while len(counts) > _MOST_WORDS:
            least += 1
            counts = Counter({word: n for word, n in counts.items() if n > least})
    known = sorted((word for word, n in counts.items() if n >= settings.min_count and any(c.isalnum() for c in word)),
                   key=lambda word: (-counts[word], word))[:settings.size]
    if len(known) < 3:
        raise UserError(f"the sources hold {len(known)} words that occur {settings.min_count} times or more: give more text, or lower "
                        "--min-count")
    texts = (list(_words(sample, reading.segment)) for sample in iterate_samples(sources, plain))
    pairs = _count_pairs(texts, known, settings.window)
    return known, _reduced(*pairs, len(known), settings.dimensions)


def _words(sample: Sample, segment: str | None) -> Iterable[str]:
    """The words of a text: of the data, of a segmenter, or what stands between spaces and marks."""
    text, units = sample.text(), sample.units()
    if units is not None:
        return words_of(text, units)
    if segment is not None:
        return filter(None, map(str.strip, segmenter(segment)(text)))
    chinese = sum(any(first <= c <= last for first, last in CHINESE) for c in text)
    if chinese > len(text) / 2:
        raise sample.bad("nothing says where the words of this Chinese text begin: give --segment jieba, or words with --kind words")
    return _WORD.findall(text)


def _count_pairs(texts: Iterable[list[str]], known: Sequence[str], window: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of words within a window, each as word x V + other word, int64 [P] ascending, and how often each is there, float64 [P]."""
    size, numbers = len(known), {word: number for number, word in enumerate(known)}
    keys, counts = np.zeros(0, dtype=np.int64), np.zeros(0)
    waiting, total = list[np.ndarray](), 0

    def added() -> tuple[np.ndarray, np.ndarray]:
        found, inverse = np.unique(np.concatenate([keys, *waiting]), return_inverse=True)
        return found, np.bincount(inverse, np.concatenate([counts, np.ones(total)]), minlength=len(found))

    for text in texts:
        ids = np.array([numbers.get(word, -1) for word in text], dtype=np.int64)
        for distance in range(1, min(window, len(ids) - 1) + 1):
            a, b = ids[:-distance], ids[distance:]
            both = (a >= 0) & (b >= 0)
            waiting += [a[both] * size + b[both], b[both] * size + a[both]]
            total += 2 * int(both.sum())
        if total > _CHUNK:
            keys, counts = added()
            waiting, total = [], 0
    return added()


def _reduced(keys: np.ndarray, counts: np.ndarray, size: int, dimensions: int) -> np.ndarray:
    """Vectors of the words, float32 [V, D]: U sqrt(S) of the positive pointwise mutual information, contexts smoothed by 3/4."""
    if not len(keys):
        raise UserError("no two words of the vocabulary stand near each other: give longer texts, or lower --min-count")
    rows, columns = keys // size, keys % size
    words, contexts = np.bincount(rows, counts, minlength=size), np.bincount(columns, counts, minlength=size) ** 0.75
    information = np.log(counts * contexts.sum() / (words[rows] * contexts[columns]))
    kept = information > 0
    matrix = torch.sparse_coo_tensor(torch.from_numpy(np.stack([rows[kept], columns[kept]])), torch.from_numpy(information[kept]).float(),
                                     (size, size), is_coalesced=True, check_invariants=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the random projection that the decomposition begins with
        u, s, _ = torch.svd_lowrank(matrix, q=min(dimensions, size - 1), niter=4)
    return (u * s.sqrt()).numpy()


def similar_words(words: Sequence[str], vectors: np.ndarray, settings: SimilarSettings, tokenizer: Tokenizer | None = None
                  ) -> Iterator[tuple[str, list[str]]]:
    """Each word with its similar words, the most similar first; words without any are left out.

    Args:
        words: V words.
        vectors: float32 [V, D].
        settings: how many, and how similar.
        tokenizer: where it is given, similar words have as many tokens as the word.
    """
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(norms > 0, norms, 1)
    sizes = np.zeros(len(words), dtype=np.int64) if tokenizer is None else np.array(
        [len(ids) for ids in tokenizer.encode_batch(list(words), add_special_tokens=False)])
    for begin in range(0, len(words), 512):
        block = unit[begin:begin + 512] @ unit.T
        block[sizes[begin:begin + 512, None] != sizes] = -1
        block[np.arange(len(block)), begin + np.arange(len(block))] = -1
        best = np.argsort(-block, axis=1, kind="stable")[:, :settings.top]
        for row, others in enumerate(best):
            found = [words[int(other)] for other in others.tolist() if block[row, other] >= settings.least]
            if found:
                yield words[begin + row], found
