"""One update of a run, looked at afterwards: what it read, what the objective made of that, and what was drawn for it.

Updates have the numbers of the log here: update 1 is the first, and the checkpoint `update-00000042` stands after update 42. The stream
counts from 0, so its number is one less (`Past.index`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...shared.errors import BadSample, UserError
from ...shared.settings import build_settings
from ..data.account import describe_update
from ..data.dataset import DataSet
from ..data.layout import BatchLayout
from ..data.loader import added
from ..data.order import draw_seed
from ..data.stream import Stream
from ..model.frontdoor import companions_of
from ..run import checkpoint
from ..run.directory import Run
from ..run.recipe import Recipe
from ..train.inputs import build_stream
from .inspect import sample_rows

if TYPE_CHECKING:
    from ...shared.system import Batch, Preview
    from ..run.checkpoint import Checkpoint

_LISTED, _ROWS, _EXAMPLES, _LONGEST = 16, 12, 3, 600
"""What people are shown of samples, of rows, of one sample's examples, and of the letters of a line; JSON has all."""


# --- what a run remembers --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Past:
    """An update of a run, with the start of the run that made it."""

    run: Run
    update: int
    """Its number in the log, counted from 1."""

    def __post_init__(self) -> None:
        """Refuse what no run has."""
        if not 1 <= self.update <= self.recipe.max_updates:
            raise UserError(f"--update {self.update}: {self.run.directory} has the updates 1 to {self.recipe.max_updates}, numbered as in "
                            "metrics.jsonl")

    @property
    def index(self) -> int:
        """Its number in the stream, counted from 0."""
        return self.update - 1

    def at(self, update: int) -> Past:
        """Another update of the same run."""
        return Past(self.run, update)

    @cached_property
    def starts(self) -> list[dict[str, Any]]:
        """The starts of the run that say what they trained on and how, oldest first."""
        return [start for start in self.run.starts() if "data" in start]

    @cached_property
    def started(self) -> Mapping[str, Any]:
        """The start that made the update; of an older run, without a record of its data."""
        # a run that goes on from an earlier checkpoint makes the updates after it again: the last start counts
        fitting = [start for start in self.run.starts() if start.get("update", 0) <= self.index]
        return fitting[-1] if fitting else {}

    @cached_property
    def following(self) -> Mapping[str, Any]:
        """The state of the next checkpoint, or else of the newest one; empty where there is none."""
        there = checkpoint.all_checkpoints(self.run.checkpoints)
        after = [c for c in there if c.update >= self.update]
        chosen = after[0] if after else there[-1] if there else None
        return {} if chosen is None else chosen.state()

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe that the update was made with; a run may change some of it when it goes on."""
        saved = self.started.get("recipe") or self.following.get("recipe")
        return self.run.recipe() if saved is None else build_settings(Recipe, saved, f"the recipe of {self.run.directory}")

    @cached_property
    def layout(self) -> BatchLayout:
        """The ranks and micro-batches that made the update, as one process makes them."""
        world, batch = self.started.get("world_size", 1), self.recipe.data.global_batch
        if "micro_batch" in self.started:
            micro = self.started["micro_batch"]
        elif "accumulate" in self.following:
            world = self.following["world"]
            micro = batch // world // self.following["accumulate"]
        else:
            micro = self.recipe.data.micro_batch
        return BatchLayout(batch, micro, replays=world, ramp=self.recipe.data.ramp)

    def sets(self, given: Sequence[str] = ()) -> list[tuple[DataSet, float]]:
        """The data sets of the run with their weights, each checked against its fingerprint.

        Args:
            given: where data sets lie now that have moved, or of which the run does not know where they lay.
        """
        known = self.started.get("data") or [{"fingerprint": part["fingerprint"], "weight": part["quota"], "samples": part["samples"]}
                                             for part in self.following.get("order", {}).get("data", [])]
        opened = [DataSet.open(source) for source in given]
        if not known:
            if not opened:
                raise UserError(f"--update of {self.run.directory} needs --data: the data set that it trained on, which it does not record")
            if len(opened) > 1:
                raise UserError(f"{self.run.directory} does not record its data and has no checkpoint: --update can show it for one data "
                                "set, not for a mixture, whose weights are unknown")
            return [(opened[0], 1.0)]
        for data in opened:
            if data.fingerprint not in {part["fingerprint"] for part in known}:
                wanted = " or ".join(_named(part) for part in known)
                raise UserError(f"{data.directory} has {len(data)} samples with fingerprint {data.fingerprint[:12]}, and "
                                f"{self.run.directory} trained on {wanted}: give that data set as it was")
        return [(next((d for d in opened if d.fingerprint == part["fingerprint"]), None) or self._open(part), float(part["weight"]))
                for part in known]

    def _open(self, part: Mapping[str, Any]) -> DataSet:
        source = part.get("source")
        if source is None:
            raise UserError(f"--update of {self.run.directory} needs --data: the run does not say where {_named(part)} lay")
        try:
            data = DataSet.open(source)
        except UserError as error:
            raise UserError(f"the data that {self.run.directory} trained on cannot be opened: {error}; give it with --data if it lies "
                            "elsewhere now, or with the login or signature of its address, which a run does not keep") from None
        if data.fingerprint != part["fingerprint"]:
            raise UserError(f"{source} has changed since {self.run.directory} trained on it: it has {len(data)} samples with fingerprint "
                            f"{data.fingerprint[:12]} and had {part['samples']} with {part['fingerprint'][:12]}; give the data set as it "
                            "was with --data")
        return data

    def stream(self, given: Sequence[str] = ()) -> Stream:
        """The stream that the update was read from, with the objective of the run."""
        from ...registry import family

        recipe, data = self.recipe, self.sets(given)
        system = recipe.build(family(recipe.system), self.run.context(companions_of(self.run)), self.run.config())
        return build_stream(recipe, data, system.objective, self.layout)

    @cached_property
    def window(self) -> tuple[int, dict[str, Any] | None]:
        """(updates before the first one of its line in metrics.jsonl, that line): the line is a mean over a few updates."""
        before = 0
        for row in self.run.metrics("train"):
            if row["update"] >= self.update:
                return before, row
            before = row["update"]
        return before, None

    def checkpoints(self) -> list[Checkpoint]:
        """What the update can be made again from, newest first: checkpoints before it, also of the run that this one went on from."""
        found = {c.path: c for c in checkpoint.all_checkpoints(self.run.checkpoints)}
        for path in {Path(start["checkpoint"]) for start in self.starts if start["checkpoint"]}:
            found |= {c.path: c for c in checkpoint.all_checkpoints(path.parent) if c.path == path}
        return sorted((c for c in found.values() if c.update < self.update), key=lambda c: -c.update)


def _named(part: Mapping[str, Any]) -> str:
    where = f"{part['source']}, " if "source" in part else ""
    return f"{where}{part['samples']} samples with fingerprint {part['fingerprint'][:12]}"


# --- what an update was ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """One update, as JSON and as pictures."""

    facts: dict[str, Any]
    previews: list[Preview]


def show(stream: Stream, index: int, limit: int | None = None, chosen: Sequence[int] = ()) -> Shown:
    """What update number `index` (counted from 0) reads, what the objective makes of it, and what is drawn.

    Args:
        stream: of the run; with `BatchLayout.replays`, the micro-batches of all ranks are shown.
        index: number of the update.
        limit: decode at most this many samples; None for all.
        chosen: decode these samples instead.

    Raises:
        UserError: a chosen sample is not in the update.
    """
    layout = stream.layout
    reads = describe_update(stream, index)
    strange = [i for i in chosen if i not in {read.sample_id for read in reads}]
    if strange:
        known = ", ".join(str(r.sample_id) for r in reads[:_LISTED]) + (" ..." if len(reads) > _LISTED else "")
        raise UserError(f"sample {strange[0]} is not in this update: it has {known}")
    decoded = [read for read in reads if read.sample_id in chosen] if chosen else reads[:limit]
    whose = {layout.rank_and_part(index, part): part for part in range(layout.parts(index))}
    parts = sorted({whose[read.rank, read.part] for read in decoded}) if limit is not None else list(range(layout.parts(index)))
    facts: dict[str, Any] = {
        "epoch": stream.epoch(index), "positions": [reads[0].position, reads[-1].position], "seed": stream.seed, "ranks": layout.ranks,
        "micro_batches": [_micro_batch(stream, index, part) for part in parts],
        "samples": [{"sample": r.sample_id, "epoch": r.epoch, "key": r.key, "shard": r.shard, "data": stream.sets[r.source].directory,
                     "position": r.position, "rank": r.rank, "part": r.part} for r in reads],
        "sample_ids": [r.sample_id for r in reads], "keys": [r.key for r in reads], "examples": [],
    }
    previews: list[Preview] = []
    objective = stream.turns.objective(index)
    for read, prepared in zip(decoded, stream.prepare([read.position for read in decoded]), strict=True):
        sample = prepared.sample
        example: dict[str, Any] = {"sample": read.sample_id, "key": read.key, "epoch": read.epoch,
                                   "first_draw": f"{int(stream.rng(read.position).bit_generator.random_raw()):016x}"}
        facts["examples"].append(example)
        made: list[Preview] = []
        try:
            if isinstance(sample, BadSample):
                raise sample
            classes = stream.sets[read.source].index.schema.get("classes", [])
            example["fields"] = dict(sample_rows(sample, classes, getattr(objective, "tokenizer", None)))
            if sample.partner is not None:
                example["partner"] = {"sample": sample.partner.index, "key": sample.partner.key}
            made = [objective.describe(e) for e in objective.example(sample, prepared.rng)]
        except BadSample as error:
            example["bad"] = str(error)
        example["examples"] = [[list(row) for row in preview.rows] for preview in made]
        previews += made
    return Shown(facts, previews)


def _micro_batch(stream: Stream, index: int, part: int) -> dict[str, Any]:
    """What one forward pass gets."""
    rank, number = stream.layout.rank_and_part(index, part)
    facts: dict[str, Any] = {"rank": rank, "part": number, "torch_seed": draw_seed(stream.seed, index, rank, number)}
    try:
        batch = stream[stream.layout.number(index, part)]
    except UserError as error:
        return {**facts, "bad": str(error)}
    passes = batch.passes()
    return {**facts, "samples": batch.sample_ids, "counts": added(p.counts for p in passes), "tokens": sum(p.tokens for p in passes),
            "task": batch.task, "skipped": [record.reason for record in batch.bad], **({"passes": len(passes)} if len(passes) > 1 else {}),
            **_tensors(passes[0])}


def _tensors(batch: Batch) -> dict[str, Any]:
    """The shapes of a batch's tensors, how long its rows are, and how much of each row its masks let through."""
    known = {"counts", "samples", "tokens", "task", "sample_ids", "bad", "reads"}
    shapes: dict[str, str] = {}
    rows: dict[str, list[int]] = {}
    for name, value in vars(batch).items():
        if isinstance(value, Tensor):
            shapes[name] = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
            if value.dim() == 2 and (str(value.dtype) == "torch.bool" or "mask" in name):
                rows[name] = (value != 0).sum(1).tolist()
        elif name not in known and isinstance(value, tuple) and value and all(type(v) is int for v in value):
            rows[name] = list(value)
    return {"tensors": shapes, "rows": rows}


def lines(facts: Mapping[str, Any], title: str, masks: Sequence[str] = ()) -> list[str]:
    """An update for people."""
    samples, ranks = facts["samples"], facts["ranks"]
    first, last = facts["positions"]
    made = [f"{title}: {len(samples)} samples, positions {first} to {last} of the stream, epoch {facts['epoch']:.3f}"]
    several = len({s["data"] for s in samples}) > 1
    made.append(f"  {'sample':>9}  {'epoch':>5}  {'rank':>4}  {'micro-batch':>11}  key")
    made += [f"  {s['sample']:>9}  {s['epoch']:>5}  {s['rank']:>4}  {s['part']:>11}  {s['key']} ({s['shard']}"
             f"{' of ' + s['data'] if several else ''})" for s in samples[:_LISTED]]
    if len(samples) > _LISTED:
        made.append(f"  ... {len(samples) - _LISTED} more (all with --json)")
    for micro in facts["micro_batches"]:
        made += _micro_batch_lines(micro, ranks)
    if masks:
        made.append(f"attention masks of the system: {', '.join(masks).lower()}")
    for example in facts["examples"]:
        made.append(f"sample {example['sample']} {example['key']}, epoch {example['epoch']}; its draws begin with {example['first_draw']}")
        made += [f"  {name}: {value}" for name, value in example.get("fields", {}).items()]
        if "partner" in example:
            made.append(f"  partner: sample {example['partner']['sample']} {example['partner']['key']}")
        if "bad" in example:
            made.append(f"  BAD: {example['bad']}")
        for rows in example["examples"][:_EXAMPLES]:
            made.append("  the objective makes of it")
            made += [f"    {name}: {value if len(value) <= _LONGEST else value[:_LONGEST] + ' ...'}" for name, value in rows]
        if len(example["examples"]) > _EXAMPLES:
            made.append(f"  ... and {len(example['examples']) - _EXAMPLES} more examples (all with --json)")
    if facts["examples"]:
        made.append(f"every sample has a generator of its own: Philox, keyed by seed {facts['seed']}, its epoch and its number")
    return made


def _micro_batch_lines(micro: Mapping[str, Any], ranks: int) -> list[str]:
    whose = f"micro-batch {micro['part']}" + (f" of rank {micro['rank']}" if ranks > 1 else "")
    if "bad" in micro:
        return [f"{whose}: BAD: {micro['bad']}"]
    task = f"task {micro['task']}, " if micro["task"] else ""
    counts = ", ".join(f"{count} {name}" for name, count in micro["counts"].items())
    tensors = ", ".join(f"{name} {shape}" for name, shape in micro["tensors"].items())
    made = [f"{whose}: {task}{counts}, {micro['tokens']} tokens; dropout is drawn from torch seed {micro['torch_seed']}",
            f"  tensors: {tensors}"]
    for name, values in micro["rows"].items():
        made.append(f"  {name}: {' '.join(map(str, values[:_ROWS]))}{f' ... ({len(values)})' if len(values) > _ROWS else ''}")
    return made + [f"  skipped: {reason}" for reason in micro["skipped"]]
