"""A run in progress: its parts, how far it is, what a checkpoint holds of that, and how it is restored on whatever ranks there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor
from torch.optim import Optimizer

from ...shared import dist
from ...shared.system import System, map_tensors
from ..base.console import Console
from ..data.account import order_state
from ..data.dataset import DataSet
from ..data.stream import Stream
from ..run import checkpoint
from ..run.directory import Run
from ..run.recipe import Recipe
from ..run.saver import Saver
from ..run.trees import flatten, join_rows, unflatten
from .average import Average
from .best import Best
from .clock import Clock
from .events import rewind_decisions
from .health import Health
from .heartbeat import MAKING, Heartbeat
from .inputs import open_labelled
from .meter import Meter
from .sharding import Whole
from .totals import Totals

if TYPE_CHECKING:
    from .fabric import Fabric


@dataclass
class TrainState:
    """A run in progress. With the weights and the optimizer, `update` determines it: the data, the rate and the draws follow from that."""

    # --- its parts
    recipe: Recipe
    fabric: Fabric
    system: System
    module: Any
    """The system's loss (`passes.ScaledLoss`) in the wrappers of strategy and precision, for forward and backward passes."""
    optimizer: Optimizer
    stream: Stream
    held_out: Sequence[DataSet]
    run: Run
    console: Console
    whole: Whole | None = None
    """Where the system's weights are divided over the ranks: what puts them together."""

    # --- how far it is
    update: int = 0
    """Updates made so far."""
    tokens: int = 0
    bad: int = 0
    """Samples that were skipped."""
    carries: dict[int, Any] = field(default_factory=dict)
    """What the system handed from each of this rank's micro-batches to the same micro-batch of the next update."""

    # --- what was measured, and not logged yet
    lr: float = 0.0
    """The learning rate of the last update."""
    bad_records: list[dict[str, Any]] = field(default_factory=list)
    reads: dict[str, float] = field(default_factory=dict)
    """What reading cost (`Batch.reads`)."""

    # --- the last lines of the log
    trained: dict[str, Any] = field(default_factory=dict)
    evaluated: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Get ready to measure, to judge and to save."""
        self.clock = Clock()
        self.heartbeat = Heartbeat()
        self.totals = Totals()
        self.meter = Meter(self.fabric.device, turns=self.system.objective.turns)
        self.best = Best(self.recipe.evaluate)
        self.health = Health(self.recipe.health, self.fabric.device)
        self.average = None if self.recipe.optim.ema_decay is None else Average(self.system, self.recipe.optim)
        """The average of the weights, where the recipe asks for one."""
        self.saver = Saver(self.run.checkpoints, self.recipe.checkpoint.asynchronous)
        self.fabric_optimizer = cast("Any", self.fabric.setup_optimizers(self.optimizer))
        """The same optimizer, as Fabric makes its steps."""
        self.batches: Any = None
        """This rank's micro-batches from `update` on, once `start_reading` was called."""

    @cached_property
    def labelled(self) -> DataSet | None:
        """What every evaluation also measures zero-shot, where the recipe asks for it."""
        return open_labelled(self.recipe.evaluate)

    def start_reading(self) -> None:
        """Read the data from `update` on, and get ready to train."""
        if self.batches is not None:
            self.batches.close()  # its workers and what it fetches ahead
        data = self.recipe.data
        self.batches = self.stream.loader(self.update, workers=data.workers, prefetch=data.prefetch,
                                          pin_memory=self.fabric.device.type == "cuda")
        self.optimizer.zero_grad(set_to_none=True)
        self.system.train()

    def mark(self, phase: str, part: int = 0) -> None:
        """Say what this rank does now (`PHASES`), with which micro-batch; costs next to nothing."""
        self.heartbeat.mark(phase, self.update + (phase in MAKING), part)

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the system has the weights that evaluations and the export use: the averages, where some are kept."""
        return nullcontext() if self.average is None else self.average.in_use()

    def whole_system(self) -> System:
        """The system with all its weights on this rank; every rank must call it."""
        return self.system if self.whole is None else self.whole.gather()

    def best_checkpoint(self) -> checkpoint.Checkpoint | None:
        """The checkpoint to export instead of the newest state, where the recipe asks for it and it is another one."""
        if not self.recipe.checkpoint.keep_best or self.best.update in (None, self.update):
            return None
        return next((c for c in checkpoint.all_checkpoints(self.run.checkpoints) if c.update == self.best.update), None)

    def progress(self) -> dict[str, Any]:
        """How far the run is, for a line of the log."""
        return {"update": self.update, "samples": self.stream.layout.batches.before(self.update), "epoch": self.stream.epoch(self.update),
                "tokens": self.tokens, "bad": self.bad}

    # --- checkpoints

    def saved(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that a checkpoint holds: tensors, and the rest as JSON. Every rank must call it."""
        tensors, scalars = checkpoint.optimizer_state(self.system, self.optimizer)
        skeleton, carried = flatten({str(part): c for part, c in self.carries.items()}, f"carry/{self.fabric.global_rank}")
        record = {
            "update": self.update, "tokens": self.tokens, "bad": self.bad, "elapsed_s": self.clock.elapsed,
            "order": order_state(self.stream), "world": self.fabric.world_size, "accumulate": self.stream.layout.accumulate,
            "meter": self.meter.state(), "optim": scalars, "carries": dist.gather_json(skeleton),
            "recipe": self.recipe.to_dict(), "best": self.best.state(), "health": self.health.state(),
        }
        averages = {} if self.average is None else self.average.tensors()
        return {**checkpoint.model_tensors(self.system), **tensors, **averages, **carried}, record

    def adopt(self, start: checkpoint.Checkpoint) -> dict[str, Any]:
        """Take the weights and the optimizer's state of a checkpoint, of this run or another one; the rest of what it holds.

        The average of the weights begins anew with these.
        """
        record = start.state()
        checkpoint.load_model(start.path, self.system, to_train=True)
        checkpoint.load_optimizer_state(start.path, self.system, self.optimizer, record["optim"])
        if self.average is not None:
            self.average.restart()
        return record

    def restore(self, start: checkpoint.Checkpoint) -> None:
        """Continue from a checkpoint, on whatever ranks there are now."""
        record = self.adopt(start)
        if self.average is not None and not self.average.restore(start):
            self.console.say(f"note: {start.path.name} holds no average of the weights: it begins with those of update {start.update}")
        elif self.average is None and checkpoint.has_average(start.path):
            self.console.say(f"note: the average of the weights in {start.path.name} is given up: optim.ema_decay is null now")
        self.update, self.tokens, self.bad = record["update"], record["tokens"], record["bad"]
        self.clock.elapsed = record["elapsed_s"]
        if "best" in record:
            self.best.restore(record["best"])
        self.health.rewound = [range(*pair) for pair in dist.on_rank_0(lambda: rewind_decisions(self.run))]
        self.health.restore(record.get("health", {}), self.update)
        self.meter.restore(record["meter"])
        self.carries = self._carried(start, record)
        last: list[dict[str, Any]] = dist.on_rank_0(lambda: [row for row in self.run.metrics("eval") if row["update"] <= self.update][-1:])
        self.evaluated = last[0] if last else {}

    def _carried(self, start: checkpoint.Checkpoint, record: Mapping[str, Any]) -> dict[int, Any]:
        """What a checkpoint's micro-batches carried; where they are other ones now, each gets the rows of all and finds its own."""
        is_same = (record["world"], record["accumulate"]) == (self.fabric.world_size, self.stream.layout.accumulate)
        trees = [record["carries"][self.fabric.global_rank]] if is_same else record["carries"]
        found = [unflatten(tree) for tree in trees]
        slots = {name: slot for _, tensors in found for name, slot in tensors.items()}
        if slots:
            checkpoint.load(start.path, slots, ignore=lambda name: name not in slots)
        carried = [{int(part): carry for part, carry in carries.items()} for carries, _ in found]
        if not is_same:
            rows = join_rows([carries[part] for carries in carried for part in sorted(carries)])
            return dict.fromkeys(range(self.stream.layout.accumulate), self._on_device(rows))
        return {part: self._on_device(carry) for part, carry in carried[0].items()}

    def _on_device(self, carry: Any) -> Any:
        return map_tensors(carry, lambda tensor: tensor.to(self.fabric.device))
