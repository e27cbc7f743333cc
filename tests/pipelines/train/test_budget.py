"""A length in time: found by updates that leave nothing behind, kept for life, also on two ranks (this file is one of them)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import processes
import pytest
import torch
from contract.letters import go, known, letters
from polymodal.pipelines import cli
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.base.values import parse_duration
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.pipelines.run import checkpoint
from polymodal.pipelines.run.directory import Run
from polymodal.pipelines.run.optim import OptimSettings
from polymodal.pipelines.run.recipe import CheckpointSettings, LogSettings
from polymodal.pipelines.train import budget
from polymodal.shared.errors import UserError

TIMES = ("samples_per_s", "tokens_per_s", "step_s", "data_wait_s", "save_s", "elapsed_s", "seconds")


@pytest.fixture(autouse=True)
def reader():
    with known():
        yield


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Every look at it finds half a second gone: five updates of 8 samples take as long, so 30 updates take 3 seconds."""
    looks = [0.0]

    def perf_counter():
        looks[0] += 0.5
        return looks[0]

    monkeypatch.setattr(budget, "time", SimpleNamespace(perf_counter=perf_counter))
    return looks


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("budget")
    for name, count in (("train", 64), ("held", 9)):
        (root / f"{name}.txt").write_text("\n".join("abcdefgh"[i % 3: 3 + i % 6] * (1 + i % 4) for i in range(count)))
        pack([root / f"{name}.txt"], root / name, PackSettings(Reading(split="line")), workers=Workers(1), console=Console(quiet=True))
    return SimpleNamespace(root=root, train=root / "train", held=root / "held")


def made(**more):
    return letters(**{"log": LogSettings(every=1, tensorboard=False), "checkpoint": CheckpointSettings(every=6, keep_last=9), **more})


def rows(out, split="train"):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in Run(out).metrics(split)]


def same_weights(a, b):
    one, other = (torch.load(out / "export" / "net.pt") for out in (a, b))
    return all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("more", [{}, {"optim": OptimSettings(lr=0.02, ema_decay=0.9)}, {"optim": OptimSettings("adagrad", lr=0.02)},
                                  {"health": {"policy": "rewind"}}])
def test_the_run_is_that_of_the_number_of_updates(data, tmp_path, more):
    go(made(**more), data, tmp_path / "time", max_time=3.0)
    go(made(**more), data, tmp_path / "number", max_updates=30)
    assert rows(tmp_path / "time") == rows(tmp_path / "number") and len(rows(tmp_path / "time")) == 30
    assert rows(tmp_path / "time", "eval") == rows(tmp_path / "number", "eval") and same_weights(tmp_path / "time", tmp_path / "number")
    kept, start = Run(tmp_path / "time").recipe(), Run(tmp_path / "time").starts()[-1]["recipe"]
    assert (kept.max_time, kept.max_updates) == (3.0, 30) and (start["max_time"], start["max_updates"]) == (3.0, 30)
    names = [c.path.name for c in checkpoint.all_checkpoints(tmp_path / "time" / "checkpoints")]
    assert names == [c.path.name for c in checkpoint.all_checkpoints(tmp_path / "number" / "checkpoints")]


def test_a_resume_keeps_the_number(data, tmp_path, clock):
    go(made(), data, tmp_path / "whole", max_time=3.0)
    looks = clock[0]
    go(made(), data, tmp_path / "run", max_time=3.0, resume=str(tmp_path / "whole" / "checkpoints" / checkpoint.name_of(12)))
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")[12:] and same_weights(tmp_path / "run", tmp_path / "whole")
    assert clock[0] == looks, "it was measured again"
    # another time: by the speed so far
    place = checkpoint.Checkpoint(tmp_path / "whole" / "checkpoints" / checkpoint.name_of(12), 12)
    spent = place.state()["elapsed_s"]
    said = go(made(), data, tmp_path / "longer", max_time=1e3 * spent, resume=str(place.path), dry_run=True)
    assert said["recipe"]["max_updates"] == pytest.approx(12_000, abs=1) and any("at the speed so far" in line for line in said["plan"])
    # the number alone ends the time
    assert go(made(max_time=3.0), data, tmp_path / "number", max_updates=7, dry_run=True)["recipe"]["max_time"] is None


def test_a_run_that_died_before_its_first_checkpoint_is_measured_again(data, tmp_path, clock):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polymodal.pipelines.train.loop.fit", killed)
        with pytest.raises(KeyboardInterrupt):
            go(made(), data, tmp_path / "run", max_time=3.0)
    assert Run(tmp_path / "run").recipe().max_updates == 30 and not checkpoint.all_checkpoints(tmp_path / "run" / "checkpoints")
    looks = clock[0]
    go(made(), data, tmp_path / "run", max_time=3.0)
    assert clock[0] > looks and rows(tmp_path / "run")[-1]["update"] == 30


def test_what_is_said(data, tmp_path, capsys):
    plan = go(made(max_time=5400.0), data, tmp_path / "dry", dry_run=True)["plan"]
    assert any(line.startswith("length: as many updates as fit into 90 min of training") for line in plan)
    assert not any("updates =" in line for line in plan) and not (tmp_path / "dry").exists()
    go(made(), data, tmp_path / "run", max_time=3.0, console=Console())
    said = capsys.readouterr()
    assert "length: 30 updates fit into 3 s of training, at 80 samples/s over 40 samples" in said.out + said.err
    assert " of training, of 3 s; evaluations and checkpoints are not in it" in said.out + said.err


def test_the_options_exclude_each_other(tmp_path, capsys):
    for more in (["--max-updates", "3"], ["--max-tokens", "9"]):
        arguments = ["pretrain", "gpt2-tiny", "--data", str(tmp_path), "--out", str(tmp_path / "run"), "--max-time", "2h", *more]
        assert cli.run(arguments) == 2 and f"{more[0]} and --max-time all say how long the run is" in capsys.readouterr().err
    assert cli.run(["pretrain", "gpt2-tiny", "--data", str(tmp_path), "--out", str(tmp_path / "run"), "--max-time", "soon"]) == 2
    assert "--max-time 'soon' is not a time: expected seconds, or a number such as 30m" in capsys.readouterr().err
    with pytest.raises(UserError, match="max_updates and max_time all say how long the run is"):
        go(made(), SimpleNamespace(train=tmp_path, held=None), tmp_path / "run", max_time=3.0, max_updates=4)
    with pytest.raises(UserError, match="max_time is 0"):
        made(max_time=0.0)


@pytest.mark.parametrize(("text", "seconds"), [("5400", 5400), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1.5d", 129600), ("90S", 90)])
def test_times(text, seconds):
    assert parse_duration(text, "--max-time") == seconds


@pytest.mark.parametrize("text", ["", "h", "30m2h", "1..5h", "-3", "1 week"])
def test_no_times(text):
    with pytest.raises(UserError, match="is not a time"):
        parse_duration(text, "--max-time")


# --- two ranks


def as_a_rank(root: Path) -> None:
    with known():
        go(made(devices=2, model={"batch_norm": False}), SimpleNamespace(train=root / "train", held=root / "held"), root / "two",
           max_time=1.0)


@pytest.mark.slow
def test_two_ranks_agree_on_the_number(data):
    processes.together(processes.ranks(2, as_a_rank, data.root))
    kept = Run(data.root / "two").recipe()
    assert kept.max_updates == rows(data.root / "two")[-1]["update"] and kept.max_time == 1.0
