"""Measuring a run on held-out data, and what its model makes of some of it."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch

from ...shared.errors import UserError
from ...shared.system import Objective, Preview, System
from ..data.dataset import DataSet
from ..data.held_out import chosen_samples, evaluation_batches, lane_batches, shared_batches
from ..run.logbook import Logbook
from .devices import seed_draws
from .inputs import zero_shot_of
from .meter import Meter
from .state import TrainState


@torch.no_grad()
def evaluate(state: TrainState, logbook: Logbook | None) -> None:
    """Measure the held-out data on all ranks, and show what the model makes of some of it."""
    if not state.held_out or state.evaluated.get("update") == state.update:
        return
    state.mark("evaluating")
    began = time.perf_counter()
    meter = Meter(state.fabric.device, chance=True, turns=state.system.objective.turns)
    previews: list[Preview] = []
    with state.averaged():
        system = state.whole_system()
        system.eval()
        for task, objective in system.objective.by_turn().items():
            for data in state.held_out:
                if objective.reads(data.index.fields):
                    previews += _measure(state, system, data, meter, task, objective)
        if state.labelled is not None:
            _measure(state, zero_shot_of(system, state.labelled, state.recipe.evaluate), state.labelled, meter)
        system.train()
    means = meter.means()
    if not means:
        raise UserError("the held-out data gave no batch: give more of it, or leave --eval-data out")
    means |= meter.chances()
    derived = system.derived(means)
    row = {"split": "eval", **state.progress(), **means, **derived, "seconds": time.perf_counter() - began}
    state.evaluated = row
    state.best.see(row)
    if logbook is not None:
        logbook.add_row(row)
        logbook.add_previews(state.update, previews)
        others = "  ".join(f"{name} {row[name]:.4f}" for name in (*means, *derived) if name != "loss")
        state.console.say(f"evaluation after update {state.update}: loss {row['loss']:.4f}  {others}")


def _measure(state: TrainState, system: System, data: DataSet, meter: Meter, task: str = "",
             objective: Objective[Any] | None = None) -> list[Preview]:
    """Measure held-out data by the objective of a task, by default the system's; on rank 0 what the model makes of the first batch."""
    objective = objective or system.objective
    recipe, fabric, settings = state.recipe, state.fabric, state.recipe.evaluate
    previews: list[Preview] = []
    # at most a training micro-batch at a time, so that what trains can be evaluated
    each = state.stream.layout.size if settings.batch is None else -(-settings.batch // fabric.world_size)
    rank, world, count = fabric.global_rank, fabric.world_size, len(data)
    if objective.sequential:
        parts = lane_batches(min(settings.limit or count, count), settings.batch or recipe.data.global_batch, each, rank, world)
    else:
        parts = shared_batches(chosen_samples(count, recipe.seed, settings.limit), each, rank, world, equal=system.coupled)
    batches = evaluation_batches(data, objective, parts, seed=recipe.seed, on_bad=recipe.data.on_bad,
                                 max_tokens=recipe.data.max_tokens, task=task)
    carry: Any = None
    for number, batch in enumerate(batches):  # a rank may have fewer batches than another, or none
        seed_draws(recipe.seed, number)
        batch = batch.to(fabric.device)
        with fabric.autocast():
            step = system(batch, carry)
            carry = step.carry
            meter.add(step, batch.counts, task)
            if number == 0 and fabric.is_global_zero:
                previews = system.preview(batch, settings.previews) if settings.previews else []
    return [replace(preview, rows=(("task", task), *preview.rows)) for preview in previews] if task else previews
