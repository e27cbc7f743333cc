"""Word2vec, the data side: which words are left, who stands in whose window, and what is drawn as noise; Huffman's tree of the words.

A sample's words are cut into groups of `GROUP`, the last one filled up. All draws come from the sample's own generator, so they are the
same on any rank and worker and when a run goes on. Everything is whole arrays: half a microsecond a word.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..shared.errors import UserError
from ..shared.sample import Sample
from ..shared.system import Batch, Objective, Preview
from ..shared.tokenizer import Tokenizer

GROUP = 64
"""Words that share their noise words."""
BLOCK = 16
"""Words whose windows are computed together, from one stretch of text."""


@dataclass(frozen=True)
class Word2VecSettings:
    """What of the objective can be set."""

    architecture: Literal["cbow", "skip-gram"] = "skip-gram"
    """Whether the mean of the words around predicts a word, or a word each of those around it."""
    output: Literal["negative", "hierarchical"] = "negative"
    """Against noise words, or by a path through a Huffman tree."""
    window: int = 5
    """The most words to each side; each word draws how many, from 1 on."""
    negative: int = 5
    """What noise weighs: as many noise words for each prediction."""
    noise: int = 64
    """Different noise words that are drawn for a group of 64 words; together they weigh `negative` for each prediction."""
    noise_power: float = 0.75
    """The exponent of the words' counts when noise is drawn."""
    sample: float = 1e-3
    """Of words that are more frequent than this share some are left out; 0 leaves none out."""
    max_share: float | None = None
    """The largest share of an update that may move one word's vector, in predictions for each word that is read; gradients of words that
    have more are scaled down. A whole update is summed where the C tool makes a step after each word; without a limit, frequent words
    diverge in large ones. 0.005 suits 8,000 words with the C tool's learning rate."""

    sparse: bool = False
    """Whether gradients hold the rows of an update's words alone, so that its time and memory do not depend on the vocabulary. It needs an
    optimizer that moves rows: sgd without momentum, or adagrad, with weight_decay=0."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        wrong = [f"{name} is {value}, expected {rule}" for name, value, rule, fine in (
            ("window", self.window, "at least 1 word", self.window >= 1),
            ("negative", self.negative, "at least 1", self.negative >= 1),
            ("noise", self.noise, "at least 1 word", self.noise >= 1),
            ("noise_power", self.noise_power, "0 or more", self.noise_power >= 0),
            ("sample", self.sample, "0 or more, such as 1e-3", self.sample >= 0),
            ("max_share", self.max_share, "a positive number or null", self.max_share is None or self.max_share > 0),
        ) if not fine]
        if wrong:
            raise UserError("; ".join(wrong))


# ------------------------------------------------------------------------------------------------ tables


def keep_probability(counts: np.ndarray, sample: float) -> np.ndarray:
    """With which probability a word stays: (sqrt(f / t) + 1) t / f, at most 1, f its share of the words and t `sample` (the C tool)."""
    if not sample:
        return np.ones(len(counts))
    share = np.maximum(counts, 1) / max(counts.sum(), 1)
    return np.minimum(1.0, (np.sqrt(share / sample) + 1) * sample / share)


@dataclass(frozen=True)
class Tree:
    """Huffman's tree: the words with the lowest counts have the longest paths."""

    begins: np.ndarray
    """int64 [V + 1]: the path of word w is entries begins[w] to begins[w + 1]; none for a word that never occurs."""
    nodes: np.ndarray
    """int32: the inner nodes from the root on."""
    codes: np.ndarray
    """bool: which way each path goes there; the prediction's label is its inverse."""

    @property
    def lengths(self) -> np.ndarray:
        """int64 [V]"""
        return np.diff(self.begins)


def huffman(counts: np.ndarray) -> Tree:
    """The tree over the words that occur; of equal counts those with the lower number are merged first, words before inner nodes."""
    known = np.flatnonzero(counts)
    heap = [(int(counts[word]), number) for number, word in enumerate(known.tolist())]
    heapq.heapify(heap)
    leaves = len(known)
    parent, side = np.zeros(2 * leaves - 1, dtype=np.int64), np.zeros(2 * leaves - 1, dtype=bool)
    for made in range(leaves, 2 * leaves - 1):
        (a, first), (b, second) = heapq.heappop(heap), heapq.heappop(heap)
        parent[first] = parent[second] = made
        side[second] = True
        heapq.heappush(heap, (a + b, made))
    depths = np.zeros(2 * leaves - 1, dtype=np.int64)
    for made in range(2 * leaves - 3, -1, -1):
        depths[made] = depths[parent[made]] + 1
    begins = np.zeros(len(counts) + 1, dtype=np.int64)
    begins[known + 1] = depths[:leaves]
    begins = np.cumsum(begins)
    nodes, codes = np.zeros(begins[-1], dtype=np.int32), np.zeros(begins[-1], dtype=bool)
    at, place = np.arange(leaves), begins[known + 1] - 1
    while len(at):  # all paths at once, from the leaves up
        inner = depths[at] > 0
        at, place = at[inner], place[inner]
        nodes[place], codes[place] = 2 * leaves - 2 - parent[at], side[at]  # the root is node 0
        at, place = parent[at], place - 1
    return Tree(begins, nodes, codes)


# ---------------------------------------------------------------------------------------------- examples


@dataclass(frozen=True)
class WordWindows:
    """One example: the words of a sample that are left, in groups, and their windows."""

    ids: np.ndarray
    """int64 [N], N a multiple of `GROUP`; what fills up has the id of the first word."""
    left: np.ndarray
    """int64 [N], words of the window before each word; 0 of what fills up."""
    right: np.ndarray
    """int64 [N], words behind it."""
    noise: np.ndarray
    """int64 [N / GROUP, K]; K is 0 with a tree."""
    words: int
    """Words of the vocabulary that were read, those that were left out among them."""


@dataclass(kw_only=True)
class WindowBatch(Batch):
    """Words, windows and noise of a batch, G groups of words, N in all.

    The rows that it reads are numbered, U of the input table and T of the output table, and all but `ids` are these numbers: so an
    update can leave all other rows alone.
    """

    ids: Tensor
    """int64 [N]: the words."""
    left: Tensor
    """int8 [N]: words of the window before each."""
    right: Tensor
    """int8 [N]: words behind it."""
    source_rows: Tensor
    """int64 [U], ascending: rows of the input table."""
    target_rows: Tensor
    """int64 [T], ascending: rows of the output table."""
    sources: Tensor
    """int64 [W + N + W]: which of the U rows the words have; W more to each side have any."""
    targets: Tensor
    """int64 [W + N + W]: which of the T rows they have; empty with a tree."""
    noise: Tensor
    """int64 [G, K]: which of the T rows noise has."""
    chunks: list[Tensor]
    """With a tree: numbers [n] of words with a window, of which some hundred with paths of similar length are computed together."""
    nodes: list[Tensor]
    """int64 [n, L], which of the T rows are on the paths of each chunk's words; -1 behind the end of a path."""
    codes: list[Tensor]
    """bool [n, L]"""
    predictions: int
    """What is predicted: pairs of words (skip-gram), or words (CBOW)."""


CHUNK = 256
"""Words of a tree's chunk."""


def number_rows(size: int, *ids: np.ndarray) -> tuple[Tensor, list[Tensor]]:
    """The rows of a table of `size` rows that are read, int64 [U], ascending, and the readings by their numbers among these."""
    read = np.zeros(size, dtype=bool)
    for each in ids:
        read[each] = True
    rows = np.flatnonzero(read)
    number = np.empty(size, dtype=np.int64)
    number[rows] = np.arange(len(rows))
    return torch.from_numpy(rows), [torch.from_numpy(number[each]) for each in ids]


class Windows(Objective[WordWindows]):
    """Words with their windows.

    Args:
        tokenizer: of words; special tokens are no words.
        counts: how often each word stands in the training data, int64 [V].
        settings: see there.
    """

    def __init__(self, tokenizer: Tokenizer, counts: np.ndarray, settings: Word2VecSettings) -> None:
        self.tokenizer, self.settings = tokenizer, settings
        self.counts = counts.copy()
        self.counts[sorted(tokenizer.special_ids)] = 0
        if (known := int((self.counts > 0).sum())) < 2:
            raise UserError(f"the training data holds {known} different words of the vocabulary, expected at least 2")
        if settings.window > 100:
            raise UserError(f"window is {settings.window}, expected at most 100 words to each side")

    @cached_property
    def keep(self) -> np.ndarray:
        """With which probability each word stays, float64 [V]; 0 of what is no word."""
        return keep_probability(self.counts, self.settings.sample) * (self.counts > 0)

    @cached_property
    def noise(self) -> np.ndarray:
        """The probabilities of noise words, float64 [V]."""
        power = np.where(self.counts > 0, np.maximum(self.counts, 1).astype(np.float64) ** self.settings.noise_power, 0)
        return power / power.sum()

    @cached_property
    def _noise_ends(self) -> np.ndarray:
        return np.cumsum(self.noise)

    @cached_property
    def tree(self) -> Tree:
        """Huffman's."""
        return huffman(self.counts)

    def shares(self) -> tuple[np.ndarray, np.ndarray]:
        """How many predictions move each row of the input and of the output table, for each word that is read: float64 [V] each.

        Expected numbers, which follow from the words' counts alone: so they are the same for any micro-batch, rank and update.
        """
        s, read = self.settings, self.counts / self.counts.sum() * self.keep
        pairs, kept = s.window + 1.0, read.sum()  # both sides of a window have (window + 1) / 2 words on average
        aims = pairs if s.architecture == "skip-gram" else 1.0
        if s.output == "negative":
            return read * pairs * (1 + s.negative), read * aims + kept * aims * s.negative * self.noise
        through = np.bincount(self.tree.nodes, np.repeat(read * aims, self.tree.lengths), minlength=len(read))
        return read * pairs * float(read @ self.tree.lengths / kept), through

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterable[WordWindows]:
        """Leave words out, draw windows and noise."""
        if sample.tokenized:
            ids, lengths = sample.tokens()
        else:
            ids = np.array(self.tokenizer.encode(sample.text(), add_special_tokens=False), dtype=np.int64)
            lengths = np.array([len(ids)])
        if len(ids) and int(ids.max()) >= len(self.counts):
            raise sample.bad(f"token {int(ids.max())}, and the vocabulary has {len(self.counts)}")
        documents = np.repeat(np.arange(len(lengths)), lengths)
        words = int((self.counts[ids] > 0).sum())
        kept = rng.random(len(ids)) < self.keep[ids]
        ids, documents = ids[kept], documents[kept]
        count, size = len(ids), -(-len(ids) // GROUP) * GROUP
        wide = rng.integers(1, self.settings.window + 1, count)
        places = np.arange(count)
        first, last = np.searchsorted(documents, documents, "left"), np.searchsorted(documents, documents, "right")
        left, right = np.zeros((2, size), dtype=np.int64)
        left[:count], right[:count] = np.minimum(wide, places - first), np.minimum(wide, last - 1 - places)
        filled = np.full(size, ids[0] if count else 0, dtype=np.int64)
        filled[:count] = ids
        drawn = self.settings.noise if self.settings.output == "negative" else 0
        noise = np.searchsorted(self._noise_ends, rng.random((size // GROUP, drawn)) * self._noise_ends[-1], "right")
        return [WordWindows(filled, left, right, noise, words)]

    def collate(self, examples: list[WordWindows]) -> WindowBatch:
        """Lay the words end to end; the loss is counted in words that were read."""
        ids, left, right, noise = (np.concatenate([getattr(e, name) for e in examples]) for name in ("ids", "left", "right", "noise"))
        around, size, laid = left + right, len(self.counts), np.pad(ids, self.settings.window)
        chunks, paths, codes = list[Tensor](), list[np.ndarray](), list[Tensor]()
        if self.settings.output == "hierarchical":
            tree, inside = self.tree, np.flatnonzero(around)
            inside = inside[np.argsort(tree.lengths[ids[inside]], kind="stable")]
            for chunk in np.split(inside, range(CHUNK, len(inside), CHUNK)) if len(inside) else ():
                lengths = tree.lengths[ids[chunk]]
                steps = np.arange(lengths[-1])
                there = steps < lengths[:, None]
                places = np.where(there, tree.begins[ids[chunk]][:, None] + steps, 0)
                chunks.append(torch.from_numpy(chunk))
                paths.append(np.where(there, tree.nodes[places], -1))
                codes.append(torch.from_numpy(tree.codes[places] & there))
        source_rows, (sources,) = number_rows(size, laid)
        aims = laid if not paths else laid[:0]
        target_rows, (targets, noise, *nodes) = number_rows(size, aims, noise, *(np.maximum(path, 0) for path in paths))
        nodes = [torch.where(torch.from_numpy(path) < 0, -1, node) for path, node in zip(paths, nodes, strict=True)]
        predictions = int(around.sum() if self.settings.architecture == "skip-gram" else (around > 0).sum())
        words = sum(e.words for e in examples)
        left, right = left.astype(np.int8), right.astype(np.int8)
        return WindowBatch(counts={"words": words}, tokens=words, predictions=predictions, chunks=chunks, nodes=nodes, codes=codes,
                           source_rows=source_rows, target_rows=target_rows, sources=sources, targets=targets, noise=noise,
                           ids=torch.from_numpy(ids), left=torch.from_numpy(left), right=torch.from_numpy(right))

    def describe(self, example: WordWindows) -> Preview:
        """Some words with their windows, and the noise."""
        def show(ids: np.ndarray) -> str:
            return self.tokenizer.show(ids.tolist())

        inside = np.flatnonzero(example.left + example.right)
        rows = [(show(example.ids[i : i + 1]), f"{show(example.ids[i - example.left[i] : i])} _ "
                 f"{show(example.ids[i + 1 : i + 1 + example.right[i]])}") for i in inside[:8].tolist()]
        noise = [("noise", show(example.noise[0]))] if example.noise.size else []
        return Preview((("words", f"{len(inside)} with a window, of {example.words}"), *rows, *noise))
