"""How a text or a pair enters a BERT-shaped network: framed by special tokens, as the tokenizer's template has them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..shared.encoder import EncoderConfig
from ..shared.errors import UserError
from ..shared.tokenizer import Tokenizer
from ..shared.tokenizer.styles import FIRST


class Frame:
    """Puts a tokenizer's special tokens around a text, or around both texts of a pair: [CLS] A [SEP] B [SEP], <s> A </s></s> B </s>.

    Args:
        tokenizer: with a classification token, which its templates put first: there the network reads its summary of a text.
        what: what needs it, for messages ("masking").
    """

    def __init__(self, tokenizer: Tokenizer, what: str) -> None:
        (cls, _) = tokenizer.need(what, "cls", "sep")
        self.single, self.pair = tokenizer.framing.single, tokenizer.framing.pair
        if any(template.parts[0][0] != cls for template in (self.single, self.pair)):
            raise UserError(f"{what} reads the first token of a text, where this tokenizer does not put its classification token: "
                            "train one with --style bert or roberta")

    def room(self, max_length: int, pair: bool) -> int:
        """How many tokens of a text, or of both texts of a pair, fit between the special ones."""
        return max_length - (self.pair if pair else self.single).specials

    def __call__(self, a: np.ndarray | Sequence[int], b: np.ndarray | Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Ids and token types, int64 [S] each."""
        template = self.single if b is None else self.pair
        second = () if b is None else b
        parts = [np.asarray([i] if i >= 0 else a if i == FIRST else second, dtype=np.int64) for i, _ in template.parts]
        return np.concatenate(parts), np.repeat([kind for _, kind in template.parts], [len(part) for part in parts])


def longest(config: EncoderConfig, max_length: int | None) -> int:
    """`objective.max_length`, special tokens included; by default, and at most, what the network has positions for."""
    length = max_length or config.longest_input
    if length > config.longest_input:
        raise UserError(f"objective.max_length is {length}, the model has {config.longest_input} positions: "
                        f"lower it or raise model.max_position_embeddings")
    return length
