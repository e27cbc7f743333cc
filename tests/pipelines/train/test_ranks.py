"""What ranks agree on if they do not have the same: names of counts and measures, held-out batches, a checkpoint that one has verified."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import processes
import pytest
import torch
from contract.letters import go, known, letters
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.pipelines.run import checkpoint
from polymodal.pipelines.run.directory import Run
from polymodal.pipelines.run.recipe import CheckpointSettings, EvaluateSettings
from polymodal.pipelines.train.meter import Meter
from polymodal.pipelines.train.totals import Totals
from polymodal.shared import dist
from polymodal.shared.system import Step, Term

RUN = {"devices": 2, "model": {"batch_norm": False}, "max_updates": 4, "evaluate": EvaluateSettings(every=2),
       "checkpoint": CheckpointSettings(every=2)}


def counted_totals() -> list[list]:
    """Sums of names that change from call to call, each with the collectives that it took."""
    rank, totals, found = dist.rank(), Totals(), []
    calls, reduce, gather = [], dist.all_reduce_sum, dist.gather_json
    dist.all_reduce_sum = lambda tensor: calls.append("reduce") or reduce(tensor)
    dist.gather_json = lambda value: calls.append("gather") or gather(value)
    both = {":tokens": 10 + rank, "text": 1}
    for mine in (both, both, {":tokens": 5}, both | ({"pairs": 7} if rank else {"images": 3}), {"text": 2} if rank else {"images": 1}, {}):
        found.append([totals.add_up(mine), list(calls)])
        calls.clear()
    dist.all_reduce_sum, dist.gather_json = reduce, gather
    return found


def measured() -> list[dict]:
    """Means, state and chances where one rank has nothing, where the names differ, and where none has anything."""
    rank, found = dist.rank(), []
    cases = [[{}, {"lm": (6.0, 2)}], [{"lm": (6.0, 2), "itm": (1.0, 4)}, {"lm": (2.0, 2), "mrm": (8.0, 1)}], [{}, {}]]
    for case in cases:
        meter = Meter(torch.device("cpu"), chance=True)
        for name, (total, number) in case[rank].items():
            labels = torch.tensor([0, 1] if name == "lm" else [rank])
            term = Term(torch.tensor(total), "n", weight=0.5 if name == "itm" else 1.0, labels=labels)
            meter.add(Step({name: term}), {"n": number})
        found.append({"means": meter.means(), "chances": meter.chances(), "state": meter.state()})
    return found


def main(root: Path) -> None:
    """As one of two ranks: writes what it found."""
    data = SimpleNamespace(train=root / "train", held=root / "held")
    with known():
        go(letters(**RUN), data, root / "run")
        damage = checkpoint.damage
        if dist.rank():  # rank 0 has read the checkpoint; another one that reads it, too, fails here
            checkpoint.damage = lambda path: pytest.fail("read a second time")
        go(letters(**RUN | {"max_updates": 6}), data, root / "run")
        checkpoint.damage = damage
    (root / f"rank-{dist.rank()}.json").write_text(json.dumps({"totals": counted_totals(), "measured": measured()}))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What both ranks wrote, and the run that they made together with one held-out sample."""
    root = tmp_path_factory.mktemp("ranks")
    (root / "train.txt").write_text("\n".join("abcdefgh"[: 3 + i % 5] * (1 + i % 3) for i in range(64)))
    (root / "held.txt").write_text("abcab")
    for name in ("train", "held"):
        pack([root / f"{name}.txt"], root / name, PackSettings(Reading(split="line")), workers=Workers(1), console=Console(quiet=True))
    processes.together(processes.ranks(2, main, root))
    return SimpleNamespace(root=root, ranks=[json.loads((root / f"rank-{r}.json").read_text()) for r in range(2)])


def test_counts_are_added_up_under_their_names_in_one_collective(found):
    ours, theirs = (rank["totals"] for rank in found.ranks)
    assert ours == theirs
    sums, calls = zip(*ours)
    agree = ["reduce", "gather", "reduce"]
    assert list(calls) == [agree, ["reduce"], ["reduce"], agree, ["reduce"], ["reduce"]]
    assert sums[0] == sums[1] == {":tokens": 21, "text": 2}
    assert sums[2] == {":tokens": 10, "text": 0}
    assert sums[3] == {":tokens": 21, "text": 2, "pairs": 7, "images": 3}
    assert sums[4] == {":tokens": 0, "text": 2, "pairs": 0, "images": 1}
    assert set(sums[5].values()) == {0}


def test_one_process_adds_nothing_up():
    assert Totals().add_up({"b": 1, "a": 2}) == {"b": 1, "a": 2}


def test_means_are_of_all_ranks_whatever_each_of_them_has(found):
    ours, theirs = (rank["measured"] for rank in found.ranks)
    assert ours == theirs
    one_sided, mixed, nothing = ours
    assert one_sided["means"] == {"loss": 3.0, "lm": 3.0} and one_sided["chances"] == {"lm_chance": pytest.approx(math.log(2))}
    assert one_sided["state"] == {"sums": {"lm": [6.0, 2.0]}, "weights": {"lm": 1.0}}
    assert mixed["means"] == {"loss": 2.0 + 0.5 * 0.25 + 8.0, "itm": 0.25, "lm": 2.0, "mrm": 8.0}
    assert mixed["chances"] == {"itm_chance": pytest.approx(0), "lm_chance": pytest.approx(math.log(2)), "mrm_chance": pytest.approx(0)}
    assert nothing == {"means": {}, "chances": {}, "state": {"sums": {}, "weights": {}}}


def test_fewer_held_out_samples_than_ranks_are_evaluated(found):
    """And the run goes on from a checkpoint that only rank 0 has read."""
    rows = Run(found.root / "run").metrics("eval")
    assert [row["update"] for row in rows] == [2, 4, 6] and all(math.isfinite(row["loss"]) for row in rows)
