"""`pack --kind cooccurrence`: which words stand near each other in texts, and how near, as shards of records (what GloVe is trained on).

1. Count: pairs of words of one document within a window, each with 1 / distance, are collected and added up; when too many are held,
   they are written as a run, sorted.
2. Merge: range after range of pairs is read from all runs and added up. Each record goes to a bucket by a random number of its own.
3. Write: bucket after bucket is sorted by these numbers and cut into samples of `block` records.

Memory is bounded by `held` records, whatever the corpus. Weights are added up as whole numbers (1 / distance times the least common
multiple of all distances), so the result does not depend on the order, nor on how much is held.

A sample has the fields `first.npy` and `second.npy` (int32, token ids, the first not above the second) and `weight.npy` (float32). A pair
of a word with itself counts twice, as a table of both directions has it.
"""

from __future__ import annotations

import io
import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...shared.errors import BadSample, UserError
from ...shared.tokenizer import Tokenizer
from ..base.files import write_atomic
from ..data.index import INDEX, TOKENIZER, Index, Shard, idx_name
from .corpus import iterate_samples
from .settings import Reading
from .writer import ShardWriter

KIND = "cooccurrence"
_TEXTS = 500
"""Texts that are tokenised at once."""
_RECORD = np.dtype([("number", "<u8"), ("key", "<i8"), ("weight", "<i8")])
_RANGE = 1 << 14
"""Every so many pairs of a run, one is noted to plan ranges of equal size."""


@dataclass(frozen=True)
class PairSettings:
    """What is counted, and how it is written."""

    window: int = 10
    """Words to each side."""
    block: int = 4096
    """Records of a sample."""
    held: int = 8_000_000
    """Records that are held in memory."""
    shard_bytes: int = 256 << 20
    """About the largest size of a shard."""
    seed: int = 0
    """Of the order of the records."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 1 <= self.window <= 20:
            raise UserError(f"--window is {self.window}, expected 1 to 20 words to each side")
        if self.block < 1 or self.held < 16:
            raise UserError(f"samples of {self.block} and {self.held} records in memory make no sense: expected at least 1 and 16")


def pack_pairs(sources: Sequence[str | Path], out: str | Path, tokenizer: Tokenizer, settings: PairSettings, reading: Reading,
               warn: Callable[[str], None] = lambda line: None) -> Index:
    """Count pairs of words in texts and write them as a data set. A run that was killed begins anew.

    Args:
        sources: as in `iterate_samples`.
        out: the folder of the data set; must not hold anything yet.
        tokenizer: of words; unknown words and special tokens are left out before distances are counted.
        settings: see there.
        reading: how texts are read.
        warn: told how many files are not read.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{str(out)!r} is not empty: choose another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        work, made = Path(folder), Path(folder) / "made"
        made.mkdir()
        unit = math.lcm(*range(1, settings.window + 1))
        try:
            runs, words = _count(_documents(sources, tokenizer, reading, warn), work, tokenizer.vocab_size, settings, unit)
        except BadSample as error:
            raise UserError(str(error)) from None
        if not runs:
            raise UserError("no two words of the vocabulary stand near each other in these texts: there is nothing to write; give longer "
                            "texts, or a vocabulary that knows their words")
        buckets = _merge(runs, work, settings)
        shards, records = _write(buckets, made, tokenizer.vocab_size, settings, unit)
        tokenizer.save(made / TOKENIZER)
        schema: dict[str, Any] = {"tokenizer": tokenizer.fingerprint, "window": settings.window, "records": records, "words": words,
                                  "block": settings.block}
        index = Index(tuple(shards), KIND, schema, (f"{len(sources)} sources: {', '.join(Path(s).name for s in list(sources)[:5])}",))
        write_atomic(made / INDEX, index.to_json().encode("utf-8"))
        if out.is_dir():
            out.rmdir()
        shutil.move(made, out)
    return index


def _documents(sources: Sequence[str | Path], tokenizer: Tokenizer, reading: Reading, warn: Callable[[str], None]) -> Iterator[np.ndarray]:
    """The known words of each text."""
    special = np.array(sorted(tokenizer.special_ids), dtype=np.int64)
    texts: list[str] = []

    def encoded() -> Iterator[np.ndarray]:
        for ids in tokenizer.encode_batch(texts, add_special_tokens=False):
            row = np.array(ids, dtype=np.int64)
            yield row[~np.isin(row, special)]
        texts.clear()

    for sample in iterate_samples(sources, reading, warn):
        texts.append(sample.text())
        if len(texts) == _TEXTS:
            yield from encoded()
    yield from encoded()


def _added(keys: Sequence[np.ndarray], weights: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Different keys, ascending, each with the sum of its weights."""
    key, weight = np.concatenate(keys), np.concatenate(weights)
    order = np.argsort(key, kind="stable")
    key = key[order]
    first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    return key[first], np.add.reduceat(weight[order], first)


def _count(documents: Iterable[np.ndarray], work: Path, size: int, settings: PairSettings, unit: int) -> tuple[list[Path], int]:
    """Sorted runs of (key, weight), key = lower id x V + higher id; and the number of words."""
    runs, keys, weights = list[Path](), list[np.ndarray](), list[np.ndarray]()
    held = words = 0

    def add_up(*, last: bool) -> None:
        nonlocal held
        if not held:
            return
        added = _added(keys, weights)
        keys[:], weights[:], held = [added[0]], [added[1]], len(added[0])
        if held > settings.held // 2 or last:
            runs.append(work / f"run-{len(runs):06d}.npy")
            np.save(runs[-1], np.stack(added, axis=1), allow_pickle=False)
            keys.clear()
            weights.clear()
            held = 0

    for ids in documents:
        words += len(ids)
        for distance in range(1, min(settings.window, len(ids) - 1) + 1):
            a, b = ids[:-distance], ids[distance:]
            keys.append(np.minimum(a, b) * size + np.maximum(a, b))
            weights.append(np.where(a == b, 2, 1) * (unit // distance))
            held += len(a)
            if held > settings.held:
                add_up(last=False)
    add_up(last=True)
    return runs, words


def _number(keys: np.ndarray, seed: int) -> np.ndarray:
    """A random number for each key (splitmix64), the same on any machine."""
    with np.errstate(over="ignore"):
        z = keys.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15) * np.uint64(seed + 1)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _merge(runs: Sequence[Path], work: Path, settings: PairSettings) -> list[Path]:
    """Buckets of records with random numbers, the lowest numbers in the first; each fits into memory."""
    opened = [np.load(path, mmap_mode="r", allow_pickle=False) for path in runs]
    total = sum(len(run) for run in opened)
    step = max(1, min(_RANGE, settings.held // (8 * len(opened))))
    noted = np.sort(np.concatenate([np.asarray(run[::step, 0]) for run in opened]))
    edges = np.unique(noted[:: max(1, settings.held // (4 * step))])[1:]
    count = -(-total * 4 // settings.held)
    buckets = [work / f"bucket-{number:06d}" for number in range(count)]
    places = [np.concatenate([[0], np.searchsorted(run[:, 0], edges), [len(run)]]) for run in opened]
    for part in range(len(edges) + 1):
        pieces = [np.asarray(run[place[part] : place[part + 1]]) for run, place in zip(opened, places, strict=True)]
        if not sum(map(len, pieces)):
            continue
        key, weight = _added([p[:, 0] for p in pieces], [p[:, 1] for p in pieces])
        records = np.empty(len(key), dtype=_RECORD)
        records["number"], records["key"], records["weight"] = _number(key, settings.seed), key, weight
        bucket = (records["number"] >> np.uint64(32)) * np.uint64(count) >> np.uint64(32)
        records = records[np.argsort(bucket, kind="stable")]
        for number, rows in enumerate(np.split(records, np.cumsum(np.bincount(bucket.astype(np.int64), minlength=count))[:-1])):
            if len(rows):
                with buckets[number].open("ab") as file:
                    file.write(rows.tobytes())
    return [bucket for bucket in buckets if bucket.exists()]


def _write(buckets: Sequence[Path], out: Path, size: int, settings: PairSettings, unit: int) -> tuple[list[Shard], int]:
    """Shards of samples of `block` records, in the order of the records' numbers; only the last sample may be smaller."""
    shards, records = list[Shard](), 0
    each = 12 * settings.block + 6 * 512
    most = max(1, min(settings.shard_bytes // each, settings.held // (2 * settings.block)))
    left = np.empty(0, dtype=_RECORD)
    waiting: list[np.ndarray] = []

    def put(samples: list[np.ndarray]) -> None:
        name = f"{len(shards):06d}.tar"
        with (out / name).open("wb") as file:
            writer = ShardWriter(file, name)
            for number, rows in enumerate(samples):
                fields = {"first": (rows["key"] // size).astype("<i4"), "second": (rows["key"] % size).astype("<i4"),
                          "weight": (rows["weight"] / unit).astype("<f4")}
                writer.add(f"{len(shards):06d}-{number:06d}", {f"{field}.npy": _npy(values) for field, values in fields.items()})
            shard, where = writer.finish()
        write_atomic(out / idx_name(name), where.to_bytes())
        shards.append(shard)

    for number, bucket in enumerate(buckets):
        rows = np.fromfile(bucket, dtype=_RECORD)
        bucket.unlink()
        rows = np.concatenate([left, rows[np.argsort(rows["number"], kind="stable")]])
        records += len(rows) - len(left)
        whole = len(rows) if number == len(buckets) - 1 else len(rows) // settings.block * settings.block
        waiting += [rows[i : min(i + settings.block, whole)] for i in range(0, whole, settings.block)]
        left = rows[whole:]
        while len(waiting) >= most:
            put(waiting[:most])
            del waiting[:most]
    if waiting:
        put(waiting)
    return shards, records


def _npy(values: np.ndarray) -> bytes:
    data = io.BytesIO()
    np.save(data, values, allow_pickle=False)
    return data.getvalue()
