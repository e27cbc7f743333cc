"""Sorted runs on disk: the records of a packing run between reading and writing.

Each unit's records get a random (or running) number, are collected, sorted by it and written as runs of
bounded size. A shard is then a range of numbers, found in each run as one range of bytes: a shuffle of
any amount of data in bounded memory, the same whoever reads what.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..base.files import temporary_path, write_atomic
from ..data.order import random_bits
from .cells import Record, Ref

_RUN_BYTES = 64 << 20
_DRAWN = 4096


ROW = np.dtype([("number", "<u8"), ("size", "<u4"), ("identity", "<u8"), ("pieces", "<u4"), ("end", "<u8")])
"""A row of a run's table: the record's place in the order of everything, its bytes in a tar (or tokens), the
hash of its content, of how many pieces its document is (0: it is a later one of them), and where it ends in the run's data."""


def table(folder: Path, run: str) -> np.ndarray:
    """The table of a run, mapped: only the rows that are looked at are read."""
    return np.load(folder / f"{run}.npy", mmap_mode="r", allow_pickle=False)


def held_out(identities: np.ndarray, below: int) -> np.ndarray:
    """Which records are held out: those whose identity is below a threshold."""
    return identities < np.uint64(below)


class Spool:
    """Collects the records of one unit and writes them as sorted runs."""

    def __init__(self, folder: Path, unit: int, seed: int | None) -> None:
        """Write runs `folder/UNIT-RUN.bin`; with `seed` None the records keep their order."""
        self._folder, self._unit, self._seed = folder, unit, seed
        self._rows: list[tuple[int, int, int, int, bytes]] = []  # number, size, identity, pieces, data
        self._bytes = self._count = 0
        self._bits = np.zeros(0, dtype=np.uint64)
        self.runs: list[str] = []

    def add(self, record: Record, size: int, pieces: int = 1) -> None:
        """Take one record; `size` is what it will need in a shard, `pieces` stands in its `ROW`."""
        place = self._count % _DRAWN
        if self._seed is not None and place == 0:
            self._bits = random_bits(_DRAWN, "pack", self._seed, self._unit, self._count)
        number = (self._unit << 40) + self._count if self._seed is None else int(self._bits[place])
        data = encode(record)
        self._rows.append((number, size, int.from_bytes(record.identity, "little"), pieces, data))
        self._count += 1
        self._bytes += len(data) + 64
        if self._bytes >= _RUN_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what was collected as a run."""
        if not self._rows:
            return
        self._rows.sort(key=lambda row: row[0])  # stable: equal numbers keep their order
        name = f"{self._unit:06d}-{len(self.runs):04d}"
        rows = np.zeros(len(self._rows), dtype=ROW)
        for i, column in enumerate(("number", "size", "identity", "pieces")):
            rows[column] = np.array([r[i] for r in self._rows], dtype=np.uint64)
        rows["end"] = np.cumsum([len(r[4]) for r in self._rows])
        # under names of their own first: a worker taken for dead may still be writing the same run
        places = [self._folder / f"{name}.bin", self._folder / f"{name}.npy"]
        data, rows_file = (temporary_path(place) for place in places)
        with data.open("wb") as file:
            file.writelines(r[4] for r in self._rows)
        with rows_file.open("wb") as file:
            np.save(file, rows, allow_pickle=False)
        data.replace(places[0])
        rows_file.replace(places[1])
        self.runs.append(name)
        self._rows, self._bytes = [], 0


def encode(record: Record) -> bytes:
    """A record as bytes."""
    values = [[k, [v.path, v.offset, v.size] if isinstance(v, Ref) else len(v)] for k, v in record.fields.items()]
    header = json.dumps([record.name, values]).encode()
    return b"".join([len(header).to_bytes(4, "little"), header, *(v for v in record.fields.values() if isinstance(v, bytes))])


def decode(data: memoryview) -> tuple[str, dict[str, bytes | Ref]]:
    """(name, fields) of a record's bytes."""
    begin = 4 + int.from_bytes(data[:4], "little")
    name, values = json.loads(bytes(data[4:begin]))
    fields: dict[str, bytes | Ref] = {}
    for key, value in values:
        if isinstance(value, list):
            fields[key] = Ref(*value)
        else:
            fields[key] = bytes(data[begin : begin + value])
            begin += value
    return name, fields


def gather(folder: Path, ranges: tuple[tuple[str, int, int], ...], held: bool, below: int) -> Iterator[tuple[str, dict[str, bytes | Ref]]]:
    """The records of ranges of runs, merged into the order of everything.

    Args:
        folder: where the runs are.
        ranges: (run, first row, row after the last).
        held: whether the held-out records or the others are wanted.
        below: the identity below which a record is held out.
    """
    numbers: list[np.ndarray] = []
    parts: list[memoryview] = []
    for name, first, last in ranges:
        rows = table(folder, name)[max(first - 1, 0) : last]
        edges = rows["end"].tolist() if first else [0, *rows["end"].tolist()]
        rows = rows[1:] if first else rows
        with (folder / f"{name}.bin").open("rb") as file:
            data = os.pread(file.fileno(), edges[-1] - edges[0], edges[0])
        assert len(data) == edges[-1] - edges[0], f"run {name} is cut"
        chosen = np.flatnonzero(held_out(rows["identity"], below) == held)
        numbers.append(rows["number"][chosen])
        view = memoryview(data)
        parts.extend(view[edges[r] - edges[0] : edges[r + 1] - edges[0]] for r in chosen.tolist())
    for i in np.argsort(np.concatenate(numbers), kind="stable").tolist():
        yield decode(parts[i])


def save_json(path: Path, value: object) -> None:
    """Write a small record atomically."""
    write_atomic(path, json.dumps(value).encode())
