"""`polymodal evaluate`: measure a trained network on held-out data, and write down what was measured on what.

An `Evaluation` says what it reads of a sample (an objective, so that samples are read, checked and decoded as in training), what
it does with a batch, and what the numbers are. This file does the rest: ranks, bad samples, the record.

Every sample is measured once, whatever the number of ranks: whole batches are dealt to them, so a batch holds the same samples
on one rank and on eight, and what the ranks found is added up exactly (`math.fsum`) or put in the order of the samples. The
numbers are therefore the same to the last bit (of a system with a memory, whose lanes are dealt: up to rounding).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch

from ...shared import dist
from ...shared.errors import UserError
from ..base.console import Console, finite
from ..base.files import write_atomic
from ..base.redact import redact
from ..data.dataset import DataSet
from ..data.held_out import chosen_samples, evaluation_batches, even_batches, lane_batches
from ..run.environment import describe_environment
from ..run.recipe import Precision, Recipe
from ..train.devices import build_fabric, seed_draws
from .curve import speed_curve
from .measure import KINDS, Evaluation, Measure, Numbers
from .record import FORMAT
from .subject import Subject

LISTED_BAD = 100
"""At most this many bad samples are listed in the record; all are counted."""
Device = Literal["auto", "cpu", "cuda", "mps"]
OnBad = Literal["raise", "skip"]


@dataclass(frozen=True)
class EvaluationSettings:
    """How a model is evaluated, whatever is measured."""

    tokenizer: str | Path | None = None
    """Where the tokenizer is; by default with the model."""
    batch_size: int | None = None
    """Samples of a batch; by default the evaluation's. Where samples are lanes (a system with a memory), all lanes."""
    limit: int | None = None
    """Measure at most this many samples, drawn by the seed; by default all."""
    seed: int | None = None
    """Of every draw; by default a run's own, else 0."""
    on_bad: OnBad = "raise"
    """``raise`` ends at the first bad sample, ``skip`` leaves it out and counts it."""
    workers: int = 0
    """Processes of each rank that read and decode."""
    device: Device = "auto"
    """What to run on; auto takes a GPU where there is one."""
    devices: int | None = None
    """Processes on this machine; by default one for each GPU, or one. Under torchrun the launcher decides."""
    precision: Precision = "32"
    """Number format, as in recipes."""
    quantize: str | None = None
    """``int8``, see `polymodal.pipelines.model.quantize`."""

    def __post_init__(self) -> None:
        """Check words and ranges."""
        for option, value, known in (("--on-bad", self.on_bad, OnBad), ("--device", self.device, Device),
                                     ("--precision", self.precision, Precision)):
            if value not in get_args(known):
                raise UserError(f"{option} is {value!r}, expected {', '.join(get_args(known))}")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit is {self.limit}, expected at least 1 sample")


@dataclass(frozen=True)
class OutputFiles:
    """What is written of an evaluation."""

    record: Path | None = None
    """A JSON file for the record."""
    predictions: Path | None = None
    """A JSON-lines file for what was predicted for each sample."""
    overwrite: bool = False
    """Whether files that are there may be overwritten."""
    curve: Path | None = None
    """An SVG file that shows accuracy against cost, of an evaluation at several speeds."""

    def check(self) -> None:
        """Refuse files that cannot be written, before anything is measured."""
        if int(os.environ.get("LOCAL_RANK", "0")):  # rank 0 looked; its file may be there by now
            return
        for path in (self.record, self.predictions, self.curve):
            if path is None:
                continue
            if path.is_dir():
                raise UserError(f"{path} is a folder; expected a file to write")
            if path.exists() and not self.overwrite:
                raise UserError(f"{path} is there already: choose another name, or overwrite it with --force")
            if not path.parent.is_dir():
                raise UserError(f"{path}: there is no folder {path.parent}; make it first")

    def write(self, record: dict[str, Any], predictions: Sequence[dict[str, Any]], data: DataSet) -> None:
        """Write the files that were asked for."""
        if self.predictions is not None:
            lines = [{"key": data.key_and_shard(row["index"])[0], **row} for row in predictions]
            write_atomic(self.predictions, "".join(json.dumps(finite(r), ensure_ascii=False) + "\n" for r in lines).encode())
        if self.curve is not None:
            write_atomic(self.curve, speed_curve(record["metrics"]).encode())
        self.write_record(record)

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Write the record, where it was asked for."""
        if self.record is not None:
            write_atomic(self.record, (json.dumps(finite(record), indent=1, ensure_ascii=False) + "\n").encode())


def evaluate(evaluation: Evaluation, model: str | Path, data: str | Path, settings: EvaluationSettings | None = None, *,
             output: OutputFiles | None = None, console: Console | None = None) -> dict[str, Any]:
    """Measure a model on a data set.

    Args:
        evaluation: what to measure, with its settings.
        model: a model directory, run, checkpoint or hub id.
        data: a data set's directory or URL.
        settings: how; by default all that `EvaluationSettings` says.
        output: files to write; none by default.
        console: where lines and progress go.

    Returns:
        The record, as `output.record` holds it, and `rank`. Only rank 0's holds numbers.
    """
    settings, output = settings or EvaluationSettings(), output or OutputFiles()
    output.check()
    dataset = DataSet.open(data)
    _check_kind(evaluation, dataset)
    began, started = time.perf_counter(), time.strftime("%Y-%m-%dT%H:%M:%S%z")
    fabric = build_fabric(Recipe(name="evaluate", system="", accelerator=settings.device,
                                 devices="auto" if settings.devices is None else settings.devices, precision=settings.precision))
    console = (console or Console()) if fabric.is_global_zero else Console(quiet=True)
    subject = Subject(str(model), dataset, fabric, None if settings.tokenizer is None else str(settings.tokenizer), settings.seed,
                      settings.quantize)
    chosen = min(settings.limit or len(dataset), len(dataset))
    size = settings.batch_size or evaluation.batch_size
    numbers = Numbers({})
    methods: list[str] = []
    bad: list[dict[str, Any]] = []
    used = 0
    for prefix, measure in evaluation.measures(subject).items():
        title = f"{evaluation.name} {prefix}".strip()
        used, bad = _pass(subject, measure, size, chosen, settings, title, console)
        found = measure.result()
        before = f"{prefix}/" if prefix else ""
        numbers.metrics |= {before + k: v for k, v in found.metrics.items()}
        numbers.intervals |= {before + k: v for k, v in found.intervals.items()}
        numbers.details |= {before + k: v for k, v in found.details.items()}
        numbers.predictions += found.predictions
        methods.append(measure.method)
    if chosen > used:
        console.warn(f"{chosen - used} of {chosen} samples are bad and were left out" + (f"; the first: {bad[0]['reason']}" if bad else ""))
    record = {
        "format": FORMAT, "version": 1, "task": evaluation.name, "method": methods[0],
        "settings": {**asdict(cast("Any", evaluation)), "batch_size": size, "limit": settings.limit, "seed": subject.seed or 0,
                     "on_bad": settings.on_bad, "precision": settings.precision}
                    | ({} if settings.quantize is None else {"quantize": settings.quantize}),
        "data": {"source": dataset.directory, "fingerprint": dataset.fingerprint, "kind": dataset.index.kind, "samples": len(dataset),
                 "measured": used, "skipped": chosen - used, "bad": bad[:LISTED_BAD]},
        "model": {"source": redact(model), **subject.described}, **subject.facts,
        "metrics": numbers.metrics, "intervals": {k: asdict(v) for k, v in numbers.intervals.items()}, "details": numbers.details,
        "environment": describe_environment(), "device": fabric.device.type, "started": started, "seconds": time.perf_counter() - began,
    }
    dist.on_rank_0(lambda: output.write(record, numbers.predictions, dataset))
    return {**record, "rank": fabric.global_rank}


@torch.no_grad()
def _pass(subject: Subject, measure: Measure, size: int, chosen: int, settings: EvaluationSettings, title: str,
          console: Console) -> tuple[int, list[dict[str, Any]]]:
    """One pass over the data: how many samples were measured on all ranks, and the bad ones."""
    fabric, seed = subject.fabric, subject.seed or 0
    if measure.objective.sequential and size < fabric.world_size:
        raise UserError(f"batch_size is {size} lanes, fewer than the {fabric.world_size} ranks: give at least one to each")
    used, bad = 0, list[dict[str, Any]]()
    problem: str | None = None
    with console.progress(title, total=chosen) as bar:
        try:
            if measure.objective.sequential:
                parts = lane_batches(chosen, size, size, fabric.global_rank, fabric.world_size)
            else:  # whole batches, so that what shares a batch does not depend on the number of ranks
                parts = even_batches(chosen_samples(len(subject.data), seed, chosen), size)[fabric.global_rank::fabric.world_size]
            for batch in evaluation_batches(subject.data, measure.objective, parts, seed=seed, on_bad=settings.on_bad,
                                            workers=settings.workers):
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
        raise UserError(f"none of {chosen} samples of {subject.data.directory} can be measured{reason}")
    return total, everything


def _check_kind(evaluation: Evaluation, data: DataSet) -> None:
    """Refuse data of another kind than the evaluation reads, naming what was found and what was expected."""
    there = data.index.fields
    lacking = [f"{what} ({', '.join(KINDS[what])})" for what in evaluation.needs if not set(KINDS[what]) & set(there)]
    if lacking:
        raise UserError(f"{data.directory} holds the fields {', '.join(there)}; {evaluation.name} reads {' and '.join(lacking)} of each "
                        "sample")
