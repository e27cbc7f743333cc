"""The stream: from shards to batches, in an order that any run, rank and worker agrees on.

Update u trains on the samples at positions [u * G, (u + 1) * G) of the order (`pipelines/data/order.py`), G
being the global batch. Rank r of R takes the positions p with p % R == r and cuts them into micro-batches,
so batch number `update * accumulate + part` of a rank can be made from nothing but that number. The
loop's update counter is the whole state of the data; how many workers prefetched what does not matter.

An objective that is `sequential` gets G lanes of consecutive samples instead of a shuffle: sample i of every update continues sample
i of the update before.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ...shared.errors import BadSample, UserError, raise_problems
from ...shared.sample import Sample
from ...shared.system import Batch, Objective
from .ahead import ReadAhead
from .dataset import DataSet
from .loader import Caught, From, Maker, added, load
from .order import CYCLE, Draws, Order, Place, SourceOrder, generator, quotas

Mixture = Sequence[tuple[DataSet, float]]
_GRACE = 1000
"""The `max_bad` fraction is taken of at least this many samples, so that the first bad one does not end a run."""
_STAND_INS = 1000


@dataclass(frozen=True)
class Layout:
    """How the global batch is divided over ranks and micro-batches.

    Args:
        global_batch: samples of one update, over all ranks.
        micro_batch: samples of one forward pass on one rank; None for all of the rank's share.
        rank: number of this process.
        world: number of processes.
        replays: of a single process, the ranks whose micro-batches it makes in their stead, as they made them.
    """

    global_batch: int
    micro_batch: int | None = None
    rank: int = 0
    world: int = 1
    replays: int = 1

    def __post_init__(self) -> None:
        raise_problems(self._problems(), "the batch cannot be divided")

    @property
    def ranks(self) -> int:
        """Ranks that the samples are dealt to."""
        return self.world * self.replays

    def _problems(self) -> Iterator[str]:
        assert self.world == 1 or self.replays == 1, "several ranks make their own micro-batches"
        g, world, micro = self.global_batch, self.ranks, self.micro_batch
        if g < 1 or world < 1 or (micro is not None and micro < 1):
            yield f"data.global_batch is {g}, data.micro_batch {micro}, on {world} ranks: all must be positive"
        elif not 0 <= self.rank < self.world:
            yield f"rank is {self.rank}, expected 0 to {self.world - 1}"
        elif g % world:
            near = sorted({max(world, g // world * world), (g // world + 1) * world})
            yield f"data.global_batch {g} is no multiple of the {world} ranks: use {' or '.join(map(str, near))}"
        elif micro is not None and (g // world) % micro:
            share = g // world
            near = [m for m in range(1, share + 1) if share % m == 0]
            best = sorted(sorted(near, key=lambda m: abs(m - micro))[:2])
            yield f"data.micro_batch {micro} does not divide the {share} samples of a rank: use {' or '.join(map(str, best))}"

    @property
    def size(self) -> int:
        """Samples of one micro-batch."""
        return self.global_batch // self.ranks if self.micro_batch is None else self.micro_batch

    @property
    def accumulate(self) -> int:
        """Micro-batches of an update on one process."""
        return self.global_batch // self.world // self.size

    def place(self, part: int) -> tuple[int, int]:
        """Whose micro-batch `part` of this process is: (rank, number on that rank)."""
        rank, number = divmod(part, self.accumulate // self.replays)
        return self.rank + rank, number

    def positions(self, update: int, part: int) -> range:
        """The positions of the order that make up micro-batch `part` of an update on this process."""
        rank, number = self.place(part)
        first = update * self.global_batch + rank + number * self.size * self.ranks
        return range(first, first + self.size * self.ranks, self.ranks)


class Stream:
    """Micro-batches by number: `stream[update * layout.accumulate + part]`.

    Args:
        data: a data set, or a mixture of (data set, weight).
        objective: makes examples and batches.
        layout: the global batch and this rank's share of it.
        seed: of the order and of every draw that is made for a sample.
        lanes: pieces of the data that are read side by side; best a multiple of every number of ranks. A sequential objective has
            one for each sample of an update instead.
        window: samples of a lane that are shuffled together (not for a sequential objective).
        on_bad: ``raise`` ends the run at the first bad sample, ``skip`` leaves it out and records it in `Batch.bad`.
        max_bad: share of bad samples at which a run ends even so.
    """

    def __init__(self, data: DataSet | Mixture, objective: Objective[Any], layout: Layout, *, seed: int = 0, lanes: int = 240,
                 window: int = 4096, on_bad: str = "raise", max_bad: float = 0.01) -> None:
        parts: Mixture = [(data, 1.0)] if isinstance(data, DataSet) else list(data)
        raise_problems(_problems(parts, lanes, window, on_bad, max_bad), "the stream cannot be set up")
        if objective.sequential and len(parts) > 1:
            raise UserError(f"this objective reads one text from its beginning to its end and got a mixture of {len(parts)} data sets: "
                            "pack the texts into one data set, or train on one of them")
        self.sets = tuple(d for d, _ in parts)
        self.objective, self.layout, self.on_bad, self.max_bad, self.seed = objective, layout, on_bad, max_bad, seed
        lanes = layout.global_batch if objective.sequential else lanes
        self.order = Order(tuple(SourceOrder(d.shard_sizes, seed, f"{i}/{d.fingerprint}", lanes, window, objective.sequential)
                                 for i, d in enumerate(self.sets)), tuple(float(w) for _, w in parts))
        self._first = tuple(itertools.accumulate((len(d) for d in self.sets), initial=0))
        if objective.needs_partner and any(len(d) < 2 for d in self.sets):
            raise UserError("this objective pairs each sample with another one: a data set of one sample is not enough")

    @property
    def samples_per_epoch(self) -> int:
        """Samples of the data set, or of all data sets of the mixture together."""
        return self._first[-1]

    def epoch(self, update: int) -> float:
        """Epochs consumed before an update."""
        return update * self.layout.global_batch / self.samples_per_epoch

    def __getitem__(self, number: int) -> Batch:
        """Micro-batch `number` of this rank."""
        update, part = divmod(number, self.layout.accumulate)
        places = [self.order.locate(p) for p in self.layout.positions(update, part)]
        maker, draws = Maker(self.objective, self.on_bad), Draws(self.seed, "example")
        for place, sample in zip(places, self._read(places), strict=True):
            index = self.index(place)
            maker.add(index, sample, draws.of(place.epoch, index), self._partner(place), partial(self.name, place), self._before(place))
        if not maker.examples:
            self._stand_in(places[0], maker)
        return maker.batch()

    def samples(self, positions: Sequence[int]) -> Iterator[tuple[Sample | BadSample, np.random.Generator]]:
        """The samples at some positions as an objective gets them, each with its generator; for looking at."""
        places = [self.order.locate(p) for p in positions]
        for place, sample in zip(places, self._read(places), strict=True):
            partner = self._partner(place)
            if isinstance(sample, Sample):
                sample.partner = partner if isinstance(partner, Sample) else None
            yield partner if isinstance(partner, BadSample) else sample, self._rng(place)

    def alone(self, position: int) -> Batch | None:
        """The sample at a position as a batch of its own; None where it is bad."""
        place = self.order.locate(position)
        maker = Maker(self.objective, "skip")
        maker.add(self.index(place), self._read([place])[0], self._rng(place), self._partner(place), partial(self.name, place))
        return maker.batch() if maker.examples else None

    def draws(self, position: int) -> np.random.Generator:
        """A new generator for what is drawn for the sample at a position."""
        return self._rng(self.order.locate(position))

    def index(self, place: Place) -> int:
        """The sample's number among all data sets of the stream: `Sample.index`."""
        return self._first[place.source] + place.sample

    def _rng(self, place: Place) -> np.random.Generator:
        return generator(self.seed, place.epoch, self.index(place), "example")

    def name(self, place: Place) -> tuple[str, str]:
        """(key, shard) of a sample, without reading it."""
        return self.sets[place.source].key_and_shard(place.sample)

    def _read(self, places: Sequence[Place]) -> list[Sample | BadSample]:
        """The samples of the places, each data set read in the order of its shards."""
        found: dict[int, Sample | BadSample] = {}
        for source, data in enumerate(self.sets):
            at = [i for i, place in enumerate(places) if place.source == source]
            for i, result in zip(at, data.read_many([places[i].sample for i in at]), strict=True):
                if isinstance(result, Sample):
                    result.index = self.index(places[i])
                found[i] = result
        return [found[i] for i in range(len(places))]

    def _before(self, place: Place) -> int | None:
        """The sample that this one continues, where samples are read in sequence: the one before it in its lane and epoch, or -1."""
        if not self.objective.sequential:
            return None
        order = self.order.sources[place.source]
        same = (place.position - order.lanes) // order.samples == place.epoch
        return self.index(place) - 1 if same else -1

    def _partner(self, place: Place) -> Sample | BadSample | None:
        """Another sample of the same shuffle window, drawn for this sample."""
        if not self.objective.needs_partner:
            return None
        data, order = self.sets[place.source], self.order.sources[place.source]
        draw = generator(self.seed, place.epoch, self.index(place), "partner")
        _, window, at = order.window_of(place.position)
        if len(window) > 1:
            other = int(window[(at + 1 + int(draw.integers(len(window) - 1))) % len(window)])
        else:  # a lane's last window may hold one sample
            other = (place.sample + 1 + int(draw.integers(len(data) - 1))) % len(data)
        partner = data.read_many([other])[0]
        if isinstance(partner, Sample):
            partner.index = self._first[place.source] + other
        return partner

    def _stand_in(self, place: Place, maker: Maker) -> None:
        """Where every sample of a micro-batch is bad: the nearest good neighbour in the shuffle window."""
        order, data = self.order.sources[place.source], self.sets[place.source]
        epoch, window, at = order.window_of(place.position)
        for step in range(1, min(len(window), _STAND_INS)):
            sample = int(window[(at + step) % len(window)])
            near = Place(place.source, place.position, epoch, sample)
            maker.add(self.index(near), self._read([near])[0], self._rng(near), self._partner(near), partial(self.name, near),
                      -1 if self.objective.sequential else None)
            if maker.examples:
                return
        raise UserError(f"no usable sample near {self.name(place)[0]!r} of {data.directory}; the last reason: {maker.bad[-1].reason}")

    def loader(self, start_update: int = 0, *, workers: int = 0, prefetch: int = 2, pin_memory: bool = False) -> Iterator[Batch]:
        """The micro-batches of this rank from an update on, without end, whatever the number of workers.

        Args:
            start_update: number of the first update, which is what a checkpoint stores.
            workers: processes that read and prepare; 0 for none.
            prefetch: batches that each worker prepares ahead.
            pin_memory: put batches into pinned memory, for copies to a GPU that overlap with work.
        """
        seen = bad = 0
        first = start_update * self.layout.accumulate
        ahead = self._read_ahead(start_update * self.layout.global_batch)
        for number, batch in enumerate(load(Caught(self), From(first), workers, prefetch, pin_memory, ahead), first):
            if ahead is not None:
                ahead.reached((number + 1) // self.layout.accumulate * self.layout.global_batch)
                batch.reads = added([batch.reads, self.read_costs()])  # what this process fetched ahead
            seen += self.layout.size
            bad += len(batch.bad)
            if bad > self.max_bad * max(seen, _GRACE):
                last = batch.bad[-1] if batch.bad else None
                raise UserError(f"{bad} of {seen} samples are bad, more than data.max_bad {self.max_bad:g} allows"
                                + (f"; the last: {last.reason}" if last else ""))
            yield batch

    def read_costs(self) -> dict[str, float]:
        """What reading cost in this process since the last call (`Batch.reads`)."""
        return added([d.read_costs() for d in self.sets])

    def _read_ahead(self, position: int) -> ReadAhead | None:
        """What fetches the shards of this rank's lanes before they are read, where a data set is remote."""
        if not any(d.remote for d in self.sets):
            return None
        lanes = self.order.sources[0].lanes
        step = math.gcd(lanes, self.layout.world)
        mine = range(self.layout.rank % step, lanes, step)
        coming = ((at, source, self.sets[source].shard_of(sample)[0]) for at, source, sample in self.order.coming(position, mine))
        return ReadAhead(self.sets, coming, position, len(mine))

    def order_state(self) -> dict[str, Any]:
        """Everything that determines the order, for the checkpoint."""
        first = self.order.sources[0]
        how = {"sequential": True} if first.sequential else {"lanes": first.lanes, "window": first.window}
        return {"version": 1, "global_batch": self.layout.global_batch, "seed": self.seed, **how,
                "data": [{"fingerprint": d.fingerprint, "samples": len(d), "quota": q}
                         for d, q in zip(self.sets, quotas(self.order.weights), strict=True)]}


def check_order(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to resume in another order than a checkpoint's, naming what differs."""
    problems: list[str] = []
    fixes = {"seed": "seed", "lanes": "data.lanes", "window": "data.window", "global_batch": "data.global_batch"}
    if saved.get("sequential", False) != now.get("sequential", False):
        was, now_is = ("in sequence" if state.get("sequential") else "shuffled" for state in (saved, now))
        problems.append(f"the samples were read {was} and now {now_is}: use the system that the run began with")
        fixes = {}
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
        elif a["quota"] != b["quota"]:
            problems.append(f"data set {i} had {a['quota'] / CYCLE:.1%} of the samples and now {b['quota'] / CYCLE:.1%}: set it back")
    if saved.get("version") != now.get("version"):
        problems.append("the checkpoint was written by a version of polymodal with another order")
    raise_problems(problems, "the run cannot continue in the same order (start a new run to change it)")


def plan(stream: Stream) -> list[str]:
    """What the stream will do, in lines for people: the preflight of the data."""
    layout, order, n = stream.layout, stream.order.sources[0], stream.samples_per_epoch
    g = layout.global_batch
    lines: list[str] = []
    for data, quota in zip(stream.sets, quotas(stream.order.weights), strict=True):
        share = "" if len(stream.sets) == 1 else f", {quota / CYCLE:.1%} of the stream"
        lines.append(f"data: {data.directory}: {len(data)} samples ({data.index.kind}: {', '.join(data.index.fields)}) in "
                     f"{len(data.index.shards)} shards{share}")
    micro = f"{layout.accumulate} micro-batches of {layout.size}" if layout.accumulate > 1 else f"one micro-batch of {layout.size}"
    lines.append(f"update: {g} samples = {layout.world} {'rank' if layout.world == 1 else 'ranks'} x {micro}")
    whole, tail = divmod(n, g)
    rest = f" and {tail} samples, which share an update with the next epoch; none is dropped" if tail else ""
    lines.append(f"epoch: {n} samples = {whole} updates{rest}")
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
    return [*lines, *_plan_remote(stream)]


def _plan_remote(stream: Stream) -> Iterator[str]:
    """How much of remote data is read side by side, and whether the cache holds it."""
    if not any(d.remote for d in stream.sets):
        return
    order = stream.order
    first = itertools.takewhile(lambda piece: piece[0] <= 0, order.coming(0, range(order.sources[0].lanes)))
    shards = {(source, stream.sets[source].shard_of(sample)[0]) for _, source, sample in first if stream.sets[source].remote}
    size = sum(stream.sets[source].index.shards[shard].size for source, shard in shards)
    room = min(d.cache_limit for d in stream.sets)
    kept = f"at most {room / 2**20:,.0f} MiB are kept" if math.isfinite(room) else "what was read is kept while the disk has room"
    yield f"remote: {len(shards)} shards ({size / 2**20:,.0f} MiB) are read side by side by all ranks; {kept}"
    if size > room:
        yield ("note: the cache does not hold the shards that are read side by side on one machine, so they are fetched over and over: "
               "raise POLYMODAL_CACHE_BYTES, or lower data.lanes before the run starts")


@dataclass(frozen=True)
class Read:
    """One sample that an update trains on."""

    position: int
    rank: int
    part: int
    epoch: int
    sample_id: int
    key: str
    shard: str
    source: int


def describe_update(stream: Stream, update: int) -> list[Read]:
    """Every sample of an update, over all ranks (those of `Layout.replays`, too), in the order of the positions."""
    found: list[Read] = []
    layout = stream.layout
    for i in range(layout.global_batch):
        position = update * layout.global_batch + i
        place = stream.order.locate(position)
        key, shard = stream.sets[place.source].key_and_shard(place.sample)
        part = i // layout.ranks // layout.size
        found.append(Read(position, i % layout.ranks, part, place.epoch, stream.index(place), key, shard, place.source))
    return found


def _problems(parts: Mixture, lanes: int, window: int, on_bad: str, max_bad: float) -> Iterator[str]:
    if not parts:
        yield "there is no data set"
        return
    if lanes < 1:
        yield f"data.lanes is {lanes}, expected a positive number such as 240"
    if window < 1:
        yield f"data.window is {window}, expected a positive number such as 4096"
    if on_bad not in ("raise", "skip"):
        yield f"data.on_bad is {on_bad!r}, expected raise or skip"
    if not 0 <= max_bad <= 1:
        yield f"data.max_bad is {max_bad}, expected a share between 0 and 1"
    if any(not w > 0 for _, w in parts):
        yield f"the weights of the mixture are {[w for _, w in parts]}, expected positive numbers"
    elif 0 in quotas([w for _, w in parts]):
        yield f"a weight of the mixture is below a thousandth of the sum: {[w for _, w in parts]}; raise it or leave it out"
