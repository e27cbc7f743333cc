"""The records of a unit: what becomes samples, checked one by one; a record that cannot be used comes as the reason."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ...shared.errors import BadSample, UserError
from ...shared.picture import EXPECTED, FIELD_OF_FORMAT, check_bits
from ...shared.sample import MAX_PIXELS, PAIR_FIELD, TARGET_FIELD
from ..base.files import pread
from ..data.index import scan
from .settings import Reading
from .sources import Unit
from .tables import TABLES, rows

LABEL = ":class"
"""Where a record keeps the name of its class until it is written; no field of a tar has this name."""
_JPEG_END = b"\xff\xd9"


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


def records(unit: Unit, reading: Reading) -> Iterator[Record | BadSample]:
    """The records of a unit, in order; a record that cannot be used comes as the reason."""
    if unit.kind == "images":
        return (_picture(path, {"cls": str(label).encode()} if label >= 0 else {}) for path, label in unit.files)
    if unit.kind == "tar":
        return _tar_records(unit)
    if unit.kind == "pairs":
        return _pairs(unit, reading)
    if Path(unit.path).suffix.lower() in TABLES:
        return (_table_record(row, reading, unit.path) for row in rows(Path(unit.path), unit.begin, unit.end))
    return (_text_record(text, unit.path) for text in _documents(unit, reading.split))


def _identity(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=8).digest()


def _text_record(text: str | bytes, path: str) -> Record | BadSample:
    try:
        data = text.encode("utf-8") if isinstance(text, str) else text
        data.decode("utf-8")
    except (UnicodeEncodeError, UnicodeDecodeError) as error:
        found = data_start(text)
        return BadSample(f"{path}: a text is not UTF-8 ({error.reason}), it begins {found!r}; convert the file to UTF-8")
    data = data.replace(b"\r\n", b"\n").strip()
    if not data:
        return BadSample(f"{path}: an empty text")
    return Record("", {"txt": data}, _identity(data))


def _table_record(row: dict[str, Any] | BadSample, reading: Reading, path: str) -> Record | BadSample:
    """A text with its class, its second text, its target. The class stays a name until all names are known (`LABEL`)."""
    columns = ((reading.text_field, "txt"), (reading.pair_field, PAIR_FIELD), (reading.target_field, TARGET_FIELD))
    fields: dict[str, bytes | Ref] = {}
    for cell, key in [(_cell(row, name, path), key) for name, key in columns if name is not None] + (
            [(_label(row, reading, path), LABEL)] if reading.label_field is not None else []):
        part = cell if isinstance(cell, BadSample) else _text_record(cell, path)
        if isinstance(part, BadSample):
            return part
        fields[key] = part.fields["txt"]
    text = fields["txt"]
    assert isinstance(text, bytes)
    return Record("", fields, _identity(text))


def _label(row: dict[str, Any] | BadSample, reading: Reading, path: str) -> str | BadSample:
    """The name of a row's class: text, or a whole number as text."""
    assert reading.label_field is not None
    if isinstance(row, BadSample):
        return row
    value = row.get(reading.label_field)
    if isinstance(value, bool):
        name = str(value).lower()
    elif isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        name = str(int(value))
    else:
        name = value.strip() if isinstance(value, str) else ""
    if not name:
        seen = ", ".join(str(k) for k in list(row)[:8])
        return BadSample(f"{path}: a row has no class in {reading.label_field!r} (a name or a whole number), its columns are {seen}")
    if reading.classes is not None and name not in reading.classes:
        return BadSample(f"{path}: a row has the class {name!r}, which --classes does not name")
    return name


def sorted_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in the order of their numbers: sorted, by value where all are whole numbers."""
    found = sorted(set(names))
    numbers = all(re.fullmatch(r"-?[0-9]+", name) for name in found)
    return tuple(sorted(found, key=int) if numbers else found)


def data_start(text: str | bytes) -> str:
    """The first characters of a text for a message."""
    return (text if isinstance(text, str) else text.decode("utf-8", "replace")).strip()[:40].encode("utf-8", "replace").decode()


def _documents(unit: Unit, split: str) -> Iterator[bytes]:
    """The documents of a plain text's byte range; blank ones are no documents."""
    with Path(unit.path).open("rb") as file:
        file.seek(unit.begin)
        left, document = unit.end - unit.begin, []
        first = unit.begin == 0
        separator = split.encode("utf-8")
        while left > 0 and (line := file.readline()):
            left -= len(line)
            if first:
                line, first = line.removeprefix(b"\xef\xbb\xbf"), False
            if split == "line":
                ends, keep = True, True
            elif split == "blank":
                ends, keep = not line.strip(), False
            else:
                ends, keep = split != "file" and line.rstrip(b"\r\n") == separator, False
            if not ends or keep:
                document.append(line)
            if ends and document:
                yield from _unless_blank(b"".join(document))
                document = []
        yield from _unless_blank(b"".join(document))


def _unless_blank(document: bytes) -> Iterable[bytes]:
    return (document,) if document.strip() else ()


def _cell(row: dict[str, Any] | BadSample, name: str, path: str) -> str | BadSample:
    if isinstance(row, BadSample):
        return row
    value = row.get(name)
    if not isinstance(value, str):
        seen = ", ".join(str(k) for k in list(row)[:8])
        return BadSample(f"{path}: a row has no text in {name!r}, its columns are {seen} "
                         "(--text-field, --pair-field, --target-field, --image-field, --caption-field)")
    return value


def _pairs(unit: Unit, reading: Reading) -> Iterator[Record | BadSample]:
    for row in rows(Path(unit.path), unit.begin, unit.end):
        image = _cell(row, reading.image_field, unit.path)
        caption = _cell(row, reading.caption_field, unit.path)
        text = caption if isinstance(caption, BadSample) else _text_record(caption, unit.path)
        if isinstance(image, BadSample):
            yield image
        elif isinstance(text, BadSample):
            yield text
        else:
            yield _picture(str(Path(unit.path).parent / image), text.fields)


def _picture(path: str, others: dict[str, bytes | Ref]) -> Record | BadSample:
    """A picture file, looked at closely: type by content, size limit, and that it is whole.

    A JPEG that ends with its end mark is taken to be whole; any other picture is decoded. (Decoding finds one in twenty JPEGs with damaged
    bytes inside, for the others it makes some pixels.)
    """
    try:
        with open(path, "rb", buffering=0) as file:
            data = file.read()
    except (OSError, ValueError) as error:
        return BadSample(f"picture {path!r} cannot be read ({getattr(error, 'strerror', None) or error})")
    try:
        picture = Image.open(io.BytesIO(data))
        name = FIELD_OF_FORMAT.get(picture.format or "")
        if name is None:
            return BadSample(f"picture {path!r} is {picture.format}, expected {EXPECTED}: convert it")
        if picture.width * picture.height > MAX_PIXELS:
            return BadSample(f"picture {path!r} has {picture.width}x{picture.height} pixels, at most {MAX_PIXELS} are decoded")
        check_bits(picture)
        if name != "jpg" or not data.endswith(_JPEG_END):
            picture.draft("RGB", (max(1, picture.width // 8), max(1, picture.height // 8)))  # all data is read, few pixels are made
            picture.load()
    except Image.DecompressionBombError as error:
        return BadSample(f"picture {path!r} is too large to decode ({error})")
    except Exception as error:  # Pillow raises nearly anything on damaged data
        return BadSample(f"picture {path!r} cannot be decoded ({type(error).__name__}: {error})")
    return Record(Path(path).stem, {name: Ref(path, 0, len(data)), **others}, _identity(data))


def _tar_records(unit: Unit) -> Iterator[Record]:
    _, where = scan(Path(unit.path))
    for i in range(len(where.crc32)):
        places = zip(where.fields, where.offsets[i].tolist(), where.sizes[i].tolist(), strict=True)
        found: dict[str, bytes | Ref] = {name: Ref(unit.path, offset, size) for name, offset, size in places if offset}
        yield Record(where.key(i).rsplit("/", 1)[-1], found, _identity(where.crc32[i].tobytes() + where.sizes[i].tobytes()))
