"""How the sides of a benchmark are timed and weighed: in turns, within a limit, and each side's memory in a process of its own."""

from __future__ import annotations

import gc
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from ...shared.errors import UserError
from .case import Contender
from .machine import MIB, Memory, cpu_time, synchronize, use_threads, watch_memory

LAP = 0.3
"""On CUDA a repetition takes as many steps as fit in about this many seconds: a host that runs ahead of its device is part of training."""


@dataclass
class Laps:
    """What a race found out about one contender."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    """CPU time of all threads and of processes that ended: what other work on the machine disturbs least."""
    memory: Memory | None = None
    """On CUDA, what this side held after its warm-up, and the most during a step."""
    failure: str | None = None
    """Why it was not timed."""


class OutOfTime(BaseException):
    """A case's limit; no `Exception`, which compilers catch."""


@contextmanager
def deadline(at: float | None) -> Generator[None]:
    """Raise `OutOfTime` inside at a time of `time.monotonic`, in the main thread of a system that has timers."""
    if at is None or not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    left = at - time.monotonic()
    if left <= 0:
        raise OutOfTime

    def ring(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, left)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def race(contenders: Sequence[Contender], repetitions: int, *, warmup: int = 1, device: str = "cpu",
         clock: Callable[[], float] = time.perf_counter, end: float | None = None, apart: bool = False) -> list[Laps]:
    """Time every contender `repetitions` times.

    The sides take turns, and every second round runs backwards, so that neither a drifting machine nor
    the place in the round favours anyone.

    Args:
        contenders: the sides; the first one must get ready, another one that fails is recorded.
        repetitions: timed ones.
        warmup: steps before them.
        device: whose memory is watched.
        clock: seconds.
        end: a time of `time.monotonic`. What is not ready by then is left out; rounds that would begin later are, too, but for one.
        apart: one side after the other, each freed before the next.
    """
    if apart:
        laps: list[Laps] = []
        for contender in contenders:
            laps += race([contender], repetitions, warmup=warmup, device=device, clock=clock, end=end) if not laps else _or_failure(
                partial(race, [contender], repetitions, warmup=warmup, device=device, clock=clock, end=end))
            tidy(device)
        return laps
    laps = [Laps() for _ in contenders]
    states: dict[int, Any] = {}
    for i, (contender, lap) in enumerate(zip(contenders, laps, strict=True)):
        try:
            with deadline(end):
                states[i] = _ready(contender, lap, warmup, device)
        except OutOfTime:
            lap.failure = "out of time"
        except UserError:
            raise
        except Exception as error:  # one side that breaks must not cost the others' results
            lap.failure = in_a_line(error)
        if lap.failure is not None:
            if i == 0:
                raise SideFailed(f"{contender.name}: {lap.failure}")
            tidy(device, compiled=False)
    ready = [i for i in range(len(contenders)) if i in states]
    count = _steps_of_a_lap(contenders[0], states[0]) if device == "cuda" else 1
    gc.collect()
    gc.freeze()  # what is there already need not be looked at again at each collection
    try:
        for round_number in range(repetitions):
            if round_number and end is not None and time.monotonic() > end:
                break
            for i in ready if round_number % 2 == 0 else reversed(ready):
                gc.collect()
                synchronize(device)
                used, start = cpu_time(), clock()
                for _ in range(count):
                    contenders[i].step(states[i])
                synchronize(device)
                laps[i].seconds.append((clock() - start) / count)
                laps[i].cpu_seconds.append((cpu_time() - used) / count)
    finally:
        gc.unfreeze()
    return laps


class SideFailed(Exception):
    """Our own side could not get ready, so there is nothing to compare with."""


def _or_failure(run: Callable[[], list[Laps]]) -> list[Laps]:
    try:
        return run()
    except SideFailed as error:
        return [Laps(failure=str(error).partition(": ")[2])]


def in_a_line(error: Exception) -> str:
    """An error in a line; memory that was not there needs no more words."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0][:300]}"


def _ready(contender: Contender, lap: Laps, warmup: int, device: str) -> Any:
    """Prepare a side and warm it up; on CUDA see what it holds."""
    held = torch.cuda.memory_allocated() if device == "cuda" else 0
    state = contender.prepare()
    for _ in range(warmup + 2 if device == "cuda" else warmup):  # allocator, autotuning, second compilations
        contender.step(state)
    if device == "cuda":
        seen = watch_memory(partial(contender.step, state), device)
        lap.memory = Memory(seen.before_mib - held / MIB, seen.peak_mib - held / MIB)
    return state


def _steps_of_a_lap(contender: Contender, state: Any) -> int:
    """How many steps fill `LAP`, on CUDA."""
    synchronize("cuda")
    start = time.perf_counter()
    contender.step(state)
    synchronize("cuda")
    return max(1, min(20, round(LAP / (time.perf_counter() - start))))


def peak_memory(contender: Contender, steps: int = 2) -> Memory:
    """Resident memory of a few steps, measured in a fresh process, so that no side sees what another one left behind."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=use_threads, initargs=(torch.get_num_threads(),)) as pool:
        return pool.submit(_weigh, contender, steps).result()


def _weigh(contender: Contender, steps: int) -> Memory:
    state = contender.prepare()
    return watch_memory(lambda: [contender.step(state) for _ in range(steps)], "cpu")


def tidy(device: str, *, compiled: bool = True) -> None:
    """Free what a case or a side held, before the next one; compiled code too."""
    gc.collect()
    if compiled:
        torch.compiler.reset()
    if device == "cuda":
        torch.cuda.empty_cache()
