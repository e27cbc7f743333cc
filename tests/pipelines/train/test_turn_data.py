"""A run whose tasks read different data sets: trained, stopped, continued, measured, also on two ranks (this file is one of them)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import processes
import pytest
import torch
from contract.letters import CARD, Config, LetterBatch, Letters, go, known, letters
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.inspection.past import Past
from polymodal.pipelines.inspection.replay import replay
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.pipelines.run import checkpoint
from polymodal.pipelines.run.directory import Run
from polymodal.pipelines.run.recipe import CheckpointSettings, EvaluateSettings, LogSettings
from polymodal.shared import dist
from polymodal.shared.errors import UserError
from polymodal.shared.family import Family, Task
from polymodal.shared.system import Step, System, Term
from torch import nn

TIMES = ("samples_per_s", "tokens_per_s", "step_s", "data_wait_s", "save_s", "elapsed_s", "seconds")


@dataclass(kw_only=True)
class MarkBatch(LetterBatch):
    pass


class Plain(Letters):
    """Texts without a class."""

    def reads(self, fields):
        return "cls" not in fields


class Marked(Letters):
    """Texts with one: it is the target."""

    def reads(self, fields):
        return "cls" in fields

    def example(self, sample, rng):
        ((features, _),) = super().example(sample, rng)
        yield features, float(sample.label())

    def collate(self, examples):
        batch = super().collate(examples)
        return MarkBatch(x=batch.x, y=batch.y, counts={"marks": len(examples)}, tokens=batch.tokens)


class Both(Letters):
    turns = {"plain": 2, "marked": 1}

    def by_turn(self):
        return {"plain": Plain(), "marked": Marked()}


class TwoHeads(System):
    def __init__(self, config):
        width = config.width
        net = nn.ModuleDict({"trunk": nn.Linear(5, width), "plain": nn.Linear(width, 1), "marked": nn.Linear(width, 1)})
        net.config = config
        super().__init__(net, Both())

    def forward(self, batch, carry=None):
        own, other, count = ("marked", "plain", "marks") if isinstance(batch, MarkBatch) else ("plain", "marked", "rows")
        hidden = torch.tanh(self.net["trunk"](batch.x))
        out = self.net[own](hidden)[:, 0]
        return Step({"square": Term(((out - batch.y) ** 2).sum() + self.net[other](hidden[:0]).sum(), count)},
                    {"target": (batch.y.sum(), len(out))})

    def measured(self):
        return [f"{task}/{name}" for task in self.objective.turns for name in ("loss", "square", "target")]


FAMILY = Family(name="reader", card=CARD, config=Config, sizes={"base": {}}, pretraining=Task("", Config, lambda c, s, _: TwoHeads(c)))


@pytest.fixture(autouse=True)
def reader():
    with known(FAMILY):
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name, count in (("texts", 40), ("more", 30), ("marks", 26), ("held", 9), ("held-marks", 11)):
        rows = [{"text": "abcdefgh"[i % 3: 3 + i % 6] * (1 + i % 4), "label": i % 2} for i in range(count)]
        (root / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        reading = Reading(label_field="label") if name.endswith("marks") else Reading()
        pack([root / f"{name}.jsonl"], root / name, PackSettings(reading), workers=Workers(1), console=Console(quiet=True))
    return SimpleNamespace(root=root, train=sources(root), held=[root / "held", root / "held-marks"])


def sources(root):
    return [(root / "texts", 3.0), (root / "marks", 1.0), (root / "more", 1.0)]


def made(updates=6, **more):
    return letters(max_updates=updates, log=LogSettings(every=3, tensorboard=False), **({
        "evaluate": EvaluateSettings(every=3), "checkpoint": CheckpointSettings(every=2, keep_last=9)} | more))


def rows(out, split="train"):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in Run(out).metrics(split)]


def as_a_rank(root: Path) -> None:
    data = SimpleNamespace(train=sources(root), held=[root / "held", root / "held-marks"])
    with known(FAMILY):
        go(made(devices=2), data, root / "two")
    if dist.rank() == 0:
        (root / "rows.json").write_text(json.dumps([*rows(root / "two"), *rows(root / "two", "eval")]))


@pytest.fixture(scope="module")
def whole(data):
    with known(FAMILY):
        go(made(), data, data.root / "whole")
    return data.root / "whole"


def test_each_task_is_measured_on_the_held_out_data_that_is_for_it(whole):
    for row in rows(whole, "eval"):
        assert row["marked/target"] == pytest.approx(5 / 11) and row["plain/target"] != row["marked/target"]
        assert row["loss"] == pytest.approx((2 * row["plain/square"] + row["marked/square"]) / 3)
    assert [entry["source"].rsplit("/", 1)[1] for entry in Run(whole).starts()[0]["eval_data"]] == ["held", "held-marks"]


def test_a_run_that_was_stopped_goes_on_bit_for_bit_in_every_data_set(data, whole, tmp_path):
    go(made(), data, tmp_path / "run", resume=str(whole / "checkpoints" / checkpoint.name_of(4)))
    assert rows(tmp_path / "run") == rows(whole)[-1:]
    found, expected = (torch.load(out / "export" / "net.pt") for out in (tmp_path / "run", whole))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_other_data_or_shares_are_refused(data, whole, tmp_path):
    other = SimpleNamespace(train=[(data.train[0][0], 1.0), *data.train[1:]], held=data.held)
    with pytest.raises(UserError, match=r"plain read 75\.0% of data set 0, 25\.0% of data set 2; marked read 100\.0% of"):
        go(made(), other, tmp_path / "run", resume=str(whole / "checkpoints" / checkpoint.name_of(4)))
    alone = SimpleNamespace(train=data.train[:1], held=data.held)
    with pytest.raises(UserError, match="the task marked can read none of the data sets"):
        go(made(), alone, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_held_out_data_that_lacks_a_task_is_told(data, tmp_path):
    told: list[str] = []
    said = Console(quiet=True)
    said.say = told.append
    some = SimpleNamespace(train=data.train, held=data.held[0])
    go(made(), some, tmp_path / "run", dry_run=True, console=said)
    assert any("none of the held-out data is for marked, so the evaluations say nothing about it" in line for line in told)
    assert any(line.startswith("evaluation: 9 of 9 held-out samples every") for line in told)
    with pytest.raises(UserError, match=r"evaluate\.monitor is 'marked/loss', which the evaluations of reader do not measure"):
        go(made(evaluate=EvaluateSettings(every=3, monitor="marked/loss")), some, tmp_path / "run")
    go(made(evaluate=EvaluateSettings(every=3, monitor="marked/loss")), data, tmp_path / "run", dry_run=True)
    go(made(), data, tmp_path / "run", dry_run=True, console=said)
    assert any("9 of 9 held-out samples of" in line and "and 11 of 11 held-out samples of" in line for line in told)
    with pytest.raises(UserError, match="is the training data"):
        go(made(), SimpleNamespace(train=data.train, held=[data.held[0], data.train[1][0]]), tmp_path / "run")


def test_an_update_is_made_again_with_its_own_samples(data, whole):
    """The second update is the one with marks."""
    entry = lambda _: FAMILY  # noqa: E731
    with patch("polymodal.pipelines.inspection.replay.family", entry), patch("polymodal.pipelines.model.frontdoor.family", entry):
        found = replay(Past(Run(whole), 2), console=Console(quiet=True))
    assert found["verdict"] == "bitwise" and len(found["samples"]) == 8
    assert all(40 <= entry["sample"] < 66 for entry in found["samples"]), "data set 1 of 40, 26 and 30 samples"


@pytest.mark.slow
def test_two_ranks_make_the_updates_of_one(data):
    with known(FAMILY):
        go(made(model={"batch_norm": False}), data, data.root / "one")
    processes.together(processes.ranks(2, as_a_rank, data.root))
    found, expected = json.loads((data.root / "rows.json").read_text()), [*rows(data.root / "one"), *rows(data.root / "one", "eval")]
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys() and all(a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-6) for name in b if name != "split")
