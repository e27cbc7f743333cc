"""What cannot be packed, and places that cannot be written to."""

import errno
import io
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
from packs import contents, picture, polymodal, refused, texts
from PIL import Image
from polymodal.pipelines import cli
from polymodal.pipelines.base.inputs import PICTURES
from polymodal.pipelines.data.dataset import DataSet
from polymodal.pipelines.pack import pack as packing
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings
from polymodal.shared.errors import UserError
from polymodal.shared.picture import FIELD_OF_FORMAT


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
