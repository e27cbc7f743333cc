"""UniLM from the command line: pretraining by turns, fine-tuning to write and to classify, writing, and what goes wrong."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import polymodal
import pytest
import torch
import transformers
from parity import noise
from polymodal.pipelines import cli
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.pipelines.run.directory import Run
from polymodal.pipelines.run.recipe import recipe
from polymodal.pipelines.train.loop import pretrain
from polymodal.shared.tokenizer import Tokenizer

WORDS = [a + b for a in ("ka", "mo", "ti", "su") for b in ("ren", "sol", "an", "es")]
NARROW = ["model.hidden_size=32", "model.intermediate_size=48", "model.num_hidden_layers=1", "model.max_position_embeddings=48",
          "data.global_batch=8", "data.window=64", "log.tensorboard=false", "precision=32", "accelerator=cpu", "schedule.warmup=1"]


def texts(count):
    """A text of words; its target is the first word twice."""
    rng = np.random.default_rng(0)
    rows = [rng.choice(WORDS, rng.integers(6, 30)).tolist() for _ in range(count)]
    return [{"text": " ".join(row[:3]) + ". " + " ".join(row[3:]) + ".", "target": f"{row[0]} {row[0]}"} for row in rows]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("unilm")
    rows = texts(60)
    (root / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Tokenizer.train([row["text"] for row in rows], "wordpiece", 50).save(root / "tok")
    for name, more in (("plain", {}), ("pairs", {"target_field": "target"})):
        settings = PackSettings(Reading(**more), holdout=0.2, holdout_out=root / f"{name}-held")
        pack([root / "texts.jsonl"], root / name, settings, workers=Workers(1), console=Console(quiet=True))
    quiet = {"console": Console(quiet=True), "tokenizer": root / "tok"}
    pretrain(recipe("unilm-tiny", [*NARROW, "max_updates=6", "log.every=6", "checkpoint.every=4"]), root / "plain", root / "run",
             eval_data=root / "plain-held", **quiet)
    pretrain(recipe("unilm-text2text-tiny", [*NARROW[4:], "max_updates=3", "objective.max_target_length=8", "objective.prefix=ka "]),
             root / "pairs", root / "tuned", model=root / "run", eval_data=root / "pairs-held", console=Console(quiet=True))
    torch.manual_seed(0)
    net = noise(polymodal.system("unilm", size="tiny", task="text2text", tokenizer=root / "tok", hidden_size=32, intermediate_size=48,
                                 num_hidden_layers=1, max_position_embeddings=48).net)
    polymodal.save(net, root / "plain-net")
    return SimpleNamespace(root=root, run=root / "run", tuned=root / "tuned", text=rows[0]["text"])


def told(capsys, *words):
    code = cli.run([*map(str, words)])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_a_run_logs_and_shows_each_task(made, capsys):
    (row,) = Run(made.run).metrics("train")
    tasks = ("bidirectional", "seq2seq", "left_to_right", "right_to_left")
    assert all(f"{task}/mlm_perplexity" in row for task in tasks) and "bidirectional/nsp" in row and "seq2seq/nsp" not in row
    assert row["loss"] == pytest.approx(sum(n * row[f"{task}/loss"] for task, n in zip(tasks, (2, 2, 1, 1))) / 6)
    shown = [dict(s["rows"])["task"] for s in Run(made.run).samples()]
    assert set(shown) == set(tasks) and all(f"{task}/mlm_chance" in Run(made.run).metrics("eval")[-1] for task in tasks)
    code, out, _ = told(capsys, "inspect", made.run, "--update", 3, "--json")
    facts = json.loads(out.splitlines()[-1])
    assert code == 0 and "left_to_right" in json.dumps(facts)
    code, out, _ = told(capsys, "inspect", made.run, "--update", 6, "--replay")
    assert code == 0 and "bit for bit" in out


def test_what_was_tuned_writes(made, capsys):
    for command, more in (("generate", ("--max-new-tokens", 4)), ("generate", ("--num-beams", 3)), ("summarize", ()), ("translate", ())):
        code, out, err = told(capsys, command, "--model", made.tuned, *more, "--json", made.text)
        assert code == 0, err
        assert json.loads(out.splitlines()[-1])
    code, out, err = told(capsys, "evaluate", "generate", "--model", made.tuned, "--data", made.root / "pairs-held",
                          "--max-new-tokens", 6, "--json")
    assert code == 0, err
    assert 0 <= json.loads(out.splitlines()[-1])["metrics"]["rouge1"] <= 1
    code, out, err = told(capsys, "evaluate", "perplexity", "--model", made.run, "--data", made.root / "plain-held", "--json")
    assert code == 0, err
    assert {"seq2seq/mlm_perplexity", "bidirectional/nsp"} <= json.loads(out.splitlines()[-1])["metrics"].keys()


def test_texts_do_not_depend_on_their_neighbours(made):
    net, tok = polymodal.load(made.tuned), polymodal.tokenizer(made.tuned)
    prompts = [row["text"][:40 + 9 * n] for n, row in enumerate(texts(4))]
    together = polymodal.generate(net, prompts, tokenizer=tok, batch_size=4, max_new_tokens=6)
    assert together == [polymodal.generate(net, prompt, tokenizer=tok, max_new_tokens=6) for prompt in prompts]


def test_a_long_text_is_translated_in_pieces_that_leave_room_for_the_answer(made):
    net, tok = polymodal.load(made.tuned), polymodal.tokenizer(made.tuned)
    long = ". ".join(" ".join(WORDS[n:n + 9]) for n in range(6)) + "."
    assert len(tok.encode(long)) > 48
    options = {"tokenizer": tok, "max_new_tokens": 20, "num_beams": 1}
    found = polymodal.translate(net, [long, "ka ren."], **options)
    assert len(found) == 2 and all(found) and found[1] == polymodal.translate(net, "ka ren.", **options)
    plain = polymodal.load(made.root / "plain-net")  # without a run that says how long answers are: half of the positions
    assert len(polymodal.translate(plain, [long], tokenizer=tok)) == 1


class Listener(Console):
    """Keeps what it is told."""

    def __init__(self):
        super().__init__(quiet=True)
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.fixture(scope="module")
def bert(made):
    tok = polymodal.tokenizer(made.root / "tok")
    torch.manual_seed(1)
    net = polymodal.system("bert", size="tiny", tokenizer=tok, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                           max_position_embeddings=48).net
    polymodal.save(noise(net), made.root / "bert", tokenizer=tok)
    return made.root / "bert"


@pytest.mark.parametrize(("name", "data"), [("unilm-tiny", "plain"), ("unilm-text2text-tiny", "pairs")])
def test_a_run_begins_with_the_weights_of_bert(made, bert, name, data, tmp_path):
    """Segments begin with BERT's two by their places in a task, special ids are the tokenizer's, and a text is read as BERT reads it."""
    console = Listener()
    short = [*NARROW[4:], "max_updates=2", "optim.lr=1e-12", "evaluate.every=0", "checkpoint.every=1", "checkpoint.keep_best=false",
             *(["objective.max_target_length=8"] if data == "pairs" else [])]
    pretrain(recipe(name, short), made.root / data, tmp_path / "run", model=bert, console=console)
    assert any("fitted to this network: trunk.embed.token_type.weight [2, 32] -> [6, 32]" in line for line in console.lines)
    assert not any("randomly initialized" in line for line in console.lines)
    net, source, tok = polymodal.load(tmp_path / "run"), polymodal.load(bert), polymodal.tokenizer(bert)
    assert net.origin.family == "unilm" and (net.config.sep_token_id, net.config.mask_token_id) == (tok.sep_id, tok.mask_id)
    rows = source.trunk.embed.token_type.weight[[0, 1, 0, 0, 0, 1]]
    assert torch.allclose(net.trunk.embed.token_type.weight, rows, atol=1e-6)
    if data == "plain":
        ids = torch.tensor([tok.encode(made.text)[:40]])
        with torch.no_grad():
            assert torch.allclose(net(ids).prediction_logits, source(ids).prediction_logits, atol=1e-5)
        theirs = transformers.AutoModelForPreTraining.from_pretrained(tmp_path / "run/export")
        assert isinstance(theirs, transformers.BertForPreTraining)
        assert transformers.AutoTokenizer.from_pretrained(tmp_path / "run/export")(made.text)["input_ids"] == tok.encode(made.text)
    pretrain(recipe(name, [*short, "max_updates=3"]), made.root / data, tmp_path / "run", console=console)  # it goes on without the model
    assert Run(tmp_path / "run").described()["model"] == str(bert)


def test_mistakes_are_told_in_one_line(made, capsys):
    long = " ".join(WORDS * 4)
    again = ("pretrain", "unilm-tiny", "--data", made.root / "plain", "--tokenizer", made.root / "tok")
    for words, says in (
        (("generate", "--model", made.tuned, long), "48 positions"),
        (("generate", "--model", made.run, made.text), "does not generate text"),
        (("summarize", "--model", made.tuned, "--max-new-tokens", 48, made.text), "leave nothing of the model's 48 positions"),
        ((*again, "--out", made.root / "no", "--set", "objective.seq2seq=-1"), "seq2seq is -1"),
        ((*again, "--out", made.run, "--set", "objective.seq2seq=1"), "cannot be continued"),
        ((*again, "--eval-data", made.root / "plain-held", "--out", made.root / "no", "--set", "evaluate.monitor=seq2seq/nsp"),
         "evaluate.monitor is 'seq2seq/nsp'"),
    ):
        code, _, err = told(capsys, *words)
        assert code == 2 and says in err and len(err.strip().splitlines()) == 1, err


@pytest.mark.slow
def test_it_learns_to_write_what_a_text_begins_with(made, tmp_path):
    chosen = recipe("unilm-text2text-tiny", [
        *NARROW[4:], "max_updates=260", "data.global_batch=32", "optim.lr=3e-3", "objective.max_target_length=8", "evaluate.every=0",
        "checkpoint.every=0", "checkpoint.keep_best=false"])
    pretrain(chosen, made.root / "pairs", tmp_path / "run", model=made.run, console=Console(quiet=True))
    net, tok = polymodal.load(tmp_path / "run"), polymodal.tokenizer(tmp_path / "run")
    rows = texts(30)
    written = polymodal.generate(net, [row["text"] for row in rows], tokenizer=tok, max_new_tokens=8)
    assert sum(a == row["target"] for a, row in zip(written, rows)) > 20, written
