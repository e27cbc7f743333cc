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

    Pieces of an eighth of `room`, the tokens of a pair, stand in for sentences where there are none: in pre-tokenised rows, and in a
    sentence longer than half of `room`, as text without sentence marks is.
    """
    piece = max(1, room // 8)
    if not sample.tokenized:
        encoded = tokenizer.encode_batch(sentences(sample.text()), add_special_tokens=False)
        whole = [np.asarray(ids, dtype=np.int64) for ids in encoded if ids]
        if not whole:
            raise sample.bad("the tokenizer makes no tokens of the text")
        return [[part for ids in whole for part in (_pieces(ids, piece) if len(ids) > room // 2 else [ids])]]
    # at least two pieces, so that a pair can be made
    return [_pieces(ids, min(piece, -(-len(ids) // 2))) for ids in documents(sample, tokenizer)]


def _pieces(ids: np.ndarray, size: int) -> Sentences:
    return [ids[i:i + size] for i in range(0, len(ids), size)]


def pairs(
    document: Sentences, other: Sentences, max_tokens: int, short_prob: float, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Cut a document into pairs of segments, as google-research/bert's `create_instances_from_document`.

    Every token of the document is in one pair. (The reference throws away what makes a pair too long; here the next pair begins with it.)

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
    ahead = list(reversed(document))  # the sentence that comes next is the last one
    while ahead:
        chunk = [ahead.pop()]
        while ahead and sum(map(len, chunk)) < target:
            chunk.append(ahead.pop())
        cut = int(rng.integers(1, len(chunk))) if len(chunk) >= 2 else 1
        a, following = np.concatenate(chunk[:cut]), chunk[cut:]
        if following and rng.random() >= 0.5:
            b = np.concatenate(following)
            fits = max_tokens - len(a)
            rest = [b[fits:]]
            yield a, b[:fits], IS_NEXT
        else:
            b = np.concatenate(_stretch(other, int(rng.integers(len(other))), target - len(a)))
            shorter, b = truncate_pair(a, b, max_tokens, rng)
            rest = [a[len(shorter):], *following]
            yield a[:len(shorter)], b, IS_RANDOM
        ahead += [part for part in reversed(rest) if len(part)]


def _stretch(document: Sentences, first: int, length: int) -> Sentences:
    """The sentences from one on until they have `length` tokens or the document ends; at least that one."""
    last = first + 1
    while last < len(document) and sum(map(len, document[first:last])) < length:
        last += 1
    return document[first:last]
