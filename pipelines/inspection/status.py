"""`polymodal status`: how runs are, without touching them: what state they are in, how far, how fast, until when, and what went wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...shared.errors import UserError
from ..base.console import aligned
from ..run import checkpoint
from ..run.directory import BAD, METRICS, Run, is_run, open_run
from ..run.recipe import Recipe
from ..train.heartbeat import MAKING
from .diagnosis import diagnose, duration, read_ranks

STATES = {
    "running": "its ranks make updates",
    "hanging": "its ranks are there, and none moves",
    "finished": "its last update is made",
    "stopped": "it ended in order before its last update: a signal, --max-seconds or evaluate.patience",
    "failed": "a rank ended with an error",
    "killed": "its ranks are gone without a word",
    "unknown": "it keeps no signs of life (health.heartbeat=0), or has made none yet",
    "broken": "its files cannot be read",
}
"""What a run can be."""
GOING = frozenset({"running", "hanging"})
"""The states of runs whose processes are there."""
_RECENT = 3
"""Lines of the log that the speed is taken from."""


@dataclass(frozen=True)
class Status:
    """How a run is."""

    run: str
    """Its directory."""
    state: str
    """Of `STATES`."""
    says: str
    """The same in words: which rank, what error."""
    recipe: str = ""
    system: str = ""
    update: int = 0
    """Updates made: of a run in progress as its ranks say, else as its log says."""
    max_updates: int = 0
    train: Mapping[str, Any] | None = None
    """The last line of training in its log."""
    eval: Mapping[str, Any] | None = None
    """The last line of an evaluation in its log."""
    step_s: float | None = None
    """Seconds of an update, lately."""
    eta_s: float | None = None
    """Seconds until the last update at this speed, evaluations included; None unless it is running."""
    checkpoint: int | None = None
    """Updates in the newest checkpoint."""
    checkpoint_age_s: float | None = None
    log_age_s: float | None = None
    """Seconds since the last line of its log."""
    starts: int = 0
    """How often it was started; more than one where it was resumed."""
    skipped: int = 0
    """Samples that were left out."""
    exported: bool = False

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be written unless somebody starts it again."""
        return self.state not in (*GOING, "unknown")


def find_runs(directories: Sequence[str | Path]) -> list[Path]:
    """The runs among these directories and below them, each once, in order.

    Raises:
        UserError: a directory is missing, or holds no run.
    """
    found: dict[Path, Path] = {}
    for directory in map(Path, directories):
        if not directory.is_dir():
            raise UserError(f"{directory} is no directory: expected a run, or a folder with runs in it")
        below = list(_below(directory))
        if not below:
            raise UserError(f"{directory} holds no run: expected folders as `polymodal pretrain --out` writes them")
        for path in below:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _below(directory: Path) -> Iterator[Path]:
    for folder, folders, _ in os.walk(directory):
        path = Path(folder)
        if is_run(path):
            folders.clear()
            yield path
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def read_run(directory: Path) -> tuple[Run, Recipe, list[dict[str, Any]]]:
    """A run, its recipe and the lines of its log.

    Raises:
        UserError: with what is wrong, where it cannot be read.
    """
    run = open_run(directory)
    resolved = run.recipe()
    run.described()
    try:
        rows = run.metrics()
        wrong = next((row for row in rows if not isinstance(row.get("update"), int) or row.get("split") not in ("train", "eval")), None)
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{directory / METRICS} is damaged ({type(error).__name__}: {error}): take the damaged line out") from None
    if wrong is not None:
        raise UserError(f"{directory / METRICS} is damaged (a line without a split or an update): take it out")
    return run, resolved, rows


def status(directory: Path, now: float | None = None) -> Status:
    """How a run is; `broken` where its files cannot be read."""
    now = time.time() if now is None else now
    try:
        run, resolved, rows = read_run(directory)
        starts = len(run.starts())
    except UserError as error:
        return Status(str(directory), "broken", " ".join(str(error).split()))
    train = [row for row in rows if row["split"] == "train"]
    held_out = [row for row in rows if row["split"] == "eval"]
    step_s = _step(train)
    ranks = read_ranks(directory, now)
    found = diagnose(ranks, step_s or 0.0)
    update = train[-1]["update"] if train else 0
    if found.state in GOING and ranks:
        update = max(rank.update - (rank.phase in MAKING) for rank in ranks)
    saved = checkpoint.all_checkpoints(run.checkpoints)
    exported = run.export.is_dir()
    state, says, last = found.state, found.says, resolved.max_updates
    if state == "ended" or (state == "unknown" and exported):
        state = "finished" if update >= last else "stopped"
        says = says if found.state == "ended" else "exported, and no signs of life"
        says += f" of {last}" if state == "stopped" and not says.endswith("life") else ""
    return Status(
        str(directory), state, says, resolved.name, resolved.system, update, last, train[-1] if train else None,
        held_out[-1] if held_out else None, step_s, _eta(resolved, update, step_s, held_out) if state == "running" else None,
        saved[-1].update if saved else None, _age(saved[-1].path, now) if saved else None, _age(directory / METRICS, now), starts,
        _lines(directory / BAD), exported)


def _step(train: Sequence[Mapping[str, Any]]) -> float | None:
    """Seconds of an update over the last lines; None without a line that says it."""
    known = [row["step_s"] for row in train[-_RECENT:] if isinstance(row.get("step_s"), float)]
    return sum(known) / len(known) if known else None


def _eta(recipe: Recipe, update: int, step_s: float | None, held_out: Sequence[Mapping[str, Any]]) -> float | None:
    """Seconds until the last update, with the evaluations that are due until then, each as long as the last one."""
    if step_s is None:
        return None
    rest = max(0, recipe.max_updates - update)
    every, seconds = recipe.evaluate.every, held_out[-1].get("seconds") if held_out else None
    due = recipe.max_updates // every - update // every if every > 0 else 0
    return rest * step_s + (due * seconds if isinstance(seconds, float) else 0.0)


def _age(path: Path, now: float) -> float | None:
    try:
        return max(0.0, now - path.stat().st_mtime)
    except OSError:
        return None


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def lines(found: Sequence[Status]) -> list[str]:
    """Runs for people: one line each, and one more where something went wrong."""
    header = ("run", "state", "update", "loss", "held-out", "speed", "left", "checkpoint")
    first, *shown = aligned([header, *(cells(one) for one in found)])
    made = [first]
    for line, one in zip(shown, found, strict=True):
        made.append(line)
        if one.state not in ("running", "finished"):
            made.append(f"    {one.says}")
    return made


def cells(one: Status) -> tuple[str, ...]:
    """A run's line of the table: run, state, update, loss, held-out loss, speed, time left, newest checkpoint."""
    train, held_out = one.train or {}, one.eval or {}
    left = "" if one.eta_s is None else duration(one.eta_s)
    saved = "none" if one.checkpoint is None else f"{one.checkpoint}, {duration(one.checkpoint_age_s or 0.0)} ago"
    if one.state == "broken":
        return one.run, one.state, "", "", "", "", "", ""
    return (one.run, one.state, f"{one.update}/{one.max_updates}", _number(train.get("loss")), _number(held_out.get("loss")), speed(train),
            left, saved)


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, (int, float)) else "-"


def speed(row: Mapping[str, Any]) -> str:
    """Tokens per second, or samples per second where there are no tokens."""
    for name, unit in (("tokens_per_s", "tokens/s"), ("samples_per_s", "samples/s")):
        if row.get(name):
            return f"{row[name]:,.0f} {unit}" if row[name] >= 100 else f"{row[name]:.3g} {unit}"
    return "-"
