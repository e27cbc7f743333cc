"""`polymodal distill`: one student and its teacher, from the command line and through the loop."""

from __future__ import annotations

import contextlib
import io
import json
import shutil

import polymodal
import pytest
import torch
from polymodal.pipelines import cli
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.data.dataset import DataSet
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings
from polymodal.pipelines.plan.plan import Cluster, plan
from polymodal.pipelines.run import checkpoint
from polymodal.pipelines.run.directory import open_run
from polymodal.pipelines.run.recipe import recipe
from polymodal.pipelines.train.loop import pretrain
from polymodal.shared.encoder import Encoder
from polymodal.shared.system import fingerprint_of
from polymodal.shared.tokenizer import Tokenizer

WORDS = ["red", "green", "blue", "cat", "dog", "house", "tree", "runs", "sleeps", "and", "the", "small", "large", "old", "new"]
SMALL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 34}
SETTINGS = ["data.global_batch=4", "precision=32", "accelerator=cpu", "log.tensorboard=false", "log.every=1", "checkpoint.every=1",
            "objective.max_length=32", "max_updates=1", "schedule.warmup=0"]


def teacher(path, tok, seed=0, **more):
    torch.manual_seed(seed)
    net = polymodal.system("bert", size="tiny", tokenizer=tok, objective={"nsp": False}, **{**SMALL, "num_hidden_layers": 3, **more}).net
    polymodal.save(net, path, tokenizer=tok)
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("distill")
    tok = Tokenizer.train([" ".join(WORDS)] * 20, "wordpiece", 60)
    tok.save(path / "tok")
    rows = [" ".join(WORDS[(n + k) % len(WORDS)] for k in range(5 + n % 20)) for n in range(24)]
    (path / "texts.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    pack([path / "texts.jsonl"], path / "data", PackSettings(tokenizer=path / "tok", block=32), workers=Workers(1))
    pack([path / "texts.jsonl"], path / "raw", workers=Workers(1))
    (path / "held.jsonl").write_text("".join(json.dumps({"text": " ".join(reversed(row.split()))}) + "\n" for row in rows[:5]))
    pack([path / "held.jsonl"], path / "held", PackSettings(tokenizer=path / "tok", block=32), workers=Workers(1))
    teacher(path / "bert", tok)
    return path


def distill(root, out, *more, data="data", of=None):
    """The command's exit code, and what it says of a mistake."""
    settings = [part for s in SETTINGS for part in ("--set", s)]
    return command(["distill", "distilbert-tiny", "--teacher", of or root / "bert", "--data", root / data, "--out", out, *settings, *more])


def command(words):
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        code = cli.run(list(map(str, words)))
    told = [line for line in errors.getvalue().splitlines() if line.startswith(("error", "internal"))]
    assert len(told) == bool(code), told
    return code, told[0] if told else ""


def test_a_student_begins_with_its_teacher_and_leaves_it_out_of_what_it_saves(root, tmp_path):
    assert distill(root, tmp_path / "run", "--model", root / "bert") == (0, "")
    run, known = open_run(tmp_path / "run"), fingerprint_of(polymodal.load(root / "bert"))
    assert run.companions() == {"teacher": {"source": str(root / "bert"), "fingerprint": known}}
    assert (run.config().n_layers, run.config().dim) == (1, 16), "half of three layers"
    (saved,) = checkpoint.all_checkpoints(run.checkpoints)
    trained = checkpoint.stored(saved.path)
    assert not any("teacher" in name for name in trained) and sum("blocks" in n and n.startswith("model/") for n in trained) == 12
    assert sorted(p.name for p in run.export.iterdir() if not p.name.startswith("token") and p.name != "special_tokens_map.json") == [
        "config.json", "model.safetensors"]
    student = polymodal.load(run.export)
    assert type(student).__name__ == "DistilBertForMaskedLM"
    assert {"loss", "mlm", "ce", "cos"} <= run.metrics("train")[-1].keys()
    assert len(run.counts()) == run.tokenizer().vocab_size


def test_raw_texts_are_read_with_the_teachers_tokenizer(root, tmp_path):
    assert distill(root, tmp_path / "run", "--set", "objective.mlm_smoothing=0", "--set", "model.dim=16", data="raw") == (0, "")
    assert open_run(tmp_path / "run").tokenizer().fingerprint == Tokenizer.load(root / "tok").fingerprint


def test_a_run_goes_on_with_the_same_teacher_alone(root, tmp_path):
    bert = shutil.copytree(root / "bert", tmp_path / "bert")
    assert distill(root, tmp_path / "run", "--model", bert, of=bert)[0] == 0
    teacher(tmp_path / "other", Tokenizer.load(root / "tok"), seed=1)
    code, said = distill(root, tmp_path / "run", "--max-updates", 2, of=tmp_path / "other")
    assert code == 2 and "began with another teacher" in said
    shutil.rmtree(bert)
    assert "companions.teacher of distilbert cannot be read: there is no model directory" in distill(
        root, tmp_path / "run", "--max-updates", 2, of=bert)[1]
    assert len(checkpoint.all_checkpoints(open_run(tmp_path / "run").checkpoints)) == 1, "nothing is lost"
    assert distill(root, tmp_path / "run", "--max-updates", 2) == (0, ""), "it may lie elsewhere"
    assert open_run(tmp_path / "run").metrics("train")[-1]["update"] == 2


def test_the_teacher_reads_each_text_once(root, tmp_path, monkeypatch):
    """With accumulation: as many forward passes as there are micro-batches, and as many tokens as the student reads."""
    seen, forward = [], Encoder.forward

    def counted(self, input_ids, *arguments, **options):
        seen.append((type(self), input_ids.numel(), torch.is_grad_enabled()))
        return forward(self, input_ids, *arguments, **options)

    monkeypatch.setattr(Encoder, "forward", counted)
    chosen = recipe("distilbert-tiny", [*SETTINGS, f"companions.teacher={root / 'bert'}", "model.dim=16", "data.micro_batch=1",
                                        "max_updates=2"])
    pretrain(chosen, root / "data", tmp_path / "run", console=Console(quiet=True))
    teachers, students = ([entry for entry in seen if (entry[0] is Encoder) == told] for told in (True, False))
    assert len(teachers) == len(students) == 8 and not any(entry[2] for entry in teachers)
    assert [entry[1] for entry in teachers] == [entry[1] for entry in students]


def test_a_student_is_planned_with_its_teacher(root):
    chosen = recipe("distilbert-tiny", [*SETTINGS, f"companions.teacher={root / 'bert'}", "model.dim=16"])
    told = plan(chosen, root / "data", Cluster(), console=Console(quiet=True))
    student = polymodal.system("distilbert", size="tiny", dim=16, vocab_size=60)
    assert told["parameters"] == sum(p.numel() for p in student.parameters())


def test_mistakes_are_told_in_a_line_before_anything_is_written(root, tmp_path):
    out = tmp_path / "run"
    tok = Tokenizer.load(root / "tok")
    other = Tokenizer.train([" ".join(WORDS[:8])] * 20, "wordpiece", 30)
    for (code, said), expected in (
        (distill(root, out, of=teacher(tmp_path / "words", other)), "reads with another tokenizer"),
        (distill(root, out, of=tmp_path / "nowhere"), "companions.teacher of distilbert cannot be read: there is no model directory"),
        (distill(root, out, "--set", "model.dim=16", data="raw"), "needs to know how often each token stands in the training data"),
        (distill(root, out, "--model", teacher(tmp_path / "flat", tok, num_hidden_layers=1), "--set", "model.n_layers=3"),
         "the student has 3 layers and the model that it begins with 1"),
        (distill(root, out, "--set", "objective.max_length=64", "--set", "model.dim=16"), "has 34 positions"),
    ):
        assert code == 2 and expected in said, said
    code, said = command(["distill", "gpt2-tiny", "--teacher", root / "bert", "--data", root / "data", "--out", out])
    assert code == 2 and "recipe gpt2-tiny trains gpt2 from data alone, which has no teacher: choose a recipe of distilbert" in said
    assert not out.exists()


def test_with_a_cache_the_teacher_reads_each_text_once_over_all_epochs_runs_and_students(root, tmp_path, monkeypatch):
    seen, forward = [], Encoder.forward

    def counted(self, input_ids, *arguments, **options):
        seen.extend([input_ids.numel()] * (type(self) is Encoder))
        return forward(self, input_ids, *arguments, **options)

    monkeypatch.setattr(Encoder, "forward", counted)
    held = ["--set", "model.dim=16", "--set", "objective.alpha_cos=0", "--eval-data", root / "held", "--cache", tmp_path / "c"]
    rows = len(DataSet.open(root / "data"))

    def run(out, updates, *more):
        seen.clear()
        assert distill(root, tmp_path / out, "--max-updates", updates, *held, *more) == (0, "")
        return [row["cached"] for row in open_run(tmp_path / out).metrics("train")], sum(seen)

    epoch = -(-rows // 4)
    first, read = run("one", 1)
    assert first == [0] and read > 0 and open_run(tmp_path / "one").metrics("eval")[-1]["cached"] == 0
    both, _ = run("one", 2 * epoch + 1)  # the same run goes on
    assert both[:epoch - 1] == [0] * (epoch - 1) and both[epoch:] == [1] * (len(both) - epoch)
    after, read = run("two", 2 * epoch, "--set", "model.hidden_dim=24")
    assert after == [1] * (2 * epoch) and read == 0, "a student that follows does not run it"


@pytest.mark.slow
def test_a_run_with_a_cache_is_the_same_whether_it_was_full_or_not(root, tmp_path):
    held = ["--max-updates", 3, "--set", "model.dim=16", "--set", "objective.alpha_cos=0", "--cache", tmp_path / "c"]
    for out in ("empty", "full"):
        assert distill(root, tmp_path / out, *held) == (0, "")
    one, other = (polymodal.load(tmp_path / out / "export").state_dict() for out in ("empty", "full"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_cache_is_planned_and_what_cannot_have_one_is_told(root, tmp_path):
    chosen = recipe("distilbert-tiny", [*SETTINGS, f"companions.teacher={root / 'bert'}", "model.dim=16", "objective.alpha_cos=0",
                                        f"objective.cache={tmp_path / 'c'}"])
    assert plan(chosen, root / "data", Cluster(), console=Console(quiet=True))["parameters"]
    assert not (tmp_path / "c").exists()
    code, said = command(["distill", "tinybert-tiny", "--teacher", root / "bert", "--data", root / "data", "--out", tmp_path / "run",
                          "--cache", tmp_path / "c"])
    assert code == 2 and "recipe tinybert-tiny reads its teacher's states, and a cache keeps predictions: leave --cache out" in said
    code, said = distill(root, tmp_path / "run", "--set", "model.dim=16", "--cache", tmp_path / "c")
    assert code == 2 and "set objective.alpha_cos=0" in said and not (tmp_path / "run").exists()
