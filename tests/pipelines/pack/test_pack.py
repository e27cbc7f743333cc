"""Text, tables, pictures and tars become shards: what is read, in which order, on which side."""

import csv
import json

import numpy as np
import pytest
from packs import contents, picture, refused, texts
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.data.dataset import DataSet
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading


def test_plain_text_is_cut_at_blank_lines_at_lines_or_not_at_all(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\n \t\n\nthree\n---\nfour\n")
    for split, expected in (("blank", ["one\ntwo", "three\n---\nfour"]), ("line", ["one", "two", "three", "---", "four"]),
                            ("file", ["one\ntwo\n\n \t\n\nthree\n---\nfour"]), ("---", ["one\ntwo\n\n \t\n\nthree", "four"])):
        out = tmp_path / f"out {split}"
        index = pack(tmp_path / "a.txt", out, PackSettings(Reading(split=split), shuffle=None))
        assert texts(out) == expected and index.kind == "text" and index.fields == ("txt",)


def test_text_of_large_files_is_cut_into_the_same_documents(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    documents = ["\n".join("w" * int(n) for n in rng.integers(1, 30, int(rng.integers(1, 5)))) + f" {i}" for i in range(300)]
    (tmp_path / "a.txt").write_text("\n\n".join(documents))
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"text": d}) for d in documents))
    for unit in (50, 333, 10**9):
        monkeypatch.setattr("polymodal.pipelines.pack.sources._UNIT_BYTES", unit)
        for name in ("a.txt", "b.jsonl"):
            out = tmp_path / f"{name} {unit}"
            pack(tmp_path / name, out, PackSettings(shuffle=None))
            assert texts(out) == documents


def test_tables_of_text(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = ["one, with a comma", 'two "quoted"\nand a line', "drei ä 三"]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"body": r, "n": 1}) for r in rows) + "\n\n")
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter=delimiter).writerows([["n", "body"], *([i, r] for i, r in enumerate(rows))])
    pyarrow.parquet.write_table(pyarrow.table({"body": rows}), tmp_path / "a.parquet", row_group_size=2)
    for name in ("a.jsonl", "a.csv", "a.tsv", "a.parquet"):
        out = tmp_path / f"{name} out"
        pack(tmp_path / name, out, PackSettings(Reading(text_field="body"), shuffle=None))
        assert texts(out) == rows
        refused(tmp_path / name, tmp_path / "no", "no text in 'text'.*--text-field")


def test_a_folder_per_class_gives_labels(tmp_path):
    for label, name in enumerate(("cat", "dog")):
        for i in range(3):
            picture(tmp_path / "in" / name / "deep" / f"{i}.v1.{'png' if i else 'jpeg'}", seed=10 * label + i)
    index = pack(tmp_path / "in", tmp_path / "out")
    data = DataSet.open(tmp_path / "out")
    assert index.kind == "images" and index.schema["classes"] == ["cat", "dog"] and index.fields == ("cls", "jpg", "png")
    expected = {(n, (tmp_path / f).read_bytes()) for n, f in
                ((n, p.relative_to(tmp_path)) for n, d in enumerate(("cat", "dog")) for p in (tmp_path / "in" / d).rglob("*.*g"))}
    assert {(s.label(), s.fields.get("jpg", s.fields.get("png"))) for s in map(data.read, range(6))} == expected
    assert all("." not in data.read(i).key for i in range(6))
    picture(tmp_path / "in" / "bare.png")
    refused(tmp_path / "in", tmp_path / "no", "beside the class folders")


def test_pictures_without_classes(tmp_path):
    for i in range(3):
        picture(tmp_path / "in" / f"{i}.png", seed=i)
    index = pack(tmp_path / "in", tmp_path / "out")
    assert "classes" not in index.schema and index.fields == ("png",)


@pytest.mark.parametrize("table", ["csv", "jsonl"])
def test_tables_of_pictures_and_captions(tmp_path, table):
    for i in range(4):
        picture(tmp_path / "in" / "pics" / f"{i}.jpg", seed=i)
    rows = [{"image": f"pics/{i}.jpg", "caption": f"caption, {i}"} for i in range(4)]
    if table == "csv":
        with (tmp_path / "in" / "a.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["image", "caption"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        (tmp_path / "in" / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    index = pack(tmp_path / "in", tmp_path / "out", PackSettings(shuffle=None))
    data = DataSet.open(tmp_path / "out")
    assert index.kind == "pairs"
    assert [(s.text(), s.fields["jpg"]) for s in map(data.read, range(4))] == [
        (r["caption"], (tmp_path / "in" / r["image"]).read_bytes()) for r in rows]


def test_tars_are_packed_again(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(f"text {i}" for i in range(60)))
    pack(tmp_path / "a.txt", tmp_path / "one")
    index = pack(tmp_path / "one", tmp_path / "two", PackSettings(shard_bytes=30_000, shuffle=3))
    assert len(index.shards) > 2 and sorted(texts(tmp_path / "two")) == sorted(texts(tmp_path / "one"))


def test_the_same_input_gives_the_same_bytes_whatever_the_workers(tmp_path, monkeypatch):
    monkeypatch.setattr("polymodal.pipelines.pack.sources._UNIT_BYTES", 5000)
    monkeypatch.setattr("polymodal.pipelines.pack.spool._RUN_BYTES", 3000)
    (tmp_path / "a.txt").write_text("\n\n".join(f"text {i} " + "x" * (i % 97) for i in range(700)))
    indexes = [pack(tmp_path / "a.txt", tmp_path / f"{w}" / "train", PackSettings(
        shard_bytes=150_000, holdout=0.1, holdout_out=tmp_path / f"{w}" / "eval"), workers=Workers(w))
               for w in (1, 2)]
    assert indexes[0] == indexes[1] and len(indexes[0].shards) > 3
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert not list(tmp_path.rglob(".*"))
    train, held = texts(tmp_path / "1" / "train"), texts(tmp_path / "1" / "eval")
    assert sorted(train + held) == sorted(f"text {i} {'x' * (i % 97)}".strip() for i in range(700))
    assert 30 < len(held) < 130 and train != sorted(train)
    assert all(s.size <= 150_000 for s in indexes[0].shards)


def test_shuffling_is_a_seeded_permutation(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(f"text {i}" for i in range(400)))
    for seed in (0, 1, None):
        pack(tmp_path / "a.txt", tmp_path / f"{seed}", PackSettings(shuffle=seed))
    a, b, kept = (texts(tmp_path / s) for s in ("0", "1", "None"))
    assert kept == [f"text {i}" for i in range(400)] and sorted(a) == sorted(b) == sorted(kept) and a != b
    places = np.array([int(t.split()[1]) for t in a])
    assert abs(np.corrcoef(places, np.arange(400))[0, 1]) < 0.15


def test_equal_documents_are_held_out_together_and_numbers_are_met(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(f"text {i % 100}" for i in range(200)))
    pack(tmp_path / "a.txt", tmp_path / "train", PackSettings(holdout=10, holdout_out=tmp_path / "eval"))
    train, held = texts(tmp_path / "train"), texts(tmp_path / "eval")
    assert len(set(held)) == 10 and len(held) == 20 and not set(train) & set(held)
    for amount, message in ((100, "leaves nothing"), (-1, "holdout is"), (2.5, "holdout is")):
        options = {"holdout": amount, "holdout_out": tmp_path / "no2"}
        refused(tmp_path / "a.txt", tmp_path / "no", message if amount > 0 else "belong together", **options)
    refused(tmp_path / "a.txt", tmp_path / "no", "belong together", holdout=0.1)


def test_webdataset_reads_what_we_write(tmp_path):
    import webdataset as wds

    (tmp_path / "a.txt").write_text("\n\n".join(f"text {i}" for i in range(50)))
    pack(tmp_path / "a.txt", tmp_path / "out")
    found = [s["txt"].decode() for s in wds.WebDataset(str(tmp_path / "out" / "000000.tar"), shardshuffle=False)]
    assert found == texts(tmp_path / "out")
