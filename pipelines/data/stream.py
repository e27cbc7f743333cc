"""The stream: from shards to batches, in an order that any run, rank and worker agrees on.

Update u trains on the samples at positions [u * G, (u + 1) * G) of the order (`order.py`), G being the global batch; where the batch grows
or was changed, on those behind what the updates before it read (`base/ramp.py`). Rank r of R takes every R-th of these positions from the
r-th on and cuts them into micro-batches (`layout.py`), so a micro-batch of a rank can be made from nothing but its number. The loop's
update counter is the whole state of the data; how many workers prefetched what does not matter.

Where tasks take turns, the number of the update says which task it has (`turns.py`). Which samples it reads does not depend on that, unless
tasks use different data sets: then each reads those that are for it.

An objective that is `sequential` gets G lanes of consecutive samples instead of a shuffle: sample i of every update continues sample
i of the update before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ...shared.errors import UserError, raise_problems
from ...shared.system import Batch, Objective
from .ahead import ReadAhead
from .dataset import DataSet
from .layout import BatchLayout
from .loader import BatchBuilder, CountFrom, added, load
from .order import Order, SampleRef, SourceOrder, generator, quotas
from .samples import PreparedSample, SampleReader
from .turns import TurnOrder, Turns

Mixture = Sequence[tuple[DataSet, float]]
_GRACE = 1000
"""The `max_bad` fraction is taken of at least this many samples, so that the first bad one does not end a run."""
STAND_INS = 1000
"""Neighbours that are tried where every sample of a micro-batch is bad."""


class Stream:
    """Micro-batches by number: `stream[layout.number(update, part)]`.

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
        max_tokens: of a forward pass; a micro-batch with more comes in several (`Batch.rest`). None: see `BatchBuilder`.
    """

    def __init__(self, data: DataSet | Mixture, objective: Objective[Any], layout: BatchLayout, *, seed: int = 0, lanes: int = 240,
                 window: int = 4096, on_bad: str = "raise", max_bad: float = 0.01, max_tokens: int | None = None) -> None:
        parts: Mixture = [(data, 1.0)] if isinstance(data, DataSet) else list(data)
        raise_problems(_problems(parts, lanes, window, on_bad, max_bad), "the stream cannot be set up")
        if objective.sequential and len(parts) > 1:
            raise UserError(f"this objective reads one text from its beginning to its end and got a mixture of {len(parts)} data sets: "
                            "pack the texts into one data set, or train on one of them")
        if objective.sequential and len(layout.batches.levels) > 1:
            how, fix = ("grow", "leave data.ramp_start and data.ramp_samples out") if layout.batches.earlier is None else \
                ("change", f"set data.global_batch={layout.batches.batch(0)} as the run began")
            raise UserError(f"this objective reads one lane of the text for each sample of an update, so its batch cannot {how} from "
                            f"{layout.batches.batch(0)} samples: {fix}")
        self.turns = Turns(objective)
        if max_tokens is not None and any(type(o).tokens_of is Objective.tokens_of for o in self.turns.objectives.values()):
            raise UserError(f"data.max_tokens is {max_tokens}, and this objective's samples are not counted in tokens: "
                            "leave it out, and set data.micro_batch")
        self.sets = tuple(d for d, _ in parts)
        self.objective, self.layout, self.on_bad, self.max_bad, self.seed = objective, layout, on_bad, max_bad, seed
        self.max_tokens = max_tokens
        self.reads = self.turns.reads([d.index.fields for d in self.sets])
        """The numbers of the data sets that each task reads."""
        order = order_of(parts, seed, layout.global_batch if objective.sequential else lanes, window, objective.sequential)
        raise_problems(dict.fromkeys(_unread(self.reads, parts)), "the data is not for this objective")
        self.order: Order | TurnOrder = order
        if self.divided:
            self.order = TurnOrder(order, [self.reads[task] for task in self.turns.cycle], layout.batches)
        needs_partner = self.turns.needs_partner
        self._reader = SampleReader(self.sets, seed, self._partner_of if needs_partner else None, needs_next=self.turns.needs_next,
                                    draws=objective.draws)
        if needs_partner and any(len(d) < 2 for d in self.sets):
            raise UserError("this objective pairs each sample with another one: a data set of one sample is not enough")

    @property
    def samples_per_epoch(self) -> int:
        """Samples of the data set, or of all data sets of the mixture together."""
        return self._reader.samples

    @property
    def divided(self) -> bool:
        """Whether tasks read different data sets."""
        return len(set(self.reads.values())) > 1

    def quotas(self, task: str) -> tuple[int, ...]:
        """Of `CYCLE` rows that updates of a task read of a lane, those of each data set; 0 where the task does not read it."""
        chosen = self.reads[task]
        shares = dict(zip(chosen, quotas([self.order.weights[i] for i in chosen]), strict=True))
        return tuple(shares.get(i, 0) for i in range(len(self.sets)))

    def epoch(self, update: int) -> float:
        """Epochs consumed before an update."""
        return self.layout.batches.before(update) / self.samples_per_epoch

    def index(self, ref: SampleRef) -> int:
        """The sample's number among all data sets of the stream: `Sample.index`."""
        return self._reader.index(ref)

    def key_and_shard(self, ref: SampleRef) -> tuple[str, str]:
        """(key, shard) of a sample, without reading it."""
        return self._reader.key_and_shard(ref)

    def __getitem__(self, number: int) -> Batch:
        """Micro-batch `number` of this rank."""
        update, part = self.layout.update_and_part(number)
        refs = [self.order.locate(p) for p in self.layout.positions(update, part)]
        builder = BatchBuilder(self.turns.objective(update), self.on_bad, self._reader, self.max_tokens, self.turns.task(update),
                               update)
        for prepared in self._reader.prepare(refs):
            builder.add(prepared, self._continues(prepared.ref))
        if not builder.examples:
            self._add_stand_in(refs[0], builder)
        return builder.batch()

    def prepare(self, positions: Sequence[int]) -> Iterator[PreparedSample]:
        """The samples at some positions as an objective gets them, for looking at."""
        return self._reader.prepare([self.order.locate(p) for p in positions])

    def batch_of_one(self, position: int) -> Batch | None:
        """The sample at a position as a batch of its own; None where it is bad."""
        update = self.layout.batches.update_at(position)
        builder = BatchBuilder(self.turns.objective(update), "skip", self._reader, self.max_tokens, self.turns.task(update), update)
        for prepared in self.prepare([position]):
            builder.add(prepared)
        return builder.batch() if builder.examples else None

    def rng(self, position: int) -> np.random.Generator:
        """A new generator for what is drawn for the sample at a position."""
        return self._reader.rng(self.order.locate(position))

    def _continues(self, ref: SampleRef) -> int | None:
        """The sample that this one continues, where samples are read in sequence: the one before it in its lane and epoch, or -1."""
        if not self.objective.sequential:
            return None
        order = self.order.sources[ref.source]
        same = (ref.position - order.lanes) // order.samples == ref.epoch
        return self.index(ref) - 1 if same else -1

    def _partner_of(self, ref: SampleRef) -> int:
        """Another sample of the same shuffle window, drawn for this sample."""
        data, order = self.sets[ref.source], self.order.sources[ref.source]
        draw = generator(self.seed, ref.epoch, self.index(ref), "partner")
        _, window, at = order.window_of(ref.position)
        if len(window) > 1:
            return int(window[(at + 1 + int(draw.integers(len(window) - 1))) % len(window)])
        return (ref.sample + 1 + int(draw.integers(len(data) - 1))) % len(data)  # a lane's last window may hold one sample

    def _add_stand_in(self, ref: SampleRef, builder: BatchBuilder) -> None:
        """Where every sample of a micro-batch is bad: the nearest good neighbour in the shuffle window."""
        _, window, at = self.order.sources[ref.source].window_of(ref.position)
        for step in range(1, min(len(window), STAND_INS)):
            near = ref._replace(sample=int(window[(at + step) % len(window)]))
            for prepared in self._reader.prepare([near]):
                builder.add(prepared, -1 if self.objective.sequential else None)
            if builder.examples:
                return
        raise UserError(f"no usable sample near {self.key_and_shard(ref)[0]!r} of {self.sets[ref.source].directory}; the last reason: "
                        f"{builder.bad[-1].reason}")

    def loader(self, start_update: int = 0, *, workers: int = 0, prefetch: int = 2, pin_memory: bool = False) -> Iterator[Batch]:
        """The micro-batches of this rank from an update on, without end, whatever the number of workers.

        Args:
            start_update: number of the first update, which is what a checkpoint stores.
            workers: processes that read and prepare; 0 for none.
            prefetch: batches that each worker prepares ahead.
            pin_memory: put batches into pinned memory, for copies to a GPU that overlap with work.
        """
        seen = bad = 0
        layout = self.layout
        first = layout.number(start_update)
        ahead = ReadAhead.of(self.sets, self.order, layout.batches.before(start_update), layout.rank, layout.world)
        for number, batch in enumerate(load(self, CountFrom(first), workers, prefetch, pin_memory, ahead), first):
            if ahead is not None:
                ahead.reached(layout.batches.before(layout.update_and_part(number + 1)[0]))
            seen += len(layout.positions(*layout.update_and_part(number)))
            bad += len(batch.bad)
            if bad > self.max_bad * max(seen, _GRACE):
                last = batch.bad[-1] if batch.bad else None
                raise UserError(f"{bad} of {seen} samples are bad, more than data.max_bad {self.max_bad:g} allows"
                                + (f"; the last: {last.reason}" if last else ""))
            yield batch

    def read_costs(self) -> dict[str, float]:
        """What reading cost in this process since the last call (`Batch.reads`)."""
        return added([d.read_costs() for d in self.sets])


def order_of(parts: Mixture, seed: int, lanes: int, window: int, sequential: bool = False) -> Order:
    """The order of a data set or a mixture."""
    return Order(tuple(SourceOrder(d.shard_sizes, seed, f"{i}/{d.fingerprint}", lanes, window, sequential)
                       for i, (d, _) in enumerate(parts)), tuple(float(w) for _, w in parts))


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


def _unread(reads: Mapping[str, tuple[int, ...]], parts: Mixture) -> Iterator[str]:
    """What is wrong with who reads which data set."""
    told = [f"{d.directory} ({', '.join(d.index.fields)})" for d, _ in parts]
    for task, chosen in reads.items():
        weights = [parts[i][1] for i in chosen]
        if not chosen:
            yield (f"{f'the task {task}' if task else 'the objective'} can read none of the data sets {', '.join(told)}: "
                   f"give it one of its own{f', or leave it out with objective.{task}=0' if task else ''}")
        elif 0 in quotas(weights):
            yield f"a weight of the mixture is below a thousandth of the sum: {weights}; raise it or leave it out"
    for i in sorted(set(range(len(parts))) - {i for chosen in reads.values() for i in chosen}):
        yield f"no task reads {told[i]}: leave it out, or pack it with the fields that a task needs"
