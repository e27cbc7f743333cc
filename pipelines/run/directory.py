"""A run's directory: what a training run writes, and how everything else reads it.

    RUN/recipe.yaml        the resolved recipe; can be passed to `polymodal pretrain` again
    RUN/system.json        family, task, config and class names: what is needed to build the network; the model it began with
    RUN/environment.json   versions, hardware, command, data, layout and recipe of every start
    RUN/metrics.jsonl      one JSON object a line: training ("split": "train") and evaluation ("split": "eval")
    RUN/samples.jsonl      what the model made of held-out examples at each evaluation; pictures in RUN/previews/
    RUN/bad.jsonl          samples that were skipped, and why
    RUN/events.jsonl       updates that went wrong, and what was done about them
    RUN/heartbeats/        what each rank does, written anew every few seconds
    RUN/checkpoints/update-00001000/
    RUN/tokenizer/
    RUN/export/            the network in the reference library's layout

Rank 0 writes; every line and file is either complete or, after a crash, left out when it is read.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from ..._version import __version__
from ...registry import family
from ...shared.errors import UserError
from ...shared.family import Context
from ...shared.system import Preview, System
from ...shared.tokenizer import Tokenizer
from ..base.console import finite
from ..base.files import lock_file
from ..base.redact import redact
from . import checkpoint
from .checkpoint import Checkpoint
from .recipe import Recipe, recipe

RECIPE, SYSTEM, ENVIRONMENT = "recipe.yaml", "system.json", "environment.json"
METRICS, SAMPLES, BAD, EVENTS = "metrics.jsonl", "samples.jsonl", "bad.jsonl", "events.jsonl"


@dataclass(frozen=True)
class Run:
    """A run's directory."""

    directory: Path

    @property
    def checkpoints(self) -> Path:
        """Where its checkpoints are."""
        return self.directory / "checkpoints"

    @property
    def export(self) -> Path:
        """Where the network is in the reference library's layout, once the run has ended."""
        return self.directory / "export"

    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return recipe(self.directory / RECIPE)

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer, where the system reads text."""
        path = self.directory / "tokenizer"
        return Tokenizer.load(path) if path.is_dir() else None

    def metrics(self, split: str | None = None) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, all or those of one split (`train`, `eval`)."""
        return [row for row in read_lines(self.directory / METRICS) if split in (None, row.get("split"))]

    def starts(self) -> list[dict[str, Any]]:
        """What environment.json says of every start, oldest first."""
        path = self.directory / ENVIRONMENT
        if not path.is_file():
            return []
        try:
            return [dict(start) for start in json.loads(path.read_text(encoding="utf-8"))["starts"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path} is damaged ({type(error).__name__}: {error}): remove it; the run forgets its earlier starts") from None

    def samples(self) -> list[dict[str, Any]]:
        """The lines of samples.jsonl."""
        return read_lines(self.directory / SAMPLES)

    def events(self) -> list[dict[str, Any]]:
        """The lines of events.jsonl."""
        return read_lines(self.directory / EVENTS)

    def context(self) -> Context:
        """What the data told the system."""
        classes = self.described()["classes"]
        return Context(self.tokenizer(), None if classes is None else tuple(classes))

    def system(self, at: Checkpoint | None = None) -> System:
        """The system with the weights of a checkpoint, by default of the `chosen` one; in eval mode."""
        at = at or self.chosen()
        if at is None:
            raise UserError(f"{self.directory} holds no checkpoint that verifies: let the run reach its first one")
        described = self.described()
        # no adapting: the config is that of the finished system
        task = family(described["system"]).task(described.get("task", ""))
        system = task.build(self.config(), described["objective"], self.context())
        checkpoint.load(at.path, model_tensors(system), ignore=lambda name: not name.startswith("model/"))
        return system.eval()

    def chosen(self) -> Checkpoint | None:
        """The newest checkpoint that verifies, or with `checkpoint.keep_best` the best one that it knows of."""
        newest = checkpoint.newest(self.checkpoints)
        if newest is None or not self.recipe().checkpoint.keep_best:
            return newest
        best = newest.state().get("best", {}).get("update")
        kept = [c for c in checkpoint.all_checkpoints(self.checkpoints) if c.update == best and checkpoint.damage(c.path) is None]
        return kept[0] if kept else newest

    def config(self) -> Any:
        """The config of the network."""
        described = self.described()
        return family(described["system"]).config.from_dict(described["config"])

    def described(self) -> dict[str, Any]:
        """What system.json says: family, task, config, objective and classes, and the model that the run began with."""
        return json.loads((self.directory / SYSTEM).read_text(encoding="utf-8"))


def open_run(path: str | Path) -> Run:
    """The run at `path`, or an error that says what was expected there."""
    directory = Path(path)
    if not (directory / RECIPE).is_file() or not (directory / SYSTEM).is_file():
        raise UserError(f"{directory} is no run directory: expected {RECIPE} and {SYSTEM}, as `polymodal pretrain --out` writes them")
    return Run(directory)


def open_run_or_checkpoint(path: str | Path) -> tuple[Run, Checkpoint | None]:
    """A run, or one of its checkpoints (`RUN/checkpoints/update-...`) with the run it belongs to."""
    directory = Path(path).absolute()
    if (directory / checkpoint.MANIFEST).is_file():
        return open_run(directory.parent.parent), checkpoint.open_checkpoint(directory)
    return open_run(directory), None


def model_tensors(system: System) -> dict[str, torch.Tensor]:
    """Every parameter and buffer under its name in a checkpoint."""
    return {f"model/{name}": tensor for name, tensor in system.state_dict().items()}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a JSON-lines file; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n") and line.strip()]


# --- writing, by rank 0 ----------------------------------------------------------------------------------------------


def check_directory(directory: Path, resume: str) -> None:
    """Refuse a directory that is not a run's, or that would be overwritten."""
    if directory.exists() and not directory.is_dir():
        raise UserError(f"--out {directory} is a file; expected a directory that is new, empty or a run")
    if not directory.is_dir() or not any(directory.iterdir()):
        return
    if not (directory / RECIPE).is_file():
        raise UserError(f"--out {directory} holds other files; expected a directory that is new, empty or a run")
    if resume == "never" and checkpoint.all_checkpoints(directory / "checkpoints"):
        raise UserError(f"--out {directory} holds checkpoints and --resume is never: use another directory, or --resume auto")


def lock(directory: Path) -> IO[str]:
    """Keep other processes from writing the same run; freed when this process ends, however it ends."""
    return lock_file(directory / ".lock", f"another process is training in {directory}: wait for it, stop it, or use another --out")


def describe(directory: Path, resolved: Recipe, config: Any, context: Context, model: str = "",
             started: Mapping[str, Any] | None = None) -> None:
    """Write recipe.yaml, system.json, the tokenizer, and what there is to know about this start (`_started.py`).

    `model` is what the run began with.
    """
    checkpoint.write_durably(directory / RECIPE, resolved.to_yaml())
    described = {"system": resolved.system, "task": resolved.task, "model": model, "config": config.to_dict(),
                 "objective": resolved.objective, "classes": context.classes}
    checkpoint.write_durably(directory / SYSTEM, json.dumps(described, indent=1, ensure_ascii=False))
    if context.tokenizer is not None:
        context.tokenizer.save(directory / "tokenizer")
    starts = [*Run(directory).starts(), {**environment(), **(started or {})}]
    temporary = directory / f".tmp-{ENVIRONMENT}"  # a start that is killed here must not damage what is known of those before
    checkpoint.write_durably(temporary, json.dumps({"starts": starts}, indent=1, ensure_ascii=False))
    temporary.replace(directory / ENVIRONMENT)
    checkpoint.sync_directory(directory)


def environment() -> dict[str, Any]:
    """Versions, hardware and command of this process."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return {
        "polymodal": __version__, "python": platform.python_version(), "torch": torch.__version__, "platform": platform.platform(),
        "processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpus": gpus,
        "world_size": torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1,
        "command": [redact(argument) for argument in sys.argv], "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


class Logbook:
    """Writes metrics, samples and bad records of a run: JSON lines, TensorBoard and Weights & Biases."""

    def __init__(self, run: Run, resolved: Recipe, update: int) -> None:
        """Continue after `update` updates: lines of later ones, written before a crash, are removed."""
        self._run, self._recipe = run, resolved
        self._wandb = _wandb(run.directory, resolved)
        self._open(update)

    def _open(self, update: int) -> None:
        for name in (METRICS, SAMPLES, BAD):
            _keep(self._run.directory / name, lambda row: row["update"] <= update)
        # a skipped update is found again; how a run ended, and what a rewind has decided, stays true
        _keep(self._run.directory / EVENTS, lambda row: row["update"] <= update or row["event"] != "skip")
        self._metrics = (self._run.directory / METRICS).open("a", encoding="utf-8")
        self._board = _tensorboard(self._run.directory, self._recipe.log.tensorboard, update)

    def go_back(self, update: int) -> None:
        """Continue after `update` updates once more: lines of later ones are removed."""
        self._close()
        self._open(update)

    def row(self, row: Mapping[str, Any]) -> None:
        """Add one line of metrics."""
        self._metrics.write(json.dumps(finite(row)) + "\n")
        self._metrics.flush()
        numbers = {k: v for k, v in row.items() if isinstance(v, (int, float)) and k != "update"}
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(f"{row['split']}/{name}", value, row["update"])
            self._board.flush()
        if self._wandb is not None:
            self._wandb.log({f"{row['split']}/{name}": value for name, value in numbers.items()}, step=row["update"])

    def previews(self, update: int, previews: Iterable[Preview]) -> None:
        """Add what the model made of held-out examples."""
        lines: list[str] = []
        for number, preview in enumerate(previews):
            line: dict[str, Any] = {"update": update, "rows": [list(r) for r in preview.rows]}
            if preview.image is not None:
                from PIL import Image

                line["image"] = f"previews/update-{update:08d}-{number}.png"
                (self._run.directory / "previews").mkdir(exist_ok=True)
                Image.fromarray(preview.image).save(self._run.directory / line["image"])
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        if lines:
            with (self._run.directory / SAMPLES).open("a", encoding="utf-8") as file:
                file.write("".join(lines))

    def bad(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add skipped samples."""
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        if text:
            with (self._run.directory / BAD).open("a", encoding="utf-8") as file:
                file.write(text)

    def event(self, record: Mapping[str, Any]) -> None:
        """Add what happened to an update, and wait until it is on the disk."""
        path = self._run.directory / EVENTS
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(record)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        checkpoint.sync_directory(path.parent)

    def sync(self) -> None:
        """Wait until the metrics are on the disk."""
        os.fsync(self._metrics.fileno())

    def close(self) -> None:
        """Finish writing."""
        self._close()
        if self._wandb is not None:
            self._wandb.finish()

    def _close(self) -> None:
        self._metrics.close()
        if self._board is not None:
            self._board.close()


def _keep(path: Path, wanted: Callable[[Mapping[str, Any]], bool]) -> None:
    """Leave only complete lines that are wanted."""
    if path.exists():
        kept = [row for row in read_lines(path) if wanted(row)]
        temporary = path.with_name(f".tmp-{path.name}")
        checkpoint.write_durably(temporary, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
        temporary.replace(path)


def _tensorboard(directory: Path, wanted: bool | None, update: int) -> Any:
    if wanted is False:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        if wanted:
            raise UserError("log.tensorboard is true and tensorboard is not installed: pip install 'polymodal[tensorboard]'") from None
        return None
    return SummaryWriter(str(directory / "tensorboard"), purge_step=update + 1)


def _wandb(directory: Path, resolved: Recipe) -> Any:
    if resolved.log.wandb is None:
        return None
    try:
        import wandb  # type: ignore[import-not-found]
    except ImportError:
        raise UserError("log.wandb is set and wandb is not installed: pip install 'polymodal[wandb]'") from None
    return wandb.init(project=resolved.log.wandb, name=directory.name, id=directory.name, dir=str(directory), resume="allow",
                      config=resolved.to_dict())
