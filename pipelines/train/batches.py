"""A run that goes on with another batch: its updates keep the batches that they had, and the new one begins at the checkpoint.

Positions of the stream count samples, not updates, so nothing is lost or read twice: the first update with the new batch reads what stands
behind the last one with the old. The recipe keeps the history (`data.earlier`), and so do checkpoints and the record of every start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...shared import dist
from ...shared.errors import UserError
from ...shared.settings import build_settings
from ..run import checkpoint
from ..run.directory import Run
from ..run.recipe import DataSettings, EarlierBatch, Recipe
from .rewind import outdated

_BATCHES = ("global_batch", "ramp_start", "ramp_samples", "earlier")


@dataclass(frozen=True)
class Made:
    """What a run has made so far, as the newest checkpoint that can be read says."""

    update: int
    data: DataSettings
    """Of which only the batches count."""
    max_updates: int
    max_time: float | None
    elapsed: float
    """Seconds of training."""


def made_so_far(out: Path, resume: str | Path) -> Made | None:
    """What a start goes on from: `out` is the run's directory, `resume` as in `pretrain`. Every rank must call it."""
    found = dist.on_rank_0(lambda: _made(out, resume))
    return None if found is None else Made(data=build_settings(DataSettings, found.pop("data"), f"the batches of {out}"), **found)


def with_history(recipe: Recipe, made: Made | None) -> tuple[Recipe, list[str]]:
    """The recipe of a start with the batches of the updates that were made, and lines for people.

    Raises:
        UserError: `data.earlier` of the recipe is not what the run had.
    """
    if made is None:
        return recipe, []
    update, had = made.update, made.data
    data = _continued(recipe.data, had, update)
    recipe = replace(recipe, data=data)
    batch, other = data.ramp.batch(update), had.ramp.batch(update)
    if batch == other:
        return recipe, []
    planned = had.ramp.before(recipe.max_updates)
    rest = -(-(planned - data.ramp.before(update)) // batch)
    same = "" if rest < 1 or update + rest == recipe.max_updates else \
        f"; the schedule goes by samples: max_updates={update + rest} reads the {planned:,} that the run would have read"
    return recipe, [f"note: updates had {other} samples, and have {batch} from update {update + 1:,} on{same}"]


def _made(out: Path, resume: str | Path) -> dict[str, Any] | None:
    """`Made` as JSON. Should the checkpoint turn out to be damaged, an older one has the beginning of the same history."""
    if resume == "auto":
        left_out = {found.path for found in outdated(Run(out))}
        there = [found for found in reversed(checkpoint.all_checkpoints(out / "checkpoints")) if found.path not in left_out]
    else:
        there = [] if resume == "never" else [checkpoint.Checkpoint(Path(resume).absolute(), 0)]
    for found in there:
        try:
            state = found.state()
        except UserError:
            continue  # `begin` says so
        recipe: Mapping[str, Any] = state.get("recipe", {})
        if not recipe:
            return None
        return {"update": state["update"], "data": {key: recipe["data"][key] for key in _BATCHES if key in recipe["data"]},
                "max_updates": recipe["max_updates"], "max_time": recipe.get("max_time"), "elapsed": state["elapsed_s"]}
    return None


def _continued(now: DataSettings, had: DataSettings, update: int) -> DataSettings:
    """What is asked for, behind the first `update` updates of a run."""
    if now.ramp.agrees(had.ramp, update):
        return now
    if now.earlier != had.earlier[:len(now.earlier)]:
        raise UserError(f"data.earlier says {now.ramp} samples for each update, and the {update} updates of the run had {had.ramp}: "
                        "leave it out")
    if _last(now, 0) == _last(had, 0):
        return replace(now, earlier=had.earlier)
    past = [part for part in had.earlier if part.until <= update]
    if not past or past[-1].until < update:
        current = had.earlier[len(past)] if len(past) < len(had.earlier) else _last(had, update)
        past.append(replace(current, until=update))
    return replace(now, earlier=tuple(past))


def _last(data: DataSettings, until: int) -> EarlierBatch:
    return EarlierBatch(until, data.global_batch, data.ramp_start, data.ramp_samples)
