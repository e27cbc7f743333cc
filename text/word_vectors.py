"""Words and their vectors: what word2vec, GloVe and NNLM are trained for, and the files of gensim, the C tools and GloVe.

- word2vec's text: the numbers of words and of dimensions in the first line, then a word and its numbers a line;
- word2vec's binary: the same first line, then each word, a space, its numbers as little-endian float32, and a line end that may be missing;
- GloVe's text: word2vec's without the first line.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from ..shared.errors import UserError
from ..shared.system import Preview
from ..shared.tokenizer import Tokenizer


@runtime_checkable
class HasWordVectors(Protocol):
    """A network whose product is a vector for each token."""

    special_tokens: tuple[int, ...]
    """Ids that are no words: unknown ones, padding."""

    def word_vectors(self) -> Tensor:
        """[V, D]."""
        ...


class WordTable(nn.Module):
    """The part of such a network that all have: the vector of a text is the mean of its words' vectors."""

    special_tokens: tuple[int, ...] = ()

    def word_vectors(self) -> Tensor:
        """[V, D]."""
        raise NotImplementedError

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Vectors of texts, [B, D]: the mean over the words that are known, 0 where none is.

        Args:
            input_ids: [B, S].
            attention_mask: [B, S], 0 at padding; None for none.
        """
        known = input_ids.new_ones(input_ids.shape) if attention_mask is None else attention_mask.clone()
        for token in self.special_tokens:
            known[input_ids == token] = 0
        vectors = nn.functional.embedding(input_ids, self.word_vectors())
        weights = known.to(vectors.dtype)[..., None]
        return (vectors * weights).sum(1) / weights.sum(1).clamp(min=1)


@dataclass(frozen=True)
class WordVectors:
    """Words with a vector each.

    Raises:
        UserError: a word stands there twice, or a vector is no vector; it names the first one.
    """

    words: Sequence[str]
    vectors: np.ndarray
    """float32 [V, D]"""
    source: str = "the vectors"
    """For messages."""

    def __post_init__(self) -> None:
        """Check what was given."""
        if not len(self.words) or self.vectors.shape != (len(self.words), self.vectors.shape[-1]) or not self.vectors.shape[-1]:
            raise UserError(f"{self.source}: {len(self.words)} words and vectors {list(self.vectors.shape)}, expected one for each word")
        if len(self.numbers) < len(self.words):
            twice = next(word for number, word in enumerate(self.words) if self.numbers[word] != number)
            raise UserError(f"{self.source}: the word {twice[:40]!r} stands there twice; leave one of them out")
        if not (finite := np.isfinite(self.vectors).all(axis=1)).all():
            raise UserError(f"{self.source}: the vector of {self.words[int(finite.argmin())][:40]!r} holds numbers that are not finite")

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        """The row of each word; of one that stands there twice, the last."""
        return {word: number for number, word in enumerate(self.words)}

    @cached_property
    def unit(self) -> np.ndarray:
        """The vectors with length 1; zeros stay."""
        lengths = np.linalg.norm(self.vectors, axis=1, keepdims=True)
        return self.vectors / np.where(lengths > 0, lengths, 1)

    def find(self, word: str) -> int | None:
        """The row of a word as it is spelt, else of the same in lower case; None where neither is known."""
        found = self.numbers.get(word)
        return self.numbers.get(word.lower()) if found is None else found

    def nearest(self, plus: Collection[int], minus: Collection[int] = (), top: int = 10) -> list[tuple[str, float]]:
        """The words nearest to the sum of some words' vectors (each of length 1) less others', by cosine, without these words.

        Levy and Goldberg 2014 call it 3CosAdd; for a : b as c : ? it is b - a + c.
        """
        aim = self.unit[list(plus)].sum(0) - self.unit[list(minus)].sum(0)
        cosines = self.unit @ (aim / (np.linalg.norm(aim) or 1))
        cosines[[*plus, *minus]] = -np.inf
        best = np.argpartition(-cosines, min(top, len(cosines) - 1))[: top + 1]
        best = best[np.lexsort((best, -cosines[best]))][:top]
        return [(self.words[int(i)], float(cosines[i])) for i in best if cosines[i] > -np.inf]


def vectors_of(net: HasWordVectors, tokenizer: Tokenizer, source: str = "the model") -> WordVectors:
    """The word vectors of a network: of every token that is no special one, in the order of the vocabulary."""
    table = net.word_vectors().detach().float().cpu().numpy()
    special = {*tokenizer.special_ids, *net.special_tokens}
    words = [(word, i) for word, i in tokenizer.vocabulary().items() if i not in special and i < len(table)]
    return WordVectors([word for word, _ in words], table[[i for _, i in words]], source)


def neighbours(found: WordVectors, words: Sequence[str], limit: int) -> list[Preview]:
    """Some words with their nearest ones, for people."""
    rows = [(word, found.numbers[word]) for word in words if word in found.numbers][:limit]
    return [Preview((("word", word), ("nearest", ", ".join(f"{other} {cosine:.2f}" for other, cosine in found.nearest([row], top=8)))))
            for word, row in rows]


# ------------------------------------------------------------------------------------------------- files

TEXT, BINARY = "vectors.txt", "vectors.bin"


def write_gensim(net: HasWordVectors, tokenizer: Tokenizer, directory: Path) -> None:
    """Both word2vec formats, `vectors.txt` and `vectors.bin`, as gensim's `KeyedVectors.load_word2vec_format` reads them."""
    found = vectors_of(net, tokenizer)
    head = f"{len(found.words)} {found.vectors.shape[1]}\n"
    with (directory / TEXT).open("w", encoding="utf-8", newline="\n") as file:
        file.write(head)
        file.writelines(_lines(found))
    with (directory / BINARY).open("wb") as file:
        file.write(head.encode())
        for word, vector in zip(found.words, found.vectors.astype("<f4"), strict=True):
            file.write(_checked(word).encode("utf-8") + b" " + vector.tobytes() + b"\n")


def write_glove(net: HasWordVectors, tokenizer: Tokenizer, directory: Path) -> None:
    """GloVe's text format, `vectors.txt`."""
    with (directory / TEXT).open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(_lines(vectors_of(net, tokenizer)))


def _lines(found: WordVectors) -> Iterator[str]:
    # the shortest texts that are read as the same float32
    return (f"{_checked(word)} {' '.join(map(str, vector))}\n" for word, vector in zip(found.words, found.vectors, strict=True))


def _checked(word: str) -> str:
    if not word or any(character in " \n" for character in word):
        raise UserError(f"the token {word!r} cannot stand in a file of word vectors, where spaces and lines divide: use a vocabulary of "
                        "words (`polymodal tokenizer train --kind word`)")
    return word


def read_vectors(path: str | Path) -> WordVectors:
    """The word vectors in a file of any of the formats above, told apart by its content.

    Raises:
        UserError: it is none of them, is cut, or names a word twice; it says where.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.readline(1 << 20)
            count = _sizes(head)
            if count is None:
                return _read_text(path, 0, None)
            begin = file.tell()
            return _read_text(path, *count) if _is_text(file.read(1 << 20)) else _read_binary(path, begin, *count)
    except OSError as error:
        raise UserError(f"the word vectors {str(path)!r} cannot be read ({error.strerror}): give their path") from None


def _sizes(head: bytes) -> tuple[int, int] | None:
    """The numbers of words and dimensions in the first line of word2vec's formats; None where it is another line."""
    parts = head.split()
    if len(parts) != 2 or not all(part.isdigit() and len(part) < 12 for part in parts):
        return None
    count, width = map(int, parts)
    return count, width


def _is_text(data: bytes) -> bool:
    """Whether bytes are UTF-8, perhaps cut; numbers in binary are not, but by a chance that falls with each of them."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(data) - 4 and b"\0" not in data
    return b"\0" not in data


def _read_text(path: Path, count: int, width: int | None) -> WordVectors:
    """A text file; without a width, GloVe's, which has no first line."""
    words, rows = list[str](), list[np.ndarray]()
    glove = width is None
    kind = "GloVe's text format" if glove else "word2vec's text format"
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1 and not glove:
                continue
            if width is None:
                width = len(line.split()) - 1
            try:
                word, *numbers = line.rstrip().decode("utf-8").rsplit(" ", width)
                rows.append(np.array(numbers, dtype=np.float32).reshape(width))
                words.append(word)
            except ValueError as error:
                reason = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else f"is {line[:40]!r}"
                first = "" if glove else "the numbers of words and of dimensions in the first line, then "
                raise UserError(f"{path} is not {kind}: line {number} {reason}, expected {first}a word and {width or 'its'} numbers, with "
                                "spaces between them") from None
    if not glove and len(words) != count:
        raise UserError(f"{path} has {len(words)} words, and its first line says {count}: it is cut, or the first line is wrong")
    if not words or not width:
        raise UserError(f"{path} holds no word vectors: expected a word and its numbers a line")
    return WordVectors(words, np.stack(rows), str(path))


def _read_binary(path: Path, begin: int, count: int, width: int) -> WordVectors:
    data = path.read_bytes()
    if not count or not width or len(data) - begin < count * (4 * width + 2):
        raise UserError(f"{path} is cut, or no word2vec file: its first line says {count} words of {width} numbers, and "
                        f"{len(data) - begin} bytes follow, where the binary format has {count * (4 * width + 2)} at least")
    words, vectors, place = list[str](), np.empty((count, width), dtype=np.float32), begin
    for number in range(count):
        space = data.find(b" ", place)
        if space < 0 or len(data) - space - 1 < 4 * width:
            raise UserError(f"{path} is cut: it ends behind {number} words, and its first line says {count}")
        try:
            words.append(data[place:space].lstrip(b"\n").decode("utf-8"))
        except UnicodeDecodeError:
            raise UserError(f"{path} is damaged or not word2vec's binary format: word {number + 1} is not UTF-8") from None
        vectors[number] = np.frombuffer(data, "<f4", width, space + 1)
        place = space + 1 + 4 * width
    if data[place:].strip(b"\n"):
        raise UserError(f"{path} goes on behind the {count} words that its first line says: the first line is wrong")
    return WordVectors(words, vectors, str(path))
