"""`polymodal evaluate zero-shot | classify | retrieval | generate`: every number against brute force."""

from __future__ import annotations

import io
import json

import numpy as np
import polymodal
import processes
import pytest
import torch
import webdataset
from PIL import Image
from polymodal.multimodal.zero_shot import class_weights, templates
from polymodal.pipelines import cli
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.data.dataset import DataSet
from polymodal.pipelines.data.index import build_index
from polymodal.pipelines.evaluation.classes import Classification, ZeroShot, _Inputs, classify
from polymodal.pipelines.evaluation.evaluate import EvaluationSettings, OutputFiles, evaluate
from polymodal.pipelines.evaluation.retrieval import Retrieval, ranks
from polymodal.pipelines.evaluation.scores import text_scores
from polymodal.pipelines.evaluation.written import Generation
from polymodal.pipelines.model.export import export_system
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.shared.errors import UserError
from polymodal.shared.tokenizer import STYLES, Tokenizer
from polymodal.vision.transforms import Normalize
from torch.nn import functional as F

CLASSES = ["bird", "cat", "dog", "fish", "house", "ship", "tree"]
VISION = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 16, "patch_size": 8}
BERT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 24}


def measured(evaluation, model, data, *, out=None, predictions=None, force=False, **settings):
    return evaluate(evaluation, model, data, EvaluationSettings(**settings), output=OutputFiles(out, predictions, force),
                    console=Console(quiet=True))


def shaken(system):
    with torch.no_grad():
        for p in system.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return system.eval()


def picture(rng):
    return Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8))


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def labelled(folder):
    """23 pictures of 7 classes."""
    rng = np.random.default_rng(0)
    for i in range(23):
        place = folder / "pictures" / CLASSES[int(rng.integers(7)) if i >= 7 else i]
        place.mkdir(parents=True, exist_ok=True)
        picture(rng).save(place / f"{i}.png")
    pack(folder / "pictures", folder / "labelled", console=Console(quiet=True))
    return folder / "labelled"


@pytest.fixture(scope="module")
def captioned(folder):
    """19 pictures with one to three captions each; two captions occur twice."""
    rng = np.random.default_rng(1)
    (folder / "captioned").mkdir()
    with webdataset.TarWriter(str(folder / "captioned" / "000000.tar")) as out:
        for i in range(19):
            texts = [f"a {CLASSES[(i + j) % 7]} and number {i}" for j in range(1 + i % 3)]
            texts[0] = "the same words" if i in (3, 7) else texts[0]
            out.write({"__key__": f"{i:03d}", "png": png(picture(rng)), "json": json.dumps({"captions": texts}).encode()})
    build_index(folder / "captioned")
    return folder / "captioned"


@pytest.fixture(scope="module")
def clip(folder):
    torch.manual_seed(0)
    texts = [" ".join(CLASSES) + " a photo of the same words and number 0123456789"] * 3
    tokenizer = Tokenizer.train(texts, "byte-bpe", 290, style=STYLES["clip"])
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 40}
    system = shaken(polymodal.system("clip", size="tiny", tokenizer=tokenizer, projection_dim=8, text_config=text, vision_config=VISION))
    export_system(system, folder / "clip", tokenizer)
    return folder / "clip", system.net, tokenizer


def pixels_of(net, data):
    opened = DataSet.open(data)
    samples = [opened.read(i) for i in range(len(opened))]
    return samples, torch.stack([net.preprocessing.pixels(s.image()) for s in samples])


# --- zero-shot


@torch.no_grad()
def test_zero_shot_by_brute_force(clip, labelled, tmp_path):
    out, net, tokenizer = clip
    record = measured(ZeroShot(("a photo of a {}.", "{}")), out, labelled, batch_size=5, predictions=tmp_path / "p.jsonl")
    samples, pixels = pixels_of(net, labelled)
    weights = class_weights(net, tokenizer, CLASSES, templates(["a photo of a {}.", "{}"]))
    scores = F.normalize(net.get_image_features(Normalize(net.preprocessing)(pixels)), dim=-1) @ weights.T
    truth = torch.tensor([s.label() for s in samples])
    places = (scores > scores.gather(1, truth[:, None])).sum(1)
    assert record["metrics"]["accuracy"] == pytest.approx((places == 0).float().mean().item())
    assert record["metrics"]["top5_accuracy"] == pytest.approx((places < 5).float().mean().item())
    for number, line in enumerate(record["details"]["classes"]):
        mine = truth == number
        assert line["class"] == CLASSES[number] and line["samples"] == int(mine.sum())
        assert line["recall"] == pytest.approx((places[mine] == 0).float().mean().item())
    assert record["metrics"]["chance"] == 1 / 7
    assert record["templates"] == ["a photo of a {}.", "{}"] and record["classes"] == CLASSES
    assert record["preprocessing"]["image_size"] == 16 and record["preprocessing"]["interpolation"] == "bicubic"
    assert record["tokenizer"] == tokenizer.fingerprint
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == [s.key for s in samples]
    assert [CLASSES.index(line["predictions"][0]) for line in lines] == scores.argmax(1).tolist()


def test_other_names_for_the_classes(clip, labelled):
    out, _, _ = clip
    renamed = measured(ZeroShot(labels=tuple(f"old {c}" for c in CLASSES)), out, labelled)
    assert renamed["details"]["classes"][0]["class"] == "old bird"
    with pytest.raises(UserError, match=r"3 class names are given and .* has 7"):
        measured(ZeroShot(labels=("a", "b", "c")), out, labelled)


# --- classification


def test_the_numbers_against_torchmetrics():
    from torchmetrics.functional.classification import (
        multiclass_accuracy,
        multiclass_confusion_matrix,
        multiclass_f1_score,
        multiclass_precision,
        multiclass_recall,
    )

    torch.manual_seed(0)
    truth, scores = torch.randint(0, 6, (200,)), torch.rand(200, 7).softmax(-1)
    scores[:, 5] = 0  # a class that is never guessed; class 6 never occurs
    by = Classification("", None, lambda batch: batch.inputs, tuple("abcdefg"))
    for rows in torch.randperm(200).split(17):
        batch = _Inputs(counts={}, inputs=scores[rows], labels=truth[rows].tolist())
        batch.sample_ids = rows.tolist()
        by.add(batch)
    found = by.result()
    assert found.metrics["accuracy"] == pytest.approx(float(multiclass_accuracy(scores, truth, 7, average="micro")))
    assert found.metrics["micro_f1"] == pytest.approx(float(multiclass_f1_score(scores, truth, 7, average="micro")))
    assert found.metrics["macro_f1"] == pytest.approx(float(multiclass_f1_score(scores, truth, 7, average="macro")), rel=1e-6)
    assert found.metrics["top5_accuracy"] == pytest.approx(float(multiclass_accuracy(scores, truth, 7, average="micro", top_k=5)))
    assert found.metrics["most_frequent"] == int(truth.bincount().max()) / 200
    assert found.details["confusion"] == multiclass_confusion_matrix(scores, truth, 7).tolist()
    for name, theirs in (("precision", multiclass_precision), ("recall", multiclass_recall), ("f1", multiclass_f1_score)):
        mine = [line[name] or 0.0 for line in found.details["classes"]]
        assert mine == pytest.approx(theirs(scores, truth, 7, average="none").tolist(), rel=1e-6)
    assert found.details["classes"][5]["precision"] is None and found.details["classes"][6]["recall"] is None
    assert [p["index"] for p in found.predictions] == list(range(200))
    low, high = found.intervals["macro_f1"].low, found.intervals["macro_f1"].high
    assert low < found.metrics["macro_f1"] < high


@torch.no_grad()
def test_a_vit_whose_classes_have_another_order(folder, labelled, clip):
    torch.manual_seed(0)
    system = shaken(polymodal.system("vit", size="tiny", classes=CLASSES[::-1], **VISION))
    export_system(system, folder / "vit", None)
    record = measured(classify(DataSet.open(labelled)), folder / "vit", labelled, batch_size=4)
    samples, pixels = pixels_of(system.net, labelled)
    guesses = system.net(Normalize(system.net.preprocessing)(pixels)).logits.argmax(-1)
    right = [CLASSES[::-1][g] == CLASSES[s.label()] for g, s in zip(guesses.tolist(), samples)]
    assert record["metrics"]["accuracy"] == pytest.approx(sum(right) / 23)
    other = shaken(polymodal.system("vit", size="tiny", classes=[*CLASSES[:6], "car"], **VISION))
    export_system(other, folder / "car", None)
    with pytest.raises(UserError, match=r"differ: the model does not know 'tree'; the data does not have 'car'"):
        measured(classify(DataSet.open(labelled)), folder / "car", labelled)
    with pytest.raises(UserError, match=r"has no head that classifies pictures.*zero-shot"):
        measured(classify(DataSet.open(labelled)), clip[0], labelled)


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
def test_a_vit_with_several_labels_or_numbers_is_refused(folder, labelled, tmp_path, kind):
    system = polymodal.system("vit", size="tiny", classes=CLASSES, **VISION)
    export_system(system, tmp_path, None)
    record = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**record, "problem_type": kind}))
    with pytest.raises(UserError, match=f"evaluation is for models that tell classes apart.*problem_type {kind}"):
        measured(classify(DataSet.open(labelled)), tmp_path, labelled)


@torch.no_grad()
def test_texts_and_pairs(folder, tmp_path, capsys):
    tokenizer = Tokenizer.train(["red green blue cat dog house tree runs sleeps"] * 9, "wordpiece", 57)
    rng = np.random.default_rng(0)
    words = ["red", "green", "blue", "cat", "dog", "house", "tree"]
    rows = [{"text": " ".join(rng.choice(words, 5)), "other": " ".join(rng.choice(words, 30)), "label": ["no", "yes", "maybe"][i % 3]}
            for i in range(17)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    pack(tmp_path / "t.jsonl", tmp_path / "d", PackSettings(Reading(label_field="label", pair_field="other")), console=Console(quiet=True))
    torch.manual_seed(0)
    system = shaken(polymodal.system("bert", size="tiny", task="classify", tokenizer=tokenizer, classes=["maybe", "no", "yes"], **BERT))
    export_system(system, tmp_path / "model", tokenizer)
    record = measured(classify(DataSet.open(tmp_path / "d")), tmp_path / "model", tmp_path / "d", batch_size=4)
    opened = DataSet.open(tmp_path / "d")
    batch = system.objective.collate([e for i in range(17) for e in system.objective.example(opened.read(i), rng)])
    guesses = system.logits(batch).argmax(-1)
    assert record["metrics"]["accuracy"] == pytest.approx((guesses == batch.labels).float().mean().item())
    assert 0 < record["metrics"]["accuracy"] < 1
    assert cli.run(["evaluate", "classify", "--model", str(tmp_path / "model"), "--data", str(tmp_path / "d"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"] == record["metrics"]


# --- retrieval


@torch.no_grad()
def test_recall_by_brute_force(clip, captioned):
    out, net, tokenizer = clip
    record = measured(Retrieval(), out, captioned, batch_size=4)
    samples, pixels = pixels_of(net, captioned)
    images = F.normalize(net.get_image_features(Normalize(net.preprocessing)(pixels)), dim=-1)
    texts = [(i, text) for i, s in enumerate(samples) for text in s.json()["captions"]]
    tokens = tokenizer([t for _, t in texts], max_length=40)
    vectors = F.normalize(net.get_text_features(tokens["input_ids"], tokens["attention_mask"]), dim=-1)
    scores = (images.double() @ vectors.double().T).numpy()
    owners = [i for i, _ in texts]
    by_image, by_text = [], []
    for i, row in enumerate(scores):
        best = max(s for s, o in zip(row, owners) if o == i)
        others = [s for s, o in zip(row, owners) if o != i]
        by_image.append(1 + sum(s > best + 1e-6 for s in others) + sum(abs(s - best) <= 1e-6 for s in others) / 2)
    for column, owner in zip(scores.T, owners):
        by_text.append(1 + sum(s > column[owner] + 1e-6 for j, s in enumerate(column) if j != owner))
    for name, places in (("image_to_text", by_image), ("text_to_image", by_text)):
        for k in (1, 5, 10):
            assert record["metrics"][f"{name}_recall@{k}"] == pytest.approx(np.mean(np.array(places) <= k)), (name, k)
        assert record["metrics"][f"{name}_median_rank"] == np.median(places)
    assert record["details"]["counts"] == {"pictures": 19, "captions": len(texts)}
    one = measured(Retrieval(max_captions=1), out, captioned)
    assert one["details"]["counts"]["captions"] == 19


def test_ranks_of_equal_scores_and_of_many_queries():
    everything = torch.ones(5, 3)
    assert ranks(everything, everything, torch.arange(5), torch.device("cpu")).tolist() == [3.0] * 5  # a collapsed model is at chance
    torch.manual_seed(0)
    a, b = torch.randn(1100, 4), torch.randn(1100, 4)  # more than one chunk
    found = ranks(a, b, torch.arange(1100), torch.device("cpu"))
    scores = a @ b.T
    assert torch.equal(found, 1.0 + (scores > scores.diagonal()[:, None]).sum(1))
    found = ranks(b, a, torch.arange(1100), torch.device("cpu"), own=True)
    assert torch.equal(found, 1.0 + (scores > scores.diagonal()).sum(0))


# --- generation


@pytest.fixture(scope="module")
def t5(folder):
    torch.manual_seed(2)
    texts = ["red green blue cat dog house tree runs sleeps summarize:"] * 9
    tokenizer = Tokenizer.train(texts, "word", 115, style=STYLES["t5"])
    system = shaken(polymodal.system("t5", size="tiny", tokenizer=tokenizer, d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2))
    with torch.no_grad():  # it writes words, no ends and no sentinels
        table = system.net.trunk.embed.word.weight
        table[:3] = table[-100:] = 0
    export_system(system, folder / "t5", tokenizer)
    rng = np.random.default_rng(0)
    words = ["red", "green", "blue", "cat", "dog", "house", "tree", "runs", "sleeps"]
    rows = [{"text": " ".join(rng.choice(words, 9)), "target": " ".join(rng.choice(words, 6))} for _ in range(11)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    pack(folder / "pairs.jsonl", folder / "targets", PackSettings(Reading(target_field="target")), console=Console(quiet=True))
    return folder / "t5", folder / "targets"


def test_written_texts_are_scored(t5, tmp_path, capsys):
    out, data = t5
    record = measured(Generation(prefix="summarize: ", max_new_tokens=8, max_source_tokens=6), out, data, batch_size=4,
                      predictions=tmp_path / "p.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    opened = DataSet.open(data)
    samples = [opened.read(i) for i in range(11)]
    tokenizer, model = polymodal.tokenizer(out), polymodal.load(out)
    sources = ["summarize: " + s.text() for s in samples]
    cut = [t[:tokenizer.offsets(t)[1][5][1]] for t in sources]
    assert [line["text"] for line in lines] == cut != sources and [line["target"] for line in lines] == [s.target() for s in samples]
    written = [t.strip() for t in polymodal.generate(model, cut, tokenizer=tokenizer, max_new_tokens=8)]
    assert [line["prediction"] for line in lines] == written
    expected = text_scores(written, [s.target() for s in samples])
    assert {k: record["metrics"][k] for k in expected} == pytest.approx(expected)
    assert record["metrics"]["rouge1"] > 0 and record["intervals"]["rouge1"]["low"] < record["metrics"]["rouge1"]
    assert cli.run(["evaluate", "generate", "--model", str(out), "--data", str(data), "--predictions", str(tmp_path / "p.jsonl")]) == 2
    assert "there already" in capsys.readouterr().err


# --- ranks

def measure(clip, labelled, captioned, t5, targets, out):
    found = [evaluate(task, model, data, EvaluationSettings(batch_size=3)) for task, model, data in (
        (ZeroShot(), clip, labelled), (Retrieval(), clip, captioned), (Generation(max_new_tokens=4), t5, targets))]
    if found[0]["rank"] == 0:
        out.write_text(json.dumps([{k: r[k] for k in ("metrics", "intervals", "details", "data")} for r in found]))


@pytest.mark.slow
def test_two_ranks_measure_every_sample_once_and_the_same(clip, labelled, captioned, t5, tmp_path):
    found = []
    for count in (1, 2):
        out = tmp_path / f"{count}.json"
        processes.together(processes.ranks(count, measure, clip[0], labelled, captioned, *t5, out))
        found.append(json.loads(out.read_text()))
    assert found[0] == found[1]
    assert [r["data"]["measured"] for r in found[0]] == [23, 19, 11]
