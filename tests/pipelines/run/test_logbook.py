"""What a run writes while it goes on, and what is left of it when it goes on from an earlier update."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from polymodal.pipelines.run.directory import Run
from polymodal.pipelines.run.logbook import Logbook
from polymodal.pipelines.run.recipe import LogSettings, recipe
from polymodal.shared.errors import UserError
from polymodal.shared.system import Preview

TEXT = "what the model\u2028wrote\u0085and\u2029the web holds"


def logbook(out, update=0, **log):
    out.mkdir(parents=True, exist_ok=True)
    return Logbook(Run(out), replace(recipe("gpt2-tiny"), log=LogSettings(tensorboard=False, **log)), update)


def test_a_run_goes_on_whatever_characters_its_records_hold(tmp_path):
    book = logbook(tmp_path)
    for update in (1, 2):
        book.add_row({"split": "train", "update": update, "loss": float("nan")})
        book.add_previews(update, [Preview((("text", TEXT),)), Preview((("picture", ""),), np.zeros((2, 2, 3), np.uint8))])
        book.add_bad([{"update": update, "key": TEXT}])
        book.add_event({"event": "skip", "update": update, "why": TEXT})
    book.add_event({"event": "rewind", "update": 2})
    book.close()
    logbook(tmp_path, 1).close()
    run = Run(tmp_path)
    assert run.metrics() == [{"split": "train", "update": 1, "loss": None}]
    assert [s["rows"] for s in run.samples()] == [[["text", TEXT]], [["picture", ""]]]
    assert (tmp_path / run.samples()[1]["image"]).is_file()
    assert [(e["event"], e["update"], e.get("why")) for e in run.events()] == [("skip", 1, TEXT), ("rewind", 2, None)]


@pytest.fixture
def wandb(monkeypatch):
    """What is asked of a stand-in for wandb, which like wandb takes runs of one id in one project for one run."""
    asked: list[dict] = []
    run = SimpleNamespace(log=lambda *_, **__: None, finish=lambda: None)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **settings: asked.append(settings) or run))
    return asked


def test_wandb_gets_a_run_for_each_directory(tmp_path, wandb):
    for out in ("a/out", "b/out", "a/out"):
        logbook(tmp_path / out, wandb="project").close()
    first, other, again = wandb
    assert first["id"] != other["id"] and first == again, "the same run continues, another one of the same name does not"
    assert first["name"] == other["name"] == "out" and first["project"] == "project" and first["resume"] == "allow"
    assert first["dir"] == str(tmp_path / "a/out") and first["config"]["system"] == "gpt2"


def test_wandb_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="wandb is not installed"):
        logbook(tmp_path, wandb="project")
