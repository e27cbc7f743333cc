"""Pieces of work in processes of this machine: order of errors, what crosses between processes, dead processes, GPUs."""

from __future__ import annotations

import errno
import os
import secrets
import time
from functools import partial

import pytest
from crew_pieces import piece
from polymodal.pipelines.crew import ray
from polymodal.pipelines.crew.crew import crew, do_all
from polymodal.pipelines.crew.pieces import Failure, Lost, Piece, Workers, attempt
from polymodal.shared.errors import UserError


def pieces(folder, bad=(), count=8):
    return [Piece(partial(piece, str(folder), i, bad), 10 + i, f"piece {i}") for i in range(count)]


def test_all_pieces_are_done_once_and_counted(tmp_path):
    for workers in (1, 2):
        (tmp_path / str(workers)).mkdir()
        sizes = []
        with crew(Workers(workers), most=8, folder=tmp_path) as those:
            do_all(those, pieces(tmp_path / str(workers)), sizes.append)
            do_all(those, [], sizes.append)
        assert sorted(sizes) == list(range(10, 18)) and len(list((tmp_path / str(workers)).iterdir())) == 8


def test_the_error_is_that_of_the_first_bad_piece_and_nothing_starts_after_it(tmp_path):
    for workers in (1, 2):
        (tmp_path / str(workers)).mkdir()
        with crew(Workers(workers), most=40, folder=tmp_path) as those, pytest.raises(UserError, match=r"^piece 5 is bad$"):
            do_all(those, pieces(tmp_path / str(workers), bad=(5, 6), count=40), lambda size: None)
        done = {int(p.name) for p in (tmp_path / str(workers)).iterdir()}
        assert set(range(5)) <= done and len(done) < 12


def test_a_dead_process_ends_the_run_and_says_that_it_can_go_on(tmp_path):
    with crew(Workers(2), most=2, folder=tmp_path) as those, pytest.raises(Lost, match=r"was killed.*run the command again"):
        do_all(those, [Piece(partial(os._exit, 9), 1, "deadly"), *pieces(tmp_path)], lambda size: None)


def test_each_worker_has_a_gpu_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-abc")
    with crew(Workers(), most=8, folder=tmp_path, gpus=True) as those:
        do_all(those, pieces(tmp_path), lambda size: None)
    assert {p.read_text() for p in tmp_path.iterdir()} <= {"3", "GPU-abc"}


def test_errors_cross_as_values():
    def raises(error):
        def do():
            raise error

        return do

    assert attempt(lambda: None) is None
    found = attempt(raises(UserError("wrong")))
    assert found == Failure(user="wrong") and type(found.error()) is UserError
    back = attempt(raises(FileNotFoundError(errno.ENOENT, "No such file", b"/a/b"))).error()
    assert type(back) is FileNotFoundError and back.errno == errno.ENOENT and back.filename == "/a/b"
    assert type(attempt(raises(OSError("no number"))).error()) is RuntimeError
    back = attempt(raises(ZeroDivisionError("x"))).error()
    assert str(back) == "in a worker: ZeroDivisionError: x" and "in raises" not in str(back) and "Traceback" in back.__notes__[0]


@pytest.mark.parametrize(("options", "message"), [
    ({"on": "moon"}, "expected local or ray"), ({"count": 0}, "at least 1"), ({"ray_address": "a:1"}, "give --on ray with it")])
def test_workers_are_checked(options, message):
    with pytest.raises(UserError, match=message):
        Workers(**options)


def shared(tmp_path, monkeypatch, **changes):
    """What a worker on the cluster checks, here; `problem` may change the folder."""
    monkeypatch.setattr(ray, "_PATIENCE", 0.0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mark").write_text("a")
    (tmp_path / "data").write_text("12345")
    values = {"directory": str(tmp_path), "mark": str(tmp_path / "mark"), "secret": "a", "files": (("data", 5),), **changes}
    return ray._Shared(**values).problem()


@pytest.mark.parametrize(("changes", "message"), [
    ({}, None),
    ({"mark": "/nowhere/mark"}, "does not see '/nowhere': with --on ray, results must go to storage that all machines share"),
    ({"secret": secrets.token_hex(4)}, "does not see"),
    ({"files": (("data", 5), ("more", 1))}, "cannot read 'more' (No such file or directory)"),
    ({"files": (("data", 6),)}, "'data' has 5 bytes on"),
    ({"version": "0.0.0"}, "this machine 0.0.0: install the same version"),
])
def test_a_machine_that_lacks_something_says_what(tmp_path, monkeypatch, changes, message):
    found = shared(tmp_path, monkeypatch, **changes)
    assert found is None if message is None else message in found


def test_a_cluster_that_is_not_there_is_an_error_at_once(tmp_path):
    began = time.monotonic()
    with pytest.raises(UserError, match="nothing answers there"), \
            crew(Workers(on="ray", ray_address="127.0.0.1:1"), most=1, folder=tmp_path):
        pass
    assert time.monotonic() - began < 60, "Ray itself would try for two minutes"
    assert not list(tmp_path.iterdir())
