"""The contract in whole runs through the loop: layout, ranks, resuming and learning, for every registered system."""

from __future__ import annotations

from dataclasses import replace

import processes
import pytest
import torch
from contract import checks, runs
from contract.cases import cases, once, prepare
from polymodal.pipelines.run import checkpoint
from polymodal.pipelines.run.recipe import CheckpointSettings, EvaluateSettings
from polymodal.pipelines.run.schedule import ScheduleSettings
from polymodal.shared.errors import UserError
from safetensors.torch import load_file

each_system = pytest.mark.parametrize("case", once(), ids=lambda c: c.name)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("contract")


def same_rows(found, expected, rel):
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert a.keys() == b.keys() and a["split"] == b["split"]
        for name in a.keys() - {"split"}:
            # a correlation is a small difference of large numbers
            assert a[name] == pytest.approx(b[name], rel=rel, abs=rel * (10 if name == "pearson" else 1e-3)), name


def tensors(saved, optim):
    """All tensors of a checkpoint: weights, the optimizer's state (plain gradient descent has none), a memory of earlier text."""
    found = {name: tensor for file in saved.glob("shard-*.safetensors") for name, tensor in load_file(file).items()}
    assert any("model" in name for name in found), list(found)
    assert any("optim" in name for name in found) or (optim.name == "sgd" and not optim.momentum), list(found)
    return found


@each_system
def test_micro_batches_do_not_change_the_update(case, root, tmp_path):
    """In fp64: gradients of two updates, and every number that is logged."""
    recipe = case.still().recipe
    if case.coupled:
        with pytest.raises(UserError, match="its batch cannot be split"):
            runs.run(case, runs.short(recipe, micro=4), root, tmp_path / "4")
        return
    whole = runs.run(case, runs.short(recipe), root, tmp_path / "8", double=True)
    assert len(whole.gradients) == 2 and all(g.dtype == torch.float64 for g in whole.gradients[0].values())
    # that a network takes a sample alone is shown by test_a_batch_is_its_samples_side_by_side, and the loop is the same for all
    for micro in (4, 1) if case == once()[0] else (2,):
        passes = runs.PASS if case.counted else None  # the texts that are longer are computed in several
        parts = runs.run(case, runs.short(recipe, micro=micro, max_tokens=passes), root, tmp_path / str(micro), double=True)
        for found, expected in zip(parts.gradients, whole.gradients, strict=True):
            checks.assert_same_gradients(found, expected, 1e-9)
        same_rows(parts.rows, whole.rows, 1e-9)


@each_system
def test_a_run_continues_from_a_checkpoint_bit_for_bit(case, root, tmp_path):
    """With the recipe's own optimizer, and dropout: losses, and all tensors that the last checkpoint holds."""
    recipe = runs.short(case.recipe, updates=3, optim=case.recipe.optim, checkpoint=CheckpointSettings(every=2, keep_last=9))
    if not case.coupled:
        recipe = replace(recipe, data=replace(recipe.data, micro_batch=4))
    whole = runs.run(case, recipe, root, tmp_path / "whole")
    start = tmp_path / "whole" / "checkpoints" / checkpoint.name_of(2)
    again = runs.run(case, recipe, root, tmp_path / "again", resume=str(start))
    assert [r["update"] for r in again.rows] == [3] and again.rows == whole.rows[2:]
    ends = (tmp_path / run / "checkpoints" / checkpoint.name_of(3) for run in ("whole", "again"))
    before, *after = (tensors(p, recipe.optim) for p in (start, *ends))
    assert after[0].keys() == after[1].keys() and all(torch.equal(after[0][name], after[1][name]) for name in after[0])
    assert any(not torch.equal(before[name], after[0][name]) for name in before)


@pytest.mark.slow
def test_two_ranks_make_the_update_of_one(root, tmp_path):
    """In fp32, with accumulation where it is allowed: gradients of two updates, and the numbers of training and evaluation.

    The second gradient feels how the first one was rounded: 1.1e-5 was seen, and 3.2e-5 of the bias of UNITER's match, a sum of terms
    of both signs.
    """
    chosen = runs.divided()
    for case in chosen:  # the ranks must not write them both
        prepare(root, case)
    processes.together(processes.ranks(2, runs.as_a_rank, root, tmp_path))
    assert len(chosen) > 5
    for case in chosen:
        gradients, rows = torch.load(tmp_path / f"{case.name}.pt", weights_only=True)
        recipe = runs.short(case.still().recipe)
        one = runs.run(case, recipe, root, tmp_path / f"one-{case.name}", held=True)
        for found, expected in zip(gradients, one.gradients, strict=True):
            shared = {"choice": "net.classifier.bias", "ground": "net.score.bias"}.get(case.recipe.task)
            if shared:  # what all choices have in common has the gradient 0, and only rounding is left to compare
                assert all(float(g.pop(shared).abs().max()) < 1e-5 for g in (found, expected))
            # where choices differ little, biases before a ReLU have gradients that cancel but for the rounding of fp32
            checks.assert_same_gradients(found, expected, 1e-4, floor=1e-2)
        same_rows(rows, one.rows, 3e-5)


@pytest.mark.slow
@each_system
def test_a_tiny_run_beats_chance(case, root, tmp_path):
    """On held-out data a term falls below 0.8 of what a predictor reaches that knows only how often each label occurs, none is worse.

    A teacher with random weights teaches chance; so what a system reads beside its data has learned from it before.
    """
    companions = {}
    for name, of in case.family.task(case.recipe.task).companions.items():
        companions[name] = str(tmp_path / name)
        own = [c for c in cases() if c.family.name == of[0] and c.recipe.task in (case.recipe.task, "")]
        beats_chance(next((c for c in own if c.recipe.task == case.recipe.task), own[0]), root, tmp_path / name)
    beats_chance(replace(case, recipe=replace(case.recipe, companions=companions)), root, tmp_path / "run")


def beats_chance(case, root, out):
    def shares(row):
        return {name: row[name.removesuffix("_chance")] / value for name, value in row.items() if name.endswith("_chance")}

    def learned(row):
        return max(shares(row).values()) < 1.05 and min(shares(row).values()) < 0.8

    # a task's learning rate is made for trained weights
    optim = replace(case.recipe.optim, lr=max(case.recipe.optim.lr, 1.5e-3))
    updates = 320 if case.build().objective.turns else 160  # tasks that take turns have fewer each
    recipe = runs.short(case.recipe, updates=updates, optim=optim, schedule=ScheduleSettings("constant", warmup=10),
                        evaluate=EvaluateSettings(batch=8, every=20))
    with runs.ended_when(learned, out):
        row = runs.run(case, recipe, root, out, held=True).rows[-1]
    assert row["split"] == "eval" and shares(row), f"no term has labels: {row}"
    assert learned(row), shares(row)
