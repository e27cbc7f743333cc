"""A toy system that can be poisoned, with whatever an update could leave behind: for tests of updates that go wrong, of ranks that hang."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from unittest.mock import patch

import torch
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.run import directory as run_directory
from polymodal.pipelines.run.optim import OptimSettings
from polymodal.pipelines.run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, HealthSettings, LogSettings, Recipe
from polymodal.pipelines.run.schedule import ScheduleSettings
from polymodal.pipelines.train import loop
from polymodal.shared.family import Card, Family, Task
from polymodal.shared.system import Batch, Objective, Step, System, Term
from torch import Tensor, nn

POISON = "z"
INF, NAN = float("inf"), float("nan")


@dataclass(kw_only=True)
class LetterBatch(Batch):
    x: Tensor
    y: Tensor


HARM = {"poison": 1.0}
"""What is wrong with the world: not in the recipe, which must be the same for runs that are compared or continued."""


class Letters(Objective):
    """A text's letters against a sum of them and what nobody can know. A text with a `z` may be poisoned: its target is multiplied."""

    def example(self, sample, rng):
        text = sample.text()
        target = text.count("a") - text.count("b") + (len(text) % 3 + 1) / 2
        harm = HARM["poison"] if POISON in text else 1.0
        yield [text.count(c) / 2 - len(text) / 16 + rng.normal() * 0.01 for c in "abcde"], target * harm

    def collate(self, examples):
        x, y = torch.tensor([e[0] for e in examples], dtype=torch.float32), torch.tensor([float(e[1]) for e in examples])
        return LetterBatch(x=x, y=y, counts={"rows": len(examples)}, tokens=len(examples))


@dataclass(frozen=True)
class Config:
    width: int = 8
    batch_norm: bool = True
    """False where ranks are compared: a checkpoint holds the statistics of one of them."""
    linear: bool = False
    """True for least squares, whose solution does not depend on the way there."""

    def to_dict(self):
        return {"width": self.width, "batch_norm": self.batch_norm, "linear": self.linear}

    @classmethod
    def from_dict(cls, record):
        return cls(**record)


class Reader(System):
    """With dropout, a norm over the batch, and a memory: whatever an update could leave behind."""

    def __init__(self, config):
        width = config.width
        norm = nn.BatchNorm1d(width) if config.batch_norm else nn.LayerNorm(width)
        net = nn.Sequential(nn.Linear(5, width), norm, nn.Tanh(), nn.Dropout(0.1), nn.Linear(width, 1))
        if config.linear:
            net = nn.Sequential(nn.Linear(5, 1))
        net.config = config
        super().__init__(net, Letters())
        self.memory = 0.0 if config.linear else 0.1

    def forward(self, batch, carry=None):
        out = self.net(batch.x)[:, 0] + (0.0 if carry is None else self.memory * carry["mean"])
        total = ((out - batch.y) ** 2).sum()
        return Step({"square": Term(total, "rows")}, {}, {"mean": out.detach().mean()})


CARD = Card(title="Reader", paper="", year=2026, url="", equation="", symbols="", masks={}, reference="")
FAMILY = Family(name="reader", card=CARD, config=Config, sizes={"base": {}}, pretraining=Task("", Config, lambda c, s, _: Reader(c)))


def _export(system, out, tokenizer):
    out.mkdir(exist_ok=True)
    torch.save(system.state_dict(), out / "net.pt")


@contextmanager
def known(entry: Family = FAMILY) -> Generator[None]:
    """The family is registered."""
    with ExitStack() as stack:
        for module in (loop, run_directory):
            stack.enter_context(patch.object(module, "family", lambda _: entry))
        stack.enter_context(patch.object(loop, "export_system", _export))
        stack.enter_context(patch("polymodal.pipelines.run.recipe.families", lambda: {"reader": entry}))
        yield


def letters(health=None, **more):
    return replace(Recipe(name="reader", system="reader", data=DataSettings(global_batch=8, lanes=4, window=64, micro_batch=2),
                          max_updates=15, precision="32", accelerator="cpu", optim=OptimSettings(lr=0.02),
                          schedule=ScheduleSettings("cosine", warmup=3), log=LogSettings(every=3, tensorboard=False),
                          evaluate=EvaluateSettings(every=5), checkpoint=CheckpointSettings(every=3),
                          health=HealthSettings(**({"heartbeat": 0.0, "window": 5} | (health or {})))), **more)


def go(made, data, out, poison=1.0, **more):
    with patch.dict(HARM, poison=poison):
        return loop.pretrain(made, data.train, out, **({"eval_data": data.held, "console": Console(quiet=True)} | more))
