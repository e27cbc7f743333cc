"""Word vectors against what people say: analogies in the format of Google's questions-words.txt, and scores of similarity."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...shared.errors import UserError
from ...text.word_vectors import WordVectors
from ..base.files import lines_of
from ..base.markdown import table as lined_up

_CHUNK = 256
"""Questions that are answered at once."""


@dataclass
class Section:
    """A section of the analogies."""

    name: str
    asked: int = 0
    questions: list[tuple[int, int, int, int]] = field(default_factory=list)
    """Those whose words are all known, as rows of the vectors."""
    right: int = 0

    def told(self) -> dict[str, Any]:
        """For the record."""
        known = len(self.questions)
        return {"asked": self.asked, "known": known, "right": self.right, "accuracy": self.right / known if known else None}


def evaluate_words(vectors: WordVectors, analogies: Path | None, pairs: Path | None, most: int | None = None) -> dict[str, Any]:
    """Answer analogies by 3CosAdd, the question's own words excluded, and correlate cosines with scores of similarity by Spearman.

    A word is looked up as it is spelt, else in lower case. Questions and pairs with an unknown word are counted and left out.

    Args:
        vectors: the words, the most frequent first.
        analogies: a file with four words a line.
        pairs: a file with two words and a number a line.
        most: look among that many of the first words alone.
    """
    if most is not None and most < len(vectors.words):
        vectors = WordVectors(vectors.words[:most], vectors.vectors[:most], vectors.source)
    record: dict[str, Any] = {"words": len(vectors.words), "dimension": vectors.vectors.shape[1]}
    if analogies is not None:
        sections = list(_sections(analogies, vectors))
        _answer(sections, vectors)
        whole = Section("", sum(s.asked for s in sections), [q for s in sections for q in s.questions], sum(s.right for s in sections))
        record["analogies"] = {"file": str(analogies), **whole.told(), "sections": {s.name: s.told() for s in sections}}
    if pairs is not None:
        record["pairs"] = {"file": str(pairs), **_pairs(pairs, vectors)}
    return record


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read ({error.strerror}): give the path of a file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): convert it first") from None
    found = [(number, line) for number, line in enumerate(lines_of(text), 1) if line.strip()]
    if not found:
        raise UserError(f"{path} is empty: expected words")
    return iter(found)


def _sections(path: Path, vectors: WordVectors) -> Iterator[Section]:
    section, found = Section("analogies"), False
    for number, line in _lines(path):
        if line.startswith(":"):
            if section.asked:
                yield section
            section = Section(line[1:].strip() or f"line {number}")
            continue
        words = line.split()
        if len(words) != 4:
            raise UserError(f"{path}, line {number}: {line.strip()[:60]!r}, expected four words, or a colon and the name of a section")
        rows = [vectors.find(word) for word in words]
        section.asked, found = section.asked + 1, True
        if (known := tuple(row for row in rows if row is not None)) and len(known) == 4:
            section.questions.append((known[0], known[1], known[2], known[3]))
    if not found:
        raise UserError(f"{path} holds no analogies: expected four words a line")
    if section.asked:
        yield section


def _answer(sections: list[Section], vectors: WordVectors) -> None:
    """Count the right answers."""
    unit = vectors.unit
    for section in sections:
        asked = np.array(section.questions, dtype=np.int64).reshape(-1, 4)
        for begin in range(0, len(asked), _CHUNK):
            part = asked[begin:begin + _CHUNK]
            a, b, c, wanted = part.T
            cosines = (unit[b] - unit[a] + unit[c]) @ unit.T  # the length of the aim changes no order
            np.put_along_axis(cosines, part[:, :3], -np.inf, axis=1)
            section.right += int((cosines.argmax(1) == wanted).sum())


def _pairs(path: Path, vectors: WordVectors) -> dict[str, Any]:
    given, cosines, asked = list[float](), list[float](), 0
    for number, line in _lines(path):
        if line.startswith("#"):
            continue
        cells = [cell.strip() for cell in re.split(r"[\t,;]" if re.search(r"[\t,;]", line) else r"\s+", line.strip())]
        try:
            one, other, score = cells[0], cells[1], float(cells[2])
        except (IndexError, ValueError):
            if number == 1 and len(cells) >= 3:
                continue  # the names of the columns
            raise UserError(f"{path}, line {number}: {line.strip()[:60]!r}, expected two words and a number, with tabs, commas or spaces "
                            "between them") from None
        if not np.isfinite(score):
            raise UserError(f"{path}, line {number}: the score is {cells[2]}, expected a finite number")
        asked += 1
        rows = vectors.find(one), vectors.find(other)
        if rows[0] is not None and rows[1] is not None:
            given.append(score)
            cosines.append(float(vectors.unit[rows[0]] @ vectors.unit[rows[1]]))
    if not asked:
        raise UserError(f"{path} holds no pairs: expected two words and a number a line")
    return {"asked": asked, "known": len(given), "spearman": spearman(np.array(given), np.array(cosines))}


def spearman(given: np.ndarray, found: np.ndarray) -> float | None:
    """Spearman's rank correlation; None where one side is constant."""
    from torchmetrics.functional.regression import spearman_corrcoef

    if len(given) < 2 or not np.ptp(given) or not np.ptp(found):
        return None
    return float(spearman_corrcoef(torch.from_numpy(found), torch.from_numpy(given)))


def table(record: Mapping[str, Any]) -> str:
    """The record for people."""
    lines = [f"{record['words']} words of {record['dimension']} numbers"]
    if "analogies" in record:
        found = record["analogies"]
        rows = [(name, str(s["asked"]), str(s["known"]), _number(s["accuracy"])) for name, s in {**found["sections"], "all": found}.items()]
        lines.append(lined_up(("analogies", "asked", "known", "right"), rows))
    if "pairs" in record:
        found = record["pairs"]
        lines.append(f"similarity: {_number(found['spearman'])} (Spearman), {found['known']} of {found['asked']} pairs known")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
