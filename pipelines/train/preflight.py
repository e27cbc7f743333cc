"""What is checked and told before any device works: data, layout, sizes, space."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch

from ...shared.errors import UserError, raise_problems
from ...shared.system import System, named
from ..data.account import plan_lines
from ..data.dataset import DataSet
from ..data.stream import Stream
from ..run.optim import layer_problems
from ..run.recipe import Recipe, record
from .devices import choose_precision
from .inputs import open_labelled, zero_shot_of
from .layers import uncompiled
from .norms import batch_norms
from .sharding import layout_problems, sharded, system_problems

LISTED = 20
"""Names of measures in a message."""


class Machine(Protocol):
    """What the run's ranks are: Fabric, or a cluster that is only planned for."""

    @property
    def world_size(self) -> int: ...  # noqa: D102

    @property
    def device(self) -> torch.device: ...  # noqa: D102


def preflight(recipe: Recipe, system: System, stream: Stream, held_out: Sequence[DataSet], fabric: Machine, out: Path,
              is_length_known: bool = True) -> list[str]:
    """Check what can be known before the first update, and say what will happen; `is_length_known`: `max_updates` is the run's.

    Returns:
        Lines for people.

    Raises:
        UserError: with every problem and its fix.
    """
    raise_problems(_problems(recipe, system, stream, held_out, out, fabric), "the run cannot start")
    parameters = list(system.parameters())
    total, trained = sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
    frozen = "" if total == trained else f", {trained:,} of them trained"
    precision = choose_precision(recipe.precision, fabric.device.type)
    samples = recipe.data.ramp.before(recipe.max_updates)
    lines = [line for line in record(recipe.name).splitlines() if line]
    lines += [
        f"system: {recipe.system} {recipe.task or recipe.size}: {total:,} parameters{frozen}",
        f"device: {fabric.world_size} x {fabric.device.type}, precision {precision}{', compiled' if recipe.compile else ''}"
        f"{_divided(recipe, fabric)}",
        *plan_lines(stream),
        *system.objective.notes,
        *(f"{name} (not trained): {c.source}, {sum(p.numel() for p in c.net.parameters()):,} parameters, sha256 {c.fingerprint[:12]}"
          for name, c in system.companions.items()),
        (f"run: {recipe.max_updates:,} updates = {samples:,} samples = {samples / stream.samples_per_epoch:.2f} epochs; "
         if is_length_known else "run: ") +
        f"{recipe.optim.name}, peak learning rate {recipe.optim.lr:g}, "
        f"{recipe.schedule.name} after {recipe.schedule.warmup} updates of warmup",
    ]
    if recipe.optim.ema_decay is not None:
        warm = " after a warm-up" if recipe.optim.ema_warmup else ""
        lines.append(f"average: of the weights, with decay {recipe.optim.ema_decay:g}{warm}; evaluations and the export use it, "
                     "checkpoints hold both")
    if is_length_known and recipe.schedule.warmup >= recipe.max_updates:
        lines.append(f"note: the run ends within the warmup of {recipe.schedule.warmup} updates (schedule.warmup)")
    cycle = len(stream.turns.cycle)
    if recipe.log.every % cycle:
        lines.append(f"note: log.every is {recipe.log.every} and the tasks take turns in {cycle} updates: where a line of the log lacks a "
                     f"task, its `loss` is that of the others; a multiple of {cycle} makes all lines alike")
    if not held_out:
        lines.append("note: no --eval-data, so nothing is evaluated")
    else:
        limits = [min(len(data), recipe.evaluate.limit or len(data)) for data in held_out]
        told = " and ".join(f"{limit} of {len(data)} held-out samples" + (f" of {data.directory}" if len(held_out) > 1 else "")
                            for limit, data in zip(limits, held_out))
        named = f" and zero-shot on {recipe.evaluate.zero_shot}" if recipe.evaluate.zero_shot else ""
        lines.append(f"evaluation: {told}{named} " +
                     (f"every {recipe.evaluate.every} updates and at the end" if recipe.evaluate.every else "at the end"))
        if alone := _unmeasured(stream, held_out):
            lines.append(f"note: none of the held-out data is for {' and '.join(alone)}, so the evaluations say nothing about it: give "
                         "more --eval-data")
    return lines


def _unmeasured(stream: Stream, held_out: Sequence[DataSet]) -> list[str]:
    """The tasks that no held-out data is for."""
    return [task for task, objective in stream.turns.objectives.items() if not any(objective.reads(d.index.fields) for d in held_out)]


def _divided(recipe: Recipe, machine: Machine) -> str:
    if not sharded(recipe, machine.world_size):
        return ""
    shards = recipe.shard_size or machine.world_size
    return f", {machine.world_size // shards} x the weights, each in {shards} shards" if shards < machine.world_size else \
        f", the weights in {shards} shards"


def precision_problems(recipe: Recipe) -> Iterator[str]:
    """What keeps the recipe's precision from learning."""
    if recipe.precision == "bf16-true":
        yield ("precision is bf16-true, which keeps weights and the optimizer's averages in 8 significant bits: a step that is small "
               "beside its weight is rounded away (a gain of 1 never moves at a rate of 1e-3), so it is for evaluation only: use "
               "bf16-mixed, and strategy=fsdp or activation_checkpointing=true where memory is short")


def _problems(recipe: Recipe, system: System, stream: Stream, held_out: Sequence[DataSet], out: Path, machine: Machine) -> Iterator[str]:
    layout = stream.layout
    yield from layout_problems(recipe, machine.world_size, machine.device.type)
    yield from system_problems(recipe, system, machine.world_size)
    yield from precision_problems(recipe)
    yield from layer_problems(system, recipe.optim)
    if recipe.compile:
        yield from uncompiled(system)
    if recipe.sync_batchnorm and not any(batch_norms(system)):
        yield f"sync_batchnorm is true and {recipe.system} has no norms over the batch that are trained: leave it out"
    if system.coupled and layout.accumulate > 1:
        yield (f"{recipe.system} compares all samples of a batch, so its batch cannot be split: leave data.micro_batch out "
               f"(got {recipe.data.micro_batch}, a rank's share is {recipe.data.global_batch // layout.world})")
    if system.coupled and layout.batches.batch(0) < 2:
        yield f"{recipe.system} compares the samples of a batch: data.global_batch, and data.ramp_start where it is set, must be at least 2"
    watched = recipe.evaluate.patience or recipe.checkpoint.keep_best
    if watched and (not held_out or not recipe.evaluate.every):
        yield "evaluate.patience and checkpoint.keep_best go by evaluations: give --eval-data and set evaluate.every"
    measured, monitor = system.measured(), recipe.evaluate.monitor
    try:
        if (labelled := open_labelled(recipe.evaluate)) is not None:
            more = zero_shot_of(system, labelled, recipe.evaluate).measured()
            measured = None if measured is None or more is None else (*measured, *more)
            if not held_out:
                yield "evaluate.zero_shot is measured where held-out data is evaluated: give --eval-data"
    except UserError as error:
        yield str(error)
    if held_out and measured is not None:
        alone = tuple(named(task, "") for task in _unmeasured(stream, held_out))
        measured = [name for name in measured if not name.startswith(alone)] if alone else measured
    if held_out and measured is not None and monitor not in ("loss", *measured):
        what = f"the task {recipe.task} of {recipe.system}" if recipe.task else recipe.system
        yield (f"evaluate.monitor is {monitor!r}, which the evaluations of {what} do not measure: set it to one of "
               f"{', '.join(['loss', *measured][:LISTED])}{' ...' if len(measured) >= LISTED else ''}")
    for data in held_out:
        if data.fingerprint in {d.fingerprint for d in stream.sets}:
            yield f"the held-out data {data.directory} is the training data: hold some back"
        if not any(objective.reads(data.index.fields) for objective in stream.turns.objectives.values()):
            yield f"no task reads the held-out data {data.directory} ({', '.join(data.index.fields)}): leave it out"
    # weights, the optimizer's two moments and the average, in the precision they are kept in
    copies = 3 if recipe.optim.ema_decay is None else 4
    needed = sum(p.numel() * p.element_size() * (copies if p.requires_grad else 1) for p in system.parameters())
    place = next(p for p in (out, *out.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        yield (f"a checkpoint takes about {needed / 2**30:.1f} GiB and {place} has {free / 2**30:.1f} GiB free: "
               "make room or use another --out")
