"""A trace of some updates: what the processor and the GPU did when, for a viewer of traces and as a table."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..base.console import Console

FOLDER = "profile"
_SETTLE, _UPDATES, _ROWS = 5, 3, 30


@contextmanager
def profiling(wanted: bool, directory: Path, rank: int, console: Console) -> Generator[Callable[[], None]]:
    """Gives what is to be called after every update; does nothing unless `wanted`.

    The first updates of a process are not typical (they allocate, and compile), so five pass before three are traced. They are written to
    `profile/rank-00000.json.gz` (Perfetto and chrome://tracing open it) and, the costliest operations, `profile/rank-00000.txt`.
    A run that ends before writes what there is.
    """
    if not wanted:
        yield lambda: None
        return
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # it tells of every missing GPU
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    written: list[Path] = []

    def write(profile: Any) -> None:
        folder = directory / FOLDER
        folder.mkdir(exist_ok=True)
        trace = folder / f"rank-{rank:05d}.json.gz"
        profile.export_chrome_trace(str(trace))
        order = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        trace.with_name(f"rank-{rank:05d}.txt").write_text(profile.key_averages().table(sort_by=order, row_limit=_ROWS), encoding="utf-8")
        written.append(trace)
        console.say(f"profile of {_UPDATES} updates: {trace} (open it at ui.perfetto.dev or chrome://tracing), and a table beside it")

    schedule = torch.profiler.schedule(wait=_SETTLE - 1, warmup=1, active=_UPDATES, repeat=1)
    with torch.profiler.profile(activities=activities, schedule=schedule, on_trace_ready=write) as profile:
        yield profile.step
    if not written:
        console.warn(f"--profile: the run ended before its update {_SETTLE + 1}, so there is no trace; give it more updates")
