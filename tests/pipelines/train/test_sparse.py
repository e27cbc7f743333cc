"""Runs whose gradients hold some rows of a table: micro-batches, ranks and resuming give what whole gradients on one rank give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import processes
import pytest
import torch
from contract.cases import Case, cases
from contract.runs import Made, run, short
from polymodal.pipelines.run.optim import OptimSettings
from polymodal.pipelines.run.recipe import CheckpointSettings
from polymodal.shared import dist
from polymodal.shared.errors import UserError

ROWS = OptimSettings("sgd", lr=0.5, momentum=0.0, weight_decay=0.0, clip=0.01)


def case(*, sparse: bool) -> Case:
    known = next(c for c in cases() if c.name.startswith("word2vec"))
    return replace(known, recipe=replace(known.recipe, objective={**known.recipe.objective, "sparse": sparse}))


def trained(root: Path, out: Path, *, sparse: bool = True, **more) -> Made:
    kind = case(sparse=sparse)
    made = run(kind, short(kind.recipe, **{"optim": ROWS} | more), root, out, double=True)
    assert all(gradient.is_sparse == sparse for update in made.gradients for gradient in update.values())
    return replace(made, gradients=[{name: gradient.to_dense() for name, gradient in update.items()} for update in made.gradients])


def as_a_rank(root: Path) -> None:
    made = trained(root, root / "ranks", devices=2, micro=2)
    if dist.rank() == 0:
        torch.save(made.gradients, root / "ranks.pt")


def same(found: list[dict[str, torch.Tensor]], expected: list[dict[str, torch.Tensor]]) -> None:
    assert len(found) == len(expected) > 1
    assert all(gradient.any() for gradient in expected[-1].values()), "in the first update the outputs are 0, so inputs do not move"
    for mine, whole in zip(found, expected, strict=True):
        for name, gradient in whole.items():
            torch.testing.assert_close(mine[name], gradient, rtol=1e-9, atol=1e-12)


def test_ranks_and_micro_batches_change_nothing(tmp_path):
    whole = trained(tmp_path, tmp_path / "whole", sparse=False)
    same(trained(tmp_path, tmp_path / "parts", micro=2).gradients, whole.gradients)
    processes.together(processes.ranks(2, as_a_rank, tmp_path))
    same(torch.load(tmp_path / "ranks.pt", weights_only=True), whole.gradients)


def test_a_run_that_goes_on_is_the_run_that_never_stopped(tmp_path):
    kept = {"checkpoint": CheckpointSettings(every=2)}
    through = trained(tmp_path, tmp_path / "through", updates=4, **kept)
    trained(tmp_path, tmp_path / "stopped", updates=2, **kept)
    on = trained(tmp_path, tmp_path / "stopped", updates=4, **kept)
    for mine, other in zip(on.gradients, through.gradients[2:], strict=True):
        assert all(torch.equal(mine[name], gradient) for name, gradient in other.items())


def test_what_cannot_move_rows_is_refused_before_the_run(tmp_path):
    with pytest.raises(UserError, match=r"net.input.weight are sparse, and optim.name=adamw .* use sgd with momentum=0, or adagrad"):
        trained(tmp_path, tmp_path / "out", optim=OptimSettings("adamw"))
    assert not (tmp_path / "out").exists()
