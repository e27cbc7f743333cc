"""What a run reads: its data sets, what they tell the system, and the stream of its micro-batches."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...shared.errors import UserError, raise_problems
from ...shared.family import Context, Task
from ...shared.sample import IMAGE_FIELDS
from ...shared.system import Objective, System
from ...shared.tokenizer import Tokenizer
from ..base.redact import redact
from ..data.dataset import DataSet
from ..data.index import SEVERAL_LABELS
from ..data.layout import BatchLayout
from ..data.stream import Mixture, Stream
from ..run.recipe import EvaluateSettings, Recipe

Data = str | Path | Sequence[tuple[str | Path, float]]
"""A data set's directory or URL, or a mixture of (directory or URL, weight)."""


EvalData = str | Path | Sequence[str | Path] | None
"""Held-out data: a directory or URL, or several, of which each task measures those that it uses (`Objective.reads`)."""


def open_held_out(data: EvalData) -> tuple[DataSet, ...]:
    """The held-out data sets; none where there is no such data."""
    sources = () if data is None else (data,) if isinstance(data, (str, Path)) else data
    return tuple(DataSet.open(source) for source in sources)


def open_sets(data: Data) -> list[tuple[DataSet, float]]:
    """The data sets of a run with their weights."""
    sources = [(data, 1.0)] if isinstance(data, (str, Path)) else list(data)
    return [(DataSet.open(source), weight) for source, weight in sources]


def read_context(data: Sequence[DataSet], held_out: Sequence[DataSet], tokenizer: str | Path | Tokenizer | None,
                 task: Task | None = None) -> Context:
    """What the data tells the system: its tokenizer and its classes, where every data set agrees on them.

    Args:
        data: of the training.
        held_out: of the evaluations.
        tokenizer: what to use in the place of the data's.
        task: what the network is trained for; it says whether tokens are counted.
    """
    everything = [*data, *held_out]
    source = tokenizer or next((d.tokenizer_dir for d in everything if d.tokenizer_dir is not None), None)
    found = Tokenizer.load(source) if isinstance(source, (str, Path)) else source
    problems: list[str] = []
    for d in everything:
        fingerprint = d.index.schema.get("tokenizer")
        if fingerprint is None:
            continue
        if found is None:
            problems.append(f"{d.directory} was packed with a tokenizer: pass it with --tokenizer")
        elif fingerprint != found.fingerprint:
            other = source if isinstance(source, (str, Path)) else "the model's"
            problems.append(f"{d.directory} was packed with another tokenizer than {other}: pass that one, or pack the data again")
    lists = [tuple(d.index.schema["classes"]) for d in everything if d.index.schema.get("classes")]
    if len(set(lists)) > 1:
        problems.append(f"the data sets have different classes ({', '.join(str(len(c)) for c in lists)} of them): pack them with one list")
    several = [d for d in everything if d.index.kind == SEVERAL_LABELS]
    if 0 < len(several) < len(everything):
        other = next(d for d in everything if d not in several)
        problems.append(f"{several[0].directory} has several labels for each text and {other.directory} is packed as {other.index.kind}: "
                        f"pack both with --kind {SEVERAL_LABELS}")
    regions = [d.index.schema["regions"] for d in everything if "regions" in d.index.schema]
    if len({json.dumps([r.get(key) for key in ("features", "classes", "codebook")]) for r in regions}) > 1:
        told = "; ".join(", ".join(f"{key} {value}" for key, value in sorted(r.items())) for r in regions)
        problems.append(f"the regions of the data sets differ ({told}): find them with one detector, and one --codebook")
    raise_problems(problems, "the data does not fit together")
    shape = (int(regions[0]["features"]), int(regions[0]["classes"])) if regions else None
    counts = [d.counts() for d in data] if task is not None and task.reads_counts else []
    known = [c for c in counts if c is not None]
    total: np.ndarray | None = sum(known[1:], known[0]) if known and len(known) == len(counts) else None
    return Context(found, lists[0] if lists else None, several_labels=bool(several), regions=shape, counts=total)


def build_layout(recipe: Recipe, rank: int = 0, world: int = 1) -> BatchLayout:
    """How each batch of the recipe is divided, as one of `world` ranks sees it."""
    settings = recipe.data
    return BatchLayout(settings.global_batch, settings.micro_batch, rank, world, ramp=settings.ramp)


def updates_of(tokens: int, recipe: Recipe, sets: Sequence[tuple[DataSet, float]]) -> int:
    """How many updates read so many tokens of packed rows, the last one whole."""
    if plain := [data for data, _ in sets if data.index.kind != "tokens"]:
        raise UserError(f"max_tokens is for data that is packed in rows of tokens (`polymodal pack --tokenize`), and {plain[0].directory} "
                        f"holds {plain[0].index.kind}, whose tokens nobody has counted: give max_updates")
    if tokens < 1:
        raise UserError(f"max_tokens is {tokens}, expected at least 1")
    each = sum(weight * data.index.schema["tokens"] / len(data) for data, weight in sets) / sum(weight for _, weight in sets)
    ramp = recipe.data.ramp
    return ramp.update_at(math.ceil(tokens / each) - 1) + 1


def open_labelled(settings: EvaluateSettings) -> DataSet | None:
    """The labelled pictures of `evaluate.zero_shot`; None where none are asked for."""
    if settings.zero_shot is None:
        if settings.templates:
            raise UserError("evaluate.templates are for evaluate.zero_shot, which is null: name a data set there, or leave them out")
        return None
    if redact(settings.zero_shot) != settings.zero_shot:
        raise UserError(f"evaluate.zero_shot is {redact(settings.zero_shot)} with a login or signature, which the run's recipe would keep: "
                        "give an address without, or a directory")
    data = DataSet.open(settings.zero_shot)
    classes = data.index.schema.get("classes")
    if not classes or not set(IMAGE_FIELDS) & set(data.index.fields):
        raise UserError(f"evaluate.zero_shot is {data.directory}, which holds the fields {', '.join(data.index.fields)} and "
                        f"{len(classes or ())} class names: expected pictures in labelled folders, as `polymodal pack --kind images` packs "
                        "them")
    return data


def zero_shot_of(system: System, data: DataSet, settings: EvaluateSettings) -> System:
    """What measures a system on labelled pictures."""
    measure = system.zero_shot(tuple(data.index.schema["classes"]), settings.templates)
    if measure is None:
        raise UserError("evaluate.zero_shot is for systems that compare pictures with texts, such as clip: leave it out")
    return measure


def build_stream(recipe: Recipe, data: DataSet | Mixture, objective: Objective[Any], layout: BatchLayout) -> Stream:
    """What a run reads: `data` in the recipe's order, for one rank's share of each update."""
    settings = recipe.data
    return Stream(data, objective, layout, seed=recipe.seed, lanes=settings.lanes, window=settings.window, on_bad=settings.on_bad,
                  max_bad=settings.max_bad, max_tokens=settings.max_tokens)
