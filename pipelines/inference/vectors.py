"""Words that are alike, by the vectors of a model or of a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...shared.errors import UserError
from ...text.word_vectors import BINARY, TEXT, HasWordVectors, WordVectors, read_vectors, vectors_of
from ..model.frontdoor import load
from ..model.frontdoor import tokenizer as find_tokenizer


def open_vectors(source: str | Path, tokenizer: str | None = None) -> WordVectors:
    """The word vectors of a run, a model directory or a file; also of a directory that `polymodal export --format gensim|glove` wrote.

    Raises:
        UserError: there are none.
    """
    path = Path(source)
    file = path if path.is_file() else next((path / name for name in (BINARY, TEXT) if (path / name).is_file()), None)
    if file is not None:
        if tokenizer is not None:
            raise UserError(f"{file} names its words: leave --tokenizer out")
        return read_vectors(file)
    model = load(source)
    if not isinstance(model, HasWordVectors):
        raise UserError(f"{source} is a {type(model).__name__}, which has no vectors of words: give a word2vec, glove or nnlm, or a file")
    return vectors_of(model, find_tokenizer(tokenizer or source).fitting_model(model), str(source))


def similar(vectors: WordVectors, words: Sequence[str], top: int) -> Iterator[dict[str, Any]]:
    """The nearest words of each word; of an unknown one that it is unknown."""
    for word in words:
        row = vectors.find(word)
        yield {"word": word, "known": row is not None, "nearest": [] if row is None else _told(vectors.nearest([row], top=top))}


def analogies(vectors: WordVectors, words: Sequence[str], top: int) -> Iterator[dict[str, Any]]:
    """What is to the third word as the second is to the first, for each three words."""
    for begin in range(0, len(words), 3):
        three = words[begin:begin + 3]
        rows = [vectors.find(word) for word in three]
        known = [row for row in rows if row is not None]
        unknown = [word for word, row in zip(three, rows, strict=True) if row is None]
        nearest = [] if unknown else _told(vectors.nearest(known[1:], known[:1], top=top))
        yield {"words": list(three), "known": not unknown, **({"unknown": unknown} if unknown else {}), "nearest": nearest}


def _told(found: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"word": word, "cosine": cosine} for word, cosine in found]
