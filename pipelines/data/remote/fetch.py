"""Remote bytes brought here whole: tried again after errors, continued where they broke off, checked.

A try that brought the file forward starts the count of failures anew, so a server that cuts every answer short still delivers; one that
makes no progress ends in an error after a bounded number of tries.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

from ....shared.errors import UserError
from .transport import NotFoundError, PastEndError, PermanentError, Response, TransientError, Transport

_CHUNK = 1 << 20
_MIN_PROGRESS = 1 << 16
"""A try that brought fewer new bytes than this counts as failed."""
_SMALL = 1 << 30
"""Largest file without a known size."""
_SLOW = 1024
"""Bytes in a second below which a connection is given up."""
_LONGEST_WAIT = 60.0

T = TypeVar("T")


class Stopped(Exception):
    """The fetch was told to end; what came stays for the next time."""


@dataclass(frozen=True)
class RetryPolicy:
    """How long to bear with a server."""

    timeout: float = 30.0
    """Seconds to wait for each next piece."""
    tries: int = 8
    """Tries without progress before giving up."""
    pause: float = 0.5
    """Seconds before the second of them; doubled with each further one."""

    def delay(self, failed: int, name: str) -> float:
        """Seconds to wait after `failed` failures in a row; spread, but the same for the same rank and file."""
        key = f"{name}\x1f{failed}\x1f{os.environ.get('RANK', '0')}"
        spread = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "little") / 2**32
        return min(self.pause * 2.0 ** (failed - 1), _LONGEST_WAIT / 2) * (0.5 + spread / 2) if failed else self.pause / 8


class ReadCosts:
    """What reading cost this process: sums by name, taken by the stream with each batch. Any thread may add."""

    NAMES = ("fetch_bytes", "fetch_retries", "fetch_wait_s", "cache_hits", "cache_misses", "cache_evictions")

    def __init__(self) -> None:
        self._added: deque[tuple[str, float]] = deque()  # its operations are atomic, so no lock can be held while a worker is forked
        self._process = os.getpid()

    def add(self, name: str, value: float = 1) -> None:
        """Add to a sum."""
        if self._process != os.getpid():  # what a fork copied, the parent tells
            self._added, self._process = deque(), os.getpid()
        self._added.append((name, value))
        if len(self._added) > 4096:
            self._added.extend(self.take().items())

    def take(self) -> dict[str, float]:
        """The sums since the last call."""
        if self._process != os.getpid():
            self._added, self._process = deque(), os.getpid()
        sums: dict[str, float] = dict.fromkeys(self.NAMES, 0)
        while self._added:
            try:
                name, value = self._added.popleft()
            except IndexError:  # another thread took it
                break
            sums[name] += value
        return sums


class PartialFile:
    """A file on its way: what is there already, in an open file and a note of the version it belongs to."""

    def __init__(self, file: BinaryIO, tag: str = "", note: Callable[[str], None] = lambda tag: None) -> None:
        """Continue `file`, which is open for reading and writing; `note` keeps the tag for a later process."""
        self._file, self.tag, self._note = file, tag, note
        self._digest = hashlib.sha256()
        file.seek(0)
        while chunk := file.read(_CHUNK):
            self._digest.update(chunk)
        self.size = file.tell()

    @property
    def sha256(self) -> str:
        """Hash of what is there."""
        return self._digest.hexdigest()

    def restart(self, tag: str = "") -> None:
        """Throw away what is there; what follows belongs to the version `tag`."""
        self._file.seek(0)
        self._file.truncate()
        self._digest, self.size, self.tag = hashlib.sha256(), 0, tag
        self._note(tag)

    def write(self, data: bytes) -> None:
        """Add bytes."""
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)


class Fetcher:
    """Reads files through a transport, patiently."""

    def __init__(self, transport: Transport, retries: RetryPolicy, costs: ReadCosts) -> None:
        self.transport, self.retries, self.costs = transport, retries, costs

    def read_small(self, name: str) -> bytes:
        """A small file as it is now, whatever it holds."""
        found = bytearray()

        def pull() -> None:
            found.clear()
            with closing(self.transport.open(name)) as response:
                for chunk in self._chunks(response, _SMALL + 1, None):
                    found.extend(chunk)
                    if len(found) > _SMALL:
                        raise PermanentError(f"it has more than {_SMALL >> 20} MiB, which no index has")
                if response.size is not None and len(found) < response.size:
                    raise TransientError(f"the answer ended after {len(found)} of {response.size} bytes")

        self._retry(name, pull, lambda: 0, None)
        return bytes(found)

    def read_range(self, name: str, start: int, size: int) -> bytes | None:
        """`size` bytes from `start` on; None where the server sends no parts."""
        found = bytearray()

        def pull() -> bool:
            at = start + len(found)
            with closing(self.transport.open(name, at, start + size)) as response:
                if response.start != at:
                    return False
                for chunk in self._chunks(response, size - len(found), None):
                    found.extend(chunk)
            if len(found) < size:
                raise TransientError(f"the answer ended after {len(found)} of {size} bytes")
            return True

        return bytes(found) if self._retry(name, pull, lambda: len(found), None) else None

    def download(self, part: PartialFile, name: str, size: int | None, sha256: str, stop: threading.Event | None = None) -> None:
        """Bring `part` to the whole file, which the hash proves. Content that does not fit is fetched once more from its start."""
        for again in (False, True):
            try:
                self._retry(name, lambda: self._continue_download(part, name, size, stop), lambda: part.size, stop)
            except PastEndError:
                found = f"it has at most {part.size} bytes"
            else:
                if part.sha256 == sha256:
                    return
                found = f"got {part.size} bytes with sha256 {part.sha256[:12]}..."
            self.costs.add("fetch_retries", 0 if again else 1)
            part.restart()
        told = "" if size is None else f"{size} bytes "
        raise PermanentError(f"it is not what its index says: {found}, expected {told}with {sha256[:12]}...; restore it, or index the "
                             "data set again and start a new run")

    def _continue_download(self, part: PartialFile, name: str, size: int | None, stop: threading.Event | None) -> None:
        """One try to bring `part` forward to its end."""
        if size is not None and part.size >= size:
            if part.size > size:
                part.restart()
            else:
                return
        with closing(self.transport.open(name, part.size, None, part.tag)) as response:
            if response.start not in (0, part.size):
                raise TransientError(f"the server sent the bytes from {response.start} on, asked for those from {part.size} on")
            if response.start == 0:  # a server without ranges, another version of the file, or the very beginning
                part.restart(response.tag)
            whole = size if size is not None else response.size
            for chunk in self._chunks(response, (_SMALL if whole is None else whole) - part.size, stop):
                part.write(chunk)
        if whole is not None and part.size < whole:
            raise TransientError(f"the answer ended after {part.size} of {whole} bytes")

    def _chunks(self, response: Response, limit: int, stop: threading.Event | None) -> Iterator[bytes]:
        """The next bytes of an answer, at most `limit`; one that trickles is given up."""
        since, before, got = time.monotonic(), 0, 0
        while got < limit and (chunk := response.read(min(_CHUNK, limit - got))):
            got += len(chunk)
            self.costs.add("fetch_bytes", len(chunk))
            yield chunk
            if stop is not None and stop.is_set():
                raise Stopped
            passed = time.monotonic() - since
            if passed > self.retries.timeout:
                if got - before < _SLOW * passed and got < limit:
                    raise TransientError(f"only {got - before} bytes came in {passed:.1f} seconds")
                since, before = time.monotonic(), got

    def _retry(self, name: str, pull: Callable[[], T], progress: Callable[[], int], stop: threading.Event | None) -> T:
        """`pull` until it succeeds or makes no progress. Raises `PermanentError`, `PastEndError`, `Stopped`, or what `pull` raises else."""
        best, failed = progress(), 0
        while True:
            try:
                return pull()
            except TransientError as error:
                self.costs.add("fetch_retries")
                progressed = progress() - best >= _MIN_PROGRESS
                best = max(best, progress())
                failed = 0 if progressed else failed + 1
                if failed >= self.retries.tries:
                    raise PermanentError(f"{error}; gave up after {failed} tries without progress") from None
                wait = max(self.retries.delay(failed, name), min(error.wait, _LONGEST_WAIT))
            if stop is None:
                time.sleep(wait)
            elif stop.wait(wait):
                raise Stopped

    def user_error(self, name: str, error: PermanentError | PastEndError, missing: str = "") -> UserError:
        """The user's error for a file that could not be had."""
        if isinstance(error, NotFoundError) and missing:
            return UserError(f"{self.transport.address(name)} does not exist: {missing}")
        return UserError(f"{self.transport.address(name)} cannot be read: {error}")
