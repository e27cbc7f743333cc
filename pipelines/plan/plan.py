"""`polymodal plan`: what a run will read, compute and keep, before any device works.

Nothing is trained and nothing is written. The network is built without weights, and one update of it is rehearsed on
the run's own first samples (`pipelines/plan/rehearsal.py`), so the memory is that of this recipe on this data, not a formula of a family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch

from ...registry import family
from ...shared.errors import UserError, raise_problems
from ...shared.family import Context, Family
from ...shared.meta import without_weights
from ...shared.system import Batch, Objective, System
from ..base.console import Console
from ..data.dataset import DataSet
from ..data.layout import BatchLayout
from ..model.companions import with_companions
from ..model.frontdoor import Reads
from ..run.optim import freeze
from ..run.recipe import Recipe
from ..train.devices import choose_precision
from ..train.inputs import Data, EvalData, build_layout, build_stream, open_held_out, open_sets, read_context
from ..train.layers import recompute_blocks
from ..train.preflight import precision_problems, preflight
from ..train.sharding import layout_problems, sharded
from ..train.start import Start, find_start
from .rehearsal import Rehearsal, rehearse
from .synthetic import synthetic_batch, synthetic_objective

_LOOKED_AT = 8
"""Micro-batches of which the largest is rehearsed."""


@dataclass(frozen=True)
class Cluster:
    """What the run is planned for.

    Args:
        nodes: machines.
        gpus: ranks on each of them; one where the machine has no GPU.
        memory: bytes of one GPU (or of a rank's share of the machine), which the run must fit into.
        rate: samples a second over all ranks, for the expected time.
        tflops: 10^12 operations a second that one rank reaches, for the expected time.
    """

    nodes: int = 1
    gpus: int = 1
    memory: int | None = None
    rate: float | None = None
    tflops: float | None = None

    def __post_init__(self) -> None:
        """Refuse numbers without meaning."""
        wrong = [f"--{name} is {value:g}, expected more than 0" for name, value in vars(self).items() if value is not None and value <= 0]
        if self.rate is not None and self.tflops is not None:
            wrong.append("--rate and --tflops both say how fast the run is: give one of them")
        raise_problems(wrong, "the cluster")

    @property
    def world_size(self) -> int:
        """Ranks over all machines."""
        return self.nodes * self.gpus


def plan(recipe: Recipe, data: Data | None, cluster: Cluster, *, model: str | Path | None = None, eval_data: EvalData = None,
         tokenizer: str | Path | None = None, out: str | Path = ".", console: Console | None = None) -> dict[str, Any]:
    """Say what a run of the recipe on the cluster would do and take.

    Args:
        recipe: see `polymodal.pipelines.run.recipe.recipe`.
        data: a data set, or a mixture of (data set, weight); None plans with synthetic samples of full length.
        cluster: ranks, and what is known of their memory and speed.
        model: a network to start from, see `pretrain`.
        eval_data: held-out data.
        tokenizer: a tokenizer's directory; by default the model's, or the one that lies in the data set.
        out: where the run would be written; its disk must hold a checkpoint.
        console: where the lines go.

    Returns:
        The numbers, and `lines` for people.

    Raises:
        UserError: the layout is impossible, or the run does not fit into the memory; with what would.
    """
    console = console or Console()
    entry = family(recipe.system)
    start = find_start(recipe, entry, model, Path(out), "never")
    machine = _Machine(cluster.world_size, _device(recipe))
    raise_problems([*layout_problems(recipe, machine.world_size, machine.device.type), *precision_problems(recipe)], "the run")
    precision = _precision(recipe, machine)
    layout = build_layout(recipe, 0, cluster.world_size)
    draft = _Draft(recipe, entry, start, precision, layout)
    if data is None:
        lines = draft.imagine(tokenizer)
    else:
        lines = draft.read(data, eval_data, tokenizer, machine, Path(out))
    found = draft.rehearse(layout)
    system = draft.build()
    memory = rank_memory(found, recipe, layout, machine.device.type)
    parameters = sum(p.numel() for p in system.parameters())
    result: dict[str, Any] = {
        "recipe": recipe.name, "world": cluster.world_size, "precision": precision, "parameters": parameters,
        "parameters_net": sum(p.numel() for p in system.net.parameters()),
        "parameters_trained": sum(p.numel() for p in system.parameters() if p.requires_grad),
        "updates": recipe.max_updates, "samples": layout.batches.before(recipe.max_updates),
        "flops_per_update": found.flops * cluster.world_size, "memory": memory, "checkpoint_bytes": found.saved,
        "seconds": _seconds(found, recipe, cluster),
    }
    lines += _lines(result, recipe, cluster)
    for line in lines:
        console.say(line)
    if cluster.memory is not None and memory["peak"] > cluster.memory:
        raise UserError(_too_large(draft, cluster, layout, memory, system.coupled))
    return result | {"lines": lines}


@dataclass(frozen=True)
class _Machine:
    world_size: int
    device: torch.device


class _Draft:
    """A run as far as it is needed to rehearse it: systems on the meta device, batches on the CPU."""

    def __init__(self, recipe: Recipe, entry: Family, start: Start, precision: str, layout: BatchLayout) -> None:
        self.recipe, self.entry, self.start, self.precision, self.layout = recipe, entry, start, precision, layout
        self.context = Context(net_only=True)
        self.config: Any = start.config
        self.sets: list[tuple[DataSet, float]] = []

    def build(self) -> System:
        """The system without weights."""
        with without_weights():
            system = self.recipe.build(self.entry, self.context, self.config)
        freeze(system, self.recipe.optim.freeze)
        return system

    def read(self, data: Data, eval_data: EvalData, tokenizer: str | Path | None, machine: _Machine, out: Path) -> list[str]:
        """Open the data and say what the loop says before a run."""
        self.sets = open_sets(data)
        held_out = open_held_out(eval_data)
        told = read_context([d for d, _ in self.sets], held_out, tokenizer or self.start.tokenizer, self.entry.task(self.recipe.task))
        self.context = with_companions(told, self.recipe, self.entry)
        system = self.build()
        return preflight(self.recipe, system, build_stream(self.recipe, self.sets, system.objective, self.layout), held_out, machine, out)

    def imagine(self, tokenizer: str | Path | None) -> list[str]:
        """Without data: synthetic samples, and the vocabulary of the config's defaults unless a tokenizer is given."""
        classes = ("0", "1") if self.recipe.task else None  # a task's data names them
        told = Context(read_context([], (), tokenizer or self.start.tokenizer).tokenizer, classes, net_only=True)
        self.context = with_companions(told, self.recipe, self.entry)
        net = self.build().net
        for name in net.reads if isinstance(net, Reads) else self.entry.task(self.recipe.task).companions:
            replace(self.context, net_only=False).companion(name, self.recipe.system)  # data would not help where one is lacking
        samples, batches = self.layout.batches.before(self.recipe.max_updates), self.layout.batches
        growing = f"{first} to " if (first := batches.batch(0)) < batches.full else ""
        return [f"recipe: {self.recipe.name}: {self.recipe.max_updates:,} updates of {growing}{batches.full} samples = "
                f"{samples:,} samples on {self.layout.world} ranks",
                "note: no --data, so the batch is of synthetic samples of full length, and epochs are not known"]

    def rehearse(self, layout: BatchLayout) -> Rehearsal:
        """Rehearse one of the largest updates, in the micro-batches of `layout`; of tasks that take turns the one that takes most memory.

        Its operations are then the mean over the tasks.
        """
        system = self.build()
        objective = system.objective if self.sets else synthetic_objective(self.recipe, self.entry, self.context, self.config)
        found: dict[str, Rehearsal] = {}
        for task, own in objective.by_turn().items():
            found[task] = self._rehearse(self.build() if found else system, own, layout)  # a system is used up
        shares = objective.turns or {"": 1}
        flops = sum(found[task].flops * share for task, share in shares.items()) // sum(shares.values())
        return replace(max(found.values(), key=lambda one: one.peak), flops=flops)

    def _rehearse(self, system: System, objective: Objective[Any], layout: BatchLayout) -> Rehearsal:
        if self.recipe.activation_checkpointing:
            recompute_blocks(system)
        shards = (self.recipe.shard_size or layout.world) if sharded(self.recipe, layout.world) else 1
        batches = self._batches(objective, layout)
        passes = [list(batch.passes()) for batch in batches]
        parts = layout.parts(_largest(self.recipe, layout))
        updates = [list(chain(*passes[i:i + parts])) for i in range(0, len(passes), parts)]
        each = -(-parts * sum(map(len, passes)) // len(passes))
        return rehearse(system, updates, self.recipe.optim, passes=each, precision=self.precision, shards=shards,
                        reshard=self.recipe.reshard_after_forward)

    def _batches(self, objective: Objective[Any], layout: BatchLayout) -> list[Batch]:
        """Micro-batches of the first updates that are as large as any, as many as are looked at."""
        update = _largest(self.recipe, layout)
        if not self.sets:
            return [synthetic_batch(objective, max(len(layout.positions(update, part)) for part in range(layout.parts(update))))]
        sets = [(data, weight) for data, weight in self.sets if objective.reads(data.index.fields)]
        stream, first = build_stream(self.recipe, sets, objective, layout), layout.number(update)
        return [stream[number] for number in range(first, min(first + _LOOKED_AT, layout.number(self.recipe.max_updates)))]


def _largest(recipe: Recipe, layout: BatchLayout) -> int:
    """The first update of the run whose batch is as large as any."""
    return layout.batches.level(recipe.max_updates - 1).update


def _device(recipe: Recipe) -> torch.device:
    """The kind of device that the run is planned for: what the recipe names, else what this machine has."""
    if recipe.accelerator != "auto":
        return torch.device(recipe.accelerator)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _precision(recipe: Recipe, machine: _Machine) -> str:
    """`auto` on a CUDA device that is not here is bf16-mixed: every GPU that is sold for training multiplies bf16 fast."""
    if recipe.precision == "auto" and machine.device.type == "cuda" and not torch.cuda.is_available():
        return "bf16-mixed"
    return choose_precision(recipe.precision, machine.device.type)


# --- memory and time -------------------------------------------------------------------------------------------------


def rank_memory(found: Rehearsal, recipe: Recipe, layout: BatchLayout, device: str) -> dict[str, int]:
    """Bytes of one rank by what they hold, and the peak, under the recipe's strategy.

    With strategy fsdp a rank holds its rows of all that, and at the peak `gathered`: the weights of the layers that compute or come
    next, gradients that are not divided yet, and the buffers in which both travel. `staging` is the copy of this rank's part of a
    checkpoint that is written beside the training: host memory, so it is part of the peak where that is the device's.
    """
    parts = _on_device(found, recipe, layout)
    saves = recipe.checkpoint.asynchronous and (0 < recipe.checkpoint.every < recipe.max_updates or recipe.checkpoint.keep_best)
    staging = -(-found.saved // layout.world) if saves else 0
    return parts | {"staging": staging, "peak": parts["peak"] + (staging if device == "cpu" else 0)}


def _on_device(found: Rehearsal, recipe: Recipe, layout: BatchLayout) -> dict[str, int]:
    parts = {"weights": found.weights, "gradients": found.gradients, "optimizer": found.optimizer, "activations": found.activations}
    parts |= {name: size for name, size in (("average", found.average), ("companions", found.companions)) if size}
    if layout.world == 1 and recipe.strategy in ("auto", "fsdp"):
        return {**parts, "peak": found.peak}
    if sharded(recipe, layout.world):
        shards = recipe.shard_size or layout.world
        parts |= {name: -(-parts[name] // shards) for name in ("gradients", "optimizer", "average") if name in parts}
        parts["weights"] = found.whole - (-(found.weights - found.whole) // shards)
        # evaluation and export put a copy of all weights on each rank
        after = parts["weights"] + parts["optimizer"] + parts.get("average", 0) + found.companions + found.weights
        return {**parts, "gathered": found.gathered, "peak": max(found.peak, after)}
    # DDP's buckets hold the gradients from the first update on
    return {**parts, "peak": found.steady + found.gradients}


def _seconds(found: Rehearsal, recipe: Recipe, cluster: Cluster) -> float | None:
    if cluster.rate is not None:
        return recipe.data.ramp.before(recipe.max_updates) / cluster.rate
    if cluster.tflops is not None:
        return _full_updates(recipe) * found.flops / (cluster.tflops * 1e12)
    return None


def _full_updates(recipe: Recipe) -> float:
    """How many updates of the largest batch have the samples of the run."""
    batches = recipe.data.ramp
    return batches.before(recipe.max_updates) / batches.batch(recipe.max_updates - 1)


def _too_large(draft: _Draft, cluster: Cluster, layout: BatchLayout, memory: Mapping[str, int], coupled: bool) -> str:
    """What does not fit, and the largest micro-batch that would."""
    assert cluster.memory is not None
    what = f"the run takes {size(memory['peak'])} on each rank and a rank has {size(cluster.memory)}"
    if coupled:
        return f"{what}: its batch cannot be split; use more ranks, a smaller data.global_batch or chunks (objective.chunk)"
    share = layout.global_batch // layout.world
    fixed = sum(memory.get(name, 0) for name in ("weights", "gradients", "optimizer", "average", "companions"))
    smaller = [m for m in range(layout.size - 1, 0, -1) if share % m == 0] if fixed < cluster.memory else []
    while smaller:
        micro = smaller.pop(0)
        fewer = replace(layout, micro_batch=micro)
        taken = rank_memory(draft.rehearse(fewer), draft.recipe, fewer, _device(draft.recipe).type)["peak"]
        if taken <= cluster.memory:
            return f"{what}: set data.micro_batch={micro}, which takes {size(taken)}; the gradient stays the same"
        # memory grows with the micro-batch: one of twice the wanted share need not be tried
        smaller = [m for m in smaller if m <= micro * cluster.memory / taken * 1.5 or m == 1]
    return f"{what}, and even micro-batches of one sample do not fit: use a smaller size, shorter samples or an optimizer with less state"


def _lines(result: Mapping[str, Any], recipe: Recipe, cluster: Cluster) -> list[str]:
    memory = cast("dict[str, int]", result["memory"])
    total, trained, net = result["parameters"], result["parameters_trained"], result["parameters_net"]
    aside = [f"{total - trained:,} frozen"] if trained < total else []
    aside += [f"{total - net:,} for training only"] if net < total else []
    gathered = f", gathered for use {size(memory['gathered'])}" if "gathered" in memory else ""
    gathered += f", the copy of a checkpoint {size(memory['staging'])} (host memory)" if memory["staging"] else ""
    average = f", average of the weights {size(memory['average'])}" if "average" in memory else ""
    average += f", networks beside it {size(memory['companions'])}" if "companions" in memory else ""
    flops, ranks, kept = result["flops_per_update"], cluster.world_size, recipe.checkpoint
    lines = [
        f"parameters: {total:,}{f' ({chr(44).join(aside)})' if aside else ''}",
        f"memory of a rank: weights {size(memory['weights'])}, gradients {size(memory['gradients'])}, optimizer ({recipe.optim.name}) "
        f"{size(memory['optimizer'])}{average}, activations and batches {size(memory['activations'])}{gathered}; "
        f"at the peak {size(memory['peak'])} (precision {result['precision']})",
        f"work: {count(flops)}FLOP an update{f', {count(flops / ranks)}FLOP on each rank' if ranks > 1 else ''}; "
        f"{count(flops * _full_updates(recipe))}FLOP the run",
        f"checkpoint: {size(result['checkpoint_bytes'])}, {f'every {kept.every} updates' if kept.every else 'at the end'}; "
        f"the last {kept.keep_last} are kept",
    ]
    if recipe.compile:
        lines.append("note: the memory is that of the network without torch.compile, which needs less")
    seconds = result["seconds"]
    lines.append("time: not known; --rate (samples a second of all ranks) or --tflops (of one rank) gives it" if seconds is None else
                 f"time: {duration(seconds)} at {f'{cluster.rate:g} samples/s' if cluster.rate else f'{cluster.tflops:g} TFLOP/s a rank'}, "
                 "without evaluation and checkpoints")
    return lines


def size(number: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.4g} {unit}"
        number /= 1024
    return f"{number:.4g} TiB"


def count(number: float) -> str:
    """A large number with the letter of its thousands, to stand before a unit."""
    for letter in ("", "k", "M", "G", "T", "P", "E"):
        if number < 1000:
            return f"{number:.3g} {letter}"
        number /= 1000
    return f"{number:.3g} Z"


def duration(seconds: float) -> str:
    """A time for people."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} seconds"
