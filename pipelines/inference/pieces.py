"""Texts that are longer than what a model reads at once, cut at the borders of sentences."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ...shared.tokenizer import Tokenizer
from .sentences import sentences


class Pieces:
    """Cuts texts into pieces that a model can read.

    Args:
        tokenizer: the model's.
        limit: tokens that it reads at once.
        around: what stands around each piece, such as a prefix.
    """

    def __init__(self, tokenizer: Tokenizer, limit: int, around: str = "") -> None:
        self.tokenizer = tokenizer
        self.room = limit - len(tokenizer.encode(around)) - 1  # one for a border that splits otherwise

    def length(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    def cut(self, text: str) -> list[str]:
        """The text, or pieces of whole sentences that the model can read, of like length."""
        if self.length(text) <= self.room:
            return [text.strip()]
        spans = [part for span in sentences(text) for part in self._fitting(text, *span)]
        # each with the space before it
        sizes = [self.length(text[before:end]) + 1 for before, (_, end) in zip([spans[0][0], *(end for _, end in spans)], spans)]
        count = len(_packed(sizes, self.room, float("inf")))
        groups = _packed(sizes, self.room, sum(sizes) / count)
        return [text[spans[group[0]][0]:spans[group[-1]][1]].strip() for group in groups]

    def _fitting(self, text: str, start: int, end: int) -> list[tuple[int, int]]:
        """The span of a sentence, cut at tokens where it is longer than a whole piece."""
        if self.length(text[start:end]) < self.room:
            return [(start, end)]
        places = [place for place in self.tokenizer.offsets(text[start:end])[1] if place[1] > place[0]]
        step = max(1, self.room // 2)  # a part may have more tokens than it had within the sentence
        borders = [start, *(start + places[i][0] for i in range(step, len(places), step)), end]
        return [(a, b) for a, b in pairwise(borders) if text[a:b].strip()]


def _packed(sizes: Sequence[int], room: int, share: float) -> list[list[int]]:
    """Neighbours in groups whose sizes add up to at most `room`; the k-th group ends where the sum is nearest to k * share."""
    groups: list[list[int]] = []
    size = total = 0
    for number, more in enumerate(sizes):
        if not groups or size + more > room or total + more / 2 > share * len(groups):
            groups.append([])
            size = 0
        groups[-1].append(number)
        size, total = size + more, total + more
    return groups
