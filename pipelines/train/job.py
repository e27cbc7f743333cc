"""A run while it runs: its parts, what a checkpoint holds of them, and how they are restored on whatever ranks there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from ...shared import dist
from ...shared.system import System
from ..base.console import Console
from ..data.dataset import DataSet
from ..data.stream import Stream
from ..run import checkpoint
from ..run.directory import Run
from ..run.recipe import Recipe
from ..run.saver import Saver
from ..run.trees import flatten, join_rows, unflatten
from .best import Best
from .fabric import Fabric
from .health import Health, decisions
from .heartbeat import MAKING, Heartbeat
from .meter import Clock, Meter
from .sharding import Whole


@dataclass
class Job:
    """A run while it runs."""

    recipe: Recipe
    fabric: Fabric
    system: System
    module: Any
    optimizer: Optimizer
    stream: Stream
    held_out: DataSet | None
    run: Run
    console: Console
    whole: Whole | None = None
    """Where the system's weights are divided over the ranks: what puts them together."""
    update: int = 0
    """Updates made so far; with the weights and the optimizer, the whole state."""
    tokens: int = 0
    bad: int = 0
    bad_records: list[dict[str, Any]] = field(default_factory=list)
    reads: dict[str, float] = field(default_factory=dict)
    """What reading cost since the last line of the log (`Batch.reads`)."""
    carries: dict[int, Any] = field(default_factory=dict)
    """What the system handed from an update's micro-batch to the same micro-batch of the next update."""
    trained: dict[str, Any] = field(default_factory=dict)
    evaluated: dict[str, Any] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)
    heart: Heartbeat = field(default_factory=Heartbeat)
    """Where this rank says what it does."""

    def __post_init__(self) -> None:
        """Start measuring."""
        self.meter = Meter(self.fabric.device)
        self.best = Best(self.recipe.evaluate)
        self.health = Health(self.recipe.health, self.fabric.device)
        self.saver = Saver(self.run.checkpoints, self.recipe.checkpoint.asynchronous)

    def at(self, phase: str, part: int = 0) -> None:
        """Say what this rank does now (`PHASES`); costs next to nothing."""
        self.heart.mark(phase, self.update + (phase in MAKING), part)

    def plain(self) -> System:
        """The system with all its weights on this rank; every rank must call it."""
        return self.system if self.whole is None else self.whole.gather()

    def best_checkpoint(self) -> checkpoint.Checkpoint | None:
        """The checkpoint to export instead of the newest state, where the recipe asks for it and it is another one."""
        if not self.recipe.checkpoint.keep_best or self.best.update in (None, self.update):
            return None
        return next((c for c in checkpoint.all_checkpoints(self.run.checkpoints) if c.update == self.best.update), None)

    def progress(self) -> dict[str, Any]:
        """How far the run is."""
        return {"update": self.update, "samples": self.update * self.recipe.data.global_batch, "epoch": self.stream.epoch(self.update),
                "tokens": self.tokens, "bad": self.bad}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that a checkpoint holds: tensors, and the rest as JSON. Every rank must call it."""
        tensors, scalars = checkpoint.optimizer_state(self.system, self.optimizer)
        skeleton, carried = flatten({str(part): c for part, c in self.carries.items()}, f"carry/{self.fabric.global_rank}")
        state = {
            "update": self.update, "tokens": self.tokens, "bad": self.bad, "elapsed_s": self.clock.elapsed,
            "order": self.stream.order_state(), "world": self.fabric.world_size, "accumulate": self.stream.layout.accumulate,
            "meter": self.meter.state(), "optim": scalars, "carries": dist.gather_json(skeleton),
            "recipe": self.recipe.to_dict(), "best": self.best.state(), "health": self.health.state(),
        }
        return {**checkpoint.model_tensors(self.system), **tensors, **carried}, state

    def restore(self, start: checkpoint.Checkpoint) -> None:
        """Continue from a checkpoint, on whatever ranks there are now."""
        state = start.state()
        checkpoint.load_model(start.path, self.system)
        checkpoint.load_optimizer_state(start.path, self.system, self.optimizer, state["optim"])
        self.update, self.tokens, self.bad = state["update"], state["tokens"], state["bad"]
        self.clock.elapsed = state["elapsed_s"]
        if "best" in state:
            self.best.restore(state["best"])
        self.health.decided = [range(*pair) for pair in dist.on_rank_0(lambda: decisions(self.run))]
        self.health.restore(state.get("health", {}), self.update)
        self.meter.restore(state["meter"])
        self.carries = self._carried(start, state)
        last: list[dict[str, Any]] = dist.on_rank_0(lambda: [row for row in self.run.metrics("eval") if row["update"] <= self.update][-1:])
        self.evaluated = last[0] if last else {}

    def _carried(self, start: checkpoint.Checkpoint, state: Mapping[str, Any]) -> dict[int, Any]:
        """What a checkpoint's micro-batches carried; where they are other ones now, each gets the rows of all and finds its own."""
        same = (state["world"], state["accumulate"]) == (self.fabric.world_size, self.stream.layout.accumulate)
        trees = [state["carries"][self.fabric.global_rank]] if same else state["carries"]
        found = [unflatten(tree) for tree in trees]
        slots = {name: slot for _, tensors in found for name, slot in tensors.items()}
        if slots:
            checkpoint.load(start.path, slots, ignore=lambda name: name not in slots)
        carried = [{int(part): carry for part, carry in carries.items()} for carries, _ in found]
        if not same:
            rows = join_rows([carries[part] for carries in carried for part in sorted(carries)])
            rows = _to(self.fabric.device, rows)
            return dict.fromkeys(range(self.stream.layout.accumulate), rows)
        return {part: _to(self.fabric.device, carry) for part, carry in carried[0].items()}


def _to(device: torch.device, value: Any) -> Any:
    """Nested lists, tuples and dicts with their tensors on `device`."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {k: _to(device, v) for k, v in cast("dict[str, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        moved = [_to(device, v) for v in cast("list[Any]", value)]
        return tuple(moved) if isinstance(value, tuple) else moved
    return value
