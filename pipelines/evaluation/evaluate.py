"""`polymodal evaluate`: measure a trained network on held-out data, and write down what was measured on what.

A task (`_evaluate_*.py`) says what it reads of a sample (an objective, so that samples are read, checked and decoded as in
training), what it does with a batch, and what the numbers are. This file does the rest: ranks, bad samples, the record.

Every sample is measured once, whatever the number of ranks: whole batches are dealt to them, so a batch holds the same samples
on one rank and on eight, and what the ranks found is added up exactly (`math.fsum`) or put in the order of the samples. The
numbers of a task are therefore the same to the last bit (of a system with a memory, whose lanes are dealt: up to rounding).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, cast

import torch
from torch import nn

from ...registry import family
from ...shared import dist
from ...shared.errors import UserError
from ...shared.family import Context
from ...shared.sample import IMAGE_FIELDS, TARGET_FIELD, TEXT_FIELDS
from ...shared.system import Objective, System
from ...shared.tokenizer import Tokenizer
from ..base.console import Console, finite
from ..base.files import write_atomic
from ..base.redact import redact
from ..data.dataset import DataSet
from ..data.held_out import evaluation_batches
from ..model import frontdoor
from ..run import checkpoint
from ..run.directory import is_run, open_run_or_checkpoint
from ..run.environment import describe_environment
from ..run.recipe import Precision, Recipe
from ..train.devices import build_fabric, seed_draws
from ..train.fabric import Fabric
from .intervals import Interval

FORMAT = "polymodal evaluation"
LISTED_BAD = 100
"""So many bad samples are listed in the record; all are counted."""
TOKENS = ("tokens.u16", "tokens.u32")
KINDS: dict[str, tuple[str, ...]] = {
    "text": (*TEXT_FIELDS, "json"), "text or rows of tokens": (*TEXT_FIELDS, *TOKENS, "json"), "pictures": IMAGE_FIELDS,
    "class numbers": ("cls", "json"), "targets": (TARGET_FIELD, "json"),
}
"""What a task may need of a sample, and the fields that hold it."""


@dataclass
class Numbers:
    """What a measure found."""

    metrics: dict[str, float]
    intervals: dict[str, Interval] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    """Tables: classes, the confusion matrix."""
    predictions: list[dict[str, Any]] = field(default_factory=list)
    """A line for each sample, `index` first, where the task predicts something."""

    def put(self, name: str, value: float, interval: Interval | None = None) -> None:
        """Add a number."""
        self.metrics[name] = value
        if interval is not None:
            self.intervals[name] = interval


class Measure(ABC):
    """One pass over the data: what is read of each sample, what is done with a batch, and what comes of it."""

    method: str
    """How it is measured, in a few words."""
    objective: Objective[Any]

    @abstractmethod
    def add(self, batch: Any) -> None:
        """Measure a batch, which is on the device."""

    @abstractmethod
    def result(self) -> Numbers:
        """The numbers over all ranks; every rank calls it."""


class Task(Protocol):
    """The settings of one kind of evaluation: a frozen dataclass of plain values, which the record keeps."""

    name: ClassVar[str]
    """Its name on the command line."""
    needs: ClassVar[tuple[str, ...]]
    """What each sample must hold, keys of `KINDS`."""
    batch_size: ClassVar[int]
    """Samples that run together by default."""

    def measures(self, job: Job) -> Mapping[str, Measure]:
        """The passes over the data, by what stands before the names of their numbers ("" for a single one)."""
        ...


@dataclass
class Job:
    """What a task is given: the model, the data, and where it runs."""

    source: str
    data: DataSet
    fabric: Fabric
    tokenizer_source: str | None = None
    seed: int | None = None
    quantize: str | None = None
    described: dict[str, Any] = field(default_factory=dict)
    """What the record says about the model, filled when it is loaded."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What else the record says: tokenizer, preprocessing, templates."""

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.fabric.device

    @cached_property
    def model(self) -> nn.Module:
        """The network; of a run that has ended the exported one."""
        net = frontdoor.load(self.source, device=self.device, quantize=cast("Any", self.quantize))
        origin = cast("frontdoor.Origin | None", getattr(net, "origin", None))
        path = Path(self.source)
        if (path / checkpoint.MANIFEST).is_file():
            self._describe_checkpoint(checkpoint.open_checkpoint(path.absolute()))
        elif is_run(path) and not (path / "export").is_dir():
            newest = checkpoint.newest(path / "checkpoints")
            assert newest is not None  # it was loaded
            self._describe_checkpoint(newest)
        else:
            directory = path / "export" if (path / "export").is_dir() else path if path.is_dir() else origin and origin.directory
            self.described |= {"kind": "directory", "files": _hashes(directory) if directory else {}}
        if origin is not None:
            self.described |= {"family": origin.family, "architecture": origin.net.architecture}
        return net

    def system(self, overrides: Mapping[str, Any]) -> System:
        """The system with its objective: a run's own, or that of the model's family with `overrides` of its objective settings."""
        if self.quantize is not None:
            raise UserError("quantize is for inference, and the system's own objective computes its loss on whole weights: give a window")
        if is_run(Path(self.source)) or (Path(self.source) / checkpoint.MANIFEST).is_file():
            if overrides:
                raise UserError(f"{self.source} is a run and brings its own objective: leave the settings of the objective out, or give "
                                "its export")
            run, at = open_run_or_checkpoint(self.source)
            at = at or checkpoint.newest(run.checkpoints)
            system = run.system(at)
            assert at is not None
            self._describe_checkpoint(at)
            described = run.described()
            self.described |= {"family": described["system"], "task": described.get("task", ""), "objective": described["objective"]}
            if self.seed is None:
                self.seed = run.recipe().seed
            tokenizer = getattr(system.objective, "tokenizer", None)
            if isinstance(tokenizer, Tokenizer):
                self._check_tokenizer(tokenizer)
            return system.to(self.device).eval()
        origin = cast("frontdoor.Origin", self.model.origin)
        entry, task = family(origin.family), family(origin.family).task("")
        classes = self.data.index.schema.get("classes")
        system = task.build(cast("Any", self.model).config, overrides,
                            Context(self.tokenizer, None if classes is None else tuple(classes)))
        for place, net in system.exports().items():
            found = frontdoor.parts(self.source, place) if place else self.model
            if found is None:
                raise UserError(f"{self.source} lacks the part {place!r}, which {entry.name} needs beside its network")
            theirs, ours = ({k: v.shape for k, v in m.state_dict().items()} for m in (found, net))
            if theirs != ours:
                raise UserError(
                    f"{self.source} holds a {type(found).__name__} and the objective of {entry.name} trains a {type(net).__name__}: "
                    "give the model of a pretraining, or change the objective (--set NAME=VALUE; for a BERT without next sentence "
                    "--set nsp=false)")
            net.load_state_dict(found.state_dict())
        self.described["objective"] = dict(overrides)
        return system.to(self.device).eval()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, or a clear error."""
        try:
            found = frontdoor.tokenizer(self.tokenizer_source or self.source)
        except UserError as error:
            raise UserError(f"{error}; this evaluation reads text: pass --tokenizer DIR") from None
        self._check_tokenizer(found)
        return found

    def _check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Take note of the tokenizer; refuse rows that another one made."""
        packed = self.data.index.schema.get("tokenizer")
        if packed is not None and packed != tokenizer.fingerprint:
            raise UserError(f"{self.data.directory} was packed with another tokenizer than the model's: pack the texts again with "
                            "`polymodal pack --tokenize`, or give the texts themselves")
        self.facts["tokenizer"] = tokenizer.fingerprint

    def picture_facts(self, preprocessing: Any) -> None:
        """Take note of how pictures become pixels."""
        self.facts["preprocessing"] = asdict(preprocessing)

    def classes(self, given: Sequence[str] = ()) -> tuple[str, ...]:
        """The names of the data's classes, or `given` ones in their place."""
        known = self.data.index.schema.get("classes")
        if given and known and len(given) != len(known):
            raise UserError(f"{len(given)} class names are given and {self.data.directory} has {len(known)} classes: give one for each, in "
                            "the order of their numbers")
        names = tuple(given or known or ())
        if not names:
            raise UserError(f"{self.data.directory} names no classes (its index has none): pack labelled data with --label-field or as "
                            "folders of one class each, or pass --labels")
        return names

    def _describe_checkpoint(self, at: checkpoint.Checkpoint) -> None:
        digest = hashlib.sha256((at.path / checkpoint.MANIFEST).read_bytes()).hexdigest()
        self.described |= {"kind": "checkpoint", "checkpoint": at.path.name, "update": at.update, "manifest_sha256": digest}


def _hashes(directory: Path) -> dict[str, str]:
    """The sha256 of every file of weights below a directory."""
    files = sorted(p for p in directory.rglob("*") if p.suffix in (".safetensors", ".bin") and p.is_file())
    found: dict[str, str] = {}
    for path in files:
        with path.open("rb") as file:
            found[str(path.relative_to(directory))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def evaluate(
    task: Task, model: str | Path, data: str | Path, *, tokenizer: str | Path | None = None, out: str | Path | None = None,
    predictions: str | Path | None = None, force: bool = False, batch_size: int | None = None, limit: int | None = None,
    seed: int | None = None, on_bad: Literal["raise", "skip"] = "raise", workers: int = 0,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto", devices: int | None = None, precision: Precision = "32",
    quantize: str | None = None, console: Console | None = None,
) -> dict[str, Any]:
    """Measure a model on a data set.

    Args:
        task: what to measure, with its settings.
        model: a model directory, run, checkpoint or hub id.
        data: a data set's directory or URL.
        tokenizer: where the tokenizer is; by default with the model.
        out: write the record to this JSON file.
        predictions: write what was predicted for each sample to this JSON-lines file.
        force: overwrite these files.
        batch_size: samples of a batch; by default the task's. Where samples are lanes (a system with a memory), all lanes.
        limit: measure so many samples (drawn by seed), or all.
        seed: of every draw; by default a run's own, else 0.
        on_bad: ``raise`` ends at the first bad sample, ``skip`` leaves it out and counts it.
        workers: processes of each rank that read and decode.
        device: what to run on; auto takes a GPU where there is one.
        devices: processes on this machine; by default one for each GPU, or one. Under torchrun the launcher decides.
        precision: 32, bf16-mixed, or auto, as in recipes.
        quantize: ``int8``, see `polymodal.pipelines.model.quantize`.
        console: where lines and progress go.

    Returns:
        The record, as `out` holds it, and `rank`. Only rank 0's holds numbers.
    """
    targets = [Path(p) for p in (out, predictions) if p is not None]
    _check_targets(targets, force)
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}, expected at least 1 sample")
    dataset = DataSet.open(data)
    _check_kind(task, dataset)
    began, started = time.perf_counter(), time.strftime("%Y-%m-%dT%H:%M:%S%z")
    fabric = build_fabric(Recipe(name="evaluate", system="", accelerator=device, devices="auto" if devices is None else devices,
                                 precision=precision))
    console = (console or Console()) if fabric.is_global_zero else Console(quiet=True)
    job = Job(str(model), dataset, fabric, None if tokenizer is None else str(tokenizer), seed, quantize)
    chosen = min(limit or len(dataset), len(dataset))
    size = batch_size or task.batch_size
    numbers = Numbers({})
    methods: list[str] = []
    bad: list[dict[str, Any]] = []
    used = 0
    for prefix, measure in task.measures(job).items():
        used, bad = _pass(job, measure, size, chosen, on_bad, workers, f"{task.name}{f' {prefix}' if prefix else ''}", console)
        found = measure.result()
        before = f"{prefix}/" if prefix else ""
        numbers.metrics |= {before + k: v for k, v in found.metrics.items()}
        numbers.intervals |= {before + k: v for k, v in found.intervals.items()}
        numbers.details |= {before + k: v for k, v in found.details.items()}
        numbers.predictions += found.predictions
        methods.append(measure.method)
    if chosen > used:
        console.warn(f"{chosen - used} of {chosen} samples are bad and were left out" + (f"; the first: {bad[0]['reason']}" if bad else ""))
    environment = describe_environment()
    record = {
        "format": FORMAT, "version": 1, "task": task.name, "method": methods[0],
        "settings": {**asdict(cast("Any", task)), "batch_size": size, "limit": limit, "seed": job.seed or 0, "on_bad": on_bad,
                     "precision": precision} | ({} if quantize is None else {"quantize": quantize}),
        "data": {"source": dataset.directory, "fingerprint": dataset.fingerprint, "kind": dataset.index.kind, "samples": len(dataset),
                 "measured": used, "skipped": chosen - used, "bad": bad[:LISTED_BAD]},
        "model": {"source": redact(model), **job.described}, **job.facts,
        "metrics": numbers.metrics, "intervals": {k: asdict(v) for k, v in numbers.intervals.items()}, "details": numbers.details,
        "environment": environment, "device": fabric.device.type, "started": started, "seconds": time.perf_counter() - began,
    }

    def write() -> None:
        if predictions is not None:
            lines = [{"key": dataset.key_and_shard(row["index"])[0], **row} for row in numbers.predictions]
            write_atomic(Path(predictions), "".join(json.dumps(finite(r), ensure_ascii=False) + "\n" for r in lines).encode())
        if out is not None:
            write_atomic(Path(out), (json.dumps(finite(record), indent=1, ensure_ascii=False) + "\n").encode())

    dist.on_rank_0(write)
    return {**record, "rank": fabric.global_rank}


@torch.no_grad()
def _pass(job: Job, measure: Measure, size: int, chosen: int, on_bad: str, workers: int, title: str,
          console: Console) -> tuple[int, list[dict[str, Any]]]:
    """One pass over the data: how many samples were measured on all ranks, and the bad ones."""
    fabric, seed = job.fabric, job.seed or 0
    if measure.objective.sequential and size < fabric.world_size:
        raise UserError(f"batch_size is {size} lanes, fewer than the {fabric.world_size} ranks: give at least one to each")
    used, bad = 0, list[dict[str, Any]]()
    problem: str | None = None
    with console.progress(title, total=chosen) as bar:
        try:
            for batch in evaluation_batches(job.data, measure.objective, batch=size, seed=seed, rank=fabric.global_rank,
                                            world=fabric.world_size, limit=chosen, on_bad=on_bad, workers=workers, whole=True):
                seed_draws(seed, batch.sample_ids[:1])  # what a network draws depends on the batch alone
                bad += [asdict(b) for b in batch.bad]
                with fabric.autocast():
                    measure.add(batch.to(fabric.device))
                used += batch.samples
                bar.advance((batch.samples + len(batch.bad)) * fabric.world_size)
        except UserError as error:  # on every rank, or the others would wait for this one
            problem = str(error)
    for found in dist.gather_json(problem):
        if found is not None:
            raise UserError(found.replace("data.on_bad=skip", "--on-bad skip"))
    total = sum(dist.gather_json(used))
    everything = sorted((b for part in dist.gather_json(bad) for b in part), key=lambda b: b["index"])
    if not total:
        reason = f"; the first: {everything[0]['reason']}" if everything else ""
        raise UserError(f"none of {chosen} samples of {job.data.directory} can be measured{reason}")
    return total, everything


def _check_targets(paths: Sequence[Path], force: bool) -> None:
    if int(os.environ.get("LOCAL_RANK", "0")):  # rank 0 looked; its file may be there by now
        return
    for path in paths:
        if path.is_dir():
            raise UserError(f"{path} is a folder; expected a file to write")
        if path.exists() and not force:
            raise UserError(f"{path} is there already: choose another name, or overwrite it with --force")
        if not path.parent.is_dir():
            raise UserError(f"{path}: there is no folder {path.parent}; make it first")


def _check_kind(task: Task, data: DataSet) -> None:
    """Refuse data of another kind than the task reads, naming what was found and what was expected."""
    there = data.index.fields
    lacking = [f"{what} ({', '.join(KINDS[what])})" for what in task.needs if not set(KINDS[what]) & set(there)]
    if lacking:
        raise UserError(f"{data.directory} holds the fields {', '.join(there)}; {task.name} reads {' and '.join(lacking)} of each sample")


def in_order(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The records of all ranks in the order of the samples (their key `index`); every rank calls it."""
    return sorted((r for part in dist.gather_json(list(records)) for r in part), key=lambda r: r["index"])


# --- for people -------------------------------------------------------------------------------------------------------


def table(record: Mapping[str, Any]) -> str:
    """The numbers of a record, each with its interval."""
    shown = record["metrics"]
    width = max(map(len, shown), default=0)
    lines = [f"{name.ljust(width)}  {_number(value)}{_range(record['intervals'].get(name))}" for name, value in shown.items()]
    data = record["data"]
    return "\n".join([f"{record['task']} ({record['method']}), {data['measured']} samples of {data['source']}", *lines])


def compare(paths: Sequence[str | Path]) -> tuple[list[dict[str, Any]], str]:
    """The records in these files, and their numbers side by side; what differs in their settings is told."""
    records = [_read(Path(p)) for p in paths]
    tasks = sorted({r["task"] for r in records})
    if len(tasks) > 1:
        raise UserError(f"the files hold different tasks ({', '.join(tasks)}): compare those of one task")
    names = list(dict.fromkeys(name for r in records for name in r["metrics"]))
    heads = ["", *(Path(p).stem for p in paths)]
    rows = [[name, *(_number(r["metrics"].get(name)) + _range(r["intervals"].get(name)) for r in records)] for name in names]
    notes = [f"note: {what} differs: {', '.join(str(v) for v in values)}" for what, values in {
        "data": [r["data"]["fingerprint"][:12] for r in records], "samples": [r["data"]["measured"] for r in records],
        "method": [r["method"] for r in records],
        **{f"setting {k}": [r["settings"].get(k) for r in records] for k in records[0]["settings"]},
    }.items() if len({json.dumps(v) for v in values}) > 1]
    widths = [max(len(line[i]) for line in (heads, *rows)) for i in range(len(heads))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip() for line in (heads, *rows)]
    return records, "\n".join([f"task: {tasks[0]}", *lines, *notes])


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT or record["version"] != 1:
            raise KeyError("format")
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is no result of `polymodal evaluate`") from None
    return record


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}" if abs(value) < 1e5 else f"{value:.4g}"


def _range(interval: Mapping[str, Any] | Interval | None) -> str:
    if interval is None:
        return ""
    found = interval if isinstance(interval, Mapping) else asdict(interval)
    return f"  [{_number(found['low'])}, {_number(found['high'])}]"
