"""Documents as sentences, and the pairs of segments that objectives make of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from ..shared.documents import documents, text_ids
from ..shared.sample import Sample
from ..shared.tokenizer import Tokenizer

IS_NEXT, IS_RANDOM = 0, 1
IS_SWAPPED = IS_RANDOM

Sentences = Sequence[np.ndarray]
"""A document: the ids of each sentence, int64 [S]."""


def sentences(text: str) -> list[str]:
    """Cut text at line ends and after sentence marks that are followed by a space (or stand in Chinese or Japanese)."""
    return [part for part in (p.strip() for p in _SENTENCE_END.sub(r"\1\n", text).splitlines()) if part]


_SENTENCE_END = re.compile(r"([.!?][\"'”’)\]]*(?=\s)|[。！？][”’」』）]*)")


def sentence_documents(
    sample: Sample, tokenizer: Tokenizer, room: int, piece: int | None = None, *, units: bool = False
) -> list[Sentences]:
    """The documents of a sample, each as the ids of its sentences; `units` as in `documents`.

    Pieces of `piece` tokens, by default an eighth of `room`, the tokens of a pair, stand in for sentences where there are none: in
    pre-tokenised rows, and in a sentence longer than half of `room`, as text without sentence marks is.
    """
    piece = piece or max(1, room // 8)
    if not sample.tokenized:
        whole = [ids for ids in text_ids(sample, tokenizer, sentences(sample.text()), units=units) if len(ids)]
        if not whole:
            raise sample.bad("the tokenizer makes no tokens of the text")
        return [[part for ids in whole for part in (_pieces(ids, piece) if len(ids) > room // 2 else [ids])]]
    # at least two pieces, so that a pair can be made
    return [_pieces(ids, min(piece, -(-len(ids) // 2))) for ids in documents(sample, tokenizer, units=units)]


def _pieces(ids: np.ndarray, size: int) -> Sentences:
    return [ids[i:i + size] for i in range(0, len(ids), size)]


def pairs(
    document: Sentences, other: Sentences, max_tokens: int, short_prob: float, rng: np.random.Generator, *, swap: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Cut a document into pairs of segments by the procedure of google-research/bert (`create_instances_from_document`).

    Every token of the document is in one pair, and nothing but the words of a pair tells its label:

    * Segments are of whole sentences. (The reference makes pairs longer and cuts them at random ends; what it throws away would have to
      begin the next pair here, and a sentence that was cut would tell where it comes from.)
    * A second segment of either kind fills the same room and begins with a sentence that is not the first of its document. A random one
      ends its document where the true one does. A true one is as short as the random document makes a random one.
    * A document's last pair takes sentences from the one before, if that has three or more, until it has two of them and an eighth of
      `max_tokens`: a single sentence can only get a random second segment.

    Args:
        document: the document, sentences of at most half of `max_tokens`.
        other: the random document, likewise.
        max_tokens: tokens of a pair without its special tokens.
        short_prob: probability of a shorter target.
        rng: the sample's generator.
        swap: half of the pairs are in the wrong order, as google-research/albert has it (sentence order), instead of having a random
            second segment; a single sentence that is left gets a random one all the same.

    Yields:
        First segment, second segment, and `IS_NEXT`, `IS_RANDOM` or `IS_SWAPPED`.
    """
    target = int(rng.integers(2, max_tokens + 1)) if rng.random() < short_prob else max_tokens
    behind = np.cumsum([len(sentence) for sentence in reversed(other)])[::-1]  # tokens of the other document from each sentence on
    ahead = list(reversed(document))  # the sentence that comes next is the last one
    while ahead:
        chunk, filled = _next_chunk(ahead, target, max_tokens)
        cut = int(rng.integers(1, len(chunk))) if len(chunk) >= 2 else 1
        a, following = np.concatenate(chunk[:cut]), chunk[cut:]
        if swap and following:
            b = np.concatenate(following)
            yield (b, a, IS_SWAPPED) if rng.random() < 0.5 else (a, b, IS_NEXT)
            continue
        wanted, room = target - len(a), max_tokens - len(a)
        size = room if filled or not following else sum(len(sentence) for sentence in following)
        true = _stretch(following, 0, wanted, min(size, int(behind[:2][-1])))
        if true and rng.random() >= 0.5:
            yield a, np.concatenate(true), IS_NEXT
        else:
            ends = bool(following) and not ahead
            random = _ending(other, behind, size, room) if ends else _inside(other, behind, wanted, size, room, rng)
            yield a, np.concatenate(random)[:room], IS_RANDOM
            true = []
        ahead += reversed(following[len(true):])


def consecutive(
    document: Sentences, max_tokens: int, short_prob: float, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cut a document into pairs of segments that follow each other, with every token in one pair; arguments as in `pairs`.

    Segments are of whole sentences, but for a document of one, which is cut at any token; of a single token, the second segment is empty.
    """
    target = int(rng.integers(2, max_tokens + 1)) if rng.random() < short_prob else max_tokens
    ahead = list(reversed(document))
    while ahead:
        chunk, _ = _next_chunk(ahead, target, max_tokens)
        parts = chunk if len(chunk) > 1 else np.split(chunk[0], len(chunk[0]))
        cut = int(rng.integers(1, len(parts))) if len(parts) > 1 else 1
        yield np.concatenate(parts[:cut]), np.concatenate([*parts[cut:], np.zeros(0, dtype=np.int64)])


def _next_chunk(ahead: list[np.ndarray], target: int, max_tokens: int) -> tuple[list[np.ndarray], bool]:
    """The next sentences of a document, which are taken from the end of `ahead`, and whether they are as many as there is room for.

    They have `target` tokens, and are two at least where there are as many; a document's last ones leave no scrap behind (see `pairs`).
    """
    chunk = [ahead.pop()]
    length = len(chunk[0])
    while ahead and (length < target or len(chunk) < 2) and length + len(ahead[-1]) <= max_tokens:
        chunk.append(ahead.pop())
        length += len(chunk[-1])
    filled = bool(ahead)
    while len(chunk) > 2 and _is_scrap(ahead, max_tokens // 8):
        ahead.append(chunk.pop())
        filled = False
    return chunk, filled


def _is_scrap(ahead: Sentences, least: int) -> bool:
    """Whether what is left of a document is something, but no pair of at least `least` tokens."""
    return len(ahead) == 1 or (0 < len(ahead) < least and sum(len(sentence) for sentence in ahead) < least)


def _ending(document: Sentences, behind: np.ndarray, size: int, room: int) -> Sentences:
    """The last sentences of a document, not its first one, that have about `size` tokens and fit into `room`."""
    first = min(1, len(document) - 1)
    away = np.where(behind[first:] <= room, np.abs(behind[first:] - size), room)
    return document[first + int(away.argmin()):]


def _inside(document: Sentences, behind: np.ndarray, wanted: int, size: int, room: int, rng: np.random.Generator) -> Sentences:
    """Sentences from a random one on that is not the first, with others behind them where the document has more than `size` tokens.

    Of ten beginnings that are drawn, the first one counts whose sentence fits into `room` tokens.
    """
    first = min(1, len(document) - 1)
    longer = len(behind) - int(np.searchsorted(behind[::-1], size, side="right"))  # sentences with more than `size` tokens behind them
    drawn = rng.integers(first, max(longer, first + 1), size=10).tolist()
    begin = next((number for number in drawn if len(document[number]) <= room), drawn[-1])
    return _stretch(document, begin, wanted, size)


def _stretch(document: Sentences, first: int, wanted: int, limit: int) -> Sentences:
    """Sentences from one on: that one, and further ones until they have `wanted` tokens or the next one would exceed `limit`."""
    last = min(first + 1, len(document))
    found = sum(len(sentence) for sentence in document[first:last])
    while last < len(document) and found < wanted and found + len(document[last]) <= limit:
        found += len(document[last])
        last += 1
    return document[first:last]
