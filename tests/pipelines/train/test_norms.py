"""Batch norm over all ranks: on one process what torch computes, on two what one computes."""

from __future__ import annotations

from pathlib import Path

import processes
import pytest
import torch
from contract import checks, runs
from contract.cases import Case, cases, prepare
from polymodal.pipelines.run import checkpoint
from polymodal.pipelines.train.norms import batch_norms, synchronize_norms
from polymodal.shared import dist
from polymodal.shared.errors import UserError
from safetensors.torch import load_file
from torch import nn


@pytest.mark.parametrize(("norm", "shape"), [
    (lambda: nn.BatchNorm2d(4), (6, 4, 5, 3)), (lambda: nn.BatchNorm1d(4, affine=False, eps=1e-6), (7, 4)),
    (lambda: nn.BatchNorm1d(4, momentum=None), (7, 4, 2)), (lambda: nn.BatchNorm2d(4, track_running_stats=False), (6, 4, 2, 2)),
])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_one_process_computes_what_torch_computes(norm, shape, dtype):
    torch.manual_seed(0)
    ours, theirs = (norm().to(torch.float64 if dtype == torch.float64 else torch.float32) for _ in range(2))
    for made in (ours, theirs):
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(parameter)))
    synchronize_norms(ours)
    exact = {"rtol": 1e-9, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 2e-2, "atol": 2e-2}
    for _ in range(3):
        x = (3 * torch.randn(shape) + 5).to(dtype)
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        outputs = [made(given) for made, given in zip((ours, theirs), inputs)]
        assert outputs[0].dtype == outputs[1].dtype
        torch.testing.assert_close(*outputs, **exact)
        for made, out, given in zip((ours, theirs), outputs, inputs):
            made.zero_grad()
            (out * torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)).sum().backward(inputs=[given, *made.parameters()])
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad, **exact)
        for mine, other in zip(ours.parameters(), theirs.parameters()):
            torch.testing.assert_close(mine.grad, other.grad, **(exact | ({"rtol": 0.05} if dtype == torch.bfloat16 else {})))
        for name, buffer in ours.named_buffers():
            torch.testing.assert_close(buffer, theirs.get_buffer(name), **exact)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), **exact)


def resnet() -> Case:
    return next(c for c in cases() if c.name == "clip-tiny-resnet").still()


def as_a_rank(root: Path, out: Path) -> None:
    """As one rank of two: train with the statistics of both ranks, and with each one's own."""
    torch.set_num_threads(1)
    for name, sync in (("both", True), ("own", False)):
        made = runs.run(resnet(), runs.short(resnet().recipe, devices=2, sync_batchnorm=sync), root, out / name, double=True, held=True)
        if dist.rank() == 0:
            torch.save((made.gradients, made.rows), out / f"{name}.pt")


@pytest.mark.slow
def test_two_ranks_with_the_statistics_of_both_make_the_update_of_one(tmp_path):
    """In fp64: gradients of two updates, numbers of training and evaluation, and the statistics that a checkpoint holds."""
    case = resnet()
    prepare(tmp_path, case)
    one = runs.run(case, runs.short(case.recipe), tmp_path, tmp_path / "one", double=True, held=True)
    processes.together(processes.ranks(2, as_a_rank, tmp_path, tmp_path))
    gradients, rows = torch.load(tmp_path / "both.pt")
    for found, expected in zip(gradients, one.gradients, strict=True):
        checks.assert_same_gradients(found, expected, 1e-8)
    for found, expected in zip(rows, one.rows, strict=True):
        assert found.pop("split") == expected.pop("split") and found == pytest.approx(expected, rel=1e-8)
    saved = [{n: t for f in (tmp_path / name / "checkpoints" / checkpoint.name_of(2)).glob("shard-*") for n, t in load_file(f).items()
              if "running" in n} for name in ("both", "one")]
    assert saved[0].keys() == saved[1].keys() and saved[0]
    for name, tensor in saved[1].items():
        torch.testing.assert_close(saved[0][name], tensor, rtol=1e-9, atol=1e-12)
    with pytest.raises(AssertionError, match="gradients differ"):
        checks.assert_same_gradients(torch.load(tmp_path / "own.pt")[0][0], one.gradients[0], 1e-3)


def test_norms_of_locked_towers_stay_and_a_system_without_norms_is_told(tmp_path):
    system = resnet().build()
    assert len(list(batch_norms(system))) > 10
    system.net.image_trunk.eval()
    assert not list(batch_norms(system))
    other = next(c for c in cases() if c.name == "clip-tiny")
    with pytest.raises(UserError, match="sync_batchnorm is true and clip has no norms over the batch that are trained: leave it out"):
        runs.run(other, runs.short(other.recipe, sync_batchnorm=True), tmp_path, tmp_path / "run")
