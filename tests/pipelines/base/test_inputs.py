"""Files are read by their kind, each line or row gives one text, and what is not read is told."""

import gzip
import io
import json
import sys

import pytest
from PIL import Image
from polymodal.pipelines.base.inputs import documents
from polymodal.shared.errors import UserError


def texts(*inputs, **options):
    return [(d.text, d.pair) for d in documents([str(i) for i in inputs], lines=True, **options)]


def test_tables_are_read_by_their_columns_compressed_or_not(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [("one, with\na line", "first"), ("two", "second")]
    plain = "".join(json.dumps({"text": a, "text_pair": b}) + "\n" for a, b in rows).encode()
    (tmp_path / "a.jsonl").write_bytes(plain)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(plain))
    (tmp_path / "a.csv").write_text('text_pair,text\nfirst,"one, with\na line"\nsecond,two\n')
    (tmp_path / "a.tsv").write_text('text\ttext_pair\n"one, with\na line"\tfirst\ntwo\tsecond\n')
    pq.write_table(pa.table({"text": [a for a, _ in rows], "text_pair": [b for _, b in rows]}), tmp_path / "a.parquet")
    for file in sorted(tmp_path.iterdir()):
        assert texts(file, pairs=True) == rows and texts(file) == [(a, None) for a, _ in rows], file
    (tmp_path / "b.csv").write_text("text,label\nslow, but kind,pos\n")
    with pytest.raises(UserError, match="line 2 has 3 cells"):
        texts(tmp_path / "b.csv")
    (tmp_path / "c.csv").write_text("review,label\nfine,pos\n")
    with pytest.raises(UserError, match=r"c\.csv, line 2: expected a text in 'text'; its fields are review, label"):
        texts(tmp_path / "c.csv")


def test_a_folder_gives_its_texts_and_tells_the_rest(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n\n\n")
    (tmp_path / ".b.txt").write_text("hidden")
    (tmp_path / "c.csv").write_text("text\nthree\n")
    (tmp_path / "d.docx").write_bytes(b"PK\0")
    Image.new("RGB", (4, 4)).save(tmp_path / "e.png")
    told = []
    assert texts(tmp_path, warn=told.append) == [("one", None), ("two", None), ("three", None)]
    assert told == [f"2 files of {tmp_path} are not read: 1 .docx, 1 .png"]
    for name, message in (("d.docx", "null bytes"), ("e.png", "is a picture")):
        with pytest.raises(UserError, match=message):
            texts(tmp_path / name)


@pytest.mark.parametrize("name", ["reviews.csv", "a.docx", "a.jsonl.gz", "p.JPG", "notes.md"])
def test_a_name_of_a_file_that_is_not_there_is_no_text(name):
    with pytest.raises(UserError, match="there is no file"):
        texts(name)


def test_every_line_gives_a_text_or_the_place_of_what_does_not(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("one\n \u00a0\nthree\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.txt, line 2 is blank"):
        texts(tmp_path / "a.txt")
    assert len(documents([str(tmp_path / "a.txt")])) == 1, "a document has blank lines"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\n\ntwo"), encoding="utf-8"))
    with pytest.raises(UserError, match="stdin, line 2 is blank"):
        texts("-")
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n\n{"text": " "}\n')
    with pytest.raises(UserError, match=r"b\.jsonl, line 3: the text is blank"):
        texts(tmp_path / "b.jsonl")
