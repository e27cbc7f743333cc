r"""Shards and their index: WebDataset tars that can be read at any sample, with every byte checked.

A data set is a folder of tars and `index.json` (kind, schema, and for each shard its name, size, sha256
and samples). Beside each `NAME.tar` lies `NAME.idx`, which says where every sample is:

    b"polymodal idx 1\n", length of the header (u32), header (JSON: samples, fields, keys),
    offsets u64 [samples, fields] (0: absent), sizes u32 [samples, fields], crc32 u32 [samples],
    ends of the keys u64 [samples], the keys (UTF-8, no separator); all little-endian.

A sample's crc32 runs over its fields in the header's order. A shard that changed after indexing is an
error, a sample whose bytes do not fit its crc32 a bad sample.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import mmap
import os
import secrets
import threading
import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from ...shared.errors import BadSample, UserError
from ...shared.sample import Sample
from .remote.location import Location, location
from .tar import members, split_name

INDEX = "index.json"
TOKENIZER = "tokenizer"
_MAGIC = b"polymodal idx 1\n"
_MAX_FIELDS = 64
_OPEN_SHARDS = 64


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar of a data set, as its index describes it."""

    name: str
    size: int
    sha256: str
    samples: int
    fields: tuple[str, ...]
    idx_sha256: str
    """Hash of the side file that says where the samples are."""

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Shard:
        """Read what `dataclasses.asdict` wrote to JSON; `TypeError` or `KeyError` where something else stands there."""
        fields = tuple(record["fields"])
        shard = cls(record["name"], record["size"], record["sha256"], record["samples"], fields, record["idx_sha256"])
        texts = (shard.name, shard.sha256, shard.idx_sha256, *fields)
        numbers = (shard.size, shard.samples)
        if set(map(type, texts)) != {str} or set(map(type, numbers)) != {int} or not 0 < min(numbers) <= max(numbers) < 2**62 or not fields:
            raise TypeError(f"the shard {str(record)[:200]} is not described as it should be")
        return shard


@dataclass(frozen=True)
class Index:
    """What a data set holds: the content of `index.json`."""

    shards: tuple[Shard, ...]
    kind: str = "tar"
    """text, pairs, images, tokens, or tar for shards made elsewhere."""
    schema: Mapping[str, Any] = field(default_factory=dict)
    """`classes` of labelled pictures; `tokenizer` (fingerprint), `block`, `tokens`, `documents` of packed rows."""
    source: tuple[str, ...] = ()
    """What the data set was made from, in words."""

    @property
    def samples(self) -> int:
        """Samples of all shards."""
        return sum(s.samples for s in self.shards)

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that occur in any shard."""
        return tuple(sorted({f for s in self.shards for f in s.fields}))

    def to_json(self) -> str:
        """The text of `index.json`; equal data sets give equal bytes."""
        record = {"format": "polymodal index", "version": 1, "kind": self.kind, "samples": self.samples, "fields": self.fields,
                  "schema": dict(self.schema), "source": self.source, "shards": [asdict(s) for s in self.shards]}
        return json.dumps(record, indent=1, ensure_ascii=False, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> Self:
        """Read `index.json`, or say what is wrong with it."""
        try:
            record = json.loads(text)
            if record["format"] != "polymodal index" or record["version"] != 1:
                raise UserError(f"{where} has format {record['format']!r} version {record['version']}, expected 'polymodal index' 1")
            shards = tuple(Shard.from_dict(s) for s in record["shards"])
            index = cls(shards, record["kind"], record["schema"], tuple(record["source"]))
            if not isinstance(index.kind, str) or not isinstance(index.schema, dict) or not all(isinstance(s, str) for s in index.source):
                raise TypeError("kind, schema or source are of the wrong type")
            classes = index.schema.get("classes", [])
            if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes):
                raise TypeError("classes are no list of names")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{where} is not a polymodal index ({type(error).__name__}: {error}); make it again with "
                            "`polymodal index`") from None
        for name in (s.name for s in index.shards):
            if not name or name.startswith("/") or ".." in name.split("/") or "\\" in name or ":" in name:
                raise UserError(f"{where} names the shard {name!r}, which is outside the data set")
        if not index.samples:
            raise UserError(f"{where} holds no samples: pack some data first")
        return index


@dataclass(frozen=True)
class Where:
    """Where the samples of one shard are (the content of a side file)."""

    fields: tuple[str, ...]
    offsets: np.ndarray
    """uint64 [samples, fields]; 0 where a sample lacks the field."""
    sizes: np.ndarray
    """uint32 [samples, fields]"""
    crc32: np.ndarray
    """uint32 [samples]"""
    key_ends: np.ndarray
    keys: bytes

    def key(self, i: int) -> str:
        """The key of sample i of the shard."""
        return self.keys[int(self.key_ends[i - 1]) if i else 0 : int(self.key_ends[i])].decode("utf-8", "replace")

    def to_bytes(self) -> bytes:
        """The side file."""
        header = json.dumps({"samples": len(self.crc32), "fields": self.fields, "keys": len(self.keys)}).encode()
        arrays = (self.offsets.astype("<u8"), self.sizes.astype("<u4"), self.crc32.astype("<u4"), self.key_ends.astype("<u8"))
        return b"".join([_MAGIC, len(header).to_bytes(4, "little"), header, *(a.tobytes() for a in arrays), self.keys])

    @classmethod
    def from_bytes(cls, data: bytes, shard: Shard, name: str) -> Self:
        """Read the side file `name` of a shard. Its hash was checked, but who made the hash may have made the file."""
        start = len(_MAGIC) + 4
        begin = start + int.from_bytes(data[len(_MAGIC) : start], "little")
        try:
            header = json.loads(data[start:begin]) if data[: len(_MAGIC)] == _MAGIC else {}
        except (ValueError, RecursionError):
            header = {}
        n, fields = shard.samples, shard.fields
        kinds = (("<u8", n * len(fields)), ("<u4", n * len(fields)), ("<u4", n), ("<u8", n))
        keys = begin + sum(count * int(kind[-1]) for kind, count in kinds)
        expected = {"samples": n, "fields": list(fields), "keys": len(data) - keys}
        if header != expected:
            raise UserError(f"{name} is not the side file of {shard.name} with its {n} samples; make it again with `polymodal index`")
        parts: list[np.ndarray] = []
        for kind, count in kinds:
            parts.append(np.frombuffer(data, kind, count, begin))
            begin += parts[-1].nbytes
        where = cls(fields, parts[0].reshape(n, -1), parts[1].reshape(n, -1), parts[2], parts[3], data[begin:])
        ends = where.key_ends
        if (where.offsets > shard.size).any() or (where.offsets + where.sizes > shard.size).any() or not where.offsets.any(axis=1).all() \
                or (np.diff(ends.astype(np.int64)) < 0).any() or int(ends[-1]) != len(where.keys):
            raise UserError(f"{name} points outside {shard.name}; make it again with `polymodal index`")
        return where


def scan(path: Path) -> tuple[Shard, Where]:
    """Read a tar from end to end and say where its samples are; anything doubtful is an error."""
    size = path.stat().st_size
    if not size:
        raise UserError(f"{path} is empty, expected a tar archive")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as data:
        rows: dict[str, dict[str, tuple[int, int]]] = {}
        for member in members(data, str(path)):
            names = split_name(member.name, str(path))
            if names is None:
                continue
            key, name = names
            if key in rows and key != next(reversed(rows)):
                raise UserError(f"{path}: the members of sample {key!r} do not follow each other, or the key occurs twice; "
                                "write the shard again")
            row = rows.setdefault(key, {})
            if name in row:
                raise UserError(f"{path}: member {member.name!r} occurs twice; keys must be unique within a shard")
            row[name] = (member.offset, member.size)
        if not rows:
            raise UserError(f"{path} holds no samples")
        fields = tuple(sorted({name for row in rows.values() for name in row}))
        if len(fields) > _MAX_FIELDS:
            raise UserError(f"{path} has {len(fields)} different fields ({', '.join(fields[:3])}, ...): a field is all that follows "
                            "the FIRST dot of a name, so keys must not contain dots")
        offsets, sizes = np.zeros((2, len(rows), len(fields)), dtype=np.uint64)
        crcs = np.zeros(len(rows), dtype=np.uint32)
        column = {name: i for i, name in enumerate(fields)}
        for i, row in enumerate(rows.values()):
            crc = 0
            for name in sorted(row):
                begin, length = row[name]
                offsets[i, column[name]], sizes[i, column[name]] = begin, length
                crc = zlib.crc32(data[begin : begin + length], crc)
            crcs[i] = crc
        if int(sizes.max()) >= 2**32:
            raise UserError(f"{path} has a member of 4 GiB or more; samples must be smaller")
        digest = hashlib.sha256(data).hexdigest()
    keys = [key.encode("utf-8") for key in rows]
    where = Where(fields, offsets, sizes, crcs, np.cumsum([len(k) for k in keys], dtype=np.uint64), b"".join(keys))
    return Shard(path.name, size, digest, len(rows), fields, hashlib.sha256(where.to_bytes()).hexdigest()), where


def idx_name(shard: str) -> str:
    """Name of the side file of a shard."""
    return shard.removesuffix(".tar") + ".idx"


def passing(path: Path) -> Path:
    """A name beside `path` to write under until the file is whole; no other process has it, on any machine."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that it is either absent (or old) or whole, also after a power cut."""
    temporary = passing(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@dataclass
class _Open:
    """An open shard."""

    file: int | None
    """None: a remote shard that is not here yet."""
    where: Where
    offsets: memoryview
    """`where.offsets` one after another, and so on: the numbers of one sample are had five times as fast as from an array."""
    sizes: memoryview
    crc32: memoryview
    spans: memoryview
    """Begin and end of each sample, one after the other."""

    @classmethod
    def of(cls, file: int | None, where: Where) -> Self:
        """A shard and where its samples are."""
        begins = np.where(where.offsets > 0, where.offsets, np.iinfo(np.uint64).max).min(axis=1)
        ends = (where.offsets + where.sizes).max(axis=1)
        return cls(file, where, *map(_flat, (where.offsets, where.sizes, where.crc32, np.stack([begins, ends], axis=1))))


def _flat(numbers: np.ndarray) -> memoryview:
    """All numbers of an array, to be read one by one as Python's own."""
    native: Any = np.ascontiguousarray(numbers, dtype=numbers.dtype.type)
    return memoryview(native).cast("B").cast(native.dtype.char)  # by way of bytes: a side file's arrays may begin at any address


class DataSet:
    """An indexed data set on disk or behind http(s), s3 or gs: `len(data)` samples, any of them by number.

    Picklable; files are opened when they are needed and at most a few dozen at a time.
    """

    def __init__(self, where: Location, index: Index) -> None:
        """Use `DataSet.open`."""
        self.index = index
        self._location = where
        self._ends = list(itertools.accumulate(s.samples for s in index.shards))
        self._open: OrderedDict[int, _Open] = OrderedDict()

    @classmethod
    def open(cls, source: str | Path, *, cache: str | Path | None = None) -> DataSet:
        """Open a data set by its folder or URL.

        Args:
            source: folder with `index.json`, or its address (http, https, s3, gs).
            cache: where shards of a remote data set are kept; by default POLYMODAL_CACHE, or the user's cache folder.
        """
        where = location(source, cache)
        data = cls(where, Index.from_json(where.read(INDEX, _MISSING_INDEX), where.name(INDEX)))
        for shard in data.index.shards:
            where.check(shard.name, shard.size)
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

    @property
    def tokenizer_dir(self) -> Path | None:
        """The tokenizer of a pre-tokenised data set, else None."""
        return self._location.folder(TOKENIZER) if "tokenizer" in self.index.schema else None

    @cached_property
    def fingerprint(self) -> str:
        """Hash of what the data set holds, in order; part of what determines the order of a run."""
        content = json.dumps([[s.name, s.size, s.sha256, s.samples] for s in self.index.shards])
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Samples of each shard."""
        return tuple(s.samples for s in self.index.shards)

    def place(self, i: int) -> tuple[int, int]:
        """(number of the shard, number within it) of sample i."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        shard = bisect_right(self._ends, i)
        return shard, i - (self._ends[shard - 1] if shard else 0)

    def read(self, i: int) -> Sample:
        """Sample i, its bytes checked; raises `BadSample` where they are damaged."""
        number, row = self.place(i)
        shard, opened = self.index.shards[number], self._shard(number)
        where, begin, end = opened.where, opened.spans[2 * row], opened.spans[2 * row + 1]
        data = self._bytes(shard, opened, begin, end)
        found: dict[str, bytes] = {}
        crc = 0
        for at, name in enumerate(where.fields, row * len(where.fields)):
            offset = opened.offsets[at]
            if offset:
                found[name] = data[offset - begin : offset - begin + opened.sizes[at]]
                crc = zlib.crc32(found[name], crc)
        sample = Sample(where.key(row), found, i, shard.name)
        if crc != opened.crc32[row]:
            if self._location.renew(shard.sha256):
                self._forget(number)
                return self.read(i)
            raise BadSample(f"sample {sample.key!r} of {shard.name}: its bytes changed after indexing (crc32 {crc:08x}, the index says "
                            f"{opened.crc32[row]:08x})")
        return sample

    def _bytes(self, shard: Shard, opened: _Open, begin: int, end: int) -> bytes:
        """The bytes [begin, end) of a shard; of a remote one that is not here, they may come alone."""
        if opened.file is None:
            data = self._location.span(shard.name, shard.size, shard.sha256, begin, end - begin)
            if data is not None:
                return data
            opened.file = self._file(shard)
            self._spare()
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

    def locate(self, i: int) -> tuple[str, str]:
        """(key, shard) of sample i, without reading it."""
        number, row = self.place(i)
        return self._shard(number).where.key(row), self.index.shards[number].name

    def _shard(self, number: int) -> _Open:
        opened = self._open.get(number)
        if opened is None:
            shard = self.index.shards[number]
            side = self._location.side(idx_name(shard.name), shard.idx_sha256,
                                       "the side file of the shard is missing; make it again with `polymodal index`")
            if hashlib.sha256(side).hexdigest() != shard.idx_sha256:
                raise self._changed(shard, f"{idx_name(shard.name)} does not fit {INDEX}")
            where = Where.from_bytes(side, shard, self._location.name(idx_name(shard.name)))
            opened = _Open.of(None if self.remote else self._file(shard), where)
            self._open[number] = opened
            if len(self._open) > _OPEN_SHARDS:
                self._forget(next(iter(self._open)))
        else:
            self._open.move_to_end(number)
        return opened

    def _spare(self) -> None:
        """Let go of remote shards so that the cache may remove them: those in use by a process are a small part of it, or a single one."""
        held = [(self.index.shards[number].size, opened) for number, opened in self._open.items() if opened.file is not None]
        total = sum(size for size, _ in held)
        for size, opened in held[:-1]:
            if total <= self.room / 16:
                break
            assert opened.file is not None
            os.close(opened.file)
            opened.file = None
            total -= size

    def _file(self, shard: Shard) -> int:
        """A shard, open for reading."""
        opened = self._location.open(shard.name, shard.size, shard.sha256)
        size = os.fstat(opened).st_size
        if size == shard.size:
            return opened
        os.close(opened)
        if self._location.renew(shard.sha256):
            return self._file(shard)
        raise self._changed(shard, f"it has {size} bytes, the index says {shard.size}")

    @property
    def remote(self) -> bool:
        """Whether the shards lie behind a network."""
        return self._location.remote

    @property
    def room(self) -> float:
        """Bytes that the shards of a remote data set may take here."""
        return self._location.room

    def fetch(self, number: int, stop: threading.Event) -> None:
        """Have a remote shard here before it is read; until `stop` is set, and without errors."""
        shard = self.index.shards[number]
        self._location.ahead(idx_name(shard.name), None, shard.idx_sha256, stop)
        self._location.ahead(shard.name, shard.size, shard.sha256, stop)

    def reads(self) -> dict[str, float]:
        """What reading cost in this process since the last call: sums for `Batch.reads`."""
        return self._location.reads()

    def hash(self, number: int) -> str:
        """The sha256 of a shard as it is now."""
        shard = self.index.shards[number]
        with os.fdopen(self._location.open(shard.name, shard.size, shard.sha256), "rb") as file:
            file.seek(0)
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _changed(self, shard: Shard, how: str) -> UserError:
        return UserError(f"shard {self._location.name(shard.name)} changed after it was indexed: {how}; restore it, or run "
                         "`polymodal index DIR --force` and start a new run")

    def close(self) -> None:
        """Close the open shards (they open again when needed)."""
        while self._open:
            self._forget(next(iter(self._open)))

    def _forget(self, number: int) -> None:
        opened = self._open.pop(number)
        if opened.file is not None:
            os.close(opened.file)

    def __del__(self) -> None:
        if hasattr(self, "_open"):
            self.close()


_MISSING_INDEX = ("no index: for tars run `polymodal index DIR`, for other data `polymodal pack` (an interrupted pack is finished by "
                  "running it again)")


def pread(file: int, size: int, offset: int) -> bytes:
    """`size` bytes of an open file from `offset` on; fewer where it ends."""
    data = os.pread(file, size, offset)
    while len(data) < size:
        more = os.pread(file, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def build_index(directory: str | Path, *, force: bool = False, kind: str = "tar", schema: Mapping[str, Any] | None = None,
                source: Sequence[str] = (), advance: Any = None) -> Index:
    """Index the tars of a folder that came from elsewhere: side files first, `index.json` last.

    Args:
        directory: folder with `*.tar`.
        force: make the index again where there is one.
        kind: what the samples are; guessed from the fields where it is ``"tar"``.
        schema: facts for `Index.schema`.
        source: where the data came from, in words.
        advance: called with the bytes of each finished shard (a progress bar).
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: `index` takes the folder that holds the tars")
    if (folder / INDEX).exists() and not force:
        raise UserError(f"{folder} has an index already: use --force to make it again")
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        raise UserError(f"{folder} holds no .tar files; for other data use `polymodal pack`")
    shards: list[Shard] = []
    sides: list[tuple[Path, bytes]] = []
    for path in paths:
        shard, where = scan(path)
        shards.append(shard)
        sides.append((folder / idx_name(path.name), where.to_bytes()))
        if advance is not None:
            advance(shard.size)
    for path, side in sides:
        write_atomic(path, side)
    index = Index(tuple(shards), kind, dict(schema or {}), tuple(source))
    write_atomic(folder / INDEX, index.to_json().encode("utf-8"))
    return index


def verify(data: DataSet) -> list[str]:
    """Read every shard again; one sentence for each that differs from the index."""
    problems: list[str] = []
    for number, shard in enumerate(data.index.shards):
        digest = data.hash(number)
        if digest != shard.sha256:
            problems.append(f"{shard.name}: sha256 {digest[:12]}..., the index says {shard.sha256[:12]}...")
    return problems
