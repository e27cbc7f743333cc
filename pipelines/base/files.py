"""Files: taken by one process at a time, written whole or not at all, read at a place or unpacked, and lines of JSON."""

from __future__ import annotations

import bz2
import fcntl
import gzip
import io
import json
import lzma
import os
import secrets
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, cast

from ...shared.errors import UserError
from ...shared.unicode import half_character
from .install import install_line

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
"""Endings of compressed files that `open_bytes` unpacks."""


def lock_file(file: Path, busy: str) -> IO[str]:
    """Keep other processes from what `file` stands for (they are told `busy`) until it is closed.

    The lock is the kernel's: it ends with this process, however that ends.
    """
    opened = file.open("w")
    try:
        fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)  # lockf: workers forked from here do not inherit it
    except OSError:
        opened.close()
        raise UserError(busy) from None
    return opened


def write_durably(path: Path, text: str) -> None:
    """Write a file and wait until it is on the disk. A crash may leave a part of it: for files that nobody reads yet."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def replace_durably(path: Path, text: str) -> None:
    """Write a file so that after a crash at any moment it holds either what it held before or all of `text`."""
    temporary = path.with_name(f".tmp-{path.name}")
    write_durably(temporary, text)
    temporary.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Wait until the names in a directory are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def json_line(record: Any) -> str:
    """A record as JSON on one line, without the line's end. Halves of characters (of names that are not UTF-8) come as JSON's escapes."""
    text = json.dumps(record, ensure_ascii=False)
    return text if half_character(text) is None else json.dumps(record)


def json_lines(records: Iterable[Mapping[str, Any]]) -> str:
    """Records as JSON lines."""
    return "".join(json_line(record) + "\n" for record in records)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    r"""The records of a JSON-lines file, none where there is no file; a last line that a crash cut short is left out.

    A record ends at "\n" and nowhere else: strings in it may hold other characters that some programs take for the end of a line (U+2028).
    """
    if not path.exists():
        return []
    complete = path.read_bytes().decode("utf-8", errors="replace").split("\n")[:-1]
    return [json.loads(line) for line in complete if line.strip()]


def temporary_path(path: Path) -> Path:
    """A name beside `path` to write under until the file is whole; no other process has it, on any machine."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file, as several processes may at once, so that it is either absent (or old) or whole, also after a power cut."""
    temporary = temporary_path(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def pread(file: int, size: int, offset: int) -> bytes:
    """`size` bytes of an open file from `offset` on; fewer where it ends."""
    data = os.pread(file, size, offset)
    while len(data) < size:
        more = os.pread(file, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def lines_of(text: str) -> list[str]:
    r"""The lines of a text: each ends at "\n" or "\r\n" only. U+0085 and U+2028 are characters of a line, as in JSON strings."""
    return [line.removesuffix("\r") for line in text.split("\n")]


def ending(path: Path) -> str:
    """What a file's name says about its content, in lower case: `.txt`, or `.txt.gz` where it is compressed."""
    last = path.suffix.lower()
    return Path(path.stem).suffix.lower() + last if last in COMPRESSED else last


def visible_files(root: Path) -> list[Path]:
    """The files under a folder that are not hidden, in the order of their paths' parts."""
    found: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted((path for path in found if path.is_file()), key=lambda path: path.parts)


def kind_of_name(name: str) -> str:
    """What files that are left out are counted by: an ending, or a whole name that has none; `._*` for what macOS puts beside files."""
    base = name.rpartition("/")[2]
    return "._*" if base.startswith("._") else ending(Path(base)) or base


def told(counts: Mapping[str, int]) -> str:
    """Counts of files by what `kind_of_name` says, the most frequent first: `12 .gz, 3 README`."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    others = sum(count for _, count in ordered[8:])
    return ", ".join([*(f"{count} {kind}" for kind, count in ordered[:8]), *([f"{others} others"] if others else [])])


def open_bytes(path: Path) -> BinaryIO:
    """A file for reading, unpacked where its name ends in one of `COMPRESSED`.

    Raises:
        UserError: also while it is read: the compressed data is cut or damaged.
    """
    if path.suffix.lower() not in COMPRESSED:
        return path.open("rb")
    return cast("BinaryIO", io.BufferedReader(_Unpacked(path), 1 << 17))


class _Unpacked(io.RawIOBase):
    def __init__(self, path: Path) -> None:
        self._path = path
        packed = path.suffix.lower()
        if packed == ".zst":
            self._file = _zstandard(path)
        else:
            self._file = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}[packed](path, "rb")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        try:
            data: bytes = self._file.read(len(view))
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise UserError(f"{self._path} cannot be unpacked ({error}): it is damaged or cut; write or copy it again") from None
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def _zstandard(path: Path) -> Any:
    try:
        import pyarrow as arrow
    except ImportError:
        raise UserError(f"{path}: reading .zst needs pyarrow: {install_line('parquet')}") from None
    return arrow.input_stream(str(path), compression="zstd")
