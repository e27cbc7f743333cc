"""UNITER from the command line: regions, pretraining by turns from a BERT, tuning for retrieval, evaluation, and the example."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polymodal
import pytest
import torch
from PIL import Image
from polymodal.pipelines import cli
from polymodal.pipelines.run.directory import Run
from polymodal.shared.tokenizer import Tokenizer

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 230), "yellow": (230, 220, 40)}
PLACES = {"left": np.s_[:, :16], "right": np.s_[:, 16:], "top": np.s_[:16], "bottom": np.s_[16:]}
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
    rng, rows = np.random.default_rng(0), []
    (root / "in").mkdir()
    for n in range(48):
        colour, place = list(COLOURS)[n % 4], list(PLACES)[n // 4 % 4]
        pixels = rng.integers(0, 40, (32, 32, 3))
        pixels[PLACES[place]] = COLOURS[colour]
        Image.fromarray(pixels.astype(np.uint8)).save(root / "in" / f"{n}.png")
        rows.append({"image": f"{n}.png", "caption": f"{colour} is {place}", "answer": {"yes": 1.0} if n % 4 < 2 else {"no": 0.9}})
    (root / "in" / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Tokenizer.train([row["caption"] for row in rows], "wordpiece", 60).save(root / "tok")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32,
             "patch_size": 8}
    polymodal.save(polymodal.system("mae", size="tiny", **small).net, root / "tower")
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
    module.main(str(made.root / "run"), str(made.root / "held-data"), 1)
    lines = capsys.readouterr().out.splitlines()
    assert "belongs to its picture with 0." in lines[0] and lines[1].startswith("[CLS]") and lines[-1].startswith("[SEP]")
    assert all(len(line.split("|")[1]) == 4 for line in lines[1:])
    with pytest.raises(SystemExit, match="expected a pretrained UNITER"):
        module.main(str(made.root / "tower"), str(made.root / "held-data"), 1)
