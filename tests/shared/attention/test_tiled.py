"""Tiled attention equals the definition, with masks, biases that learn, and dropout."""

from __future__ import annotations

import itertools

import pytest
import torch
from polymodal.shared.attention import tiled
from polymodal.shared.attention.choose import make_plan
from polymodal.shared.attention.mask import Mask
from polymodal.shared.attention.tiled import tiled_attention
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention

SHAPES = [(2, 3, 9, 9), (1, 2, 5, 11), (3, 4, 1, 7), (5, 2, 16, 16)]


def inputs(batch, heads, queries, keys, size=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    made = [torch.randn(batch, n, heads, size, generator=generator, dtype=dtype).transpose(1, 2) for n in (queries, keys, keys)]
    return [t.requires_grad_() for t in made]


def masks(batch, heads, queries, keys):
    generator = torch.Generator().manual_seed(2)
    seen = torch.rand(batch, 1, queries, keys, generator=generator) > 0.4
    seen[..., 0] = True
    yield "none", None
    yield "bool", seen
    yield "a bias for all rows", torch.randn(1, heads, queries, keys, generator=generator, dtype=torch.float64).requires_grad_()
    bias = torch.randn(batch, 1, queries, keys, generator=generator, dtype=torch.float64)
    yield "a bias for each row and all heads", bias.requires_grad_()
    bias = torch.randn(batch, heads, queries, keys, generator=generator, dtype=torch.float64).masked_fill(~seen, -torch.inf)
    yield "a masked bias", bias.requires_grad_()


@pytest.mark.parametrize("tile", [1, 100, 1 << 18])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_sdpa(shape, tile, monkeypatch):
    monkeypatch.setattr(tiled, "TILE", tile)
    for (name, mask), scale in itertools.product(masks(*shape), (None, 1.0)):
        results = []
        for attend in (tiled_attention, lambda q, k, v, m, scale: scaled_dot_product_attention(q, k, v, attn_mask=m, scale=scale)):
            q, k, v = inputs(*shape)
            learns = mask is not None and mask.requires_grad
            out = attend(q, k, v, mask, scale=scale)
            weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
            results.append((out, *torch.autograd.grad((out * weight).sum(), [q, k, v, *([mask] if learns else [])])))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")


def test_causal():
    q, k, v = inputs(2, 3, 9, 9)
    expected = scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(tiled_attention(q, k, v, causal=True), expected)


def test_a_query_that_sees_nothing_gets_zeros_and_teaches_nothing():
    q, k, v = inputs(2, 3, 4, 6)
    seen = torch.ones(2, 1, 4, 6, dtype=torch.bool)
    seen[1, :, 2] = False
    bias = torch.randn(1, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    for out in (tiled_attention(q, k, v, seen),
                tiled_attention(q, k, v, bias.masked_fill(~seen, -torch.inf), hidden=~seen.any(-1, keepdim=True))):
        assert not out[1, :, 2].any() and out[1, :, 1].any()
        found = torch.autograd.grad(out.square().sum(), [q, k, v], retain_graph=True)
        assert all(g.isfinite().all() for g in found)
        assert not found[0][1, :, 2].any()
    assert torch.autograd.grad(out.square().sum(), bias)[0].isfinite().all()


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_keeps_the_right_share_and_the_mean(p):
    """Over 960,000 weights, in every quarter of the drawn numbers; three standard deviations."""
    torch.manual_seed(0)
    q = torch.zeros(4, 6, 200, 8)  # all weights 1 / 200
    eye = torch.eye(200).expand(4, 6, 200, 200)
    weights = tiled_attention(q, q, eye, dropout=p) * 200
    dropped = weights == 0
    count = dropped.numel()
    assert abs(dropped.float().mean().item() - p) < 3 * (p * (1 - p) / count) ** 0.5
    for lane in range(4):
        share = dropped.flatten()[lane::4].float().mean().item()
        assert abs(share - p) < 3.5 * (p * (1 - p) / (count / 4)) ** 0.5, lane
    torch.testing.assert_close(weights[~dropped], torch.full((int((~dropped).sum()),), 1 / (1 - round(p * 32768) / 32768)))
    # neighbours, rows and heads are dropped independently
    drops = dropped.float() - p
    for moved in (drops.roll(1, -1), drops.roll(1, -2), drops.roll(1, 1), drops.roll(1, 0)):
        assert abs((drops * moved).mean().item()) < 4 * p * (1 - p) / count**0.5
    with_all = tiled_attention(q, q, eye, dropout=1.0)
    assert not with_all.any()


def test_draws_follow_the_seed_and_the_gradient_follows_the_draws():
    """Central differences of the very function that was drawn, and the same draws for the same seed."""
    shape = (2, 2, 5, 6)

    def run(q, k, v, bias, seed=3):
        torch.manual_seed(seed)
        return tiled_attention(q, k, v, bias, dropout=0.3)

    q, k, v = inputs(*shape)
    bias = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.equal(run(q, k, v, bias), run(q, k, v, bias)) and not torch.equal(run(q, k, v, bias), run(q, k, v, bias, seed=4))
    torch.manual_seed(3)
    first = tiled_attention(q, k, v, bias, dropout=0.3)
    assert not torch.equal(first, tiled_attention(q, k, v, bias, dropout=0.3)), "two calls draw anew"
    assert torch.autograd.gradcheck(run, (q, k, v, bias))


def test_bf16_is_near_fp32():
    exact, rounded = inputs(2, 4, 64, 64, 32, torch.float32), inputs(2, 4, 64, 64, 32, torch.bfloat16)
    bias = torch.randn(1, 4, 64, 64, requires_grad=True)
    results = []
    for parts in (exact, rounded):
        out = tiled_attention(*parts, bias)
        assert out.dtype == parts[0].dtype
        results.append([g.float() for g in (out, *torch.autograd.grad(out.float().square().sum(), [*parts, bias]))])
    for a, b in zip(*results, strict=True):
        assert (a - b).norm() < 0.02 * a.norm()
    assert results[1][-1].dtype == torch.float32


def test_bf16_is_as_exact_as_torchs_kernel():
    """With large scores, whose rounding would move the weights: values and gradients against fp32."""
    generator = torch.Generator().manual_seed(0)
    rounded = [(torch.randn(2, 4, 48, 32, generator=generator) * scale).bfloat16() for scale in (3, 3, 1)]
    upstream = torch.randn(2, 4, 48, 32, generator=generator)

    def run(attend, parts):
        parts = [t.clone().requires_grad_() for t in parts]
        out = attend(*parts)
        return [t.float() for t in (out, *torch.autograd.grad((out.float() * upstream).sum(), parts))]

    exact = run(scaled_dot_product_attention, [t.float() for t in rounded])
    with torch.autocast("cpu", torch.bfloat16):  # as in training, where it casts what it can
        found = run(tiled_attention, rounded)
    for mine, theirs, true in zip(found, run(scaled_dot_product_attention, rounded), exact, strict=True):
        assert (mine - true).norm() < 1.5 * (theirs - true).norm()


@pytest.mark.parametrize("masked", ["no", "bool", "bias"])
def test_one_row_of_bf16_for_a_decoding_step(masked, monkeypatch):
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, n, 16).bfloat16() for n in (1, tiled.FEW, tiled.FEW))
    mask = {"no": None, "bool": torch.rand(3, 1, 1, tiled.FEW) < 0.7, "bias": torch.randn(1, 2, 1, tiled.FEW)}[masked]
    rows = []

    def kernel(query, *args, **named):
        rows.append(query.shape[2])
        return scaled_dot_product_attention(query, *args, **named)

    monkeypatch.setattr(tiled.F, "scaled_dot_product_attention", kernel)
    with torch.no_grad():
        found = tiled.attend(q, k, v, mask, hidden=lambda: None)
    exact = mask.double() if masked == "bias" else mask
    expected = scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=exact)
    assert rows == [2] and found.shape == q.shape
    assert (found - expected).norm() < 0.01 * expected.norm()


def test_tensors_without_numbers_take_few_tiles_of_the_same_whole():
    with FakeTensorMode():
        q = torch.empty(64, 8, 200, 16)
    real = torch.empty(64, 8, 200, 16)
    made = [list(tiled.Tiles(t, t, None, 1.0, 0.0, 0)) for t in (q, real)]
    assert len(made[0]) <= 2 * tiled._REHEARSED < 64 < len(made[1])
    for tiles in made:
        seen = torch.zeros(64, 8, dtype=torch.int)
        for place in tiles:
            seen[place] += 1
        assert bool((seen == 1).all())


MASKS = {
    "nothing": Mask(), "causal": Mask(causal=True), "window": Mask(window=(3, 2)), "causal window": Mask(causal=True, window=(4, 0)),
    "padding": Mask(keep=torch.arange(12) < torch.tensor([[12], [7]])), "prefix": Mask(causal=True, prefix=torch.tensor([3, 8])),
    "padding in front, causal": Mask(causal=True, keep=torch.arange(12) >= torch.tensor([[0], [5]])),  # the first queries see nothing
    "documents": Mask(lengths=(5, 4, 3), causal=True),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("learns", [False, True])
def test_every_plan_in_tiles_is_the_plan(name, learns, monkeypatch):
    """Whatever mask reaches `attend`, with and without a learned bias: values and gradients."""
    mask = MASKS[name]
    batch = 1 if mask.lengths is not None else 2
    results, used = [], []
    for tiles in (False, True):
        monkeypatch.setattr(tiled, "pays", lambda *_, tiles=tiles: used.append(tiles) or tiles)
        q, k, v = inputs(batch, 3, 12, 12)
        bias = torch.linspace(-2, 2, 3 * 144, dtype=torch.float64).view(1, 3, 12, 12).requires_grad_() if learns else None
        out = make_plan(mask, batch, 12, 12, torch.device("cpu"), bias)(q, k, v)
        parts = [q, k, v, *([] if bias is None else [bias])]
        results.append((out, *torch.autograd.grad((out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum(), parts)))
    assert used[-1], "the plan never came to `attend`"
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("batch", "heads", "length"), [(7, 5, 40), (2, 6, 300), (3, 2, 600)])
def test_the_number_of_threads_draws_nothing_else(batch, heads, length):
    """Tiles that share a step draw for themselves; several rows, several heads or one head to a tile."""
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            torch.manual_seed(3)
            q, k, v = (torch.randn(batch, heads, length, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
            out = tiled_attention(q, k, v, dropout=0.5)
            out.square().sum().backward()
            found.append((out.detach(), q.grad, k.grad, v.grad))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)
