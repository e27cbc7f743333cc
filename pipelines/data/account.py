"""What is told about a stream: its plan, the samples of an update, and what determines its order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...shared.errors import raise_problems
from .layout import BatchLayout
from .order import CYCLE, quotas
from .stream import Stream


def order_state(stream: Stream) -> dict[str, Any]:
    """Everything that determines the order, for the checkpoint."""
    first = stream.order.sources[0]
    how = {"sequential": True} if first.sequential else {"lanes": first.lanes, "window": first.window}
    turns: dict[str, Any] = {"turns": list(stream.turns.cycle)} if stream.objective.turns else {}
    shares: list[dict[str, int]] = [{} for _ in stream.sets]
    if stream.divided:
        turns["reads"] = {task: list(stream.quotas(task)) for task in stream.reads}
    else:
        shares = [{"quota": quota} for quota in quotas(stream.order.weights)]
    return {"version": 1, "global_batch": stream.layout.global_batch, "seed": stream.seed, **how, **turns,
            "data": [{"fingerprint": d.fingerprint, "samples": len(d), **share} for d, share in zip(stream.sets, shares, strict=True)]}


def check_order(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to resume in another order than a checkpoint's, naming what differs."""
    problems: list[str] = []
    fixes = {"seed": "seed", **{name: f"data.{name}" for name in ("lanes", "window")}}
    if now.get("sequential"):
        fixes["global_batch"] = "data.global_batch"
    if saved.get("sequential", False) != now.get("sequential", False):
        was, now_is = ("in sequence" if state.get("sequential") else "shuffled" for state in (saved, now))
        problems.append(f"the samples were read {was} and now {now_is}: use the system that the run began with")
        fixes = {}
    if saved.get("turns") != now.get("turns"):
        was, now_is = (" ".join(state.get("turns") or ["none"]) for state in (saved, now))
        problems.append(f"the updates of a cycle had the tasks {was} and now have {now_is}: set the shares of the tasks back")
    elif saved.get("reads") != now.get("reads"):
        was, now_is = (_shares(state.get("reads")) for state in (saved, now))
        problems.append(f"{was}, and now {now_is}: give the data sets and weights that the run began with")
    for name, key in fixes.items():
        if saved.get(name) != now.get(name):
            problems.append(f"{key} was {saved.get(name)} and is {now.get(name)}: set it back")
    before, after = saved.get("data", []), now.get("data", [])
    if len(before) != len(after):
        problems.append(f"there were {len(before)} data sets and now {len(after)}: give the same ones")
    for i, (a, b) in enumerate(zip(before, after, strict=False)):
        if a["fingerprint"] != b["fingerprint"]:
            problems.append(f"data set {i} had {a['samples']} samples with fingerprint {a['fingerprint'][:12]} and now {b['samples']} with "
                            f"{b['fingerprint'][:12]}: give the data set the run began with")
        elif "quota" in a and "quota" in b and a["quota"] != b["quota"]:
            problems.append(f"data set {i} had {a['quota'] / CYCLE:.1%} of the samples and now {b['quota'] / CYCLE:.1%}: set it back")
    if saved.get("version") != now.get("version"):
        problems.append("the checkpoint was written by a version of polymodal with another order")
    raise_problems(problems, "the run cannot continue in the same order (start a new run to change it)")


def _shares(reads: Mapping[str, Sequence[int]] | None) -> str:
    """Who reads which data set, in a message."""
    if reads is None:
        return "all tasks read all data sets"
    return "; ".join(f"{task} read " + ", ".join(f"{quota / CYCLE:.1%} of data set {i}" for i, quota in enumerate(quotas) if quota)
                     for task, quotas in reads.items())


def plan_lines(stream: Stream) -> list[str]:
    """What the stream will do, in lines for people: the preflight of the data."""
    layout, order, n = stream.layout, stream.order.sources[0], stream.samples_per_epoch
    g = layout.global_batch
    lines: list[str] = []
    cycle = stream.turns.cycle
    for i, data in enumerate(stream.sets):
        quota = sum(stream.quotas(task)[i] for task in cycle) / len(cycle)
        share = "" if len(stream.sets) == 1 else f", {quota / CYCLE:.1%} of the stream"
        share += f", for {' and '.join(task for task, chosen in stream.reads.items() if i in chosen)}" if stream.divided else ""
        lines.append(f"data: {data.directory}: {len(data)} samples ({data.index.kind}: {', '.join(data.index.fields)}) in "
                     f"{len(data.index.shards)} shards{share}")
    micro = f"{layout.accumulate} micro-batches of {layout.size}" if layout.accumulate > 1 else f"one micro-batch of {layout.size}"
    lines.append(f"update: {g} samples = {layout.world} {'rank' if layout.world == 1 else 'ranks'} x {micro}")
    lines += _ramp_lines(layout)
    whole, tail = divmod(n, g)
    rest = f" and {tail} samples, which share an update with the next epoch; none is dropped" if tail else ""
    if stream.objective.turns:
        shares = ", ".join(f"{task} {count / len(cycle):.1%}" for task, count in stream.objective.turns.items())
        lines.append(f"tasks: one for each update, in turns: {shares}; in {len(cycle)} updates {', '.join(cycle)}, and again")
    lines.append(f"epoch: {n} samples = {whole} updates{rest}" if len(layout.batches.levels) == 1 else
                 f"epoch: {n} samples; the first one ends in update {layout.batches.update_at(n - 1) + 1:,}")
    if g > n:
        lines.append(f"note: an update of {g} holds samples more than once, the data has {n}")
    if order.sequential:
        lines.append(f"reading: in sequence, nothing is shuffled: {g} lanes of {n // g}{f' or {n // g + 1}' if n % g else ''} consecutive "
                     "samples, row i of an update is the next sample of lane i" +
                     (f"; each rank keeps to {g // layout.world} lanes" if layout.world > 1 else ""))
        lines += [f"note: the rows of {d.directory} may be in random order: `polymodal pack --in-order` keeps that of the text"
                  for d in stream.sets if not d.index.schema.get("in_order")]
    elif layout.world > 1:
        if order.lanes % layout.world == 0:
            lines.append(f"reading: {order.lanes} lanes, each rank keeps to {order.lanes // layout.world} of them "
                         f"(about 1/{layout.world} of the shards)")
        else:
            near = -(-order.lanes // layout.world) * layout.world
            lines.append(f"reading: {order.lanes} lanes are no multiple of {layout.world} ranks, so every rank reads every shard; "
                         f"data.lanes={near} would divide them (before the run starts)")
    return [*lines, *_remote_lines(stream)]


def _ramp_lines(layout: BatchLayout) -> Iterator[str]:
    """How the batch grows or was changed, where it does or was."""
    first, *later = layout.batches.levels
    if layout.batches.earlier is not None:
        yield f"batch: {layout.batches} samples"
    elif later:
        full = later[-1]
        yield (f"ramp: {first.batch} samples in each of the first {later[0].update:,} updates, then more in steps of {first.batch}; all "
               f"{full.batch} from update {full.update + 1:,} on, behind {full.sample:,} samples")


def _remote_lines(stream: Stream) -> Iterator[str]:
    """How much of remote data is read side by side, and whether the cache holds it."""
    if not any(d.remote for d in stream.sets):
        return
    order = stream.order
    begun = stream.layout.batches.before(len(stream.turns.cycle) - 1) if stream.divided else 0  # every task has had an update, or has one
    first = itertools.takewhile(lambda piece: piece[0] <= begun, order.upcoming_shards(0, range(order.sources[0].lanes)))
    shards = {(source, stream.sets[source].shard_of(sample)[0]) for _, source, sample in first if stream.sets[source].remote}
    size = sum(stream.sets[source].index.shards[shard].size for source, shard in shards)
    room = min(d.cache_limit for d in stream.sets)
    kept = f"at most {room / 2**20:,.0f} MiB are kept" if math.isfinite(room) else "what was read is kept while the disk has room"
    yield f"remote: {len(shards)} shards ({size / 2**20:,.0f} MiB) are read side by side by all ranks; {kept}"
    if size > room:
        yield ("note: the cache does not hold the shards that are read side by side on one machine, so they are fetched over and over: "
               "raise POLYMODAL_CACHE_BYTES, or lower data.lanes before the run starts")


@dataclass(frozen=True)
class PlannedSample:
    """One sample that an update trains on."""

    position: int
    rank: int
    part: int
    epoch: int
    sample_id: int
    key: str
    shard: str
    source: int


def describe_update(stream: Stream, update: int) -> list[PlannedSample]:
    """Every sample of an update, over all ranks (those of `BatchLayout.replays`, too), in the order of the positions."""
    found: list[PlannedSample] = []
    layout = stream.layout
    for position in range(layout.batches.before(update), layout.batches.before(update + 1)):
        ref = stream.order.locate(position)
        key, shard = stream.key_and_shard(ref)
        _, rank, part = layout.place(position)
        found.append(PlannedSample(position, rank, part, ref.epoch, stream.index(ref), key, shard, ref.source))
    return found
