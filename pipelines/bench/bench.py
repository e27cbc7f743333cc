"""Benchmarks that a sceptic can read: both sides do the same work, in one interleaved run.

A `Case` is one piece of work and the sides (`Contender`) that do it. `measure` first checks that the
sides compute the same thing and refuses to time them where they do not; then it lets them take turns
(`race`), and weighs each side's memory in a process of its own (`peak_memory`).

What is reported: medians with the smallest and largest repetition, useful units per second (padding is
not useful), the share of this machine's matrix-product rate that a side reaches, measured in the same run,
and on a card whose data sheet is known the share of that (MFU, `MFU` says what it is).

The record is handed on after every case, so whatever ends a run (Ctrl-C, SIGTERM, even SIGKILL), what was measured is on disk. A
case may have a limit in seconds and ends by itself; a side that does not fit into memory or breaks is recorded as that.
"""

from __future__ import annotations

import json
import signal
import statistics
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ...shared.errors import UserError
from ..base.console import Console, finite
from .case import Case, Contender, Options
from .machine import Memory, describe, load_average, matmul_rate
from .race import Laps, OutOfTime, SideFailed, deadline, in_a_line, peak_memory, race, tidy

BENCHMARKS = ("train", "generate", "serve", "attention", "stream", "tokenize", "startup")
"""What `polymodal bench` runs where nothing is named; each is a module of this room with `cases(options)`."""
ALL = (*BENCHMARKS, "gpu")
MFU = ("share_of_peak (MFU) = useful floating-point operations of one step (6 for each weight of a matrix and each token, attention "
       "12 D s^2 a layer and sequence, half where causal, head 6 V D a predicted token; padding and recomputation not counted) / seconds "
       "of the step / dense bf16 FLOP/s of the card's data sheet; share_of_matmul_rate: the same by the rate measured in this run")
"""What the shares in a results file are."""


def measure(case: Case, options: Options, rates: Mapping[str, float], console: Console) -> dict[str, Any]:
    """Check, race and weigh one case; the record that is written to the results file.

    Args:
        case: what is run.
        options: how.
        rates: FLOP/s of this machine's matrix products by type, for the share that each side reaches; of the data sheet as
            "published bfloat16".
        console: where progress goes.
    """
    console.say(f"{case.name}: {case.about}")
    end = None if case.limit is None else time.monotonic() + case.limit
    with deadline(end):
        agreement = case.agree()
    if options.device == "cuda" and case.contenders:
        tidy(options.device, compiled=False)
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
    raced = race(case.contenders, options.repetitions, warmup=case.warmup, device=options.device, end=end, apart=case.apart)
    record["failed"] = {c.name: lap.failure for c, lap in zip(case.contenders, raced, strict=True) if lap.failure is not None}
    for name, failure in record["failed"].items():
        console.warn(f"{case.name}: {name}: {failure}")
    for contender, lap in zip(case.contenders, raced, strict=True):
        if lap.failure is not None:
            continue
        memory = peak_memory(contender) if case.weigh and options.device == "cpu" and not options.quick else lap.memory
        record["sides"].append(_side(case, contender, lap, rates.get(case.precision), rates.get(f"published {case.precision}"), memory))
    ours = record["sides"][0]
    for side in record["sides"]:
        side["ours_is_faster_by"] = side["median_s"] / ours["median_s"]
        side["ours_uses_less_cpu_by"] = side["cpu_median_s"] / max(ours["cpu_median_s"], 1e-9)
        console.say("  " + _line(case, side))
    return record


def _side(case: Case, contender: Contender, lap: Laps, rate: float | None, published: float | None,
          memory: Memory | None) -> dict[str, Any]:
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
        "share_of_peak": None if flops is None or published is None else flops / published,
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
    if side["share_of_peak"] is not None:
        parts.append(f"MFU {side['share_of_peak']:.1%}")
    if memory is not None:
        parts.append(f"step +{memory['step_mib']:.0f} MiB")
    if not side["same_work"]:
        parts.append("(other work)")
    return "  ".join(parts)


def run(names: Sequence[str], options: Options, console: Console, keep: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
    """Run benchmarks; the whole record: machine, date, cases.

    Args:
        names: some of `ALL`; none means `BENCHMARKS`.
        options: how they are run.
        console: where lines go.
        keep: gets the record as it stands after every case. A signal ends the run early, and the record says so (`interrupted`).
    """
    began = time.monotonic()
    modules = _modules(names, options)
    machine = describe(options.device)
    types = [torch.float32, torch.bfloat16] if machine["fast_bfloat16"] else [torch.float32]
    before = _rates(options, types)
    published = machine["published_bfloat16_flops"]
    console.say(f"{machine['processor']}, {machine['threads']} threads, {machine['capability']}, torch {machine['torch']}, "
                + ", ".join(f"{name} matmul {rate / 1e12:.3f} TFLOP/s" for name, rate in before.items())
                + (f", published dense bf16 {published / 1e12:.0f} TFLOP/s" if isinstance(published, float) else "")
                + f", load {machine['load_average'][0]:.1f}")
    rates = before | ({"published bfloat16": published} if isinstance(published, float) else {})
    results: list[dict[str, Any]] = []
    left_out: list[str] = []
    machine |= {"matmul_flops": {"before": before, "after": before}, "load_average_after": machine["load_average"], "shares": MFU}
    record: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": "polymodal bench " + " ".join([*names, *_flags(options)]),
        "quick": options.quick, "repetitions": options.repetitions, "machine": machine, "agreed": True, "results": results,
        "left_out": left_out,
    }
    current = "the beginning"
    try:
        for name, module in modules.items():
            for case in module.cases(options):
                current = case.name
                if options.only not in case.name:
                    continue
                if (why := _left_out(case, options, began)) is not None:
                    left_out.append(f"{case.name}{why}")
                    continue
                results.append({"benchmark": name, **_measured(case, options, rates, console, first=not results)})
                record["agreed"] = all(map(_fine, results))
                if case.contenders:
                    tidy(options.device)
                if keep is not None:
                    keep(record)
        machine["matmul_flops"]["after"] = _rates(options, types)
    except KeyboardInterrupt:
        console.warn(f"stopped in {current}; what was measured before is kept")
        record["interrupted"] = current
        record["agreed"] = False
    if left_out:
        console.warn(f"left out: {', '.join(left_out)}")
    machine["load_average_after"] = load_average()
    record["seconds"] = time.monotonic() - began
    if keep is not None:
        keep(record)
    return record


def _modules(names: Sequence[str], options: Options) -> dict[str, Any]:
    """The benchmarks' modules by name, once everything that was asked for is there."""
    chosen = list(names) or list(BENCHMARKS)
    unknown = [n for n in chosen if n not in ALL]
    if unknown:
        raise UserError(f"there is no benchmark {unknown[0]!r}, expected one of {', '.join(ALL)}")
    if options.device not in ("cpu", "cuda"):
        raise UserError(f"device is {options.device!r}, expected cpu or cuda")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("this machine has no CUDA device that torch can use: run with --device cpu, or on a machine with a GPU")
    modules = {name: import_module(f".{name}", __package__) for name in chosen}
    if options.against and not names:  # the benchmarks that know this peer
        modules = {name: module for name, module in modules.items() if options.against in module.PEERS}
        if not modules:
            raise UserError(f"no benchmark knows the peer {options.against!r}")
    return modules


def _left_out(case: Case, options: Options, began: float) -> str | None:
    """Why a case is not run: nothing where time was short, else in words; None where it is run."""
    if options.seconds is not None and time.monotonic() - began > options.seconds:
        return ""
    if options.device == "cuda" and case.needs > (room := torch.cuda.get_device_properties(0).total_memory):
        return f" (needs {case.needs / 2**30:.0f} GiB, the card has {room / 2**30:.0f})"
    return None


def _measured(case: Case, options: Options, rates: Mapping[str, float], console: Console, *, first: bool) -> dict[str, Any]:
    """`measure`, or what went wrong: one case that breaks must not cost the others' results."""
    try:
        return measure(case, options, rates, console)
    except UserError as error:
        if first:  # a mistake in how it was called, which all cases would make
            raise
        told = str(error)
    except OutOfTime:
        told = f"out of time: not ready after {case.limit:g} s"
    except SideFailed as error:
        told = str(error)
    except Exception as error:
        told = in_a_line(error)
    console.warn(f"{case.name}: {told}")
    return {"case": case.name, "error": told}


def _fine(result: Mapping[str, Any]) -> bool:
    """Whether both sides agreed and nothing broke; a side that needed too much memory or time is a result."""
    broken = [f for f in result.get("failed", {}).values() if f not in ("out of memory", "out of time")]
    return "error" not in result and result["agreement"]["holds"] and not broken


@contextmanager
def stoppable() -> Generator[None]:
    """Inside, SIGTERM (`timeout`, a batch system) ends a run as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _rates(options: Options, types: Sequence[torch.dtype]) -> dict[str, float]:
    return {str(t).removeprefix("torch."): matmul_rate(options.device, t, quick=options.quick) for t in types}


def save(record: Mapping[str, Any], path: Path) -> None:
    """Write a results file, seconds to the microsecond; there is a whole one at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(finite(_rounded(record)), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    beside.replace(path)


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
