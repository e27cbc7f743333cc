"""What a model was fine-tuned with, which its use goes on with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

from torch import nn

from ...seq2seq.generation.options import FilledOptions, GenerationOptions


@dataclass(frozen=True)
class Trained:
    """What a model was trained with, as far as its directory tells."""

    prefix: str = ""
    max_length: int | None = None
    """Tokens of a text."""
    max_target_length: int | None = None
    """Tokens of what it wrote."""
    source_language: str = ""
    """Language of the texts, of a model that has languages."""
    target_language: str = ""
    """Language of what it wrote."""


def trained(model: nn.Module) -> Trained:
    """What a model from `polymodal.load` was fine-tuned with.

    A run, its checkpoints and its export have it in the run's system.json; a directory of transformers has the prefix in
    config.json, under `task_specific_params`.
    """
    directory: Path | None = getattr(getattr(model, "origin", None), "directory", None)
    if directory is None:
        return Trained()
    objective = _json(directory.parent / "system.json").get("objective")
    if directory.name in ("export", "tokenizer") and isinstance(objective, Mapping):
        told = cast("Mapping[str, Any]", objective)
        return Trained(**{f.name: told[f.name] for f in fields(Trained) if f.name in told})
    tasks: Any = _json(directory / "config.json").get("task_specific_params")
    try:
        return Trained(str(tasks["summarization"]["prefix"]))
    except (KeyError, TypeError):
        return Trained()


def _json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, Mapping) else {}  # pyright: ignore[reportUnknownVariableType]


def merged(defaults: GenerationOptions, options: FilledOptions) -> FilledOptions:
    """The options over the defaults; to search beams means not to draw, and the other way round."""
    merged: FilledOptions = {**defaults, **options}
    if options.get("num_beams", 1) > 1 and "do_sample" not in options:
        merged["do_sample"] = False
    if (options.get("do_sample") or options.get("stop_strings")) and "num_beams" not in options:
        merged["num_beams"] = 1
    return merged
