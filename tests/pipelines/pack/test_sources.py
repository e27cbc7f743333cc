"""Sources as people have them: what is read, what is left out and told, what is really held out."""

import gzip
import io
import json
import tarfile
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from polymodal.multimodal.pairs import captions
from polymodal.pipelines import cli
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.data.dataset import DataSet
from polymodal.pipelines.data.index import build_index
from polymodal.pipelines.pack.corpus import iterate_texts
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.shared.errors import UserError
from polymodal.shared.tokenizer import Tokenizer

IN_ORDER = PackSettings(shuffle=None)


def jpeg(colour=(200, 30, 30)):
    data = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(data, "JPEG")
    return data.getvalue()


def samples(folder):
    data = DataSet.open(folder)
    return [data.read(i) for i in range(len(data))]


def tar(path, names):
    with tarfile.open(path, "w") as file:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 3
            file.addfile(info, io.BytesIO(b"abc"))


# ---- texts


@pytest.mark.parametrize("blank", ["\u00a0\u3000", "\u2003", "\u200b\ufeff", "\u00ad", "\x00"])
def test_what_training_takes_for_an_empty_text_is_none_when_packed(tmp_path, blank):
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": "some words"}) + "\n" + json.dumps({"text": blank}) + "\n")
    with pytest.raises(UserError, match="line 2: an empty text"):
        pack(tmp_path / "t.jsonl", tmp_path / "out")
    made = pack(tmp_path / "t.jsonl", tmp_path / "out", PackSettings(on_bad="skip"))
    assert made.samples == 1 and made.schema["skipped"] == 1
    with pytest.raises(UserError, match="line 2: an empty text"):
        list(iterate_texts([tmp_path / "t.jsonl"]))
    (tmp_path / "t.txt").write_text(f"one\n\n{blank}\n\ntwo\n", encoding="utf-8")
    pack(tmp_path / "t.txt", tmp_path / "texts", IN_ORDER)
    assert [s.text() for s in samples(tmp_path / "texts")] == ["one", "two"]


def test_texts_without_tokens_are_counted(tmp_path):
    (tmp_path / "t.txt").write_text("ab\n\n\u0301\n\nbc\n")
    tok = Tokenizer.train(["ab ab ab bc bc"], "wordpiece", 11, lowercase=True)
    assert not tok.encode("\u0301", add_special_tokens=False), "accents are taken off"
    with pytest.raises(UserError, match="no tokens"):
        pack(tmp_path / "t.txt", tmp_path / "out", PackSettings(tokenizer=tok, block=8))
    made = pack(tmp_path / "t.txt", tmp_path / "out", PackSettings(tokenizer=tok, block=8, on_bad="skip"))
    assert (made.schema["documents"], made.schema["skipped"]) == (2, 1)


def test_compressed_files_are_read_and_others_told(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "1.jsonl").write_text('{"text": "first"}\n')
    (folder / "2.jsonl.gz").write_bytes(gzip.compress(b'{"text": "second"}\n'))
    (folder / "3.txt.gz").write_bytes(gzip.compress(b"third\n\nfourth"))
    (folder / "4.json").write_text("{}")
    (folder / "README").write_text("read me")
    (folder / ".hidden").write_text("not told")
    made = pack(folder, tmp_path / "out", IN_ORDER, console=Console())
    assert [s.text() for s in samples(tmp_path / "out")] == ["first", "second", "third", "fourth"]
    warned = []
    assert len(list(iterate_texts([folder], warn=warned.append))) == 4
    assert warned == [f"2 files of {folder} are not read: 1 .json, 1 README"]
    assert "2 files are not read: 1 .json, 1 README" in capsys.readouterr().err and made.schema["left_out"] == {".json": 1, "README": 1}


def test_a_text_without_borders_is_told(tmp_path, capsys):
    """A book without blank lines was one document, and nobody said so."""
    (tmp_path / "book.txt").write_text("In the beginning was the word .\n" * 10_000)
    for number, (more, told) in enumerate((((), True), (("--split", "line"), False), (("--split", "file"), False))):
        assert cli.run(["pack", str(tmp_path / "book.txt"), "--out", str(tmp_path / f"out{number}"), "--workers", "1", *more]) == 0
        assert ("1 document of 312 KiB on average: texts are cut at blank lines" in capsys.readouterr().err) is told
    (tmp_path / "short.txt").write_text("In the beginning was the word .\n\n" * 9000)
    assert cli.run(["pack", str(tmp_path / "short.txt"), "--out", str(tmp_path / "short"), "--workers", "1"]) == 0
    assert "on average" not in capsys.readouterr().err


def test_names_of_any_bytes_go_from_pack_to_output(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    odd = ["caf\udce9.txt", "two\nlines.txt", "\U0001f600 #%=.txt", "'quoted'.txt"]
    for i, name in enumerate(odd):
        try:
            (folder / name).write_text(f"text {i}")
        except OSError:
            pytest.skip("this disk takes no such names")
    assert cli.invoke(["pack", str(folder), "--out", str(tmp_path / "o\udce9"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["out"] == str(tmp_path / "o\udce9")
    assert sorted(s.text() for s in samples(tmp_path / "o\udce9")) == [f"text {i}" for i in range(len(odd))]


def test_nested_fields_are_columns(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"meta": {"text": "deep", "kind": "a"}}\n')
    pack(tmp_path / "t.jsonl", tmp_path / "out", PackSettings(Reading(text_field="meta.text", label_field="meta.kind")))
    (sample,) = samples(tmp_path / "out")
    assert sample.text() == "deep" and sample.label() == 0


# ---- pictures


def test_parquet_holds_pictures_captions_and_the_names_of_classes(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = [jpeg((40 * i, 0, 0)) for i in range(3)]
    table = pa.table({"image": [{"bytes": d, "path": None} for d in data], "label": [2, 0, 2]})
    names = {"info": {"features": {"label": {"names": ["truck", "cat", "boat"], "_type": "ClassLabel"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(names)}), tmp_path / "a.parquet")
    made = pack(tmp_path / "a.parquet", tmp_path / "out", PackSettings(Reading(label_field="label"), shuffle=None))
    found = samples(tmp_path / "out")
    assert made.kind == "images" and made.schema["classes"] == ["truck", "cat", "boat"], "all of them, in their own order"
    assert [(s.fields["jpg"], s.label()) for s in found] == [(data[0], 2), (data[1], 0), (data[2], 2)]

    pq.write_table(pa.table({"image": data, "caption": ["one", "two", "three"]}), tmp_path / "b.parquet")
    assert pack(tmp_path / "b.parquet", tmp_path / "pairs", IN_ORDER).kind == "pairs"
    assert [(s.fields["jpg"], s.text()) for s in samples(tmp_path / "pairs")] == list(zip(data, ["one", "two", "three"]))
    pq.write_table(pa.table({"image": [b"no picture"], "caption": ["one"]}), tmp_path / "c.parquet")
    with pytest.raises(UserError, match="row 1: the picture cannot be decoded"):
        pack(tmp_path / "c.parquet", tmp_path / "no")


def test_a_file_beside_parquet_names_the_classes(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    def named(*names):
        return {"features": {"label": {"names": names, "_type": "ClassLabel"}}}

    folder, settings = tmp_path / "in", PackSettings(Reading(label_field="label"), shuffle=None)
    folder.mkdir()
    table = pa.table({"text": ["one", "two", "three"], "label": [2, 0, 2]})
    pq.write_table(table, folder / "a.parquet")
    (folder / "dataset_info.json").write_text(json.dumps(named("a", "b", "c")))
    made = pack(folder, tmp_path / "out", settings)
    assert made.schema == {"classes": ["a", "b", "c"]}, "and it is no file that is left out"
    assert [s.label() for s in samples(tmp_path / "out")] == [2, 0, 2]

    own = {"huggingface": json.dumps({"info": named("truck", "cat", "boat")})}
    pq.write_table(table.replace_schema_metadata(own), folder / "a.parquet")
    assert pack(folder, tmp_path / "own", settings).schema["classes"] == ["truck", "cat", "boat"], "what the file says comes first"
    pq.write_table(table, folder / "a.parquet")
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match=r"dataset_info\.json is not JSON"):
        pack(folder, tmp_path / "no", settings)


def test_a_table_beside_its_pictures_has_their_classes(tmp_path):
    (tmp_path / "in" / "pics").mkdir(parents=True)
    for i in range(2):
        (tmp_path / "in" / "pics" / f"{i}.jpg").write_bytes(jpeg((40 * i, 0, 0)))
    (tmp_path / "in" / "train.csv").write_text("image,label\npics/0.jpg,dog\npics/1.jpg,cat\n")
    with pytest.raises(UserError, match="say what is meant"):
        pack(tmp_path / "in", tmp_path / "no")
    made = pack(tmp_path / "in", tmp_path / "out", PackSettings(Reading(label_field="label"), shuffle=None))
    assert made.kind == "images" and made.schema == {"classes": ["cat", "dog"]}
    assert [s.label() for s in samples(tmp_path / "out")] == [1, 0]


def test_a_list_of_captions_is_kept_whole(tmp_path):
    (tmp_path / "1.jpg").write_bytes(jpeg())
    (tmp_path / "t.jsonl").write_text(json.dumps({"image": "1.jpg", "caption": ["a square", "red"]}) + "\n")
    pack(tmp_path / "t.jsonl", tmp_path / "out")
    (sample,) = samples(tmp_path / "out")
    assert captions(sample) == ["a square", "red"] and sample.fields["jpg"] == jpeg()
    for wrong, message in (([], "is empty"), (["a", 3], "holds int"), (["a", "\u00a0"], "empty text")):
        (tmp_path / "t.jsonl").write_text(json.dumps({"image": "1.jpg", "caption": wrong}) + "\n")
        with pytest.raises(UserError, match=f"line 1.*{message}"):
            pack(tmp_path / "t.jsonl", tmp_path / "no")


def test_what_lies_beside_a_picture_belongs_to_it(tmp_path, capsys):
    folder = tmp_path / "in" / "00000"
    folder.mkdir(parents=True)
    for i in range(3):
        (folder / f"{i}.v1.jpg").write_bytes(jpeg((40 * i, 0, 0)))
        (folder / f"{i}.v1.txt").write_text(f"caption {i}\n")
    (folder / "0.v1.json").write_text('{"url": "https://example.org"}')
    (folder / "1.v1.cls").write_text("7")
    (folder / "stats.json").write_text("{}")
    made = pack(tmp_path / "in", tmp_path / "out", IN_ORDER, console=Console())
    found = samples(tmp_path / "out")
    assert made.kind == "pairs" and [s.text() for s in found] == [f"caption {i}" for i in range(3)]
    assert found[0].json() == {"url": "https://example.org"} and found[1].label() == 7
    assert "1 files are not read: 1 .json" in capsys.readouterr().err
    (folder / "2.v1.txt").unlink()
    with pytest.raises(UserError, match=r"2\.v1\.jpg' has no caption: expected 2\.v1\.txt"):
        pack(tmp_path / "in", tmp_path / "no", PackSettings(Reading(kind="pairs")))
    (folder / "2.v1.json").write_text('{"captions": ["one", "two"]}')
    pack(tmp_path / "in", tmp_path / "two", PackSettings(Reading(kind="pairs"), shuffle=None))
    assert captions(samples(tmp_path / "two")[2]) == ["one", "two"]
    (folder / "1.v1.cls").write_text("seven")
    with pytest.raises(UserError, match="no whole number as class"):
        pack(tmp_path / "in", tmp_path / "no", PackSettings(Reading(kind="pairs")))


def test_class_files_beside_pictures_label_them(tmp_path):
    for i in range(2):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg((40 * i, 0, 0)))
        (tmp_path / f"{i}.cls").write_text(f"{3 - i}\n")
    pack([tmp_path], tmp_path.parent / "labelled", IN_ORDER)
    assert [s.label() for s in samples(tmp_path.parent / "labelled")] == [3, 2]


# ---- tars


def test_tars_are_read_as_webdataset_reads_them(tmp_path):
    import webdataset as wds

    names = ["README", ".DS_Store", "__MACOSX/._1.txt", "v1.0/._1.txt", "v1.0/1.txt", "v1.0/1.seg.png", "2.txt", "a.b/.x.jpg"]
    tar(tmp_path / "0.tar", names)
    warned = []
    made = build_index(tmp_path, warn=warned.append)
    theirs = list(wds.WebDataset(str(tmp_path / "0.tar"), shardshuffle=False))
    ours = samples(tmp_path)
    assert {s.key: set(s.fields) for s in ours} == {s["__key__"]: {k for k in s if not k.startswith("__")} for s in theirs
                                                      if not s["__key__"].endswith("/")}, "it takes __MACOSX/ for a key"
    assert made.samples == 2 and warned == ["5 members belong to no sample and are left out: 2 ._*, 1 .DS_Store, 1 .jpg, 1 README"]


def test_keys_with_dots_are_told(tmp_path):
    for folder in ("one", "many"):
        (tmp_path / folder).mkdir()
    tar(tmp_path / "one" / "0.tar", [f"img.{i}.txt" for i in range(3)])
    with pytest.raises(UserError, match=r"0\.txt.*must not contain dots"):
        build_index(tmp_path / "one")
    tar(tmp_path / "many" / "0.tar", [f"{k}.{i}.txt" for k in "ab" for i in range(2)])
    warned = []
    assert build_index(tmp_path / "many", warn=warned.append).samples == 2 and "must not contain dots" in warned[0]


# ---- what is counted


def test_documents_are_counted_not_their_pieces(tmp_path):
    rng = np.random.default_rng(0)
    lengths = [int(n) for n in np.clip(rng.lognormal(2.5, 1.2, 400), 1, 300)]
    (tmp_path / "a.txt").write_text("\n\n".join(" ".join(rng.choice(list("abcdef"), n)) for n in lengths))
    tok = Tokenizer.train(["a b c d e f"], "word", 20)
    tokens = [len(ids) + (tok.eos_id is not None) for ids in
              tok.encode_batch((tmp_path / "a.txt").read_text().split("\n\n"), add_special_tokens=False)]
    made = pack(tmp_path / "a.txt", tmp_path / "out", PackSettings(tokenizer=tok, block=32, shard_bytes=8192))
    pieces = Counter(length for s in samples(tmp_path / "out") for length in s.tokens()[1].tolist())
    assert made.schema["documents"] == len(lengths) < pieces.total()
    longer = sum(n > 32 for n in tokens)
    # every cut of a document that fits into a row makes one piece more; a document has one such cut or more
    assert longer <= made.schema["documents_cut"] <= longer + pieces.total() - sum(-(-n // 32) for n in tokens)


def test_what_is_really_held_out_is_told(tmp_path, capsys):
    lines = [f"review {i % 50}" for i in range(200)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    settings = PackSettings(Reading(split="line"), holdout=10.0, holdout_out=tmp_path / "held")
    made = pack(tmp_path / "a.txt", tmp_path / "out", settings, console=Console())
    said = capsys.readouterr()
    assert "held out: 40 of 200 samples (20.0%); 150 repeat another and are on its side" in said.out
    assert "was to hold out 5.0% and holds out 20.0%" in said.err
    assert made.schema["held_out"] == {"documents": 40, "different": 10, "repeats": 30} and made.schema["repeats"] == 120
    sides = [{s.text() for s in samples(tmp_path / side)} for side in ("out", "held")]
    assert len(sides[0]) == 40 and len(sides[1]) == 10 and not sides[0] & sides[1]


def test_one_document_cannot_be_split(tmp_path):
    (tmp_path / "bible.txt").write_text("\n".join(f"verse {i}" for i in range(2000)))
    tok = Tokenizer.train(["verse 0123456789"], "byte-bpe", 257)
    for options in ({}, {"tokenizer": tok, "block": 16}):
        with pytest.raises(UserError, match=r"one document.*--split line"):
            pack(tmp_path / "bible.txt", tmp_path / "out", PackSettings(holdout=0.1, holdout_out=tmp_path / "held", **options))
