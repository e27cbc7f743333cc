"""The records of a unit: what becomes samples, checked one by one; a record that cannot be used comes as the reason."""

from __future__ import annotations

import io
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ...shared.errors import BadSample
from ...shared.picture import EXPECTED, FIELD_OF_FORMAT, check_bits
from ...shared.regions import box_problem
from ...shared.sample import MAX_PIXELS, PAIR_FIELD, SECOND, TARGET_FIELD, Sample
from ...shared.unicode import is_blank
from ..base.files import COMPRESSED, ending, open_bytes
from ..base.tables import TABLE_ENDINGS, Place, class_names, pick, rows
from ..data.index import scan
from .annotated import FILES, MAKERS, annotated, named_classes
from .cells import LABEL, Record, Ref, cell_of, columns_of, identity, label_of, text_record
from .region_files import read_regions
from .segment import segmented
from .settings import CLASSED, Reading
from .sources import Unit

_JPEG_END = b"\xff\xd9"


def records(unit: Unit, reading: Reading, left_out: Counter[str] | None = None,
            unread: Counter[str] | None = None) -> Iterator[Record | BadSample]:
    """The records of a unit, in order; a record that cannot be used comes as the reason.

    Args:
        unit: what to read.
        reading: how.
        left_out: counts, by ending, members of tars that belong to no sample.
        unread: counts, by name, columns of annotated records that are not read.
    """
    found, name = _records(unit, reading, left_out, unread), reading.segment
    return found if name is None else (record if isinstance(record, BadSample) else segmented(record, name) for record in found)


def _records(unit: Unit, reading: Reading, left_out: Counter[str] | None, unread: Counter[str] | None) -> Iterator[Record | BadSample]:
    """The records as they are read."""
    if unit.files:
        return (_picture_file(path, label, beside, unit.kind) for path, label, beside in unit.files)
    path = Path(unit.path)
    if unit.kind == "tar":
        return _tar_records(path, left_out)
    if ending(path) not in TABLE_ENDINGS and unit.kind in FILES:
        return (row if isinstance(row, BadSample) else annotated(unit.kind, row, reading, place) for place, row in FILES[unit.kind](path))
    if ending(path) not in TABLE_ENDINGS:
        return (text_record(text, path) for text in _documents(unit, reading.split))
    if unit.kind in MAKERS:
        named = named_classes(path, reading) if unit.kind in ("words", *CLASSED) else lambda row: row
        return (row if isinstance(row, BadSample) else annotated(unit.kind, named(row), reading, place, unread)
                for place, row in rows(path, unit.begin, unit.end))
    make = _table_record if unit.kind == "text" else _region_record if unit.kind == "regions" else partial(
        _picture_record, pairs=unit.kind == "pairs")
    names = None if reading.label_field is None else class_names(path, reading.label_field)
    return (row if isinstance(row, BadSample) else make(row, reading, place, names) for place, row in rows(path, unit.begin, unit.end))


def _table_record(row: dict[str, Any], reading: Reading, where: Place, names: Sequence[str] | None) -> Record | BadSample:
    """A text with its class, its second text, its target. The class stays a name until all names are known (`LABEL`)."""
    columns = ((reading.text_field, "txt"), (reading.pair_field, PAIR_FIELD), (reading.target_field, TARGET_FIELD))
    fields: dict[str, bytes | Ref] = {}
    for cell, key in [(cell_of(row, name, where), key) for name, key in columns if name is not None] + (
            [(label_of(row, reading, where, names), LABEL)] if reading.label_field is not None else []):
        part = cell if isinstance(cell, BadSample) else text_record(cell, where)
        if isinstance(part, BadSample):
            return part
        fields[key] = part.fields["txt"]
    text = fields["txt"]
    assert isinstance(text, bytes)
    return Record("", fields, identity(text))


def sorted_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in the order of their numbers: sorted, by value where all are whole numbers."""
    found = sorted(set(names))
    numbers = all(re.fullmatch(r"-?[0-9]+", name) for name in found)
    return tuple(sorted(found, key=int) if numbers else found)


def _documents(unit: Unit, split: str) -> Iterator[bytes]:
    """The documents of a plain text's byte range (of a compressed one: of all); blank ones are no documents."""
    path = Path(unit.path)
    with open_bytes(path) as file:
        if unit.begin:
            file.seek(unit.begin)
        left, document = sys.maxsize if ending(path).endswith(COMPRESSED) else unit.end - unit.begin, []
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
    return () if is_blank(document.decode("utf-8", "replace")) else (document,)


def _picture_record(row: dict[str, Any], reading: Reading, where: Place, names: Sequence[str] | None, *, pairs: bool
                    ) -> Record | BadSample:
    """A picture of a table, of `pairs` with its caption (or list of captions), and its class."""
    found: dict[str, bytes | Ref] = {}
    answers: tuple[str, ...] = ()
    if pairs:
        caption = _captions(row, reading, where)
        if isinstance(caption, BadSample):
            return caption
        found |= caption.fields
    if reading.label_field is not None:
        named = _named(row, reading, where, names, found, scored=pairs)
        if isinstance(named, BadSample):
            return named
        answers = named
    shown = _one_or_two(pick(row, reading.image_field), where, "pictures") if pairs else [pick(row, reading.image_field)]
    if isinstance(shown, BadSample):
        return shown
    made: list[Record] = []
    for image in shown:
        data, path = (image.get("bytes"), image.get("path")) if isinstance(image, Mapping) else (image, image)
        if isinstance(data, bytes):
            one = _picture(data, data, f"{where}: the picture", {} if made else found)
        elif isinstance(path, str):
            one = _picture_from(str(where.path.parent / path), {} if made else found)
        else:
            one = BadSample(f"{where}: no picture in {reading.image_field!r} (a path, bytes, or bytes and path), {columns_of(row)} "
                            "(--image-field)")
        if isinstance(one, BadSample):
            return one
        made.append(one)
    return replace(_both(made), classes=answers)


def _one_or_two(value: Any, where: Place, what: str) -> list[Any] | BadSample:
    """A picture, or the two of a list."""
    if isinstance(value, list):
        return value if len(value) == 2 else BadSample(f"{where}: a list of {len(value)} {what}, expected one, or a list of two")
    return [value]


def _both(made: Sequence[Record]) -> Record:
    """The record of one picture, or that of two: the second's fields are those of `Sample.second`."""
    first, *rest = made
    fields, parts = dict(first.fields), [first.identity]
    for other in rest:
        fields |= {f"{SECOND}{name}": data for name, data in other.fields.items()}
        parts.append(other.identity)
    return replace(first, fields=fields, identity=first.identity if not rest else identity(b"".join(parts)))


def _named(row: dict[str, Any], reading: Reading, where: Place, names: Sequence[str] | None, fields: dict[str, bytes | Ref], *,
           scored: bool) -> tuple[str, ...] | BadSample:
    """Put the class of a row into its fields, or with `scored` a box, or answers with scores from 0 to 1; the names of these answers."""
    assert reading.label_field is not None
    given = pick(row, reading.label_field)
    record = json.loads(held) if isinstance(held := fields.get("json"), bytes) else {}
    if scored and isinstance(given, list):
        if problem := box_problem(given):
            return BadSample(f"{where}: {reading.label_field!r}: {problem}")
        fields["json"] = json.dumps({**record, "box": given}, ensure_ascii=False).encode("utf-8")
        return ()
    if not scored or not isinstance(given, Mapping):
        label = label_of(row, reading, where, names)
        if isinstance(label, BadSample):
            return label
        fields[LABEL] = label.encode("utf-8")
        return ()
    for name, score in given.items():
        if not isinstance(name, str) or is_blank(name) or not _is_share(score):
            return BadSample(f"{where}: {reading.label_field!r} scores {str(name)[:40]!r} by {str(score)[:40]!r}, expected names with "
                             "numbers from 0 to 1")
    fields["json"] = json.dumps({**record, "scores": given}, ensure_ascii=False).encode("utf-8")
    return tuple(given)


def _is_share(score: Any) -> bool:
    return not isinstance(score, bool) and isinstance(score, (int, float)) and 0 <= score <= 1


def _region_record(row: dict[str, Any], reading: Reading, where: Place, names: Sequence[str] | None) -> Record | BadSample:
    """A caption, or a list of captions, with the regions of its picture, which are in a file."""
    caption = _captions(row, reading, where)
    if isinstance(caption, BadSample):
        return caption
    others, answers = dict(caption.fields), ()
    if reading.label_field is not None:
        named = _named(row, reading, where, names, others, scored=True)
        if isinstance(named, BadSample):
            return named
        answers = named
    paths = _one_or_two(pick(row, reading.image_field), where, "files with regions")
    if isinstance(paths, BadSample):
        return paths
    made: list[Record] = []
    for path in paths:
        if not isinstance(path, str):
            return BadSample(f"{where}: no path of an .npz file with regions in {reading.image_field!r}, {columns_of(row)} (--image-field)")
        try:
            found = read_regions(where.path.parent / path)
        except BadSample as error:
            return BadSample(f"{where}: {error}")
        data = found.fields()
        made.append(Record(Path(path).stem, {**data}, identity(b"".join(data.values())), answers, found.shape))
    if made[-1].regions != made[0].regions:
        return BadSample(f"{where}: the regions of its two pictures have widths {made[0].regions} and {made[-1].regions} (features, "
                         "classes): all must be of one detector")
    whole = _both(made)
    return replace(whole, fields={**others, **whole.fields})


def _captions(row: dict[str, Any], reading: Reading, where: Place) -> Record | BadSample:
    """The caption as field `txt`, or several as a list in field `json`, of which training draws one each time."""
    value = pick(row, reading.caption_field)
    if not isinstance(value, list):
        cell = cell_of(row, reading.caption_field, where)
        return cell if isinstance(cell, BadSample) else text_record(cell, where)
    parts = [text_record(text, where) if isinstance(text, str) else BadSample(
        f"{where}: the list in {reading.caption_field!r} holds {type(text).__name__}, expected captions") for text in value]
    if (bad := next((part for part in parts if isinstance(part, BadSample)), None)) is not None:
        return bad
    if not parts:
        return BadSample(f"{where}: the list in {reading.caption_field!r} is empty")
    data = json.dumps({"captions": [text.strip() for text in value]}, ensure_ascii=False).encode("utf-8")
    return Record("", {"json": data}, identity(data))


def _picture_file(path: str, label: int, beside: Sequence[str], kind: str) -> Record | BadSample:
    """A picture with its class, or with what lies beside it: `001.txt` (the caption), `001.json`, `001.cls` of `001.jpg`."""
    fields: dict[str, bytes | Ref] = {"cls": str(label).encode()} if label >= 0 else {}
    for other in beside:
        name, data = Path(other).suffix.lower()[1:], Path(other).read_bytes()
        if name == "txt":
            part = text_record(data.removeprefix(b"\xef\xbb\xbf"), Path(other))
            if isinstance(part, BadSample):
                return part
            data = part.fields["txt"]
        fields[name] = data
    sample = Sample(path, {name: data for name, data in fields.items() if isinstance(data, bytes)}, source="the folder")
    try:
        if "cls" in fields:
            sample.label()
        if "json" in fields:
            sample.json()
        if kind == "pairs" and "txt" not in fields:
            from ...multimodal.pairs import captions

            if "json" not in fields:
                return BadSample(f"picture {path!r} has no caption: expected {Path(path).stem}.txt, or .json with 'caption', beside it")
            captions(sample)
    except BadSample as error:
        return error
    return _picture_from(path, fields)


def _picture_from(path: str, others: dict[str, bytes | Ref]) -> Record | BadSample:
    """A picture file, whose bytes stay there until a shard is written."""
    try:
        with open(path, "rb", buffering=0) as file:
            data = file.read()
    except (OSError, ValueError) as error:
        return BadSample(f"picture {path!r} cannot be read ({getattr(error, 'strerror', None) or error})")
    return _picture(data, Ref(path, 0, len(data)), f"picture {path!r}", others, Path(path).stem)


def _picture(data: bytes, kept: bytes | Ref, what: str, others: dict[str, bytes | Ref], stem: str = "") -> Record | BadSample:
    """A picture, looked at closely: type by content, size limit, and that it is whole.

    A JPEG that ends with its end mark is taken to be whole; any other picture is decoded. (Decoding finds one in twenty JPEGs with damaged
    bytes inside, for the others it makes some pixels.)
    """
    try:
        picture = Image.open(io.BytesIO(data))
        name = FIELD_OF_FORMAT.get(picture.format or "")
        if name is None:
            return BadSample(f"{what} is {picture.format}, expected {EXPECTED}: convert it")
        if picture.width * picture.height > MAX_PIXELS:
            return BadSample(f"{what} has {picture.width}x{picture.height} pixels, at most {MAX_PIXELS} are decoded")
        check_bits(picture)
        if name != "jpg" or not data.endswith(_JPEG_END):
            picture.draft("RGB", (max(1, picture.width // 8), max(1, picture.height // 8)))  # all data is read, few pixels are made
            picture.load()
    except Image.DecompressionBombError as error:
        return BadSample(f"{what} is too large to decode ({error})")
    except Exception as error:  # Pillow raises nearly anything on damaged data
        return BadSample(f"{what} cannot be decoded ({type(error).__name__}: {error})")
    return Record(stem, {name: kept, **others}, identity(data))


def _tar_records(path: Path, left_out: Counter[str] | None) -> Iterator[Record]:
    _, where = scan(path, left_out)
    for i in range(len(where.crc32)):
        places = zip(where.fields, where.offsets[i].tolist(), where.sizes[i].tolist(), strict=True)
        found: dict[str, bytes | Ref] = {name: Ref(str(path), offset, size) for name, offset, size in places if offset}
        yield Record(where.key(i).rsplit("/", 1)[-1], found, identity(where.crc32[i].tobytes() + where.sizes[i].tobytes()))
