"""Documents as sentences, and the pairs of segments that objectives make of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from ..shared.corrupt import truncate_pair
from ..shared.documents import documents
from ..shared.sample import Sample
from ..shared.tokenizer import Tokenizer

IS_NEXT, IS_RANDOM = 0, 1

Sentences = Sequence[np.ndarray]
"""A document: the ids of each sentence, int64 [S]."""


def sentences(text: str) -> list[str]:
    """Cut text at line ends and after sentence marks that are followed by a space (or stand in Chinese or Japanese)."""
    return [part for part in (p.strip() for p in _SENTENCE_END.sub(r"\1\n", text).splitlines()) if part]


_SENTENCE_END = re.compile(r"([.!?][\"'”’)\]]*(?=\s)|[。！？][”’」』）]*)")


def sentence_documents(sample: Sample, tokenizer: Tokenizer, room: int) -> list[Sentences]:
    """The documents of a sample, each as the ids of its sentences.

    Pre-tokenised rows hold no sentences: pieces of an eighth of `room`, the tokens of a pair, stand in for them.
    """
    if not sample.tokenized:
        encoded = tokenizer.encode_batch(sentences(sample.text()), add_special_tokens=False)
        document = [np.asarray(ids, dtype=np.int64) for ids in encoded if ids]
        if not document:
            raise sample.bad("the tokenizer makes no tokens of the text")
        return [document]
    piece = max(1, room // 8)
    made: list[Sentences] = []
    for document in documents(sample, tokenizer):
        size = min(piece, -(-len(document) // 2))  # at least two pieces, so that a pair can be made
        made.append([document[i:i + size] for i in range(0, len(document), size)])
    return made


def pairs(
    document: Sentences, other: Sentences, max_tokens: int, short_prob: float, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Cut a document into pairs of segments, as google-research/bert's `create_instances_from_document`.

    Args:
        document: the document.
        other: the random document.
        max_tokens: tokens of a pair without its special tokens.
        short_prob: probability of a shorter target.
        rng: the sample's generator.

    Yields:
        First segment, second segment, `IS_NEXT` or `IS_RANDOM`.
    """
    target = int(rng.integers(2, max_tokens + 1)) if rng.random() < short_prob else max_tokens
    chunk: list[np.ndarray] = []
    place = 0
    while place < len(document):
        chunk.append(document[place])
        place += 1
        if place < len(document) and sum(map(len, chunk)) < target:
            continue
        cut = int(rng.integers(1, len(chunk))) if len(chunk) >= 2 else 1
        a = np.concatenate(chunk[:cut])
        if len(chunk) == 1 or rng.random() < 0.5:
            label = IS_RANDOM
            drawn: list[np.ndarray] = []
            for segment in other[int(rng.integers(len(other))):]:
                drawn.append(segment)
                if sum(map(len, drawn)) >= target - len(a):
                    break
            b = np.concatenate(drawn)
            place -= len(chunk) - cut  # the sentences that were not used come again
        else:
            label = IS_NEXT
            b = np.concatenate(chunk[cut:])
        yield *truncate_pair(a, b, max_tokens, rng), label
        chunk = []
