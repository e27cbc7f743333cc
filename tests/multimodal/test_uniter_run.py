"""UNITER from the command line: regions, pretraining by turns from a BERT, tuning for each task, evaluation, use, and the example."""

import importlib.util
import io
import json
from pathlib import Path
from types import SimpleNamespace

import polymodal
import pytest
import torch
from halves import draw_halves, save_tower
from polymodal.multimodal.pair_classes import PairClassifier
from polymodal.multimodal.region_pairs import PairSettings, RegionBatch, RegionReader, batch_of_pairs
from polymodal.pipelines import cli
from polymodal.pipelines.regions.regions import open_detector
from polymodal.pipelines.run.directory import Run
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import Tokenizer

QUICK = ["--set", "model.hidden_size=32", "--set", "model.intermediate_size=48", "--set", "model.num_hidden_layers=1", "--set",
         "data.global_batch=8", "--set", "data.window=64", "--set", "log.tensorboard=false", "--set", "accelerator=cpu"]
pytestmark = pytest.mark.slow


def told(capsys, *words):
    code = cli.run([*map(str, words)])
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("uniter")
    rows = [{"image": name, "caption": f"{colour} is {place}", "answer": {"yes": 1.0} if n % 4 < 2 else {"no": 0.9}}
            for n, (name, colour, place) in enumerate(draw_halves(root / "in"))]
    (root / "in" / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))
    both = [{**row, "image": [row["image"], f"{(n + 1) % 48}.png"], "truth": ("no", "yes")[n % 2],
             "box": [[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]][n % 2]} for n, row in enumerate(rows)]
    (root / "both.jsonl").write_text("\n".join(json.dumps({**row, "image": [f"in/{name}" for name in row["image"]]}) for row in both))
    (root / "boxes.jsonl").write_text("\n".join(json.dumps({**row, "image": f"in/{row['image'][0]}"}) for row in both))
    Tokenizer.train([row["caption"] for row in rows], "wordpiece", 60).save(root / "tok")
    save_tower(root / "tower")
    bert = polymodal.system("bert", size="tiny", tokenizer=root / "tok", hidden_size=32, intermediate_size=48, num_hidden_layers=1).net
    polymodal.save(bert, root / "bert")
    Tokenizer.load(root / "tok").save(root / "bert")
    for command in (
        ["pack", root / "in", "--kind", "pairs", "--label-field", "answer", "--out", root / "pairs", "--holdout", "12", "--holdout-out",
         root / "held"],
        ["regions", root / "pairs", "--detector", "grid", "--tower", root / "tower", "--regions", "4", "--classes", "6", "--out",
         root / "data"],
        ["regions", root / "held", "--detector", "grid", "--tower", root / "tower", "--regions", "4", "--codebook", root / "data", "--out",
         root / "held-data"],
        ["pretrain", "uniter-tiny", "--model", root / "bert", "--data", root / "data", "--eval-data", root / "held-data", "--out",
         root / "run", *QUICK, "--set", "max_updates=12", "--set", "log.every=6", "--set", "evaluate.every=12", "--set",
         "checkpoint.every=6"],
        ["finetune", "uniter-tiny", "--set", "task=retrieval", "--model", root / "run", "--data", root / "data", "--eval-data",
         root / "held-data", "--out", root / "tuned", *QUICK, "--set", "max_updates=3", "--set", "log.every=3"],
        ["finetune", "uniter-tiny", "--set", "task=classify", "--model", root / "run", "--data", root / "data", "--eval-data",
         root / "held-data", "--out", root / "answers", *QUICK, "--set", "max_updates=3", "--set", "log.every=3"],
        *(word for kind, label, task in (("both", "truth", "compare"), ("boxes", "box", "ground")) for word in (
            ["pack", root / f"{kind}.jsonl", "--kind", "pairs", "--label-field", label, "--out", root / f"{kind}-pairs"],
            ["regions", root / f"{kind}-pairs", "--detector", "grid", "--tower", root / "tower", "--regions", "4", "--codebook",
             root / "data", "--out", root / f"{kind}-data"],
            ["finetune", "uniter-tiny", "--set", f"task={task}", "--model", root / "run", "--data", root / f"{kind}-data", "--out",
             root / task, *QUICK, "--set", "max_updates=3", "--set", "log.every=3"])),
    ):
        assert cli.run([str(word) for word in command]) == 0, command
    return SimpleNamespace(root=root)


def test_a_run_logs_each_task_and_begins_with_the_bert(made):
    rows = Run(made.root / "run").metrics("train")
    for name in ("itm/itm", "itm/wra", "itm/wra_unmatched", "mlm/mlm", "mrfr/mrfr", "mrc_kl/mrc_kl"):
        assert all(name in row for row in rows), name
    (held,) = Run(made.root / "run").metrics("eval")
    assert {"itm/itm_accuracy", "mlm/mlm_chance", "mrfr/mrfr_neighbours", "mrc_kl/mrc_kl_accuracy"} <= set(held)
    config = polymodal.load(made.root / "run").config
    assert config.visual_feat_dim == 16 and config.num_object_labels == 7 and config.type_vocab_size == 2


@pytest.mark.parametrize("model", ["run", "tuned"])
def test_retrieval_is_measured_by_scoring_every_pair(made, capsys, model):
    code, out, err = told(capsys, "evaluate", "retrieval", "--model", made.root / model, "--data", made.root / "held-data", "--json")
    assert code == 0, err
    record = json.loads(out.strip().splitlines()[-1])
    assert record["method"] == "recall among all pairs, each scored" and record["details"]["counts"]["pictures"] == 12
    assert 0 <= record["metrics"]["text_to_image_recall@1"] <= 1 and record["metrics"]["chance_recall@1"] == pytest.approx(1 / 12)


def test_answers_are_measured_by_their_scores(made, capsys, tmp_path):
    code, out, err = told(capsys, "evaluate", "classify", "--model", made.root / "answers", "--data", made.root / "held-data",
                          "--predictions", tmp_path / "p.jsonl", "--json")
    assert code == 0, err
    metrics = json.loads(out.strip().splitlines()[-1])["metrics"]
    assert 0 < metrics["accuracy"] <= 1 and 0.4 < metrics["most_frequent"] <= 1
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert len(lines) == 12 and set(lines[0]["predictions"]) == {"yes", "no"}
    code, _, err = told(capsys, "evaluate", "classify", "--model", made.root / "run", "--data", made.root / "held-data")
    assert code == 2 and "UniterForPreTraining" in err


def test_regions_that_phrases_mean_and_texts_about_two_pictures_are_measured(made, capsys, tmp_path):
    code, out, err = told(capsys, "evaluate", "ground", "--model", made.root / "ground", "--data", made.root / "boxes-data",
                          "--predictions", tmp_path / "p.jsonl", "--json")
    assert code == 0, err
    metrics = json.loads(out.strip().splitlines()[-1])["metrics"]
    assert metrics["chance"] == 0.25 and metrics["found"] == 1 and 0 <= metrics["accuracy"] <= 1
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert len(lines) == 48 and {tuple(line["right"]) for line in lines} == {(0,), (3,)} and len(lines[0]["scores"]) == 4
    code, out, err = told(capsys, "evaluate", "classify", "--model", made.root / "compare", "--data", made.root / "both-data", "--json")
    assert code == 0, err
    record = json.loads(out.strip().splitlines()[-1])
    assert record["method"] == "2 classes" and record["metrics"]["most_frequent"] == 0.5
    assert polymodal.load(made.root / "compare").config.type_vocab_size == 3
    code, _, err = told(capsys, "evaluate", "classify", "--model", made.root / "compare", "--data", made.root / "data")
    assert code == 2 and len(err.strip().splitlines()) == 1
    code, _, err = told(capsys, "evaluate", "ground", "--model", made.root / "answers", "--data", made.root / "boxes-data")
    assert code == 2 and "fine-tuned for the task ground" in err


def test_questions_about_pictures_are_answered(made, capsys, monkeypatch):
    root, tower = made.root, ("--tower", made.root / "tower", "--regions", "4")
    picture = root / "in" / "0.png"
    code, out, err = told(capsys, "answer", "red is left", "--image", picture, "--image", root / "in" / "1.png", "--model",
                          root / "answers", *tower, "--show", "2", "--json")
    assert code == 0, err
    record = json.loads(out.strip().splitlines()[-1])
    assert record["pictures"] == 2 and {a["text"] for a in record["results"][0]["answers"]} == {"yes", "no"}
    by, sample = PairClassifier(polymodal.load(root / "answers"), polymodal.tokenizer(root / "answers")), grid_of(root, picture)
    expected = by.probabilities([(by.reader.framed("red is left"), by.reader.regions(sample))])[0].max()
    assert record["results"][0]["answers"][0]["score"] == pytest.approx(float(expected), rel=1e-5)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(picture.read_bytes()), isatty=lambda: False))
    code, out, err = told(capsys, "answer", "red is left", "--image", "-", "--model", root / "answers", *tower)
    assert code == 0 and out.startswith("<stdin>: "), err
    for words, message in (
        (["--image", picture, root / "both.jsonl", "--model", root / "answers", *tower], "give one of them"),
        (["--image", picture, "--model", root / "answers"], "name one with --tower"),
        (["--image", picture, "--model", root / "run", *tower], "fine-tuned to answer texts about pictures"),
        (["--image", root / "nowhere.png", "--model", root / "answers", *tower], "no picture or folder"),
        (["--image", root / "both.jsonl", "--model", root / "answers", *tower], "none of 1 pictures could be read"),
    ):
        code, _, err = told(capsys, "answer", "red is left", *words)
        assert code == 2 and message in err, err


def test_pictures_are_classified_by_the_names_of_classes(made, capsys):
    root, tower = made.root, ("--tower", made.root / "tower", "--regions", "4")
    code, out, err = told(capsys, "classify", root / "in" / "0.png", "--model", root / "run", *tower, "--labels", "red,blue", "--template",
                          "{} is left", "--template", "{} is right", "--json")
    assert code == 0, err
    found = {p["label"]: p["score"] for p in json.loads(out.strip().splitlines()[-1])["results"][0]["predictions"]}
    net, tokenizer = polymodal.load(root / "run"), polymodal.tokenizer(root / "run")
    reader = RegionReader(tokenizer, PairSettings(max_length=60), 16, 0, training=False)
    regions = reader.regions(grid_of(root, root / "in" / "0.png"))
    texts = [reader.framed(f"{colour} is {place}") for colour in ("red", "blue") for place in ("left", "right")]
    with torch.no_grad():
        scores = net.score_pairs(RegionBatch(counts={}, **batch_of_pairs(texts, [regions] * 4))).view(2, 2).mean(1).softmax(0)
    assert [found["red"], found["blue"]] == pytest.approx(scores.tolist(), rel=1e-4)
    code, out, err = told(capsys, "evaluate", "zero-shot", "--model", root / "run", "--data", root / "both-data", "--template", "{}",
                          "--json")
    assert code == 0, err
    record = json.loads(out.strip().splitlines()[-1])
    assert record["method"] == "2 classes, 1 template" and record["metrics"]["chance"] == 0.5
    for words, message in ((["--model", root / "run", *tower], "pass --labels"),
                           (["--model", root / "answers", *tower, "--labels", "a,b"], "polymodal answer QUESTION --image PICTURE"),
                           (["--model", root / "run", "--tower", root / "tower", "--regions", "5", "--labels", "a,b"], "a square number")):
        code, _, err = told(capsys, "classify", root / "in" / "0.png", *words)
        assert code == 2 and message in err, err


def grid_of(root, picture):
    """The sample of a picture with the regions that `answer` and `classify` find in it."""
    detector = open_detector("grid", str(root / "tower"), 4, "cpu")
    (found,) = detector.find([detector.prepare(Sample("a", {"png": picture.read_bytes()}))])
    return Sample("a", found.fields())


def test_data_without_regions_or_of_another_detector_is_told(made, capsys, tmp_path):
    root = made.root
    code, _, err = told(capsys, "evaluate", "retrieval", "--model", root / "tuned", "--data", root / "held")
    assert code == 2 and "no field 'regions.npy'" in err and len(err.strip().splitlines()) == 1
    code, _, err = told(capsys, "pretrain", "uniter-tiny", "--data", root / "pairs", "--tokenizer", root / "tok", "--out", tmp_path / "x",
                        *QUICK, "--set", "max_updates=2")
    assert code == 2 and "no field 'regions.npy'" in err
    told(capsys, "regions", root / "held", "--detector", "grid", "--tower", root / "tower", "--regions", "4", "--classes", "6", "--out",
         tmp_path / "other")
    code, _, err = told(capsys, "pretrain", "uniter-tiny", "--data", root / "data", "--eval-data", tmp_path / "other", "--tokenizer",
                        root / "tok", "--out", tmp_path / "x", *QUICK, "--set", "max_updates=2")
    assert code == 2 and "the regions of the data sets differ" in err


def test_the_example_draws_a_map(made, capsys):
    path = Path(__file__).resolve().parents[2] / "examples" / "align_words.py"
    spec = importlib.util.spec_from_file_location("align_words", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(str(made.root / "run"), str(made.root / "held-data"), 1, str(made.root / "map.svg"))
    drawn = (made.root / "map.svg").read_text()
    lines = capsys.readouterr().out.splitlines()
    assert "belongs to its picture with 0." in lines[0] and lines[1].startswith("[CLS]") and lines[-1].startswith("[SEP]")
    assert all(len(line.split("|")[1]) == 4 for line in lines[1:])
    assert drawn.count("<text") == len(lines) - 1 and drawn.count("fill-opacity") == 4 * (len(lines) - 1)
    with pytest.raises(SystemExit, match="expected a pretrained UNITER"):
        module.main(str(made.root / "tower"), str(made.root / "held-data"), 1)
