"""Writes a shard and its index in one go.

The bytes are those of webdataset's `TarWriter` (a test compares them). That writer builds every header anew, and the index would
then read the whole tar back; here a header is a copy of tarfile's with three fields filled in, and the index is made of what is written.
"""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from collections.abc import Mapping
from typing import IO

import numpy as np

from ..data.index import Shard, ShardIndex
from ..data.tar import BLOCK, split_name

_NAME, _SIZE, _SUM = slice(0, 100), slice(124, 136), slice(148, 156)


def _header(name: str, size: int) -> bytes:
    """The header of a member, of extended ones too where its name needs them."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uname, info.gname = size, 0o444, "bigdata", "bigdata"
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


_PLAIN = bytearray(_header("", 0))
_PLAIN[_SUM] = b" " * 8  # counts as spaces in the sum itself
_REST = sum(_PLAIN) - sum(_PLAIN[_SIZE])


def header(name: str, size: int) -> bytes:
    """What stands before a member's bytes in the tar."""
    if not name.isascii() or len(name) > 100 or size >= 8**11:
        return _header(name, size)
    place, octal = name.encode("ascii"), b"%011o\0" % size
    found = bytearray(_PLAIN)
    found[: len(place)] = place
    found[_SIZE] = octal
    found[_SUM] = b"%06o\0 " % (_REST + sum(place) + sum(octal))
    return bytes(found)


class ShardWriter:
    """Writes samples to a new tar and notes where they are.

    Args:
        file: an empty file, open for writing bytes.
        name: the shard's name, for the index and for messages.
    """

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file, self._name = file, name
        self._hash = hashlib.sha256()
        self._end = 0
        self._rows: list[dict[str, tuple[int, int]]] = []
        self._crcs: list[int] = []
        self._keys: list[bytes] = []
        self._fields: set[str] = set()

    def add(self, key: str, fields: Mapping[str, bytes]) -> None:
        """Write one sample; its key must be new in the shard and hold no dot."""
        row: dict[str, tuple[int, int]] = {}
        crc = 0
        for field in sorted(fields):
            name, data = f"{key}.{field}", fields[field]
            if field not in self._fields:
                assert split_name(name, self._name) == (key, field), f"{name!r} would be read as another sample or field"
                self._fields.add(field)
            head = header(name, len(data))
            row[field] = self._end + len(head), len(data)
            crc = zlib.crc32(data, crc)
            self._put(head + data + bytes(-len(data) % BLOCK))
        self._rows.append(row)
        self._crcs.append(crc)
        self._keys.append(key.encode("utf-8"))

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._end += len(data)

    def finish(self) -> tuple[Shard, ShardIndex]:
        """Write the end of the archive; the shard and its index."""
        self._put(bytes(-(self._end + 2 * BLOCK) % tarfile.RECORDSIZE + 2 * BLOCK))
        fields = tuple(sorted(self._fields))
        places = np.array([[row.get(field, (0, 0)) for field in fields] for row in self._rows], dtype=np.uint64)
        index = ShardIndex(fields, places[:, :, 0], places[:, :, 1], np.array(self._crcs, dtype=np.uint32),
                           np.cumsum([len(k) for k in self._keys], dtype=np.uint64), b"".join(self._keys))
        side = hashlib.sha256(index.to_bytes()).hexdigest()
        return Shard(self._name, self._end, self._hash.hexdigest(), len(self._rows), fields, side), index
