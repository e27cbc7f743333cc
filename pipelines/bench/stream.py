"""Reading: the exact stream beside webdataset's shuffled pipeline, over the same shards.

Ours checks every sample's checksum and can continue at any position; webdataset shuffles shards and a
buffer of 2000 samples and decodes with its own handlers; `polymodal.stream` is ours without objectives and
batches of tensors. One step is as many batches of 64 as make the
data set once, from a loader that runs on without end. Nothing else is done with the batches.
All reads are local and in the page cache; network storage was not measured.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np

from ...shared.sample import Sample
from ...shared.system import Batch, Objective
from ..data.dataset import DataSet
from ..data.index import build_index
from ..data.layout import BatchLayout
from ..data.order import SourceOrder
from ..data.own_loop.stream import stream
from ..data.stream import Stream
from .case import Agreement, Case, Cases, Contender, Options
from .corpus import documents, pictures, write_shards
from .machine import need

PEERS = ("webdataset",)
BATCH = 64
WINDOW = 2000


@dataclass(frozen=True)
class StreamSetup:
    """Shards to read."""

    directory: str
    field: str
    """`txt` or `jpg`."""
    samples: int
    workers: int

    @property
    def batches(self) -> int:
        """Batches that make the data set once."""
        return self.samples // BATCH


@dataclass(kw_only=True)
class Items(Batch):
    """Decoded samples as they are: texts, or pictures [H, W, 3]."""

    items: list[Any]


class Decode(Objective[Any]):
    """Decodes and does nothing else."""

    def __init__(self, field: str) -> None:
        self.field = field

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterable[Any]:
        """The text, or the picture's pixels."""
        yield sample.text() if self.field == "txt" else sample.pixels()

    def collate(self, examples: list[Any]) -> Items:
        """The samples as a list."""
        return Items(counts={}, items=examples)


Reader = Callable[[], Iterator[Any]]
"""Gives the items of as many batches as make the data set once."""


def read(reader: Reader) -> int:
    """Read the data set once and keep nothing of it."""
    return sum(1 for _ in reader())


def ours(setup: StreamSetup) -> Reader:
    """Our stream."""
    batches = Stream(DataSet.open(setup.directory), Decode(setup.field), BatchLayout(BATCH), lanes=8,
                     window=WINDOW // 8).loader(workers=setup.workers)
    return lambda: (item for batch in itertools.islice(batches, setup.batches) for item in cast(Items, batch).items)


def own_loop(setup: StreamSetup) -> Reader:
    """`polymodal.stream`, as a loop of one's own has it."""
    samples = stream(setup.directory, lanes=8, window=WINDOW // 8, decode="rgb", fields=setup.field)
    batches = iter(samples.loader(BATCH, num_workers=setup.workers, collate_fn=_firsts))
    return lambda: (item for batch in itertools.islice(batches, setup.batches) for item in batch)


def theirs(setup: StreamSetup) -> Reader:
    """The pipeline that webdataset's documentation builds."""
    wds = need("webdataset")
    shards = sorted(map(str, Path(setup.directory).glob("*.tar")))
    decoded = wds.WebDataset(shards, shardshuffle=len(shards), seed=0).shuffle(WINDOW)
    decoded = (decoded.decode() if setup.field == "txt" else decoded.decode("rgb8")).to_tuple(setup.field)
    batched = decoded.batched(BATCH, collation_fn=_firsts, partial=False).repeat()
    loader: Iterator[list[Any]] = iter(wds.WebLoader(batched, batch_size=None, num_workers=setup.workers) if setup.workers else batched)
    return lambda: (item for batch in itertools.islice(loader, setup.batches) for item in batch)


def _firsts(samples: list[tuple[Any]]) -> list[Any]:
    return [s[0] for s in samples]


def contents(items: Iterable[Any]) -> Counter[bytes]:
    """How often each content occurs."""
    return Counter(hashlib.sha1(i.encode() if isinstance(i, str) else np.ascontiguousarray(i).tobytes()).digest() for i in items)


def agree(setup: StreamSetup) -> Agreement:
    """One epoch of each, in one process, compared as multisets of decoded contents."""
    alone = StreamSetup(setup.directory, setup.field, setup.samples, 0)
    a, b, c = (contents(side(alone)()) for side in (ours, own_loop, theirs))
    return Agreement("samples of one epoch that not every side delivers", ((a | b | c) - (a & b & c)).total(), 0)


@dataclass(frozen=True)
class Far:
    """A position of a simulated index."""

    shards: int
    per_shard: int
    fraction: float
    count: int = 4096

    def order(self) -> SourceOrder:
        """The order of the simulated data set, with nothing computed yet."""
        return SourceOrder((self.per_shard,) * self.shards, 0, "simulated", 64, 65536)


def find(far: Far) -> list[tuple[int, int]]:
    """From nothing: the order, and where the next `count` samples are."""
    order = far.order()
    first = int(far.fraction * order.samples)
    return [order.locate(p) for p in range(first, first + far.count)]


def found_again(far: Far) -> Agreement:
    """Whether the samples are those that a walk backwards with another object finds, each once."""
    order = far.order()
    first = int(far.fraction * order.samples)
    backwards = [order.locate(p) for p in reversed(range(first, first + far.count))]
    forwards = find(far)
    apart = sum(a != b for a, b in zip(forwards, reversed(backwards), strict=True)) + far.count - len(set(forwards))
    return Agreement("positions that lead elsewhere when asked for in another order", apart, 0)


def cases(options: Options) -> Cases:
    """Texts and pictures with 0 and 2 workers, and the start at a far position of a huge index."""
    options.peer("stream", PEERS)
    quick = options.quick
    for field, samples, per_shard in (("txt", 256, 50), ("jpg", 128, 30)) if quick else (("txt", 16384, 1000), ("jpg", 2048, 200)):
        with TemporaryDirectory() as temporary:
            directory = Path(temporary) / "shards"
            texts = field == "txt"
            items = [d.encode() for d in documents(min(samples, 4096))] if texts else pictures(16 if quick else 64, 32 if quick else 224)
            write_shards(directory, field, items, samples, per_shard)
            build_index(directory)
            size = sum(map(len, items)) / len(items)
            for workers in (0,) if quick else (0, 2):
                setup = StreamSetup(str(directory), field, samples, workers)
                what = f"texts of {size:.0f} bytes" if texts else f"JPEGs of {size / 1024:.0f} KiB, 224 pixels square, decoded to RGB"
                sides = (Contender("polymodal", partial(ours, setup), read), Contender("webdataset", partial(theirs, setup), read),
                         Contender("polymodal.stream", partial(own_loop, setup), read))
                about = f"{samples} {what}, shuffled, checksums on (ours), batches of {BATCH}, {workers} workers"
                yield Case(f"{'text' if texts else 'pictures'}, {workers} workers", about, "samples", samples, sides, partial(agree, setup),
                           weigh=False)
    for fraction in (0.5,) if quick else (0.0, 0.5, 0.999):
        far = Far(100 if quick else 100_000, 10_000, fraction, 64 if quick else 4096)
        total = far.shards * far.per_shard
        yield Case(f"first batch at {fraction:.1%} of {total:.0e} samples",
                   f"the order made from nothing and {far.count} positions found, index simulated, 64 lanes, windows of 65536",
                   "samples", far.count, (Contender("polymodal", partial(replace, far), find),), partial(found_again, far))
