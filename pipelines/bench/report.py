"""Results files as a table for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def table(record: Mapping[str, Any]) -> str:
    """One results file as Markdown: the machine, then a row for each side of each case."""
    machine = record["machine"]
    rates = ", ".join(f"{name} {rates[0] / 1e12:.3f} before and {rates[1] / 1e12:.3f} after" for name, rates in _rates(machine).items())
    peers = ", ".join(f"{k} {v}" for k, v in machine["peers"].items())
    lines = [
        f"`{record['command']}`, {record['date'][:10]}, {record['repetitions']} repetitions. "
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, {machine['capability']}, "
        f"{machine['memory_gib']} GiB; "
        f"Python {machine['python']}, torch {machine['torch']}, {peers}. "
        f"Measured matrix products, TFLOP/s: {rates}. "
        f"Load average {machine['load_average'][0]} before and {machine['load_average_after'][0]} after.",
        "",
        "| case | side | median s (min - max) | per second | ours is faster by | CPU s, ours less by | matmul rate | step MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in record["results"]:
        lines += _rows(result)
    if record["left_out"]:
        lines += ["", f"Left out for lack of time: {', '.join(record['left_out'])}."]
    if "interrupted" in record:
        lines += ["", f"Interrupted in {record['interrupted']}."]
    return "\n".join(lines)


def _rates(machine: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    found = machine["matmul_flops"]
    return {name: (found["before"][name], found["after"][name]) for name in found["before"]}


def _rows(result: Mapping[str, Any]) -> list[str]:
    name = f"{result['benchmark']}: {result['case']}"
    if "error" in result:
        return [f"| {name} | | {result['error']} | | | | | |"]
    agreement = result["agreement"]
    found = f"differ by {agreement['difference']:.2g}, tolerance {agreement['tolerance']:g}"
    if not result["sides"]:
        return [f"| {name} | | {'checked' if agreement['holds'] else 'WRONG'}: {found} | | | | | |"]
    rows: list[str] = []
    for i, side in enumerate(result["sides"]):
        share, memory = side["share_of_matmul_rate"], side["memory"]
        cpu = f"{side['cpu_median_s']:.3g}" + ("" if i == 0 else f", {side['ours_uses_less_cpu_by']:.2f}")
        rows.append("| " + " | ".join((
            name if i == 0 else "", side["name"] + ("" if side["same_work"] else " (other work)"),
            f"{side['median_s']:.4g} ({side['min_s']:.4g} - {side['max_s']:.4g})", f"{side['per_second']:,.4g} {result['unit']}",
            "" if i == 0 else f"{side['ours_is_faster_by']:.2f}",
            cpu, _shares(share, side.get("share_of_peak")),
            "" if memory is None else f"{memory['step_mib']:.0f}",
        )) + " |")  # fmt: skip
    return rows + [f"| | {name} | {why} | | | | | |" for name, why in result.get("failed", {}).items()]


def _shares(measured: float | None, published: float | None) -> str:
    """The share of the measured rate, and of the data sheet's (MFU) where there is one."""
    return ", ".join(([] if measured is None else [f"{measured:.0%}"]) + ([] if published is None else [f"MFU {published:.1%}"]))
