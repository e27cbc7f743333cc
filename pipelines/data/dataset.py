"""Reading an indexed data set: any sample by its number, with every byte checked."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import threading
import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from ...shared.errors import BadSample, UserError
from ...shared.sample import Sample
from ..base.files import pread
from .index import COUNTS, INDEX, TOKENIZER, Index, Shard, ShardIndex, idx_name
from .remote.location import Location, location

_MAX_OPEN = 64
"""Shards that a process keeps open."""
_MISSING_INDEX = ("no index: for tars run `polymodal index DIR`, for other data `polymodal pack` (an interrupted pack is finished by "
                  "running it again)")


@dataclass
class _OpenShard:
    """An open shard."""

    file: int | None
    """None: a remote shard that is not here yet."""
    index: ShardIndex
    offsets: memoryview
    """The numbers of `index.offsets` row by row, and so on: one of them is had five times as fast as from an array."""
    sizes: memoryview
    crc32: memoryview
    spans: memoryview
    """Begin and end of each sample, one after the other."""

    @classmethod
    def of(cls, file: int | None, index: ShardIndex) -> Self:
        """A shard and its index."""
        begins = np.where(index.offsets > 0, index.offsets, np.iinfo(np.uint64).max).min(axis=1)
        ends = (index.offsets + index.sizes).max(axis=1)
        return cls(file, index, *map(_flat, (index.offsets, index.sizes, index.crc32, np.stack([begins, ends], axis=1))))


def _flat(numbers: np.ndarray) -> memoryview:
    """All numbers of an array, to be read one by one as Python's own."""
    native: Any = np.ascontiguousarray(numbers, dtype=numbers.dtype.type)
    return memoryview(native).cast("B").cast(native.dtype.char)  # by way of bytes: a side file's arrays may begin at any address


class DataSet:
    """An indexed data set on disk or behind http(s), s3 or gs: `len(data)` samples, any of them by number.

    Picklable; files are opened when they are needed and at most a few dozen at a time.
    """

    def __init__(self, place: Location, index: Index) -> None:
        """Use `DataSet.open`."""
        self.index = index
        self._location = place
        self._ends = list(itertools.accumulate(s.samples for s in index.shards))
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()

    @classmethod
    def open(cls, source: str | Path, *, cache: str | Path | None = None) -> DataSet:
        """Open a data set by its folder or URL.

        Args:
            source: folder with `index.json`, or its address (http, https, s3, gs).
            cache: where shards of a remote data set are kept; by default POLYMODAL_CACHE, or the user's cache folder.
        """
        place = location(source, cache)
        data = cls(place, Index.from_json(place.read(INDEX, _MISSING_INDEX), place.address(INDEX)))
        for shard in data.index.shards:
            place.check_shard(shard.name, shard.size)
        return data

    def __len__(self) -> int:
        return self._ends[-1]

    def __repr__(self) -> str:
        return f"DataSet({str(self.directory)!r}, {len(self)} samples, {self.index.kind})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    @property
    def directory(self) -> str:
        """The folder or address it was opened by; without secrets, so not for opening it again."""
        return self._location.root

    def address(self, shard: str) -> str:
        """The path or address of a shard; without secrets, as `directory`."""
        return self._location.address(shard)

    @property
    def tokenizer_dir(self) -> Path | None:
        """The tokenizer of a pre-tokenised data set, else None."""
        return self._location.local_folder(TOKENIZER) if "tokenizer" in self.index.schema else None

    def counts(self) -> np.ndarray | None:
        """How often each token id stands in the rows, int64 [V]; None where nobody counted them (`polymodal pack --tokenize` does)."""
        sha256 = self.index.schema.get("counts")
        if not isinstance(sha256, str):
            return None
        data = self._location.read_side_file(COUNTS, sha256, f"{INDEX} names it: restore it, or pack the data again")
        if hashlib.sha256(data).hexdigest() != sha256 or len(data) % 8:
            raise UserError(f"{self.address(COUNTS)} changed after the data was packed: restore it, or pack the data again")
        return np.frombuffer(data, dtype="<u8").astype(np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of what the data set holds, in order; part of what determines the order of a run."""
        content = json.dumps([[s.name, s.size, s.sha256, s.samples] for s in self.index.shards])
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Samples of each shard."""
        return tuple(s.samples for s in self.index.shards)

    def shard_of(self, i: int) -> tuple[int, int]:
        """(number of the shard, number within it) of sample i."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        shard = bisect_right(self._ends, i)
        return shard, i - (self._ends[shard - 1] if shard else 0)

    def read(self, i: int) -> Sample:
        """Sample i, its bytes checked; raises `BadSample` where they are damaged."""
        number, row = self.shard_of(i)
        shard, opened = self.index.shards[number], self._shard(number)
        index, begin, end = opened.index, opened.spans[2 * row], opened.spans[2 * row + 1]
        data = self._bytes(shard, opened, begin, end)
        found: dict[str, bytes] = {}
        crc = 0
        for at, name in enumerate(index.fields, row * len(index.fields)):
            offset = opened.offsets[at]
            if offset:
                found[name] = data[offset - begin : offset - begin + opened.sizes[at]]
                crc = zlib.crc32(found[name], crc)
        sample = Sample(index.key(row), found, i, shard.name)
        if crc != opened.crc32[row]:
            if self._location.discard_damaged(shard.sha256):
                self._close_shard(number)
                return self.read(i)
            raise BadSample(f"sample {sample.key!r} of {shard.name}: its bytes changed after indexing (crc32 {crc:08x}, the index says "
                            f"{opened.crc32[row]:08x})")
        return sample

    def _bytes(self, shard: Shard, opened: _OpenShard, begin: int, end: int) -> bytes:
        """The bytes [begin, end) of a shard; of a remote one that is not here, they may come alone."""
        if opened.file is None:
            data = self._location.read_range(shard.name, shard.size, shard.sha256, begin, end - begin)
            if data is not None:
                return data
            opened.file = self._open_file(shard)
            self._close_spare_remote()
        data = pread(opened.file, end - begin, begin)
        if len(data) != end - begin:
            raise self._changed(shard, "it became shorter")
        return data

    def read_many(self, indexes: Sequence[int]) -> list[Sample | BadSample]:
        """The samples in the order asked for, read in the order they lie in the shards."""
        found: dict[int, Sample | BadSample] = {}
        for i in sorted(set(indexes)):
            try:
                found[i] = self.read(i)
            except BadSample as error:
                found[i] = error
        return [found[i] for i in indexes]

    def key_and_shard(self, i: int) -> tuple[str, str]:
        """(key, shard) of sample i, without reading it."""
        number, row = self.shard_of(i)
        return self._shard(number).index.key(row), self.index.shards[number].name

    def _shard(self, number: int) -> _OpenShard:
        """Shard `number`, opened."""
        opened = self._open.get(number)
        if opened is None:
            shard = self.index.shards[number]
            side = self._location.read_side_file(idx_name(shard.name), shard.idx_sha256,
                                                  "the side file of the shard is missing; make it again with `polymodal index`")
            if hashlib.sha256(side).hexdigest() != shard.idx_sha256:
                raise self._changed(shard, f"{idx_name(shard.name)} does not fit {INDEX}")
            index = ShardIndex.from_bytes(side, shard, self._location.address(idx_name(shard.name)))
            opened = _OpenShard.of(None if self.remote else self._open_file(shard), index)
            self._open[number] = opened
            if len(self._open) > _MAX_OPEN:
                self._close_shard(next(iter(self._open)))
        else:
            self._open.move_to_end(number)
        return opened

    def _close_spare_remote(self) -> None:
        """Close remote shards so that the cache may remove them: a process holds a small part of it, or a single shard."""
        held = [(self.index.shards[number].size, opened) for number, opened in self._open.items() if opened.file is not None]
        total = sum(size for size, _ in held)
        for size, opened in held[:-1]:
            if total <= self.cache_limit / 16:
                break
            assert opened.file is not None
            os.close(opened.file)
            opened.file = None
            total -= size

    def _open_file(self, shard: Shard) -> int:
        """A shard, open for reading."""
        opened = self._location.open_shard(shard.name, shard.size, shard.sha256)
        size = os.fstat(opened).st_size
        if size == shard.size:
            return opened
        os.close(opened)
        if self._location.discard_damaged(shard.sha256):
            return self._open_file(shard)
        raise self._changed(shard, f"it has {size} bytes, the index says {shard.size}")

    @property
    def remote(self) -> bool:
        """Whether the shards lie behind a network."""
        return self._location.remote

    @property
    def cache_limit(self) -> float:
        """Bytes that the shards of a remote data set may take here."""
        return self._location.cache_limit

    def prefetch(self, number: int, stop: threading.Event) -> None:
        """Have a remote shard here before it is read; until `stop` is set, and without errors."""
        shard = self.index.shards[number]
        self._location.prefetch(idx_name(shard.name), None, shard.idx_sha256, stop)
        self._location.prefetch(shard.name, shard.size, shard.sha256, stop)

    def read_costs(self) -> dict[str, float]:
        """What reading cost in this process since the last call: sums for `Batch.reads`."""
        return self._location.read_costs()

    def sha256_of(self, number: int) -> str:
        """The sha256 of a shard as it is now."""
        shard = self.index.shards[number]
        with os.fdopen(self._location.open_shard(shard.name, shard.size, shard.sha256), "rb") as file:
            file.seek(0)
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _changed(self, shard: Shard, how: str) -> UserError:
        return UserError(f"shard {self._location.address(shard.name)} changed after it was indexed: {how}; restore it, or run "
                         "`polymodal index DIR --force` and start a new run")

    def close(self) -> None:
        """Close the open shards (they open again when needed)."""
        while self._open:
            self._close_shard(next(iter(self._open)))

    def _close_shard(self, number: int) -> None:
        opened = self._open.pop(number)
        if opened.file is not None:
            os.close(opened.file)

    def __del__(self) -> None:
        if hasattr(self, "_open"):
            self.close()


def verify(data: DataSet) -> list[str]:
    """Read every shard again; one sentence for each that differs from the index."""
    problems: list[str] = []
    for number, shard in enumerate(data.index.shards):
        digest = data.sha256_of(number)
        if digest != shard.sha256:
            problems.append(f"{shard.name}: sha256 {digest[:12]}..., the index says {shard.sha256[:12]}...")
    return problems
