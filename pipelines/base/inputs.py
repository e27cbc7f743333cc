"""What commands take: files, folders, texts or stdin."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...shared.errors import UserError
from ...shared.picture import ENDINGS
from ...shared.unicode import half_character
from .files import lines_of

STDIN = "-"
PICTURES = tuple(f".{ending}" for ending in ENDINGS)
TEXTS = (".txt", ".jsonl")
DOCUMENTS = (*TEXTS, ".md", ".rst")


@dataclass(frozen=True)
class Document:
    """One text and where it is from: a path, "stdin", or "text"."""

    source: str
    text: str


def texts(inputs: list[str] | None) -> list[str]:
    """The texts of the arguments: files with one a line, folders of them, texts themselves, or stdin."""
    return [d.text for d in documents(inputs, lines=True)]


def documents(inputs: list[str] | None, *, lines: bool = False) -> list[Document]:
    """The documents of the arguments, in their order.

    Args:
        inputs: files, folders of them, texts, or `-` for stdin; none means stdin, unless that is a terminal.
        lines: every line is one; else a file is one. A line of a jsonl file always is, by its field `text`.
    """
    if not inputs:
        if sys.stdin.isatty():
            raise UserError("no input: give files, texts, or - to read from stdin")
        inputs = [STDIN]
    found: list[Document] = []
    for given in inputs:
        path = path_of(given)
        if given == STDIN:
            found.extend(_read(sys.stdin.buffer.read(), "stdin", jsonl=False, lines=lines))
        elif path is None:
            if reason := half_character(given):
                raise UserError(f"the text {given!a} holds {reason}: mend it, or write it to a file of UTF-8")
            found.append(Document("text", given))
        else:
            endings = TEXTS if lines else DOCUMENTS
            files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in endings)
            if not files:
                raise UserError(f"{path} holds no {', '.join(endings[:-1])} or {endings[-1]} files")
            for file in files:
                found.extend(_read(file.read_bytes(), str(file), jsonl=file.suffix.lower() == ".jsonl", lines=lines))
    return found


def path_of(given: str) -> Path | None:
    """The file or folder that an argument names, or None where it is a text; a name that looks like a missing file is a mistake."""
    try:
        path = Path(given)
        if given != STDIN and path.exists():
            return path
    except (OSError, ValueError):  # too long, or a null byte: no path
        return None
    if path.suffix.lower() in (*DOCUMENTS, *PICTURES) and not any(c.isspace() for c in given):
        raise UserError(f"there is no file {given!r}; to use this as a text, pass it through stdin")
    return None


def _read(data: bytes, where: str, *, jsonl: bool, lines: bool) -> Iterator[Document]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 ({error.reason} at byte {error.start}): convert it first") from None
    if not text.strip():
        raise UserError(f"{where} holds no text")
    if not jsonl:
        parts = [line for line in lines_of(text) if line.strip()] if lines else [text]
        yield from (Document(where, part) for part in parts)
        return
    for number, line in enumerate((line for line in lines_of(text) if line.strip()), 1):
        try:
            value = json.loads(line)["text"]
        except (json.JSONDecodeError, KeyError, TypeError):
            value = None
        if not isinstance(value, str):
            raise UserError(f"{where}, line {number}: expected a JSON object with a string 'text'")
        if reason := half_character(value):
            raise UserError(f"{where}, line {number} holds {reason}: mend it or take it out")
        yield Document(where, value)
