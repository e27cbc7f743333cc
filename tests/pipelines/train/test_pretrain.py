"""`polymodal pretrain` and `export` as processes: killed, resumed, on two ranks."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import processes
import pytest
import torch
import typer
from polymodal.pipelines import cli
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.base.values import parse_mixture
from polymodal.pipelines.commands import train as commands
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.data.dataset import DataSet
from polymodal.pipelines.model.export import export
from polymodal.pipelines.model.frontdoor import load
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.pipelines.run import checkpoint
from polymodal.pipelines.run.directory import Run, open_run
from polymodal.pipelines.run.recipe import recipe
from polymodal.pipelines.train import loop
from polymodal.pipelines.train.inputs import updates_of
from polymodal.shared.errors import UserError
from polymodal.shared.tokenizer import Tokenizer

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
TIMES = ("samples_per_s", "tokens_per_s", "step_s", "data_wait_s", "save_s", "elapsed_s", "seconds")
OVERRIDES = ["model.n_embd=16", "model.n_layer=1", "model.n_head=2", "model.n_positions=32", "model.resid_pdrop=0.1", "data.global_batch=8",
             "data.window=16", "max_updates=40", "log.every=4", "log.tensorboard=false", "evaluate.every=20", "checkpoint.every=6",
             "precision=32", "accelerator=cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdef"), size=rng.integers(1, 5))) for _ in range(40)]
    lines = [" ".join(rng.choice(words, size=rng.integers(3, 12))) for _ in range(110)]
    (root / "train.txt").write_text("\n".join(lines[:90]))
    (root / "held.txt").write_text("\n".join(lines[90:]))
    Tokenizer.train(lines, "byte-bpe", 300).save(root / "tok")
    for name in ("train", "held"):
        pack([root / f"{name}.txt"], root / name, PackSettings(Reading(split="line")), workers=Workers(1), console=Console(quiet=True))
    return SimpleNamespace(train=str(root / "train"), held=str(root / "held"), tok=str(root / "tok"))


def line(data, out, *more, overrides=OVERRIDES):
    sets = [part for o in overrides for part in ("--set", o)]
    given = {"--data": data.train, "--eval-data": data.held, "--tokenizer": data.tok, "--out": str(out)}
    return ["pretrain", "gpt2-tiny", *(part for pair in given.items() for part in pair), *sets, *more]


def here(data, out, overrides=OVERRIDES, **more):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes: sums must be added in the same order
    try:
        return loop.pretrain(recipe("gpt2-tiny", overrides), data.train, out, eval_data=data.held, tokenizer=data.tok,
                              console=Console(quiet=True), **more)
    finally:
        torch.set_num_threads(threads)


def rows(out, split=None):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in Run(out).metrics(split)]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    here(data, out)
    return out


def _wait_for(condition, process):
    for _ in range(8000):
        if condition() or process.poll() is not None:
            return
        time.sleep(0.02)
    raise AssertionError("it took too long")


def test_killed_at_a_random_update_it_continues_bit_for_bit(data, whole, tmp_path):
    out = tmp_path / "run"
    target = random.randrange(8, 36, 4)
    process = processes.polymodal(*line(data, out))
    _wait_for(lambda: any(row["update"] >= target for row in Run(out).metrics("train")), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = [row["update"] for row in rows(out)]
    here(data, out)
    assert rows(out) == rows(whole), f"killed after update {there[-1:]}"
    for name, tensor in load(out).state_dict().items():
        assert torch.equal(tensor, load(whole).state_dict()[name])


def test_saving_beside_the_training_changes_nothing(data, whole, tmp_path):
    """The same lines, weights, moments and states, to the last bit; `whole` saved beside its updates."""
    assert Run(whole).recipe().checkpoint.asynchronous
    here(data, tmp_path / "run", [*OVERRIDES, "checkpoint.asynchronous=false"])
    assert rows(tmp_path / "run") == rows(whole)
    found, expected = (checkpoint.all_checkpoints(Run(out).checkpoints) for out in (tmp_path / "run", whole))
    assert [c.update for c in found] == [c.update for c in expected] == [36, 40]
    for one, other in zip(found, expected):
        parts = [{k: v for k, v in c.state().items() if k not in ("elapsed_s", "recipe")} for c in (one, other)]
        assert parts[0] == parts[1]
        files = [json.loads((c.path / checkpoint.MANIFEST).read_text())["files"] for c in (one, other)]
        hashes = [{k: v for k, v in named.items() if k.startswith("shard-")} for named in files]
        assert hashes[0] == hashes[1] != {}
    held = [row["save_s"] for row in Run(whole).metrics("train")]
    assert [row["update"] for row, s in zip(Run(whole).metrics("train"), held) if s] == [8, 16, 20, 28, 32, 40]


def test_export_is_what_the_checkpoint_holds(data, whole, tmp_path):
    written = export(whole, tmp_path / "a")
    assert sorted(p.name for p in written.iterdir()) == sorted(p.name for p in (whole / "export").iterdir())
    newest = whole / "checkpoints" / "update-00000040"
    export(newest, tmp_path / "b")
    system = open_run(whole).system()
    for source in (tmp_path / "a", tmp_path / "b", whole):
        state = load(source).state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in system.net.state_dict().items())
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a").eval()
    ids = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "a")(input_ids=ids).logits, theirs(input_ids=ids).logits, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="is not empty"):
        export(whole, tmp_path / "a")
    with pytest.raises(UserError, match="is not a run directory"):
        export(tmp_path, tmp_path / "c")


def test_a_recipe_file_is_a_run_again(data, whole, tmp_path):
    """recipe.yaml of a run, passed back, makes the same run."""
    again = loop.pretrain(recipe(whole / "recipe.yaml"), data.train, tmp_path / "again", tokenizer=data.tok, max_updates=4,
                           console=Console(quiet=True))
    assert again["train"]["update"] == 4 and again["train"]["samples"] == 32


def test_a_length_in_tokens(data, tmp_path, capsys):
    """The run ends with the update that reaches them, and so does the schedule."""
    pack([data.train + ".txt"], tmp_path / "rows", PackSettings(Reading(split="line"), tokenizer=data.tok, block=32), workers=Workers(1))
    stored = DataSet.open(tmp_path / "rows")
    whole = stored.index.schema["tokens"]
    assert whole < 32 * len(stored)  # rows are not full
    settings = [*OVERRIDES, "schedule.name=linear", "schedule.warmup=0", "schedule.final=0", "log.every=1",
                f"data.global_batch={len(stored) // 2}"]
    made = loop.pretrain(recipe("gpt2-tiny", settings), tmp_path / "rows", tmp_path / "run", max_tokens=2 * whole,
                         console=Console(quiet=True))
    lines = rows(tmp_path / "run", "train")
    assert made["updates"] == len(lines) and whole * 1.9 < lines[-1]["tokens"] < whole * 2.6
    assert lines[-1]["lr"] == pytest.approx(lines[0]["lr"] / made["updates"])  # the schedule ends there
    steady = recipe("gpt2-tiny", [*settings, "data.global_batch=8"])
    grown = recipe("gpt2-tiny", [*settings, "data.global_batch=8", "data.ramp_start=2", "data.ramp_samples=16"])
    for chosen in (steady, grown):
        updates = updates_of(whole, chosen, [(stored, 1.0)])
        read, before = (chosen.data.ramp.before(n) * whole / len(stored) for n in (updates, updates - 1))
        assert before < whole <= read + 1e-6
    with pytest.raises(UserError, match=r"max_tokens is for data that is packed in rows of tokens .* holds text"):
        loop.pretrain(steady, data.train, tmp_path / "no", tokenizer=data.tok, max_tokens=100, console=Console(quiet=True))
    assert cli.run(line(data, tmp_path / "no", "--max-tokens", "9", "--max-updates", "3")) == 2
    assert "give one of them" in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_a_tokenizer_that_does_not_fit_is_refused(data, whole, tmp_path):
    Tokenizer.train(["x y z"] * 9, "byte-bpe", 258).save(tmp_path / "other")
    with pytest.raises(UserError, match="the tokenizer differs from"):
        loop.pretrain(recipe("gpt2-tiny", OVERRIDES), data.train, whole, tokenizer=str(tmp_path / "other"), console=Console(quiet=True))
    pack([data.train + ".txt"], tmp_path / "rows", PackSettings(Reading(split="line"), tokenizer=data.tok, block=32), workers=Workers(1),
         console=Console(quiet=True))
    with pytest.raises(UserError, match="was packed with another tokenizer"):
        loop.pretrain(recipe("gpt2-tiny", OVERRIDES), str(tmp_path / "rows"), tmp_path / "run", tokenizer=str(tmp_path / "other"),
                       console=Console(quiet=True))
    small = recipe("gpt2-tiny", [*OVERRIDES, "max_updates=3", "data.global_batch=2"])
    # without --tokenizer: it lies in the data
    result = loop.pretrain(small, str(tmp_path / "rows"), tmp_path / "run", console=Console(quiet=True))
    assert result["updates"] == 3 and (tmp_path / "run" / "export" / "tokenizer.json").is_file()


def test_a_mixture(data, tmp_path):
    mixture = parse_mixture([f"{data.train}=3", data.held])
    assert mixture == [(data.train, 3.0), (data.held, 1.0)] and parse_mixture([data.train]) == data.train
    result = loop.pretrain(recipe("gpt2-tiny", OVERRIDES), mixture, tmp_path / "run", tokenizer=data.tok, max_updates=3,
                            console=Console(quiet=True))
    assert result["updates"] == 3
    with pytest.raises(UserError, match="expected DIR or DIR=WEIGHT"):
        parse_mixture(["somewhere=much"])


def test_the_command_line(data, tmp_path, capsys):
    app = typer.Typer()
    commands.register(app)
    app([*line(data, tmp_path / "run", "--max-updates", "2", "--seed", "7", "--json")], standalone_mode=False)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["updates"] == 2 and result["ending"] == "complete"
    assert Run(tmp_path / "run").recipe().seed == 7
    app(["export", str(tmp_path / "run"), "--out", str(tmp_path / "export"), "--json"], standalone_mode=False)
    assert "model.safetensors" in json.loads(capsys.readouterr().out.splitlines()[-1])["files"]
    with pytest.raises(UserError, match="did you mean gpt2-tiny"):
        app(["pretrain", "gpt2-tinny", "--data", "x", "--out", "y"], standalone_mode=False)


def test_two_ranks_train_as_one(data, tmp_path):
    """Sums over ranks make the loss that of one rank."""
    overrides = [*OVERRIDES, "model.resid_pdrop=0", "max_updates=8", "log.every=1", "evaluate.every=4", "data.micro_batch=2"]
    both = processes.ranks(2, *line(data, tmp_path / "two", "--devices", "2", "--json", overrides=overrides))
    assert json.loads(processes.together(both)[0].out.splitlines()[-1])["updates"] == 8
    here(data, tmp_path / "one", overrides)
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert len(one) == len(two) == 10
    for a, b in zip(one, two):
        assert a.pop("split") == b.pop("split") and a == pytest.approx(b, rel=1e-5)
    # and one rank continues what two began
    more = [o for o in overrides if not o.startswith("max_updates")]
    assert here(data, tmp_path / "two", [*more, "max_updates=10"])["updates"] == 10


@pytest.mark.slow
def test_fabric_starts_the_second_rank(data, tmp_path):
    words = line(data, tmp_path / "run", "--devices", "2", "--max-updates", "2", "--json")
    done = subprocess.run([sys.executable, "-m", "polymodal", *words], capture_output=True, text=True, env=ONE_THREAD, timeout=200)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["updates"] == 2
    assert "2 ranks" in done.stderr


@pytest.mark.slow
def test_torchrun_and_a_signal_to_one_rank(data, tmp_path):
    """SIGTERM to rank 1 alone stops both after the same update, with exit code 0; the run then goes on."""
    out = tmp_path / "run"
    overrides = [*OVERRIDES, "max_updates=100000", "checkpoint.every=0"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "polymodal"]
    process = subprocess.Popen([*command, *line(data, out, overrides=overrides)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, env=ONE_THREAD)
    _wait_for(lambda: len(Run(out).metrics("train")) > 1, process)
    ranks = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    os.kill(max(ranks), signal.SIGTERM)
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert "stopped after update" in output
    assert len(list((out / "checkpoints").iterdir())) == 1


def test_a_signal_stops_a_process_with_the_code_that_says_so(data, tmp_path):
    out = tmp_path / "run"
    process = processes.polymodal(*line(data, out, overrides=[*OVERRIDES, "max_updates=100000", "checkpoint.every=0", "data.workers=1"]))
    _wait_for(lambda: len(Run(out).metrics("train")) > 1, process)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 75, process.err
    assert "stopped after update" in process.out and "Traceback" not in process.err
    assert len(list((out / "checkpoints").iterdir())) == 1


def test_a_profile_is_a_trace_and_a_table(data, tmp_path):
    here(data, tmp_path / "run", [*OVERRIDES, "max_updates=9", "evaluate.every=0"], profile=True)
    folder = tmp_path / "run" / "profile"
    names = [event.get("name", "") for event in json.loads(gzip.decompress((folder / "rank-00000.json.gz").read_bytes()))["traceEvents"]]
    assert len({name for name in names if name.startswith("ProfilerStep#")}) == 3 and "aten::addmm" in names
    assert "Self CPU" in (folder / "rank-00000.txt").read_text()


def test_a_profile_of_too_short_a_run_says_so(data, tmp_path, capfd):
    loop.pretrain(recipe("gpt2-tiny", [*OVERRIDES, "max_updates=3"]), data.train, tmp_path / "run", tokenizer=data.tok, profile=True)
    assert "ended before" in capfd.readouterr().err and not (tmp_path / "run" / "profile").exists()
