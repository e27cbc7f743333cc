"""The order of the stream: a pure function of (data set, seed, lanes, window, mixture, position).

Position p of the stream is the p-th sample that training consumes. Nothing here knows ranks, workers,
batches or what was read before, so any position can be asked for at any time at the same cost, and the
whole state of a run's data is one integer.

How position p finds its sample (one data set of N samples):

1. Epoch e = p // N: epochs are exact blocks of positions, each holding every sample once.
2. Lane l = p % C. The shards, in an order drawn once per run, are laid end to end and cut into C lanes
   of equal length (lengths and borders move by at most C samples between epochs, so that a lane, and the
   rank that reads it, keeps to the same shards for the whole run).
3. In an epoch, the pieces of shards in a lane are permuted, the lane is cut into windows of W samples,
   and each window is permuted.

A sequential order (`SourceOrder.sequential`) is the same with nothing permuted: the shards lie on the axis as they are, and a
lane walks through its part of the text sample by sample. With as many lanes as samples in an update, row g of every update is
the next sample of lane g, which is what a system with a memory needs (Transformer-XL).

A mixture deals the rows of every lane to its data sets in cycles of 1000 rows with exact counts; the
k-th row a data set gets in lane l is that data set's own position k * C + l, so each repeats with its own
epochs.

Permutations come from the raw bits of Philox keyed by a hash: numpy freezes bit generators, but not
what `Generator.permutation` makes of them.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import struct
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.random.bit_generator import ISeedSequence

CYCLE = 1000
"""Rows of one mixture cycle: weights are met exactly, to a thousandth, in every 1000 rows of a lane."""
_CACHED_WINDOWS = 1024
_WORDS = struct.Struct("<2Q")


def _text(*parts: str | int) -> str:
    """The parts of a key as one text, the same on every machine and Python."""
    return "\x1f".join([f"{type(part).__name__}:{part}" for part in parts])


def _words(text: str) -> tuple[int, int]:
    """The 128-bit key that a text stands for, as two numbers."""
    words: Any = _WORDS.unpack(hashlib.blake2b(text.encode(), digest_size=16).digest())
    return words


class _Key(ISeedSequence):
    """Hands Philox its 128-bit key as it is (`Philox(key=...)` first gathers entropy from the system, which costs most of its time)."""

    def __init__(self, *parts: str | int) -> None:
        self._words = np.array(_words(_text(*parts)), dtype=np.uint64)

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        """The key."""
        assert n_words == 2 and dtype is np.uint64
        return self._words


def _philox(*key: str | int) -> np.random.Philox:
    return np.random.Philox(cast("np.random.SeedSequence", _Key(*key)))  # numpy's stubs know no other ISeedSequence


def random_bits(count: int, *key: str | int) -> np.ndarray:
    """`count` random uint64 [count], a pure function of the key."""
    return _philox(*key).random_raw(count)


def permutation(count: int, *key: str | int) -> np.ndarray:
    """A random permutation of range(count), int64 [count], a pure function of the key."""
    return _sorted_by(random_bits(count, *key))


def _sorted_by(bits: np.ndarray) -> np.ndarray:
    """`np.argsort(bits, kind="stable")` of random uint64 numbers, int64 [N], four times as fast.

    numpy counts numbers of 16 bits instead of comparing them, so the highest 48 are sorted in three passes. The rest decides so seldom
    that everything is sorted anew where it does.
    """
    if len(bits) < 8192:  # as fast either way
        return np.argsort(bits, kind="stable")
    order = np.argsort((bits >> np.uint64(16)).astype(np.uint16), kind="stable")
    for shift in (32, 48):
        order = order[np.argsort((bits[order] >> np.uint64(shift)).astype(np.uint16), kind="stable")]
    ordered = bits[order]
    return order if (ordered[1:] > ordered[:-1]).all() else np.argsort(bits, kind="stable")


def generator(seed: int, epoch: int, sample_index: int, purpose: str) -> np.random.Generator:
    """The generator for everything that is drawn for one sample (crop, mask, noise) in one epoch.

    Args:
        seed: the run's seed.
        epoch: how often the sample was seen before.
        sample_index: the sample's number in its data set (`Sample.index`).
        purpose: keeps independent draws apart, such as ``"example"`` or ``"partner"``.
    """
    return np.random.Generator(_philox("generator", seed, epoch, sample_index, purpose))


class Draws:
    """The generators of one sample after another: the bits of `generator`, in a third of its time.

    There is one generator, whose state is set anew for each sample, so a sample's draws end where the next sample's begin.
    """

    def __init__(self, seed: int, purpose: str) -> None:
        self._before, self._after = _text("generator", seed), _text(purpose)
        self._bits = _philox("draws")
        self._generator = np.random.Generator(self._bits)
        self._key: dict[str, Any] = {"counter": (0,) * 4, "key": (0, 0)}
        self._fresh: Any = {**self._bits.state, "state": self._key, "buffer": (0,) * 4}  # whose own arrays would take longer to read

    def of(self, epoch: int, sample_index: int) -> np.random.Generator:
        """The generator for a sample in an epoch; until the next call."""
        self._key["key"] = _words(f"{self._before}\x1fint:{epoch}\x1fint:{sample_index}\x1f{self._after}")
        self._bits.state = self._fresh
        return self._generator


def draw_seed(*key: object) -> int:
    """The seed of torch's generators (dropout) at a place in a run."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class SourceOrder:
    """The endless order of one data set.

    Args:
        shard_sizes: samples in each shard; sample numbers follow the shards.
        seed: the run's seed.
        name: tells the data sets of a mixture apart.
        lanes: C, interleaved pieces of the data set; any number, best a multiple of every rank count.
        window: W, samples of a lane that are shuffled together.
        sequential: permute nothing: every lane reads consecutive samples, and begins anew with the next epoch.
    """

    shard_sizes: tuple[int, ...]
    seed: int
    name: str
    lanes: int
    window: int
    sequential: bool = False
    _axis: tuple[np.ndarray, np.ndarray] = field(init=False, repr=False, compare=False)
    _windows: OrderedDict[tuple[int, int, int], np.ndarray] = field(init=False, repr=False, compare=False, default_factory=OrderedDict)
    _pieces: OrderedDict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = field(init=False, repr=False, compare=False,
                                                                                default_factory=OrderedDict)

    def __post_init__(self) -> None:
        assert sum(self.shard_sizes) > 0 and self.lanes > 0 and self.window > 0
        sizes = np.array(self.shard_sizes, dtype=np.int64)
        run = self._permuted(len(sizes), "shards")
        starts = np.concatenate([[0], np.cumsum(sizes)])[:-1]  # first sample of each shard
        ends = np.cumsum(sizes[run])  # where the shard ends on the run's axis
        object.__setattr__(self, "_axis", (starts[run], ends))

    def _permuted(self, count: int, purpose: str, *key: int) -> np.ndarray:
        """The order in which `count` things are taken, int64 [count]."""
        return np.arange(count) if self.sequential else permutation(count, purpose, self.seed, self.name, *key)

    @cached_property
    def samples(self) -> int:
        """Samples of one epoch."""
        return int(self._axis[1][-1])

    def _lane(self, epoch: int, lane: int) -> tuple[int, int, int]:
        """(first row of the stream, first place on the axis, length) of a lane in an epoch.

        Lane l owns the positions p with p % C == l, so its length in an epoch is the number of those.
        """
        n, lanes = self.samples, self.lanes
        base, extra = divmod(n, lanes)
        first = (epoch * n) % lanes  # the `extra` lanes from `first` on (cyclic) are one longer in this epoch
        wrapped = max(0, first + extra - lanes)
        before = max(0, min(lane, first + extra) - first) + min(lane, wrapped)
        longer = first <= lane < first + extra or lane < wrapped
        return self._first_row(epoch, lane), lane * base + before, base + longer

    def _first_row(self, epoch: int, lane: int) -> int:
        """Rows of a lane before an epoch."""
        return -(-(epoch * self.samples - lane) // self.lanes)  # rounded up

    def _lane_pieces(self, epoch: int, lane: int) -> tuple[np.ndarray, np.ndarray]:
        """The lane's pieces of shards in this epoch's order: (first sample, end within the lane) of each."""
        found = self._pieces.get((epoch, lane))
        if found is None:
            _, begin, length = self._lane(epoch, lane)
            first_samples, ends = self._axis
            low = int(np.searchsorted(ends, begin, side="right"))
            high = int(np.searchsorted(ends, begin + length, side="left")) + 1
            shard_begin = np.concatenate([[0], ends])[low:high]
            piece_begin = np.maximum(shard_begin, begin)
            sizes = np.minimum(ends[low:high], begin + length) - piece_begin
            samples = first_samples[low:high] + (piece_begin - shard_begin)
            shuffled = self._permuted(len(sizes), "pieces", epoch, lane)
            found = samples[shuffled], np.cumsum(sizes[shuffled])
            _remember(self._pieces, (epoch, lane), found)
        return found

    def _window(self, epoch: int, lane: int, number: int) -> np.ndarray:
        """The samples of one window in reading order, int64 [<= W]."""
        found = self._windows.get((epoch, lane, number))
        if found is None:
            samples, ends = self._lane_pieces(epoch, lane)
            begin = number * self.window
            end = min(begin + self.window, int(ends[-1]))
            low, high = (int(np.searchsorted(ends, place, side="right")) for place in (begin, end - 1))
            tops = np.minimum(ends[low : high + 1], end)  # where the pieces of the window end in the lane
            bottoms = np.concatenate([ends[low - 1 : low] if low else [0], tops[:-1]])
            inside = np.maximum(bottoms, begin)
            first = samples[low : high + 1] + (inside - bottoms)
            read = np.repeat(first - (inside - begin), tops - inside) + np.arange(end - begin, dtype=np.int64)
            found = read[self._permuted(end - begin, "window", epoch, lane, number)]
            _remember(self._windows, (epoch, lane, number), found)
        return found

    def upcoming_shards(self, row: int, lane: int) -> Iterator[tuple[int, int]]:
        """(row, a sample of the shard) for each piece of a shard that a lane reads from `row` on, without end.

        Samples of the piece are read from that row on, or some rows later: the first of the shuffle window that it reaches into.
        """
        for epoch in itertools.count((row * self.lanes + lane) // self.samples):
            first, _, length = self._lane(epoch, lane)
            samples, ends = self._lane_pieces(epoch, lane) if length else (np.zeros(0, np.int64), np.zeros(0, np.int64))
            begin = 0
            for sample, end in zip(samples.tolist(), ends.tolist()):
                if first + min(-(-end // self.window) * self.window, length) > row:
                    yield max(row, first + begin // self.window * self.window), sample
                begin = end

    def window_of(self, position: int) -> tuple[int, np.ndarray, int]:
        """(epoch, the samples of the shuffle window that holds `position`, its place in that window)."""
        epoch, lane = position // self.samples, position % self.lanes
        number, place = divmod(position // self.lanes - self._first_row(epoch, lane), self.window)
        return epoch, self._window(epoch, lane, number), place

    def locate(self, position: int) -> tuple[int, int]:
        """(epoch, sample number) of one position."""
        epoch, samples, place = self.window_of(position)
        return epoch, int(samples[place])


def _remember(cache: OrderedDict, key: tuple, value: object) -> None:
    cache[key] = value
    if len(cache) > _CACHED_WINDOWS:
        cache.popitem(last=False)


def quotas(weights: Sequence[float]) -> tuple[int, ...]:
    """Rows of each source in a cycle of `CYCLE`, adding up exactly (largest remainder)."""
    shares = np.array(weights, dtype=np.float64) / sum(weights) * CYCLE
    counts = np.floor(shares).astype(np.int64)
    for place in np.argsort(-(shares - counts), kind="stable")[: CYCLE - int(counts.sum())]:
        counts[place] += 1
    return tuple(int(c) for c in counts)


class SampleRef(NamedTuple):
    """The sample that stands at a position of the stream."""

    source: int
    """Number of the data set in the mixture; 0 where there is one."""
    position: int
    """The data set's own position."""
    epoch: int
    sample: int
    """The sample's number in its data set."""


@dataclass(frozen=True)
class Order:
    """The endless order of one data set or of a mixture.

    Args:
        sources: the order of each data set, all with the same seed and number of lanes.
        weights: their shares of the samples; met exactly to a thousandth.
    """

    sources: tuple[SourceOrder, ...]
    weights: tuple[float, ...] = (1.0,)
    _cycles: OrderedDict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = field(init=False, repr=False, compare=False,
                                                                                default_factory=OrderedDict)

    def __post_init__(self) -> None:
        assert len(self.sources) == len(self.weights) > 0

    @cached_property
    def _quotas(self) -> tuple[int, ...]:
        return quotas(self.weights)

    def locate(self, position: int) -> SampleRef:
        """What stands at `position` of the stream."""
        if len(self.sources) == 1:
            epoch, sample = self.sources[0].locate(position)
            return SampleRef(0, position, epoch, sample)
        lanes = self.sources[0].lanes
        row, lane = divmod(position, lanes)
        cycle, place = divmod(row, CYCLE)
        dealt, ranks = self._cycle(lane, cycle)
        source = int(dealt[place])
        own = (cycle * self._quotas[source] + int(ranks[place])) * lanes + lane
        epoch, sample = self.sources[source].locate(own)
        return SampleRef(source, own, epoch, sample)

    def upcoming_shards(self, position: int, lanes: Iterable[int]) -> Iterator[tuple[int, int, int]]:
        """(position, source, a sample of the shard): what some lanes read from `position` on, in the order of need, without end.

        Samples of the shard are read from about that position on; for a mixture it is that of the cycle that they may stand in.
        """
        count = self.sources[0].lanes

        def one(source: int, lane: int) -> Iterator[tuple[int, int, int]]:
            order, quota = self.sources[source], self._quotas[source]
            mixed = len(self.sources) > 1
            row = position // count
            for own, sample in order.upcoming_shards(row // CYCLE * quota if mixed else row, lane):
                yield max(position, (own // quota * CYCLE if mixed else own) * count), source, sample

        return heapq.merge(*(one(source, lane) for source in range(len(self.sources)) for lane in lanes))

    def _cycle(self, lane: int, cycle: int) -> tuple[np.ndarray, np.ndarray]:
        """For each row of a cycle: its source, and how many rows of the cycle that source had before."""
        found = self._cycles.get((lane, cycle))
        if found is None:
            counts = self._quotas
            dealt = np.repeat(np.arange(len(counts)), counts)[permutation(CYCLE, "mixture", self.sources[0].seed, lane, cycle)]
            ranks = np.zeros(CYCLE, dtype=np.int64)
            for source, count in enumerate(counts):
                ranks[dealt == source] = np.arange(count)
            found = dealt, ranks
            _remember(self._cycles, (lane, cycle), found)
        return found
