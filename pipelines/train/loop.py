"""THE loop: pretrains any system on any data, on any number of ranks.

It knows `Objective`, `Batch`, `Term`, `Step` and `System` and nothing else: it imports no family and branches on no
name. One update is one global batch, however it is divided: the counts of all micro-batches and ranks are
added up first, and every micro-batch's sum is divided by them, so the gradient is that of the whole batch.

The state of a run is its weights, the optimizer, and one integer, the number of updates made. The data
follows from that integer (`pipelines/data/stream.py`), and so do learning rate and dropout: the random generators
are seeded again for every micro-batch. Therefore a run that was killed continues bit for bit on one rank.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn

from ...registry import family
from ...shared import dist
from ...shared.errors import UserError
from ...shared.family import Context
from ...shared.system import Batch, Preview, Step, System
from ..base.console import Bar, Console
from ..data.dataset import DataSet
from ..data.held_out import evaluation_batches
from ..data.stream import Layout, Stream
from ..model.export import export_system
from ..run import checkpoint
from ..run.directory import Run, check_directory
from ..run.logbook import Logbook
from ..run.optim import build_optimizer, clip_gradients, freeze, set_learning_rate
from ..run.recipe import Recipe
from ..run.schedule import factor
from .begin import begin
from .best import bests
from .devices import build_fabric, seed_draws
from .fabric import DDPStrategy, Fabric
from .health import act
from .job import Job
from .meter import Meter
from .preflight import build_stream, open_data, preflight
from .sharding import Whole, average_gradients, building, compile_parts, recompute_blocks, sharded, undivided
from .start import Start, find_start
from .started import started
from .stop import Stop
from .trace import profiling

Data = str | Path | Sequence[tuple[str | Path, float]]
Resume = Literal["auto", "never"] | Path
Ending = Literal["complete", "no progress", "out of time", "asked to stop"]


def pretrain(
    recipe: Recipe, data: Data, out: str | Path, *, model: str | Path | None = None, eval_data: str | Path | None = None,
    tokenizer: str | Path | None = None,
    max_updates: int | None = None, max_seconds: float | None = None, resume: str | Path = "auto", dry_run: bool = False,
    profile: bool = False, console: Console | None = None,
) -> dict[str, Any]:
    """Pretrain or fine-tune what the recipe says, from its first update or from the newest checkpoint in `out`.

    Args:
        recipe: everything but the data, see `polymodal.pipelines.run.recipe.recipe`.
        data: a data set's directory or URL, or a mixture of (directory, weight).
        out: the run's directory: new, empty, or a run to be continued.
        model: a network to start from: a model directory, run, checkpoint or hub id of the recipe's family.
        eval_data: held-out data.
        tokenizer: a tokenizer's directory; by default the model's, or the one that lies in the data set.
        max_updates: another length than the recipe's; the schedule follows.
        max_seconds: end early and cleanly after this time; the schedule does not follow.
        resume: `auto` continues from the newest checkpoint that verifies, `never` refuses a directory that holds
            checkpoints, a path continues from that checkpoint.
        dry_run: check everything and say what would be done, without writing anything.
        profile: write a trace of three updates, after five others, into the run's `profile`.
        console: where lines and progress go.

    Returns:
        The last metrics (`train`, `eval`), `updates`, `ending` and `out`.
    """
    if max_updates is not None:
        recipe = replace(recipe, max_updates=max_updates)
    out = Path(out)
    check_directory(out, str(resume))
    fabric = build_fabric(recipe)
    console = (console or Console()) if fabric.is_global_zero else Console(quiet=True)

    # 1. What to train, on what
    mixture = open_sets(data)
    held_out = None if eval_data is None else DataSet.open(eval_data)
    with building(recipe, fabric.global_rank, fabric.world_size):
        start = find_start(recipe, family(recipe.system), model, out, resume)
    layout = Layout(recipe.data.global_batch, recipe.data.micro_batch, fabric.global_rank, fabric.world_size)
    context = open_data([d for d, _ in mixture], held_out, tokenizer or start.tokenizer)
    parts = Parts.of(recipe, mixture, context, start, layout)
    lines = [*preflight(recipe, parts.system, parts.stream, held_out, fabric, out), *parts.lines]
    for line in lines:
        console.say(line)
    if dry_run:
        return {"dry_run": True, "recipe": recipe.to_dict(), "plan": lines, "rank": fabric.global_rank}

    # 2. The run's directory, and where to start
    run = Run(out)
    found, _lock = begin(run, recipe, parts.system, parts.context, start.source, resume, parts.stream.order_state(),
                         started(recipe, parts.stream, held_out, fabric), console)

    # 3. Devices, optimizer, state
    job = parts.job(recipe, fabric, held_out, run, console)
    with job.heart.start(run.directory, fabric.global_rank, fabric.world_size, recipe.health.heartbeat):
        if found is not None:
            job.restore(found)
        return _train(job, Stop(max_seconds), profile)


def open_sets(data: Data) -> list[tuple[DataSet, float]]:
    """The data sets of a run with their weights."""
    sources = [(data, 1.0)] if isinstance(data, (str, Path)) else list(data)
    return [(DataSet.open(source), weight) for source, weight in sources]


@dataclass(frozen=True)
class Parts:
    """What is trained on what, before any device, optimizer or directory comes in."""

    system: System
    context: Context
    stream: Stream
    lines: list[str]
    """Where its weights come from and which are frozen, for people."""

    @classmethod
    def of(cls, recipe: Recipe, data: Sequence[tuple[DataSet, float]], context: Context, start: Start, layout: Layout) -> Self:
        """The system with its first weights, and the stream that it reads."""
        entry = family(recipe.system)
        with building(recipe, layout.rank, layout.world):
            system = recipe.build(entry, context, start.config)
            lines = start.fill(system, entry)
        frozen = freeze(system, recipe.optim.freeze)
        if frozen:
            lines.append(f"frozen ({', '.join(recipe.optim.freeze)}): {len(frozen)} tensors")
        # a system that starts from a trained tower brings that tower's tokenizer
        context = replace(context, tokenizer=context.tokenizer or getattr(system.objective, "tokenizer", None))
        return cls(system, context, build_stream(recipe, data, system.objective, layout), lines)

    def job(self, recipe: Recipe, fabric: Fabric, held_out: DataSet | None, run: Run, console: Console) -> Job:
        """The run at its beginning: the system on its devices, with a fresh optimizer."""
        system = self.system
        whole = Whole(system) if sharded(recipe, fabric.world_size) else None
        if recipe.compile:
            compile_parts(system)
        if recipe.activation_checkpointing:
            recompute_blocks(system)
        module = fabric.setup_module(_Loss(system))
        optimizer = build_optimizer(system, recipe.optim)
        if isinstance(fabric.strategy, DDPStrategy):
            settle_buckets(fabric, module)
        return Job(recipe, fabric, system, module, optimizer, self.stream, held_out, run, console, whole)


# --- the loop --------------------------------------------------------------------------------------------------------


def _train(job: Job, stop: Stop, profile: bool = False) -> dict[str, Any]:
    """Make updates until the recipe's end, a signal, or the end of the time; log, evaluate and save between them."""
    recipe, fabric, system = job.recipe, job.fabric, job.system
    loop = Updates(job)
    logbook = Logbook(job.run, recipe, job.update) if fabric.is_global_zero else None
    ending: Ending | None = None
    with (stop, job.saver, job.console.progress(f"pretrain {recipe.name}", total=recipe.max_updates) as bar,
          profiling(profile, job.run.directory, fabric.global_rank, job.console) as traced):
        bar.advance(job.update)
        if recipe.health.policy == "rewind":
            _save(job, logbook)  # there must be one to go back to
        job.clock.start()
        while job.update < recipe.max_updates and not job.best.over:
            before = job.update
            ending = loop.make(stop)
            if ending is not None:
                break
            traced()
            last = job.update == recipe.max_updates
            log, evaluate, save = (bool(every) and job.update % every == 0
                                   for every in (recipe.log.every, recipe.evaluate.every, recipe.checkpoint.every))
            if log or evaluate or save or last:
                job.health.settle()  # nothing is written of an update that went wrong
            act(job, loop, logbook)
            bar.advance(job.update - before)
            if job.update <= before:
                continue  # the run went back
            if log or last:
                _log(job, loop.lr, logbook, bar)
            if evaluate and not last:
                with job.clock.paused():
                    _evaluate(job, logbook)
            better = recipe.checkpoint.keep_best and job.best.update == job.update
            if (save or better) and not (last or job.best.over):
                with job.clock.saving():
                    _save(job, logbook)
        job.health.settle()
        act(job, loop, logbook)
        ending = ending or ("complete" if job.update == recipe.max_updates else "no progress")
        if ending in ("out of time", "no progress") and job.meter:
            _log(job, loop.lr, logbook, bar)
        if ending != "asked to stop":
            _evaluate(job, logbook)
        _save(job, logbook, wait=True)
    if logbook is not None:
        logbook.close()
    if ending == "asked to stop":
        job.console.say(f"stopped after update {job.update} as asked; the same command continues from there")
    else:
        if (best := job.best_checkpoint()) is not None:
            checkpoint.load_model(best.path, system)
            job.console.say(f"the best {recipe.evaluate.monitor} was {job.best.value:.4f}, after update {best.update}: that is exported")
        job.at("exporting")
        finished = job.plain()
        dist.on_rank_0(lambda: export_system(finished, job.run.export, job.run.tokenizer()))
        job.console.say(f"{ending} after update {job.update}; the network is in {job.run.export}")
    return {"out": str(job.run.directory), "updates": job.update, "ending": ending, "train": job.trained, "eval": job.evaluated,
            "rank": fabric.global_rank}


class Updates:
    """Makes the updates of a job one by one, from where it stands, and writes nothing: what trains and what replays both drive it."""

    def __init__(self, job: Job) -> None:
        """Get ready to make update number `job.update`."""
        self._loader: Any = None
        self.job = job
        self.lr = 0.0
        """The learning rate of the update before."""
        self._optimizer = cast("Any", job.fabric.setup_optimizers(job.optimizer))
        self.restart()

    def restart(self) -> None:
        """Go on from where the job stands now."""
        job, data = self.job, self.job.recipe.data
        if self._loader is not None:
            self._loader.close()  # its workers and what it fetches ahead
        self._loader: Any = job.stream.loader(job.update, workers=data.workers, prefetch=data.prefetch,
                                              pin_memory=job.fabric.device.type == "cuda")
        job.optimizer.zero_grad(set_to_none=True)
        job.system.train()

    def make(self, stop: Stop | None = None) -> Ending | None:
        """Make one update; or make none, and say why the run ends before it."""
        job = self.job

        # 1. Fetch the update's micro-batches.
        job.at("reading")
        with job.clock.waiting():
            batches = [next(self._loader) for _ in range(job.stream.layout.accumulate)]

        # 2. Add up the counts over micro-batches and ranks; wishes to stop, and what is wrong with earlier updates, travel with them.
        job.at("counting")
        wishes = {_ASKED: int(stop is not None and stop.asked), _LATE: int(stop is not None and stop.late)}
        totals = dist.sum_over_ranks(_counts(batches) | wishes | {_ILL: int(job.health.suspects())})
        if totals[_ILL]:
            job.health.settle()
            return None
        if totals[_ASKED] or totals[_LATE]:
            return "asked to stop" if totals[_ASKED] else "out of time"

        # 3. Learn from them, unless this update is left out.
        self.lr = job.recipe.optim.lr * factor(job.recipe.schedule, job.update, job.recipe.max_updates)
        if job.health.leaves_out(job.update) or not self._learn(batches, totals):
            job.health.left_out(job.update)

        # 4. Count.
        job.update += 1
        job.tokens += totals[_TOKENS]
        job.bad += totals[_BAD]
        for name, value in (item for batch in batches for item in batch.reads.items()):
            job.reads[name] = job.reads.get(name, 0) + value
        job.bad_records += [{"update": job.update, **asdict(record)} for batch in batches for record in batch.bad]
        job.clock.update(job.recipe.data.global_batch, totals[_TOKENS])
        return None

    def _learn(self, batches: Sequence[Batch], totals: Mapping[str, int]) -> bool:
        """Make a step; False, with the weights as they were, where the gradient is known to be wrong."""
        job, recipe, fabric, system = self.job, self.job.recipe, self.job.fabric, self.job.system
        layout, world = job.stream.layout, fabric.world_size
        measured, carries = Meter(fabric.device), dict(job.carries)
        buffers = [(b, b.clone()) for b in system.buffers()] if recipe.health.policy == "skip" else []
        # DDP averages over ranks, the loss is a sum over them: hence `world`
        scale = {name: world / total if total else 0.0 for name, total in totals.items()}

        # Forward and backward; gradients travel between ranks with the last micro-batch only.
        for part, batch in enumerate(batches):
            seed_draws(recipe.seed, job.update, *layout.place(part))
            work = _Work(batch.to(fabric.device), carries.get(part), scale)
            job.at("forward", part)
            with fabric.no_backward_sync(job.module, enabled=world > 1 and part < layout.accumulate - 1):
                loss = job.module(work)
                job.at("backward", part)
                fabric.backward(loss)
            step = work.result()
            carries[part] = step.carry
            measured.add(step, batch.counts)

        if job.whole is not None:
            average_gradients(undivided(system))

        # Clip, and leave the weights alone where the gradient is wrong.
        job.at("stepping")
        norm = _clip(job.module, recipe.optim.clip)
        if not job.health.sound(job.update, norm):
            job.health.explain(measured.means().get("loss"))
            for buffer, kept in buffers:
                buffer.copy_(kept)
            job.optimizer.zero_grad(set_to_none=True)
            return False
        # it is one number of all ranks: counted once, a line that several ranks began and another number of them ended is a plain mean
        measured.put("grad_norm", norm * fabric.is_global_zero, int(fabric.is_global_zero))
        job.meter.merge(measured)
        job.carries = carries

        # Step.
        set_learning_rate(job.optimizer, self.lr)
        self._optimizer.step()
        job.optimizer.zero_grad(set_to_none=True)
        system.after_update(job.update)
        return True


_TOKENS, _BAD, _ASKED, _LATE, _ILL = ":tokens", ":bad", ":asked", ":late", ":ill"  # no count of a system starts with a colon


def _counts(batches: Sequence[Batch]) -> dict[str, int]:
    """The denominators of the update's terms on this rank, its tokens, and its skipped samples."""
    totals = {_TOKENS: sum(b.tokens for b in batches), _BAD: sum(len(b.bad) for b in batches)}
    for batch in batches:
        for name, count in batch.counts.items():
            totals[name] = totals.get(name, 0) + count
    return totals


class _Work:
    """One micro-batch on its way through the wrappers of Fabric and DDP.

    They walk through every dataclass they are handed, copy it and cast its tensors (float targets to bf16, too); an
    object that is no collection passes untouched.
    """

    __slots__ = ("batch", "carry", "scale", "step")

    def __init__(self, batch: Batch, carry: Any, scale: Mapping[str, float]) -> None:
        self.batch, self.carry, self.scale = batch, carry, scale
        self.step: Step | None = None

    def result(self) -> Step:
        """What the system returned."""
        assert self.step is not None
        return self.step


class _Loss(nn.Module):
    """A system as a module that returns the one number to differentiate."""

    def __init__(self, system: System) -> None:
        super().__init__()
        self.system = system

    def forward(self, work: _Work | None) -> Tensor:
        """The micro-batch's share of the loss of the global batch; without one a loss whose gradient is zero everywhere."""
        if work is None:
            return cast("Tensor", sum((p * 0).sum() for p in self.system.parameters() if p.requires_grad))
        work.step = step = cast("Step", self.system(work.batch, work.carry))
        parts = [term.total * (term.weight * work.scale[term.count]) for term in step.terms.values()]
        return cast("Tensor", sum(parts))


def settle_buckets(fabric: Fabric, module: Any) -> None:
    """Let DDP find its final order of gradients before the first update, on a loss without numbers.

    It puts the gradients into buckets anew after the first backward pass of a process, in the order in which they came. Where three or
    more ranks add up, the order of additions depends on a number's place in its bucket, so a run that is continued would round otherwise
    than one that was never stopped. The engine walks backwards through a sum, which is about the order of a real backward pass.
    """
    fabric.backward(module(None))
    module.zero_grad(set_to_none=True)


def _clip(module: nn.Module, limit: float | None) -> Tensor:
    """Clip the gradient to `limit` and return its norm before that."""
    # an endless limit measures the norm and changes nothing
    return clip_gradients(module.parameters(), limit or float("inf"))


# --- log, evaluate, save ---------------------------------------------------------------------------------------------


def _log(job: Job, lr: float, logbook: Logbook | None, bar: Bar) -> None:
    """Write the means since the last line, if there was any step."""
    job.at("logging")
    if not job.meter:
        return
    means = job.meter.means()
    job.meter.reset()
    parts = dist.gather_json({"bad": job.bad_records, "reads": job.reads})
    reads = {name: sum(part["reads"].get(name, 0) for part in parts) for name in sorted({n for part in parts for n in part["reads"]})}
    job.bad_records, job.reads = [], {}
    row = {"split": "train", **job.progress(), **means, **job.system.derive(means), "lr": lr, **job.clock.rates(), **reads}
    job.trained = row
    bar.advance(0, note=f"loss {row['loss']:.4f}")
    if logbook is not None:
        logbook.add_row(row)
        logbook.add_bad(record for part in parts for record in part["bad"])
        job.console.say(f"update {job.update}/{job.recipe.max_updates}  loss {row['loss']:.4f}  lr {lr:.2e}  norm {row['grad_norm']:.3f}  "
                        f"{row['samples_per_s']:.1f} samples/s")


@torch.no_grad()
def _evaluate(job: Job, logbook: Logbook | None) -> None:
    """Measure the held-out data on all ranks, and show what the model makes of some of it."""
    if job.held_out is None or job.evaluated.get("update") == job.update:
        return
    job.at("evaluating")
    recipe, fabric, system = job.recipe, job.fabric, job.plain()
    settings = recipe.evaluate
    meter = Meter(fabric.device, chance=True)
    previews: list[Preview] = []
    system.eval()
    began = time.perf_counter()
    # at most a training micro-batch at a time, so that what trains can be evaluated
    each = job.stream.layout.size if settings.batch is None else -(-settings.batch // fabric.world_size)
    batches = evaluation_batches(job.held_out, system.objective, batch=each, seed=recipe.seed, rank=fabric.global_rank,
                                 world=fabric.world_size, limit=settings.limit, lanes=settings.batch or recipe.data.global_batch,
                                 coupled=system.coupled, on_bad=recipe.data.on_bad)
    carry: Any = None
    for number, batch in enumerate(batches):
        seed_draws(recipe.seed, number)
        batch = batch.to(fabric.device)
        with fabric.autocast():
            step = system(batch, carry)
            carry = step.carry
            meter.add(step, batch.counts)
            if number == 0 and fabric.is_global_zero:
                previews = system.preview(batch, settings.previews) if settings.previews else []
    system.train()
    means = meter.means()
    if not means:
        raise UserError("the held-out data gave no batch: give more of it, or leave --eval-data out")
    means |= meter.chances()
    row = {"split": "eval", **job.progress(), **means, **system.derive(means), "seconds": time.perf_counter() - began}
    job.evaluated = row
    job.best.see(row)
    if logbook is not None:
        logbook.add_row(row)
        logbook.add_previews(job.update, previews)
        others = "  ".join(f"{name} {row[name]:.4f}" for name in (*means, *system.derive(means)) if name != "loss")
        job.console.say(f"evaluation after update {job.update}: loss {row['loss']:.4f}  {others}")


def _save(job: Job, logbook: Logbook | None, wait: bool = False) -> None:
    """Save the state, beside the updates that follow unless it is to `wait`; older checkpoints go once the new one stands."""
    if logbook is not None:
        logbook.sync()
    job.at("saving")
    settings, directory = job.recipe.checkpoint, job.run.checkpoints
    tensors, state = job.state()
    job.saver.save(job.update, tensors, state, wait=wait,
                   after=lambda: checkpoint.prune(directory, settings.keep_last, settings.keep_every,
                                                  bests(directory, settings.keep_last) if settings.keep_best else ()))
