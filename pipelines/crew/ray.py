"""Pieces of work on a Ray cluster: actors that do one piece at a time, each with a core (and a GPU) of its own.

What travels is our own functions with plain values, and `Failure` or None back; data goes by files on storage that all machines
share. An actor that dies with its machine is replaced, and its piece is done again.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ..._version import __version__
from ...shared.errors import UserError
from ..base.install import install_line
from .pieces import Failure, Lost, Piece, Workers, alone, attempt

TRIES = 4
"""A piece, or the start of a worker, is given up when this many workers in a row died over it."""
_SEEN = 16
_PATIENCE = 10.0
"""Seconds in which storage must show what another machine wrote."""
_START = 30.0
"""Seconds after which a person is told that no worker has started."""


@dataclass(frozen=True)
class _Shared:
    """What every machine must see, and how it is told from others of the same name."""

    directory: str
    """Where the command runs: relative paths start there."""
    mark: str
    secret: str
    files: tuple[tuple[str, int], ...]
    version: str = __version__

    def problem(self) -> str | None:
        """What this machine lacks, told for the user; None where it sees everything."""
        host = socket.gethostname()
        if self.version != __version__:
            return f"{host} has polymodal {__version__}, this machine {self.version}: install the same version on every machine"
        with suppress(OSError):  # where it is not there, nothing relative will be found either
            os.chdir(self.directory)
        until = time.monotonic() + _PATIENCE  # a network's file system may be late
        while True:
            try:
                if Path(self.mark).read_text() == self.secret:
                    break
            except OSError:
                pass
            if time.monotonic() > until:
                return (f"{host} does not see {str(Path(self.mark).parent)!r}: with --on ray, results must go to storage that all machines "
                        "share (NFS, Lustre, a mounted bucket), under the same path")
            time.sleep(0.1)
        for path, size in self.files:
            try:
                found = Path(path).stat().st_size
            except OSError as error:
                return f"{host} cannot read {path!r} ({error.strerror}): with --on ray, the input must lie under the same path everywhere"
            if found != size:
                return f"{path!r} has {found} bytes on {host} and {size} here: with --on ray, all machines must share the input"
        return None


class Hand:
    """Does pieces on some machine of the cluster."""

    def __init__(self, shared: _Shared) -> None:
        alone()
        self._shared = shared

    def ready(self) -> str | None:
        """What stands in the way of work."""
        return self._shared.problem()

    def do(self, do: Callable[[], None]) -> Failure | None:
        """Do a piece."""
        return attempt(do)


class RayCrew:
    """Workers on a cluster; a `Crew`."""

    def __init__(self, workers: Workers, *, most: int, folder: Path, reads: Sequence[tuple[str, int]], gpus: bool,
                 warn: Callable[[str], None]) -> None:
        self._ray = _import()
        self._mine = _connect(self._ray, workers.ray_address)
        self._need = {"num_cpus": 1, "num_gpus": 1 if gpus else 0}
        self._warn = warn
        there = self._ray.cluster_resources()
        self._most = min(workers.count or int(there.get("GPU" if gpus else "CPU", 0)) or 1, max(most, 1))
        step = max(1, -(-len(reads) // _SEEN))
        mark = (folder / f".{secrets.token_hex(8)}.mark").absolute()
        self._shared = _Shared(str(Path.cwd()), str(mark), secrets.token_hex(8), tuple((str(p), n) for p, n in reads[::step]))
        self._queue: deque[tuple[int, Piece]] = deque()
        self._starting: dict[Any, Any] = {}
        self._idle: list[Any] = []
        self._running: dict[Any, tuple[Any, int, Piece]] = {}
        self._tries: Counter[int] = Counter()
        self._started = self._failed = 0

    def __enter__(self) -> Self:
        mark = Path(self._shared.mark)
        mark.write_text(self._shared.secret)
        return self

    def __exit__(self, *problem: object) -> None:
        for actor in (*self._starting.values(), *self._idle, *(actor for actor, _, _ in self._running.values())):
            with suppress(Exception):
                self._ray.kill(actor, no_restart=True)
        Path(self._shared.mark).unlink(missing_ok=True)
        if self._mine:
            self._ray.shutdown()

    @property
    def room(self) -> bool:
        """Whether another piece may be started."""
        return len(self._queue) < max(1, self._most - len(self._running))

    @property
    def busy(self) -> bool:
        """Whether pieces are being done."""
        return bool(self._queue or self._running)

    def start(self, number: int, piece: Piece) -> None:
        """Take a piece."""
        self._queue.append((number, piece))
        self._assign()

    def _assign(self) -> None:
        """Give waiting pieces to idle workers, and start workers for the others."""
        while self._queue and self._idle:
            actor = self._idle.pop()
            number, piece = self._queue.popleft()
            self._running[actor.do.remote(piece.do)] = (actor, number, piece)
        while len(self._starting) < len(self._queue) and len(self._starting) + len(self._running) < self._most:
            hand = self._ray.remote(Hand).options(max_restarts=0, **self._need)
            actor = hand.remote(self._shared)
            self._starting[actor.ready.remote()] = actor

    def finished(self) -> list[tuple[int, Failure | None]]:
        """Wait for at least one piece."""
        done: list[tuple[int, Failure | None]] = []
        until = time.monotonic() + _START
        while not done:
            self._assign()
            over, _ = self._ray.wait([*self._running, *self._starting], num_returns=1, timeout=1)
            for ref in over:
                if ref in self._starting:
                    self._welcome(ref)
                else:
                    done += self._collect(ref)
            if not self._started and time.monotonic() > until:
                until = float("inf")
                need = "a core and a GPU" if self._need["num_gpus"] else "a core"
                there, free = self._ray.cluster_resources(), self._ray.available_resources()
                kind = "GPU" if self._need["num_gpus"] else "CPU"
                self._warn(f"no worker has started yet: each needs {need}; of {there.get(kind, 0):g} {kind}s of the cluster "
                           f"{free.get(kind, 0):g} are free (Ctrl-C ends the waiting)")
        return done

    def _welcome(self, ref: Any) -> None:
        """A worker has started, or has not."""
        actor = self._starting.pop(ref)
        try:
            problem = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            self._failed += 1
            if self._failed >= TRIES:
                raise Lost(f"workers do not start on the Ray cluster: {_line(error)}") from None
            return
        if problem is not None:
            self._idle.append(actor)  # to be stopped with the others
            raise (Lost if self._started else UserError)(problem)
        self._started += 1
        self._failed = 0
        self._idle.append(actor)

    def _collect(self, ref: Any) -> list[tuple[int, Failure | None]]:
        """What came of a piece; one whose worker died waits for another."""
        actor, number, piece = self._running.pop(ref)
        try:
            failure = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            self._tries[number] += 1
            with suppress(Exception):  # it may be cut off rather than dead
                self._ray.kill(actor, no_restart=True)
            if self._tries[number] >= TRIES:
                raise Lost(f"{piece.name}: {TRIES} workers died over it, the last one by {_line(error)}; what is finished is kept, run the "
                           "command again") from None
            self._warn(f"a worker died over {piece.name}, which is done again ({_line(error)})")
            self._queue.appendleft((number, piece))
            return []
        self._idle.append(actor)
        return [(number, failure)]


def _import() -> Any:
    try:
        import ray
        import ray.exceptions  # pyright: ignore[reportUnusedImport]
    except ImportError:
        raise UserError(f"--on ray needs Ray, which is not installed here: {install_line('ray')}") from None
    return ray


def _connect(ray: Any, address: str | None) -> bool:
    """Join the cluster; False where this process has joined one already."""
    if ray.is_initialized():
        return False
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit() and "/" not in host:  # Ray itself would try for minutes and then end the process
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError as error:
            raise UserError(f"--ray-address {address}: nothing answers there ({error}); expected HOST:PORT of a cluster's head, as "
                            "`ray start --head` prints it") from None
    try:
        ray.init(address=address or "auto", log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError, SystemExit) as error:
        raise UserError(f"no Ray cluster to work on: {_line(error)} (start one with `ray start --head`, and name it with "
                        "--ray-address HOST:PORT where this machine is not part of it)") from None
    return True


def _line(error: BaseException) -> str:
    """The first line that says something."""
    return next((" ".join(line.split()) for line in str(error).splitlines() if line.strip()), type(error).__name__)
