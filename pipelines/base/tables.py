"""Tables: jsonl, csv, tsv and parquet files, the texts among them also compressed. No row is lost in silence.

A csv file is read by RFC 4180. A tsv file where every line has as many cells as its head has a row on each line, and a quote mark that does
not enclose a whole cell is a part of the text (as GLUE and Conceptual Captions write them); any other tsv file is read as csv is.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ...shared.errors import BadSample, UserError
from ...shared.keys import read_json
from ...shared.unicode import half_character
from .files import COMPRESSED, ending, open_bytes
from .install import install_line

LINES = (".jsonl", ".ndjson")
TABLES = (*LINES, ".csv", ".tsv", ".parquet")
TABLE_ENDINGS = (*TABLES, *(f"{table}{packed}" for table in TABLES[:-1] for packed in COMPRESSED))
"""All endings of files that `rows` reads."""


DATASET_INFO = "dataset_info.json"
"""Beside the parquet files of a data set of Hugging Face: what its columns are."""


def kind_of(path: Path) -> str:
    """What a table is, by its ending: one of `TABLES`."""
    end = ending(path)
    return next((end.removesuffix(packed) for packed in COMPRESSED if end.endswith(packed)), end)


def columns(path: Path) -> dict[str, Any]:
    """The columns of a table, judged by its head: of jsonl and parquet with what they hold (a first value, a type), else with None."""
    kind = kind_of(path)
    if kind == ".parquet":
        return {field.name: field.type for field in parquet(path).schema_arrow}
    if kind in LINES:
        with open_bytes(path) as file:
            line = next((line for line in islice(file, 100) if line.strip()), b"")
        try:
            head = json.loads(line)
        except (ValueError, RecursionError):
            return {}
        return head if isinstance(head, dict) else {}
    with _text(path) as file:
        _, head = next(_cells(path, file), (0, []))
    return dict.fromkeys(head)


def pick(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column, or of a field inside one (`meta.text`, `captions.0`); None where there is none."""
    if name in row or "." not in name:
        return row.get(name)
    value: Any = row
    for part in name.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


class Place(NamedTuple):
    """Where a row is, as text: the file and the line (of parquet: the row), from 1."""

    path: Path
    number: int
    """Counted from `begin`."""
    begin: int = 0
    """As in `rows`."""

    def __str__(self) -> str:
        unit = "row" if kind_of(self.path) == ".parquet" else "line"
        return f"{self.path}, {unit} {_before(self.path, self.begin) + self.number}"


Row = tuple[Place, dict[str, Any] | BadSample]


def rows(path: Path, begin: int = 0, end: int | None = None) -> Iterator[Row]:
    """Each row as (its place, {column: value}). A row that cannot be read comes as the reason.

    Args:
        path: the table.
        begin: first byte of a jsonl file, or first row group of a parquet file; other tables are read whole.
        end: the byte or row group after the last; by default all.

    Raises:
        UserError: the file is damaged so that it is not known where its rows begin.
    """
    kind = kind_of(path)
    if kind == ".parquet":
        file = parquet(path)
        _need_unique(file.schema_arrow.names, path)
        groups = list(range(begin, file.num_row_groups if end is None else end))
        yield from ((Place(path, number, begin), row) for number, row in enumerate(_parquet_rows(path, file, groups), 1))
    elif kind in LINES:
        yield from _json_rows(path, begin, None if ending(path) != kind else end)
    else:
        yield from _table_rows(path)


@lru_cache(maxsize=64)
def _before(path: Path, begin: int) -> int:
    """Lines, or rows, before a place in a table."""
    if not begin:
        return 0
    if kind_of(path) == ".parquet":
        file = parquet(path)
        return sum(file.metadata.row_group(group).num_rows for group in range(begin))
    with path.open("rb") as opened:
        found, left = 0, begin
        while left > 0 and (data := opened.read(min(left, 1 << 20))):
            found, left = found + data.count(b"\n"), left - len(data)
    return found


def _parquet_rows(path: Path, file: Any, groups: list[int]) -> Iterator[dict[str, Any]]:
    batches = file.iter_batches(batch_size=256, row_groups=groups)
    while True:
        try:
            batch = next(batches, None)
            found = [] if batch is None else batch.to_pylist()
        except Exception as error:  # pyarrow's own classes
            raise UserError(f"{path} is damaged ({' '.join(str(error).split())}): write or copy it again") from None
        if batch is None:
            return
        yield from found


def _json_rows(path: Path, begin: int, end: int | None) -> Iterator[Row]:
    with open_bytes(path) as file:
        if begin:
            file.seek(begin)
        left = sys.maxsize if end is None else end - begin
        number = 0
        while left > 0 and (line := file.readline()):
            left -= len(line)
            number += 1
            if not line.strip():
                continue
            place = Place(path, number, begin)
            try:
                row = json.loads(line, object_pairs_hook=_each_once)
            except _Twice as error:
                yield place, BadSample(f"{place}: the field {error.args[0]!r} occurs twice in an object: give each a name of its own")
                continue
            except (ValueError, RecursionError) as error:
                yield place, BadSample(f"{place} is not JSON ({error})")
                continue
            if isinstance(row, dict):
                yield place, row
            else:
                yield place, BadSample(f"{place} holds {type(row).__name__}, expected a JSON object")


class _Twice(Exception):
    """A name occurs twice in an object of JSON."""


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; of two values of one name none is chosen in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Twice(next(name for n, (name, _) in enumerate(pairs) if name in dict(pairs[:n])))
    return found


def _need_unique(names: Sequence[str], path: Path) -> None:
    """Refuse a table with two columns of one name."""
    if twice := sorted({name for name in names if name and names.count(name) > 1}):
        raise UserError(f"{path}: the column {twice[0]!r} occurs twice: give each column a name of its own")


def _table_rows(path: Path) -> Iterator[Row]:
    with _text(path) as file:
        cells = _cells(path, file)
        _, head = next(cells, (0, []))
        if any(half_character(name) for name in head):
            raise UserError(f"{path} is not UTF-8: convert it first")
        _need_unique(head, path)
        for number, row in cells:
            if len(row) == len(head):
                yield Place(path, number), dict(zip(head, row, strict=True))
            else:
                place = Place(path, number)
                yield place, BadSample(f"{place} has {len(row)} cells and the head has {len(head)} (a cell with a "
                                        f"{'tab' if _delimiter(path) != ',' else 'comma'} or a line end needs quote marks around it)")


def _delimiter(path: Path) -> str:
    return "\t" if kind_of(path) == ".tsv" else ","


def _text(path: Path) -> io.TextIOWrapper:
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", errors="surrogateescape", newline="")


def _cells(path: Path, file: io.TextIOWrapper) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, cells) of each row that is not blank, the head among them."""
    if kind_of(path) == ".tsv" and (quotes := _quotes_by_line(path)) is not None:
        for number, line in enumerate(file, 1):
            if line := line.rstrip("\r\n"):
                cells = line.split("\t")
                yield number, [_unquoted(cell) for cell in cells] if quotes and '"' in line else cells
        return
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.reader(file, delimiter=_delimiter(path), strict=True)
    while True:
        first = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            reason = "a quote mark is never closed" if "end of data" in str(error) else str(error)
            raise UserError(f"{Place(path, first)}: the row that begins here cannot be read ({reason}); a quote mark inside a quoted cell "
                            "is written twice") from None
        if row is None:
            return
        if row:
            yield first, row


def _quotes_by_line(path: Path) -> bool | None:
    """Whether quote marks enclose cells of a tsv file that has a row on each line; None where some line has more or fewer cells."""
    tabs, quotes = 0, True
    with _text(path) as file:
        for line in file:
            if line := line.rstrip("\r\n"):
                tabs = tabs or line.count("\t")
                if not tabs or line.count("\t") != tabs:
                    return None
                if quotes and '"' in line:
                    quotes = all(_unquoted(cell) != cell for cell in line.split("\t") if cell.startswith('"'))
    return quotes


def _unquoted(cell: str) -> str:
    """A cell without the quote marks around it; unchanged where they do not enclose it."""
    inner = cell[1:-1]
    enclosed = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if enclosed else cell


def class_names(path: Path, column: str) -> tuple[str, ...] | None:
    """The names of the classes that a parquet file's whole numbers stand for, as Hugging Face's datasets write them (ClassLabel).

    They are in the file, or in a `dataset_info.json` beside it.

    Raises:
        UserError: that file is no JSON object.
    """
    if kind_of(path) != ".parquet":
        return None
    try:
        inside = json.loads((parquet(path).schema_arrow.metadata or {})[b"huggingface"])["info"]
    except (KeyError, TypeError, ValueError):
        inside = None
    beside = path.with_name(DATASET_INFO)
    return _class_names(inside, column) or (_class_names(read_json(beside), column) if beside.is_file() else None)


def _class_names(info: Any, column: str) -> tuple[str, ...] | None:
    try:
        feature = info["features"][column]
        feature = feature.get("feature", feature)  # a list of them
        return tuple(map(str, feature["names"])) if feature["_type"] == "ClassLabel" else None
    except (AttributeError, KeyError, TypeError):
        return None


def parquet(path: Path) -> Any:
    """The open parquet file."""
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise UserError(f"{path}: reading parquet needs pyarrow: {install_line('parquet')}") from None
    try:
        return parquet.ParquetFile(path)
    except Exception as error:  # pyarrow's own classes
        raise UserError(f"{path} is not a parquet file that can be read ({' '.join(str(error).split())})") from None
