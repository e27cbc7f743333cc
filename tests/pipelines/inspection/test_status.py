"""`polymodal status`: the state of runs from their files alone, for people, as JSON and for Prometheus."""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.request

import pytest
from polymodal.pipelines import cli
from polymodal.pipelines.inspection import prometheus
from polymodal.pipelines.inspection.status import STATES, find_runs, lines, status
from polymodal.pipelines.run.recipe import recipe
from polymodal.pipelines.train.heartbeat import FOLDER, Heartbeat, process_birth
from polymodal.shared.errors import UserError


def make_run(directory, updates=30, length=100, phase=None, why=None, pid=None, exported=False, **settings):
    """A run's files: `updates` made of `length`, each of 0.5 s, evaluated every 20 in 4 s; `phase` is what its rank last said."""
    directory.mkdir(parents=True)
    keys = [f"max_updates={length}", "evaluate.every=20", *(f"{key}={value}" for key, value in settings.items())]
    (directory / "recipe.yaml").write_text(recipe("gpt2-tiny", keys).to_yaml())
    (directory / "system.json").write_text("{}")
    (directory / "environment.json").write_text(json.dumps({"starts": [{}, {}]}))
    with (directory / "metrics.jsonl").open("w") as file:
        for update in range(10, updates + 1, 10):
            row = {"split": "train", "update": update, "loss": 5.0 - update / 100, "step_s": 0.5, "tokens_per_s": 1234.5, "lr": 0.1}
            file.write(json.dumps(row) + "\n")
            if update % 20 == 0:
                file.write(json.dumps({"split": "eval", "update": update, "loss": 5.5, "seconds": 4.0}) + "\n")
    (directory / "bad.jsonl").write_text('{"update": 3}\n')
    (directory / "checkpoints" / "update-00000020").mkdir(parents=True)
    if exported:
        (directory / "export").mkdir()
    if phase is not None:
        pid = pid or os.getpid()
        now = time.time()
        (directory / FOLDER).mkdir()
        (directory / FOLDER / "rank-00000.json").write_text(json.dumps({
            "rank": 0, "world": 1, "host": __import__("socket").gethostname(), "pid": pid, "born": process_birth(pid) or 1, "every": 10.0,
            "update": updates + 2, "phase": phase, "part": 0, "since": now - 1, "written": now, "at": [], "meeting": False,
            **({"why": why} if why else {})}))
    return directory


def test_a_run_in_progress_says_how_far_it_is_and_how_long_it_takes(tmp_path):
    found = status(make_run(tmp_path / "run", phase="forward"))
    assert (found.state, found.update, found.max_updates, found.checkpoint, found.starts, found.skipped) == ("running", 31, 100, 20, 2, 1)
    # 69 updates of 0.5 s, and the evaluations after 40, 60, 80 and 100
    assert found.eta_s == pytest.approx(69 * 0.5 + 4 * 4.0)
    assert found.train["loss"] == pytest.approx(4.7) and found.eval["loss"] == 5.5 and not found.is_over


@pytest.mark.parametrize(("made", "state", "says"), [
    ({"updates": 100, "phase": "ended"}, "finished", "ended after update"),
    ({"updates": 30, "phase": "ended"}, "stopped", "of 100"),
    ({"phase": "failed", "why": "UserError: the disk is full"}, "failed", "the disk is full"),
    ({"phase": "forward", "pid": 2**22 + 1}, "killed", "their processes are gone"),
    ({}, "unknown", "no signs of life"),
    ({"updates": 100, "exported": True}, "finished", "exported"),
])  # fmt: skip
def test_states(tmp_path, made, state, says):
    found = status(make_run(tmp_path / "run", **made))
    assert found.state == state and says in found.says and found.eta_s is None
    assert found.is_over == (state != "unknown") and state in STATES
    shown = lines([found])
    assert len(shown) == (2 if state == "finished" else 3), "what went wrong stands below the line"


def test_a_real_heartbeat_is_understood(tmp_path):
    directory = make_run(tmp_path / "run")
    beat = Heartbeat()
    beat.mark("backward", 41)
    with beat.start(directory, 0, 1, 60.0):
        assert (status(directory).state, status(directory).update) == ("running", 40)
    assert status(directory).state == "stopped"


@pytest.mark.parametrize(("name", "content", "says"), [
    ("metrics.jsonl", '{"split": "train"\n{}\n', "metrics.jsonl is damaged"),
    ("metrics.jsonl", '{"update": 3}\n', "without a split or an update"),
    ("metrics.jsonl", '[1]\n', "metrics.jsonl is damaged"),
    ("recipe.yaml", "system: nothing\n", "nothing"),
    ("environment.json", "{", "environment.json is damaged"),
    ("system.json", None, "not a run directory"),
])  # fmt: skip
def test_a_broken_run_is_one_line_among_the_others(tmp_path, capsys, name, content, says):
    broken, well = make_run(tmp_path / "a"), make_run(tmp_path / "b", phase="forward")
    (broken / name).unlink()
    if content is not None:
        (broken / name).write_text(content)
    assert cli.run(["status", str(tmp_path), "--json"]) == 0
    one, other = json.loads(capsys.readouterr().out)["runs"]
    assert (one["run"], one["state"], other["run"], other["state"]) == (str(broken), "broken", str(well), "running")
    assert says in one["says"] and "\n" not in one["says"]


def test_folders_are_searched_and_names_line_up_in_every_script(tmp_path, capsys):
    for name in ("运行/一", "b", ".hidden/c", "b/checkpoints/inner"):
        make_run(tmp_path / name)
    assert find_runs([tmp_path, tmp_path / "b"]) == [tmp_path / "b", tmp_path / "运行/一"], "each once, none inside another"
    assert cli.run(["status", str(tmp_path)]) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if "unknown" in line]
    from rich.cells import cell_len

    assert len(shown) == 2 and len({cell_len(line[: line.index("unknown")]) for line in shown}) == 1
    (tmp_path / "empty").mkdir()
    for path, said in ((tmp_path / "empty", "holds no run"), (tmp_path / "none", "no directory")):
        with pytest.raises(UserError, match=said):
            find_runs([path])


def test_prometheus_reads_a_file_and_an_address(tmp_path, capsys):
    from prometheus_client.parser import text_string_to_metric_families

    make_run(tmp_path / 'a "b"', phase="forward")
    (make_run(tmp_path / "broken") / "metrics.jsonl").write_text("{\n")

    def values(text):
        return {(s.name, *sorted(v for k, v in s.labels.items() if k != "run")): s.value
                for family in text_string_to_metric_families(text) for s in family.samples if '"b"' in s.labels["run"]}

    assert cli.run(["status", str(tmp_path), "--textfile", str(tmp_path / "runs.prom")]) == 0
    read = values((tmp_path / "runs.prom").read_text())
    assert read["polymodal_run_update",] == 31
    assert read["polymodal_run_state", "running"] == 1 and read["polymodal_run_state", "failed"] == 0
    assert read["polymodal_run_metric", "loss", "train"] == pytest.approx(4.7) and read["polymodal_run_metric", "eval", "loss"] == 5.5
    assert read["polymodal_run_remaining_seconds",] == pytest.approx(69 * 0.5 + 16)
    assert 'state="broken"} 1.0' in (tmp_path / "runs.prom").read_text()
    with pytest.raises(UserError, match="--textfile is"):
        prometheus.write_textfile([tmp_path], tmp_path / "runs.txt")
    for wrong in ("port", "127.0.0.1:99999"):
        assert cli.run(["status", str(tmp_path), "--serve", wrong]) == 2

    addresses: list[str] = []
    threading.Thread(target=prometheus.serve, args=([tmp_path], "127.0.0.1", 0, addresses.append), daemon=True).start()
    deadline = time.monotonic() + 20
    while not addresses and time.monotonic() < deadline:
        time.sleep(0.05)
    served = values(urllib.request.urlopen(addresses[0]).read().decode())
    assert served.keys() == read.keys() and served["polymodal_run_update",] == 31
    busy = addresses[0].split(":")[2].split("/")[0]
    with pytest.raises(UserError, match="cannot be opened"):
        prometheus.serve([tmp_path], "127.0.0.1", int(busy), addresses.append)
