"""`polymodal report`: one self-contained page about one or several runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...shared.errors import UserError
from ...shared.system import named
from ..run.directory import EVENTS, METRICS, RECIPE, SAMPLES, Run, open_run
from ..run.recipe import record
from ..train.events import describe_event
from . import page

_COUNTERS = frozenset({"split", "update", "samples", "batch", "epoch", "tokens", "bad", "lr", "grad_norm", "seconds",
                       "tokens_per_s", "samples_per_s", "data_wait_s", "save_s", "step_s", "elapsed_s"})  # fmt: skip
SPLITS = {"training": "train", "held-out": "eval"}
CHANCE = "_chance"
"""How the name of a term's level of chance ends."""
_MAX_FIGURES = 9
_MAX_EVENTS = 5


Memory = dict[str, tuple[Any, list[str]]]
"""What was drawn of each run, and of which state of its files."""


def report(directories: Sequence[str | Path], out: str | Path, refresh: float | None = None, now: Sequence[str] = (),
           memory: Memory | None = None) -> dict[str, Any]:
    """Write a page about runs.

    Args:
        directories: runs, finished or still going.
        out: the HTML file.
        refresh: seconds after which a browser reads the page again.
        now: HTML that stands before everything else.
        memory: what earlier calls have drawn: nothing is drawn again of files that are as they were.

    Returns:
        What was written: `out`, and the last update of each run.
    """
    found = dict(zip(labels(directories), map(open_run, directories), strict=True))
    memory = {} if memory is None else memory
    stamps = {name: _stamp(run) for name, run in found.items()}

    def drawn(name: str, stamp: Any, draw: Callable[[], list[str]]) -> list[str]:
        if memory.get(name, (None,))[0] != stamp:
            memory[name] = (stamp, draw())
        return memory[name][1]

    names = ", ".join(found)
    sheet = page.Page(f"Runs: {names}" if len(found) > 1 else f"Run: {names}", "Curves, throughput, and what the model does.", refresh)
    if now:
        sheet.section("Now", *now)
    if len(found) > 1:
        sheet.section("Side by side", *drawn("", stamps, lambda: _together(found)))
    for name, run in found.items():
        sheet.section(name, *drawn(name, stamps[name], lambda name=name, run=run: run_parts(run, name=name)))
    out = Path(out)
    sheet.save(out)
    return {"out": str(out), "runs": {str(r.directory): max((row["update"] for row in r.metrics()), default=0) for r in found.values()}}


def _stamp(run: Run) -> tuple[tuple[int, int], ...]:
    """What changes whenever the parts of a run do."""
    files = [run.directory / name for name in (METRICS, SAMPLES, EVENTS, RECIPE)]
    return tuple((stat.st_mtime_ns, stat.st_size) if path.exists() and (stat := path.stat()) else (0, 0) for path in files)


def _together(found: Mapping[str, Run]) -> list[str]:
    """The losses of several runs in one figure."""
    figures = [page.curves(f"{label} loss", lines, scales=True) for label, split in SPLITS.items()
               if (lines := {name: curve for name, run in found.items() if (curve := line(run, split, "loss"))[0]})]
    return [page.grid(*figures), page.paragraph("`polymodal compare` writes a page with their results, what differs in their settings, and "
                                                "all curves.", soft=True)]


def labels(directories: Sequence[str | Path]) -> list[str]:
    """What to call runs: the end of each path, as long as it must be to tell them apart.

    Raises:
        UserError: a run is there twice.
    """
    paths = [Path(directory).absolute() for directory in directories]
    twice = next((path for i, path in enumerate(paths) if path.resolve() in {other.resolve() for other in paths[:i]}), None)
    if twice is not None:
        raise UserError(f"{twice} is given twice: give each run once")

    def alone(path: Path) -> str:
        ends = ("/".join(path.parts[-length:]) for length in range(1, len(path.parts)))
        return next((end for end in ends if sum(f"/{other}".endswith(f"/{end}") for other in paths) == 1), str(path))

    return [alone(path) for path in paths]


def line(run: Run, split: str, name: str) -> tuple[list[float], list[float]]:
    """One quantity over the updates of a run: (updates, values), without values that are missing."""
    rows = [row for row in run.metrics(split) if row.get(name) is not None]
    return [row["update"] for row in rows], [row[name] for row in rows]


def run_parts(run: Run, levels: dict[str, float] | None = None, name: str | None = None) -> list[str]:
    """The parts of a page's section about one run.

    Args:
        run: the run.
        levels: trivial baselines to draw beside the loss, by name.
        name: what it is called. Default: as its directory.
    """
    name = name or run.directory.absolute().name
    recipe = run.recipe()
    train, held_out = run.metrics("train"), run.metrics("eval")
    parts = [page.cards(_numbers(train, held_out)), *(page.paragraph(describe_event(event)) for event in run.events()[-_MAX_EVENTS:])]
    if train:
        parts.append(page.grid(*_figures(run, name, train, held_out, levels)))
    samples = run.samples()
    if samples:
        last = [s for s in samples if s["update"] == samples[-1]["update"]]
        parts.append(page.heading(f"What the model does after update {last[0]['update']}, on held-out data"))
        parts += [preview(run, sample) for sample in last]
    about = record(recipe.name)
    parts.append(page.details(f"Recipe {recipe.name}", (page.code(about) if about else "") + page.code(recipe.to_yaml())))
    return parts


def preview(run: Run, sample: Mapping[str, Any]) -> str:
    """What the model made of one held-out example: a line of samples.jsonl."""
    picture = run.directory / sample["image"] if "image" in sample else None
    rows = [(str(caption), str(text)) for caption, text in sample["rows"]]
    return page.sample(rows, picture.read_bytes() if picture is not None and picture.is_file() else None)


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
        numbers += [(f"{last[n]:,.3f}", f"held-out {words(n)}") for n in measured(last) if not n.endswith(CHANCE)][:4]
    return numbers


def _figures(run: Run, prefix: str, train: list[dict[str, Any]], held_out: list[dict[str, Any]], levels: dict[str, float] | None
             ) -> list[str]:
    """Loss first, then every other measured quantity, training and held-out in one figure; of tasks that take turns one figure each."""
    rows = (train[-1], *held_out[-1:])
    names = list(dict.fromkeys(n for row in rows for n in measured(row) if not n.endswith(CHANCE)))
    tasks = [task for row in rows for task in _tasks(row)]
    quantities: dict[str, list[str]] = {}
    for name in names:
        quantities.setdefault(_split(name, tasks)[1], []).append(name)
    figures: list[str] = []
    for quantity, mine in list(quantities.items())[:_MAX_FIGURES]:
        for title, lines in _curves(run, quantity, mine).items():
            beside = chance(held_out[-1] if held_out else {}, quantity) | ((levels or {}) if title == "loss" else {})
            figures.append(page.curves(f"{prefix}: {words(title)}", lines, levels=beside, log_y="perplexity" in title, scales=True))
    figures.append(page.curves(f"{prefix}: learning rate", {"learning rate": line(run, "train", "lr")}))
    if len({row.get("batch") for row in train}) > 1:
        figures.append(page.curves(f"{prefix}: samples of an update", {"batch": line(run, "train", "batch")}))
    rate = "tokens_per_s" if train[-1].get("tokens_per_s") else "samples_per_s"
    figures.append(page.curves(f"{prefix}: {words(rate)}", {rate: line(run, "train", rate)}))
    return figures


def _curves(run: Run, quantity: str, names: Sequence[str]) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """The figures of one quantity, by title: training beside held-out; and where tasks take turns, the tasks beside each other."""
    figures = {quantity: {label: line(run, split, quantity) for label, split in SPLITS.items()}} if quantity in names else {}
    if by_task := {name.removesuffix(f"/{quantity}"): name for name in names if name != quantity}:
        figures |= {f"{quantity} by task, {label}": {task: line(run, split, name) for task, name in by_task.items()}
                    for label, split in SPLITS.items()}
    drawn = {title: {label: curve for label, curve in lines.items() if curve[0]} for title, lines in figures.items()}
    return {title: lines for title, lines in drawn.items() if lines}


def chance(held_out: Mapping[str, Any], quantity: str) -> dict[str, float]:
    """The level of chance beside a quantity: that of its term, and beside the loss that of its only term, if the two are one."""
    term = quantity
    if quantity == "loss":
        alone = [name for name, value in held_out.items() if name + CHANCE in held_out and value == held_out["loss"]]
        term = alone[0] if len(alone) == 1 else ""
    value = held_out.get(term + CHANCE)
    return {"chance": value} if isinstance(value, float) else {}


def _tasks(row: Mapping[str, Any]) -> list[str]:
    """The tasks of a line that take turns: each has a loss."""
    return [name.removesuffix("/loss") for name in row if name.endswith("/loss")]


def _split(name: str, tasks: Sequence[str]) -> tuple[str, str]:
    """(task, quantity) of a number; the task is empty where it is of all."""
    task, _, quantity = name.partition("/")
    return (task, quantity) if task in tasks else ("", name)


def measured(row: Mapping[str, Any]) -> list[str]:
    """The quantities of a line, the loss first; a single term that is the loss itself is left out."""
    tasks = _tasks(row)

    def is_loss(name: str) -> bool:
        task, quantity = _split(name, tasks)
        return quantity != "loss" and row[name] == row[named(task, "loss")]

    names = [n for n, v in row.items() if n not in _COUNTERS and isinstance(v, float)]
    return ["loss", *(n for n in names if n != "loss" and not is_loss(n))]


def words(name: str) -> str:
    """The name of a quantity for people."""
    return name.replace("_per_s", " per second").replace("/", ": ").replace("_", " ")
