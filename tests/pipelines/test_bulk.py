"""Vectors and classes of whole data sets: the same as of single inputs, resumable, whatever the workers."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polymodal
import pytest
import torch
from PIL import Image
from polymodal.pipelines import bulk, cli
from polymodal.pipelines.pack import pack
from polymodal.pipelines.shards import DataSet
from polymodal.shared.tokenizer import STYLES, Tokenizer

VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 16, "patch_size": 8}
WORDS = "red green blue cat dog house tree river stone cloud".split()


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
    system = polymodal.system("bert", size="tiny", task=task, tokenizer=tok, classes=["good", "bad", "odd"] if task else None, hidden_size=16,
                              num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=32)
    polymodal.save(system.net, folder, tokenizer=tok)
    return str(folder)


def texts(count, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, int(n))) + f" {i}" for i, n in enumerate(rng.integers(1, 30, count))]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    (folder / "a.txt").write_text("\n\n".join(texts(700)))
    pack(folder / "a.txt", folder / "data", shuffle=None, shard_bytes=600_000)
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
    from polymodal.pipelines.embed import embed

    assert found.dtype == np.float32
    np.testing.assert_allclose(found, embed(model, texts(700), tokenizer).numpy(), atol=1e-6)
    keys = [DataSet.open(data).locate(i)[0] for i in range(700)]
    assert lines(tmp_path / "v.keys.jsonl") == [{"row": i, "sample": i, "key": k} for i, k in enumerate(keys)]
    assert [(r["sample"], r["key"]) for r in lines(tmp_path / "v.jsonl")] == list(enumerate(keys))
    assert (np.array([r["embedding"] for r in lines(tmp_path / "v.jsonl")], dtype=np.float32) == found).all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["v.jsonl", "v.keys.jsonl", "v.npy"]


def test_the_bytes_do_not_depend_on_the_workers(capsys, bert, data, tmp_path):
    for workers in (1, 2):
        assert run(capsys, "embed", "--model", bert, "--data", data, "--out", tmp_path / f"{workers}.npy", "--workers", workers)[0] == 0
    assert sha(tmp_path / "1.npy") == sha(tmp_path / "2.npy")
