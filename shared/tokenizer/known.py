"""Ids of the words that were met before: a text is mostly words that the tokenizer has seen.

A `tokenizers` pipeline remembers what it made of a word, but only after it has cut the text, and for each token it builds a string, its
place and more. Here a text is cut where no token can reach across whatever the vocabulary, before white space that follows something
else, and each piece is encoded by the pipeline itself, once. The pipelines for which that holds are named in `word_pattern`; the others
are called for the whole text.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import tokenizers
from tokenizers.models import BPE
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel

_UNICODE = r" \t\n\r\x0b\x0c\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""Unicode's White_Space, which is GPT-2's; Python's has more."""
_BERT = r" \t\n\r"
"""BERT takes away other control characters, so that what stands on both sides becomes one word."""
_ROOM = 16 << 20
"""Characters of remembered pieces, each counted as 64 more; beyond them the memory begins anew."""

Encode = Callable[[Sequence[str]], list[list[int]]]


def word_pattern(pipeline: tokenizers.Tokenizer) -> re.Pattern[str] | None:
    """What cuts a text into pieces whose ids do not depend on each other; None where that is not known to be so.

    * GPT-2's byte-level words hold white space at their beginning only, and are found from left to right without looking back. (With
      `add_prefix_space` a text begins otherwise than a piece of it.)
    * BERT's words hold none. Its normalizer changes single characters, or such as are joined to one before.
    * Added tokens are found before anything else, so they must not reach over a cut.
    """
    before, words, model = pipeline.normalizer, pipeline.pre_tokenizer, pipeline.model
    if isinstance(words, ByteLevel) and words.use_regex and not words.add_prefix_space and before is None:
        space = _UNICODE
    elif isinstance(words, BertPreTokenizer) and (before is None or isinstance(before, BertNormalizer)):
        space = _BERT
    else:
        return None
    added = pipeline.get_added_tokens_decoder().values()
    if any(token.rstrip or re.search(r"\s", token.content) for token in added) or (isinstance(model, BPE) and model.dropout):
        return None
    return re.compile(f"[{space}]*[^{space}]+|[{space}]+")


class KnownWords:
    """Encodes texts piece by piece and remembers the pieces.

    Args:
        pattern: from `word_pattern`.
        encode: the ids of texts.
    """

    def __init__(self, pattern: re.Pattern[str], encode: Encode) -> None:
        self._find, self._encode = pattern.findall, encode
        self._forget()

    def _forget(self) -> None:
        self._known: dict[str, list[int]] = {}
        self._room = _ROOM

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text."""
        if self._room < 0:
            self._forget()
        known = self._known  # another thread may begin anew meanwhile
        rows: list[list[str]] = [self._find(text) for text in texts]
        new = list(set[str]().union(*rows).difference(known))
        if new:
            known.update(zip(new, self._encode(new), strict=True))
            self._room -= sum(map(len, new)) + 64 * len(new)
        ids: Any = known.__getitem__
        return [list(itertools.chain.from_iterable(map(ids, row))) for row in rows]
