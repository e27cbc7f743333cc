"""A run's directory: what a start writes there, and what a kill or a full disk leaves of it."""

from __future__ import annotations

import errno
import json
import os
from types import SimpleNamespace

import pytest
from polymodal.pipelines.base import files
from polymodal.pipelines.run.directory import ENVIRONMENT, RECIPE, SYSTEM, Run, check_directory, lock_run, open_run, record_start
from polymodal.pipelines.run.recipe import recipe
from polymodal.shared.errors import UserError
from polymodal.shared.family import Context

CONFIG = SimpleNamespace(to_dict=lambda: {"vocab_size": 5})


def start(out, number):
    """Start number `number` of a run."""
    out.mkdir(exist_ok=True)
    with lock_run(out):
        record_start(Run(out), recipe("gpt2-tiny", [f"seed={number}"]), CONFIG, Context(), f"model-{number}", {"update": number})


def found(out):
    """The numbers of the starts that each of the three files tells of."""
    run = open_run(out)
    return run.recipe().seed, run.described()["model"], [s["update"] for s in run.starts()]


@pytest.mark.parametrize("name", [RECIPE, SYSTEM, ENVIRONMENT])
@pytest.mark.parametrize("moment", ["written in part", "before the rename"])
def test_a_start_that_is_cut_short_leaves_the_run_as_it_was(tmp_path, monkeypatch, name, moment):
    start(tmp_path / "run", 1)
    assert found(tmp_path / "run") == (1, "model-1", [1])
    kept = files.write_durably

    def cut(path, text):
        mine = path.name.endswith(name)
        kept(path, text[: len(text) // 2] if mine and moment == "written in part" else text)
        if mine:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(files, "write_durably", cut)
        start(tmp_path / "run", 2)
    seed, model, starts = found(tmp_path / "run")
    assert (seed, model, starts) == ({RECIPE: 1}.get(name, 2), {ENVIRONMENT: "model-2"}.get(name, "model-1"), [1])
    start(tmp_path / "run", 3)
    assert found(tmp_path / "run") == (3, "model-3", [1, 3])
    assert not list((tmp_path / "run").glob(".tmp-*"))


def test_a_first_start_that_is_killed_at_once_is_made_again(tmp_path, monkeypatch):
    def killed(path, text):
        path.write_text(text[:9])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(files, "write_durably", killed)
        start(tmp_path / "run", 1)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [".lock", f".tmp-{RECIPE}"]
    check_directory(tmp_path / "run", "auto")
    start(tmp_path / "run", 1)
    assert found(tmp_path / "run") == (1, "model-1", [1])


@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 100_000])
def test_a_damaged_description_is_named(tmp_path, content):
    start(tmp_path / "run", 1)
    (tmp_path / "run" / SYSTEM).write_text(content)
    with pytest.raises(UserError, match=r"system\.json is damaged"):
        open_run(tmp_path / "run").described()
    (tmp_path / "run" / ENVIRONMENT).write_text(content)
    with pytest.raises(UserError, match=r"environment\.json is damaged"):
        open_run(tmp_path / "run").starts()


def test_a_record_ends_at_a_newline_and_nowhere_else(tmp_path):
    text = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\rh\r\ni"
    path = tmp_path / "records.jsonl"
    path.write_text(files.json_lines([{"text": text}, {"text": ""}]) + "\n" + json.dumps({"text": "cut short"}), newline="")
    assert files.read_json_lines(path) == [{"text": text}, {"text": ""}]
    path.write_bytes(b'{"text": "one"}\n{"text": "half of a char\xe2')
    assert files.read_json_lines(path) == [{"text": "one"}]
    assert files.read_json_lines(tmp_path / "missing.jsonl") == []
