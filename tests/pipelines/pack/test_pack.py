import csv
import errno
import hashlib
import io
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from polymodal.pipelines import cli
from polymodal.pipelines.base.inputs import PICTURES
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.data.dataset import DataSet
from polymodal.pipelines.pack import pack as packing
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.rows import fit, in_sequence
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.shared.errors import UserError
from polymodal.shared.picture import FIELD_OF_FORMAT
from polymodal.shared.tokenizer import Tokenizer


def picture(path, size=(20, 16), seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def contents(folder):
    """Every file of a folder with its hash, side files and index included."""
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def texts(folder):
    data = DataSet.open(folder)
    return [data.read(i).text() for i in range(len(data))]


def settings_of(**options):
    """Settings from the names of their fields, those of reading among them."""
    reading = {f.name: options.pop(f.name) for f in fields(Reading) if f.name in options}
    return PackSettings(Reading(**reading), **options)


def refused(sources, out, message, **options):
    with pytest.raises(UserError, match=message) as caught:
        pack(sources, out, settings_of(**options))
    assert "\n" not in str(caught.value)
    assert not out.exists() or not any(out.iterdir())


# ---- what is read


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


# ---- order, sizes, sides


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


# ---- tokens


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 64), max_size=200), st.sampled_from([64, 80]))
def test_every_token_is_in_one_row_and_rows_are_full(lengths, block):
    rows = fit(np.array(lengths, dtype=np.int64), block)
    covered = {i: [] for i in range(len(lengths))}
    for row in rows:
        assert 0 < sum(p.length for p in row) <= block
        for piece in row:
            covered[piece.document].append((piece.begin, piece.end))
    for i, pieces in covered.items():
        pieces.sort()
        assert pieces[0][0] == 0 and pieces[-1][1] == lengths[i] and all(a[1] == b[0] for a, b in itertools.pairwise(pieces))
    assert not rows or sum(lengths) > 0.99 * block * (len(rows) - 1) - block  # where few rows cannot be full, one may be short


@pytest.mark.parametrize("lengths", [np.full(3000, 600), np.random.default_rng(0).integers(500, 1024, 4000),
                                     np.clip(np.random.default_rng(1).lognormal(5.3, 1, 20000), 1, 1024).astype(int)])
def test_rows_of_a_thousand_tokens_are_99_percent_full(lengths):
    rows = fit(lengths, 1024)
    assert sum(p.length for row in rows for p in row) == lengths.sum()
    assert lengths.sum() / (1024 * len(rows)) >= 0.99


@pytest.mark.parametrize("kind", ["wordpiece", "byte-bpe"])
def test_tokenised_rows_hold_the_documents(tmp_path, kind):
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghij"), 5)) for _ in range(200)]
    documents = [" ".join(rng.choice(words, int(n))) for n in np.clip(rng.lognormal(2.5, 1, 600), 1, 150)]
    tok = Tokenizer.train(documents, kind, 400)
    (tmp_path / "a.txt").write_text("\n\n".join(documents))
    index = pack(tmp_path / "a.txt", tmp_path / "out", PackSettings(shard_bytes=40_000, tokenizer=tok, block=64))
    data = DataSet.open(tmp_path / "out")
    assert index.kind == "tokens" and index.schema["tokenizer"] == tok.fingerprint == Tokenizer.load(data.tokenizer_dir).fingerprint
    rows = [data.read(i).tokens() for i in range(len(data))]
    assert all(len(ids) <= 64 and lengths.sum() == len(ids) for ids, lengths in rows)
    total = sum(len(ids) for ids, _ in rows)
    assert index.schema["tokens"] == total and total / (64 * len(rows)) == pytest.approx(index.schema["fill"])
    assert len(index.shards) > 1 and total >= 0.99 * 64 * (len(rows) - len(index.shards))  # the last row of a shard may be short
    pieces = [tok.decode(part.tolist()) for ids, lengths in rows for part in np.split(ids, np.cumsum(lengths)[:-1])]
    letters = [sorted("".join(x).replace("##", "").replace(" ", "")) for x in (pieces, documents)]  # a cut may fall inside a word
    assert letters[0] == letters[1]
    short = [d for d in documents if len(tok.encode(d)) < 60]
    assert len(set(short) & {p.strip() for p in pieces}) > 0.95 * len(set(short))  # few are cut
    edges = {int(ids[0]) for ids, _ in rows}, {int(ids[-1]) for ids, _ in rows}
    assert tok.cls_id in edges[0] if kind == "wordpiece" else tok.eos_id in edges[1]


def test_tokenising_gives_the_same_bytes_whatever_the_workers(tmp_path, monkeypatch):
    monkeypatch.setattr("polymodal.pipelines.pack.sources._UNIT_BYTES", 4000)
    (tmp_path / "a.txt").write_text("\n\n".join(f"some words here {i} " * (1 + i % 13) for i in range(300)))
    tok = Tokenizer.train(["some words here 0123456789"] * 9, "byte-bpe", 265)
    for w in (1, 2):
        pack(tmp_path / "a.txt", tmp_path / str(w), PackSettings(shard_bytes=40_000, tokenizer=tok, block=64), workers=Workers(w))
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_tokenising_needs_text(tmp_path):
    picture(tmp_path / "in" / "a.png")
    tok = Tokenizer.train(["a b c"], "byte-bpe", 257)
    refused(tmp_path / "in", tmp_path / "no", "rows of tokens from text", tokenizer=tok)
    (tmp_path / "a.txt").write_text("a b c")
    refused(tmp_path / "a.txt", tmp_path / "no", "too short", tokenizer=tok, block=4)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=60), st.integers(8, 80))
def test_rows_in_sequence_are_the_text_cut_every_block(lengths, block):
    rows = in_sequence(np.array(lengths, dtype=np.int64), block)
    tokens = [(d, t) for row in rows for p in row for d, t in ((p.document, t) for t in range(p.begin, p.end))]
    assert tokens == [(d, t) for d, n in enumerate(lengths) for t in range(n)]
    assert [sum(p.length for p in row) for row in rows[:-1]] == [block] * (len(rows) - 1) and all(p.length for row in rows for p in row)


@pytest.mark.parametrize("kind", ["wordpiece", "byte-bpe"])
def test_rows_in_order_are_the_text(tmp_path, kind):
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghij"), 5)) for _ in range(200)]
    documents = [" ".join(rng.choice(words, int(n))) for n in rng.integers(1, 300, 90)]
    tok = Tokenizer.train(documents, kind, 400)
    (tmp_path / "a.txt").write_text("\n\n".join(documents))
    tok.save(tmp_path / "tok")
    done = polymodal("pack", tmp_path / "a.txt", "--out", tmp_path / "out", "--tokenize", tmp_path / "tok", "--block", 64, "--in-order",
                     "--shard-bytes", "40000")
    assert done.returncode == 0, done.stderr
    data = DataSet.open(tmp_path / "out")
    ids, lengths = (np.concatenate(parts) for parts in zip(*(data.read(i).tokens() for i in range(len(data))), strict=True))
    ends = (tok.cls_id, tok.sep_id) if kind == "wordpiece" else (None, tok.eos_id)
    wanted = [t for d in documents for t in (ends[0], *tok.encode(d, add_special_tokens=False), ends[1]) if t is not None]
    assert ids.tolist() == wanted and data.index.schema["in_order"] is True
    shards = data.shard_sizes
    assert len(shards) > 2
    full = np.array([len(data.read(i).tokens()[0]) for i in range(len(data))])
    assert (full[np.setdiff1d(np.arange(len(data)), np.cumsum(shards) - 1)] == 64).all()
    borders = np.cumsum([len(tok.encode(d, add_special_tokens=False)) + (2 if ends[0] is not None else 1) for d in documents])
    assert np.cumsum(lengths).tolist() == sorted({*borders.tolist(), *np.cumsum(full).tolist()})


def test_in_order_refuses_what_contradicts_it(tmp_path):
    (tmp_path / "a.txt").write_text("a b c")
    tok = Tokenizer.train(["a b c"], "byte-bpe", 257)
    refused(tmp_path / "a.txt", tmp_path / "no", "give a tokenizer with --tokenize", in_order=True)
    refused(tmp_path / "a.txt", tmp_path / "no", "--shuffle 3 changes it", in_order=True, tokenizer=tok, shuffle=3)


# ---- bad input


def test_missing_empty_and_unknown_sources(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "zero.txt").touch()
    (tmp_path / "blank.txt").write_text(" \n\n \n")
    (tmp_path / "a.xyz").write_text("x")
    (tmp_path / "a.txt").write_text("x")
    for sources, message, options in (
        (tmp_path / "none", "does not exist", {}), (tmp_path / "empty", "is empty", {}), (tmp_path / "zero.txt", "empty file", {}),
        (tmp_path / "blank.txt", "no usable samples", {}), (tmp_path / "a.xyz", "cannot tell what to pack", {}),
        ([], "name at least one", {}),
        (tmp_path / "a.txt", "wrong type for --kind images", {"kind": "images"}), (tmp_path / "a.txt", "is unknown", {"kind": "sound"}),
        ([tmp_path / "none", tmp_path / "zero.txt"], "none.*zero.txt", {}), (tmp_path / "a.txt", "on_bad", {"on_bad": "ignore"}),
        (tmp_path / "a.txt", "too small", {"shard_bytes": 10}),
    ):
        refused(sources, tmp_path / "no", message, **options)


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.txt", b"good\n\nb\xff\xfed\n\ngood too", "not UTF-8"),
    ("a.jsonl", b'{"text": "good"}\n{"text": "b\xff\xfed"}\n{"text": "good too"}', "not JSON|not UTF-8"),
    ("a.csv", b"text\ngood\nb\xff\xfed\ngood too", "not UTF-8"),
    ("a.jsonl", b'{"text": "good"}\n{"text": \n{"text": "good too"}', "not JSON"),
    ("a.jsonl", b'{"text": "good"}\n[1]\n{"text": "good too"}', "expected a JSON object"),
    ("a.jsonl", b'{"text": "good"}\n{"text": 5}\n{"text": "good too"}', "no text in"),
    ("a.csv", b'text\ngood\n""\ngood too', "empty text"),
])
def test_texts_that_cannot_be_used_stop_packing_or_are_counted(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, tmp_path / "no", message)
    index = pack(tmp_path / name, tmp_path / "out", PackSettings(shuffle=None, on_bad="skip"))
    assert texts(tmp_path / "out") == ["good", "good too"] and index.schema["skipped"] == 1


def test_a_parquet_file_that_is_none(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    refused(tmp_path / "a.parquet", tmp_path / "no", "not a parquet file")


def png_header(width, height):
    """A PNG that says it is huge: an image bomb."""
    data = io.BytesIO()
    Image.new("L", (8, 8)).save(data, "PNG")
    raw = bytearray(data.getvalue())
    raw[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    import zlib

    raw[29:33] = zlib.crc32(bytes(raw[12:29])).to_bytes(4, "big")
    return bytes(raw)


@pytest.mark.parametrize(("content", "message"), [
    (b"", "cannot be decoded"), (b"this is text", "cannot be decoded"), (b"<svg></svg>", "cannot be decoded"),
    ("cut", "cannot be decoded"), ("ppm", "is PPM, expected"), ("grey of 32 bits", "32 bits"),
    (png_header(60_000, 60_000), "too large|pixels"), (png_header(9000, 8000), "pixels"),
])
def test_pictures_that_cannot_be_used_stop_packing_or_are_counted(tmp_path, content, message):
    good = picture(tmp_path / "in" / "a" / "good.jpg", (64, 64))
    if content == "cut":
        content = good.read_bytes()[:700]
    elif isinstance(content, str):
        buffer = io.BytesIO()
        Image.new("RGB" if content == "ppm" else "F", (4, 4)).save(buffer, "PPM" if content == "ppm" else "TIFF")
        content = buffer.getvalue()
    (tmp_path / "in" / "a" / "bad.png").write_bytes(content)
    refused(tmp_path / "in", tmp_path / "no", message)
    index = pack(tmp_path / "in", tmp_path / "out", PackSettings(on_bad="skip"))
    assert index.samples == 1 and index.schema["skipped"] == 1


def test_every_kind_of_picture_is_packed_by_what_it_is_and_read_again(tmp_path):
    (tmp_path / "in").mkdir()
    for kind, form in enumerate(FIELD_OF_FORMAT):
        more = {"save_all": True, "append_images": [Image.new("RGB", (6, 4))]} if form == "MPO" else {}
        # the ending may say anything; all of them are found
        Image.new("RGB", (6, 4), (40 * kind, 90, 200)).save(tmp_path / "in" / f"{kind}{PICTURES[-1 - kind]}", form, **more)
    pack(tmp_path / "in", tmp_path / "out", PackSettings(shuffle=None))
    data = DataSet.open(tmp_path / "out")
    found = [data.read(i) for i in range(len(data))]
    assert [list(s.fields) for s in found] == [[field] for field in FIELD_OF_FORMAT.values()]
    for kind, sample in enumerate(found):
        assert np.abs(sample.pixels()[0, 0].astype(int) - (40 * kind, 90, 200)).max() < 6


def test_a_table_that_names_a_missing_picture(tmp_path):
    picture(tmp_path / "a.jpg")
    (tmp_path / "a.csv").write_text("image,caption\na.jpg,good\nb.jpg,missing\n")
    refused(tmp_path / "a.csv", tmp_path / "no", r"b\.jpg.*cannot be read")
    assert pack(tmp_path / "a.csv", tmp_path / "out", PackSettings(on_bad="skip")).samples == 1


def test_a_tar_with_a_pickle_or_a_cut_is_not_packed(tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as file:
        info = tarfile.TarInfo("a.pkl")
        info.size = 3
        file.addfile(info, io.BytesIO(b"abc"))
    refused(tmp_path / "a.tar", tmp_path / "no", "pickle")
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:700])
    refused(tmp_path / "a.tar", tmp_path / "no", "truncated|pickle")


def test_places_that_cannot_be_written_to(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        pack(tmp_path / "a.txt", tmp_path / "file")
    with pytest.raises(NotADirectoryError):  # the command line explains it, see below
        pack(tmp_path / "a.txt", tmp_path / "file" / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.doc").write_text("x")
    with pytest.raises(UserError, match=r"not empty \(it holds 'mine\.doc'\)"):
        pack(tmp_path / "a.txt", tmp_path / "full")
    pack(tmp_path / "a.txt", tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(UserError, match="holds a data set already"):
        pack(tmp_path / "a.txt", tmp_path / "out")
    assert contents(tmp_path / "out") == before and (tmp_path / "full" / "mine.doc").read_text() == "x"


def polymodal(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "polymodal", *map(str, arguments)], capture_output=True, text=True, check=False, **options)


def test_the_command_line_explains_an_unwritable_place(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    (tmp_path / "file").write_text("x")
    done = polymodal("pack", tmp_path / "a.txt", "--out", tmp_path / "file" / "out")
    assert done.returncode == 2 and done.stderr.startswith("error: Not a directory") and done.stderr.count("\n") == 1


def test_the_command_line_explains_a_forbidden_place(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.txt").write_text("one")
    real = Path.mkdir

    def forbidden(path, *arguments, **options):
        if path.is_relative_to(tmp_path / "out"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        real(path, *arguments, **options)

    if not cli.app.registered_commands:
        cli._register()
    monkeypatch.setattr(Path, "mkdir", forbidden)
    assert cli.run(["pack", str(tmp_path / "a.txt"), "--out", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: Permission denied") and line.count("\n") == 1


def test_a_full_disk_leaves_no_data_set_and_the_next_run_finishes(tmp_path, monkeypatch):
    """ENOSPC while a shard is written, when others are finished."""
    (tmp_path / "a.txt").write_text("\n\n".join(f"text {i}" for i in range(300)))
    chosen = PackSettings(shard_bytes=60_000)
    pack(tmp_path / "a.txt", tmp_path / "expected", chosen)
    real, calls = os.fsync, []

    def full(file):
        calls.append(file)
        if len(calls) > 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file)

    monkeypatch.setattr(packing.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        pack(tmp_path / "a.txt", tmp_path / "out", chosen)
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "out").iterdir()] == [".pack"] and not list((tmp_path / "out").rglob("*.tmp"))
    with pytest.raises(UserError, match="no index"):
        DataSet.open(tmp_path / "out")
    pack(tmp_path / "a.txt", tmp_path / "out", chosen)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_the_command_line_explains_a_file_that_cannot_grow(tmp_path):
    """RLIMIT_FSIZE: the system refuses to write on."""
    (tmp_path / "a.txt").write_text("\n\n".join(f"text {i}" for i in range(3000)))

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    done = polymodal("pack", tmp_path / "a.txt", "--out", tmp_path / "out", preexec_fn=limit)
    assert done.returncode == 2 and done.stderr.startswith("error: no space left") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out" / "index.json").exists()


KILLED = """
import sys
from pathlib import Path
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.pack import sources
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings
sources._UNIT_BYTES = 20_000
if __name__ == "__main__":
    settings = PackSettings(shard_bytes=100_000, holdout=0.1, holdout_out=sys.argv[2] + " held")
    pack(sys.argv[1], sys.argv[2], settings, workers=Workers(int(sys.argv[3])))
"""


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_run_continues_to_the_same_bytes(tmp_path, monkeypatch, workers):
    (tmp_path / "a.txt").write_text("\n\n".join(f"text {i} " + "y" * (i % 61) for i in range(6000)))
    (tmp_path / "run.py").write_text(KILLED)
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "a.txt")]
    monkeypatch.setattr("polymodal.pipelines.pack.sources._UNIT_BYTES", 20_000)
    pack(tmp_path / "a.txt", tmp_path / "whole", PackSettings(shard_bytes=100_000, holdout=0.1, holdout_out=tmp_path / "whole held"),
         workers=Workers(1))
    out = tmp_path / "out"
    kills = 0
    for finished in (5, 30):  # files of finished work at which the run is killed
        run = subprocess.Popen([*command, str(out), str(workers)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while run.poll() is None and len(list(tmp_path.glob("out*/.pack/*/*.json"))) < finished:
            time.sleep(0.002)
        kills += run.poll() is None
        run.send_signal(signal.SIGKILL)
        run.wait()
    assert kills == 2
    done = subprocess.run([*command, str(out), str(workers)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for side in ("", " held"):
        assert contents(Path(f"{out}{side}")) == contents(tmp_path / f"whole{side}")


def test_a_second_run_into_the_same_folder_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    (tmp_path / "out" / ".pack").mkdir(parents=True)
    hold = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path / "out" / ".pack" / "lock")], stdout=subprocess.PIPE)
    other.stdout.readline()
    with pytest.raises(UserError, match="another process is packing"):
        pack(tmp_path / "a.txt", tmp_path / "out")
    other.kill()
    other.communicate()
    assert pack(tmp_path / "a.txt", tmp_path / "out").samples == 2


def test_leftovers_of_another_plan_are_not_used(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    pack(tmp_path / "a.txt", tmp_path / "expected")
    shutil.copytree(tmp_path / "expected", tmp_path / "out" / ".pack" / "shards")
    (tmp_path / "out" / ".pack" / "plan.json").write_text(json.dumps({"options": "others"}))
    pack(tmp_path / "a.txt", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


# ---- labelled texts, pairs, targets


def rows_of(folder):
    data = DataSet.open(folder)
    return [data.read(i) for i in range(len(data))], data.index.schema.get("classes")


def write_table(path, rows):
    """The same rows as jsonl, csv, tsv or parquet."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    elif path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_labels_pairs_and_targets_come_from_columns(tmp_path, suffix):
    rows = [{"text": f"premise {i}", "second": f"hypothesis {i}", "out": f"answer {i}", "label": ("no", "maybe", "yes")[i % 3]}
            for i in range(12)]
    table = write_table(tmp_path / f"t{suffix}", rows)
    pack(table, tmp_path / "data", PackSettings(Reading(label_field="label", pair_field="second", target_field="out"),
                                                shuffle=1, holdout=0.4, holdout_out=tmp_path / "held"))
    found = []
    for side in ("data", "held"):
        samples, classes = rows_of(tmp_path / side)
        assert classes == ["maybe", "no", "yes"], "both sides share the list, whatever occurs in them"
        found += [(s.text(), s.pair(), s.target(), classes[s.label()]) for s in samples]
        assert all(set(s.fields) == {"txt", "pair.txt", "target.txt", "cls"} for s in samples)
    assert sorted(found) == sorted((r["text"], r["second"], r["out"], r["label"]) for r in rows)


def test_whole_numbers_keep_their_order_as_classes(tmp_path):
    table = write_table(tmp_path / "t.jsonl", [{"text": f"text {i}", "label": i} for i in (10, 9, 1, 2)])
    pack(table, tmp_path / "data", PackSettings(Reading(label_field="label"), shuffle=None))
    samples, classes = rows_of(tmp_path / "data")
    assert classes == ["1", "2", "9", "10"]
    assert [s.label() for s in samples] == [3, 2, 0, 1]


def test_a_given_list_of_classes_numbers_them_and_refuses_others(tmp_path):
    table = write_table(tmp_path / "t.csv", [{"text": "good film", "label": "pos"}])
    assert cli.invoke(["pack", str(table), "--out", str(tmp_path / "data"), "--label-field", "label", "--classes", "pos,neg"]) == 0
    samples, classes = rows_of(tmp_path / "data")
    assert (samples[0].label(), classes) == (0, ["pos", "neg"])
    refused(table, tmp_path / "b", "class 'pos', which --classes does not name", label_field="label", classes=("neg",))
    refused(table, tmp_path / "b", "names a class twice", label_field="label", classes=("pos", "pos"))
    refused(table, tmp_path / "b", "with --label-field: give that", classes=("pos",))


def test_labelled_pictures_may_take_their_classes_from_a_list(tmp_path):
    picture(tmp_path / "in" / "cat" / "1.png")
    pack(tmp_path / "in", tmp_path / "data", PackSettings(Reading(classes=("dog", "cat"))))
    samples, classes = rows_of(tmp_path / "data")
    assert (samples[0].label(), classes) == (1, ["dog", "cat"])
    refused(tmp_path / "in", tmp_path / "b", "classes are cat, which --classes does not name", classes=("dog",))


def test_columns_that_cannot_be_read_are_refused(tmp_path):
    table = write_table(tmp_path / "t.jsonl", [{"text": "a", "label": 0.5}])
    refused(table, tmp_path / "b", "no class in 'label' .a name or a whole number.", label_field="label")
    refused(table, tmp_path / "b", "no text in 'second'", pair_field="second")
    refused(table, tmp_path / "b", "leave --tokenize out, or --label-field", label_field="label",
            tokenizer=Tokenizer.train(["a b c"], "byte-bpe", 257))
    (tmp_path / "plain.txt").write_text("text")
    refused(tmp_path / "plain.txt", tmp_path / "b", "is no table, so it has no label", label_field="label")
    pictures = picture(tmp_path / "in" / "1.png").parent
    refused(pictures, tmp_path / "b", "are packed as images", target_field="out")


def test_a_killed_run_of_labelled_texts_gives_the_same_bytes_with_any_number_of_processes(tmp_path):
    tables = [write_table(tmp_path / f"{n}.jsonl", [{"text": f"text {n} {i}", "label": f"class {(n * i) % 5}"} for i in range(40)])
              for n in range(3)]
    pack(tables, tmp_path / "one", PackSettings(Reading(label_field="label"), shard_bytes=20_000), workers=Workers(1))
    pack(tables, tmp_path / "two", PackSettings(Reading(label_field="label"), shard_bytes=20_000), workers=Workers(2))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
