"""Write the page of measured results from the files in benchmarks/: a figure and a table.

    python examples/plot_results.py docs       # writes docs/results.md and docs/results.svg

Where a case was measured more than once, the newest file counts. A bar is the peer's time over ours for the same work.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks"
WIDTH, ROW, LABEL, EDGE = 860, 24, 400, 30


@dataclass(frozen=True)
class Result:
    """One case against one peer."""

    case: str
    peer: str
    ratio: float
    ours: float
    unit: str
    same_work: bool
    date: str
    machine: str
    file: str


def results(folder: Path = RESULTS) -> list[Result]:
    """The newest measurement of every case and peer, in the order of the files."""
    found: dict[tuple[str, str], Result] = {}
    for file in sorted(folder.glob("*.json"), key=lambda f: json.loads(f.read_text(encoding="utf-8"))["date"]):
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        machine = record["machine"]
        about = f"{machine['processor']}, {machine['threads']} of {machine['cores']} cores, {machine['capability']}"
        for result in record["results"]:
            case = f"{result['benchmark']}: {result['case']}"
            ours = result["sides"][0]["per_second"] if result["sides"] else 0.0
            for side in result["sides"][1:]:
                found[case, side["name"]] = Result(case, side["name"], side["ours_is_faster_by"], ours, result["unit"], side["same_work"],
                                                   record["date"][:10], about, file.name)
    return sorted(found.values(), key=lambda r: (r.case.split(":")[0], r.case))


def draw(shown: list[Result]) -> str:
    """Bars as SVG, with a line where both sides are equally fast."""
    widest = max([r.ratio for r in shown] + [1.0])
    unit = (WIDTH - LABEL - 70) / widest
    height = EDGE * 2 + ROW * len(shown)
    equal = LABEL + unit
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">',
             f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
             f'<text x="{LABEL}" y="18" fill="#333">times as fast as the peer</text>']
    for number, r in enumerate(shown):
        y = EDGE + number * ROW
        colour = "#00796b" if r.ratio >= 1 else "#c62828"
        parts += [f'<text x="{LABEL - 8}" y="{y + 15}" text-anchor="end" fill="#222">{escape(f"{r.case} / {r.peer}")}</text>',
                  f'<rect x="{LABEL}" y="{y + 3}" width="{r.ratio * unit:.1f}" height="{ROW - 8}" fill="{colour}" '
                  f'fill-opacity="{1 if r.same_work else 0.45}"/>',
                  f'<text x="{LABEL + r.ratio * unit + 5:.1f}" y="{y + 15}" fill="#222">{r.ratio:.2f}</text>']
    parts += [f'<line x1="{equal:.1f}" x2="{equal:.1f}" y1="{EDGE - 4}" y2="{height - EDGE + 4}" stroke="#333" stroke-dasharray="3 3"/>',
              "</svg>"]
    return "\n".join(parts) + "\n"


def pages(folder: Path = RESULTS) -> dict[str, str]:
    """The page and its figure, by name."""
    shown = results(folder)
    rows = ["| " + " | ".join((r.case, r.peer + ("" if r.same_work else " (other work)"), f"{r.ratio:.2f}", f"{r.ours:,.4g} {r.unit}/s",
                               r.machine, r.date)) + " |" for r in shown]
    return {"results.md": "\n".join((*TEXT, *rows, "")), "results.svg": draw(shown)}


TEXT = """<!-- written by examples/plot_results.py -->

# Results

Measured by `polymodal bench` on CPUs: both sides take turns in one run, on the same weights and data, after their results were compared.
The files, with every repetition, memory, versions and load, are in `benchmarks/`, whose README says how to read them and gives the
command of each. Most runs shared the machine with other work: ratios are of use, absolute rates are not. On GPUs: not measured.
Pale bars are of sides that do other work (whole weights beside int8, full attention beside a window). What was tried and did not pay
is in [Performance](performance.md).

![Times as fast as the peer](results.svg)

| case | peer | times as fast | ours | machine | date |
|---|---|---|---|---|---|""".splitlines()


if __name__ == "__main__":
    for name, content in pages().items():
        (Path(sys.argv[1]) / name).write_text(content, encoding="utf-8")
