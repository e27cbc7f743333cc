"""Shards written in one go: the bytes of webdataset's writer, the index of a scan."""

import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polymodal.pipelines.data.index import scan
from polymodal.pipelines.pack.writer import ShardWriter, header
from webdataset.writer import TarWriter

SAMPLES = [
    ("000000-000000", {"txt": b"one"}), ("000000-000001-a_label", {"jpg": bytes(range(256)) * 4, "cls": b"7", "txt": b""}),
    ("000000-000002", {"tokens.u16": b"x" * 512, "lengths.u32": b"y" * 513}), ("000000-000003-" + "n" * 40, {"long" * 30: b"z"}),
    ("folder/k\u00e9", {"json": b"{}"}),
]


def written(path, samples):
    with path.open("wb") as file:
        writer = ShardWriter(file, path.name)
        for key, fields in samples:
            writer.add(key, fields)
        return writer.finish()


@pytest.mark.parametrize("samples", [SAMPLES, SAMPLES[:1], [(f"{i:06d}", {"txt": b"t" * i}) for i in range(99)]], ids=["odd", "1", "many"])
def test_bytes_are_those_of_webdataset_and_the_index_that_of_a_scan(tmp_path, samples):
    shard, where = written(tmp_path / "ours.tar", samples)
    with (tmp_path / "theirs.tar").open("wb") as file, TarWriter(file, encoder=False, mtime=0, compress=False) as writer:
        for key, fields in samples:
            writer.write({"__key__": key, **fields})
    assert (tmp_path / "ours.tar").read_bytes() == (tmp_path / "theirs.tar").read_bytes()
    scanned, places = scan(tmp_path / "ours.tar")
    assert shard == scanned
    assert where.to_bytes() == places.to_bytes()
    assert np.array_equal(where.offsets, places.offsets)


@settings(deadline=None)
@given(name=st.text(st.characters(min_codepoint=1, exclude_categories=["Cs"]), min_size=1, max_size=120), size=st.integers(0, 8**11 + 10))
def test_headers_are_tarfiles(name, size):
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uname, info.gname = size, 0o444, "bigdata", "bigdata"
    assert header(name, size) == info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def test_a_field_that_runs_code_is_not_written(tmp_path):
    with pytest.raises(Exception, match="can run code"):
        written(tmp_path / "a.tar", [("a", {"pickle": b"x"})])
