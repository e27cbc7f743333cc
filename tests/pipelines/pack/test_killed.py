"""A packing that was killed goes on to the same bytes."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from packs import contents, write_table
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.shared.errors import UserError

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


@pytest.mark.parametrize(("workers", "moments"), [(1, (20,)), pytest.param(2, (5, 30), marks=pytest.mark.slow)])
def test_a_killed_run_continues_to_the_same_bytes(tmp_path, monkeypatch, workers, moments):
    """`moments`: the files of finished work at which it is killed."""
    (tmp_path / "a.txt").write_text("\n\n".join(f"text {i} " + "y" * (i % 61) for i in range(6000)))
    (tmp_path / "run.py").write_text(KILLED)
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "a.txt")]
    monkeypatch.setattr("polymodal.pipelines.pack.sources._UNIT_BYTES", 20_000)
    pack(tmp_path / "a.txt", tmp_path / "whole", PackSettings(shard_bytes=100_000, holdout=0.1, holdout_out=tmp_path / "whole held"),
         workers=Workers(1))
    out = tmp_path / "out"
    kills = 0
    for finished in moments:
        run = subprocess.Popen([*command, str(out), str(workers)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while run.poll() is None and len(list(tmp_path.glob("out*/.pack/*/*.json"))) < finished:
            time.sleep(0.002)
        kills += run.poll() is None
        run.send_signal(signal.SIGKILL)
        run.wait()
    assert kills == len(moments)
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


def test_a_killed_run_of_labelled_texts_gives_the_same_bytes_with_any_number_of_processes(tmp_path):
    tables = [write_table(tmp_path / f"{n}.jsonl", [{"text": f"text {n} {i}", "label": f"class {(n * i) % 5}"} for i in range(40)])
              for n in range(3)]
    pack(tables, tmp_path / "one", PackSettings(Reading(label_field="label"), shard_bytes=20_000), workers=Workers(1))
    pack(tables, tmp_path / "two", PackSettings(Reading(label_field="label"), shard_bytes=20_000), workers=Workers(2))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
