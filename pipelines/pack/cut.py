"""The order of everything cut into shards, each a set of ranges of the sorted runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...shared.errors import UserError
from .settings import Resolved
from .spool import held_out, table


@dataclass(frozen=True)
class ShardPlan:
    """One shard to be written."""

    held: bool
    """Whether it holds held-out samples."""
    number: int
    """Its place among the shards of its data set."""
    ranges: tuple[tuple[str, int, int], ...]
    """(run, first row, row after the last) of every run with records of it; not all rows between are its own."""
    records: int
    folder: Path
    """Where it is written."""

    @property
    def entry(self) -> Path:
        """The record of the finished shard."""
        return self.folder / f"{self.number:06d}.json"

    @property
    def counts(self) -> Path:
        """How often each token id stands in the finished shard."""
        return self.folder / f"{self.number:06d}.counts"


@dataclass(frozen=True)
class Contents:
    """What a data set will hold."""

    documents: int
    """Samples; where texts are tokenised, documents, of whatever number of pieces."""
    different: int
    """Those that differ: equal ones count once."""
    split: int
    """Documents of more tokens than a row, which are several pieces."""
    tokens: int
    """Where texts are tokenised."""


@dataclass(frozen=True)
class Cut:
    """Every shard of a packing run."""

    shards: tuple[ShardPlan, ...]
    below: int
    """Records with an identity below this are held out."""
    sides: tuple[Contents, ...]
    """Of the data set, and of the held-out one where there is one."""


def cut(runs: Sequence[str], spooled: Path, settings: Resolved, folders: Sequence[Path], reason: str | None = None) -> Cut:
    """Cut the order of all records into shards.

    The work grows with the records, not with the shards: each record is looked at once.

    Args:
        runs: names of the sorted runs.
        spooled: the folder that holds them.
        settings: of the packing run.
        folders: where the shards of the data set are written, and those of the held-out one where there is one.
        reason: why the first unusable record is unusable, for the message that says that nothing was packed.

    Raises:
        UserError: there are no records, or none for one of the folders.
    """
    if not runs:
        raise UserError("nothing was packed: the sources hold no usable samples" + (f"; the first reason: {reason}" if reason else ""))
    tables = [table(spooled, name) for name in runs]
    identities = np.concatenate([t["identity"] for t in tables])
    below = _threshold(identities, settings.holdout)
    run_of = np.repeat(np.arange(len(runs), dtype=np.int32), [len(t) for t in tables])
    row_of = np.concatenate([np.arange(len(t), dtype=np.int64) for t in tables])
    sizes = np.concatenate([t["size"] for t in tables])
    pieces = np.concatenate([t["pieces"] for t in tables])
    is_held = held_out(identities, below)
    everything = np.argsort(np.concatenate([t["number"] for t in tables]), kind="stable")
    found: list[ShardPlan] = []
    sides: list[Contents] = []
    for held, folder in zip((False, True), folders, strict=False):
        chosen = everything[is_held[everything] == held]
        if not len(chosen):
            raise UserError(f"--holdout {settings.holdout:g} of {len(np.unique(identities))} different samples (equal ones stay "
                            f"together) leaves none for {str(folder.parent.parent)!r}: give a number of samples, such as --holdout 1")
        side = is_held == held
        sides.append(Contents(int((pieces[side] > 0).sum()), len(np.unique(identities[side])), int((pieces[side] > 1).sum()),
                          int(sizes[side].sum(dtype=np.int64)) if settings.block else 0))
        for number, part in enumerate(_parts(chosen, sizes, _limit(settings))):
            ranges = tuple((runs[run], first, last) for run, first, last in _ranges(run_of[part], row_of[part]))
            found.append(ShardPlan(held, number, ranges, len(part), folder))
    return Cut(tuple(found), below, tuple(sides))


def _limit(settings: Resolved) -> int:
    """What the sizes of a shard's records may add up to: bytes in a tar, or tokens."""
    limit = settings.shard_bytes - 2 * 10240
    if settings.block:
        row = 1536 + -(-settings.block * (4 if settings.wide else 2) // 512) * 512
        if settings.reading.knows_words:
            row += 512 + -(-settings.block // 512) * 512
        limit = max(settings.block, int(0.97 * limit / row * settings.block))
    return max(limit, 1)


def _parts(chosen: np.ndarray, sizes: np.ndarray, limit: int) -> Iterator[np.ndarray]:
    """The chosen records in parts of at most `limit`, or of one record."""
    ends = np.cumsum(sizes[chosen].astype(np.int64))
    first = 0
    while first < len(chosen):
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + limit, side="right")))
        yield chosen[first:last]
        first = last


def _ranges(run_of: np.ndarray, row_of: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(run, first row, row after the last) of each run among some records."""
    order = np.argsort(run_of, kind="stable")
    runs, rows = run_of[order], row_of[order]
    starts = np.flatnonzero(np.diff(runs, prepend=-1))
    firsts, lasts = np.minimum.reduceat(rows, starts), np.maximum.reduceat(rows, starts)
    for run, first, last in zip(runs[starts].tolist(), firsts.tolist(), lasts.tolist(), strict=True):
        yield run, first, last + 1


def _threshold(identities: np.ndarray, holdout: float) -> int:
    """Records with an identity below this are held out."""
    if holdout <= 0:
        return 0
    if (identities == identities[0]).all():
        raise UserError("--holdout cannot hold anything out: the sources are one document, or equal ones, which stay together; cut texts "
                        "into more documents with --split line, or pack other files for the evaluation")
    if holdout < 1:
        return int(holdout * 2**64)
    count = int(holdout)
    different = np.unique(identities)
    if count >= len(different):
        raise UserError(f"--holdout {count} leaves nothing to train on: there are {len(different)} different samples")
    return int(different[count])
