"""No row of a table is lost or changed in silence."""

import bz2
import csv
import gzip
import io
import json
import lzma

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polymodal.pipelines.base.files import told
from polymodal.pipelines.base.tables import columns, pick, rows
from polymodal.shared.errors import BadSample, UserError


def read(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return [row if isinstance(row, dict) else f"BAD {row}" for _, row in rows(path)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.text(st.sampled_from('ab",\n\r\t é;'), max_size=6)] * 2), max_size=8), st.sampled_from(["csv", "tsv"]))
def test_what_a_csv_writer_wrote_is_read(tmp_path_factory, table, kind):
    path = tmp_path_factory.mktemp("t") / f"a.{kind}"
    if kind == "tsv":  # a tab in a cell together with line ends may leave every line with as many tabs as the head
        table = [(a.replace("\t", ""), b.replace("\t", "")) for a, b in table]
    text = io.StringIO()
    csv.writer(text, delimiter="\t" if kind == "tsv" else ",", lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(
        [("x", "y"), *table])
    assert read(path, text.getvalue()) == [{"x": a, "y": b} for a, b in table]


def test_bare_quotes_in_a_tsv_are_text_and_enclosing_ones_are_not(tmp_path):
    bare = read(tmp_path / "a.tsv", 'label\ttext\nx\t"Opened only\ny\t6" nail\nz\t"all of it"\n')
    assert [row["text"] for row in bare] == ['"Opened only', '6" nail', '"all of it"'], "one quote that encloses nothing: all are text"
    assert [row["text"] for row in read(tmp_path / "b.tsv", 'label\ttext\nx\t6" nail\nz\t"all ""of"" it"\n')] == ['6" nail', 'all "of" it']


@pytest.mark.parametrize(("name", "content", "line"), [
    ("a.csv", 'text\nfirst\n"opened here\nthird\nfourth\n', "line 3"), ("a.csv", 'text,x\n"a" b,1\n', "line 2"),
    ("a.tsv", 'text\nfirst\n"opened here\nthird\n', "line 3"),
])
def test_quotes_that_leave_open_where_rows_end_are_refused_with_the_line(tmp_path, name, content, line):
    with pytest.raises(UserError, match=f"{line}.*quote mark"):
        read(tmp_path / name, content)


def test_rows_of_another_length_than_the_head_are_bad_rows_with_their_line(tmp_path):
    found = read(tmp_path / "a.csv", 'text,label\n"two\nlines",pos\nslow, but kind,pos\n\nshort\nfine,neg\n')
    assert [found[0], found[3]] == [{"text": "two\nlines", "label": "pos"}, {"text": "fine", "label": "neg"}] and len(found) == 4
    assert "line 4 has 3 cells" in found[1] and "line 6 has 1 cells" in found[2]
    with pytest.raises(UserError, match="'text' occurs twice"):
        read(tmp_path / "b.csv", "text,text\na,b\n")


def test_old_line_ends_and_a_byte_order_mark(tmp_path):
    for ends in (b"\r", b"\r\n", b"\n"):
        path = tmp_path / "a.csv"
        assert read(path, b"\xef\xbb\xbftext,label\nhello,x\nthere,y\n".replace(b"\n", ends)) == [
            {"text": "hello", "label": "x"}, {"text": "there", "label": "y"}]
        assert list(columns(path)) == ["text", "label"]
    with pytest.raises(UserError, match="not UTF-8"):
        read(tmp_path / "b.csv", "text,label\na,b\n".encode("utf-16"))


def test_places_are_lines_of_the_file_wherever_reading_begins(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": str(i)}) for i in range(6)]
    lines[4] = "{no"
    path.write_text("\n\n".join(lines))
    begin = len("\n\n".join(lines[:3])) + 2
    found = list(rows(path, begin, path.stat().st_size))
    assert str(found[0][0]) == f"{path}, line 7" and isinstance(found[1][1], BadSample) and "line 9 is not JSON" in str(found[1][1])


def zstandard(data):
    import pyarrow

    return pyarrow.compress(data, codec="zstd", asbytes=True)


@pytest.mark.parametrize(("ending", "packed"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", zstandard)])
def test_compressed_tables(tmp_path, ending, packed):
    lines = [json.dumps({"text": f"a text {i} {i * 7919 % 1009}"}) + "\n" for i in range(3000)]
    parts = ("".join(lines[:1000]).encode(), "".join(lines[1000:]).encode())
    assert read(tmp_path / f"a.jsonl.{ending}", b"".join(map(packed, parts))) == [json.loads(line) for line in lines]  # as `cat a b` makes
    assert read(tmp_path / f"a.csv.{ending}", packed(b'text,n\n"a\nb",1\n')) == [{"text": "a\nb", "n": "1"}]
    with pytest.raises(UserError, match="cannot be unpacked"):
        read(tmp_path / f"b.jsonl.{ending}", packed(parts[1])[:-400])
    with pytest.raises(UserError, match="cannot be unpacked"):
        read(tmp_path / f"c.jsonl.{ending}", b"no archive at all")


def test_a_damaged_parquet_file_is_the_users(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"text {i}" * 50 for i in range(2000)]}), path)
    data = bytearray(path.read_bytes())
    data[200:600] = bytes(400)
    with pytest.raises(UserError, match="damaged"):
        read(path, bytes(data))


def test_fields_inside_of_fields():
    row = {"meta": {"text": "a", "captions": ["b", "c"]}, "x.y": "d", "s": "e"}
    found = [pick(row, name) for name in ("meta.text", "meta.captions.1", "x.y", "meta.none", "s.t", "meta.captions.7", "no")]
    assert found == ["a", "c", "d", None, None, None, None]


def test_counts_are_told_with_the_most_frequent_first():
    assert told({".gz": 1, "README": 3} | {f".{i}": 1 for i in range(9)}) == "3 README, 1 .0, 1 .1, 1 .2, 1 .3, 1 .4, 1 .5, 1 .6, 3 others"
