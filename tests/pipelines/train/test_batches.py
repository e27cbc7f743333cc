"""Runs that go on with another batch: what they read, log, continue and replay, also on two ranks (this file is one of them)."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import processes
import pytest
import torch
from contract.letters import CARD, Config, Reader, go, known, letters
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.base.ramp import Level, Ramp
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.inspection.compare import compare
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.pipelines.run import checkpoint
from polymodal.pipelines.run.directory import Run
from polymodal.pipelines.run.recipe import CheckpointSettings, DataSettings, EarlierBatch, LogSettings
from polymodal.pipelines.run.schedule import ScheduleSettings
from polymodal.shared.errors import UserError
from polymodal.shared.family import Family, Task
from polymodal.shared.system import Step, Term

TIMES = ("samples_per_s", "tokens_per_s", "step_s", "data_wait_s", "save_s", "elapsed_s", "seconds")
SIZES = [8] * 3 + [12] * 2 + [4] * 5
"""Of the updates of a run that changes its batch twice, after updates 3 and 5; 68 samples of 64."""
READ: list[int] = []
EVEN = ScheduleSettings("constant")


class Plain(Reader):
    """Without a memory, which would differ between micro-batches. It keeps what it trained on."""

    def forward(self, batch, carry=None):
        if self.training:
            READ.extend(batch.sample_ids)
        return Step({"square": Term(((self.net(batch.x)[:, 0] - batch.y) ** 2).sum(), "rows")})


FAMILY = Family(name="reader", card=CARD, config=Config, sizes={"base": {}}, pretraining=Task("", Config, lambda c, s, _: Plain(c)))


@pytest.fixture(autouse=True)
def reader():
    READ.clear()
    with known(FAMILY):
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("batches")
    for name, count in (("train", 64), ("held", 9)):
        (root / f"{name}.txt").write_text("\n".join("abcdefgh"[i % 3: 3 + i % 6] * (1 + i % 4) for i in range(count)))
        pack([root / f"{name}.txt"], root / name, PackSettings(Reading(split="line")), workers=Workers(1), console=Console(quiet=True))
    return SimpleNamespace(root=root, train=root / "train", held=root / "held")


def made(batch, updates=10, **more):
    settings = {"global_batch": batch, "lanes": 4, "window": 16, "micro_batch": 2}
    return letters(data=DataSettings(**(settings | more.pop("data", {}))), max_updates=updates, model={"linear": True},
                   log=LogSettings(every=1, tensorboard=False), **({"checkpoint": CheckpointSettings(every=1, keep_last=20)} | more))


def changed(data, out, **more):
    """The run of `SIZES`."""
    for batch, until in ((8, 3), (12, 5), (4, 10)):
        go(made(batch, until, **more), data, out)
    return out


def rows(out, split="train"):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in Run(out).metrics(split)]


# --- the table


@pytest.mark.parametrize("first", [Ramp(8), Ramp(24, 4, 80)])
def test_the_sizes_are_those_of_counting(first):
    ramp = Ramp(12, 6, 200, since=9, earlier=Ramp(5, since=4, earlier=first))
    sizes, read = [], 0
    for update in range(60):
        assert ramp.before(update) == read
        sizes.append(first.batch(update) if update < 4 else 5 if update < 9 else 6 * (1 + min(1, read // 200)))
        assert ramp.batch(update) == sizes[-1] and {ramp.update_at(read + i) for i in range(sizes[-1])} == {update}
        read += sizes[-1]
    assert sizes[-1] == 12 and str(Ramp(64, since=100, earlier=Ramp(32))) == "32 and from update 101 on 64"
    assert Ramp(6, since=2, earlier=Ramp(3)).levels == (Level(0, 0, 3), Level(2, 6, 6))


def test_an_impossible_history_is_refused():
    for earlier, message in (((EarlierBatch(5, 8), EarlierBatch(5, 4)), r"\[5, 5\], expected each to be later"),
                             ((EarlierBatch(0, 8),), r"\[0\], expected each to be later"),
                             ((EarlierBatch(5, 0),), "global_batch of 0"), ((EarlierBatch(5, 8, 3, 9),), "ramp_start is 3")):
        with pytest.raises(UserError, match=message):
            DataSettings(earlier=earlier)


# --- runs


def test_every_sample_is_read_once_in_an_epoch_over_two_changes(data, tmp_path):
    out = changed(data, tmp_path / "run")
    found = rows(out)
    assert [row["batch"] for row in found] == SIZES and [row["samples"] for row in found] == list(itertools.accumulate(SIZES))
    assert sorted(READ[:64]) == list(range(64)) and len(READ) == sum(SIZES)
    kept = Run(out).recipe().data
    assert (kept.global_batch, kept.earlier) == (4, (EarlierBatch(3, 8), EarlierBatch(5, 12)))
    assert [len(start["recipe"]["data"]["earlier"]) for start in Run(out).starts()] == [0, 1, 2], "each start says what held for it"
    assert str(kept.ramp) == "8 and from update 4 on 12 and from update 6 on 4"
    go(made(4), data, tmp_path / "even")
    assert any("8 and from update 4 on 12" in line for line in compare([out, tmp_path / "even"], tmp_path / "c.html")["notes"])


def test_its_recipe_makes_the_whole_run_again_and_a_killed_one_goes_on(data, tmp_path):
    out = changed(data, tmp_path / "run", schedule=EVEN)
    whole = Run(out).recipe()
    go(whole, data, tmp_path / "again")
    assert rows(tmp_path / "again") == rows(out)
    for update in (2, 3, 4, 5, 8):  # with the batch alone, as its user gives it, and with the history
        saved = out / "checkpoints" / checkpoint.name_of(update)
        for number, asked in enumerate([whole] if update < 6 else [whole, made(4, schedule=EVEN)]):
            go(asked, data, tmp_path / f"{update}-{number}", resume=str(saved))
            assert rows(tmp_path / f"{update}-{number}") == rows(out)[update:]
            a, b = (torch.load(run / "export" / "net.pt") for run in (tmp_path / f"{update}-{number}", out))
            assert all(torch.equal(a[name], b[name]) for name in b)


def test_a_damaged_checkpoint_changes_nothing(data, tmp_path):
    """The one before it has the beginning of the same history."""
    out = changed(data, tmp_path / "run", schedule=EVEN)
    expected = rows(out)
    for update in (3, 4, 5, 6, 7, 8, 9, 10):
        (out / "checkpoints" / checkpoint.name_of(update) / "manifest.json").write_text("{}")
    go(made(4, schedule=EVEN), data, out)
    assert rows(out) == expected


def test_what_a_start_says(data, tmp_path):
    go(made(8, 5), data, tmp_path / "run")
    said = go(made(4, 10), data, tmp_path / "run", dry_run=True)["plan"]
    assert ("note: updates had 8 samples, and have 4 from update 6 on; the schedule goes by samples: max_updates=15 reads the 80 that the "
            "run would have read") in said
    assert "batch: 8 and from update 6 on 4 samples" in said
    assert not any("updates had" in line for line in go(made(8, 10), data, tmp_path / "run", dry_run=True)["plan"])
    wrong = made(4, data={"earlier": (EarlierBatch(2, 4),)})
    with pytest.raises(UserError, match=r"data.earlier says 4 and from update 3 on 4 samples .* the run had 8: leave it out"):
        go(wrong, data, tmp_path / "run")
    go(replace(wrong, max_updates=3), data, tmp_path / "planned")  # of a new run it is a plan
    assert [row["batch"] for row in rows(tmp_path / "planned")] == [4, 4, 4]


# --- what cannot change


def test_what_reads_in_sequence_keeps_its_batch(data, tmp_path):
    class Lanes(type(Plain(Config()).objective)):
        sequential = True

    class Sequence(Plain):
        def __init__(self, config):
            super().__init__(config)
            self.objective = Lanes()

    with known(replace(FAMILY, pretraining=Task("", Config, lambda c, s, _: Sequence(c)))):
        go(made(8, 3), data, tmp_path / "run")
        with pytest.raises(UserError, match=r"its batch cannot change from 8 samples: set data.global_batch=8 as the run began"):
            go(made(4), data, tmp_path / "run")


# --- two ranks


def as_a_rank(root: Path) -> None:
    with known(FAMILY):
        changed(SimpleNamespace(train=root / "train", held=root / "held"), root / "two", devices=2)


@pytest.mark.slow
def test_two_ranks_change_as_one(data, tmp_path):
    processes.together(processes.ranks(2, as_a_rank, data.root))
    one = rows(changed(data, tmp_path / "one"))
    for a, b in zip(rows(data.root / "two"), one, strict=True):
        assert a.keys() == b.keys() and all(a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-6) for name in b if name != "split")
    assert json.dumps(Run(data.root / "two").recipe().to_dict()["data"]) == json.dumps(Run(tmp_path / "one").recipe().to_dict()["data"])
