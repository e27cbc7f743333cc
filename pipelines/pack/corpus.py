"""A corpus as a stream of texts, for vocabularies and tables of words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ...shared.errors import BadSample, UserError
from ...shared.sample import Sample
from ..base.files import told
from .cells import Ref
from .records import records
from .settings import Reading
from .sources import find


def iterate_texts(sources: Sequence[str | Path], *, split: str = "blank", text_field: str = "text",
                  warn: Callable[[str], None] = lambda line: None) -> Iterator[str]:
    """The texts of `iterate_samples`."""
    return (sample.text() for sample in iterate_samples(sources, Reading(split=split, text_field=text_field), warn))


def iterate_samples(sources: Sequence[str | Path], reading: Reading, warn: Callable[[str], None] = lambda line: None) -> Iterator[Sample]:
    """The texts of files, tables and WebDataset directories as samples, in an order that depends on the input alone.

    A text that cannot be read is the user's mistake here: a vocabulary learnt from half a corpus is of no use.

    Args:
        sources: text, jsonl, csv, tsv and parquet files, folders of them, tars and WebDataset directories.
        reading: how texts and tables are read; where it names no kind, they are texts.
        warn: told how many files of a folder are not read.
    """
    for source in sources:
        path = Path(source)
        tars = sorted(path.rglob("*.tar")) if path.is_dir() else []
        # a WebDataset directory also holds its index: its tars are its content
        here = Reading(kind="tar") if tars or path.suffix.lower() == ".tar" else replace(reading, kind=reading.kind or "text")
        try:
            found = find(tars or [path], here)
        except UserError as error:
            raise UserError(str(error).removeprefix("nothing was packed: ")) from None
        if found.left_out:
            warn(f"{sum(found.left_out.values())} files of {path} are not read: {told(found.left_out)}")
        for unit in found.units:
            for record in records(unit, here):
                if isinstance(record, BadSample):
                    raise UserError(str(record))
                fields = {name: value.read() if isinstance(value, Ref) else value for name, value in record.fields.items()}
                sample = Sample(record.name, fields, source=unit.path)
                try:
                    sample.text()
                    sample.units()
                except BadSample as error:
                    raise UserError(str(error)) from None
                yield sample
