"""Short runs of a case through THE loop, with what it measured; also as one of two ranks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from contract.cases import Case, cases, prepare
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.run.optim import OptimSettings
from polymodal.pipelines.run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from polymodal.pipelines.run.schedule import ScheduleSettings
from polymodal.pipelines.train import loop
from torch import Tensor, nn

TIMES = ("samples_per_s", "tokens_per_s", "step_s", "data_wait_s", "save_s", "elapsed_s", "seconds")


@dataclass
class Made:
    """What a run computed."""

    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    """Of each update, before clipping."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Its metrics without times."""


PASS = 48
"""Tokens of a forward pass where a micro-batch of the contract's texts is to be computed in several."""


def short(recipe: Recipe, *, micro: int | None = None, updates: int = 2, max_tokens: int | None = None, **more: Any) -> Recipe:
    """Some updates of 8 samples with plain gradient descent: what follows depends on the gradient alone."""
    return replace(recipe, **({
        "data": DataSettings(global_batch=8, micro_batch=micro, max_tokens=max_tokens, lanes=4, window=16),
        "optim": OptimSettings("sgd", lr=0.05, momentum=0.0),
        "schedule": ScheduleSettings("constant"), "max_updates": updates, "precision": "32", "accelerator": "cpu",
        "log": LogSettings(every=1, tensorboard=False), "evaluate": EvaluateSettings(batch=8), "checkpoint": CheckpointSettings(every=0),
    } | more))


def run(case: Case, recipe: Recipe, root: Path, out: Path, *, double: bool = False, held: bool = False, **more: Any) -> Made:
    """Train, and keep the gradients."""
    made = Made()
    data = prepare(root, case)
    with _recorded(made, double):
        loop.pretrain(recipe, data.train, out, eval_data=data.held if held else None, tokenizer=data.tokenizer,
                       console=Console(quiet=True), **more)
    made.rows = [{k: v for k, v in row.items() if k not in TIMES} for row in loop.Run(out).metrics()]
    return made


@contextlib.contextmanager
def _recorded(made: Made, double: bool) -> Iterator[None]:
    clip, build = loop.clip, Recipe.build

    def keep(module: nn.Module, limit: float | None) -> Tensor:
        made.gradients.append({n.split("system.", 1)[1]: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None})
        return clip(module, limit)

    def exact(self: Recipe, *arguments: Any) -> nn.Module:
        return build(self, *arguments).double() if double else build(self, *arguments)

    with patch.object(loop, "clip", keep), patch.object(Recipe, "build", exact), patch.object(loop, "export_system", lambda *_: None):
        yield


@contextlib.contextmanager
def ended_when(good: Callable[[dict[str, Any]], bool], out: Path) -> Iterator[None]:
    """A run in `out` ends, as it does when its time is up, once an evaluation is good."""

    class Good(loop.Stop):
        @property
        def late(self) -> bool:
            rows = loop.Run(out).metrics()
            return bool(rows) and any(row["split"] == "eval" and good(row) for row in rows[-2:])

    with patch.object(loop, "Stop", Good):
        yield


@contextlib.contextmanager
def _late() -> Iterator[None]:
    """Look at the run's directory when another rank has just begun to write it, if there is such a moment within half a second."""
    check = loop.check_directory

    def wait(directory: Path, resume: str) -> None:
        end = time.monotonic() + 0.5
        while time.monotonic() < end and not directory.exists():
            time.sleep(0.0002)
        check(directory, resume)

    with patch.object(loop, "check_directory", wait):
        yield


def batch_statistics(case: Case) -> bool:
    """Whether the network has norms over the batch, which on several ranks are those of each rank."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in case.build().modules())


def divided() -> list[Case]:
    """The cases whose loss is the same on any number of ranks."""
    return [c for c in cases() if not batch_statistics(c)]


def as_a_rank(root: Path, out: Path) -> None:
    """As one rank of two: train every case, and write what it computed."""
    torch.set_num_threads(1)
    for number, case in enumerate(divided()):
        recipe = short(case.still().recipe, micro=None if case.coupled else 2, max_tokens=PASS if case.counted else None, devices=2)
        # from the second case on the ranks are connected, and nothing in between holds rank 0 back
        with _late() if number == 1 and loop.dist.rank() else contextlib.nullcontext():
            made = run(case, recipe, root, out / case.name, held=True)
        if loop.dist.rank() == 0:
            torch.save((made.gradients, made.rows), out / f"{case.name}.pt")
