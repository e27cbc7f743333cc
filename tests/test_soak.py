"""A short soak, and whether the soak sees what it is there to see."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from polymodal.pipelines.run import checkpoint
from safetensors.numpy import save_file

FILE = Path(__file__).parent / "soak.py"


@pytest.fixture(scope="module")
def soak():
    spec = importlib.util.spec_from_file_location("soak", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = module
    before = dict(os.environ), list(sys.path)
    spec.loader.exec_module(module)
    os.environ.clear()
    os.environ.update(before[0])
    sys.path[:] = before[1]
    return module


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_short_soak(tmp_path):
    done = subprocess.run([sys.executable, str(FILE), "--seed", "10", "--trials", "3", "--json", "--keep", str(tmp_path)],
                          capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    *trials, total = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(trials) == total["trials"] == 3 and total["kills"] >= 3 and 1 <= total["bit_for_bit"] < 3
    assert sum(times for *_, times in total["points"]) == total["kills"]


def test_trials_are_drawn_as_their_seed_says(soak):
    trials = [soak.draw(seed) for seed in range(300)]
    assert trials == [soak.draw(seed) for seed in range(300)]
    layouts = [layout for trial in trials for layout, _ in trial.parts]
    kills = [kill for trial in trials for _, kill in trial.parts if kill]
    assert {t.system for t in trials} == set(soak.SYSTEMS) and {where.world for where in layouts} == {1, 2, 3, 4}
    assert {k.victim for k in kills} == {"rank", "agent", "all"} and {k.moment for k in kills} == set(soak.MOMENTS)
    assert {(where.strategy, where.shard_size) for where in layouts} == {("auto", None), ("fsdp", None), ("fsdp", 2)}
    for trial in trials:
        assert trial.parts[-1][1] is None and 1 < len(trial.parts) <= 4
        assert not trial.same or len({where.arithmetic for where, _ in trial.parts}) == 1
        for where, _ in trial.parts:
            assert soak.BATCH % where.world == 0 and (where.micro is None or soak.BATCH // where.world % where.micro == 0)
            assert not (soak.SYSTEMS[trial.system].coupled and where.micro)


def write(soak, out, ids, *, loss=0.0, weight=0.0, extra=()):
    """A run on two ranks with micro-batches of 3, as the soak finds it."""
    run = out / "run"
    (run / "export").mkdir(parents=True)
    for rank in range(2):
        lines = [[0, 0, update, 2, rank, micro, ids[update * soak.BATCH + micro * 6 + rank:][:6:2]]
                 for update in range(soak.UPDATES) for micro in range(2)]
        lines += [entry for entry in extra if entry[4] == rank]
        (out / f"samples-{rank}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines) + "[0, 0, 1")
    rows = [{"update": u + 1, "loss": 2.0 + loss * (u == 7), "step_s": np.random.default_rng().random()} for u in range(soak.UPDATES)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_file({"w": np.full(3, 1 + weight, np.float32)}, run / "export" / "model.safetensors")
    return out


def test_the_soak_sees_differences(soak, tmp_path):
    rng = np.random.default_rng(0)
    ids = [int(i) for _ in range(3) for i in rng.permutation(soak.SAMPLES)][: soak.UPDATES * soak.BATCH]
    expected = write(soak, tmp_path / "expected", ids)
    assert soak.sequence(expected) == ids
    soak.compare(write(soak, tmp_path / "again", ids), expected, same=True)
    swapped = [*ids[:5], ids[6], ids[5], *ids[7:]]
    with pytest.raises(soak.Difference, match="update 0 had the samples"):
        soak.compare(write(soak, tmp_path / "swapped", swapped), expected, same=False)
    twice = write(soak, tmp_path / "twice", [*ids[:5], ids[6], *ids[6:]])
    with pytest.raises(soak.Difference, match="epoch 0 does not have every one"):
        soak.compare(twice, twice, same=False)
    # an update that was made again counts as it was made last
    redone = [[1, 0, 3, 1, 0, 0, ids[36:48]]]
    soak.compare(write(soak, tmp_path / "redone", ids, extra=redone), expected, same=True)
    redone = [[1, 0, 3, 1, 0, 0, ids[48:60]]]
    with pytest.raises(soak.Difference, match="update 3 had the samples"):
        soak.compare(write(soak, tmp_path / "wrong", ids, extra=redone), expected, same=True)
    near = write(soak, tmp_path / "near", ids, loss=1e-6, weight=1e-6)
    soak.compare(near, expected, same=False)
    with pytest.raises(soak.Difference, match=r"update 8: .* expected exactly"):
        soak.compare(near, expected, same=True)
    with pytest.raises(soak.Difference, match="update 8: loss"):
        soak.compare(write(soak, tmp_path / "far", ids, loss=1e-3), expected, same=False)
    with pytest.raises(soak.Difference, match="the weights w differ"):
        soak.compare(write(soak, tmp_path / "weights", ids, weight=1e-6), expected, same=True)


def test_the_soak_sees_a_checkpoint_that_is_not_whole(soak, tmp_path):
    import torch

    there = checkpoint.save(tmp_path / "run" / "checkpoints", 3, {"x": torch.ones(3)}, {})
    soak.check_checkpoints(tmp_path)
    assert soak.newest(tmp_path) == 3
    next(there.path.glob("shard-*")).write_bytes(b"")
    with pytest.raises(soak.Difference, match="is not whole"):
        soak.check_checkpoints(tmp_path)
