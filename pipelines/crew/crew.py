"""Who does the pieces of a command's work: this process, processes of this machine, or workers on a Ray cluster.

A piece is a function of plain values that writes its own files. The same pieces write the same bytes wherever and in whatever order
they are done, and what stands finished when a run is killed is not done again. Errors come back as plain values; of several, the
one is raised that a run in order would have met first.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ..base.files import lock_file, write_atomic
from .pieces import Crew, Failure, Lost, Piece, Workers, alone, attempt
from .ray import RayCrew

LOCK = "lock"
_PLAN = "plan.json"
_GPUS = "CUDA_VISIBLE_DEVICES"


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
def crew(workers: Workers, *, most: int, folder: Path, reads: Sequence[tuple[str, int]] = (), gpus: bool = False,
         preload: Sequence[str] = (), warn: Callable[[str], None] = lambda line: None) -> Generator[Crew]:
    """Those who do pieces.

    Args:
        workers: how many, and where.
        most: pieces that can be done side by side at most.
        folder: where pieces write; workers on other machines must see it.
        reads: (path, size) of files that every worker must see.
        gpus: each worker takes a GPU of its own.
        preload: modules that processes of this machine import once for all.
        warn: tells what a person should know.
    """
    if workers.on == "ray":
        with RayCrew(workers, most=most, folder=folder, reads=reads, gpus=gpus, warn=warn) as found:
            yield found
        return
    cards = _cards() if gpus else []
    count = min(workers.count or len(cards) or os.cpu_count() or 1, max(most, 1))
    if count == 1:
        yield _Here()
        return
    with _processes(count, cards, preload) as pool:
        yield _Processes(pool, count)


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


def claim(folder: Path, busy: str) -> IO[str]:
    """Make a folder for finished pieces, and keep a second run from it (which is told `busy`) until the file is closed."""
    folder.mkdir(parents=True, exist_ok=True)
    return lock_file(folder / LOCK, busy)


def keep_same(folder: Path, identity: Mapping[str, Any]) -> None:
    """Keep what an interrupted run of the same plan left in a claimed folder, and nothing else; `identity` are plain values."""
    plan = folder / _PLAN
    identity = json.loads(json.dumps(identity))
    try:
        same = json.loads(plan.read_text()) == identity
    except (OSError, ValueError):
        same = False
    if not same:
        for left in folder.iterdir():
            if left.name != LOCK and left.is_file():
                left.unlink()
        write_atomic(plan, json.dumps(identity).encode())
