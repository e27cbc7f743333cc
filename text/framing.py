"""How a text or a pair enters an encoder: framed by special tokens, as the tokenizer's template has them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ..shared.errors import UserError
from ..shared.tokenizer import Tokenizer
from ..shared.tokenizer.styles import FIRST, SECOND

SummaryToken = Literal["first", "last"]
"""Where a network reads its summary of a text."""
_PLACES: dict[SummaryToken, tuple[int, str]] = {"first": (0, "bert or roberta"), "last": (-1, "xlnet")}
"""The part of a template, and styles that have the classification token there."""


class Frame:
    """Puts a tokenizer's special tokens around a text, or around both texts of a pair.

    [CLS] A [SEP] B [SEP], or <s> A </s></s> B </s>, or A <sep> B <sep> <cls>.

    Args:
        tokenizer: with a classification token, which its templates put where the network reads its summary of a text.
        what: what needs it, for messages ("masking").
        summary: that place.
    """

    def __init__(self, tokenizer: Tokenizer, what: str, summary: SummaryToken = "first") -> None:
        (cls, _) = tokenizer.need(what, "cls", "sep")
        self.single, self.pair = tokenizer.framing.single, tokenizer.framing.pair
        place, styles = self._place, _ = _PLACES[summary]
        if any(template.parts[place][0] != cls for template in (self.single, self.pair)):
            raise UserError(f"{what} reads the {summary} token of a text, where this tokenizer does not put its classification token: "
                            f"train one with --style {styles}")

    def room(self, max_length: int, pair: bool) -> int:
        """How many tokens of a text, or of both texts of a pair, fit between the special ones."""
        return max_length - (self.pair if pair else self.single).specials

    def begins(self, first: int, pair: bool = False) -> tuple[int, int]:
        """Where the first text of `first` tokens begins in the framed sequence, and where the second one of a pair does."""
        places, at = {FIRST: 0, SECOND: 0}, 0
        for token, _ in (self.pair if pair else self.single).parts:
            if token < 0:
                places[token] = at
            at += 1 if token >= 0 else first if token == FIRST else 0
        return places[FIRST], places[SECOND]

    def summary(self, length: int) -> int:
        """Where the network reads its summary of a framed sequence of this length."""
        return self._place % length

    def __call__(self, a: np.ndarray | Sequence[int], b: np.ndarray | Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Ids and token types, int64 [S] each."""
        template = self.single if b is None else self.pair
        second = () if b is None else b
        parts = [np.asarray([i] if i >= 0 else a if i == FIRST else second, dtype=np.int64) for i, _ in template.parts]
        return np.concatenate(parts), np.repeat([kind for _, kind in template.parts], [len(part) for part in parts])


def longest(config: Any, max_length: int | None) -> int:
    """`objective.max_length`, special tokens included; by default, and at most, what the network has positions for.

    A network without a table of positions reads texts of any length.
    """
    limit: int = config.longest_input or sys.maxsize
    length = max_length or limit
    if length > limit:
        raise UserError(f"objective.max_length is {length}, the model has {limit} positions: "
                        f"lower it or raise model.max_position_embeddings")
    return length
