"""`polymodal compare` and `polymodal report --live`: runs of any kind and in any state beside each other, and runs in progress."""

from __future__ import annotations

import json
import re
import threading
import time

import pytest
from polymodal.pipelines import cli
from polymodal.pipelines.inspection import compare as comparison
from polymodal.pipelines.inspection import page
from polymodal.pipelines.inspection.compare import compare, lines
from polymodal.pipelines.inspection.live import live
from polymodal.pipelines.run.recipe import recipe
from polymodal.pipelines.train.heartbeat import Heartbeat
from polymodal.shared.errors import UserError

TEXTS = [["提示", "你好，世界"], ["续写", "שלום עולם"], ["emoji", "👩‍🚀 🇺🇳 <b>"]]


def make_run(directory, losses, source="gpt2-tiny", starts=1, fingerprint="f" * 64, keys=(), term="lm", every=10):
    """A finished run with a line for each loss of training, and one of an evaluation, 0.5 higher, after each second one."""
    directory.mkdir(parents=True)
    last = every * len(losses) or 100
    (directory / "recipe.yaml").write_text(recipe(source, [f"max_updates={last}", *keys]).to_yaml())
    (directory / "system.json").write_text(json.dumps({"system": source.partition("-")[0], "config": {"n_layer": 2}, "model": ""}))
    start = {"update": 0, "world_size": 1, "eval_data": [{"source": "held", "fingerprint": fingerprint, "samples": 5}]}
    (directory / "environment.json").write_text(json.dumps({"starts": [{**start, "update": 10 * i} for i in range(starts)]}))
    with (directory / "metrics.jsonl").open("w") as file:
        for i, loss in enumerate(losses, 1):
            row = {"split": "train", "update": every * i, "samples": 80 * i, "epoch": 0.1, "tokens": 640 * i, "bad": 0, "loss": loss,
                   term: loss, "perplexity": 2.0**loss, "lr": 1e-3, "batch": 8, "tokens_per_s": 64.0, "samples_per_s": 8.0, "step_s": 1.0,
                   "elapsed_s": 10.0 * i, "grad_norm": 1.0}
            file.write(json.dumps(row) + "\n")
            if i % 2 == 0:
                row = {"split": "eval", "update": every * i, "samples": 80 * i, "epoch": 0.1, "tokens": 640 * i, "bad": 0,
                       "loss": loss + 0.5, term: loss + 0.5, f"{term}_chance": 5.25, "accuracy": 0.25 * i, "seconds": 1.0}
                file.write(json.dumps(row) + "\n")
    (directory / "samples.jsonl").write_text(json.dumps({"update": last, "rows": TEXTS}, ensure_ascii=False) + "\n")
    beat = Heartbeat()
    beat.mark("exporting", last)
    with beat.start(directory, 0, 1, 60.0):
        pass
    return directory


@pytest.fixture
def runs(tmp_path):
    return [make_run(tmp_path / "a" / "run", [5.0, 4.0, 3.0, 3.25]),
            make_run(tmp_path / "b" / "run", [5.0, 4.5, 4.25, 2.0], keys=["optim.lr=0.5"], starts=3)]


@pytest.fixture
def undrawn(monkeypatch):
    """Figures by their titles, with what they would show: drawing them takes most of the time."""
    drawn = {}
    monkeypatch.setattr(page, "curves", lambda title, lines, **more: drawn.setdefault(title, (lines, more)) and "")
    return drawn


def test_results_settings_and_notes(runs, tmp_path, undrawn):
    result = compare(runs, tmp_path / "page.html")
    assert list(result["runs"]) == ["a/run", "b/run"], "as much of the path as tells them apart"
    assert result["runs"]["a/run"]["best"] == {"update": 40, "loss": 3.75} and result["runs"]["b/run"]["state"] == "finished"
    assert result["settings"] == {"optim.lr": {"a/run": recipe("gpt2-tiny").optim.lr, "b/run": 0.5}}
    assert result["notes"] == ["b/run was started 3 times, after updates 0, 10, 20."] and not result["broken"]
    table = {row[0]: row[1:] for row in result["results"]["rows"]}
    assert table["held-out loss"] == ["3.7500", "2.5000"] and table["held-out accuracy"] == ["1.0000", "1.0000"]
    assert table["time of training"] == ["40 s", "40 s"] and table["samples"] == ["320", "320"]
    shown = "\n".join(lines(result))
    assert "optim.lr" in shown and "lowest held-out loss" in shown and f"wrote {tmp_path / 'page.html'}" in shown


def test_the_page_is_one_file_with_both_scales_and_every_script(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "_MAX_QUANTITIES", 2)
    monkeypatch.setattr(comparison, "_ALSO", ("lr",))
    compare(runs, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "<script" not in text and all(a.startswith(("#", "data:")) for a in re.findall(r"""(?:src|href)=["']([^"']*)""", text))
    for title in ("held-out loss", "training loss", "held-out accuracy", "lr"):
        assert f'aria-label="{title}"' in text, title
    assert 'aria-label="held-out lm' not in text and "chance: 5.25" in text, "one term is the loss; chance is a line beside it"
    assert '<div class="log">' in text and 'id="log-scale"' in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert text.count("你好，世界") == 2 and '<dd dir="auto">שלום עולם</dd>' in text and "👩‍🚀 🇺🇳 &lt;b&gt;" in text
    assert re.search(r'class="column"><h4 dir="auto">a/run, update 40</h4>.*class="column"><h4 dir="auto">b/run, update 40', text, re.S)


def test_curves_over_samples_tokens_and_seconds(runs, tmp_path, undrawn):
    for by, xs, label in (("updates", [20, 40], "update"), ("samples", [160, 320], "samples"), ("tokens", [1280, 2560], "tokens"),
                          ("seconds", [20, 40], "seconds of training")):
        undrawn.clear()
        compare(runs, tmp_path / "page.html", by)
        curves, more = undrawn["held-out loss"]
        assert curves["a/run"] == (xs, [4.5, 3.75]) and more["x_label"] == label and more["levels"] == {"chance": 5.25}
    with pytest.raises(UserError, match="--by is 'epochs'"):
        compare(runs, tmp_path / "page.html", "epochs")


def test_what_cannot_be_compared_is_said(runs, tmp_path, undrawn):
    old = json.loads((runs[0] / "environment.json").read_text())
    old["starts"][-1]["eval_data"] = old["starts"][-1]["eval_data"][0]  # as older versions wrote it
    (runs[0] / "environment.json").write_text(json.dumps(old))
    undrawn.clear()
    other = make_run(tmp_path / "c" / "run", [1.0, 0.5, 0.5, 0.25], "bert-tiny", fingerprint="0" * 64, term="mlm",
                     keys=["data.global_batch=4"])
    result = compare([runs[0], other], tmp_path / "page.html")
    said = "\n".join(result["notes"])
    for part in ("a loss of one is no loss of another", "a/run: gpt2", "c/run: bert", "held-out data differ", "c/run: 000000000000",
                 "The batches differ"):
        assert part in said, part
    curves, more = undrawn["held-out accuracy"]
    assert list(curves) == ["a/run", "c/run"] and not more["levels"] and "held-out mlm" not in undrawn, "what two runs have"
    assert not any(key.startswith("network.") for key in result["settings"]), "networks of different systems have nothing to compare"


def test_unfinished_and_broken_runs(runs, tmp_path, capsys, undrawn):
    (tmp_path / "d").mkdir()
    fresh = make_run(tmp_path / "fresh", [])
    (fresh / "samples.jsonl").unlink()
    (make_run(tmp_path / "torn", [4.0]) / "metrics.jsonl").write_text('{"split"\n')
    cut = runs[1] / "recipe.yaml"
    cut.write_text(cut.read_text().replace("max_updates: 40", "max_updates: 90"))
    given = [*map(str, runs), str(fresh), str(tmp_path / "torn"), str(tmp_path / "d")]
    assert cli.run(["compare", *given, "--out", str(tmp_path / "page.html"), "--json"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert set(result["broken"]) == {"torn", "d"} and "damaged" in result["broken"]["torn"]
    assert "warning: torn is left out" in printed.err and set(result["runs"]) == {"a/run", "b/run", "fresh"}
    said = "\n".join(result["notes"])
    for part in ("b/run is not at its end: stopped, update 40 of 90", "fresh has logged nothing yet", "d is left out"):
        assert part in said, part
    for few in ([runs[0], tmp_path / "d"], [runs[0]], [runs[0]] * 2, [tmp_path / str(i) for i in range(17)]):
        with pytest.raises(UserError, match=r"fewer than two|for 2 to 16|given twice"):
            compare(few, tmp_path / "other.html")
    assert not (tmp_path / "other.html").exists()


def test_a_live_page_follows_a_run_and_comes_to_rest_with_it(tmp_path):
    directory = make_run(tmp_path / "运行", [5.0, 4.0])
    beat = Heartbeat()
    beat.mark("forward", 21)
    said: list[str] = []
    out = tmp_path / "live.html"
    with beat.start(directory, 0, 1, 0.2):
        thread = threading.Thread(target=lambda: said.append(str(live([directory], out, 1.0, said.append))), daemon=True)
        thread.start()
        deadline = time.monotonic() + 60
        while not out.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        text = out.read_text()
        assert '<meta http-equiv="refresh" content="1">' in text and "running" in text and "运行: loss" in text
        beat.mark("exporting", 20)
    thread.join(60)
    text = out.read_text()
    assert not thread.is_alive() and "refresh" not in text.replace("polymodal", "") and "the runs have ended" in text
    assert said[0].startswith("运行: running") and "'states': {'运行': 'finished'}" in said[-1]


def test_a_live_page_refuses_what_it_cannot_follow(tmp_path):
    silent = make_run(tmp_path / "run", [5.0], keys=["health.heartbeat=0"])
    (silent / "heartbeats" / "rank-00000.json").unlink()
    with pytest.raises(UserError, match="no signs of life"):
        live([silent], tmp_path / "live.html", 5.0, print)
    with pytest.raises(UserError, match="--every is 0"):
        live([silent], tmp_path / "live.html", 0.0, print)
    assert cli.run(["report", str(silent), "--every", "3"]) == 2 and not (tmp_path / "live.html").exists()


def test_a_run_that_was_killed_may_be_started_again(tmp_path):
    directory = make_run(tmp_path / "run", [5.0])
    path = directory / "heartbeats" / "rank-00000.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"phase": "forward", "born": 1}))
    said: list[str] = []
    began = time.monotonic()
    result = live([directory], tmp_path / "live.html", 1.0, said.append, again=2.0)
    assert result["states"] == {"run": "killed"} and time.monotonic() - began >= 2 and "killed" in said[0]
