"""Evaluations go on with what a run was fine-tuned with: lengths and prefixes."""

from __future__ import annotations

import json

import numpy as np
import polymodal
import pytest
import torch
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.pipelines.run.directory import open_run
from polymodal.pipelines.run.recipe import recipe
from polymodal.pipelines.train.loop import pretrain
from polymodal.shared.tokenizer import STYLES, Tokenizer

WORDS = "red green blue cat dog house tree"


@pytest.fixture(scope="module")
def classified(tmp_path_factory):
    """A run that read at most 8 tokens of texts of 12 words, whose last words tell the class."""
    root, rng = tmp_path_factory.mktemp("classified"), np.random.default_rng(0)
    Tokenizer.train([WORDS] * 9, "word", 12, style=STYLES["bert"]).save(root / "tok")
    for name, count in (("train", 24), ("held", 16)):
        rows = [{"text": " ".join(rng.choice(WORDS.split(), 12)), "label": str(rng.choice(["a", "b"]))} for _ in range(count)]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        pack(root / f"{name}.jsonl", root / name, PackSettings(Reading(label_field="label", classes=("a", "b"))), workers=Workers(1))
    settings = ["task=classify", "objective={max_length: 8}", "max_updates=6", "optim.lr=0.03", "schedule.warmup=0", "data.global_batch=8",
                "precision=32", "accelerator=cpu", "log.tensorboard=false", "model.hidden_size=32", "model.num_hidden_layers=1",
                "model.num_attention_heads=2",
                "model.intermediate_size=32", "model.max_position_embeddings=32"]
    pretrain(recipe("bert-tiny", settings), root / "train", root / "run", eval_data=root / "held", tokenizer=root / "tok",
             console=Console(quiet=True))
    return root


def test_texts_are_cut_as_in_the_run(classified):
    run, held = classified / "run", classified / "held"
    wanted = open_run(run).metrics("eval")[-1]["classification"]
    record = polymodal.evaluate("classify", run, held, device="cpu", predictions=classified / "guesses.jsonl")
    labels = [json.loads(line)["label"] for line in (classified / "held.jsonl").read_text().splitlines()]
    texts = [json.loads(line)["text"] for line in (classified / "held.jsonl").read_text().splitlines()]
    assert record["trained_with"] == {"max_length": 8}
    for texts_read in (texts, [" ".join(text.split()[:6]) for text in texts]):  # six words, [CLS] and [SEP]
        told = polymodal.classify(polymodal.load(run), texts_read, top=2)
        losses = [-np.log(dict(row)[label]) for row, label in zip(told, labels, strict=True)]
        assert np.mean(losses) == pytest.approx(wanted, rel=1e-5)
    bare = polymodal.load(run)
    del bare.origin  # nobody knows of the run
    whole = polymodal.classify(bare, texts, tokenizer=polymodal.tokenizer(run), top=2)
    assert np.mean([-np.log(dict(row)[label]) for row, label in zip(whole, labels, strict=True)]) != pytest.approx(wanted, rel=1e-5)


def test_a_prefix_is_that_of_the_directory(tmp_path):
    torch.manual_seed(0)
    tok = Tokenizer.train([f"{WORDS} say:"] * 9, "word", 111, style=STYLES["t5"])
    net = polymodal.system("t5", size="tiny", tokenizer=tok, d_model=16, num_layers=1, d_ff=16).net
    polymodal.save(net, tmp_path / "t5", tokenizer=tok)
    config = json.loads((tmp_path / "t5/config.json").read_text())
    (tmp_path / "t5/config.json").write_text(json.dumps({**config, "task_specific_params": {"summarization": {"prefix": "say: "}}}))
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"text": "red cat", "summary": "cat"}) + "\n")
    pack(tmp_path / "pairs.jsonl", tmp_path / "pairs", PackSettings(Reading(target_field="summary")), workers=Workers(1))

    def read(number, **options):
        polymodal.evaluate("generate", tmp_path / "t5", tmp_path / "pairs", device="cpu", max_new_tokens=2,
                           predictions=tmp_path / f"{number}.jsonl", **options)
        return json.loads((tmp_path / f"{number}.jsonl").read_text())["text"]

    assert read(1) == "say: red cat"
    assert read(2, prefix="") == "red cat"
    assert read(3, prefix="red ") == "red red cat"
