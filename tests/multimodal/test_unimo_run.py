"""UNIMO from the command line: texts, pictures and pairs in one run from a RoBERTa, tuning, captions, and the example."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import polymodal
import pytest
from halves import draw_halves, save_tower
from polymodal.pipelines import cli
from polymodal.pipelines.run.directory import Run
from polymodal.shared.errors import UserError
from polymodal.shared.tokenizer import STYLES, Tokenizer

QUICK = ["--set", "data.global_batch=8", "--set", "data.window=64", "--set", "log.tensorboard=false", "--set", "accelerator=cpu",
         "--set", "precision=32"]
pytestmark = pytest.mark.slow


def told(capsys, *words):
    code = cli.run([*map(str, words)])
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("unimo")
    rows = [{"image": name, "caption": f"the {colour} half is {place}"} for name, colour, place in draw_halves(root / "in")]
    (root / "in" / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))
    texts = [f"{row['caption']} and here the other half is dark" for row in rows]
    (root / "texts.txt").write_text("\n".join(texts))
    Tokenizer.train(texts, "byte-bpe", 300, style=STYLES["roberta"]).save(root / "tok")
    save_tower(root / "tower")
    net = polymodal.system("roberta", size="tiny", tokenizer=root / "tok", hidden_size=32, intermediate_size=48, num_hidden_layers=1).net
    polymodal.save(net, root / "roberta")
    Tokenizer.load(root / "tok").save(root / "roberta")
    grid = ["--detector", "grid", "--tower", root / "tower", "--regions", "4"]
    for command in (
        ["pack", root / "in", "--kind", "pairs", "--out", root / "plain", "--holdout", "12", "--holdout-out", root / "held-plain"],
        ["pack", root / "in", "--kind", "images", "--out", root / "images"],
        ["pack", root / "texts.txt", "--split", "line", "--out", root / "texts"],
        ["regions", root / "plain", *grid, "--classes", "6", "--out", root / "pairs"],
        ["regions", root / "held-plain", *grid, "--codebook", root / "pairs", "--out", root / "held"],
        ["regions", root / "images", *grid, "--codebook", root / "pairs", "--out", root / "pictures"],
        ["relate", root / "pairs", "--texts", root / "texts", "--pictures", root / "pictures", "--out", root / "data"],
        ["relate", root / "held", "--texts", root / "texts", "--out", root / "held-data"],
        ["pretrain", "unimo-tiny", "--model", root / "roberta", "--data", root / "texts", "--data", root / "pictures", "--data",
         root / "data", "--eval-data", root / "held-data", "--out", root / "run", *QUICK, "--set", "max_updates=18", "--set", "log.every=9",
         "--set", "evaluate.every=18", "--set", "checkpoint.every=9"],
        ["finetune", "unimo-caption-tiny", "--model", root / "run", "--data", root / "data", "--eval-data", root / "held-data", "--out",
         root / "captions", *QUICK, "--set", "max_updates=200", "--set", "log.every=50", "--set", "optim.lr=1e-2", "--set",
         "evaluate.every=0"],
        ["finetune", "unimo-tiny", "--set", "task=retrieval", "--model", root / "run", "--data", root / "data", "--out", root / "ranking",
         *QUICK, "--set", "max_updates=2", "--set", "log.every=2"],
    ):
        assert cli.run([str(word) for word in command]) == 0, command
    return SimpleNamespace(root=root)


def test_one_run_learns_from_three_data_sets(made):
    rows = Run(made.root / "run").metrics("train")
    for name in ("words/mlm", "seq2seq/lm", "regions/mrfr", "pairs/mlm", "pairs/mrc_kl", "caption/lm", "contrast/contrast"):
        assert all(name in row for row in rows), name
    (held,) = Run(made.root / "run").metrics("eval")
    assert {"pairs/mlm_chance", "caption/lm_accuracy", "contrast/contrast_chance"} <= set(held) and "words/mlm" not in held
    config = polymodal.load(made.root / "run").config
    assert (config.visual_feat_dim, config.num_object_labels, config.hidden_size, config.sep_token_id) == (16, 7, 32, 2)


def test_captions_are_written_for_pictures(made, capsys, tmp_path):
    root = made.root
    files = [root / "in" / "0.png", root / "in" / "5.png"]
    code, out, err = told(capsys, "caption", *files, "--model", root / "captions", "--tower", root / "tower", "--regions", "4", "--out",
                          tmp_path / "c.jsonl", "--json")
    assert code == 0, err
    results = json.loads(out.strip().splitlines()[-1])["results"]
    assert [r["image"] for r in results] == list(map(str, files)) and all(" half is " in r["caption"] for r in results)
    assert [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()] == results
    net, tower = polymodal.load(root / "captions"), polymodal.load(root / "tower")
    again = polymodal.caption(net, files, tokenizer=polymodal.tokenizer(root / "captions"), tower=tower, regions=4, num_beams=5,
                              length_penalty=0.6, max_new_tokens=60)
    assert again == [r["caption"] for r in results]
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"bad\.png: field 'png' cannot be decoded"):
        polymodal.caption(net, [tmp_path / "bad.png"], tokenizer=polymodal.tokenizer(root / "captions"), tower=tower, regions=4)
    code, out, err = told(capsys, "caption", tmp_path / "bad.png", files[0], "--model", root / "run", "--tower", root / "tower",
                          "--regions", "4", "--num-beams", "1")
    assert code == 0 and "bad.png" in err and out.startswith(str(files[0]))
    for more, message in ((["--model", root / "roberta", "--regions", "4"], "writes no captions"),
                          (["--model", root / "run", "--regions", "5"], "square number"),
                          (["--model", root / "run", "--out", tmp_path / "c.txt"], "must end in .jsonl")):
        code, _, err = told(capsys, "caption", files[0], "--tower", root / "tower", *more)
        assert code == 2 and message in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("model", ["run", "ranking"])
def test_retrieval_is_measured_by_scoring_every_pair(made, capsys, model):
    code, out, err = told(capsys, "evaluate", "retrieval", "--model", made.root / model, "--data", made.root / "held-data", "--json")
    assert code == 0, err
    record = json.loads(out.strip().splitlines()[-1])
    assert record["method"] == "recall among all pairs, each scored" and record["details"]["counts"]["pictures"] == 12


def test_a_run_without_pictures_of_their_own_says_what_to_leave_out(made, capsys, tmp_path):
    code, _, err = told(capsys, "pretrain", "unimo-tiny", "--data", made.root / "data", "--data", made.root / "texts", "--tokenizer",
                        made.root / "tok", "--out", tmp_path / "x", *QUICK)
    assert code == 2 and "the task regions can read none of the data sets" in err and "objective.regions=0" in err


def test_the_example_ranks_rewrites(made, capsys):
    path = Path(__file__).resolve().parents[2] / "examples" / "rank_rewrites.py"
    spec = importlib.util.spec_from_file_location("rank_rewrites", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(str(made.root / "run"), str(made.root / "held-data"), 1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and sum(line.startswith("*") for line in lines) == 1
    with pytest.raises(SystemExit, match="expected a UNIMO"):
        module.main(str(made.root / "tower"), str(made.root / "held-data"), 1)
