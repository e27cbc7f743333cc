"""What commands take: files, folders, texts or stdin. Every line or row gives one text, or an error with its place."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...shared.errors import BadSample, UserError
from ...shared.picture import ENDINGS
from ...shared.unicode import half_character, is_blank
from .files import COMPRESSED, ending, kind_of_name, lines_of, open_bytes, told, visible_files
from .tables import TABLE_ENDINGS, TABLES, rows

STDIN = "-"
PICTURES = tuple(f".{ending}" for ending in ENDINGS)
_PLAIN = (".txt", *(f".txt{packed}" for packed in COMPRESSED))
TEXTS = (*_PLAIN, *TABLE_ENDINGS)
"""Endings of files that are read from folders where every line is a text."""
DOCUMENTS = (*TEXTS, ".md", ".rst")
"""Those that are read from folders where every file is one; any other file of UTF-8 can be named."""
_FILES = (*DOCUMENTS, *PICTURES, ".json", ".pdf", ".docx", ".html", ".tar")
"""A word that ends so is a file's name, also where there is no such file."""


@dataclass(frozen=True)
class Document:
    """One text and where it is from: a path, "stdin", or "text"."""

    source: str
    text: str
    pair: str | None = None
    """The second text of a pair."""


def documents(inputs: Sequence[str] | None, *, lines: bool = False, pairs: bool = False, warn: Callable[[str], None] = lambda line: None
              ) -> list[Document]:
    """The documents of the arguments, in their order.

    Args:
        inputs: files, folders of them, texts, or `-` for stdin; none means stdin, unless that is a terminal.
        lines: every line is one; else a file is one. A row of a table (jsonl, csv, tsv, parquet) always is, by its field `text`.
        pairs: read the field `text_pair` of tables, too, where there is one.
        warn: told how many files of a folder are not read.

    Raises:
        UserError: also for a blank line or text in the middle, as each has to get an answer; blank lines at the end are none.
    """
    if not inputs:
        if sys.stdin.isatty():
            raise UserError("no input: give files, texts, or - to read from stdin")
        inputs = [STDIN]
    found: list[Document] = []
    for given in inputs:
        path = path_of(given)
        if given == STDIN:
            found.extend(_read(sys.stdin.buffer.read(), "stdin", lines=lines))
        elif path is None:
            if reason := half_character(given):
                raise UserError(f"the text {given!a} holds {reason}: mend it, or write it to a file of UTF-8")
            if is_blank(given):
                raise UserError(f"the text {given!a} is blank: give one that can be read")
            found.append(Document("text", given))
        else:
            for file in [path] if path.is_file() else inside(path, TEXTS if lines else DOCUMENTS, warn):
                found.extend(_rows(file, pairs) if ending(file) in TABLE_ENDINGS else _file(file, lines))
    return found


def path_of(given: str) -> Path | None:
    """The file or folder that an argument names, or None where it is a text; a name that looks like a missing file is a mistake."""
    try:
        path = Path(given)
        if given.strip() and given != STDIN and path.exists():
            return path
    except (OSError, ValueError):  # too long, or a null byte: no path
        return None
    if ending(path) in _FILES and not any(c.isspace() for c in given):
        raise UserError(f"there is no file {given!r}; to use this as a text, pass it through stdin")
    return None


def inside(folder: Path, endings: Sequence[str], warn: Callable[[str], None] = lambda line: None) -> list[Path]:
    """The files of a folder, and of those in it, with these endings; `warn` is told how many others there are."""
    files = visible_files(folder)
    found = [path for path in files if ending(path) in endings]
    if not found:
        plain = [end for end in endings if not end.endswith(COMPRESSED)]
        raise UserError(f"{folder} holds no {', '.join(plain[:-1])} or {plain[-1]} files")
    if others := Counter(kind_of_name(path.name) for path in files if ending(path) not in endings):
        warn(f"{others.total()} files of {folder} are not read: {told(others)}")
    return found


def picture_files(inputs: Sequence[str], warn: Callable[[str], None]) -> list[Path]:
    """The picture files among the inputs, where they are pictures."""
    found: list[Path] = []
    others = 0
    for given in inputs:
        path = path_of(given)
        if path is not None and path.is_dir():
            endings = {ending(p) for p in visible_files(path)}
            others += bool(endings & set(TEXTS))
            if endings & set(PICTURES):
                found.extend(inside(path, PICTURES, warn))
        elif path is not None and ending(path) in PICTURES:
            found.append(path)
        else:
            others += 1
    if found and others:
        raise UserError("the inputs are pictures and texts: give one kind at a time")
    return found


def _file(path: Path, lines: bool) -> Iterator[Document]:
    if ending(path) in PICTURES:
        raise UserError(f"{path} is a picture, and this model reads texts")
    with open_bytes(path) as file:
        return _read(file.read(), str(path), lines=lines)


def _read(data: bytes, where: str, *, lines: bool) -> Iterator[Document]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 ({error.reason} at byte {error.start}): convert it first") from None
    if "\0" in text:
        raise UserError(f"{where} is not a text (it holds null bytes): expected UTF-8, or one of {' '.join(TABLES)}")
    if is_blank(text):
        raise UserError(f"{where} holds no text")
    if not lines:
        return iter((Document(where, text),))
    parts = lines_of(text)
    while is_blank(parts[-1]):
        parts.pop()
    blank = next((number for number, part in enumerate(parts, 1) if is_blank(part)), None)
    if blank is not None:
        raise UserError(f"{where}, line {blank} is blank: every line is a text that gets an answer, so take it out")
    return (Document(where, part) for part in parts)


def _rows(path: Path, pairs: bool) -> Iterator[Document]:
    found = False
    for place, row in rows(path):
        if isinstance(row, BadSample):
            raise UserError(str(row))
        found = True
        text, pair = row.get("text"), row.get("text_pair") if pairs else None
        if not isinstance(text, str) or not (pair is None or isinstance(pair, str)):
            wanted = "texts in 'text' and, where it is a pair, 'text_pair'" if pairs else "a text in 'text'"
            raise UserError(f"{place}: expected {wanted}; its fields are {', '.join(map(str, list(row)[:8]))}")
        for part in (text, pair or ""):
            if reason := half_character(part):
                raise UserError(f"{place} holds {reason}: mend it or take it out")
        if is_blank(text):
            raise UserError(f"{place}: the text is blank; every row gets an answer, so take it out")
        yield Document(str(path), text, pair)
    if not found:
        raise UserError(f"{path} holds no text")
