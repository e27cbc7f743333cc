"""A run's directory: what a training run writes, and how everything else reads it.

    RUN/recipe.yaml        the resolved recipe; can be passed to `polymodal pretrain` again
    RUN/system.json        family, task, config and class names: what is needed to build the network; the model or run it began with;
                           the sha256 of files that the objective reads beside the data; its companions and their sha256
    RUN/environment.json   versions, hardware, command, data, layout and recipe of every start
    RUN/metrics.jsonl      one JSON object a line: training ("split": "train") and evaluation ("split": "eval")
    RUN/samples.jsonl      what the model made of held-out examples at each evaluation; pictures in RUN/previews/
    RUN/bad.jsonl          samples that were skipped, and why
    RUN/events.jsonl       updates that went wrong, and what was done about them
    RUN/wandb.json         the run's id in Weights & Biases, where it logs there
    RUN/heartbeats/        what each rank does, written anew every few seconds
    RUN/checkpoints/update-00001000/
    RUN/tokenizer/
    RUN/counts.u64         how often each token id stands in the training data, where the task reads that; little-endian, no header
    RUN/start/             what the model that it began with had beside config and weights (generation_config.json)
    RUN/export/            the network in the reference library's layout

Rank 0 writes; every line and file is either complete or, after a crash, left out when it is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ...registry import family
from ...shared.errors import UserError, raise_problems
from ...shared.family import Context
from ...shared.keys import read_json
from ...shared.system import Companion, System
from ...shared.tokenizer import Tokenizer
from ..base.files import lock_file, read_json_lines, replace_durably, write_atomic
from . import checkpoint
from .checkpoint import Checkpoint
from .recipe import Recipe, recipe

RECIPE, SYSTEM, ENVIRONMENT, WANDB = "recipe.yaml", "system.json", "environment.json", "wandb.json"
START = "start"
COUNTS = "counts.u64"
METRICS, SAMPLES, BAD, EVENTS = "metrics.jsonl", "samples.jsonl", "bad.jsonl", "events.jsonl"
_LOCK = ".lock"


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

    def counts(self) -> np.ndarray | None:
        """How often each token id stands in the training data, int64 [V]; None where the task does not read that."""
        sha256, path = self.described().get("counts"), self.directory / COUNTS
        if sha256 is None:
            return None
        data = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(data).hexdigest() != sha256:
            raise UserError(f"{path} is missing or damaged: put it back, or start a new run in another --out")
        return np.frombuffer(data, dtype="<u8").astype(np.int64)

    def metrics(self, split: str | None = None) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, all or those of one split (`train`, `eval`)."""
        return [row for row in read_json_lines(self.directory / METRICS) if split in (None, row.get("split"))]

    def starts(self) -> list[dict[str, Any]]:
        """What environment.json says of every start, oldest first."""
        path = self.directory / ENVIRONMENT
        if not path.is_file():
            return []
        try:
            return [dict(start) for start in json.loads(path.read_text(encoding="utf-8"))["starts"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path} is damaged ({type(error).__name__}: {error}): remove it; the run forgets its earlier starts") from None

    def brought(self) -> dict[str, Mapping[str, Any]]:
        """What the model that the run began with had beside config and weights: JSON files by name."""
        return {path.name: read_json(path) for path in sorted((self.directory / START).glob("*.json")) if not path.name.startswith(".")}

    def samples(self) -> list[dict[str, Any]]:
        """The lines of samples.jsonl."""
        return read_json_lines(self.directory / SAMPLES)

    def events(self) -> list[dict[str, Any]]:
        """The lines of events.jsonl."""
        return read_json_lines(self.directory / EVENTS)

    def context(self, companions: Mapping[str, Companion] | None = None) -> Context:
        """What the data told the system. Without `companions`, a system that has some is built for its network alone."""
        described = self.described()
        classes = described["classes"]
        return Context(self.tokenizer(), None if classes is None else tuple(classes), companions=companions or {},
                       several_labels=described.get("several_labels", False),  # runs of older versions do not say it
                       counts=self.counts(),
                       net_only=companions is None and bool(self.companions()))

    def companions(self) -> dict[str, dict[str, str]]:
        """The `source` and the `fingerprint` of each companion that the run began with."""
        return self.described().get("companions", {})

    def system(self, at: Checkpoint | None = None, companions: Mapping[str, Companion] | None = None) -> System:
        """The system with the weights of a checkpoint, by default of the `chosen` one; in eval mode. `companions` as in `context`."""
        at = at or self.chosen()
        if at is None:
            raise UserError(f"{self.directory} holds no checkpoint that verifies: let the run reach its first one")
        described = self.described()
        # no adapting: the config is that of the finished system
        task = family(described["system"]).task(described.get("task", ""))
        system = task.build(self.config(), described["objective"], self.context(companions))
        self.check_inputs(system)
        checkpoint.load_model(at.path, system)
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

    def check_inputs(self, system: System) -> None:
        """Refuse a system that reads other files beside the data (`Objective.inputs`), or other companions, than the run began with."""
        before: dict[str, str] = self.described().get("inputs", {})
        for name, companion in system.companions.items():
            began = self.companions().get(name, {})
            if began and companion.fingerprint != began["fingerprint"]:
                raise UserError(f"{self.directory} began with another {name}, {began['source']} (sha256 {began['fingerprint'][:12]}), than "
                                f"{companion.source} ({companion.fingerprint[:12]}): set companions.{name} back, or start a new run in "
                                "another --out")
        raise_problems((f"{key} names a file with sha256 {sha256[:12]}, and the run began with {before[key][:12]}: put that one back"
                        for key, sha256 in system.objective.inputs.items() if before.get(key, sha256) != sha256), str(self.directory))

    def described(self) -> dict[str, Any]:
        """What system.json says: family, task, config, objective and classes, and the model or run that it began with."""
        path = self.directory / SYSTEM
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{path} is damaged ({type(error).__name__}: {error}): put back a whole one, or start a new run in another "
                            "--out") from None


def is_run(path: Path) -> bool:
    """Whether there is a run at `path`."""
    return (path / RECIPE).is_file()


def open_run(path: str | Path) -> Run:
    """The run at `path`, or an error that says what was expected there."""
    directory = Path(path)
    if not (directory / RECIPE).is_file() or not (directory / SYSTEM).is_file():
        raise UserError(f"{directory} is not a run directory: expected {RECIPE} and {SYSTEM}, as `polymodal pretrain --out` writes them")
    return Run(directory)


def open_run_or_checkpoint(path: str | Path) -> tuple[Run, Checkpoint | None]:
    """A run, or one of its checkpoints (`RUN/checkpoints/update-...`) with the run it belongs to."""
    directory = Path(path).absolute()
    if (directory / checkpoint.MANIFEST).is_file():
        return open_run(directory.parent.parent), checkpoint.open_checkpoint(directory)
    return open_run(directory), None


# --- writing, by rank 0 ----------------------------------------------------------------------------------------------


def check_directory(directory: Path, resume: str) -> None:
    """Refuse a directory that is not a run's, or that would be overwritten."""
    if directory.exists() and not directory.is_dir():
        raise UserError(f"--out {directory} is a file; expected a directory that is new, empty or a run")
    if not directory.is_dir() or all(_is_of_a_start(path) for path in directory.iterdir()):
        return
    if not is_run(directory):
        raise UserError(f"--out {directory} holds other files; expected a directory that is new, empty or a run")
    if resume == "never" and checkpoint.all_checkpoints(directory / "checkpoints"):
        raise UserError(f"--out {directory} holds checkpoints and --resume is never: use another directory, or --resume auto")


def _is_of_a_start(path: Path) -> bool:
    """Whether this is all that a start leaves which is killed before it has written the recipe."""
    return path.name == _LOCK or path.name.startswith(".tmp-")


def lock_run(directory: Path) -> IO[str]:
    """Keep other processes from writing the same run; freed when this process ends, however it ends."""
    return lock_file(directory / _LOCK, f"another process is training in {directory}: wait for it, stop it, or use another --out")


def counts_bytes(counts: np.ndarray) -> bytes:
    """The content of `COUNTS`."""
    return counts.astype("<u8").tobytes()


def record_recipe(run: Run, resolved: Recipe) -> None:
    """Write the recipe of the start that was recorded last anew: what was found out since belongs to it."""
    *before, last = run.starts()
    replace_durably(run.directory / RECIPE, resolved.to_yaml())
    replace_durably(run.directory / ENVIRONMENT,
                    json.dumps({"starts": [*before, {**last, "recipe": resolved.to_dict()}]}, indent=1, ensure_ascii=False))


def record_start(run: Run, resolved: Recipe, config: Any, context: Context, model: str, start: Mapping[str, Any],
                 ancestor: Mapping[str, Any] | None = None, brought: Mapping[str, Mapping[str, Any]] | None = None,
                 inputs: Mapping[str, str] | None = None, companions: Mapping[str, Companion] | None = None) -> None:
    """Write recipe.yaml, system.json and the tokenizer, and add this start to environment.json.

    A kill at any moment leaves each file as it was or whole.

    Args:
        run: the directory; it must exist.
        resolved: the recipe.
        config: of the network.
        context: what the data told the system.
        model: what the run began with; empty for randomly initialized ones.
        start: what there is to know about this start.
        ancestor: the checkpoint of another run that the run went on from, where there is one.
        brought: see `Run.brought`.
        inputs: see `Objective.inputs`.
        companions: of the system.
    """
    for name, record in (brought or {}).items():
        (run.directory / START).mkdir(exist_ok=True)
        replace_durably(run.directory / START / name, json.dumps(record, indent=1, ensure_ascii=False))
    replace_durably(run.directory / RECIPE, resolved.to_yaml())
    counts = None if context.counts is None else counts_bytes(context.counts)
    if counts is not None:
        write_atomic(run.directory / COUNTS, counts)
    described = {"system": resolved.system, "task": resolved.task, "model": model, "ancestor": ancestor, "config": config.to_dict(),
                 "objective": resolved.objective, "classes": context.classes, "several_labels": context.several_labels,
                 "inputs": dict(inputs or {}), "counts": None if counts is None else hashlib.sha256(counts).hexdigest(),
                 "companions": {name: {"source": c.source, "fingerprint": c.fingerprint} for name, c in (companions or {}).items()}}
    replace_durably(run.directory / SYSTEM, json.dumps(described, indent=1, ensure_ascii=False))
    if context.tokenizer is not None:
        context.tokenizer.save(run.directory / "tokenizer")
    replace_durably(run.directory / ENVIRONMENT, json.dumps({"starts": [*run.starts(), start]}, indent=1, ensure_ascii=False))
