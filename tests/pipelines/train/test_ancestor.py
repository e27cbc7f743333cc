"""Runs that go on from another run: its weights and its optimizer's state, under other settings."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import polymodal
import processes
import pytest
import torch
from polymodal.pipelines import cli
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.inspection.past import Past
from polymodal.pipelines.inspection.replay import replay
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.pipelines.run import checkpoint
from polymodal.pipelines.run.directory import open_run
from polymodal.pipelines.run.recipe import recipe
from polymodal.pipelines.train.loop import pretrain
from polymodal.shared.errors import UserError
from polymodal.shared.tokenizer import Tokenizer

QUIET = Console(quiet=True)
LINES = 16
LOOP = ["log.every=1", "log.tensorboard=false", "checkpoint.every=4", "precision=32", "accelerator=cpu", "schedule.name=constant",
        "schedule.warmup=0", "optim.lr=0.01"]
GPT2 = ["model.n_embd=16", "model.n_layer=1", "model.n_head=2", "model.n_positions=32", f"data.global_batch={LINES}", *LOOP]
BERT = ["model.hidden_size=16", "model.intermediate_size=32", "model.num_attention_heads=2", "model.num_hidden_layers=2",
        "model.max_position_embeddings=24", "data.global_batch=8", *LOOP]
SHORT, LONG = ["objective.max_length=12", "objective.max_predictions=2"], ["objective.max_length=24", "objective.max_predictions=6"]
TIMES = ("samples_per_s", "tokens_per_s", "step_s", "data_wait_s", "save_s", "elapsed_s", "seconds")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdef"), size=rng.integers(1, 5))) for _ in range(30)]
    lines = [" ".join(rng.choice(words, size=rng.integers(5, 12))) for _ in range(60)]
    for name, kind, size in (("bpe", "byte-bpe", 280), ("wordpiece", "wordpiece", 50), ("other", "wordpiece", 50)):
        Tokenizer.train(lines[:30] if name == "other" else lines, kind, size).save(root / name)
    for name, part in (("few", lines[:LINES]), ("some", lines[:40]), ("more", lines[40:])):
        (root / f"{name}.txt").write_text("\n".join(part))
        pack([root / f"{name}.txt"], root / name, PackSettings(Reading(split="line")), workers=Workers(1), console=QUIET)
    return SimpleNamespace(few=root / "few", some=root / "some", more=root / "more", bpe=root / "bpe", wordpiece=root / "wordpiece",
                           other=root / "other")


@pytest.fixture(scope="module")
def gpt2(data, tmp_path_factory):
    """Eight updates in one run, each of the whole data set: no order and no draw tells a run that goes on from one that does not."""
    out = tmp_path_factory.mktemp("runs") / "gpt2"
    pretrain(recipe("gpt2-tiny", [*GPT2, "max_updates=8", "checkpoint.keep_last=9"]), data.few, out, tokenizer=data.bpe, console=QUIET)
    return out


@pytest.fixture(scope="module")
def phase1(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "bert"
    pretrain(recipe("bert-tiny", [*BERT, *SHORT, "max_updates=6"]), data.some, out, tokenizer=data.wordpiece, console=QUIET)
    return out


def phase2(data, phase1, out, *overrides, source="some", **options):
    given = {"continue_from": phase1, "console": QUIET} | options
    return pretrain(recipe("bert-tiny", [*BERT, *LONG, "max_updates=6", *overrides]), getattr(data, source), out, **given)


def curve(out, first=0):
    return [(row["loss"], row["grad_norm"]) for row in open_run(out).metrics("train") if row["update"] > first]


def rows(out):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in open_run(out).metrics()]


def test_the_curve_goes_on_where_nothing_else_changes(data, gpt2, tmp_path):
    """From the fourth update on as if there were one run; with the weights alone it is another curve."""
    settings = [*GPT2, "max_updates=4"]
    start = gpt2 / "checkpoints" / "update-00000004"
    pretrain(recipe("gpt2-tiny", settings), data.few, tmp_path / "on", continue_from=start, console=QUIET)
    assert np.allclose(curve(tmp_path / "on"), curve(gpt2, first=4), rtol=1e-4)
    for name, tensor in polymodal.load(gpt2).state_dict().items():
        torch.testing.assert_close(polymodal.load(tmp_path / "on").state_dict()[name], tensor, rtol=1e-4, atol=1e-5)
    steps = checkpoint.all_checkpoints(tmp_path / "on" / "checkpoints")[-1].path
    assert checkpoint.stored(steps).keys() == checkpoint.stored(start).keys()

    pretrain(recipe("gpt2-tiny", settings), data.few, tmp_path / "weights", model=start, console=QUIET)
    assert np.allclose(curve(tmp_path / "weights")[0], curve(gpt2, first=4)[0], rtol=1e-4), "the first loss is of the weights alone"
    assert not np.allclose(curve(tmp_path / "weights")[1:], curve(gpt2, first=4)[1:], rtol=1e-3)


def test_other_lengths_objective_data_schedule_and_batch(data, phase1, tmp_path):
    lines = []
    console = Console(quiet=True)
    console.say = lines.append
    result = phase2(data, phase1, tmp_path / "run", "schedule.name=linear", "optim.lr=0.003", "data.global_batch=4", "seed=3",
                    source="more", console=console, eval_data=data.few)
    assert result["updates"] == 6 and curve(tmp_path / "run")[0] != curve(phase1)[0]
    assert any("update-00000006 (update 6, sha256 " in line and "state of its optimizer" in line for line in lines)
    began = open_run(tmp_path / "run").described()["ancestor"]
    assert (began["run"], began["update"]) == (str(phase1), 6) and len(began["fingerprint"]) == 64
    assert open_run(tmp_path / "run").recipe().objective["max_predictions"] == 6
    assert open_run(phase1).described()["ancestor"] is None


@pytest.mark.parametrize("cut", [2, 5])
def test_it_resumes_by_itself(data, phase1, tmp_path, cut, monkeypatch):
    """Killed before and after its first checkpoint; after that it does not need the run that it came from."""
    shutil.copytree(phase1, tmp_path / "first")
    phase2(data, tmp_path / "first", tmp_path / "whole")
    count = iter(range(1000))

    def broken(*_):
        if next(count) == cut:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("polymodal.text.bert.BertSystem.after_update", broken)
        with pytest.raises(KeyboardInterrupt):
            phase2(data, tmp_path / "first", tmp_path / "cut")
    assert bool(checkpoint.all_checkpoints(tmp_path / "cut" / "checkpoints")) == (cut == 5)
    if cut == 5:
        shutil.rmtree(tmp_path / "first")
        shutil.copytree(tmp_path / "cut", tmp_path / "also")
        phase2(data, tmp_path / "first", tmp_path / "also")
        assert rows(tmp_path / "also") == rows(tmp_path / "whole")
    phase2(data, None, tmp_path / "cut")
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    ours, theirs = (polymodal.load(tmp_path / name).state_dict() for name in ("cut", "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_what_it_began_with_must_be_there_until_its_first_checkpoint(data, phase1, tmp_path, monkeypatch):
    shutil.copytree(phase1, tmp_path / "first")

    def broken(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("polymodal.text.bert.BertSystem.after_update", broken)
        with pytest.raises(KeyboardInterrupt):
            phase2(data, tmp_path / "first", tmp_path / "run")
    manifest = tmp_path / "first" / "checkpoints" / "update-00000006" / "manifest.json"
    before = manifest.read_text()
    manifest.write_text(before.replace("{", "{ ", 1))
    with pytest.raises(UserError, match=r"began from .*update-00000006 \(sha256 .*\), which is missing or has changed"):
        phase2(data, None, tmp_path / "run")
    manifest.write_text(before)
    phase2(data, None, tmp_path / "run")


def test_an_update_is_made_again_from_the_state_that_the_run_began_with(data, phase1, tmp_path):
    phase2(data, phase1, tmp_path / "run", "checkpoint.every=0", "log.every=3")
    found = replay(Past(open_run(tmp_path / "run"), 3), losses=False)
    assert (found["from"], found["verdict"]) == (0, "bitwise"), found


def test_wrong_starts_are_refused_and_nothing_is_written(data, phase1, gpt2, tmp_path):
    out = tmp_path / "run"

    def refused(message, *overrides, base="bert-tiny", first=phase1, **options):
        with pytest.raises(UserError, match=message):
            pretrain(recipe(base, [*BERT, *LONG, *overrides]), data.some, out, console=QUIET, **{"continue_from": first} | options)
        assert not out.exists()

    refused("--model and --continue-from both say where the run begins", model=phase1)
    refused("is not a run directory", first=tmp_path)
    refused(r"system was 'gpt2' and is 'bert'.*give the run as --model", first=gpt2)
    refused("task was '' and is 'classify'", "task=classify", "objective={max_length: 12}")
    refused("optim.name was 'adamw' and is 'sgd': set it back", "optim.name=sgd")
    refused(r"does not fit the model: missing .*use the recipe", "model.num_hidden_layers=3")
    refused(r"embed.position.weight is \(24, 16\), the model has \(30, 16\)", "model.max_position_embeddings=30")
    refused(r"has optimizer state for net\.trunk\.embed.*, which this run freezes", "optim.freeze=[embed]")
    refused("the tokenizer differs from", tokenizer=data.other)
    shutil.copytree(phase1, tmp_path / "broken")
    for shard in (tmp_path / "broken" / "checkpoints").glob("*/shard-*"):
        shard.write_bytes(b"")
    with pytest.warns(UserWarning, match="is damaged"):
        refused("holds no checkpoint that verifies", first=tmp_path / "broken")
    for source in (phase1, gpt2):
        with pytest.raises(UserError, match=r"began with randomly initialized weights or those of a model and cannot go on"):
            pretrain(recipe("bert-tiny", [*BERT, *SHORT]), data.some, phase1, continue_from=source, console=QUIET)


def test_a_run_keeps_what_it_came_from(data, phase1, tmp_path):
    phase2(data, phase1, tmp_path / "run", "max_updates=1")
    phase2(data, phase1 / "checkpoints" / "update-00000006", tmp_path / "run", "max_updates=2")
    assert open_run(tmp_path / "run").described()["ancestor"]["run"] == str(phase1)
    with pytest.raises(UserError, match=r"began from .*bert and cannot go on from"):
        phase2(data, tmp_path / "elsewhere", tmp_path / "run", "max_updates=3")
    with pytest.raises(UserError, match=r"began from .*bert and cannot go on with those of"):
        phase2(data, None, tmp_path / "run", "max_updates=3", model=phase1)


def test_from_the_command_line(data, phase1, tmp_path, capsys):
    sets = [word for value in (*BERT, *LONG, "max_updates=1") for word in ("--set", value)]
    line = ["pretrain", "bert-tiny", "--data", str(data.more), "--out", str(tmp_path / "run"), "--continue-from", str(phase1), *sets]
    line.append("--json")
    assert cli.invoke([*line, "--dry-run"]) == 0
    assert "going on from" in json.loads(capsys.readouterr().out.splitlines()[-1])["plan"][-2] and not (tmp_path / "run").exists()
    assert cli.invoke(line) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["updates"] == 1


def test_the_recipe_of_the_second_phase_fits_the_first():
    first, second = recipe("bert-base"), recipe("bert-base-512")
    assert (second.system, second.size, second.model, second.optim.name) == (first.system, first.size, first.model, first.optim.name)
    assert second.objective == {"max_length": 512, "max_predictions": 80}
    assert second.optim.lr == pytest.approx(first.optim.lr * first.schedule.final), "the rate falls on from where it was"
    assert first.max_updates + second.max_updates == 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_on_two_ranks(data, gpt2, tmp_path, strategy):
    sets = [word for value in (*GPT2, "max_updates=4", f"strategy={strategy}") for word in ("--set", value)]
    processes.together(processes.ranks(2, "pretrain", "gpt2-tiny", "--data", data.few, "--out", tmp_path / "on", "--continue-from",
                                       gpt2 / "checkpoints" / "update-00000004", *sets))
    assert np.allclose(curve(tmp_path / "on"), curve(gpt2, first=4), rtol=1e-4)
