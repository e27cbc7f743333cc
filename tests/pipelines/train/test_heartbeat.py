"""Heartbeats: what a rank writes of itself, and which one holds up the others, on real ranks that hang (this file is also the ranks)."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from types import SimpleNamespace

import processes
import pytest
from contract import letters
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.inspection import diagnosis
from polymodal.pipelines.inspection.diagnosis import diagnose, read_ranks
from polymodal.pipelines.inspection.inspect import run_lines, run_summary
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.pipelines.run.directory import Run
from polymodal.pipelines.train.heartbeat import FOLDER, Heartbeat, clear

EVERY = 0.2


def test_a_rank_says_what_it_does_and_where(tmp_path):
    heart = Heartbeat()
    heart.mark("reading", 3)
    with heart.start(tmp_path, 4, 8, EVERY):
        event = threading.Event()
        heart.mark("forward", 4, 2)
        event.wait(3 * EVERY)
        found, = read_ranks(tmp_path)
        assert (found.rank, found.world, found.pid, found.update, found.phase, found.part) == (4, 8, os.getpid(), 4, "forward", 2)
        assert found.process == "running" and found.silent < 5 and not found.meeting
        assert any("test_heartbeat.py" in call and "test_a_rank_says" in call for call in found.at)
    assert read_ranks(tmp_path)[0].phase == "ended" and diagnose(read_ranks(tmp_path)).state == "ended"
    assert [p.name for p in (tmp_path / FOLDER).iterdir()] == ["rank-00004.json"]
    clear(tmp_path)
    assert read_ranks(tmp_path) == []


def test_a_failure_is_told_without_secrets(tmp_path):
    with pytest.raises(OSError, match="cannot read"), Heartbeat().start(tmp_path, 0, 1, EVERY):
        raise OSError("cannot read https://me:secret@example.org/a?key=secret\nmore")
    found, = read_ranks(tmp_path)
    assert found.phase == "failed" and found.why.startswith("OSError: cannot read https://***@example.org/a") and "secret" not in found.why


def test_nothing_is_written_where_none_is_wanted(tmp_path):
    with Heartbeat().start(tmp_path, 0, 1, 0.0) as heart:
        heart.mark("forward", 1)
    assert not (tmp_path / FOLDER).exists()


def test_a_full_disk_does_not_end_a_run(tmp_path, monkeypatch):
    with Heartbeat().start(tmp_path, 0, 1, EVERY):
        (tmp_path / FOLDER / "rank-00000.json").unlink()
        (tmp_path / FOLDER).rmdir()


def test_damaged_files_are_passed_over(tmp_path):
    with Heartbeat().start(tmp_path, 0, 1, EVERY):
        pass
    good = json.loads((tmp_path / FOLDER / "rank-00000.json").read_text())
    for number, text in enumerate(["", "{", "[]", "[" * 100_000, json.dumps(good | {"phase": "sleeping"}), json.dumps(good | {"pid": "x"}),
                                   json.dumps(good | {"at": 3}), "\xff"]):
        (tmp_path / FOLDER / f"rank-0001{number}.json").write_text(text, encoding="latin-1")
    assert [r.rank for r in read_ranks(tmp_path)] == [0]


def test_a_process_number_used_again_is_another_process(tmp_path, monkeypatch):
    with Heartbeat().start(tmp_path, 0, 1, EVERY):
        assert read_ranks(tmp_path)[0].process == "running"
        monkeypatch.setattr(diagnosis, "process_state", lambda pid: ("S", 1))
        assert read_ranks(tmp_path)[0].process == "gone"


# --- real ranks ------------------------------------------------------------------------------------------------------


def until(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError("it did not happen in time")


def test_inspect_names_the_rank_that_hangs(tmp_path):
    """Two gloo ranks: rank 1 is stopped, goes on, blocks in reading, and both are killed at last."""
    (tmp_path / "train.txt").write_text("\n".join("abcdefgh"[: 1 + i % 8] for i in range(64)))
    pack([tmp_path / "train.txt"], tmp_path / "train", PackSettings(Reading(split="line")), workers=Workers(1), console=Console(quiet=True))
    out = tmp_path / "run"
    ranks = processes.ranks(2, _rank, tmp_path)

    def becomes(state, culprits, phase=None):
        def there():
            facts = health(out) if (out / "recipe.yaml").is_file() and len(read_ranks(out)) == 2 else None
            if facts is None or (facts["health"]["state"], facts["health"]["ranks"]) != (state, culprits):
                return None
            return facts if phase in (None, facts["ranks"][0]["phase"]) and facts["ranks"][0]["update"] > 1 else None

        return until(there)

    try:
        facts = becomes("running", [])
        victim = next(r["pid"] for r in facts["ranks"] if r["rank"] == 1)
        os.kill(victim, signal.SIGSTOP)
        assert "its process is stopped" in becomes("hanging", [1])["health"]["says"]
        os.kill(victim, signal.SIGCONT)
        becomes("running", [])
        (tmp_path / "block").touch()
        facts = becomes("hanging", [1], "reading")
        lines = run_lines(facts)
        assert facts["ranks"][1]["phase"] == "counting" and facts["ranks"][1]["meeting"]
        assert "rank 1 " in facts["health"]["says"] and "rank 0 waits for it (counting" in facts["health"]["says"]
        assert any("in train/test_heartbeat.py" in line and "blocking" in line for line in lines), lines
        assert any("dist.py" in call for call in facts["ranks"][1]["at"])
        kill(ranks)
        assert "their processes are gone" in becomes("killed", [])["health"]["says"]
    finally:
        kill(ranks)


def kill(ranks):
    for rank in ranks:
        rank.kill()
        rank.wait()


def health(out):
    with letters.known():
        return run_summary(Run(out))


def _rank(root):
    """One of the ranks of the test above: endless, slow updates, and reading that blocks where it is told to."""
    example = letters.Letters.example

    def blocking(self, sample, rng):
        time.sleep(0.005)
        while int(os.environ["RANK"]) == 1 and (root / "block").exists():
            time.sleep(0.05)
        return example(self, sample, rng)

    letters.Letters.example = blocking
    made = letters.letters({"heartbeat": EVERY}, devices=2, max_updates=1_000_000, model={"batch_norm": False},
                           checkpoint=letters.CheckpointSettings(every=0))
    with letters.known():
        letters.go(made, SimpleNamespace(train=root / "train", held=None), root / "run")
