"""The evaluations by their names: what `polymodal evaluate` has commands for and `polymodal.evaluate` takes."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

KINDS: Mapping[str, str] = {
    "perplexity": "perplexity.Perplexity", "zero-shot": "classes.ZeroShot", "retrieval": "retrieval.Retrieval",
    "classify": "classes.ClassifyTexts", "score": "tasks.Score", "tag": "tasks.Tag", "choice": "tasks.Choice", "span": "tasks.Span",
    "ground": "tasks.Ground", "fewshot": "fewshot.FewShot", "generate": "written.Generation",
}  # fmt: skip
"""By the name of each, its module here and its class: not the class itself, as the command line lists them without loading torch.

What `classify` measures also depends on the data."""


def kind(name: str) -> type[Any]:
    """The class of an evaluation, whose fields are its settings."""
    module, _, found = KINDS[name].rpartition(".")
    return getattr(import_module(f".{module}", __package__), found)
