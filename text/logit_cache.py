"""What a teacher said, kept on the disk: the largest logits of each place of a text, and the probability that all others have together.

A text is found by its content, as the teacher reads it: by the hash of its masked tokens. So no order, rank or number of an epoch can mix
two texts up, and what was not kept yet is asked for. A process appends to a file of its own:

    head     what the logits are of (the teacher, how many, at which temperature ...): a cache of anything else is refused
    part-*   blocks: their texts' hashes, numbers of places and checksums, then what was said of each

A block that a kill cut short ends the reading of its file, and an entry whose checksum is wrong is as one that is not there: both are asked
for again. Other ranks' files are looked at again where something is missing.
"""

from __future__ import annotations

import json
import os
import secrets
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from ..shared.errors import UserError

HEAD = "head.json"
_MAGIC = b"pmlogit1"
_BLOCK = struct.Struct("<8sII")
"""The magic, the number of texts, the checksum of what the block says of them."""
_ENTRY = np.dtype([("key", "V16"), ("rows", "<u4"), ("sum", "<u4")])


def key_of(ids: np.ndarray, places: np.ndarray | None = None) -> bytes:
    """By what a text is found: its tokens int64 [S], and the places int64 [M] that something is said of, where these are not all."""
    found = blake2b(np.asarray(ids, dtype="<i8").tobytes(), digest_size=16)
    if places is not None:
        found.update(b"places" + np.asarray(places, dtype="<i8").tobytes())
    return found.digest()


@dataclass(frozen=True)
class Told:
    """What a teacher says of N places."""

    indices: Tensor
    """int64 [N, K]: the words with the largest logits, in no order."""
    values: Tensor
    """[N, K]: their logits, less the largest one."""
    rest: Tensor
    """fp32 [N]: the probability of all other words together, at the temperature that the cache is for."""

    def to(self, device: torch.device) -> Told:
        """The same on a device."""
        return Told(self.indices.to(device), self.values.to(device), self.rest.to(device))


class LogitCache:
    """A folder of what one teacher said.

    Args:
        folder: is made with the first entry.
        head: what the logits are of, as JSON; with `vocabulary` (V), `top` (K) and `dtype`, the numbers' type.

    Raises:
        UserError: the folder has another head, or holds other files.
    """

    def __init__(self, folder: Path, head: Mapping[str, Any]) -> None:
        self.folder, self.head = folder, {"format": 1, **head}
        self._index = np.dtype("<u2" if head["vocabulary"] <= 1 << 16 else "<u4")
        self._value, self.top = np.dtype(head["dtype"]).newbyteorder("<"), int(head["top"])
        self.row_bytes = self.top * (self._index.itemsize + self._value.itemsize) + 4
        self._entries: dict[bytes, tuple[Path, int, int, int]] = {}
        self._ends: dict[Path, int] = {}
        self._own: Path | None = None
        self._check()
        self._look()

    def __len__(self) -> int:
        """Texts that are kept."""
        return len(self._entries)

    # --- the bytes of an entry

    def encode(self, told: Told, counts: Sequence[int]) -> list[bytes]:
        """What was said of texts with so many places each, as bytes for each."""
        parts = [t.cpu().numpy() for t in (told.indices, told.values, told.rest)]
        arrays = [array.astype(kind) for array, kind in zip(parts, (self._index, self._value, np.dtype("<f4")), strict=True)]
        ends = np.cumsum(counts)
        return [b"".join(array[end - count:end].tobytes() for array in arrays) for end, count in zip(ends, counts, strict=True)]

    def decode(self, entries: Sequence[bytes]) -> Told:
        """What `encode` made bytes of, one text behind the other."""
        found: tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]] = [], [], []
        for data in entries:
            rows, first = len(data) // self.row_bytes, 0
            for into, kind, wide in zip(found, (self._index, self._value, np.dtype("<f4")), (self.top, self.top, 1), strict=True):
                into.append(np.frombuffer(data, kind, rows * wide, first).reshape(rows, wide))
                first += rows * wide * kind.itemsize
        indices, values, rest = (np.concatenate(arrays) for arrays in found)
        return Told(*(torch.from_numpy(a) for a in (indices.astype(np.int64), values.astype(self._value.newbyteorder("=")),
                                                    rest[:, 0].astype(np.float32))))

    # --- reading

    def find(self, keys: Sequence[bytes], counts: Sequence[int]) -> list[bytes | None]:
        """The entries of texts with so many places each; None where there is none, or it is damaged."""
        if any(key not in self._entries for key in keys):
            self._look()  # another rank may have met them
        return [self._read(key, count) for key, count in zip(keys, counts, strict=True)]

    def _read(self, key: bytes, count: int) -> bytes | None:
        found = self._entries.get(key)
        if found is None:
            return None
        path, first, rows, checksum = found
        data = _piece(path, rows * self.row_bytes, first)
        if rows == count and zlib.crc32(data) == checksum:
            return data
        del self._entries[key]
        return None

    def _look(self) -> None:
        """Read what the files say of blocks that were not there before."""
        for path in sorted(self.folder.glob("part-*")):
            if path == self._own:
                continue
            at, size = self._ends.get(path, 0), path.stat().st_size
            while at + _BLOCK.size <= size:
                magic, texts, checksum = _BLOCK.unpack(_piece(path, _BLOCK.size, at))
                said = _piece(path, texts * _ENTRY.itemsize, at + _BLOCK.size) if magic == _MAGIC else b""
                if len(said) != texts * _ENTRY.itemsize or not said or zlib.crc32(said) != checksum:
                    break  # cut short, or still being written
                first = at + _BLOCK.size + len(said)
                entries = np.frombuffer(said, _ENTRY)
                at = first + int(entries["rows"].sum(dtype=np.int64)) * self.row_bytes
                if at > size:
                    break
                self._take(path, entries, first)
                self._ends[path] = at

    def _take(self, path: Path, entries: np.ndarray, first: int) -> None:
        for key, rows, checksum in entries.tolist():
            self._entries[key] = (path, first, rows, checksum)
            first += rows * self.row_bytes

    # --- writing

    def keep(self, keys: Sequence[bytes], entries: Sequence[bytes]) -> None:
        """Append entries, in one piece, to this process's file."""
        said = np.zeros(len(keys), _ENTRY)
        for row, key, data in zip(said, keys, entries, strict=True):
            row["key"], row["rows"], row["sum"] = np.void(key), len(data) // self.row_bytes, zlib.crc32(data)
        before = _BLOCK.pack(_MAGIC, len(keys), zlib.crc32(said.tobytes())) + said.tobytes()
        try:
            if self._own is None:
                self._begin()
            assert self._own is not None
            with self._own.open("ab") as file:
                first = file.seek(0, os.SEEK_END) + len(before)
                file.write(b"".join([before, *entries]))
        except OSError as error:
            raise UserError(f"the cache {self.folder} cannot be written ({error.strerror}): make room, or leave --cache out") from None
        self._take(self._own, said, first)

    def _begin(self) -> None:
        """Make the folder and a file that no other process has."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / HEAD).exists():  # ranks may write it at once, all of them the same
            whole = self.folder / f".{secrets.token_hex(6)}.tmp"
            whole.write_text(json.dumps(self.head, indent=1), encoding="utf-8")
            whole.replace(self.folder / HEAD)
        self._check()
        self._own = self.folder / f"part-{secrets.token_hex(8)}"

    def _check(self) -> None:
        """Refuse a folder that is of something else."""
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"the cache {self.folder} is a file; expected a folder that is new, empty, or holds the same teacher's logits")
        path = self.folder / HEAD
        if not path.is_file():
            if self.folder.is_dir() and any(not file.name.startswith(".") for file in self.folder.iterdir()):
                raise UserError(f"{self.folder} holds other files; expected a cache, or a folder that is new or empty")
            return
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            self._refuse("a damaged head.json")
        told = [f"{name} {_short(before.get(name))}, expected {_short(self.head.get(name))}" for name in self.head | before
                if before.get(name) != self.head.get(name)]
        if told:
            self._refuse("; ".join(told))

    def _refuse(self, found: str) -> NoReturn:
        raise UserError(f"{self.folder} keeps the logits of something else: it has {found}; set that back, or give another --cache")


def _piece(path: Path, size: int, first: int) -> bytes:
    """Bytes of a file; fewer where it ends."""
    with path.open("rb") as file:
        file.seek(first)
        return file.read(size)


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else json.dumps(value)
