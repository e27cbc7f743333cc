"""Tasks that take turns: who has which update, what is logged, measured and continued, also on two ranks (this file is one of them)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import processes
import pytest
import torch
from contract.letters import CARD, Config, LetterBatch, Letters, go, known, letters
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.data.account import check_order, order_state, plan_lines
from polymodal.pipelines.data.dataset import DataSet
from polymodal.pipelines.data.layout import BatchLayout
from polymodal.pipelines.data.stream import Stream
from polymodal.pipelines.data.turns import dealt
from polymodal.pipelines.inspection.past import lines, show
from polymodal.pipelines.inspection.report import report
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.pipelines.run import checkpoint
from polymodal.pipelines.run.directory import Run
from polymodal.pipelines.run.recipe import CheckpointSettings, EvaluateSettings, LogSettings
from polymodal.pipelines.train.meter import losses
from polymodal.shared import dist
from polymodal.shared.errors import UserError
from polymodal.shared.family import Family, Task
from polymodal.shared.system import Preview, Step, System, Term
from torch import nn

TIMES = ("samples_per_s", "tokens_per_s", "step_s", "data_wait_s", "save_s", "elapsed_s", "seconds")
CYCLE = ["sum", "sign", "sum"]


@dataclass(kw_only=True)
class SignBatch(LetterBatch):
    pass


class Signs(Letters):
    """The same letters, and whether the target is positive: other counts, another batch."""

    def collate(self, examples):
        batch = super().collate(examples)
        return SignBatch(x=batch.x, y=(batch.y > 0).float(), counts={"signs": len(examples)}, tokens=batch.tokens)


class Both(Letters):
    turns = {"sum": 2, "sign": 1}

    def by_turn(self):
        return {"sum": Letters(), "sign": Signs()}

    def example(self, sample, rng):
        raise AssertionError("nobody reads by the objective itself")


class TwoHeads(System):
    """One trunk; each task has a head, and runs the other's on no rows."""

    def __init__(self, config):
        net = nn.ModuleDict({"trunk": nn.Linear(5, config.width), "sum": nn.Linear(config.width, 1), "sign": nn.Linear(config.width, 1)})
        net.config = config
        super().__init__(net, Both())

    def forward(self, batch, carry=None):
        own, other, count = ("sign", "sum", "signs") if isinstance(batch, SignBatch) else ("sum", "sign", "rows")
        hidden = torch.tanh(self.net["trunk"](batch.x))
        out = self.net[own](hidden)[:, 0]
        total = ((out - batch.y) ** 2).sum() + self.net[other](hidden[:0]).sum()
        return Step({"square": Term(total, count)}, {"mean": (out.sum(), len(out))})

    def derive(self, means):
        return {"root": means["square"] ** 0.5} if "square" in means else {}

    def preview(self, batch, limit=4):
        return [Preview((("letters", str(len(batch.x))),))] if limit else []


FAMILY = Family(name="reader", card=CARD, config=Config, sizes={"base": {}}, pretraining=Task("", Config, lambda c, s, _: TwoHeads(c)))


@pytest.fixture(autouse=True)
def reader():
    with known(FAMILY):
        yield


def made(every, updates=6, **more):
    return letters(max_updates=updates, log=LogSettings(every=every, tensorboard=False), **({
        "evaluate": EvaluateSettings(every=3), "checkpoint": CheckpointSettings(every=2, keep_last=9)} | more))


def rows(out, split="train"):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in Run(out).metrics(split)]


def as_a_rank(root: Path) -> None:
    with known(FAMILY):
        go(made(3, devices=2), SimpleNamespace(train=root / "train", held=root / "held"), root / "two")
    if dist.rank() == 0:
        (root / "rows.json").write_text(json.dumps([*rows(root / "two"), *rows(root / "two", "eval")]))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("turns")
    for name, count in (("train", 64), ("held", 9)):
        (root / f"{name}.txt").write_text("\n".join("abcdefgh"[i % 3: 3 + i % 6] * (1 + i % 4) for i in range(count)))
        pack([root / f"{name}.txt"], root / name, PackSettings(Reading(split="line")), workers=Workers(1), console=Console(quiet=True))
    return SimpleNamespace(root=root, train=root / "train", held=root / "held")


@pytest.fixture(scope="module")
def whole(data):
    """A run of two cycles, with a line for each."""
    with known(FAMILY):
        go(made(3), data, data.root / "whole")
    return data.root / "whole"


@pytest.mark.parametrize(("turns", "cycle"), [
    ({"a": 2, "b": 2, "c": 1, "d": 1}, "abcdab"), ({"a": 1}, "a"), ({"a": 1, "b": 1}, "ab"), ({"a": 3, "b": 1}, "aaba"),
    ({"c": 1, "a": 5}, "aacaaa"), ({}, "")])
def test_a_cycle_has_each_task_as_often_as_it_says_spread_evenly(turns, cycle):
    assert "".join(dealt(turns)) == cycle and {task: cycle.count(task) for task in turns} == turns


@pytest.mark.parametrize("turns", [{"a": 0, "b": 1}, {"a": -1}, {"a": 0.5}])
def test_turns_are_whole_numbers(turns):
    with pytest.raises(AssertionError, match="positive whole numbers"):
        dealt(turns)


@pytest.mark.parametrize(("world", "micro"), [(1, None), (1, 2), (2, 2), (4, 1)])
def test_an_update_has_one_task_and_the_samples_that_it_always_had(data, world, micro):
    """On all ranks and in all micro-batches, from whatever update a run goes on."""
    packed = DataSet.open(data.train)
    for rank in range(world):
        layout = BatchLayout(8, micro, rank, world)
        stream, plain = (Stream(packed, o, layout, lanes=4, window=16) for o in (Both(), Letters()))
        for update in (0, 1, 2, 3, 7, 100):
            for part in range(layout.accumulate):
                batch, other = (s[update * layout.accumulate + part] for s in (stream, plain))
                assert batch.task == CYCLE[update % 3] and isinstance(batch, SignBatch) == (batch.task == "sign")
                assert batch.sample_ids == other.sample_ids and other.task == "" and torch.equal(batch.x, other.x)
                place = layout.positions(update, part)[0]
                assert isinstance(stream.batch_of_one(place), SignBatch) == (batch.task == "sign")


def test_losses_of_tasks_are_a_mean_by_shares():
    weights = {"a/x": 1.0, "a/y": 0.5, "b/x": 1.0}
    means = {"a/x": 2.0, "a/y": 4.0, "b/x": 1.0, "a/z": 9.0}
    assert losses(means, weights, {"a": 3, "b": 1, "c": 7}) == {"loss": (3 * 4.0 + 1.0) / 4, "a/loss": 4.0, "b/loss": 1.0}
    assert losses(means, {"b/x": 1.0}, {"a": 3, "b": 1}) == {"loss": 1.0, "b/loss": 1.0}
    assert losses(means, {}, {"a": 1}) == {} == losses({}, {}, {})


def test_the_log_keeps_tasks_apart(data, whole, tmp_path):
    go(made(1), data, tmp_path / "single")
    single, together = rows(tmp_path / "single"), rows(whole)
    for row, task in zip(single, CYCLE * 2, strict=True):
        assert {name for name in row if "/" in name} == {f"{task}/{name}" for name in ("loss", "square", "mean", "root")}
        assert row["loss"] == row[f"{task}/loss"] == row[f"{task}/square"] == pytest.approx(row[f"{task}/root"] ** 2)
    for number, row in enumerate(together):
        first, second, third = (r["loss"] for r in single[3 * number: 3 * number + 3])
        assert row["sum/loss"] == pytest.approx((first + third) / 2) and row["sign/loss"] == pytest.approx(second)
        assert row["loss"] == pytest.approx((2 * row["sum/loss"] + row["sign/loss"]) / 3)
        assert row["grad_norm"] > 0 and row["samples"] == 24 * (number + 1)


def test_held_out_data_is_read_once_for_each_task(whole):
    found = rows(whole, "eval")
    assert [row["update"] for row in found] == [3, 6]
    for row in found:
        assert row["loss"] == pytest.approx((2 * row["sum/square"] + row["sign/square"]) / 3)
        assert row["sign/root"] == pytest.approx(row["sign/square"] ** 0.5) and "root" not in row
    shown = [sample["rows"] for sample in Run(whole).samples() if sample["update"] == 6]
    assert [row[0] for row in shown] == [["task", "sum"], ["task", "sign"]] and all(row[1][0] == "letters" for row in shown)


def test_a_run_goes_on_with_the_task_that_is_next(data, whole, tmp_path):
    """From within a cycle, and with the numbers of an unfinished line."""
    again = go(made(3), data, tmp_path / "run", resume=str(whole / "checkpoints" / checkpoint.name_of(4)))
    assert again["updates"] == 6 and rows(tmp_path / "run") == rows(whole)[-1:]
    found, expected = (torch.load(out / "export" / "net.pt") for out in (tmp_path / "run", whole))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_other_turns_are_another_order(data):
    stream = Stream(DataSet.open(data.train), Both(), BatchLayout(8))
    other = Stream(DataSet.open(data.train), Letters(), BatchLayout(8))
    saved = order_state(stream)
    assert saved["turns"] == CYCLE and "turns" not in order_state(other)
    check_order(saved, order_state(stream))
    with pytest.raises(UserError, match="had the tasks sum sign sum and now have none"):
        check_order(saved, order_state(other))


def test_people_are_told(data, whole, tmp_path):
    stream = Stream(DataSet.open(data.train), Both(), BatchLayout(8))
    assert "tasks: one for each update, in turns: sum 66.7%, sign 33.3%; in 3 updates sum, sign, sum, and again" in plan_lines(stream)
    said = Console(quiet=True)
    told: list[str] = []
    said.say = told.append
    go(made(4), data, tmp_path / "run", dry_run=True, console=said)
    assert any("log.every is 4 and the tasks take turns in 3 updates" in line for line in told)
    facts = show(stream, 1).facts
    assert facts["micro_batches"][0]["task"] == "sign" and any("task sign, 8 signs" in line for line in lines(facts, "update 2"))
    report([whole], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    for title in ("loss<", "loss by task, training", "loss by task, held-out", "mean by task, held-out"):
        assert f"whole: {title}" in page
    assert "square by task" not in page, "a single term is the loss itself"


@pytest.mark.slow
def test_two_ranks_make_the_updates_of_one(data, whole):
    """With a head that has no rows in an update, and different counts in each."""
    processes.together(processes.ranks(2, as_a_rank, data.root))
    found, expected = json.loads((data.root / "rows.json").read_text()), [*rows(whole), *rows(whole, "eval")]
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys() and all(a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-6) for name in b if name != "split")
