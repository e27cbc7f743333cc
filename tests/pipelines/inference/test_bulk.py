"""Vectors and classes of whole data sets: the same as of single inputs, resumable, whatever the workers."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polymodal
import pytest
import torch
from PIL import Image
from polymodal.pipelines import cli
from polymodal.pipelines.data.dataset import DataSet
from polymodal.pipelines.data.index import build_index
from polymodal.pipelines.inference import bulk
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.shared.tokenizer import STYLES, Tokenizer

VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 16, "patch_size": 8}
WORDS = ["red", "green", "blue", "cat", "dog", "house", "tree", "river", "stone", "cloud"]


@pytest.fixture(scope="module", autouse=True)
def commands():
    cli._register()


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("bert"))


def save_bert(folder, seed=0, task=""):
    """A tiny BERT with its tokenizer."""
    torch.manual_seed(seed)
    tok = Tokenizer.train([" ".join(WORDS)] * 3, "wordpiece", 60)
    classes = ["good", "bad", "odd"] if task else None
    system = polymodal.system("bert", size="tiny", task=task, tokenizer=tok, classes=classes, hidden_size=16, num_hidden_layers=1,
                              num_attention_heads=2, intermediate_size=32, max_position_embeddings=32)
    polymodal.save(system.net, folder, tokenizer=tok)
    return str(folder)


def texts(count, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, int(n))) + f" {i}" for i, n in enumerate(rng.integers(1, 30, count))]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    (folder / "a.txt").write_text("\n\n".join(texts(700)))
    pack(folder / "a.txt", folder / "data", PackSettings(shard_bytes=600_000, shuffle=None))
    return folder / "data"


def run(capsys, *arguments):
    code = cli.run([*map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]) if out else None, err


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def sha(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_parts_cover_every_sample_once_and_never_cross_shards():
    for sizes in ((1,), (300, 5, 256, 257), (5000,) * 3, (700_000, 9)):
        parts = bulk.cut(sizes)
        assert [p.number for p in parts] == list(range(len(parts)))
        assert [i for p in parts for i in (p.begin, p.end)][1:-1] == [i for p in parts[1:] for i in (p.begin, p.begin)]
        assert parts[0].begin == 0 and parts[-1].end == sum(sizes) and max(p.end - p.begin for p in parts) <= 4096
        assert {int(x) for x in np.cumsum(sizes)} <= {p.end for p in parts}


def test_vectors_of_a_data_set_are_those_of_its_texts_in_order(capsys, bert, data, tmp_path):
    for name in ("v.npy", "v.jsonl"):
        code, answer, err = run(capsys, "embed", "--model", bert, "--data", data, "--out", tmp_path / name, "--workers", 1)
        assert code == 0, err
        assert answer["count"] == 700 and answer["dimension"] == 16 and answer["skipped"] == 0
    found = np.load(tmp_path / "v.npy")
    model, tokenizer = polymodal.load(bert), polymodal.tokenizer(bert)
    from polymodal.pipelines.inference.embed import embed

    assert found.dtype == np.float32
    np.testing.assert_allclose(found, embed(model, texts(700), tokenizer).numpy(), atol=1e-6)
    keys = [DataSet.open(data).key_and_shard(i)[0] for i in range(700)]
    assert lines(tmp_path / "v.keys.jsonl") == [{"row": i, "sample": i, "key": k} for i, k in enumerate(keys)]
    assert [(r["sample"], r["key"]) for r in lines(tmp_path / "v.jsonl")] == list(enumerate(keys))
    assert (np.array([r["embedding"] for r in lines(tmp_path / "v.jsonl")], dtype=np.float32) == found).all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["v.jsonl", "v.keys.jsonl", "v.model.json", "v.npy"]


def test_the_bytes_do_not_depend_on_the_workers(capsys, bert, data, tmp_path):
    for workers in (1, 2):
        assert run(capsys, "embed", "--model", bert, "--data", data, "--out", tmp_path / f"{workers}.npy", "--workers", workers)[0] == 0
    assert sha(tmp_path / "1.npy") == sha(tmp_path / "2.npy")


class Stop(BaseException):
    """Ends a run as a kill would: nobody catches it."""


def test_an_interrupted_run_goes_on_from_its_parts(capsys, monkeypatch, bert, data, tmp_path):
    from polymodal.pipelines.inference import runners

    arguments = ("embed", "--model", bert, "--data", data, "--workers", 1, "--out")
    assert run(capsys, *arguments, tmp_path / "whole.jsonl")[0] == 0
    seen, real = [], runners._TextVectors.run

    def stops(self, items):
        seen.append(len(items))
        if len(seen) == 3:
            raise Stop
        return real(self, items)

    monkeypatch.setattr(runners._TextVectors, "run", stops)
    with pytest.raises(Stop):
        run(capsys, *arguments, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists() and len(list((tmp_path / ".out.jsonl.parts").glob("*.safetensors"))) == 2
    done = sum(seen[:2])
    seen.extend([0] * 9)
    del seen[:3]
    assert run(capsys, *arguments, tmp_path / "out.jsonl")[0] == 0
    assert sum(seen) == 700 - done, "only what was missing is run"
    assert sha(tmp_path / "out.jsonl") == sha(tmp_path / "whole.jsonl")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.jsonl", "whole.jsonl"]


def test_parts_of_other_weights_or_options_are_not_used(capsys, monkeypatch, data, tmp_path):
    models = [save_bert(tmp_path / str(seed), seed) for seed in (0, 1)]
    join = bulk._join

    def stops(*arguments):
        raise Stop

    for model, more in ((models[1], ()), (models[0], ("--raw",)), (models[0], ("--max-length", 5))):
        monkeypatch.setattr(bulk, "_join", stops)
        with pytest.raises(Stop):  # all parts are there
            run(capsys, "embed", "--model", model, "--data", data, "--workers", 1, "--out", tmp_path / "v.npy", *more)
        monkeypatch.setattr(bulk, "_join", join)
        assert list(tmp_path.glob(".v.npy.parts/*.safetensors"))
        for name in ("v.npy", "fresh.npy"):
            assert run(capsys, "embed", "--model", models[0], "--data", data, "--workers", 1, "--out", tmp_path / name)[0] == 0
        assert sha(tmp_path / "v.npy") == sha(tmp_path / "fresh.npy")


def test_classes_of_texts_and_pairs(capsys, tmp_path):
    from polymodal.pipelines.base.console import Console
    from polymodal.pipelines.inference.texts import classify_texts, text_classifier

    model = save_bert(tmp_path / "model", task="classify")
    rows = [{"text": a, "second": b} for a, b in zip(texts(40), texts(40, 1), strict=True)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pack(tmp_path / "a.jsonl", tmp_path / "data", PackSettings(Reading(pair_field="second"), shuffle=None))
    code, answer, err = run(capsys, "classify", "--model", model, "--data", tmp_path / "data", "--out", tmp_path / "c.jsonl", "--top", 2,
                            "--batch-size", 7)
    assert code == 0 and answer["count"] == 40, err
    by = text_classifier(polymodal.load(model), model, None, ())
    expected = classify_texts(by, [(r["text"], r["second"]) for r in rows], top=2, batch_size=40, console=Console(quiet=True))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "t.jsonl").write_text("".join(json.dumps({"text": r["text"], "text_pair": r["second"]}) + "\n" for r in rows[:3]))
    code, answer, err = run(capsys, "classify", tmp_path / "in", "--model", model, "--top", 2)
    assert code == 0 and [(r["text"], r["text_pair"], r["predictions"][0]["label"]) for r in answer["results"]] == [
        (r["text"], r["second"], e[0][0]) for r, e in zip(rows, expected[:3])], err
    Image.new("RGB", (4, 4)).save(tmp_path / "p.jpg")
    code, answer, err = run(capsys, "classify", tmp_path / "p.jpg", "--model", model)
    assert code == 2 and "is a picture" in err
    for i, (line, wanted) in enumerate(zip(lines(tmp_path / "c.jsonl"), expected, strict=True)):
        assert line["sample"] == i and [p["label"] for p in line["predictions"]] == [name for name, _ in wanted]
        assert [p["score"] for p in line["predictions"]] == pytest.approx([s for _, s in wanted], abs=1e-6)


def pictures(folder, count=6, bad=()):
    """Tars made elsewhere: pictures with captions, some of them damaged."""
    import io
    import tarfile

    folder.mkdir()
    rng = np.random.default_rng(0)
    made = []
    with tarfile.open(folder / "a.tar", "w") as tar:
        for i in range(count):
            made.append(Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)))
            buffer = io.BytesIO()
            made[-1].save(buffer, "PNG")
            for name, content in ((f"s{i}.png", b"no picture" if i in bad else buffer.getvalue()), (f"s{i}.txt", f"cat {i}".encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    build_index(folder)
    return made


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    torch.manual_seed(0)
    tok = Tokenizer.train(["red green blue cat dog house"] * 3, "byte-bpe", 270, style=STYLES["clip"])
    text = {"vocab_size": tok.vocab_size, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
            "max_position_embeddings": 16, "eos_token_id": tok.eos_id}
    from polymodal.multimodal.clip import CLIP, CLIPConfig
    from polymodal.shared.settings import build_settings

    folder = tmp_path_factory.mktemp("clip")
    net = CLIP(build_settings(CLIPConfig, {"projection_dim": 8, "text_config": text, "vision_config": VIT}, "model")).eval()
    polymodal.save(net, folder, tokenizer=tok)
    return str(folder)


def test_pictures_or_their_captions(capsys, clip, tmp_path):
    made = pictures(tmp_path / "data")
    from polymodal.pipelines.inference.embed import embed, embed_pictures

    model, tok = polymodal.load(clip), polymodal.tokenizer(clip)
    code, _, err = run(capsys, "embed", "--model", clip, "--data", tmp_path / "data", "--out", tmp_path / "v.npy")
    assert code == 2 and "--of image or --of text" in err
    for of, expected in (("image", embed_pictures(model, made)), ("text", embed(model, [f"cat {i}" for i in range(6)], tok))):
        assert run(capsys, "embed", "--model", clip, "--data", tmp_path / "data", "--out", tmp_path / "v.npy", "--of", of)[0] == 0
        np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected.numpy(), atol=1e-6)
    code, answer, err = run(capsys, "classify", "--model", clip, "--data", tmp_path / "data", "--out", tmp_path / "c.jsonl", "--labels",
                            "cat,dog")
    assert code == 0 and answer["count"] == 6, err
    assert all({p["label"] for p in line["predictions"]} == {"cat", "dog"} for line in lines(tmp_path / "c.jsonl"))


def test_bad_samples_stop_a_run_or_are_left_out(capsys, clip, tmp_path):
    pictures(tmp_path / "data", bad=(2, 3))
    arguments = ("embed", "--model", clip, "--data", tmp_path / "data", "--of", "image", "--out", tmp_path / "v.npy")
    code, _, err = run(capsys, *arguments)
    assert code == 2 and "'s2'" in err and "--on-bad skip" in err and err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
    code, answer, err = run(capsys, *arguments, "--on-bad", "skip")
    assert code == 0 and answer["count"] == 4 and answer["skipped"] == 2 and "'s3'" in err
    assert [(r["row"], r["sample"]) for r in lines(tmp_path / "v.keys.jsonl")] == [(0, 0), (1, 1), (2, 4), (3, 5)]
    assert len(np.load(tmp_path / "v.npy")) == 4
    pictures(tmp_path / "all bad", bad=range(6))
    code, _, err = run(capsys, "embed", "--model", clip, "--data", tmp_path / "all bad", "--of", "image", "--out", tmp_path / "w.npy",
                       "--on-bad", "skip")
    assert code == 2 and "none of 6 samples" in err and not list(tmp_path.glob(".w*"))


@pytest.mark.parametrize(("command", "arguments", "message"), [
    ("embed", ["--data", "DATA"], "needs --out FILE"),
    ("embed", ["--data", "DATA", "--out", "v.txt"], "must end in .npy or .jsonl"),
    ("embed", ["--data", "DATA", "--out", "nowhere/v.npy"], "no folder nowhere"),
    ("embed", ["a text", "--data", "DATA", "--out", "v.npy"], "leave one of them out"),
    ("embed", ["--data", "DATA", "--out", "v.npy", "--of", "sound"], "expected text or image"),
    ("embed", ["--data", "DATA", "--out", "v.npy", "--of", "image"], "no picture vectors"),
    ("embed", ["--data", "DATA", "--out", "v.npy", "--on", "moon"], "expected local or ray"),
    ("embed", ["--data", "DATA", "--out", "v.npy", "--on-bad", "ignore"], "expected raise or skip"),
    ("embed", ["--data", "DATA", "--out", "v.npy", "--ray-address", "a:1"], "give --on ray with it"),
    ("embed", ["--data", "DATA", "--out", "v.npy", "--on", "ray", "--ray-address", "127.0.0.1:1"], "nothing answers there"),
    ("embed", ["--data", "DATA", "--out", "v.npy", "--device", "meta:1", "--workers", "2"], "is one device"),
    ("embed", ["--data", "TOKENS", "--out", "v.npy"], "pack the texts without --tokenize"),
    ("embed", ["a text", "--workers", "2"], "belong to --data"),
    ("classify", ["a text", "--out", "v.jsonl"], "belong to --data"),
    ("classify", [], "nothing to classify"),
    ("classify", ["--data", "DATA", "--out", "v.npy"], "ends in .jsonl"),
    ("classify", ["--data", "DATA", "--out", "v.jsonl"], "classifies neither"),
])
def test_mistakes_cost_one_line_and_leave_nothing(capsys, monkeypatch, bert, data, tmp_path, command, arguments, message):
    monkeypatch.chdir(tmp_path)
    if "TOKENS" in arguments:
        (tmp_path / "a.txt").write_text("red green blue")
        pack(tmp_path / "a.txt", tmp_path / "TOKENS", PackSettings(tokenizer=bert, block=16))
    before = sorted(tmp_path.iterdir())
    places = {"DATA": str(data)}
    code, _, err = run(capsys, command, "--model", bert, *(places.get(a, a) for a in arguments))
    assert code == 2 and message in err and err.count("\n") == 1, err
    assert sorted(tmp_path.iterdir()) == before


def test_a_second_run_into_the_same_file_is_refused(capsys, bert, data, tmp_path):
    hold = ("import sys; from pathlib import Path; from polymodal.pipelines.crew.crew import claim; kept = claim(Path(sys.argv[1]), ''); "
            "print(1, flush=True); sys.stdin.read()")
    with subprocess.Popen([sys.executable, "-c", hold, str(tmp_path / ".v.npy.parts")], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        code, _, err = run(capsys, "embed", "--model", bert, "--data", data, "--out", tmp_path / "v.npy")
        assert code == 2 and "another process is writing" in err
        other.stdin.close()
