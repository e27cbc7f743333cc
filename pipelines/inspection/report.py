"""`polymodal report`: one self-contained page about one or several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...shared.system import named
from ..run.directory import Run, open_run
from ..run.recipe import record
from ..train.events import describe_event
from . import page

_COUNTERS = frozenset({"split", "update", "samples", "batch", "epoch", "tokens", "bad", "lr", "grad_norm", "seconds",
                       "tokens_per_s", "samples_per_s", "data_wait_s", "save_s", "step_s", "elapsed_s"})  # fmt: skip
_MAX_FIGURES = 9
_MAX_EVENTS = 5


def report(directories: Sequence[str | Path], out: str | Path) -> dict[str, Any]:
    """Write a page about runs.

    Args:
        directories: runs, finished or still going.
        out: the HTML file.

    Returns:
        What was written: `out`, and the last update of each run.
    """
    found = [open_run(directory) for directory in directories]
    names = ", ".join(run.directory.name for run in found)
    sheet = page.Page(f"Runs: {names}" if len(found) > 1 else f"Run: {names}", "Curves, throughput, and what the model does.")
    if len(found) > 1:
        together = page.curves("Training loss", {r.directory.name: line(r, "train", "loss") for r in found})
        sheet.section("Side by side", page.grid(together))
    for run in found:
        sheet.section(run.directory.name, *run_parts(run))
    out = Path(out)
    sheet.save(out)
    return {"out": str(out), "runs": {str(r.directory): max((row["update"] for row in r.metrics()), default=0) for r in found}}


def line(run: Run, split: str, name: str) -> tuple[list[float], list[float]]:
    """One quantity over the updates of a run: (updates, values), without values that are missing."""
    rows = [row for row in run.metrics(split) if row.get(name) is not None]
    return [row["update"] for row in rows], [row[name] for row in rows]


def run_parts(run: Run, levels: dict[str, float] | None = None) -> list[str]:
    """The parts of a page's section about one run.

    Args:
        run: the run.
        levels: trivial baselines to draw beside the loss, by name.
    """
    recipe = run.recipe()
    train, held_out = run.metrics("train"), run.metrics("eval")
    parts = [page.cards(_numbers(train, held_out)), *(page.paragraph(describe_event(event)) for event in run.events()[-_MAX_EVENTS:])]
    if train:
        parts.append(page.grid(*_figures(run, train, held_out, levels)))
    samples = run.samples()
    if samples:
        last = [s for s in samples if s["update"] == samples[-1]["update"]]
        parts.append(page.heading(f"What the model does after update {last[0]['update']}, on held-out data"))
        for sample in last:
            picture = run.directory / sample["image"] if "image" in sample else None
            rows = [(str(caption), str(text)) for caption, text in sample["rows"]]
            parts.append(page.sample(rows, picture.read_bytes() if picture is not None and picture.is_file() else None))
    about = record(recipe.name)
    parts.append(page.details(f"Recipe {recipe.name}", (page.code(about) if about else "") + page.code(recipe.to_yaml())))
    return parts


def _numbers(train: list[dict[str, Any]], held_out: list[dict[str, Any]]) -> list[tuple[str, str]]:
    numbers: list[tuple[str, str]] = []
    if train:
        last = train[-1]
        numbers.append((f"{last['update']:,}", "updates"))
        numbers.append((f"{last['loss']:.3f}", "training loss"))
        steady = train[len(train) // 2]
        if steady.get("tokens_per_s"):
            numbers.append((f"{steady['tokens_per_s']:,.0f}", "tokens per second"))
        numbers.append((f"{steady['samples_per_s']:,.1f}", "samples per second"))
    if held_out:
        last = held_out[-1]
        numbers += [(f"{last[n]:,.3f}", f"held-out {_words(n)}") for n in _measured(last)][:4]
    return numbers


def _figures(run: Run, train: list[dict[str, Any]], held_out: list[dict[str, Any]], levels: dict[str, float] | None) -> list[str]:
    """Loss first, then every other measured quantity, training and held-out in one figure; of tasks that take turns one figure each."""
    prefix = run.directory.name
    rows = (train[-1], *held_out[-1:])
    names = list(dict.fromkeys(n for row in rows for n in _measured(row)))
    tasks = [task for row in rows for task in _tasks(row)]
    quantities: dict[str, list[str]] = {}
    for name in names:
        quantities.setdefault(_split(name, tasks)[1], []).append(name)
    figures: list[str] = []
    for quantity, mine in list(quantities.items())[:_MAX_FIGURES]:
        for title, lines in _curves(run, quantity, mine).items():
            figures.append(page.curves(f"{prefix}: {_words(title)}", lines, levels=levels if title == "loss" else None))
    figures.append(page.curves(f"{prefix}: learning rate", {"learning rate": line(run, "train", "lr")}))
    if len({row.get("batch") for row in train}) > 1:
        figures.append(page.curves(f"{prefix}: samples of an update", {"batch": line(run, "train", "batch")}))
    rate = "tokens_per_s" if train[-1].get("tokens_per_s") else "samples_per_s"
    figures.append(page.curves(f"{prefix}: {_words(rate)}", {rate: line(run, "train", rate)}))
    return figures


def _curves(run: Run, quantity: str, names: Sequence[str]) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """The figures of one quantity, by title: training beside held-out; and where tasks take turns, the tasks beside each other."""
    splits = {"training": "train", "held-out": "eval"}
    figures = {quantity: {label: line(run, split, quantity) for label, split in splits.items()}} if quantity in names else {}
    if by_task := {name.removesuffix(f"/{quantity}"): name for name in names if name != quantity}:
        figures |= {f"{quantity} by task, {label}": {task: line(run, split, name) for task, name in by_task.items()}
                    for label, split in splits.items()}
    drawn = {title: {label: curve for label, curve in lines.items() if curve[0]} for title, lines in figures.items()}
    return {title: lines for title, lines in drawn.items() if lines}


def _tasks(row: Mapping[str, Any]) -> list[str]:
    """The tasks of a line that take turns: each has a loss."""
    return [name.removesuffix("/loss") for name in row if name.endswith("/loss")]


def _split(name: str, tasks: Sequence[str]) -> tuple[str, str]:
    """(task, quantity) of a number; the task is empty where it is of all."""
    task, _, quantity = name.partition("/")
    return (task, quantity) if task in tasks else ("", name)


def _measured(row: dict[str, Any]) -> list[str]:
    """The quantities of a line, the loss first; a single term that is the loss itself is left out."""
    tasks = _tasks(row)

    def is_loss(name: str) -> bool:
        task, quantity = _split(name, tasks)
        return quantity != "loss" and row[name] == row[named(task, "loss")]

    names = [n for n, v in row.items() if n not in _COUNTERS and isinstance(v, float)]
    return ["loss", *(n for n in names if n != "loss" and not is_loss(n))]


def _words(name: str) -> str:
    return name.replace("_per_s", " per second").replace("/", ": ").replace("_", " ")
