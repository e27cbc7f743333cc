"""THE loop: pretrains any system on any data, on any number of ranks.

`pretrain` sets a run up; `train` and `fit` make its updates, and log, evaluate and save between them. `make_update` is one update, which is
one global batch, however that is divided. On two ranks with three micro-batches each:

    rank 0                                  rank 1
    1 read     [0]  [1]  [2]                [0]  [1]  [2]        the micro-batches, made by the stream's workers
                └────┴────┴────────┬─────────┴────┴────┘
    2 count                 counts of all six                    how many targets each term of the loss has in the whole batch
                ┌────┬────┬────────┴─────────┬────┬────┐
    3 learn    forward, backward            forward, backward    each micro-batch's SUM is divided by the count of the whole batch;
               of [0]                       of [0]               is_accumulating: its gradient stays on its rank
               of [1]                       of [1]
               of [2] ──────── gradients ── of [2]               the last one adds the gradients of all ranks up
                                   │
                        clip: norm of the gradient
                        check: is it finite?                     no: no step (`health.py`)
                        step, at the rate of the schedule
                        System.after_update
                        the average of the weights takes them in (`average.py`), where one is kept
                                   │
    4 advance           update += 1, tokens, bad samples, times

    between updates: what went wrong is acted upon (`rewind.py`), then log, evaluate, save

So the gradient is that of the whole batch, on any number of ranks and micro-batches. A micro-batch with too many tokens for one forward
pass, as a long document makes it, is computed in several (`Batch.passes`); where the batch grows, an update has as many micro-batches as
its share needs (`BatchLayout.parts`). The loop knows `Objective`, `Batch`, `Term`, `Step`
and `System` and nothing else: it imports no family and branches on no name.

The state of a run is its weights (and their average), the optimizer, and one integer, the number of updates made. The data follows
from that integer (`pipelines/data/stream.py`), and so do the task, where several take turns (`pipelines/data/turns.py`), learning rate and
dropout: the random generators are seeded again for every micro-batch. Therefore a run that was killed continues bit for bit on one rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from torch import Tensor, nn

from ...registry import family
from ...shared import dist
from ...shared.errors import UserError
from ...shared.family import Context
from ...shared.system import Batch, System
from ..base.console import Bar, Console
from ..base.values import duration
from ..data.dataset import DataSet
from ..data.layout import BatchLayout
from ..data.stream import Stream
from ..model.companions import absolute, with_companions
from ..model.export import export_system
from ..model.frontdoor import take_over
from ..run import checkpoint
from ..run.directory import Run, check_directory
from ..run.logbook import Logbook
from ..run.optim import build_optimizer, clip_gradients, freeze, set_learning_rate
from ..run.recipe import Recipe
from ..run.schedule import factor
from .batches import made_so_far, with_history
from .begin import begin, foreseen
from .best import best_updates
from .budget import find_length, is_found, with_length
from .devices import build_fabric, planned, seed_draws
from .evaluate import evaluate
from .inputs import Data, EvalData, build_layout, build_stream, open_held_out, open_sets, read_context, updates_of
from .layers import compile_parts, recompute_blocks
from .meter import Meter
from .norms import synchronize_norms
from .passes import MicroBatch, Pass, ScaledLoss, settle_buckets
from .preflight import preflight
from .rewind import apply_policy
from .sharding import Whole, average_gradients, building, sharded, undivided
from .start import Start, find_start, untrained_summary
from .state import TrainState
from .stop import Stop
from .trace import profiling

if TYPE_CHECKING:
    from .fabric import Fabric

Resume = Literal["auto", "never"] | Path
Ending = Literal["complete", "no progress", "out of time", "asked to stop"]


# --- setting up ------------------------------------------------------------------------------------------------------


def pretrain(
    recipe: Recipe, data: Data, out: str | Path, *, model: str | Path | None = None,
    continue_from: str | Path | None = None, eval_data: EvalData = None, tokenizer: str | Path | None = None,
    max_updates: int | None = None, max_tokens: int | None = None, max_time: float | None = None, max_seconds: float | None = None,
    resume: str | Path = "auto", dry_run: bool = False, profile: bool = False, console: Console | None = None,
) -> dict[str, Any]:
    """Pretrain or fine-tune what the recipe says, from its first update or from the newest checkpoint in `out`.

    Args:
        recipe: everything but the data, see `polymodal.pipelines.run.recipe.recipe`.
        data: a data set's directory or URL, or a mixture of (directory, weight).
        out: the run's directory: new, empty, or a run to be continued.
        model: a network to start from: a model directory, run, checkpoint or hub id of the recipe's family.
        continue_from: a run or checkpoint of the same system, whose weights and optimizer state this run begins with; its updates, data and
            schedule are its own.
        eval_data: held-out data; several data sets where tasks take turns and use different ones.
        tokenizer: a tokenizer's directory; by default the model's, or the one that lies in the data set.
        max_updates: another length than the recipe's; the schedule follows.
        max_tokens: a length in tokens, of data that is packed in rows; the schedule follows, and `max_updates` becomes as many updates.
        max_time: a length in seconds of training, see `Recipe.max_time`; the schedule follows.
        max_seconds: end early and cleanly after this time; the schedule does not follow.
        resume: `auto` continues from the newest checkpoint that verifies, `never` refuses a directory that holds
            checkpoints, a path continues from that checkpoint.
        dry_run: check everything and say what would be done, without writing anything.
        profile: write a trace of three updates, after five others, into the run's `profile`.
        console: where lines and progress go.

    Returns:
        The last metrics (`train`, `eval`), `updates`, `ending` and `out`.
    """
    lengths = {"max_updates": max_updates, "max_tokens": max_tokens, "max_time": max_time}
    if len(given := [name for name, value in lengths.items() if value is not None]) > 1:
        raise UserError(f"{' and '.join(given)} all say how long the run is: give one of them")
    if given:
        recipe = replace(recipe, max_time=max_time, max_updates=recipe.max_updates if max_updates is None else max_updates)
    out = Path(out)
    check_directory(out, str(resume))
    fabric = planned(recipe) if dry_run else build_fabric(recipe)
    console = (console or Console()) if fabric.is_global_zero else Console(quiet=True)

    # 1. What to train, on what
    made = made_so_far(out, resume)
    recipe, noted = with_history(recipe, made)
    recipe, length = with_length(recipe, made)
    mixture = open_sets(data)
    if max_tokens is not None:
        recipe = replace(recipe, max_updates=updates_of(max_tokens, recipe, mixture))
    held_out = open_held_out(eval_data)
    with building(recipe, fabric.global_rank, fabric.world_size):
        start = find_start(recipe, family(recipe.system), model, out, resume, continue_from)
    layout = build_layout(recipe, fabric.global_rank, fabric.world_size)
    recipe = replace(recipe, companions=absolute(recipe)).resolved()
    entry = family(recipe.system)
    told = read_context([d for d, _ in mixture], held_out, tokenizer or start.tokenizer, entry.task(recipe.task))
    context = with_companions(told, recipe, entry)
    system, origin = build_system(recipe, context, start, layout)
    # a system that starts from a trained tower brings that tower's tokenizer, and a task may have added tokens
    context = replace(context, tokenizer=getattr(system.objective, "tokenizer", None) or context.tokenizer)
    stream = build_stream(recipe, mixture, system.objective, layout)
    lines = [*preflight(recipe, system, stream, held_out, fabric, out, is_found(recipe, made)), *length, *noted, *origin]
    for line in lines:
        console.say(line)
    if dry_run:
        lines.append(foreseen(Run(out), recipe, system, context, resume, stream, console))
        console.say(lines[-1])
        return {"dry_run": True, "recipe": recipe.to_dict(), "config": cast("Any", system.net).config.to_dict(), "plan": lines,
                "rank": fabric.global_rank}

    # 2. The run's directory, and where to start
    fabric, run = cast("Fabric", fabric), Run(out)
    found, _lock = begin(run, recipe, system, context, start, resume, stream, held_out, fabric, console)

    take_over(system.net, family(recipe.system), run)

    # 3. Devices, optimizer, state
    state = set_up(recipe, fabric, system, stream, held_out, run, console)
    with state.heartbeat.start(run.directory, fabric.global_rank, fabric.world_size, recipe.health.heartbeat):
        if found is not None:
            state.restore(found)
        elif start.ancestor is not None:
            state.adopt(start.ancestor.place)
        stop = Stop(max_seconds)
        if not is_found(recipe, made):
            find_length(state, lambda: make_update(state, stop), lambda: save(state, None, wait=True))
        return train(state, stop, profile)


def build_system(recipe: Recipe, context: Context, start: Start, layout: BatchLayout) -> tuple[System, list[str]]:
    """The system with its first weights, and lines for people: where they come from, and which are frozen."""
    entry = family(recipe.system)
    with building(recipe, layout.rank, layout.world):
        system = recipe.build(entry, context, start.config)
        lines = start.fill(system, entry)
    frozen = freeze(system, recipe.optim.freeze)
    if frozen:
        lines.append(f"frozen ({', '.join(recipe.optim.freeze)}): {len(frozen)} tensors")
        lines += untrained_summary(system, start, frozen)
    if start.ancestor is not None and not start.has_begun:
        lines += start.ancestor.check(system, context)
    return system, lines


def set_up(recipe: Recipe, fabric: Fabric, system: System, stream: Stream, held_out: Sequence[DataSet], run: Run,
           console: Console) -> TrainState:
    """The run at its beginning: the system on its devices, with a fresh optimizer."""
    from .fabric import DDPStrategy

    whole = Whole(system) if sharded(recipe, fabric.world_size) else None
    if recipe.sync_batchnorm and fabric.world_size > 1:
        synchronize_norms(system)
    if recipe.compile:
        compile_parts(system)
    if recipe.activation_checkpointing:
        recompute_blocks(system)
    module = fabric.setup_module(ScaledLoss(system))
    optimizer = build_optimizer(system, recipe.optim)
    if isinstance(fabric.strategy, DDPStrategy):
        settle_buckets(fabric, module)
    return TrainState(recipe, fabric, system, module, optimizer, stream, held_out, run, console, whole)


# --- the run ---------------------------------------------------------------------------------------------------------


def train(state: TrainState, stop: Stop, profile: bool = False) -> dict[str, Any]:
    """Make updates until the recipe's end, a signal, or the end of the time; then evaluate, save and export."""
    recipe, fabric = state.recipe, state.fabric
    logbook = Logbook(state.run, recipe, state.update) if fabric.is_global_zero else None
    state.start_reading()
    with (stop, state.saver, state.console.progress(f"pretrain {recipe.name}", total=recipe.max_updates) as bar,
          profiling(profile, state.run.directory, fabric.global_rank, state.console) as trace):
        bar.advance(state.update)
        ending = fit(state, stop, logbook, bar, trace)
        if ending in ("out of time", "no progress") and state.meter:
            log(state, logbook, bar)
        if ending != "asked to stop":
            evaluate(state, logbook)
        save(state, logbook, wait=True)
    if logbook is not None:
        logbook.close()
    if ending == "asked to stop":
        state.console.say(f"stopped after update {state.update} as asked; the same command continues from there")
    else:
        export(state, ending)
    if recipe.max_time is not None:
        state.console.say(f"time: {duration(state.clock.elapsed)} of training, of {duration(recipe.max_time)}; evaluations and checkpoints "
                          "are not in it")
    return {"out": str(state.run.directory), "updates": state.update, "ending": ending, "train": state.trained, "eval": state.evaluated,
            "rank": fabric.global_rank}


def fit(state: TrainState, stop: Stop, logbook: Logbook | None, bar: Bar, trace: Callable[[], None]) -> Ending:
    """Make updates as long as there is reason to; log, evaluate and save between them."""
    recipe = state.recipe
    if recipe.health.policy == "rewind":
        save(state, logbook)  # there must be one to go back to
    state.clock.start()
    while state.update < recipe.max_updates and not state.best.is_over:
        before = state.update
        ending = make_update(state, stop)
        if ending is not None:
            state.health.wait_for_norms()
            apply_policy(state, logbook)
            return ending
        trace()

        is_last = state.update == recipe.max_updates
        is_log_due, is_evaluation_due, is_save_due = (
            every > 0 and state.update % every == 0 for every in (recipe.log.every, recipe.evaluate.every, recipe.checkpoint.every))
        if is_log_due or is_evaluation_due or is_save_due or is_last:
            state.health.wait_for_norms()  # nothing is written of an update that went wrong
        went_back = apply_policy(state, logbook)
        bar.advance(state.update - before)
        if went_back:
            continue
        if is_log_due or is_last:
            log(state, logbook, bar)
        if is_evaluation_due and not is_last:
            with state.clock.paused():
                evaluate(state, logbook)
        is_best = recipe.checkpoint.keep_best and state.best.update == state.update
        if (is_save_due or is_best) and not (is_last or state.best.is_over):
            with state.clock.saving():
                save(state, logbook)
    return "complete" if state.update == recipe.max_updates else "no progress"


# --- one update ------------------------------------------------------------------------------------------------------

_TOKENS, _BAD, _PASSES, _ASKED, _LATE, _ILL = ":tokens", ":bad", ":passes", ":asked", ":late", ":ill"  # no count of a system starts so


def make_update(state: TrainState, stop: Stop | None = None) -> Ending | None:
    """Make one update; or make none, because earlier ones went wrong (`Health.trouble`), or because the run ends: then say why.

    Nothing is written: what trains and what replays both drive it.
    """
    recipe, health = state.recipe, state.health

    # 1. Read the update's micro-batches.
    state.mark("reading")
    with state.clock.waiting():
        batches: list[Batch] = [next(state.batches) for _ in range(state.stream.layout.parts(state.update))]
        passes = [Pass(part, number, batch) for part, micro in enumerate(batches) for number, batch in enumerate(micro.passes())]

    # 2. Add up the counts over micro-batches and ranks; wishes to stop, and what is wrong with earlier updates, travel with them.
    state.mark("counting")
    wishes = {_ASKED: int(stop is not None and stop.asked), _LATE: int(stop is not None and stop.late)}
    totals = state.totals.add_up(count(passes) | wishes | {_ILL: int(health.has_found_trouble())})
    if totals[_ILL]:
        health.wait_for_norms()
        return None
    if totals[_ASKED] or totals[_LATE]:
        return "asked to stop" if totals[_ASKED] else "out of time"

    # 3. Learn from them, unless this update is left out.
    state.lr = recipe.optim.lr * factor(recipe.schedule, state.update, recipe.max_updates, state.stream.layout.batches)
    if health.is_left_out(state.update) or not learn(state, passes, totals):
        health.mark_left_out(state.update)

    # 4. Advance.
    samples = state.stream.layout.batches.batch(state.update)
    state.update += 1
    state.tokens += totals[_TOKENS]
    state.bad += totals[_BAD]
    for name, value in (item for batch in batches for item in batch.reads.items()):
        state.reads[name] = state.reads.get(name, 0) + value
    state.bad_records += [{"update": state.update, **asdict(record)} for batch in batches for record in batch.bad]
    state.clock.update(samples, totals[_TOKENS])
    return None


def count(passes: Sequence[Pass]) -> dict[str, int]:
    """The denominators of the update's terms on this rank, its tokens, its skipped samples, and its forward passes."""
    totals = {_TOKENS: sum(p.batch.tokens for p in passes), _BAD: sum(len(p.batch.bad) for p in passes), _PASSES: len(passes)}
    for _, _, batch in passes:
        for name, number in batch.counts.items():
            totals[name] = totals.get(name, 0) + number
    return totals


def learn(state: TrainState, passes: Sequence[Pass], totals: Mapping[str, int]) -> bool:
    """Make a step; False, with the weights as they were, where the gradient is known to be wrong."""
    recipe, fabric, system = state.recipe, state.fabric, state.system
    layout, world = state.stream.layout, fabric.world_size
    measured, carries = Meter(fabric.device, turns=system.objective.turns), dict(state.carries)
    buffers = [(b, b.clone()) for b in system.buffers()] if recipe.health.policy == "skip" else []
    # strategies average gradients over ranks, the loss is a sum over them: hence `world`
    scale = {name: world / total if total else 0.0 for name, total in totals.items()}

    # Forward and backward; gradients travel between ranks with the last micro-batch only.
    idle = idle_passes(state, passes, totals)
    for place, (part, number, batch) in enumerate(passes):
        is_accumulating = place < len(passes) + idle - 1
        # the first pass draws what a micro-batch in one piece draws
        seed_draws(recipe.seed, state.update, *layout.rank_and_part(state.update, part), *([number] if number else []))
        micro = MicroBatch(batch.to(fabric.device), carries.get(part), scale)
        state.mark("forward", part)
        with fabric.no_backward_sync(state.module, enabled=world > 1 and is_accumulating):
            loss = state.module(micro)
            state.mark("backward", part)
            fabric.backward(loss)
        step = micro.result()
        assert step.carry is None or not number, "what reads in sequence has one pass for each micro-batch"
        carries[part] = step.carry
        measured.add(step, batch.counts, batch.task)
    for missing in reversed(range(idle)):
        with fabric.no_backward_sync(state.module, enabled=missing > 0):
            fabric.backward(state.module(MicroBatch(passes[0].batch.to(fabric.device), None, dict.fromkeys(scale, 0.0))))
    if state.whole is not None:
        average_gradients(undivided(system))

    # Clip, and leave the weights alone where the gradient is wrong.
    state.mark("stepping")
    norm = clip(state.module, recipe.optim.clip)
    if not state.health.observe(state.update, norm):
        state.health.attach_loss(measured.means().get("loss"))
        for buffer, kept in buffers:
            buffer.copy_(kept)
        state.optimizer.zero_grad(set_to_none=True)
        return False
    # it is one number of all ranks: counted once, a line that several ranks began and another number of them ended is a plain mean
    measured.put("grad_norm", norm * fabric.is_global_zero, int(fabric.is_global_zero))
    state.meter.merge(measured)
    state.carries = carries

    # Step.
    set_learning_rate(state.optimizer, state.lr)
    state.fabric_optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    system.after_update(state.update)
    if state.average is not None:
        state.average.update(state.update)
    return True


def idle_passes(state: TrainState, passes: Sequence[Pass], totals: Mapping[str, int]) -> int:
    """How many passes this rank makes for nothing: ranks that share their weights layer by layer must make equally many."""
    if state.whole is None or totals[_PASSES] == state.stream.layout.parts(state.update) * state.fabric.world_size:
        return 0
    return max(dist.gather_json(len(passes))) - len(passes)


def clip(module: nn.Module, limit: float | None) -> Tensor:
    """Clip the gradient to `limit` and return its norm before that."""
    # an endless limit measures the norm and changes nothing
    return clip_gradients(module.parameters(), limit or float("inf"))


# --- log, evaluate, save, export -------------------------------------------------------------------------------------


def log(state: TrainState, logbook: Logbook | None, bar: Bar) -> None:
    """Write the means since the last line, if there was any step."""
    state.mark("logging")
    if not state.meter:
        return
    means = state.meter.means()
    state.meter.reset()
    parts = dist.gather_json({"bad": state.bad_records, "reads": state.reads})
    reads = {name: sum(part["reads"].get(name, 0) for part in parts) for name in sorted({n for part in parts for n in part["reads"]})}
    state.bad_records, state.reads = [], {}
    row = {"split": "train", **state.progress(), **means, **state.system.derived(means), "lr": state.lr,
           "batch": state.stream.layout.batches.batch(state.update - 1), **state.clock.rates(), **reads}
    state.trained = row
    bar.advance(0, note=f"loss {row['loss']:.4f}")
    if logbook is not None:
        logbook.add_row(row)
        logbook.add_bad(record for part in parts for record in part["bad"])
        state.console.say(f"update {state.update}/{state.recipe.max_updates}  loss {row['loss']:.4f}  lr {state.lr:.2e}  "
                          f"norm {row['grad_norm']:.3f}  {row['samples_per_s']:.1f} samples/s")


def save(state: TrainState, logbook: Logbook | None, wait: bool = False) -> None:
    """Save the state, beside the updates that follow unless it is to `wait`; older checkpoints go once the new one stands."""
    if logbook is not None:
        logbook.sync()
    state.mark("saving")
    settings, directory = state.recipe.checkpoint, state.run.checkpoints
    tensors, record = state.saved()
    state.saver.save(state.update, tensors, record, wait=wait,
                     after=lambda: checkpoint.prune(directory, settings.keep_last, settings.keep_every,
                                                    best_updates(directory, settings.keep_last) if settings.keep_best else ()))


def export(state: TrainState, ending: Ending) -> None:
    """Write the network in the reference library's layout: the best one where the recipe asks for it, else this moment's.

    Where the run keeps an average of the weights, it is the network's in both.
    """
    if (best := state.best_checkpoint()) is not None:
        checkpoint.load_model(best.path, state.system)
        monitor = state.recipe.evaluate.monitor
        state.console.say(f"the best {monitor} was {state.best.value:.4f}, after update {best.update}: that is exported")
    state.mark("exporting")
    said = "training finished" if ending == "complete" else f"training stopped ({ending})"
    with state.averaged() if best is None else nullcontext():
        finished = state.whole_system()
        dist.on_rank_0(lambda: export_system(finished, state.run.export, state.run.tokenizer()))
    state.console.say(f"{said} at update {state.update}; exported to {state.run.export}")
