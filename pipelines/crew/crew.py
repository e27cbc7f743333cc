"""Who does the pieces of a command's work: this process, processes of this machine, or workers on a Ray cluster.

A piece is a function of plain values that writes its own files. The same pieces write the same bytes wherever and in whatever order
they are done, and what stands finished when a run is killed is not done again. Errors come back as plain values; of several, the
one is raised that a run in order would have met first.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from ...shared.errors import UserError
from ..base.files import lock_file

KINDS = ("local", "ray")
LOCK = "lock"
_GPUS = "CUDA_VISIBLE_DEVICES"


class Lost(UserError):
    """Workers died. What they had finished is kept, and the same command goes on from there."""


@dataclass(frozen=True)
class Place:
    """Where pieces are done."""

    on: str = "local"
    """`local` or `ray`."""
    workers: int | None = None
    """Processes here, or workers on the cluster; by default one for each core or GPU."""
    ray_address: str | None = None
    """HOST:PORT of a running cluster; by default the one that this machine belongs to."""

    def __post_init__(self) -> None:
        """Check what was given."""
        if self.on not in KINDS:
            raise UserError(f"--on is {self.on!r}, expected {' or '.join(KINDS)}")
        if self.ray_address is not None and self.on != "ray":
            raise UserError("--ray-address says where a Ray cluster is: give --on ray with it, or leave it out")
        if self.workers is not None and self.workers < 1:
            raise UserError(f"--workers is {self.workers}, expected at least 1")


@dataclass(frozen=True)
class Piece:
    """A piece of work."""

    do: Callable[[], None]
    size: float
    """For the progress bar."""
    name: str
    """For messages."""


@dataclass(frozen=True)
class Failure:
    """What went wrong with a piece, as values that may cross a network."""

    user: str | None = None
    """The message of a `UserError`."""
    system: tuple[int, str, str | None] | None = None
    """Number, words and path of an `OSError`."""
    defect: str = ""
    """Any other exception in one line."""
    trace: str = ""

    def error(self) -> Exception:
        """The exception again."""
        if self.user is not None:
            return UserError(self.user)
        error = RuntimeError(f"in a worker: {self.defect}") if self.system is None else OSError(*self.system)
        error.add_note(self.trace)
        return error


def attempt(do: Callable[[], None]) -> Failure | None:
    """Do a piece where it is to be done."""
    try:
        do()
    except UserError as error:
        return Failure(user=str(error))
    except OSError as error:
        if error.errno is None:
            return Failure(defect=f"{type(error).__name__}: {error}", trace=traceback.format_exc())
        path = None if error.filename is None else os.fsdecode(error.filename)
        return Failure(system=(error.errno, error.strerror or "", path), trace=traceback.format_exc())
    except Exception as error:
        return Failure(defect=f"{type(error).__name__}: {error}", trace=traceback.format_exc())
    return None


class Crew(Protocol):
    """Those who do pieces, side by side."""

    @property
    def room(self) -> bool:
        """Whether another piece may be started."""
        ...

    @property
    def busy(self) -> bool:
        """Whether pieces are being done."""
        ...

    def start(self, number: int, piece: Piece) -> None:
        """Take a piece; `number` is its place in the order of all."""
        ...

    def finished(self) -> list[tuple[int, Failure | None]]:
        """Wait for at least one piece; the numbers of those that have ended, and what went wrong."""
        ...


def do_all(crew: Crew, pieces: Sequence[Piece], advance: Callable[[float], None]) -> None:
    """Do all pieces; `advance` is called with the size of each that is done.

    Pieces start in their order. After an error no other starts and the running ones are waited for, so no piece is still writing
    when the error is raised, and it is that of the first bad piece, whoever was faster.
    """
    waiting = iter(enumerate(pieces))
    failures: dict[int, Failure] = {}
    while True:
        while not failures and crew.room and (item := next(waiting, None)) is not None:
            crew.start(*item)
        if not crew.busy:
            break
        for number, failure in crew.finished():
            if failure is None:
                advance(pieces[number].size)
            else:
                failures[number] = failure
    if failures:
        raise failures[min(failures)].error()


@contextmanager
def crew(place: Place, *, most: int, folder: Path, reads: Sequence[tuple[str, int]] = (), gpus: bool = False,
         preload: Sequence[str] = (), warn: Callable[[str], None] = lambda line: None) -> Generator[Crew]:
    """Those who do pieces at `place`.

    Args:
        place: where.
        most: so many pieces can be done side by side at most.
        folder: where pieces write; workers on other machines must see it.
        reads: (path, size) of files that every worker must see.
        gpus: each worker takes a GPU of its own.
        preload: modules that processes of this machine import once for all.
        warn: tells what a person should know.
    """
    if place.on == "ray":
        from .ray import RayCrew

        with RayCrew(place, most=most, folder=folder, reads=reads, gpus=gpus, warn=warn) as found:
            yield found
        return
    cards = _cards() if gpus else []
    workers = min(place.workers or len(cards) or os.cpu_count() or 1, max(most, 1))
    if workers == 1:
        yield _Here()
        return
    with _processes(workers, cards, preload) as pool:
        yield _Processes(pool, workers)


class _Here:
    """This process, one piece after the other; its errors are raised as they are."""

    def __init__(self) -> None:
        self._done: list[tuple[int, Failure | None]] = []

    @property
    def room(self) -> bool:
        return not self._done

    @property
    def busy(self) -> bool:
        return bool(self._done)

    def start(self, number: int, piece: Piece) -> None:
        piece.do()
        self._done.append((number, None))

    def finished(self) -> list[tuple[int, Failure | None]]:
        done, self._done = self._done, []
        return done


class _Processes:
    """Processes of this machine."""

    def __init__(self, pool: ProcessPoolExecutor, workers: int) -> None:
        self._pool, self._workers = pool, workers
        self._running: dict[Future[Failure | None], tuple[int, Piece]] = {}

    @property
    def room(self) -> bool:
        return len(self._running) < 2 * self._workers

    @property
    def busy(self) -> bool:
        return bool(self._running)

    def start(self, number: int, piece: Piece) -> None:
        self._running[self._pool.submit(attempt, piece.do)] = (number, piece)

    def finished(self) -> list[tuple[int, Failure | None]]:
        try:
            return [(self._running.pop(future)[0], future.result()) for future in wait(self._running, return_when=FIRST_COMPLETED).done]
        except BrokenProcessPool:
            raise Lost("a process was killed, perhaps for want of memory (fewer --workers need less): what is finished is kept, "
                       "run the command again") from None


@contextmanager
def _processes(workers: int, cards: Sequence[str], preload: Sequence[str]) -> Generator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn")
    if context.get_start_method() == "forkserver" and preload:
        context.set_forkserver_preload(list(preload))
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin,
                             initargs=(os.getpid(), context.Value("i", 0), list(cards))) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _cards() -> list[str]:
    """The GPUs that this process may use, as the environment names them."""
    named = [c.strip() for c in os.environ.get(_GPUS, "").split(",") if c.strip()]
    if not named:
        import torch

        named = [str(i) for i in range(torch.cuda.device_count())]
    return named


def _begin(parent: int, count: Any, cards: Sequence[str]) -> None:
    """Make ready a process that does pieces."""
    alone()
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))  # Ctrl-C reaches everyone; the parent tells about it
    if cards:
        with count.get_lock():
            number = int(count.value)
            count.value = number + 1
        os.environ[_GPUS] = cards[number % len(cards)]

    def watch() -> None:
        while True:
            try:
                os.kill(parent, 0)
            except OSError:
                os._exit(1)
            time.sleep(0.5)

    # when the one that started this process is gone (killed), no orphan goes on writing
    threading.Thread(target=watch, daemon=True).start()


def alone() -> None:
    """A worker has one core to itself; other workers have the others."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def claim(folder: Path, busy: str) -> IO[str]:
    """Make a folder for finished pieces, and keep a second run from it (which is told `busy`) until the file is closed."""
    folder.mkdir(parents=True, exist_ok=True)
    return lock_file(folder / LOCK, busy)
