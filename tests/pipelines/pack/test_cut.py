"""The order of everything cut into shards."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from polymodal.pipelines.pack import cut as cutting
from polymodal.pipelines.pack.cut import cut
from polymodal.pipelines.pack.settings import PackSettings
from polymodal.pipelines.pack.spool import ROW, held_out, table
from polymodal.shared.errors import UserError

FOLDERS = [Path("out/.pack/shards"), Path("held/.pack/shards")]


def spool(folder, lengths, seed=0):
    """Runs of sorted random numbers, `lengths` records each."""
    rng = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    names = []
    for number, length in enumerate(lengths):
        rows = np.zeros(length, dtype=ROW)
        rows["number"] = np.sort(rng.integers(0, 2**63, length, dtype=np.uint64))
        rows["size"] = rng.integers(100, 1000, length)
        rows["identity"] = rng.integers(0, 2**64, length, dtype=np.uint64)
        names.append(f"{number:04d}")
        np.save(folder / f"{names[-1]}.npy", rows)
    return names


def resolved(**options):
    return PackSettings(**options).resolved(None)


def test_every_record_is_in_one_shard_and_shards_follow_the_order_of_everything(tmp_path):
    names = spool(tmp_path, [300, 1, 120, 50])
    settings = resolved(shard_bytes=25_000, holdout=0.2, holdout_out="held")
    found = cut(names, tmp_path, settings, FOLDERS)
    tables = {name: table(tmp_path, name) for name in names}
    seen = Counter()
    for held, folder in ((False, FOLDERS[0]), (True, FOLDERS[1])):
        shards = [s for s in found.shards if s.held == held]
        assert [s.number for s in shards] == list(range(len(shards))) and len(shards) > 3
        before = -1
        for shard in shards:
            assert shard.folder == folder and len({run for run, _, _ in shard.ranges}) == len(shard.ranges)
            rows = np.concatenate([tables[run][first:last] for run, first, last in shard.ranges])
            rows = rows[held_out(rows["identity"], found.below) == held]
            numbers = np.sort(rows["number"]).tolist()
            assert len(numbers) == shard.records and numbers[0] > before
            before = numbers[-1]
            assert rows["size"].sum() <= 25_000 - 2 * 10240 or len(rows) == 1
            seen.update(numbers)
    assert len(seen) == 471 and set(seen.values()) == {1}


def test_cutting_takes_steps_in_proportion_to_the_shards(tmp_path):
    """A shard for each record: twice as many records must not take four times the lines of Python."""
    steps = []
    for count in (400, 800):
        names = spool(tmp_path / f"{count}", [count])
        settings = resolved(shard_bytes=4096)
        lines = 0

        def trace(frame, event, argument):
            nonlocal lines
            lines += event == "line"
            return trace if frame.f_code.co_filename == cutting.__file__ else None

        sys.settrace(trace)
        try:
            found = cut(names, tmp_path / f"{count}", settings, FOLDERS[:1])
        finally:
            sys.settrace(None)
        assert len(found.shards) == count
        steps.append(lines)
    assert steps[1] < 2.2 * steps[0], steps


def test_nothing_to_cut_is_told(tmp_path):
    with pytest.raises(UserError, match=r"nothing was packed.*the first reason: empty"):
        cut([], tmp_path, resolved(), FOLDERS, "empty")
    names = spool(tmp_path, [3])
    with pytest.raises(UserError, match="leaves nothing to train on: there are 3 different samples"):
        cut(names, tmp_path, resolved(holdout=3, holdout_out="held"), FOLDERS)
