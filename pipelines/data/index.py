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
import json
import mmap
import re
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from ...shared.errors import UserError
from ..base.files import kind_of_name, told, write_atomic
from .tar import members, split_name

INDEX = "index.json"
TOKENIZER = "tokenizer"
COUNTS = "counts.u64"
"""How often each token id stands in the rows of a data set: little-endian, no header."""
SEVERAL_LABELS = "labels"
"""The kind of data sets whose samples have any number of classes."""
_MAGIC = b"polymodal idx 1\n"
_MAX_FIELDS = 64
_NUMBERED = re.compile(r"[0-9]+\..+")
"""A field that rather is the end of a key and a field: `2.jpg`."""


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
    """text, pairs, images, tokens, a kind of annotated texts, or tar for shards made elsewhere."""
    schema: Mapping[str, Any] = field(default_factory=dict)
    """`classes` of labelled samples; `tokenizer` (fingerprint), `block`, `tokens`, `documents` of packed rows, and `counts` (the
    sha256 of `COUNTS`)."""
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
    def from_json(cls, text: str | bytes, name: str) -> Self:
        """Read `index.json`, called `name` in messages, or say what is wrong with it."""
        try:
            record = json.loads(text)
            if record["format"] != "polymodal index" or record["version"] != 1:
                raise UserError(f"{name} has format {record['format']!r} version {record['version']}, expected 'polymodal index' 1")
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
            raise UserError(f"{name} is not a polymodal index ({type(error).__name__}: {error}); make it again with "
                            "`polymodal index`") from None
        for shard in (s.name for s in index.shards):
            if not shard or shard.startswith("/") or ".." in shard.split("/") or "\\" in shard or ":" in shard:
                raise UserError(f"{name} names the shard {shard!r}, which is outside the data set")
        if not index.samples:
            raise UserError(f"{name} holds no samples: pack some data first")
        return index


@dataclass(frozen=True)
class ShardIndex:
    """The index of one shard: where its samples are (the content of a side file)."""

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
        index = cls(fields, parts[0].reshape(n, -1), parts[1].reshape(n, -1), parts[2], parts[3], data[begin:])
        ends = index.key_ends
        if (index.offsets > shard.size).any() or (index.offsets + index.sizes > shard.size).any() or not index.offsets.any(axis=1).all() \
                or (np.diff(ends.astype(np.int64)) < 0).any() or int(ends[-1]) != len(index.keys):
            raise UserError(f"{name} points outside {shard.name}; make it again with `polymodal index`")
        return index


def scan(path: Path, left_out: Counter[str] | None = None) -> tuple[Shard, ShardIndex]:
    """Read a tar from end to end and index its samples; anything doubtful is an error.

    Args:
        path: the tar.
        left_out: counts, by what `kind_of_name` says, members that belong to no sample.
    """
    size = path.stat().st_size
    if not size:
        raise UserError(f"{path} is empty, expected a tar archive")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as data:
        rows: dict[str, dict[str, tuple[int, int]]] = {}
        for member in members(data, str(path)):
            names = split_name(member.name, str(path))
            if names is None:
                if left_out is not None:
                    left_out[kind_of_name(member.name)] += 1
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
            raise UserError(f"{path} holds no samples: expected members with names of the form KEY.EXTENSION, such as 000123.jpg")
        fields = tuple(sorted({name for row in rows.values() for name in row}))
        if len(fields) > _MAX_FIELDS or (len(rows) == 1 and len(fields) > 1 and all(_NUMBERED.fullmatch(name) for name in fields)):
            raise UserError(f"{path} has {len(fields)} different fields ({', '.join(fields[:3])}, ...) in {len(rows)} samples: a field is "
                            "all that follows the FIRST dot of a name, so keys must not contain dots; write 1_2.jpg for 1.2.jpg")
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
    index = ShardIndex(fields, offsets, sizes, crcs, np.cumsum([len(k) for k in keys], dtype=np.uint64), b"".join(keys))
    return Shard(path.name, size, digest, len(rows), fields, hashlib.sha256(index.to_bytes()).hexdigest()), index


def idx_name(shard: str) -> str:
    """Name of the side file of a shard."""
    return shard.removesuffix(".tar") + ".idx"


def build_index(directory: str | Path, *, force: bool = False, kind: str = "tar", schema: Mapping[str, Any] | None = None,
                source: Sequence[str] = (), advance: Any = None, warn: Callable[[str], None] = lambda line: None) -> Index:
    """Index the tars of a folder that came from elsewhere: side files first, `index.json` last.

    Args:
        directory: folder with `*.tar`.
        force: make the index again where there is one.
        kind: what the samples are; guessed from the fields where it is ``"tar"``.
        schema: facts for `Index.schema`.
        source: where the data came from, in words.
        advance: called with the bytes of each finished shard (a progress bar).
        warn: told what was left out, and what looks like a mistake.
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
    left_out: Counter[str] = Counter()
    for path in paths:
        shard, shard_index = scan(path, left_out)
        shards.append(shard)
        sides.append((folder / idx_name(path.name), shard_index.to_bytes()))
        if advance is not None:
            advance(shard.size)
    for path, side in sides:
        write_atomic(path, side)
    index = Index(tuple(shards), kind, dict(schema or {}), tuple(source))
    write_atomic(folder / INDEX, index.to_json().encode("utf-8"))
    if left_out:
        warn(f"{sum(left_out.values())} members belong to no sample and are left out: {told(left_out)}")
    if numbered := [name for name in index.fields if _NUMBERED.fullmatch(name)]:
        warn(f"the samples have fields such as {numbered[0]!r}: a key ends at the first dot of a name, so 7.{numbered[0]} is a field of "
             "the sample 7; if you meant samples of their own, keys must not contain dots")
    return index
