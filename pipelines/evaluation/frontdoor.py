"""`polymodal.evaluate`: the evaluations of the command line, by their names there."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from ...shared.errors import UserError
from ...shared.settings import build_settings, unknown_key
from ..base.console import Console
from ..data.dataset import DataSet
from .classes import ClassifyTexts
from .classes import classify as classify_for
from .evaluate import EvaluationSettings, OutputFiles
from .evaluate import evaluate as run
from .kinds import KINDS, kind
from .measure import Evaluation


def evaluate(what: str, model: str | Path, data: str | Path, *, predictions: str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Measure a model on held-out data, as `polymodal evaluate` does.

    Args:
        what: the name of a command of `polymodal evaluate`: perplexity, zero-shot, retrieval, classify, score, tag, choice, span, ground,
            fewshot or generate.
        model: a run, a checkpoint, a model directory or a hub id.
        data: a packed data set: its directory or address.
        predictions: a new file for what was predicted of each sample, one a line of JSON.
        **options: settings of this evaluation and of all (`EvaluationSettings`), by the names that a record's `settings` has, such as
            ``window=512``, ``shots=(0, 4)``, ``limit=1000``, ``device="cpu"``.

    Returns:
        The record that `--out` writes: `metrics`, `intervals`, `details`, `settings`, `data`, `model` and more.

    Raises:
        UserError: there is no such evaluation or option, or model and data do not fit it.
    """
    if what not in KINDS:
        raise UserError(unknown_key(what, sorted(KINDS)).replace("key", "evaluation", 1))
    common = {f.name for f in fields(EvaluationSettings)}
    own = {name: value for name, value in options.items() if name not in common}
    settings = build_settings(EvaluationSettings, {k: v for k, v in options.items() if k in common}, f"evaluate {what}")
    evaluation: Evaluation = build_settings(kind(what), own, f"evaluate {what}")
    if isinstance(evaluation, ClassifyTexts):
        evaluation = classify_for(DataSet.open(data), evaluation.speeds)
    files = OutputFiles(predictions=None if predictions is None else Path(predictions))
    record = run(evaluation, model, data, settings, output=files, console=Console(quiet=True))
    return {name: value for name, value in record.items() if name != "rank"}
