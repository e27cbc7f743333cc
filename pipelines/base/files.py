"""Files: taken by one process at a time, written whole or not at all, read at a place, and lines of JSON."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from ...shared.errors import UserError


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


def json_lines(records: Iterable[Mapping[str, Any]]) -> str:
    """Records as JSON lines."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


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
