"""Cells of tables as the fields of samples; a cell that cannot be used comes as the reason."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...shared.errors import BadSample, UserError
from ...shared.unicode import is_blank
from ..base.files import pread
from ..base.tables import Place, pick
from .settings import Reading

LABEL = ":class"
"""Where a record keeps the name of its class until it is written; no field of a tar has this name."""


@dataclass(frozen=True, slots=True)
class Ref:
    """Bytes that stay in their file until the shard is written."""

    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        """The bytes; an error where the file changed since it was looked at."""
        with open(self.path, "rb", buffering=0) as file:
            data = pread(file.fileno(), self.size, self.offset)
        if len(data) != self.size:
            raise UserError(f"{self.path} changed while it was being packed: run the command again")
        return data


@dataclass(frozen=True, slots=True)
class Record:
    """A sample on its way into a shard."""

    name: str
    """A readable part of its key; may be empty."""
    fields: dict[str, bytes | Ref]
    identity: bytes
    """Hash of the content: equal documents or pictures are held out together."""
    classes: tuple[str, ...] = ()
    """Names of classes that it holds beside that in `LABEL`: tags."""
    regions: tuple[int, int] | None = None
    """Width of the features of its regions and number of their classes; the same in all records."""


def identity(data: bytes) -> bytes:
    """The hash of a content."""
    return hashlib.blake2b(data, digest_size=8).digest()


def text_record(text: str | bytes, where: Path | Place | str) -> Record | BadSample:
    """A text as the field `txt`."""
    try:
        data = text.encode("utf-8") if isinstance(text, str) else text
        plain = data.decode("utf-8")
    except (UnicodeEncodeError, UnicodeDecodeError) as error:
        found = data_start(text)
        return BadSample(f"{where}: a text is not UTF-8 ({error.reason}), it begins {found!r}; convert the file to UTF-8")
    if is_blank(plain):
        return BadSample(f"{where}: an empty text")
    data = data.replace(b"\r\n", b"\n").strip()
    return Record("", {"txt": data}, identity(data))


def label_of(row: dict[str, Any], reading: Reading, where: Place, names: Sequence[str] | None) -> str | BadSample:
    """The name of a row's class: text, or a whole number as text, or the one of `names` that it numbers."""
    assert reading.label_field is not None
    value = pick(row, reading.label_field)
    if isinstance(value, list):
        return BadSample(f"{where}: {reading.label_field!r} holds a list, expected one class (--kind labels packs several for a text)")
    if names is not None and isinstance(value, int):
        name = names[value] if 0 <= value < len(names) else ""
    elif isinstance(value, bool):
        name = str(value).lower()
    elif isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        name = str(int(value))
    else:
        name = value.strip() if isinstance(value, str) else ""
    if not name:
        return BadSample(f"{where}: no class in {reading.label_field!r} (a name or a whole number), {columns_of(row)}")
    if reading.classes is not None and name not in reading.classes:
        return BadSample(f"{where}: the class {name!r}, which --classes does not name")
    return name


def columns_of(row: Mapping[str, Any]) -> str:
    """What columns there are, for a message."""
    return f"the columns are {', '.join(str(k) for k in list(row)[:8])}"


def data_start(text: str | bytes) -> str:
    """The first characters of a text for a message."""
    return (text if isinstance(text, str) else text.decode("utf-8", "replace")).strip()[:40].encode("utf-8", "replace").decode()


def cell_of(row: dict[str, Any], name: str, where: Place | str) -> str | BadSample:
    """The text in a column."""
    value = pick(row, name)
    if not isinstance(value, str):
        return BadSample(f"{where}: no text in {name!r}, {columns_of(row)} "
                         "(--text-field, --pair-field, --target-field, --image-field, --caption-field)")
    return value
