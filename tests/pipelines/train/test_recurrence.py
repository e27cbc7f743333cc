"""A system with a memory in the loop: lanes, evaluation, resuming on the same and on another layout."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import processes
import pytest
import torch
from polymodal.pipelines import cli
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.data.held_out import evaluation_batches, lane_batches
from polymodal.pipelines.model.frontdoor import load
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings
from polymodal.pipelines.run.directory import Run, open_run
from polymodal.pipelines.run.recipe import recipe
from polymodal.pipelines.train import loop
from polymodal.shared.errors import UserError
from polymodal.shared.tokenizer import Tokenizer

TIMES = ("samples_per_s", "tokens_per_s", "step_s", "data_wait_s", "save_s", "elapsed_s", "seconds")
OVERRIDES = ["model.d_model=16", "model.d_embed=16", "model.n_layer=2", "model.n_head=2", "model.d_head=8", "model.d_inner=32",
             "model.mem_len=20", "data.global_batch=4", "max_updates=24", "log.every=1", "log.tensorboard=false", "evaluate.every=12",
             "checkpoint.every=6", "checkpoint.keep_last=9", "precision=32", "accelerator=cpu", "schedule.warmup=2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdef"), size=rng.integers(1, 5))) for _ in range(40)]
    texts = [" ".join(rng.choice(words, size=rng.integers(3, 60))) for _ in range(60)]
    (root / "train.txt").write_text("\n\n".join(texts[:50]))
    (root / "held.txt").write_text("\n\n".join(texts[50:]))
    tok = Tokenizer.train(texts, "byte-bpe", 280)
    for name in ("train", "held"):
        pack([root / f"{name}.txt"], root / name, PackSettings(shard_bytes=40_000, tokenizer=tok, block=12, in_order=True),
             workers=Workers(1))
    pack([root / "train.txt"], root / "shuffled", PackSettings(tokenizer=tok, block=12), workers=Workers(1))
    pack([root / "train.txt"], root / "raw", workers=Workers(1))
    return SimpleNamespace(root=root, train=str(root / "train"), held=str(root / "held"), raw=str(root / "raw"))


def go(data, out, *overrides, source=None, **more):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return loop.pretrain(recipe("transformer-xl-tiny", [*OVERRIDES, *overrides]), source or data.train, out,
                              **({"eval_data": data.held, "console": Console(quiet=True)} | more))
    finally:
        torch.set_num_threads(threads)


def rows(out, split=None):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in Run(out).metrics(split)]


def same(a, b, **tolerance):
    for x, y in zip(a, b, strict=True):
        assert x["split"] == y["split"]
        assert {k: v for k, v in x.items() if k != "split"} == pytest.approx({k: v for k, v in y.items() if k != "split"}, **tolerance)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert go(data, out)["ending"] == "complete"
    return out


def test_a_stopped_run_takes_its_memory_up_again_bit_for_bit(data, whole, tmp_path):
    go(data, tmp_path / "run", resume=str(whole / "checkpoints" / "update-00000006"))
    assert rows(tmp_path / "run", "train") == [r for r in rows(whole, "train") if r["update"] > 6]
    assert rows(tmp_path / "run", "eval")[-1] == rows(whole, "eval")[-1]
    for name, tensor in load(tmp_path / "run").state_dict().items():
        assert torch.equal(tensor, load(whole).state_dict()[name])


def test_the_memory_matters(data, whole, tmp_path, monkeypatch):
    """Without the carry the next updates have other losses, so the tests beside this one could fail."""
    monkeypatch.setattr(loop.TrainState, "_carried", lambda job, start, state: {})
    go(data, tmp_path / "run", resume=str(whole / "checkpoints" / "update-00000006"))
    there = [r["loss"] for r in rows(whole, "train") if r["update"] > 6]
    assert abs(rows(tmp_path / "run", "train")[0]["loss"] - there[0]) > 1e-5


@pytest.mark.parametrize("micro", [2, 1])
def test_another_micro_batch_from_the_start_or_on_the_way_is_the_same_run(data, whole, tmp_path, micro):
    go(data, tmp_path / "start", f"data.micro_batch={micro}")
    same(rows(tmp_path / "start"), rows(whole), rel=1e-5)
    go(data, tmp_path / "way", f"data.micro_batch={micro}", resume=str(whole / "checkpoints" / "update-00000012"))
    same(rows(tmp_path / "way", "train"), [r for r in rows(whole, "train") if r["update"] > 12], rel=1e-5)
    same(rows(tmp_path / "way", "eval"), rows(whole, "eval")[-1:], rel=1e-5)
    if micro == 2:  # and back again, and stopped before its first update there
        go(data, tmp_path / "way2", "data.micro_batch=2", resume=str(tmp_path / "way" / "checkpoints" / "update-00000018"), max_seconds=0.0)
        go(data, tmp_path / "back", resume=str(tmp_path / "way2" / "checkpoints" / "update-00000018"))
        same(rows(tmp_path / "back", "train"), [r for r in rows(whole, "train") if r["update"] > 18], rel=1e-5)


@pytest.mark.slow
def test_two_ranks_are_one_and_take_over_from_one(data, whole, tmp_path):
    sets = [part for o in [*OVERRIDES, "data.micro_batch=1"] for part in ("--set", o)]

    def two(out, *more):
        command = ["pretrain", "transformer-xl-tiny", "--data", data.train, "--eval-data", data.held, "--out", str(out), "--devices", "2",
                   *sets, *more]
        processes.together(processes.ranks(2, *command))

    two(tmp_path / "two", "--resume", str(whole / "checkpoints" / "update-00000006"))
    wanted = [r for r in rows(whole, "train") if r["update"] > 6]
    same(rows(tmp_path / "two", "train"), wanted, rel=1e-5)
    same(rows(tmp_path / "two", "eval"), rows(whole, "eval"), rel=1e-5)
    go(data, tmp_path / "one", resume=str(tmp_path / "two" / "checkpoints" / "update-00000012"))  # and one rank after two
    same(rows(tmp_path / "one", "train"), wanted[6:], rel=1e-5)


def test_evaluation_reads_with_the_memory(data, whole):
    """The run's last line is what the exported network gives on the lanes of the evaluation, carried from batch to batch."""
    run = open_run(whole)
    system = run.system().eval()

    def measured(memory):
        system.net.memory_length = memory
        total, count, carry = 0.0, 0, None
        with torch.no_grad():
            held = loop.DataSet.open(data.held)
            for batch in evaluation_batches(held, system.objective, lane_batches(len(held), 4, 4), seed=0):
                step = system(batch, carry)
                carry = step.carry
                total, count = total + float(step.terms["lm"].total), count + batch.counts["targets"]
        assert count == loop.DataSet.open(data.held).index.schema["tokens"]  # every token of the data once
        return total / count

    assert measured(20) == pytest.approx(rows(whole, "eval")[-1]["loss"], rel=1e-5)
    assert abs(measured(0) - measured(20)) > 1e-5


def test_what_it_says_and_what_it_refuses(data, tmp_path):
    plan = "\n".join(go(data, tmp_path / "dry", dry_run=True)["plan"])
    assert "in sequence, nothing is shuffled: 4 lanes" in plan and "may be in random order" not in plan
    assert "may be in random order" in "\n".join(go(data, tmp_path / "dry", dry_run=True, source=str(data.root / "shuffled"))["plan"])
    mixture = [(data.train, 1), (data.held, 1)]
    for source, message in ((data.raw, "is raw text: use `polymodal pack --tokenize"), (mixture, "got a mixture")):
        with pytest.raises(UserError, match=message):
            go(data, tmp_path / "run", source=source, eval_data=None, tokenizer=str(data.root / "train" / "tokenizer"))
    with pytest.raises(UserError, match=r"objective\.max_length is 8: pack with --block 8"):
        go(data, tmp_path / "other", "objective.max_length=8")


def test_inspect_shows_the_samples_that_an_update_trains_on(whole, capsys):
    shown = []
    for update in (1, 6):
        assert cli.run(["inspect", str(whole), "--update", str(update), "--json"]) == 0
        shown.append(json.loads(capsys.readouterr().out.splitlines()[-1])["update"]["sample_ids"])
    assert shown[1] == [i + 5 for i in shown[0]] and shown[0][0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["skip", "rewind"])
def test_an_update_that_goes_wrong_leaves_no_trace_in_the_memory(data, tmp_path, policy, monkeypatch):
    """As if the run had been told from the start to leave it out: the update after it begins with a fresh memory in each lane."""
    go(data, tmp_path / "told", "health.leave_out=[[9,9]]")
    clip, made = loop.clip, []

    def poisoned(*arguments):
        made.append(clip(*arguments))
        return made[-1] * (float("nan") if len(made) == 9 else 1.0)

    monkeypatch.setattr(loop, "clip", poisoned)
    go(data, tmp_path / "run", f"health.policy={policy}")
    event, = Run(tmp_path / "run").events()
    assert event["update"] == 9 and rows(tmp_path / "run") == rows(tmp_path / "told")
    for name, tensor in load(tmp_path / "run").state_dict().items():
        assert torch.equal(tensor, load(tmp_path / "told").state_dict()[name])
