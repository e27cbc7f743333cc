"""Benchmarks that a sceptic can read: both sides do the same work, in one interleaved run.

A `Case` is one piece of work and the sides (`Contender`) that do it. `measure` first checks that the
sides compute the same thing and refuses to time them where they do not; then it lets them take turns
(`race`), and weighs each side's memory in a process of its own (`peak_memory`).

What is reported: medians with the smallest and largest repetition, useful units per second (padding is
not useful), the share of this machine's matrix-product rate that a side reaches, measured in the same run.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ..shared.errors import UserError
from ._bench_machine import Memory, cpu_time, describe, load_average, matmul_rate, synchronize, use_threads, watch_memory
from .console import Console, finite

BENCHMARKS = ("train", "generate", "attention", "stream", "tokenize", "startup")
"""What `polymodal bench` runs where nothing is named; each is a module `_bench_NAME` with `cases(options)`."""
ALL = (*BENCHMARKS, "gpu")


@dataclass(frozen=True)
class Options:
    """What a benchmark may know about how it is run."""

    device: str = "cpu"
    quick: bool = False
    """Tiny sizes: does everything run, do both sides agree? Times mean nothing then."""
    against: str | None = None
    """The peer; None takes the benchmark's usual ones."""
    repetitions: int = 5
    seconds: float | None = None
    """After so many seconds no further case is begun; what was left out is recorded."""
    only: str = ""
    """Run the cases whose name contains this."""

    def peer(self, benchmark: str, known: Sequence[str]) -> str:
        """The peer of a benchmark, by default the first it knows."""
        if self.against is not None and self.against not in known:
            raise UserError(f"bench {benchmark} knows no peer {self.against!r}, expected one of {', '.join(known)}")
        return self.against or known[0]


@dataclass(frozen=True)
class Contender:
    """One side of a case.

    Both functions are picklable (functions of a module, `functools.partial` of them), so that another
    process can weigh the side's memory.
    """

    name: str
    prepare: Callable[[], Any]
    """Builds everything that is not timed: weights, data, optimizer."""
    step: Callable[[Any], object]
    """One unit of the work, on what `prepare` returned."""
    same_work: bool = True
    """False for a side that is shown for orientation and computes something else."""


@dataclass(frozen=True)
class Agreement:
    """How far the sides' results are apart, found before anything is timed."""

    what: str
    difference: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the sides compute the same thing (NaN does not)."""
        return self.difference <= self.tolerance


@dataclass(frozen=True)
class Case:
    """One piece of work and the sides that do it, ours first."""

    name: str
    about: str
    """What one step is, in words and sizes."""
    unit: str
    """What is counted: tokens, images, samples."""
    amount: float
    """Useful units in one step, the same for every side."""
    contenders: tuple[Contender, ...]
    """None where a case only checks that something is right."""
    agree: Callable[[], Agreement]
    flops: float | None = None
    """Useful floating-point operations of one step; None where no rate is meant."""
    precision: str = "float32"
    """The type whose matrix-product rate the share is of."""
    weigh: bool = True
    """Whether peak memory is measured."""
    warmup: int = 1


Cases = Iterator[Case]
"""What a benchmark's `cases(options)` gives, built one after the other."""


@dataclass
class Laps:
    """What a race found out about one contender."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    """CPU time of all threads and of processes that ended: what other work on the machine disturbs least."""
    memory: Memory | None = None
    """On CUDA, the memory of one step after the warm-up."""


def race(contenders: Sequence[Contender], repetitions: int, *, warmup: int = 1, device: str = "cpu",
         clock: Callable[[], float] = time.perf_counter) -> list[Laps]:
    """Time every contender `repetitions` times.

    The sides take turns, and every second round runs backwards, so that neither a drifting machine nor
    the place in the round favours anyone.
    """
    states = [c.prepare() for c in contenders]
    laps = [Laps() for _ in contenders]
    for contender, state, lap in zip(contenders, states, laps, strict=True):
        for _ in range(warmup):
            contender.step(state)
        if device == "cuda":
            lap.memory = watch_memory(partial(contender.step, state), device)
    gc.collect()
    gc.freeze()  # what is there already need not be looked at again at each collection
    try:
        for round_number in range(repetitions):
            order = range(len(contenders)) if round_number % 2 == 0 else reversed(range(len(contenders)))
            for i in order:
                gc.collect()
                synchronize(device)
                used, start = cpu_time(), clock()
                contenders[i].step(states[i])
                synchronize(device)
                laps[i].seconds.append(clock() - start)
                laps[i].cpu_seconds.append(cpu_time() - used)
    finally:
        gc.unfreeze()
    return laps


def peak_memory(contender: Contender, steps: int = 2) -> Memory:
    """Resident memory of a few steps, measured in a fresh process, so that no side sees what another one left behind."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=use_threads, initargs=(torch.get_num_threads(),)) as pool:
        return pool.submit(_weigh, contender, steps).result()


def _weigh(contender: Contender, steps: int) -> Memory:
    state = contender.prepare()
    return watch_memory(lambda: [contender.step(state) for _ in range(steps)], "cpu")


def measure(case: Case, options: Options, rates: Mapping[str, float], console: Console) -> dict[str, Any]:
    """Check, race and weigh one case; the record that is written to the results file.

    Args:
        case: what is run.
        options: how.
        rates: FLOP/s of this machine's matrix products by type, for the share that each side reaches.
        console: where progress goes.
    """
    console.say(f"{case.name}: {case.about}")
    agreement = case.agree()
    console.say(f"  agreement: {agreement.what}: {agreement.difference:.3g} (tolerance {agreement.tolerance:g})")
    record: dict[str, Any] = {
        "case": case.name, "about": case.about, "unit": case.unit, "amount": case.amount, "flops": case.flops, "precision": case.precision,
        "agreement": {"what": agreement.what, "difference": agreement.difference, "tolerance": agreement.tolerance,
                      "holds": agreement.holds},
        "sides": [],
    }
    if not agreement.holds:
        console.warn(f"{case.name}: the results differ by more than the tolerance, so nothing is timed")
    if not agreement.holds or not case.contenders:
        return record
    raced = race(case.contenders, options.repetitions, warmup=case.warmup, device=options.device)
    for contender, lap in zip(case.contenders, raced, strict=True):
        memory = peak_memory(contender) if case.weigh and options.device == "cpu" and not options.quick else lap.memory
        record["sides"].append(_side(case, contender, lap, rates.get(case.precision), memory))
    ours = record["sides"][0]
    for side in record["sides"]:
        side["ours_is_faster_by"] = side["median_s"] / ours["median_s"]
        side["ours_uses_less_cpu_by"] = side["cpu_median_s"] / max(ours["cpu_median_s"], 1e-9)
        console.say("  " + _line(case, side))
    return record


def _side(case: Case, contender: Contender, lap: Laps, rate: float | None, memory: Memory | None) -> dict[str, Any]:
    seconds = lap.seconds
    median = statistics.median(seconds)
    flops = None if case.flops is None else case.flops / median
    return {
        "name": contender.name, "same_work": contender.same_work,
        "median_s": median, "min_s": min(seconds), "max_s": max(seconds), "seconds": seconds,
        "cpu_median_s": statistics.median(lap.cpu_seconds),
        "per_second": case.amount / median,
        "flops_per_second": flops,
        "share_of_matmul_rate": None if flops is None or rate is None else flops / rate,
        "memory": None if memory is None else {"before_mib": memory.before_mib, "peak_mib": memory.peak_mib, "step_mib": memory.step_mib},
    }


def _line(case: Case, side: dict[str, Any]) -> str:
    share = side["share_of_matmul_rate"]
    memory = side["memory"]
    parts = [
        f"{side['name']:<28} {side['median_s']:9.4f} s ({side['min_s']:.4f} - {side['max_s']:.4f})",
        f"{side['per_second']:>12,.1f} {case.unit}/s",
        f"ours x{side['ours_is_faster_by']:.2f} (CPU x{side['ours_uses_less_cpu_by']:.2f})",
    ]
    if share is not None:
        parts.append(f"{share:.0%} of the matmul rate")
    if memory is not None:
        parts.append(f"step +{memory['step_mib']:.0f} MiB")
    if not side["same_work"]:
        parts.append("(other work)")
    return "  ".join(parts)


def run(names: Sequence[str], options: Options, console: Console) -> dict[str, Any]:
    """Run benchmarks; the whole record: machine, date, cases.

    Args:
        names: some of `ALL`; none means `BENCHMARKS`.
        options: how they are run.
        console: where lines go.
    """
    began = time.monotonic()
    chosen = list(names) or list(BENCHMARKS)
    unknown = [n for n in chosen if n not in ALL]
    if unknown:
        raise UserError(f"there is no benchmark {unknown[0]!r}, expected one of {', '.join(ALL)}")
    if options.device not in ("cpu", "cuda"):
        raise UserError(f"device is {options.device!r}, expected cpu or cuda")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("this machine has no CUDA device that torch can use: run with --device cpu, or on a machine with a GPU")
    modules = {name: import_module(f"._bench_{name}", __package__) for name in chosen}
    if options.against and not names:  # the benchmarks that know this peer
        modules = {name: module for name, module in modules.items() if options.against in module.PEERS}
        if not modules:
            raise UserError(f"no benchmark knows the peer {options.against!r}")
    machine = describe(options.device)
    types = [torch.float32, torch.bfloat16] if machine["fast_bfloat16"] else [torch.float32]
    before = _rates(options, types)
    console.say(f"{machine['processor']}, {machine['threads']} threads, {machine['capability']}, torch {machine['torch']}, "
                + ", ".join(f"{name} matmul {rate / 1e12:.3f} TFLOP/s" for name, rate in before.items())
                + f", load {machine['load_average'][0]:.1f}")
    results: list[dict[str, Any]] = []
    left_out: list[str] = []
    for name, module in modules.items():
        for case in module.cases(options):
            if options.only not in case.name:
                continue
            if options.seconds is not None and time.monotonic() - began > options.seconds:
                left_out.append(case.name)
                continue
            try:
                results.append({"benchmark": name, **measure(case, options, before, console)})
            except UserError:
                raise
            except Exception as error:  # one case that breaks must not cost the others' results
                console.warn(f"{case.name}: {type(error).__name__}: {error}")
                results.append({"benchmark": name, "case": case.name, "error": f"{type(error).__name__}: {error}"})
            if case.contenders:
                _tidy(options.device)
    if left_out:
        console.warn(f"no time was left for: {', '.join(left_out)}")
    machine["matmul_flops"] = {"before": before, "after": _rates(options, types)}
    machine["load_average_after"] = load_average()
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": "polymodal bench " + " ".join([*names, *_flags(options)]),
        "quick": options.quick, "repetitions": options.repetitions, "machine": machine,
        "agreed": all("error" not in r and r["agreement"]["holds"] for r in results), "results": results,
        "left_out": left_out,
    }


def _rates(options: Options, types: Sequence[torch.dtype]) -> dict[str, float]:
    return {str(t).removeprefix("torch."): matmul_rate(options.device, t, quick=options.quick) for t in types}


def _tidy(device: str) -> None:
    """Free what a case held, before the next one."""
    gc.collect()
    torch.compiler.reset()
    if device == "cuda":
        torch.cuda.empty_cache()


def save(record: Mapping[str, Any], path: Path) -> None:
    """Write a results file, seconds to the microsecond."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(finite(_rounded(record)), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, (list, tuple)) else value


def _flags(options: Options) -> list[str]:
    flags = ["--quick"] if options.quick else []
    flags += ["--against", options.against] if options.against else []
    flags += ["--device", options.device] if options.device != "cpu" else []
    flags += ["--seconds", f"{options.seconds:g}"] if options.seconds is not None else []
    flags += ["--only", repr(options.only)] if options.only else []
    return flags + (["--repetitions", str(options.repetitions)] if options.repetitions != Options.repetitions else [])
