import io
import pickle
import tarfile
import zlib

import numpy as np
import pytest
from polymodal.pipelines.data.dataset import DataSet, verify
from polymodal.pipelines.data.index import INDEX, Index, ShardIndex, build_index, scan
from polymodal.shared.errors import BadSample, UserError


def tar(path, members, kind=tarfile.REGTYPE, tar_format=tarfile.USTAR_FORMAT):
    """A tar of (name, bytes) members."""
    with tarfile.open(path, "w", format=tar_format) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.type = (len(data), kind) if kind == tarfile.REGTYPE else (0, kind)
            info.linkname = "" if kind == tarfile.REGTYPE else data.decode()
            file.addfile(info, io.BytesIO(data) if kind == tarfile.REGTYPE else None)
    return path


def samples(count, start=0):
    return [m for i in range(start, start + count) for m in ((f"{i:04d}.txt", f"text {i}".encode()), (f"{i:04d}.cls", str(i % 3).encode()))]


@pytest.fixture
def folder(tmp_path):
    tar(tmp_path / "a.tar", samples(7))
    tar(tmp_path / "b.tar", samples(5, 7))
    return tmp_path


def test_tars_made_elsewhere_can_be_read_at_any_sample(folder):
    index = build_index(folder)
    data = DataSet.open(folder)
    assert index == data.index and len(data) == 12 and data.index.fields == ("cls", "txt") and data.shard_sizes == (7, 5)
    for i in (11, 0, 7, 6, 3):
        sample = data.read(i)
        assert (sample.text(), sample.label(), sample.index, sample.key) == (f"text {i}", i % 3, i, f"{i:04d}")
        assert sample.source == ("a.tar" if i < 7 else "b.tar") and data.key_and_shard(i) == (sample.key, sample.source)
    assert [s.text() for s in data.read_many([9, 2, 9, 0])] == ["text 9", "text 2", "text 9", "text 0"]
    with pytest.raises(IndexError):
        data.read(12)


def test_webdataset_writes_what_we_read_and_reads_what_we_index(tmp_path):
    import webdataset as wds

    with wds.TarWriter(str(tmp_path / "x.tar")) as writer:
        for i in range(4):
            writer.write({"__key__": f"dir/{i:03d}", "txt": f"text {i}", "json": {"label": i}, "v.npy": np.arange(i)})
    build_index(tmp_path)
    data = DataSet.open(tmp_path)
    assert [data.read(i).key for i in range(4)] == [s["__key__"] for s in wds.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False)]
    assert data.read(2).json() == {"label": 2} and data.read(3).array("v.npy").tolist() == [0, 1, 2]


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format_and_long_names(tmp_path, tar_format):
    name = "d/" * 30 + "é" * 10 + "x" * 60
    tar(tmp_path / "a.tar", [(f"{name}.txt", b"one"), ("short.txt", b"two")], tar_format=tar_format)
    build_index(tmp_path)
    data = DataSet.open(tmp_path)
    assert [data.read(i).key for i in range(2)] == [name, "short"] and data.read(1).text() == "two"


def test_an_open_data_set_can_be_pickled_and_closed(folder):
    build_index(folder)
    data = DataSet.open(folder)
    data.read(0)
    copy = pickle.loads(pickle.dumps(data))
    assert copy.read(8).text() == "text 8"
    data.close()
    assert data.read(8).text() == "text 8"


def test_at_most_a_few_dozen_shards_are_open(tmp_path, monkeypatch):
    monkeypatch.setattr("polymodal.pipelines.data.dataset._MAX_OPEN", 3)
    for i in range(8):
        tar(tmp_path / f"{i}.tar", samples(2, 2 * i))
    build_index(tmp_path)
    data = DataSet.open(tmp_path)
    for i in [*range(16), *range(16)]:
        assert data.read(i).text() == f"text {i}" and len(data._open) <= 3


def test_the_side_file_round_trips(folder):
    shard, where = scan(folder / "a.tar")
    again = ShardIndex.from_bytes(where.to_bytes(), shard, "a.idx")
    assert again.fields == where.fields and again.keys == where.keys
    for name in ("offsets", "sizes", "crc32", "key_ends"):
        assert np.array_equal(getattr(again, name), getattr(where, name))
    assert int(where.crc32[0]) == zlib.crc32(b"0text 0")


def test_the_fingerprint_is_the_content(folder, tmp_path):
    first = DataSet(None, build_index(folder)).fingerprint
    assert DataSet(None, build_index(folder, force=True)).fingerprint == first
    tar(folder / "b.tar", samples(5, 8))
    assert DataSet(None, build_index(folder, force=True)).fingerprint != first


def refused(folder, message):
    with pytest.raises(UserError, match=message) as caught:
        build_index(folder)
    assert "\n" not in str(caught.value)
    assert not (folder / INDEX).exists() and not list(folder.glob("*.idx")) and not list(folder.glob(".*"))


@pytest.mark.parametrize(("members", "message"), [
    ([("../a.txt", b"x")], r"absolute path or '\.\.'"),
    ([("/etc/a.txt", b"x")], r"absolute path or '\.\.'"),
    ([("a/../../b.txt", b"x")], r"absolute path or '\.\.'"),
    ([("C:/a.txt", b"x")], "absolute path"),
    ([("a.txt", b"x"), ("a.txt", b"y")], "occurs twice"),
    ([("a.txt", b"x"), ("b.txt", b"y"), ("a.cls", b"1")], "do not follow each other"),
    ([("noextension", b"x")], r"KEY\.EXTENSION"),
    ([(".hidden", b"x")], r"KEY\.EXTENSION"),
    ([("a.pickle", b"x")], "pickle"),
    ([("a.pyd", b"x")], "run code"),
    ([("a.pth", b"x")], "run code"),
    ([("a.pyd.gz", b"x")], "run code"),
    ([("a.PKL", b"x")], "run code"),
    ([(f"a.{i:03d}.jpg", b"x") for i in range(70)], "FIRST dot"),
    ([("__meta__", b"x")], "no samples"),
    ([], "no samples"),
])
def test_dangerous_and_doubtful_members_are_refused(tmp_path, members, message):
    tar(tmp_path / "a.tar", members)
    refused(tmp_path, message)


@pytest.mark.parametrize(("kind", "message"), [(tarfile.SYMTYPE, "symbolic"), (tarfile.LNKTYPE, "hard link"), (tarfile.CHRTYPE, "type")])
def test_links_and_devices_are_refused(tmp_path, kind, message):
    tar(tmp_path / "a.tar", [("a.txt", b"/etc/passwd")], kind)
    refused(tmp_path, message)


@pytest.mark.parametrize("size", [1, 511, 512, 700, 1024, 4096, 5120])
def test_a_cut_tar_is_never_silently_shorter(tmp_path, size):
    """Cut in a header, in data, at a member's border, before the end mark."""
    tar(tmp_path / "a.tar", samples(7))
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data[:size])
    refused(tmp_path, "truncated|empty")


@pytest.mark.parametrize("offset", [0, 100, 124, 148, 512 * 2 + 3, 512 * 6 + 130])
def test_a_flipped_byte_in_a_header_is_found(tmp_path, offset):
    tar(tmp_path / "a.tar", samples(7))
    data = bytearray((tmp_path / "a.tar").read_bytes())
    data[offset] ^= 0xFF
    (tmp_path / "a.tar").write_bytes(data)
    refused(tmp_path, "damaged|not a tar")


@pytest.mark.parametrize(("content", "message"), [(b"", "is empty"), (b"\x1f\x8b" + b"0" * 2000, "gzip"), (b"hello" * 500, "not a tar")])
def test_other_files_are_no_tars(tmp_path, content, message):
    (tmp_path / "a.tar").write_bytes(content)
    refused(tmp_path, message)


def test_glued_archives_are_refused(tmp_path):
    tar(tmp_path / "a.tar", samples(3))
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes() * 2)
    refused(tmp_path, "glued")


def test_a_flipped_byte_of_a_sample_is_a_bad_sample(folder):
    build_index(folder)
    path = folder / "a.tar"
    data = bytearray(path.read_bytes())
    at = data.index(b"text 3")
    data[at + 5] ^= 1
    path.write_bytes(data)
    opened = DataSet.open(folder)
    assert opened.read(2).text() == "text 2"
    with pytest.raises(BadSample, match=r"'0003' of a\.tar: its bytes changed after indexing"):
        opened.read(3)
    assert isinstance(opened.read_many([2, 3])[1], BadSample)
    assert [p.split(":")[0] for p in verify(opened)] == ["a.tar"]


@pytest.mark.parametrize(("change", "message"), [
    (lambda f: tar(f / "b.tar", samples(50)), "changed after it was indexed"),
    (lambda f: (f / "b.tar").unlink(), "is missing"),
    (lambda f: (f / "b.tar").write_bytes((f / "b.tar").read_bytes()[:-512]), "changed after it was indexed"),
    (lambda f: (f / INDEX).write_text("{}"), "not a polymodal index"),
    (lambda f: (f / INDEX).write_text("\x00garbage"), "not a polymodal index"),
    (lambda f: (f / INDEX).write_text((f / INDEX).read_text().replace('"b.tar"', '"../b.tar"')), "outside the data set"),
    (lambda f: (f / INDEX).write_text((f / INDEX).read_text().replace('"version": 1', '"version": 9')), "version 9"),
    (lambda f: (f / INDEX).unlink(), "polymodal index DIR"),
])
def test_a_data_set_that_changed_is_not_opened(folder, change, message):
    build_index(folder)
    change(folder)
    with pytest.raises(UserError, match=message) as caught:
        DataSet.open(folder)
    assert "\n" not in str(caught.value)


def test_a_shard_that_changes_while_it_is_used(folder):
    build_index(folder)
    opened = DataSet.open(folder)
    assert opened.read(0).text() == "text 0"
    with (folder / "a.tar").open("r+b") as file:
        file.truncate(600)
    with pytest.raises(UserError, match="became shorter"):
        opened.read(5)
    (folder / "b.idx").write_bytes((folder / "a.idx").read_bytes())
    with pytest.raises(UserError, match=r"b\.idx does not fit"):
        opened.read(8)


def test_paths_that_are_no_data_set(tmp_path, folder):
    for source, message in ((tmp_path / "none", "does not exist"), (folder / "a.tar", "is a file"), ("s3:nothing", "does not exist"),
                            ("pipe:cat a.tar", "cannot read"), ("ftp://host/x", "cannot read")):
        with pytest.raises(UserError, match=message):
            DataSet.open(source)
    with pytest.raises(UserError, match="not a folder"):
        build_index(folder / "a.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no \.tar files"):
        build_index(tmp_path / "empty")
    build_index(folder)
    with pytest.raises(UserError, match="--force"):
        build_index(folder)


def test_an_index_without_samples_is_refused():
    with pytest.raises(UserError, match="no samples"):
        Index.from_json(Index(()).to_json(), "index.json")
