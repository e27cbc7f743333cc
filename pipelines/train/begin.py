"""The start of a run: take its directory, find the checkpoint to go on from, refuse what would make it another run, record the start."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ...shared import dist
from ...shared.errors import UserError
from ...shared.family import Context
from ...shared.system import System
from ...shared.tokenizer import Tokenizer
from ..base.console import Console
from ..data.account import check_order, order_state
from ..data.dataset import DataSet
from ..data.stream import Stream
from ..run import checkpoint
from ..run.directory import Run, counts_bytes, lock_run, open_run, record_start
from ..run.environment import describe_environment
from ..run.recipe import Recipe, as_resolved
from . import heartbeat
from .devices import choose_precision
from .rewind import drop_outdated, outdated
from .start import Start

if TYPE_CHECKING:
    from .fabric import Fabric

_FIXED = ("system", "task", "size", "model", "objective", "seed", "optim.name")
"""What a run keeps for life; anything else may change when it is continued."""


def begin(run: Run, recipe: Recipe, system: System, context: Context, origin: Start, resume: str | Path, stream: Stream,
          held_out: Sequence[DataSet], fabric: Fabric, console: Console) -> tuple[checkpoint.Checkpoint | None, Any]:
    """Take the directory, find the checkpoint to start from, and write what describes the run and this start of it.

    Args:
        run: the directory.
        recipe: of this start.
        system: what is trained; its network's config is recorded.
        context: what the data told the system.
        origin: where its first weights come from.
        resume: see `pretrain`.
        stream: what the run reads.
        held_out: what it is evaluated on.
        fabric: its devices.
        console: where lines go.

    Returns:
        The checkpoint, and what keeps the directory this process's as long as it lives.
    """
    held: list[Any] = []

    def take() -> str | None:
        run.directory.mkdir(parents=True, exist_ok=True)
        held.append(lock_run(run.directory))
        checkpoint.clean(run.checkpoints)
        heartbeat.clear(run.directory)
        for name in drop_outdated(run):
            console.say(f"removed checkpoint {name}: it was trained on updates that the run now leaves out")
        start = _find_checkpoint(run, resume, console)
        if start is not None:
            _check_continued(start, recipe, system, context, stream)
            console.say(f"resuming after update {start.update} from {start.path}")
        at = {"update": 0, "checkpoint": ""} if start is None else {"update": start.update, "checkpoint": str(start.path.absolute())}
        record_start(run, recipe, cast("Any", system.net).config, context, origin.source,
                     {**describe_environment(), **at, **_describe_start(recipe, stream, held_out, fabric)},
                     ancestor=None if origin.ancestor is None else origin.ancestor.to_dict(),
                     brought=origin.brought(system.net) if start is None else Run(start.path.parent.parent).brought(),
                     inputs=system.objective.inputs, companions=system.companions)
        return None if start is None else str(start.path)

    counted = {} if context.counts is None else {"the counts of tokens": hashlib.sha256(counts_bytes(context.counts)).hexdigest()}
    beside = {**counted, **system.objective.inputs, **{f"companions.{name}": c.fingerprint for name, c in system.companions.items()}}
    if any(other != beside for other in dist.gather_json(beside)):
        raise UserError(f"the ranks read different files beside the data ({', '.join(beside)}): copy the same to each machine")
    dist.barrier()  # until every rank has looked at the directory as it was
    path = dist.on_rank_0(take)
    return (None if path is None else checkpoint.verified_checkpoint(Path(path))), held


def foreseen(run: Run, recipe: Recipe, system: System, context: Context, resume: str | Path, stream: Stream, console: Console) -> str:
    """What `begin` would do, as a line for people; it refuses what `begin` would refuse, and writes nothing."""
    left_out = [found.path.name for found in outdated(run)]
    start = _find_checkpoint(run, resume, console, left_out)
    before = f"remove {', '.join(left_out)}, which learnt from updates that the run now leaves out, and " if left_out else ""
    if start is None:
        return f"would {before}begin with update 1 in {run.directory}"
    _check_continued(start, recipe, system, context, stream)
    if recipe.max_time is not None and not start.update:
        return f"would {before}begin with update 1 from {start.path}"
    rest = recipe.max_updates - start.update
    return (f"would {before}resume after update {start.update} from {start.path}, with " +
            (f"{rest:,} updates to go" if rest > 0 else f"nothing to go: max_updates is {recipe.max_updates}"))


def _check_continued(start: checkpoint.Checkpoint, recipe: Recipe, system: System, context: Context, stream: Stream) -> None:
    """Refuse to go on from a checkpoint as something else, or in another order."""
    before = open_run(start.path.parent.parent)
    _check_same(before, recipe, context, start)
    before.check_inputs(system)
    check_order(start.state()["order"], order_state(stream))


def _find_checkpoint(run: Run, resume: str | Path, console: Console, without: Sequence[str] = ()) -> checkpoint.Checkpoint | None:
    """The checkpoint that `resume` means, verified; of the run's own none of those named in `without`."""
    there = [found for found in checkpoint.all_checkpoints(run.checkpoints) if found.path.name not in without]
    if resume == "never":
        return None
    if resume != "auto":
        start = checkpoint.open_checkpoint(Path(resume).absolute())
        later = [c.path.name for c in there if c.update > start.update]
        if later:
            raise UserError(f"{run.directory} holds later checkpoints ({', '.join(later)}): remove them, or continue in another --out")
        return start
    for candidate in reversed(there):
        reason = checkpoint.damage(candidate.path)
        if reason is None:
            return candidate
        console.warn(f"checkpoint {candidate.path.name} is damaged ({reason}); trying the one before")
    if there:
        raise UserError(f"every checkpoint in {run.checkpoints} is damaged: remove them to start again, or use another --out")
    return None


def _check_same(before: Run, recipe: Recipe, context: Context, start: checkpoint.Checkpoint) -> None:
    """Refuse to continue as something else."""
    saved, now = start.state()["recipe"], recipe.to_dict()
    saved["objective"] = as_resolved(saved)

    def value(mapping: Mapping[str, Any], key: str) -> Any:
        for part in key.split("."):
            mapping = mapping.get(part, "")  # a key that an older run does not have
        return mapping

    problems = [f"{key} was {value(saved, key)} and is {value(now, key)}" for key in _FIXED if value(saved, key) != value(now, key)]
    tokenizer: Tokenizer | None = before.tokenizer()
    if tokenizer is not None and context.tokenizer is not None and tokenizer.fingerprint != context.tokenizer.fingerprint:
        problems.append("the tokenizer differs from the one that the run began with")
    counts = before.counts()
    if counts is not None and context.counts is not None and not np.array_equal(counts, context.counts):
        problems.append("the tokens of its data are counted otherwise than when it began")
    if problems:
        raise UserError(f"{before.directory} cannot be continued: {'; '.join(problems)}; set it back, or start a new run in another --out")


def _describe_start(recipe: Recipe, stream: Stream, held_out: Sequence[DataSet], fabric: Fabric) -> dict[str, Any]:
    """What environment.json keeps of a start, so that any of its updates can be looked at and made again.

    The data and where it lies (addresses without user names, passwords and signatures), the size of a micro-batch, the devices, and the
    recipe.
    """
    device = fabric.device.type
    return {"micro_batch": stream.layout.size, "device": device, "precision": choose_precision(recipe.precision, device),
            "data": [{**_source(data), "weight": weight} for data, weight in zip(stream.sets, stream.order.weights, strict=True)],
            "eval_data": [_source(data) for data in held_out], "recipe": recipe.to_dict()}


def _source(data: DataSet) -> Mapping[str, Any]:
    # a remote data set's name is its address without its secrets; a folder's is made whole, as a run may be looked at from elsewhere
    address = data.directory if data.remote else str(Path(data.directory).absolute())
    return {"source": address, "samples": len(data), "fingerprint": data.fingerprint}
