"""Labelled texts with words replaced by others that could stand there: TinyBERT's data augmentation.

Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", 2020, section 3.2 and Algorithm 1. https://arxiv.org/abs/1909.10351

A word has K candidates: where it is one token, the words that a masked language model finds most probable in its place; where it is
several, those with the nearest vectors. In each of N copies of a text, each word becomes one of its candidates with the probability p.

Deviations: a word is a run of letters between spaces and marks, and a text keeps these as they are (the authors' code writes words and
marks with spaces between them); candidates of the model are whole words of letters (the code takes K tokens and leaves pieces of words
out); the model reads the text alone, as in the paper (in the code, the whole text stands behind it); words that are to stay are given
(the code has a list of English ones). As in the code, candidates are found in the original text, copies that are the same count once,
the original is among them, and a word begins with a capital where the one before it did.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from ...shared.errors import BadSample, UserError
from ...shared.packed import joined, side_by_side, starts
from ...shared.sample import is_blank
from ...shared.tokenizer import Tokenizer
from ...text.framing import Frame, longest
from ...text.masking import MaskedWords
from ...text.word_vectors import WordVectors
from ..base.files import temporary_path
from ..base.tables import TABLE_ENDINGS, TABLES, ending, rows
from .words import words_of

_TOGETHER = 32
"""Texts whose masked copies are collected before the model reads them."""
_TOKENS = 4096
"""Of a forward pass."""


@dataclass(frozen=True)
class AugmentSettings:
    """Algorithm 1's numbers."""

    copies: int = 20
    """N_a: copies of a text."""
    probability: float = 0.4
    """p_t: with which a word of a copy is replaced."""
    candidates: int = 15
    """K: the words that may stand for a word."""
    keep: frozenset[str] = frozenset()
    """Words, in lower case, that stay."""
    seed: int = 0
    """Of the draws; each text has its own."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("copies", "candidates"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not 0 < self.probability <= 1:
            raise UserError(f"probability is {self.probability}, expected more than 0 and at most 1")


class Choice(NamedTuple):
    """A word of a text and what may stand there."""

    start: int
    end: int
    words: Sequence[str]


class Augmenter:
    """Finds candidates and makes copies.

    Args:
        net: predicts masked words.
        tokenizer: the network's, with a mask token.
        vectors: of words, for those of several tokens; without any these stay.
        settings: how many copies, and how far from the text.

    Raises:
        UserError: the network does not predict masked words.
    """

    def __init__(self, net: nn.Module, tokenizer: Tokenizer, vectors: WordVectors | None, settings: AugmentSettings) -> None:
        if not isinstance(net, MaskedWords):
            raise UserError(f"{type(net).__name__} does not predict masked words: give --model a BertForMaskedLM, or a run of bert")
        (self.mask_id,) = tokenizer.need("masked words", "mask")
        self.net, self.tokenizer, self.vectors, self.settings = net, tokenizer, vectors, settings
        self.frame = Frame(tokenizer, "masked words")
        self.room = self.frame.room(longest(net.config, None), pair=False)
        self.told: Counter[str] = Counter()
        """Words that were met: with candidates of the `model`, of the `vectors`, `without` any."""
        self.nearest: Callable[[str], list[str]] = cache(self._nearest)

    @cached_property
    def vocabulary(self) -> tuple[list[int], list[str]]:
        """The tokens that are a whole word of letters, and these words."""
        ids = [i for i in range(self.tokenizer.vocab_size) if i not in self.tokenizer.special_ids]
        begins = self.tokenizer.whole_words(np.repeat(ids, 2))[1::2]  # each behind itself, so that none stands first
        texts = [text.strip() for text in self.tokenizer.decode_batch([[i] for i in ids])]
        found = [(i, text) for i, text, begin in zip(ids, texts, begins, strict=True) if begin and text.isalpha()]
        if len(found) < self.settings.candidates:
            raise UserError(f"the vocabulary has {len(found)} whole words, expected at least candidates={self.settings.candidates}")
        return [i for i, _ in found], [text for _, text in found]

    def choices(self, texts: Sequence[str]) -> list[list[Choice]]:
        """The words of each text that may be replaced, with their candidates."""
        masked: list[tuple[np.ndarray, np.ndarray, int]] = []
        found: list[list[tuple[int, int, int | list[str]]]] = []
        for text in texts:
            ids, places = self.tokenizer.offsets(text)
            mine: list[tuple[int, int, int | list[str]]] = []
            for start, end in words_of(text):
                word = text[start:end]
                if not word.isalpha() or word.lower() in self.settings.keep:
                    continue
                inside = [n for n, (a, b) in enumerate(places) if a < end and b > start and b > a]
                if len(inside) == 1 and text[slice(*places[inside[0]])].strip() == word and ids[inside[0]] != self.tokenizer.unk_id:
                    mine.append((start, end, len(masked)))
                    masked.append(self._masked(ids, inside[0]))
                else:
                    mine.append((start, end, self.nearest(word)))
            found.append(mine)
        filled = self._fill(masked)
        return [list(self._told(text, mine, filled)) for text, mine in zip(texts, found, strict=True)]

    def _told(self, text: str, words: Sequence[tuple[int, int, int | list[str]]], filled: Sequence[list[str]]) -> Iterator[Choice]:
        for start, end, there in words:
            others = filled[there] if isinstance(there, int) else there
            self.told["model" if isinstance(there, int) else "vectors" if others else "without"] += 1
            if others:
                yield Choice(start, end, [w[:1].upper() + w[1:] for w in others] if text[start].isupper() else others)

    def _nearest(self, word: str) -> list[str]:
        row = None if self.vectors is None else self.vectors.find(word)
        return [] if row is None or self.vectors is None else [w for w, _ in self.vectors.nearest([row], top=self.settings.candidates)]

    def _masked(self, ids: Sequence[int], place: int) -> tuple[np.ndarray, np.ndarray, int]:
        """The part of a text that the model reads at once, with one token masked: ids and types [S], and the place."""
        first = place // self.room * self.room
        part = np.array(ids[first:first + self.room])
        part[place - first] = self.mask_id
        framed, types = self.frame(part)
        return framed, types, self.frame.begins(len(part))[0] + place - first

    @torch.no_grad()
    def _fill(self, masked: Sequence[tuple[np.ndarray, np.ndarray, int]]) -> list[list[str]]:
        """The most probable words of each masked place, best first."""
        found: list[list[str]] = []
        device = next(self.net.parameters()).device
        ids, words = self.vocabulary
        allowed = torch.tensor(ids, device=device)
        while len(found) < len(masked):
            part, tokens = list[tuple[np.ndarray, np.ndarray, int]](), 0
            for one in masked[len(found):]:
                tokens += len(one[0])
                if part and tokens > _TOKENS:
                    break
                part.append(one)
            packed = side_by_side([ids for ids, _, _ in part])
            places = torch.tensor([start + place for start, (_, _, place) in zip(starts(packed.lengths), part, strict=True)])
            out = self.net.trunk(packed.input_ids.to(device), None, joined([types for _, types, _ in part]).to(device),
                                 packed.position_ids.to(device), lengths=packed.lengths)
            best = self.net.head(out.last_hidden_state[0, places.to(device)])[:, allowed].topk(self.settings.candidates).indices
            found += [[words[i] for i in row] for row in best.tolist()]
        return found

    def copies(self, text: str, choices: Sequence[Choice], rng: np.random.Generator) -> list[str]:
        """Copies of a text: at most `copies` of them, all different from it and from each other."""
        found: dict[str, None] = {}
        for _ in range(self.settings.copies):
            parts, at = list[str](), 0
            for start, end, words in choices:
                word = words[int(rng.integers(len(words)))]
                if rng.random() <= self.settings.probability:
                    parts += [text[at:start], word]
                    at = end
            found["".join([*parts, text[at:]])] = None
        found.pop(text, None)
        return list(found)


def augment_table(source: Path, out: Path, by: Augmenter, columns: Sequence[str], advance: Callable[[int], None] = lambda rows: None
                  ) -> dict[str, int]:
    """Write each row of a table, and behind it its copies: of each text column in turn, while the others stay as they are.

    Args:
        source: jsonl, csv, tsv or parquet.
        out: jsonl; is there when all is done, or not at all.
        by: makes the copies.
        columns: with the texts; none for `text`, and `text_pair` where it is there.
        advance: told how many rows are done.

    Returns:
        The numbers of rows that were read (`rows`) and written (`written`).

    Raises:
        UserError: a row cannot be read or has no text.
    """
    number = written = 0
    temporary = temporary_path(out)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for group in _groups(source, columns):
                texts = [text for row, mine in group for text in (row[name] for name in mine)]
                choices = iter(by.choices(texts))
                for row, mine in group:
                    made = [row]
                    for place, name in enumerate(mine):
                        rng = np.random.default_rng([by.settings.seed, number, place])
                        made += [{**row, name: text} for text in by.copies(row[name], next(choices), rng)]
                    file.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in made)
                    number, written = number + 1, written + len(made)
                advance(len(group))
            file.flush()
            os.fsync(file.fileno())
        if not number:
            raise UserError(f"{source} has no rows: nothing is there to be augmented")
        temporary.replace(out)
    except (TypeError, UnicodeEncodeError) as error:
        raise UserError(f"row {number + 1} of {source} cannot be written as JSON ({error}): leave that column out") from None
    finally:
        temporary.unlink(missing_ok=True)
    return {"rows": number, "written": written}


def _groups(source: Path, columns: Sequence[str]) -> Iterator[list[tuple[dict[str, Any], list[str]]]]:
    """Rows with the names of their text columns, some at a time."""
    group: list[tuple[dict[str, Any], list[str]]] = []
    for place, row in rows(source):
        if isinstance(row, BadSample):
            raise UserError(str(row))
        mine = list(columns) or ["text", *(["text_pair"] if row.get("text_pair") is not None else [])]
        if lacking := [name for name in mine if not isinstance(row.get(name), str) or is_blank(row[name])]:
            raise UserError(f"{place}: no text in {lacking[0]!r}; its columns are {', '.join(map(str, list(row)[:8]))}: name the columns "
                            "with texts with --text-field")
        group.append((row, mine))
        if len(group) == _TOGETHER:
            yield group
            group = []
    if group:
        yield group


def check_files(source: Path, out: Path) -> None:
    """Refuse what is no table, and a result that cannot be written."""
    if not source.is_file() or ending(source) not in TABLE_ENDINGS:
        raise UserError(f"{source} is no table: expected a file that ends in {', '.join(TABLES)}")
    if out.suffix != ".jsonl" or out.is_dir() or not out.absolute().parent.is_dir():
        raise UserError(f"--out {out} is no file that can be written: name one that ends in .jsonl, in a folder that is there")
    if out.exists() and out.samefile(source):
        raise UserError(f"--out {out} is the table that is read: name another file")


def words_to_keep(path: Path | None) -> frozenset[str]:
    """The words in a file, one a line, in lower case."""
    if path is None:
        return frozenset()
    try:
        return frozenset(word.lower() for word in path.read_text(encoding="utf-8-sig").split())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--keep {path} cannot be read ({error}): give a file with a word a line") from None
