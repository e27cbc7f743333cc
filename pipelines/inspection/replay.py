"""Making an update of a run again, and comparing what comes out with what the run logged.

A replay begins at the last checkpoint before the update (or, like the run, with its first weights), makes the updates from there to the end
of the line of metrics.jsonl that holds the update, and compares the two lines number by number. It makes them with the loop's own code
(`make_update`) and writes nothing. The order of the data, the masks and the dropout are functions of the place in the run, so the same
machine gives the same bits. The micro-batches of several ranks are made by one process, each with the draws of its rank: only the order
in which gradients are added up differs then.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...registry import family
from ...shared.errors import UserError
from ...shared.system import Batch, System
from ..base.console import Console
from ..data.dataset import DataSet
from ..data.layout import BatchLayout
from ..data.loader import added
from ..data.stream import Stream
from ..model.companions import companions_of
from ..run import checkpoint
from ..run.environment import describe_environment
from ..run.recipe import Recipe
from ..run.trees import join_rows
from ..train.ancestor import recorded_ancestor
from ..train.devices import build_fabric, seed_draws
from ..train.events import rewind_decisions
from ..train.inputs import build_stream
from ..train.loop import build_system, make_update, set_up
from ..train.meter import losses
from ..train.start import Start, find_start
from ..train.state import TrainState
from .past import Past

TOLERANCE = 1e-5
"""Largest relative difference that the order of additions may explain."""
_TINY = 1e-8
"""Differences are taken relative to at least this."""
_MACHINE = ("torch", "processor", "threads", "gpus")
_LASTING = ("optim", "precision", "activation_checkpointing", "compile")
"""What a replay keeps as it was at its beginning; the rest of the recipe changes where the run's did."""


@dataclass(frozen=True)
class _Way:
    """How an update is made again."""

    start: checkpoint.Checkpoint | None
    """None: from the first weights."""
    end: int
    """Updates after which the replay ends: where the line of the log does, or with the update itself where there is no line."""
    row: Mapping[str, Any] | None
    notes: list[str]


def replay(past: Past, data: Sequence[str] = (), *, losses: bool = True, console: Console | None = None) -> dict[str, Any]:
    """Make an update again.

    Args:
        past: the update.
        data: where the run's data sets lie, as far as the run does not know it or they have moved.
        losses: also the loss and gradient of each sample, read by itself, where the system can tell samples apart.
        console: where lines and progress go.

    Returns:
        `from` (updates at the beginning), `row` (the line of the log), `compared` ({name: [logged, replayed, relative difference]}, None
        where there is no line), `verdict` ("bitwise", "close", "different" or None), `update` (the update's own loss, terms and gradient
        norm), `samples` (each one's loss, highest first), `coupled` (a sample has no loss of its own), `trouble` (what went wrong in the
        update, or None), `notes` (why numbers may differ).

    Raises:
        UserError: the run did not reach the update, or there is nothing to begin from, or the data is not what it was.
    """
    console = console or Console(quiet=True)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UserError("a replay is made by one process: start it without torchrun")
    way = _find_way(past, console)
    sets = past.sets(data)
    began = time.perf_counter()
    with _threads(past.started.get("threads")):
        state = _build(past, sets, way, console)
        made = _make(past, state, sets, way, losses, console)
    line = made.pop("line")
    compared = compare(way.row, line) if way.row is not None and line else None
    return {"from": 0 if way.start is None else way.start.update, "checkpoint": None if way.start is None else str(way.start.path),
            "row": way.row, "compared": compared, "verdict": None if compared is None else verdict(compared), **made,
            "notes": way.notes, "seconds": time.perf_counter() - began}


# --- where to begin, where to end ------------------------------------------------------------------------------------


def _find_way(past: Past, console: Console) -> _Way:
    _, row = past.window
    _check_reached(past, row)
    end = past.update if row is None else int(row["update"])
    for found in past.checkpoints():
        reason = checkpoint.damage(found.path)
        if reason is None:
            return _Way(found, end, row, _notes(past, found.update, end))
        console.warn(f"checkpoint {found.path.name} is damaged ({reason}); taking the one before")
    first = past.starts[0] if past.starts else None
    if first is not None and first["update"] > 0:
        raise UserError(f"{past.run.directory} went on from {first['checkpoint']}, which is gone, and has no intact checkpoint before "
                        f"update {past.update}: there is nothing to replay from")
    return _Way(None, end, row, _notes(past, 0, end))


def _check_reached(past: Past, row: Mapping[str, Any] | None) -> None:
    """Refuse updates that the run has not come to. It may have died within a line of the log: so far it is believed."""
    if row is not None:
        return
    there = checkpoint.all_checkpoints(past.run.checkpoints)
    known = (*past.run.metrics("train"), *past.run.events())
    reached = max([0, *(row["update"] for row in known), *(c.update for c in there)])
    every = past.recipe.log.every
    if past.index >= (reached // every + 1) * every:
        raise UserError(f"{past.run.directory} has not come to update {past.update}: its log ends with update {reached}")


def _notes(past: Past, start: int, end: int) -> list[str]:
    """Why the replay may differ from the run."""
    notes: list[str] = []
    now, then = describe_environment(), past.started
    if past.layout.replays > 1:
        notes.append(f"{past.layout.replays} ranks made the update and one makes it again: gradients are added up in another order")
    if not then:
        notes.append("the run does not say on what machine it ran")
    notes += [f"{name} was {then[name]} and is {now[name]}" for name in _MACHINE if name in then and then[name] != now[name]
              and name != "threads"]
    first = _lasting(past.at(start + 1).recipe)
    later = [_lasting(past.at(index + 1).recipe) for index in _borders(past, start, end)]
    changed = {key for recipe in later for key, value in recipe.items() if value != first[key]}
    if changed:
        notes.append(f"{', '.join(sorted(changed))} changed when the run was continued; the replay keeps what was before")
    return notes


def _lasting(recipe: Recipe) -> dict[str, Any]:
    values = {key: value for key, value in recipe.to_dict().items() if key in _LASTING}
    return values | {"optim": {key: value for key, value in values["optim"].items() if key not in ("lr", "clip")}}


def _borders(past: Past, start: int, end: int) -> list[int]:
    """The numbers (from 0) of the updates between `start` and `end` that a start of the run began with."""
    return sorted({int(s["update"]) for s in past.starts if start < s["update"] < end})


# --- the run again ---------------------------------------------------------------------------------------------------


@contextmanager
def _threads(count: int | None) -> Generator[None]:
    """As many threads as the run had: some sums depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _build(past: Past, sets: list[tuple[DataSet, float]], way: _Way, console: Console) -> TrainState:
    """The run as it stood at the checkpoint."""
    run, entry = past.run, family(past.recipe.system)
    first = past.at(1 if way.start is None else way.start.update + 1)
    recipe = _recipe(first)
    if recipe.accelerator != first.started.get("device", recipe.accelerator):
        way.notes.append(f"the run used {first.started['device']}, which this machine does not have")
    fabric = build_fabric(recipe)
    model = run.described().get("model", "")
    if way.start is None and model:
        console.say(f"reading {model}, which the run began from")
        start = find_start(recipe, entry, model, run.directory, "never")
    else:
        start = Start(model, run.config(), ancestor=recorded_ancestor(run), has_begun=way.start is not None)
    if way.start is None and start.ancestor is not None:
        console.say(f"reading {start.ancestor.checkpoint}, which the run began from")
        start.ancestor.verify(run.directory)
    system, _ = build_system(recipe, run.context(companions_of(run)), start, first.layout)
    state = set_up(recipe, fabric, system, _stream(first, sets, system), (), run, Console(quiet=True))
    state.health.rewound = [range(*pair) for pair in rewind_decisions(run)]
    if way.start is not None:
        state.restore(way.start)
    elif start.ancestor is not None:
        state.adopt(start.ancestor.place)
    return state


def _recipe(past: Past) -> Recipe:
    """The recipe of an update, for one process on this machine."""
    device = past.started.get("device", past.recipe.accelerator)
    if (device == "cuda" and not torch.cuda.is_available()) or (device == "mps" and not torch.backends.mps.is_available()):
        device = "auto"
    return replace(past.recipe, devices=1, num_nodes=1, strategy="auto", shard_size=None, accelerator=device,
                   precision=past.started.get("precision", past.recipe.precision),
                   checkpoint=replace(past.recipe.checkpoint, asynchronous=False))


def _stream(past: Past, sets: list[tuple[DataSet, float]], system: System) -> Stream:
    """The stream in the layout that an update was made in."""
    layout = past.layout
    if system.coupled:  # the samples of all ranks are compared with each other, so they are one batch here
        layout = BatchLayout(layout.global_batch, ramp=layout.ramp)
    return build_stream(past.recipe, sets, system.objective, layout)


def _make(past: Past, state: TrainState, sets: list[tuple[DataSet, float]], way: _Way, losses: bool, console: Console) -> dict[str, Any]:
    """Make the updates up to the end of the line, and look closely at the one that is asked for."""
    logged = {int(row["update"]) for row in past.run.metrics("train")}
    borders = set(_borders(past, state.update, way.end))
    begin = state.update
    where = "the first weights" if way.start is None else f"checkpoint {way.start.path.name}"
    console.say(f"making updates {begin + 1} to {way.end} again from {where}")
    state.start_reading()
    made: dict[str, Any] = {"update": None, "samples": None, "coupled": state.system.coupled, "trouble": None, "line": {}}
    with console.progress(f"replay {past.recipe.name}", total=way.end - begin) as bar:
        while state.update < way.end:
            if state.update in borders:
                _continue(state, past.at(state.update + 1), sets)
                state.start_reading()
            mine = state.update == past.index
            if mine and losses and not state.system.coupled:
                made["samples"] = sample_losses(state, console)
            before = state.meter.state()["sums"]
            make_update(state)
            state.health.wait_for_norms()
            if mine:
                made["update"] = _own(before, state.meter.state(), state.system.objective.turns)
                made["trouble"] = _trouble(state)
                if state.health.trouble is not None:
                    return made
            elif state.health.trouble is not None:
                raise UserError(f"the replay went wrong before update {past.update}, where the run did not: {state.health.trouble.message}"
                                + "".join(f"; {note}" for note in way.notes))
            bar.advance()
            if state.update in logged and state.update < way.end:
                state.meter.reset()
    means = state.meter.means()
    if means:
        made["line"] = {**state.progress(), **means, **state.system.derived(means), "lr": state.lr}
    return made


def _continue(state: TrainState, past: Past, sets: list[tuple[DataSet, float]]) -> None:
    """Go on as the run did when it was continued before an update: with another recipe, on other ranks, with other micro-batches."""
    stream = _stream(past, sets, state.system)
    state.recipe = _recipe(past)
    state.health.settings = state.recipe.health
    if state.stream.layout != stream.layout:
        rows = join_rows([state.carries[part] for part in sorted(state.carries)])
        state.carries = {} if rows is None else dict.fromkeys(range(stream.layout.accumulate), rows)
    state.stream = stream


def _own(before: Mapping[str, Sequence[float]], after: Mapping[str, Any], turns: Mapping[str, float]) -> dict[str, float] | None:
    """The means of one update: what it added to the sums; None where it made no step."""
    sums = {name: (total - before.get(name, (0, 0))[0], count - before.get(name, (0, 0))[1])
            for name, (total, count) in after["sums"].items()}
    means = {name: total / count for name, (total, count) in sums.items() if count}
    if "grad_norm" not in means:
        return None
    return {**losses(means, {name: weight for name, weight in after["weights"].items() if name in means}, turns), **means}


def _trouble(state: TrainState) -> str | None:
    """What went wrong in the update that was just made."""
    if state.health.trouble is not None:
        return state.health.trouble.message
    mine = [trouble for trouble in state.health.skipped if trouble.update == state.update - 1]
    return f"{mine[0].message}; the run left it out" if mine else None


# --- single samples --------------------------------------------------------------------------------------------------


def sample_losses(state: TrainState, console: Console) -> list[dict[str, Any]]:
    """What each sample of the next update adds to it, read by itself and without dropout; the highest loss first.

    Returns:
        For each sample `loss` (the mean over its own targets), `share` (its part of the update's loss) and `gradient` (the norm of its
        part of the update's gradient).
    """
    system, layout, index = state.system, state.stream.layout, state.update
    numbers = range(layout.number(index), layout.number(index + 1))
    counts = added(p.counts for number in numbers for p in state.stream[number].passes())
    trained = [p for p in system.parameters() if p.requires_grad]
    found: list[dict[str, Any]] = []
    system.eval()
    with console.progress("samples", total=layout.batches.batch(index)) as bar, torch.compiler.set_stance("force_eager"):
        for part in range(layout.parts(index)):
            for position in layout.positions(index, part):
                bar.advance()
                batch = state.stream.batch_of_one(position)
                if batch is not None:
                    place = state.stream.order.locate(position)
                    key, shard = state.stream.key_and_shard(place)
                    found.append({"sample": state.stream.index(place), "key": key, "shard": shard, "position": position,
                                  "tokens": sum(p.tokens for p in batch.passes()), **_alone(state, batch, part, counts, trained)})
    system.train()
    # what is not a number is what one looks for
    return sorted(found, key=lambda entry: -entry["loss"] if math.isfinite(entry["loss"]) else -math.inf)


def _alone(state: TrainState, batch: Batch, part: int, counts: Mapping[str, float], trained: Sequence[Tensor]) -> dict[str, float]:
    """A sample's loss, and its parts of the update's loss and gradient."""
    seed_draws(state.recipe.seed, state.update, "sample", *batch.sample_ids)
    passes = batch.passes()
    own = added(p.counts for p in passes)
    gradient: dict[Tensor, Tensor] = {}
    loss = whole = 0.0
    for one in passes:
        with state.fabric.autocast():
            step = state.system(one.to(state.fabric.device), state.carries.get(part))
        terms = [term for term in step.terms.values() if counts[term.count]]
        share = sum(term.total * (term.weight / counts[term.count]) for term in terms)
        if isinstance(share, Tensor) and share.requires_grad:
            for p, g in zip(trained, torch.autograd.grad(share, trained, allow_unused=True), strict=True):
                if g is not None:
                    gradient[p] = gradient[p] + g if p in gradient else g
        whole += float(share.detach()) if isinstance(share, Tensor) else share
        loss += sum(term.weight * float(term.total.detach()) / own[term.count] for term in terms if own[term.count])
    norm = float(torch.stack([g.float().norm() for g in gradient.values()]).norm()) if gradient else 0.0
    return {"loss": loss, "share": whole, "gradient": norm}


# --- comparing -------------------------------------------------------------------------------------------------------


def compare(logged: Mapping[str, Any], replayed: Mapping[str, float]) -> dict[str, list[Any]]:
    """{name: [logged, replayed, relative difference]} of every number of a line that a replay makes again."""
    return {name: [logged.get(name), value, _difference(logged.get(name), value)] for name, value in replayed.items()}


def _difference(a: Any, b: float) -> float:
    if a is None:  # a log has no other way to write what is not a number
        return 0.0 if not math.isfinite(b) else math.inf
    if not isinstance(a, (int, float)) or not math.isfinite(b):
        return math.inf
    return 0.0 if a == b else abs(a - b) / max(abs(a), abs(b), _TINY)


def verdict(compared: Mapping[str, Sequence[Any]]) -> str:
    """`bitwise`, `close` (within `TOLERANCE`) or `different`."""
    worst = max((difference for _, _, difference in compared.values()), default=0.0)
    return "bitwise" if worst == 0 else "close" if worst <= TOLERANCE else "different"


def lines(result: Mapping[str, Any], past: Past, top: int = 5) -> list[str]:
    """A replay for people."""
    first = past.window[0] + 1
    made: list[str] = []
    if result["compared"] is not None:
        made.append(f"the line of updates {first} to {result['row']['update']} of metrics.jsonl:")
        made.append(f"  {'':<16}  {'logged':>20}  {'replayed':>20}  difference")
        made += [f"  {name:<16}  {_number(a):>20}  {_number(b):>20}  {_off(off)}" for name, (a, b, off) in result["compared"].items()]
        worst = max(result["compared"], key=lambda name: result["compared"][name][2])
        logged, replayed, off = result["compared"][worst]
        made.append({"bitwise": "equal bit for bit",
                     "close": f"equal within {TOLERANCE:g}: the largest relative difference is {_off(off)}, of {worst}",
                     "different": f"DIFFERENT: {worst} was logged as {_number(logged)} and is {_number(replayed)} now"}[result["verdict"]])
    else:
        made.append(f"metrics.jsonl has no line of update {past.update}: there is nothing to compare with")
    if result["verdict"] != "bitwise":
        made += [f"note: {note}" for note in result["notes"]]
    if result["trouble"]:
        made.append(f"update {past.update}: {result['trouble']}")
    elif result["update"] is None:
        made.append(f"update {past.update} made no step: it is left out")
    else:
        made.append(f"update {past.update} itself: " + "  ".join(f"{k} {v:.6g}" for k, v in result["update"].items()))
    if result["coupled"]:
        made.append("the system compares the samples of a batch: none has a loss of its own")
    elif result["samples"]:
        made.append("the samples with the highest loss, each read by itself and without dropout:")
        made.append(f"  {'sample':>9}  {'loss':>10}  {'of the loss':>11}  {'gradient':>10}  key")
        whole = sum(entry["share"] for entry in result["samples"])
        made += [f"  {e['sample']:>9}  {e['loss']:>10.4f}  {e['share'] / whole if whole else 0:>11.1%}  {e['gradient']:>10.4g}  "
                 f"{e['key']} ({e['shard']})" for e in result["samples"][:top]]
        most = max(result["samples"], key=lambda e: e["gradient"] if math.isfinite(e["gradient"]) else math.inf)
        made.append(f"the largest part of the gradient: {most['gradient']:.4g}, of sample {most['sample']} ({most['key']})")
    return made


def _number(value: Any) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.12g}"


def _off(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"
