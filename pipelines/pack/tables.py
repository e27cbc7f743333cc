"""Tables: jsonl, csv, tsv and parquet files."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...shared.errors import BadSample, UserError

TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")


def columns(path: Path) -> set[str]:
    """The columns of a table, judged by its head."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return set(parquet(path).schema_arrow.names)
    with path.open("rb") as file:
        line = file.readline(1 << 20)
    if suffix in (".jsonl", ".ndjson"):
        try:
            head = json.loads(line)
        except ValueError:
            return set()
        return set(head) if isinstance(head, dict) else set()
    return set(next(csv.reader([line.decode("utf-8-sig", "replace")], delimiter=delimiter(path)), []))


def delimiter(path: Path) -> str:
    """What stands between the cells of a csv or tsv file."""
    return "\t" if path.suffix.lower() == ".tsv" else ","


def rows(path: Path, begin: int, end: int) -> Iterator[dict[str, Any] | BadSample]:
    """The rows of a table as {column: value}.

    Args:
        path: the table.
        begin: first byte, or first row group of a parquet file.
        end: the byte after the last, of tables that have a row on each line; others are read whole.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        for batch in parquet(path).iter_batches(batch_size=1024, row_groups=[begin]):
            yield from batch.to_pylist()
    elif suffix in (".jsonl", ".ndjson"):
        with path.open("rb") as file:
            file.seek(begin)
            left = end - begin
            while left > 0 and (line := file.readline()):
                left -= len(line)
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield BadSample(f"{path}: a line ending {left} bytes before byte {end} is not JSON ({error})")
                    continue
                yield row if isinstance(row, dict) else BadSample(f"{path}: a line holds {type(row).__name__}, expected a JSON object")
    else:
        csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
        with path.open("r", encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            try:
                yield from csv.DictReader(file, delimiter=delimiter(path))
            except csv.Error as error:
                raise UserError(f"{path} is not a table that can be read ({error})") from None


def parquet(path: Path) -> Any:
    """The open parquet file."""
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise UserError(f"{path}: reading parquet needs pyarrow: pip install 'polymodal[parquet]'") from None
    try:
        return parquet.ParquetFile(path)
    except Exception as error:  # pyarrow's own classes
        raise UserError(f"{path} is not a parquet file that can be read ({' '.join(str(error).split())})") from None
