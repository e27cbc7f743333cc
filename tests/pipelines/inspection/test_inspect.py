import contextlib
import io
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from polymodal.pipelines import cli
from polymodal.pipelines.data.dataset import DataSet
from polymodal.pipelines.data.layout import BatchLayout
from polymodal.pipelines.data.stream import Stream
from polymodal.pipelines.inspection.inspect import pictures, sample_rows, spread, summary, summary_lines
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings
from polymodal.pipelines.run.recipe import recipe
from polymodal.shared.errors import UserError
from polymodal.shared.sample import Sample
from polymodal.shared.system import Objective
from polymodal.shared.tokenizer import Tokenizer


def polymodal(*arguments):
    """One command line, in this process: starting one takes seconds."""
    if not cli.app.registered_commands:
        cli._register()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.run([str(a) for a in arguments])
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def last(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspect")
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghij"), 5)) for _ in range(60)]
    documents = [" ".join(rng.choice(words, 40)) + "." for _ in range(90)]
    (folder / "a.txt").write_text("\n\n".join(documents))
    Tokenizer.train(documents, "wordpiece", 130).save(folder / "tokenizer")
    pack(folder / "a.txt", folder / "data", PackSettings(shard_bytes=60_000))
    pack(folder / "a.txt", folder / "rows", PackSettings(tokenizer=folder / "tokenizer", block=64))
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for label, colour in (("red", (250, 0, 0)), ("blue", (0, 0, 250))):
        (folder / "in" / label).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (32 + i, 24), colour).save(folder / "in" / label / f"{i}.png")
    pack(folder / "in", folder / "data")
    return folder


def test_every_kind_of_field_is_shown_in_words():
    picture = np.zeros((4, 6, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "PNG")
    array = io.BytesIO()
    np.save(array, np.zeros((2, 3), dtype=np.float32))
    sample = Sample("k", {"png": data.getvalue(), "txt": b"word " * 200, "cls": b"1", "json": b'{"a": 1}', "v.npy": array.getvalue(),
                          "tokens.u16": np.arange(5, dtype="<u2").tobytes(), "lengths.u32": np.array([2, 3], dtype="<u4").tobytes(),
                          "bin": b"\x00" * 2048})
    rows = dict(sample_rows(sample, ["cat", "dog"]))
    assert rows["png"].startswith("picture 6x4") and rows["cls"] == "1 (dog)" and rows["json"] == "{'a': 1}"
    assert rows["txt"].endswith("... (1000 characters)") and rows["v.npy"] == "array float32 [2, 3]"
    assert rows["tokens.u16"].startswith("5 tokens, 2 documents: [0, 1, 2") and rows["lengths.u32"] == "[2, 3]" and rows["bin"] == "2.0 KiB"
    bad = dict(sample_rows(Sample("k", {"jpg": b"x", "txt": b"\xff", "cls": b"one"})))
    assert all(v.startswith("BAD: ") for v in bad.values())


def test_samples_are_spread_over_the_data():
    assert spread(100, 4) == [0, 25, 50, 75] and spread(2, 5) == [0, 1] and spread(5, 0) == []


def test_the_summary_names_classes_and_shards(images):
    facts = summary(DataSet.open(images / "data"))
    assert facts["samples"] == 12 and facts["kind"] == "images" and facts["schema"]["classes"] == ["blue", "red"]
    text = "\n".join(summary_lines(facts))
    assert "classes: 2: blue, red" in text and "000000.tar" in text


def test_the_picture_grid_shows_the_pictures(images, tmp_path):
    data = DataSet.open(images / "data")
    bad = Sample("bad", {"png": b"no picture"})
    warnings: list[str] = []
    assert pictures([*data.read_many(range(12)), bad], tmp_path / "grid.png", ["blue", "red"], warnings.append) == 13
    grid = Image.open(tmp_path / "grid.png")
    assert grid.size == (8 * 128, 2 * 158)
    for i in range(12):
        expected = (0, 0, 250) if data.read(i).label() == 0 else (250, 0, 0)
        assert grid.getpixel((i % 8 * 128 + 64, i // 8 * 158 + 64)) == expected
    with pytest.raises(UserError, match="no pictures"):
        pictures([Sample("a", {"txt": b"x"})], tmp_path / "none.png", (), warnings.append)
    assert not (tmp_path / "none.png").exists() and not warnings


def test_the_command_shows_a_data_set(texts, images, tmp_path):
    facts = last(polymodal("inspect", images / "data", "--sample", 3, "--pictures", tmp_path / "grid.png", "--verify", "--json"))
    assert facts["verified"] and facts["pictures"] == 1 and facts["examples"][0]["sample"] == 3 and (tmp_path / "grid.png").exists()
    for arguments, message in ((("--sample", 12), "samples 0 to 11"), (("--update", 1), "needs --recipe"),
                               (("--update", 1, "--recipe", "x"), "no recipe 'x'")):
        done = polymodal("inspect", images / "data", *arguments)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    done = polymodal("inspect", texts / "rows", "--samples", 1)
    assert "fill: " in done.stdout and "[CLS]" in done.stdout


@pytest.mark.parametrize("data", ["data", "rows"])
def test_the_command_shows_the_samples_of_an_update_and_what_becomes_of_them(texts, data):
    arguments = ["--recipe", "bert-tiny", "--tokenizer", texts / "tokenizer", "--set", "data.global_batch=6", "--set", "seed=5"]
    facts = last(polymodal("inspect", texts / data, "--update", 8, "--samples", 0, "--json", *arguments))["update"]
    chosen = recipe("bert-tiny", ["data.global_batch=6", "seed=5"])

    class Nothing(Objective):
        def example(self, sample, rng):
            raise AssertionError("not used")

        def collate(self, examples):
            raise AssertionError("not used")

    stream = Stream(DataSet.open(texts / data), Nothing(), BatchLayout(6), seed=5, lanes=chosen.data.lanes, window=chosen.data.window)
    assert facts["sample_ids"] == [stream.index(stream.order.locate(p)) for p in range(42, 48)]
    shown = [row for example in facts["examples"] for rows in example["examples"] for row in rows]
    assert any("[MASK]" in value for _, value in shown)


def test_a_run_can_be_inspected(texts, tmp_path):
    done = polymodal("pretrain", "bert-tiny", "--data", texts / "rows", "--out", tmp_path / "run", "--max-updates", 3,
                     "--set", "data.global_batch=4", "--set", "log.every=1", "--set", "schedule.warmup=1")
    assert done.returncode == 0, done.stderr
    for more in ((), ("--data", texts / "rows")):
        facts = last(polymodal("inspect", tmp_path / "run", "--update", 2, "--json", *more))
        assert facts["recipe"] == "bert-tiny" and facts["last"]["train"]["update"] == 3 and facts["checkpoints"] == ["update-00000003"]
        assert len(facts["update"]["sample_ids"]) == 4 and facts["exported"] and facts["update"]["row"]["update"] == 2
    for path in ((tmp_path / "run" / "checkpoints").glob("update-*")):
        shutil.rmtree(path)
    (tmp_path / "run" / "environment.json").unlink()  # as a run of long ago that says nothing of its data
    done = polymodal("inspect", tmp_path / "run", "--update", 2)
    assert done.returncode == 2 and "--data" in done.stderr
    assert len(last(polymodal("inspect", tmp_path / "run", "--update", 2, "--json", "--data", texts / "rows"))["update"]["keys"]) == 4
