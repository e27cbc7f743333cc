"""The start of a run: take its directory, find the checkpoint to go on from, refuse what would make it another run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ...shared import dist
from ...shared.errors import UserError
from ...shared.family import Context
from ...shared.system import System
from ...shared.tokenizer import Tokenizer
from ..base.console import Console
from ..data.stream import check_order
from ..run import checkpoint
from ..run.directory import Run, lock_run, open_run, record_start
from ..run.environment import describe_environment
from ..run.recipe import Recipe
from . import heartbeat
from .health import drop_outdated

_FIXED = ("system", "task", "size", "model", "objective", "seed", "optim.name")
"""What a run keeps for life; anything else may change when it is continued."""


def begin(run: Run, recipe: Recipe, system: System, context: Context, model: str, resume: str | Path, order: Mapping[str, Any],
           started: Mapping[str, Any], console: Console) -> tuple[checkpoint.Checkpoint | None, Any]:
    """Take the directory, find the checkpoint to start from, and write what describes the run and this start of it."""
    held: list[Any] = []

    def take() -> str | None:
        run.directory.mkdir(parents=True, exist_ok=True)
        held.append(lock_run(run.directory))
        checkpoint.clean(run.checkpoints)
        heartbeat.clear(run.directory)
        for name in drop_outdated(run):
            console.say(f"checkpoint {name} learnt from updates that the run has gone back to leave out: it is removed")
        start = _start(run, resume, console)
        if start is not None:
            _check_same(open_run(start.path.parent.parent), recipe, context, start)
            check_order(start.state()["order"], order)
            console.say(f"resuming after update {start.update} from {start.path}")
        where = {"update": 0, "checkpoint": ""} if start is None else {"update": start.update, "checkpoint": str(start.path.absolute())}
        record_start(run, recipe, cast("Any", system.net).config, context, model, {**describe_environment(), **where, **started})
        return None if start is None else str(start.path)

    dist.barrier()  # until every rank has looked at the directory as it was
    path = dist.on_rank_0(take)
    return (None if path is None else checkpoint.verified_checkpoint(Path(path))), held


def _start(run: Run, resume: str | Path, console: Console) -> checkpoint.Checkpoint | None:
    """The checkpoint that `resume` means."""
    there = checkpoint.all_checkpoints(run.checkpoints)
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
        raise UserError(f"no checkpoint in {run.checkpoints} is whole: remove them to start again, or use another --out")
    return None


def _check_same(before: Run, recipe: Recipe, context: Context, start: checkpoint.Checkpoint) -> None:
    """Refuse to continue as something else."""
    saved, now = start.state()["recipe"], recipe.to_dict()

    def value(mapping: Mapping[str, Any], key: str) -> Any:
        for part in key.split("."):
            mapping = mapping.get(part, "")  # a key that an older run does not have
        return mapping

    problems = [f"{key} was {value(saved, key)} and is {value(now, key)}" for key in _FIXED if value(saved, key) != value(now, key)]
    tokenizer: Tokenizer | None = before.tokenizer()
    if tokenizer is not None and context.tokenizer is not None and tokenizer.fingerprint != context.tokenizer.fingerprint:
        problems.append("the tokenizer is another one than the run began with")
    if problems:
        raise UserError(f"{before.directory} cannot be continued: {'; '.join(problems)}; set it back, or start a new run in another --out")
