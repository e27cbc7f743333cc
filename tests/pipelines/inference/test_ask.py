"""`polymodal.classify`, `tag`, `answer` and `evaluate`: what the commands do, in Python."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import polymodal
import pytest
import torch
from PIL import Image
from polymodal.multimodal.zero_shot import ZeroShotClassifier, templates
from polymodal.pipelines import cli
from polymodal.shared.errors import UserError
from polymodal.shared.tokenizer import STYLES, Tokenizer
from polymodal.text.classify import TextClassifier

TEXTS = ["a red dog", "the blue house", "green cats", "a cat of the house"]
TOWER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    words = Tokenizer.train(TEXTS * 2, "wordpiece", 50)
    torch.manual_seed(0)
    for name, task, labels in (("classes", "classify", ["good", "bad", "neither"]), ("tags", "tag", ["O", "B-A", "I-A"]),
                               ("spans", "span", None)):
        net = polymodal.system("bert", size="tiny", task=task, tokenizer=words, classes=labels, **TOWER).net
        polymodal.save(net, root / name, tokenizer=words)
    pieces = Tokenizer.train(TEXTS, "byte-bpe", 260, style=STYLES["clip"])
    polymodal.save(polymodal.system("clip", size="tiny", tokenizer=pieces).net, root / "clip", tokenizer=pieces)
    vision = {**TOWER, "image_size": 16, "patch_size": 8}
    polymodal.save(polymodal.system("vit", size="tiny", classes=["x", "y"], **vision).net, root / "vit")
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name in "abc":
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    return sorted(folder.iterdir())


def ranked(scores, labels, top):
    best = scores.topk(top)
    return [[(labels[c], pytest.approx(s, rel=1e-5)) for c, s in zip(classes, row)]
            for classes, row in zip(best.indices.tolist(), best.values.tolist())]


def test_texts_and_pairs(models):
    net, tok = polymodal.load(models / "classes"), polymodal.tokenizer(models / "classes")
    by = TextClassifier(net, tok)
    assert polymodal.classify(net, TEXTS, top=2, batch_size=3) == ranked(by.probabilities([(t, None) for t in TEXTS]), by.labels, 2)
    pairs = list(pairwise(TEXTS))
    assert polymodal.classify(net, pairs, tokenizer=tok, top=9) == ranked(by.probabilities(pairs), by.labels, 3)
    assert polymodal.classify(net, []) == []
    for given, message in (([3], "got int"), ([*TEXTS, pairs[0]], "all of one kind, got str, tuple"), ("a dog", "got one str")):
        with pytest.raises(UserError, match=message):
            polymodal.classify(net, given)
    with pytest.raises(UserError, match="top is 0"):
        polymodal.classify(net, TEXTS, top=0)


def test_pictures(models, photos, tmp_path):
    clip, vit = polymodal.load(models / "clip"), polymodal.load(models / "vit")
    images = [Image.open(p).convert("RGB") for p in photos]
    by = ZeroShotClassifier(clip, polymodal.tokenizer(models / "clip"), TEXTS, templates(["a {}", "{}"]))
    wanted = ranked(by.probabilities(images), by.labels, 3)
    assert polymodal.classify(clip, photos, labels=TEXTS, templates=["a {}", "{}"], top=3, batch_size=2) == wanted
    assert polymodal.classify(clip, images, labels=TEXTS, templates=["a {}", "{}"], top=3) == wanted
    assert [{name for name, _ in row} for row in polymodal.classify(vit, photos)] == [{"x", "y"}] * 3
    (tmp_path / "bad.png").write_text("none")
    with pytest.raises(UserError, match="bad"):
        polymodal.classify(vit, [photos[0], tmp_path / "bad.png"])
    some = polymodal.classify(vit, [photos[0], tmp_path / "bad.png", photos[1]], on_bad="skip")
    assert some[1] == [] and [dict(row) for row in (some[0], some[2])] == [
        pytest.approx(dict(row), rel=1e-5) for row in polymodal.classify(vit, photos[:2])]
    with pytest.raises(UserError, match="pass --labels"):
        polymodal.classify(clip, photos)
    with pytest.raises(UserError, match="ViT classifies pictures, and the inputs are texts"):
        polymodal.classify(vit, TEXTS)
    alone = polymodal.system("clip", size="tiny", tokenizer=polymodal.tokenizer(models / "clip")).net
    with pytest.raises(UserError, match="no tokenizer lies with this CLIP: pass tokenizer="):
        polymodal.classify(alone, photos, labels=TEXTS)


def test_tags_and_answers_are_those_of_the_commands(models, capsys):
    def said(*arguments):
        assert cli.run([*map(str, arguments), "--json"]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])["results"]

    assert polymodal.tag(polymodal.load(models / "tags"), TEXTS) == said("tag", "--model", models / "tags", *TEXTS)
    net = polymodal.load(models / "spans")
    found = polymodal.answer(net, "a dog", TEXTS, batch_size=3)
    commands = said("answer", "a dog", *TEXTS, "--model", models / "spans", "--show", 20)
    assert [[vars(one)["text"] for one in row] for row in found] == [[one["text"] for one in row["answers"]] for row in commands]
    with pytest.raises(UserError, match="fine-tuned for the task tag"):
        polymodal.tag(net, TEXTS)
    with pytest.raises(UserError, match="expected at least 1"):
        polymodal.answer(net, "a dog", TEXTS, n_best=0)


def test_an_evaluation_is_that_of_the_command(models, tmp_path, capsys):
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, ["good", "bad", "neither", "good"])]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "names.txt").write_text("good\nbad\nneither\n")
    assert cli.run(["pack", str(tmp_path / "rows.jsonl"), "--label-field", "label", "--classes", str(tmp_path / "names.txt"),
                    "--out", str(tmp_path / "data")]) == 0
    record = polymodal.evaluate("classify", models / "classes", tmp_path / "data", limit=3, device="cpu", batch_size=2,
                                predictions=tmp_path / "guesses.jsonl")
    capsys.readouterr()
    assert cli.run(["evaluate", "classify", "--model", str(models / "classes"), "--data", str(tmp_path / "data"), "--limit", "3",
                    "--device", "cpu", "--batch-size", "2", "--json"]) == 0
    wanted = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["metrics"] == wanted["metrics"] and json.loads(json.dumps(record["settings"])) == wanted["settings"]
    assert len((tmp_path / "guesses.jsonl").read_text().splitlines()) == 3
    with pytest.raises(UserError, match="unknown evaluation perplexty; did you mean perplexity"):
        polymodal.evaluate("perplexty", "m", "d")
    with pytest.raises(UserError, match="unknown key windows; did you mean window"):
        polymodal.evaluate("perplexity", "m", "d", windows=3)
    with pytest.raises(UserError, match="limit is 0"):
        polymodal.evaluate("perplexity", "m", "d", limit=0)
