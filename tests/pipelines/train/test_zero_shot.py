"""Zero-shot accuracy at the evaluations of a run (`evaluate.zero_shot`)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from contract import runs
from contract.cases import cases, prepare
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.evaluation.classes import ZeroShot
from polymodal.pipelines.evaluation.evaluate import EvaluationSettings, evaluate
from polymodal.pipelines.inspection.report import report
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.pipelines.run.directory import Run
from polymodal.pipelines.run.recipe import CheckpointSettings, EvaluateSettings
from polymodal.shared.errors import UserError


def named(name: str):
    return next(c for c in cases() if c.name == name)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    prepare(path, named("clip-tiny"))
    return path


def short(case, root, **more):
    settings = EvaluateSettings(batch=8, every=2, zero_shot=str(root / "held"), templates=("a {}", "the {} here"), limit=24, previews=0)
    return runs.short(case.recipe, updates=4, evaluate=replace(settings, **more), checkpoint=CheckpointSettings(every=0, keep_best=True))


def test_a_run_measures_it_watches_it_and_reports_it(root, tmp_path):
    """The numbers of `polymodal evaluate zero-shot` on the same checkpoint; the labelled data need not be captioned."""
    case = named("clip-tiny")
    runs.run(case, short(case, root, monitor="zero_shot_top1"), root, tmp_path / "run", held=True)
    rows = Run(tmp_path / "run").metrics("eval")
    assert [row["update"] for row in rows] == [2, 4]
    best = max(rows, key=lambda row: (row["zero_shot_top1"], -row["update"]))
    assert Run(tmp_path / "run").chosen().update == best["update"], "more is better"
    assert all(row["zero_shot_top5"] == 1 for row in rows), "there are four classes"
    record = evaluate(ZeroShot(("a {}", "the {} here")), tmp_path / "run", root / "held",
                      EvaluationSettings(limit=24, seed=0, device="cpu"), console=Console(quiet=True))
    assert record["metrics"]["accuracy"] == pytest.approx(best["zero_shot_top1"])
    report([tmp_path / "run"], tmp_path / "report.html")
    assert "zero shot top1" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(("name", "more", "message"), [
    ("vit-tiny", {}, "evaluate.zero_shot is for systems that compare pictures with texts, such as clip: leave it out"),
    ("clip-tiny", {"zero_shot": None}, "evaluate.templates are for evaluate.zero_shot, which is null"),
    ("clip-tiny", {"templates": ("no place",)}, r"template 'no place' has no \{\} for the class name"),
    ("clip-tiny", {"monitor": "zero_shot_top3"}, "set it to one of loss, .*zero_shot_top1, zero_shot_top5"),
    ("clip-tiny", {"zero_shot": "https://me:secret@example.org/data"}, "with a login or signature, which the run's recipe would keep"),
    ("clip-tiny", {"zero_shot": "nowhere"}, "nowhere"),
])
def test_what_cannot_be_measured_is_refused_before_the_run(root, tmp_path, name, more, message):
    case = named(name)
    with pytest.raises(UserError, match=message):
        runs.run(case, short(case, root, **more), root, tmp_path / "run", held=True)
    assert not (tmp_path / "run").exists()


def test_it_needs_held_out_data_and_labelled_pictures(root, tmp_path):
    case = named("clip-tiny")
    recipe = replace(short(case, root), checkpoint=CheckpointSettings(every=0))
    with pytest.raises(UserError, match=r"evaluate\.zero_shot is measured where held-out data is evaluated: give --eval-data"):
        runs.run(case, recipe, root, tmp_path / "run")
    (tmp_path / "texts.txt").write_text("one\ntwo\n")
    pack([tmp_path / "texts.txt"], tmp_path / "texts", PackSettings(Reading(split="line")), workers=Workers(1), console=Console(quiet=True))
    with pytest.raises(UserError, match=r"holds the fields txt and 0 class names: expected pictures in labelled folders"):
        runs.run(case, short(case, root, zero_shot=str(tmp_path / "texts")), root, tmp_path / "run", held=True)
