"""What `pack` reads: text files, tables, picture folders and tars, as units of work and records.

A plan lists the units of a packing run in an order that depends on the input alone; each unit can be
read by any process at any time and gives its records one by one.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ...shared.errors import BadSample, UserError, raise_problems
from ...shared.sample import MAX_PIXELS, PAIR_FIELD, TARGET_FIELD
from ..base.files import pread
from ..data.index import INDEX, scan

TEXTS = (".txt", ".md", ".text")
TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_FIELD_OF_FORMAT = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
LABEL = ":class"
"""Where a record keeps the name of its class until it is written; no field of a tar is called so."""
KINDS = ("text", "pairs", "images", "tar")
_JPEG_END = b"\xff\xd9"
_UNIT_BYTES = 32 << 20
_UNIT_FILES = 2000


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


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of the input that one process reads."""

    kind: str
    path: str
    begin: int = 0
    """First byte of a text, first row group of a parquet file."""
    end: int = -1
    files: tuple[tuple[str, int], ...] = ()
    """(path, class) of pictures; class -1 where there are none."""

    @property
    def size(self) -> int:
        """A measure of the work, for the progress bar."""
        return len(self.files) if self.files else self.end - self.begin


@dataclass(frozen=True)
class Reading:
    """How sources are read.

    Args:
        kind: text, pairs, images or tar; guessed where it is None.
        split: where a plain text is cut into documents: ``blank`` lines, every ``line``, not at all (``file``),
            or at lines equal to this string.
        text_field: the column or JSON field with the text.
        image_field: the column with the path of a picture, relative to the table.
        caption_field: the column with its caption.
        label_field: the column of a text's class, a name or a whole number.
        pair_field: the column with the second text of a pair.
        target_field: the column with the text to be written for a text.
        classes: the names of all classes in the order of their numbers; by default those that occur, sorted.
    """

    kind: str | None = None
    split: str = "blank"
    text_field: str = "text"
    image_field: str = "image"
    caption_field: str = "caption"
    label_field: str | None = None
    pair_field: str | None = None
    target_field: str | None = None
    classes: tuple[str, ...] | None = None

    @property
    def columns(self) -> dict[str, str]:
        """The columns that are read beside the text, by option."""
        given = {"--label-field": self.label_field, "--pair-field": self.pair_field, "--target-field": self.target_field}
        return {option: name for option, name in given.items() if name is not None}


@dataclass(frozen=True)
class Plan:
    """Everything that will be read."""

    kind: str
    units: tuple[Unit, ...]
    classes: tuple[str, ...] = ()
    files: tuple[tuple[str, int, int], ...] = field(default=())
    """(path, size, time of change) of every input file: tells whether an interrupted run can be continued."""


def plan(sources: Sequence[str | Path], reading: Reading) -> Plan:
    """Look at the sources and cut them into units; every problem is found before anything is written."""
    if reading.kind not in (None, *KINDS):
        raise UserError(f"--kind {reading.kind!r} is unknown, expected one of {', '.join(KINDS)}")
    roots = [Path(s) for s in sources]
    if not roots:
        raise UserError("nothing to pack: name at least one file or folder")
    files: list[tuple[Path, Path]] = []  # (file, the root it was found under)
    problems: list[str] = []
    for root in roots:
        if root.is_dir():
            found = _visible(root)
            if not found:
                problems.append(f"folder {str(root)!r} is empty")
            files += [(p, root) for p in found]
        elif root.is_file():
            files.append((root, root.parent))
        else:
            problems.append(f"{str(root)!r} does not exist")
    problems += [f"{str(p)!r} is an empty file" for p, _ in files if p.suffix.lower() not in PICTURES and p.stat().st_size == 0]
    raise_problems(problems, "nothing was packed")
    kind = reading.kind or _guess([p for p, _ in files], reading)
    wanted = {"text": (*TEXTS, *TABLES), "pairs": TABLES, "images": PICTURES, "tar": (".tar",)}[kind]
    used = [(p, root) for p, root in files if p.suffix.lower() in wanted]
    for root in roots:
        if root.is_file() and root.suffix.lower() not in wanted:
            problems.append(f"{str(root)!r} has the wrong type for --kind {kind}, expected {' '.join(wanted)}")
    if not used and not problems:
        problems.append(f"no file of --kind {kind} in {', '.join(map(str, roots))}, expected {' '.join(wanted)}")
    problems += _column_problems(kind, [p for p, _ in used], reading)
    raise_problems(problems, "nothing was packed")
    classes = reading.classes or ()
    if kind == "images":
        units, classes = _image_units(used, classes)
    elif kind == "tar":
        units = [Unit("tar", str(p), 0, p.stat().st_size) for p, _ in used]
    else:
        units = [u for p, _ in used for u in _text_units(p, kind, reading)]
    real: dict[Path, str] = {}  # folders without links, looked at once
    return Plan(kind, tuple(units), classes, tuple(_state(p, real) for p, _ in used))


def _visible(root: Path) -> list[Path]:
    """The files under a folder that are not hidden, in the order of their paths' parts."""
    found: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted((path for path in found if path.is_file()), key=lambda path: path.parts)


def _state(path: Path, real: dict[Path, str]) -> tuple[str, int, int]:
    """(path without links, size, time of change) of a file."""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        found = path.stat()
        return str(path.resolve()), found.st_size, found.st_mtime_ns
    folder = path.parent
    if folder not in real:
        real[folder] = str(folder.resolve())
    return f"{real[folder].rstrip(os.sep)}{os.sep}{path.name}", found.st_size, found.st_mtime_ns


def _guess(files: list[Path], reading: Reading) -> str:
    suffixes = {p.suffix.lower() for p in files}
    if suffixes == {".tar"} or (".tar" in suffixes and all(p.suffix in (".tar", ".idx") or p.name == INDEX for p in files)):
        return "tar"
    tables = [p for p in files if p.suffix.lower() in TABLES]
    if tables and all({reading.image_field, reading.caption_field} <= _columns(p) for p in tables):
        return "pairs"
    if suffixes & set(TEXTS) or tables:
        if suffixes & set(PICTURES):
            raise UserError("the sources hold pictures and texts: say what is meant with --kind images, text or pairs "
                            f"(pairs: a table with the columns {reading.image_field!r} and {reading.caption_field!r})")
        return "text"
    if suffixes & set(PICTURES):
        return "images"
    raise UserError(f"cannot tell what to pack from files of type {', '.join(sorted(s or '(none)' for s in suffixes))}: expected "
                    f"{' '.join((*TEXTS, *TABLES, *PICTURES[:4], '.tar'))}")


def _column_problems(kind: str, used: list[Path], reading: Reading) -> Iterator[str]:
    """What is wrong with the columns that were asked for beside the text."""
    if reading.classes is not None and len(set(reading.classes)) < len(reading.classes):
        yield "--classes names a class twice"
    if reading.classes is not None and reading.label_field is None and kind != "images":
        yield "--classes numbers the classes of pictures in folders, or of texts with --label-field: give that, or leave it out"
    if reading.columns and kind != "text":
        yield f"{', '.join(reading.columns)} name columns of tables with texts; these sources are packed as {kind}"
    elif reading.columns:
        bare = next((p for p in used if p.suffix.lower() not in TABLES), None)
        if bare is not None:
            yield f"{str(bare)!r} is no table, so it has no {', '.join(reading.columns.values())}: expected {' '.join(TABLES)}"


def _columns(path: Path) -> set[str]:
    """The columns of a table, judged by its head."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return set(_parquet(path).schema_arrow.names)
    with path.open("rb") as file:
        line = file.readline(1 << 20)
    if suffix in (".jsonl", ".ndjson"):
        try:
            head = json.loads(line)
        except ValueError:
            return set()
        return set(head) if isinstance(head, dict) else set()
    return set(next(csv.reader([line.decode("utf-8-sig", "replace")], delimiter=_delimiter(path)), []))


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _image_units(files: list[tuple[Path, Path]], given: tuple[str, ...]) -> tuple[list[Unit], tuple[str, ...]]:
    """Units of pictures; the first sub-folder is the class, one of those `given` where they are."""
    parts = [(p, p.parts[len(root.parts) :]) for p, root in files]
    labelled = [p for p, relative in parts if len(relative) > 1]
    if labelled and len(labelled) < len(parts):
        bare = next(p for p, relative in parts if len(relative) == 1)
        raise UserError(f"picture {str(bare)!r} lies beside the class folders: put it into one, or pack a folder without sub-folders")
    classes = tuple(sorted({relative[0] for _, relative in parts})) if labelled else ()
    if given and (strange := sorted(set(classes) - set(given)) or ([] if labelled else ["none"])):
        raise UserError(f"the folders' classes are {', '.join(strange[:8])}, which --classes does not name")
    classes = given or classes
    number = {name: i for i, name in enumerate(classes)}
    rows = [(str(p), number.get(relative[0], -1)) for p, relative in parts]
    return [Unit("images", "", files=tuple(rows[i : i + _UNIT_FILES])) for i in range(0, len(rows), _UNIT_FILES)], classes


def _text_units(path: Path, kind: str, reading: Reading) -> Iterator[Unit]:
    suffix, size = path.suffix.lower(), path.stat().st_size
    if suffix == ".parquet":
        groups = _parquet(path).num_row_groups
        yield from (Unit(kind, str(path), i, i + 1) for i in range(groups))
        return
    whole = suffix in (".csv", ".tsv") or (suffix in TEXTS and reading.split not in ("blank", "line"))
    begin = 0
    with path.open("rb") as file:
        while begin < size:
            end = size
            if not whole and begin + _UNIT_BYTES < size:
                file.seek(begin + _UNIT_BYTES)
                line = file.readline()
                while suffix in TEXTS and reading.split == "blank" and line and (line := file.readline()).strip():
                    pass
                end = file.tell()
            yield Unit(kind, str(path), begin, end)
            begin = end


def records(unit: Unit, reading: Reading) -> Iterator[Record | BadSample]:
    """The records of a unit, in order; a record that cannot be used comes as the reason."""
    if unit.kind == "images":
        return (_picture(path, {"cls": str(label).encode()} if label >= 0 else {}) for path, label in unit.files)
    if unit.kind == "tar":
        return _tar_records(unit)
    if unit.kind == "pairs":
        return _pairs(unit, reading)
    if Path(unit.path).suffix.lower() in TABLES:
        return (_table_record(row, reading, unit.path) for row in _rows(unit))
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


def _rows(unit: Unit) -> Iterator[dict[str, Any] | BadSample]:
    """The rows of a table as {column: value}."""
    path = Path(unit.path)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        for batch in _parquet(path).iter_batches(batch_size=1024, row_groups=[unit.begin]):
            yield from batch.to_pylist()
    elif suffix in (".jsonl", ".ndjson"):
        with path.open("rb") as file:
            file.seek(unit.begin)
            left = unit.end - unit.begin
            while left > 0 and (line := file.readline()):
                left -= len(line)
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield BadSample(f"{path}: a line ending {left} bytes before byte {unit.end} is not JSON ({error})")
                    continue
                yield row if isinstance(row, dict) else BadSample(f"{path}: a line holds {type(row).__name__}, expected a JSON object")
    else:
        csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
        with path.open("r", encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            try:
                yield from csv.DictReader(file, delimiter=_delimiter(path))
            except csv.Error as error:
                raise UserError(f"{path} is not a table that can be read ({error})") from None


def _cell(row: dict[str, Any] | BadSample, name: str, path: str) -> str | BadSample:
    if isinstance(row, BadSample):
        return row
    value = row.get(name)
    if not isinstance(value, str):
        seen = ", ".join(str(k) for k in list(row)[:8])
        return BadSample(f"{path}: a row has no text in {name!r}, its columns are {seen} "
                         "(--text-field, --pair-field, --target-field, --image-field, --caption-field)")
    return value


def _parquet(path: Path) -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise UserError(f"{path}: reading parquet needs pyarrow: pip install 'polymodal[parquet]'") from None
    try:
        return parquet.ParquetFile(path)
    except Exception as error:  # pyarrow's own classes
        raise UserError(f"{path} is not a parquet file that can be read ({' '.join(str(error).split())})") from None


def _pairs(unit: Unit, reading: Reading) -> Iterator[Record | BadSample]:
    for row in _rows(unit):
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
        name = _FIELD_OF_FORMAT.get(picture.format or "")
        if name is None:
            return BadSample(f"picture {path!r} is {picture.format}, expected JPEG, PNG or WebP: convert it")
        if picture.width * picture.height > MAX_PIXELS:
            return BadSample(f"picture {path!r} has {picture.width}x{picture.height} pixels, at most {MAX_PIXELS} are decoded")
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
