"""A batch that grows: what the stream reads, what runs do, log and continue, also on two ranks (this file is one of them)."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import processes
import pytest
import torch
from contract.letters import CARD, Config, Letters, Reader, go, known, letters
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.base.ramp import Ramp
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.data.account import check_order, describe_update, order_state, plan_lines
from polymodal.pipelines.data.dataset import DataSet
from polymodal.pipelines.data.layout import BatchLayout
from polymodal.pipelines.data.stream import Stream
from polymodal.pipelines.inspection.past import show
from polymodal.pipelines.inspection.report import report
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.pipelines.run import checkpoint
from polymodal.pipelines.run.directory import Run
from polymodal.pipelines.run.recipe import CheckpointSettings, DataSettings, LogSettings
from polymodal.pipelines.run.schedule import ScheduleSettings, factor
from polymodal.shared import dist
from polymodal.shared.errors import UserError
from polymodal.shared.family import Family, Task
from polymodal.shared.system import Step, Term

TIMES = ("samples_per_s", "tokens_per_s", "step_s", "data_wait_s", "save_s", "elapsed_s", "seconds")
RAMP = Ramp(24, 4, 80)
SIZES = [4, 4, 4, 4, 8, 8, 12, 12, 16, 20, 24, 24]
"""Of the first updates: five steps, one every 16 samples."""


class Signs(Letters):
    """Another task with the same examples."""


class Turning(Letters):
    turns = {"a": 2, "b": 1}

    def by_turn(self):
        return {"a": Letters(), "b": Signs()}


class Plain(Reader):
    """Without a memory, which would differ between micro-batches."""

    def forward(self, batch, carry=None):
        return Step({"square": Term(((self.net(batch.x)[:, 0] - batch.y) ** 2).sum(), "rows")})


FAMILY = Family(name="reader", card=CARD, config=Config, sizes={"base": {}}, pretraining=Task("", Config, lambda c, s, _: Plain(c)))


@pytest.fixture(autouse=True)
def reader():
    with known(FAMILY):
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("ramp")
    for name, count in (("train", 64), ("held", 9)):
        (root / f"{name}.txt").write_text("\n".join("abcdefgh"[i % 3: 3 + i % 6] * (1 + i % 4) for i in range(count)))
        pack([root / f"{name}.txt"], root / name, PackSettings(Reading(split="line")), workers=Workers(1), console=Console(quiet=True))
    return SimpleNamespace(root=root, train=root / "train", held=root / "held")


def made(**more):
    settings = {"global_batch": 24, "ramp_start": 4, "ramp_samples": 80, "lanes": 4, "window": 16, "micro_batch": 3}
    return letters(data=DataSettings(**(settings | more.pop("data", {}))), max_updates=12, model={"linear": True},
                   log=LogSettings(every=1, tensorboard=False), **({"checkpoint": CheckpointSettings(every=1, keep_last=20)} | more))


def rows(out, split="train"):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in Run(out).metrics(split)]


@pytest.fixture(scope="module")
def whole(data):
    with known(FAMILY):
        go(made(), data, data.root / "whole")
    return data.root / "whole"


# --- what is read


def stream(data, rank=0, world=1, micro=3, objective=None, **more):
    return Stream(DataSet.open(data.train), objective or Letters(), BatchLayout(24, micro, rank, world, ramp=RAMP, **more), lanes=4,
                  window=16)


@pytest.mark.parametrize(("world", "micro"), [(1, None), (1, 3), (2, 6), (2, 4), (4, 1), (4, 2), (4, None)])
def test_ranks_read_what_one_reads_from_any_update_on(data, world, micro):
    """In the order of the positions and with the same draws, tasks in turns or not."""
    one = stream(data, micro=None)
    for objective in (Letters(), Turning()):
        ranks = [stream(data, rank, world, micro, objective) for rank in range(world)]
        for start in (0, 3, 5, 11):
            loaders = [rank.loader(start) for rank in ranks]
            for update in range(start, 12):
                shares = [[next(loader) for _ in range(ranks[0].layout.parts(update))] for loader in loaders]
                ids = [[i for batch in share for i in batch.sample_ids] for share in shares]
                expected = one[update]
                assert expected.samples == SIZES[update] and list(itertools.chain(*zip(*ids, strict=True))) == expected.sample_ids
                drawn = torch.stack([torch.cat([batch.x for batch in share]) for share in shares], dim=1).flatten(0, 1)
                assert torch.equal(drawn, expected.x)
                tasks = {batch.task for share in shares for batch in share}
                assert tasks == {"aba"[update % 3] if objective.turns else ""}


def test_the_samples_of_an_update_are_told(data):
    two = stream(data, micro=6, replays=2)
    for update, size in enumerate(SIZES):
        planned = describe_update(two, update)
        assert [p.position for p in planned] == list(range(sum(SIZES[:update]), sum(SIZES[:update]) + size))
        facts = show(two, update).facts
        assert [m["rank"] for m in facts["micro_batches"]] == ([0, 1] if size <= 12 else [0, 0, 1, 1])
        for micro in facts["micro_batches"]:
            assert micro["samples"] == [p.sample_id for p in planned if (p.rank, p.part) == (micro["rank"], micro["part"])]
    assert stream(data).epoch(4) == 16 / 64
    said = plan_lines(stream(data))
    assert "ramp: 4 samples in each of the first 4 updates, then more in steps of 4; all 24 from update 11 on, behind 92 samples" in said
    assert "epoch: 64 samples; the first one ends in update 9" in said


def test_another_ramp_is_the_same_order(data):
    saved, plain = order_state(stream(data)), order_state(Stream(DataSet.open(data.train), Letters(), BatchLayout(24), lanes=4, window=16))
    check_order(saved, order_state(stream(data, 1, 2, 4)))
    check_order({**saved, "ramp_start": 4, "ramp_samples": 80}, plain)  # as checkpoints had it before


def test_what_reads_in_sequence_has_one_size(data):
    objective = Letters()
    objective.sequential = True
    with pytest.raises(UserError, match=r"its batch cannot grow from 4 samples: leave data.ramp_start and data.ramp_samples out"):
        stream(data, objective=objective)


# --- the schedule


@pytest.mark.parametrize("settings", [ScheduleSettings(warmup=6, final=0.1, until=20), ScheduleSettings("linear"),
                                      ScheduleSettings("wsd", decay=9), ScheduleSettings("inverse_sqrt", warmup=5)])
def test_the_rate_moves_with_the_samples(settings):
    """An update with six times the samples goes as far as six: the rate is that of a run that makes an update of each 4 samples."""
    ramp, total, each = Ramp(24, 4, 80), 25, 4
    fine = ScheduleSettings(settings.name, warmup=ramp.before(settings.warmup) // each, final=settings.final,
                            until=settings.until and ramp.before(settings.until) // each,
                            decay=(ramp.before(total) - ramp.before(total - settings.decay)) // each)
    for update in range(total):
        # at the end of the update in the warmup and behind the root, at its beginning elsewhere
        ends = update < settings.warmup or settings.name == "inverse_sqrt"
        at = ramp.before(update + 1) // each - 1 if ends else ramp.before(update) // each
        assert factor(settings, update, total, ramp) == pytest.approx(factor(fine, at, ramp.before(total) // each), rel=1e-12)
    assert [factor(settings, u, total, Ramp(24)) for u in range(total)] == [factor(settings, u, total) for u in range(total)]


# --- runs


def test_the_log_says_how_large_the_batch_was(whole, tmp_path):
    found = rows(whole)
    assert [row["batch"] for row in found] == SIZES and [row["samples"] for row in found] == list(itertools.accumulate(SIZES))
    report([whole], tmp_path / "report.html")
    assert "samples of an update" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("update", [1, 4, 9, 11])
def test_a_run_goes_on_from_any_update(data, whole, tmp_path, update):
    go(made(), data, tmp_path / "run", resume=str(whole / "checkpoints" / checkpoint.name_of(update)))
    assert rows(tmp_path / "run") == rows(whole)[update:]
    found, expected = (torch.load(out / "export" / "net.pt") for out in (tmp_path / "run", whole))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_micro_batches_change_nothing(data, whole, tmp_path):
    for micro in (None, 8, 1):
        go(made(data={"micro_batch": micro}), data, tmp_path / str(micro))
        for a, b in zip(rows(tmp_path / str(micro)), rows(whole), strict=True):
            assert a.pop("split") == b.pop("split") and a == pytest.approx(b, rel=1e-5, abs=1e-6)


def test_a_run_that_goes_on_from_another_begins_its_own_ramp(data, whole, tmp_path):
    go(made(data={"ramp_samples": 16}), data, tmp_path / "run", continue_from=whole)
    assert [row["batch"] for row in rows(tmp_path / "run")] == [4, 8, 16] + [24] * 9
    said = go(made(), data, tmp_path / "run", dry_run=True)["plan"]  # all 80 were read: the new ramp is at its end, too
    assert "batch: 4 to 24 and from update 13 on 4 to 24 samples" in said and not any("updates had" in line for line in said)


def test_an_event_names_the_samples_of_the_update(data, tmp_path):
    """The events of the updates that a poisoned sample is in have their positions."""
    (tmp_path / "z.txt").write_text((data.root / "train.txt").read_text().replace("\n", "z\n", 1))
    pack([tmp_path / "z.txt"], tmp_path / "z", PackSettings(Reading(split="line")), workers=Workers(1), console=Console(quiet=True))
    poisoned = SimpleNamespace(train=tmp_path / "z", held=data.held)
    bad = next(sample.index for sample in DataSet.open(poisoned.train).read_many(range(64)) if "z" in sample.text())
    go(made(health={"policy": "skip"}), poisoned, tmp_path / "run", poison=float("nan"))
    for event in Run(tmp_path / "run").events():
        first, last = event["left_out"]
        assert first == last and event["positions"] == [sum(SIZES[:first - 1]), sum(SIZES[:first])]
        assert bad in event["samples"]
    assert Run(tmp_path / "run").events(), "nothing was poisoned"


# --- two ranks


def as_a_rank(root: Path) -> None:
    with known(FAMILY):
        go(made(devices=2, data={"micro_batch": 4}), SimpleNamespace(train=root / "train", held=root / "held"), root / "two")
    if dist.rank() == 0:
        (root / "rows.json").write_text(json.dumps(rows(root / "two")))


@pytest.mark.slow
def test_two_ranks_make_the_updates_of_one_and_one_goes_on(data, whole, tmp_path):
    processes.together(processes.ranks(2, as_a_rank, data.root))
    found = json.loads((data.root / "rows.json").read_text())
    go(made(), data, tmp_path / "run", resume=str(data.root / "two" / "checkpoints" / checkpoint.name_of(7)))
    for lines, expected in ((found, rows(whole)), (rows(tmp_path / "run"), rows(whole)[7:])):
        for a, b in zip(lines, expected, strict=True):
            assert a.keys() == b.keys() and all(a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-6) for name in b if name != "split")
