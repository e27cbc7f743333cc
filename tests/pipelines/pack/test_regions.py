"""`pack --kind regions`: captions with regions that were made elsewhere."""

import json

import numpy as np
import pytest
from packs import picture, refused, settings_of, write_table
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.data.dataset import DataSet
from polymodal.pipelines.pack.pack import pack


def npz(path, count=3, width=6, classes=5, **changed):
    rng = np.random.default_rng(count)
    low = rng.uniform(0, 0.5, (count, 2)).astype(np.float32)
    boxes = np.concatenate([low, low + 0.3, np.full((count, 2), 0.3, np.float32)], axis=1)  # as released: with width and height
    arrays = {"features": rng.normal(size=(count, width)).astype(np.float16), "norm_bb": boxes, "conf": np.ones((count, 1)),
              "soft_labels": np.full((count, classes), 1 / classes, np.float32)}
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **{**arrays, **changed})


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_table_names_files_and_captions(tmp_path, suffix):
    for n in range(4):
        npz(tmp_path / "r" / f"{n}.npz", 2 + n)
    rows = [{"image": f"r/{n}.npz", "caption": f"caption {n}"} for n in range(4)]
    if suffix == ".jsonl":
        rows[0]["caption"] = ["one", "two"]
    write_table(tmp_path / f"t{suffix}", rows)
    index = pack([tmp_path], tmp_path / "out", settings_of(kind="regions", shuffle=None), workers=Workers(1))
    assert index.kind == "regions" and index.schema == {"regions": {"detector": "files", "features": 6, "classes": 5}}
    data = DataSet.open(tmp_path / "out")
    assert [len(data.read(i).regions().features) for i in range(4)] == [2, 3, 4, 5]
    assert data.read(3).text() == "caption 3" and data.read(3).regions().boxes.shape == (5, 4)
    if suffix == ".jsonl":
        assert json.loads(data.read(0).fields["json"]) == {"captions": ["one", "two"]}


@pytest.mark.parametrize(("change", "message"), [
    ({"features": np.zeros((0, 6)), "norm_bb": np.zeros((0, 6)), "soft_labels": np.zeros((0, 5))}, "0 regions"),
    ({"features": np.full((3, 6), np.nan)}, "a feature of region 0 is not a finite number"),
    ({"norm_bb": np.full((3, 6), 2.0)}, "outside the picture"),
    ({"soft_labels": np.ones((3, 5))}, "add up to 5"),
    ({"features": np.array(["a"])}, "'features' holds <U1, expected numbers"),
])
def test_regions_that_cannot_be_used_stop_packing_or_are_counted(tmp_path, change, message):
    npz(tmp_path / "a.npz")
    npz(tmp_path / "b.npz", **change)
    write_table(tmp_path / "t.jsonl", [{"image": f"{n}.npz", "caption": n} for n in "ab"])
    refused([tmp_path / "t.jsonl"], tmp_path / "out", f"b.npz: .*{message}", kind="regions")
    index = pack([tmp_path / "t.jsonl"], tmp_path / "out", settings_of(kind="regions", on_bad="skip"), workers=Workers(1))
    assert index.samples == 1 and index.schema["skipped"] == 1


def test_files_that_are_none_and_widths_that_differ_are_told(tmp_path):
    npz(tmp_path / "a.npz")
    npz(tmp_path / "b.npz", width=7)
    np.savez(tmp_path / "c.npz", features=np.zeros((1, 6)))
    np.savez(tmp_path / "d.npz", features=np.zeros((1, 6)), bbox=np.zeros((1, 4)))
    (tmp_path / "e.npz").write_bytes(b"PK\x03\x04")
    for names, message in (("ab", "regions of 'a' have features of width 6 and 5 classes, those of 'b' width 7"),
                           ("c", "holds features: expected features .* and boxes"), ("d", "boxes in pixels and no 'image_w'"),
                           ("e", "e.npz cannot be read as npz"), ("f", "f.npz does not exist")):
        write_table(tmp_path / "t.jsonl", [{"image": f"{n}.npz", "caption": n} for n in names])
        refused([tmp_path / "t.jsonl"], tmp_path / "out", message, kind="regions", shuffle=None)
    write_table(tmp_path / "t.jsonl", [{"image": "a.npz", "caption": " "}])
    refused([tmp_path / "t.jsonl"], tmp_path / "out", "an empty text", kind="regions")
    write_table(tmp_path / "t.jsonl", [{"caption": "a"}])
    refused([tmp_path / "t.jsonl"], tmp_path / "out", "no path of an .npz file", kind="regions")


def test_classes_and_scored_answers_stand_beside_the_regions(tmp_path):
    for n in range(3):
        npz(tmp_path / f"{n}.npz")
    rows = [{"image": "0.npz", "caption": "a", "answer": {"yes": 1.0, "no": 0.3}}, {"image": "1.npz", "caption": ["b", "c"], "answer": {
        "blue": 0.6}}, {"image": "2.npz", "caption": "d", "answer": "no"}]
    write_table(tmp_path / "t.jsonl", rows)
    options = {"kind": "regions", "label_field": "answer", "shuffle": None}
    index = pack([tmp_path / "t.jsonl"], tmp_path / "out", settings_of(**options), workers=Workers(1))
    assert index.schema["classes"] == ["blue", "no", "yes"]
    data = DataSet.open(tmp_path / "out")
    assert data.read(0).json() == {"scores": {"yes": 1.0, "no": 0.3}} and data.read(0).text() == "a" and data.read(2).label() == 1
    assert data.read(1).json() == {"captions": ["b", "c"], "scores": {"blue": 0.6}}
    for wrong in ({"yes": 2}, {"yes": True}, {" ": 1}):
        write_table(tmp_path / "t.jsonl", [{**rows[0], "answer": wrong}])
        refused([tmp_path / "t.jsonl"], tmp_path / "x", "expected names with numbers from 0 to 1", **options)


def test_pairs_of_pictures_and_questions_have_scored_answers_too(tmp_path):
    picture(tmp_path / "a.png")
    write_table(tmp_path / "t.jsonl", [{"image": "a.png", "caption": "what colour?", "answer": {"red": 0.9}}])
    index = pack([tmp_path / "t.jsonl"], tmp_path / "out", settings_of(kind="pairs", label_field="answer"), workers=Workers(1))
    assert index.schema["classes"] == ["red"] and DataSet.open(tmp_path / "out").read(0).json() == {"scores": {"red": 0.9}}
