"""Files kept under the hash of what they hold, shared by every process of a machine.

    CACHE/<name>               whole and checked; whoever has it open holds a shared lock on it
    CACHE/.<name>.part         being fetched by the one process that holds the exclusive lock on it, or left by one that died
    CACHE/.<name>.part.json    its size when whole, and the version of the remote file that it belongs to
    CACHE/.room                locked while room is made

The locks are the kernel's (flock): they end with their process, however it ends. A part becomes the file by a rename, so a file is
whole or absent. Files that nobody has open are removed, longest unused first, where the limit or the disk demands it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .fetch import PartialFile, Stopped

_POLL = 0.02
_SPARE = 1 << 30
"""Bytes of the disk that stay free (a twentieth of it where it is small)."""


@dataclass
class PendingFile:
    """The right to make a file of the cache."""

    path: Path
    final: Path
    file: BinaryIO
    part: PartialFile
    published: bool = False

    def publish(self) -> int:
        """Make the part the file; returns it, open for reading and locked as in use."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.path.replace(self.final)
        self.published = True
        _note_path(self.path).unlink(missing_ok=True)
        _sync(self.final.parent)
        opened = os.dup(self.file.fileno())
        with contextlib.suppress(OSError):
            fcntl.flock(opened, fcntl.LOCK_SH)
        return opened


class Cache:
    """A folder of content-addressed files. Picklable."""

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        """`limit`: bytes that the files may take; None: what the disk has."""
        self.folder, self.limit = folder, limit

    def open(self, name: str) -> int | None:
        """A file, open for reading and marked as in use until it is closed; None where it is absent."""
        path = self.folder / name
        while True:
            try:
                opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(opened, fcntl.LOCK_SH)
            if os.fstat(opened).st_nlink:
                self.touch(name)
                return opened
            os.close(opened)  # removed between the two calls

    def touch(self, name: str) -> bool:
        """Mark a file as used now; whether it is there."""
        try:
            os.utime(self.folder / name)
        except FileNotFoundError:
            return False
        except PermissionError:  # another user's
            pass
        return True

    def drop(self, name: str) -> None:
        """Remove a file that turned out to be damaged."""
        (self.folder / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def writing(self, name: str, size: int | None, patience: float, stop: threading.Event | None = None) -> Generator[PendingFile | None]:
        """The right to make a file: waits while another process makes it, and gives None once that one is done.

        Args:
            name: of the file.
            size: its size, where it is known.
            patience: seconds without any progress of the other after which it is taken for hung, and a part of one's own is made.
            stop: ends the waiting with `Stopped`.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        final, shared = self.folder / name, self.folder / f".{name}.part"
        opened, path = self._lock_part(shared, final, patience, stop)
        if opened is None:
            yield None
            return
        with os.fdopen(opened, "r+b") as file:
            note = _read_note(path)
            part = PartialFile(file, str(note.get("tag", "")), lambda tag: _write_note(path, size, tag))
            if not note:
                part.restart()
            writing = PendingFile(path, final, file, part)
            try:
                yield writing
            finally:
                if not writing.published:
                    if (path != shared or not part.size) and _same(opened, path):  # nothing that a later process could continue
                        path.unlink(missing_ok=True)
                        _note_path(path).unlink(missing_ok=True)
                    with contextlib.suppress(OSError):
                        fcntl.flock(opened, fcntl.LOCK_UN)  # a worker that was forked meanwhile holds a copy

    def _lock_part(self, shared: Path, final: Path, patience: float, stop: threading.Event | None) -> tuple[int | None, Path]:
        """The part, open and locked, and its path; None once the file is there."""
        own = shared.with_name(f"{shared.name.removesuffix('.part')}.{os.getpid()}-{threading.get_ident()}.part")
        last, since = -1, time.monotonic()
        while not final.exists():
            if stop is not None and stop.is_set():
                raise Stopped
            try:
                opened = os.open(shared, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except PermissionError:  # another user's
                return os.open(own, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), own
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                size = os.fstat(opened).st_size
                os.close(opened)
                if size != last:
                    last, since = size, time.monotonic()
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES) or time.monotonic() - since > patience:
                    return os.open(own, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), own
                time.sleep(_POLL)
                continue
            if _same(opened, shared):
                if not final.exists():
                    return opened, shared
                shared.unlink(missing_ok=True)
            os.close(opened)  # it was published or removed meanwhile
        return None, shared

    def make_room(self, name: str, size: int) -> tuple[bool, int]:
        """Remove unused files until the file `name` fits, and reserve its place.

        Returns:
            (whether it fits, how many files were removed). Where it does not, because all is in use, nothing is reserved.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        mine = self.folder / f".{name}.part"
        removed = 0
        with (self.folder / ".room").open("a") as lock:
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            files = self._files()
            disk = shutil.disk_usage(self.folder)
            unwritten = size + sum(f.taken - f.there for f in files if f.path != mine) - sum(f.there for f in files if f.path == mine)
            excess = unwritten - disk.free + min(_SPARE, disk.total // 20)
            if self.limit is not None:
                excess = max(excess, size + sum(f.taken for f in files if f.path != mine) - self.limit)
            for file in sorted(files, key=lambda f: f.used):
                if excess <= 0:
                    break
                if file.path != mine and _remove_unused(file.path):
                    excess -= file.taken
                    removed += 1
            if excess <= 0:
                _write_note(mine, size, str(_read_note(mine).get("tag", "")))
        return excess <= 0, removed

    def _files(self) -> list[_File]:
        found: list[_File] = []
        for entry in os.scandir(self.folder):
            if entry.name.endswith(".json") or entry.name == ".room" or not entry.is_file(follow_symlinks=False):
                continue
            path = Path(entry.path)
            with contextlib.suppress(FileNotFoundError):
                state = entry.stat()
                coming = int(_read_note(path).get("size") or 0) if path.suffix == ".part" else 0
                found.append(_File(path, state.st_mtime, state.st_size, max(state.st_size, coming)))
        return found


@dataclass(frozen=True)
class _File:
    """A file or a part."""

    path: Path
    used: float
    """When it was last used."""
    there: int
    """Bytes that it takes now."""
    taken: int
    """Bytes that it takes when it is whole."""


def _remove_unused(path: Path) -> bool:
    """Remove a file unless a process has it open."""
    try:
        opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except OSError:
        return False
    else:
        _note_path(path).unlink(missing_ok=True)
        return True
    finally:
        os.close(opened)


def _same(opened: int, path: Path) -> bool:
    """Whether the open file still has that path."""
    try:
        return os.path.samestat(os.fstat(opened), path.stat())
    except FileNotFoundError:
        return False


def _note_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_note(part: Path) -> dict[str, Any]:
    try:
        found = json.loads(_note_path(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_note(part: Path, size: int | None, tag: str) -> None:
    temporary = part.with_name(f"{part.name}.{os.getpid()}-{threading.get_ident()}.json")
    temporary.write_text(json.dumps({"size": size, "tag": tag}), encoding="utf-8")
    temporary.replace(_note_path(part))


def _sync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
