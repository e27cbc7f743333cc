"""`polymodal classify` from the outside: models of three layouts, files, folders, stdin, and what goes wrong."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from polymodal.multimodal.clip import CLIP, CLIPConfig
from polymodal.pipelines import cli
from polymodal.pipelines.model.frontdoor import save
from polymodal.shared.settings import build_settings
from polymodal.shared.tokenizer import STYLES, Tokenizer
from polymodal.vision.vit import ViT, ViTConfig

VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 16, "patch_size": 8,
       "layer_norm_eps": 1e-6}


@pytest.fixture(scope="module", autouse=True)
def commands():
    cli._register()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["red green blue cat dog house"] * 3, "byte-bpe", 270, style=STYLES["clip"])
    text = {"vocab_size": tokenizer.vocab_size, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 32, "max_position_embeddings": 16, "eos_token_id": tokenizer.eos_id}
    vision = {k: v for k, v in VIT.items() if k != "layer_norm_eps"}
    net = CLIP(build_settings(CLIPConfig, {"projection_dim": 8, "text_config": text, "vision_config": vision}, "model")).eval()
    paths = {}
    for layout in ("transformers", "open_clip"):
        paths[layout] = str(tmp_path_factory.mktemp("clip") / layout)
        save(net, paths[layout], tokenizer=tokenizer, format=layout)
    return paths


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    torch.manual_seed(0)
    net = ViT(ViTConfig(**VIT, num_labels=3, labels=("cat", "dog", "house"))).eval()
    paths = {}
    for layout in ("transformers", "timm"):
        paths[layout] = str(tmp_path_factory.mktemp("vit") / layout)
        save(net, paths[layout], format=layout)
    return paths


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "pictures"
    (path / "more").mkdir(parents=True)
    for name, kind in (("a.png", "PNG"), ("b.jpg", "JPEG"), ("more/c.webp", "WEBP")):
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(path / name, kind)
    (path / "notes.txt").write_text("no picture")
    return path


def run(capsys, *arguments):
    code = cli.run(["classify", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("layout", ["transformers", "open_clip"])
def test_zero_shot(capsys, clip, folder, layout):
    code, out, err = run(capsys, folder, "--model", clip[layout], "--labels", "cat, dog,house", "--top", 2, "--json")
    assert code == 0, err
    answer = json.loads(out.splitlines()[-1])
    assert [r["image"] for r in answer["results"]] == [str(folder / n) for n in ("a.png", "b.jpg", "more/c.webp")]
    assert all(len(r["predictions"]) == 2 for r in answer["results"]) and answer["bad"] == []
    first = answer["results"][0]["predictions"]
    assert first[0]["score"] >= first[1]["score"] and {p["label"] for p in first} < {"cat", "dog", "house"}


def test_layouts_and_batches_agree(capsys, clip, folder, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\n\nhouse\n")
    answers = []
    for layout, labels, size in (("transformers", "cat,dog,house", 32), ("open_clip", "cat,dog,house", 1), ("transformers", names, 2)):
        _, out, _ = run(capsys, folder, "--model", clip[layout], "--labels", labels, "--batch-size", size, "--json")
        answers.append(json.loads(out.splitlines()[-1])["results"])
    for other in answers[1:]:
        for a, b in zip(answers[0], other, strict=True):
            assert [p["label"] for p in a["predictions"]] == [p["label"] for p in b["predictions"]]
            assert [p["score"] for p in a["predictions"]] == pytest.approx([p["score"] for p in b["predictions"]], abs=1e-5)


@pytest.mark.parametrize("layout", ["transformers", "timm"])
def test_a_vit_names_its_own_classes(capsys, vit, folder, layout):
    code, out, err = run(capsys, folder / "a.png", "--model", vit[layout])
    assert code == 0, err
    assert out.startswith(f"{folder / 'a.png'}: ") and all(name in out for name in ("cat", "dog", "house"))
    code, _, err = run(capsys, folder / "a.png", "--model", vit[layout], "--labels", "cat,dog")
    assert code == 2 and "classes of its own" in err


def test_standard_input(capsys, monkeypatch, vit, folder):
    for data, name in (((folder / "b.jpg").read_bytes(), "<stdin>"), (f"{folder / 'b.jpg'}\n".encode(), str(folder / "b.jpg"))):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        code, out, err = run(capsys, "-", "--model", vit["transformers"])
        assert code == 0 and out.startswith(f"{name}: "), err


def test_bad_pictures_are_counted(capsys, vit, folder):
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n and no more")
    code, out, err = run(capsys, folder, "--model", vit["transformers"], "--json")
    answer = json.loads(out.splitlines()[-1])
    assert code == 0 and len(answer["results"]) == 3 and [b["image"] for b in answer["bad"]] == [str(folder / "broken.png")]
    assert err.count("broken.png") == 1 and "1 of 4 pictures could not be read" in err
    code, out, err = run(capsys, folder / "broken.png", "--model", vit["transformers"])
    assert code == 2 and "none of 1 pictures" in err and "Traceback" not in err


@pytest.mark.parametrize(("arguments", "message"), [
    (["nowhere.png"], "no picture or folder at 'nowhere.png'"),
    (["EMPTY"], "holds no .jpg"),
    (["PICTURE", "--labels", "missing.txt"], "no such file"),
    (["PICTURE", "--labels", " , "], "names no class"),
    (["PICTURE", "--labels", "cat,cat"], "given twice"),
    (["PICTURE", "--labels", "cat,dog", "--template", "a photo"], "no {}"),
    (["PICTURE"], "pass --labels"),
])
def test_mistakes_cost_one_line(capsys, clip, folder, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    places = {"EMPTY": str(tmp_path / "empty"), "PICTURE": str(folder / "a.png")}
    code, out, err = run(capsys, *(places.get(a, a) for a in arguments), "--model", clip["transformers"])
    assert code == 2 and message in err and err.count("\n") == 1 and out == ""
