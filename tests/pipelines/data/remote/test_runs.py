"""Training on a data set behind http."""

import sys

import numpy as np
import processes
import pytest
from over_http import Server
from polymodal.pipelines import cli
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.data.remote.fetch import ReadCosts
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.pipelines.run.directory import Run
from polymodal.shared.tokenizer import Tokenizer

OVERRIDES = ["model.n_embd=16", "model.n_layer=1", "model.n_head=2", "model.n_positions=32", "data.global_batch=8", "data.window=16",
             "data.lanes=4", "max_updates=8", "log.every=4", "log.tensorboard=false", "precision=32", "accelerator=cpu"]


@pytest.fixture
def texts(tmp_path):
    rng = np.random.default_rng(0)
    lines = [" ".join("".join(rng.choice(list("abcdef"), size=3)) for _ in range(8)) for _ in range(90)]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    Tokenizer.train(lines, "byte-bpe", 300).save(tmp_path / "tok")
    pack([tmp_path / "train.txt"], tmp_path / "texts", PackSettings(Reading(split="line"), shard_bytes=40_000), workers=Workers(1),
         console=Console(quiet=True))
    served = Server(tmp_path / "texts")
    yield served
    served.shutdown()
    served.server_close()


def losses(out):
    return [(row["update"], row["loss"]) for row in Run(out).metrics("train")]


def test_a_run_on_a_bad_line_is_the_run_from_disk(texts, tmp_path, monkeypatch, capsys):
    """Same losses, what it cost in the metrics, and no secret in the run's directory or output."""
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path / "cache"))
    secret = texts.url.replace("http://", "http://user:hunter2@") + "?sig=topsecret"
    arguments = ["pretrain", "gpt2-tiny", "--tokenizer", str(tmp_path / "tok"), *(p for o in OVERRIDES for p in ("--set", o))]
    assert cli.run([*arguments, "--data", str(tmp_path / "texts"), "--out", str(tmp_path / "local")]) == 0
    texts.fault = lambda path, number, start: "500" if number == 1 else "cut 0.7" if number == 2 else ""
    command = [*arguments, "--data", secret, "--out", str(tmp_path / "remote")]
    monkeypatch.setattr(sys, "argv", ["polymodal", *command])
    assert cli.run(command) == 0
    assert losses(tmp_path / "remote") == losses(tmp_path / "local") and len(losses(tmp_path / "local")) == 2
    rows = Run(tmp_path / "remote").metrics("train")
    cost = {name: sum(row[name] for row in rows) for name in ReadCosts.NAMES}  # each may be met by the reader or by reading ahead
    assert cost["fetch_retries"] >= 4 and cost["fetch_bytes"] > 40_000 and cost["cache_hits"] + cost["cache_misses"] >= 4
    assert cost["cache_evictions"] == 0
    assert not set(ReadCosts.NAMES) & set(Run(tmp_path / "local").metrics("train")[0])
    shown = "".join(capsys.readouterr())
    for word in ("hunter2", "topsecret"):
        assert word not in shown
        assert not [p for p in (tmp_path / "remote").rglob("*") if p.is_file() and word.encode() in p.read_bytes()]
    assert "http://***@" in (tmp_path / "remote" / "environment.json").read_text()


@pytest.mark.slow
def test_two_ranks_share_the_cache_and_add_up_what_they_fetched(texts, tmp_path):
    sets = [p for o in [*OVERRIDES, "data.workers=1"] for p in ("--set", o)]
    processes.together(processes.ranks(2, "pretrain", "gpt2-tiny", "--data", texts.url, "--tokenizer", tmp_path / "tok",
                                       "--out", tmp_path / "run", *sets,
                                       env={"POLYMODAL_CACHE": str(tmp_path / "cache"), "POLYMODAL_READ_TIMEOUT": "20"}))
    rows = Run(tmp_path / "run").metrics("train")
    tars = {asked[0] for asked in texts.tars()}
    assert len(texts.tars()) == len(tars) > 1  # every shard came once, to both ranks together
    assert sum(row["fetch_bytes"] for row in rows) >= sum((texts.folder / name).stat().st_size for name in tars)
