"""Attention piece by piece: what it holds for the backward pass, in half precision, with dropout; that it is right, `test_plan` says."""

from __future__ import annotations

import pytest
import torch
from polymodal.shared.attention import pieces as module
from polymodal.shared.attention.choose import make_plan
from polymodal.shared.attention.mask import Layout, Mask
from polymodal.shared.attention.pieces import attend_pieces
from polymodal.shared.attention.plan import Dense
from polymodal.shared.attention.sparse import Blocks, Local
from torch import Tensor

CPU = torch.device("cpu")
LENGTH = 600
WINDOW = Mask(window=(40, 24), keep=(torch.arange(LENGTH) < 520)[None])
"""Its last queries see padding alone."""
TABLE = torch.rand(2, 19, 19, generator=torch.Generator().manual_seed(0)) < 0.2
TABLE[:, 3] = True
BLOCKS = Mask(blocks=Layout(TABLE, 32))
COUNTED = Mask(blocks=Layout(TABLE * torch.tensor([1, 3], dtype=torch.uint8).repeat(10)[:19], 32))
"""The keys of every second block count three times."""


def numbers(*, dtype: torch.dtype = torch.float64, heads: int = 2) -> list[Tensor]:
    """q, k and v as views of a fused projection."""
    fused = torch.randn(1, LENGTH, 3, heads, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    return [t.detach() for t in fused.permute(2, 0, 3, 1, 4).unbind(0)]


@pytest.mark.parametrize(("mask", "kind"), [(WINDOW, Local), (BLOCKS, Blocks), (COUNTED, Blocks)])
def test_no_copy_of_keys_is_kept_for_the_backward_pass(mask: Mask, kind: type) -> None:
    """Of q, k, v and the output, and of a number for each query: no more, though pieces share most keys."""
    q, k, v = (t.requires_grad_() for t in numbers())
    plan = make_plan(mask, 1, LENGTH, LENGTH, CPU)
    assert isinstance(plan, kind)
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = plan(q, k, v)
    fused, mine, sums = q.untyped_storage().nbytes(), out.untyped_storage().nbytes(), 2 * LENGTH * 8
    assert sum(kept.values()) <= fused + mine + 2 * sums
    out.sum().backward()  # a gradient whose numbers all lie in one place


@pytest.mark.parametrize("mask", [WINDOW, BLOCKS, COUNTED])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_rounds_what_goes_in_and_comes_out(mask: Mask, dtype: torch.dtype) -> None:
    """Against fp32 on the same rounded numbers. (torch's own dense kernel fails in bf16 where AMX is there and AVX-512 is forbidden.)"""
    rounded = [t.to(dtype) for t in numbers()]
    want = make_plan(mask, 1, LENGTH, LENGTH, CPU, backend=Dense)(*(t.float() for t in rounded))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = make_plan(mask, 1, LENGTH, LENGTH, CPU)(*rounded)
    assert found.dtype == dtype
    assert float((found - want).abs().max()) < (2**-7 if dtype == torch.bfloat16 else 2e-6) * float(rounded[2].abs().max())


@pytest.mark.parametrize("mask", [WINDOW, BLOCKS, COUNTED])
def test_dropout_is_the_same_in_the_backward_pass(mask: Mask) -> None:
    """The gradient is that of the same draws: by finite differences of the drawn function."""
    q, k, v = numbers()
    plan = make_plan(mask, 1, LENGTH, LENGTH, CPU)
    assert isinstance(plan, (Local, Blocks))
    direction = [torch.randn(t.shape, generator=torch.Generator().manual_seed(n), dtype=t.dtype) for n, t in enumerate((q, k, v, q))]

    def drawn(step: float) -> Tensor:
        torch.manual_seed(3)
        moved = [t + step * d for t, d in zip((q, k, v), direction)]
        return (attend_pieces(moved[0], moved[1], moved[2], plan.pieces, dropout=0.3) * direction[3]).sum()

    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    torch.manual_seed(3)
    (attend_pieces(leaves[0], leaves[1], leaves[2], plan.pieces, dropout=0.3) * direction[3]).sum().backward()
    slope = sum(float((leaf.grad * d).sum()) for leaf, d in zip(leaves, direction) if leaf.grad is not None)
    assert slope == pytest.approx(float(drawn(1e-5) - drawn(-1e-5)) / 2e-5, rel=1e-6)
    torch.manual_seed(4)
    assert float(drawn(0.0)) != float((attend_pieces(q, k, v, plan.pieces, dropout=0.3) * direction[3]).sum())


def test_a_query_that_sees_nothing_gets_zeros_and_gives_none() -> None:
    q, k, v = (t.requires_grad_() for t in numbers())
    out = make_plan(WINDOW, 1, LENGTH, LENGTH, CPU)(q, k, v)
    assert not out[:, :, 560:].any() and bool(out[:, :, :560].any(-1).all())
    out.square().sum().backward()
    for t in (q, k, v):
        assert t.grad is not None and bool(t.grad.isfinite().all())
    assert not q.grad[:, :, 560:].any() and not k.grad[:, :, 520:].any()  # type: ignore[index]


def test_short_pieces_in_half_precision_go_by_tiles_where_those_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    whole = module.fill
    monkeypatch.setattr(module, "is_short_half", lambda q, size: size <= 1 << 16)
    monkeypatch.setattr(module, "fill", lambda out, *rest: (calls.append(out.shape[2]), whole(out, *rest))[1])
    q, k, v = numbers(dtype=torch.float32)
    want = make_plan(WINDOW, 1, LENGTH, LENGTH, CPU, backend=Dense)(q, k, v)
    torch.testing.assert_close(make_plan(WINDOW, 1, LENGTH, LENGTH, CPU)(q, k, v), want)
    assert sum(calls) == LENGTH
