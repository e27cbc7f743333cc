"""Attention by distance in tiles beside whole rows of scores: results, gradients, and what is not read."""

import polymodal
import pytest
import torch
from parity import noise
from polymodal.text import _two_streams
from polymodal.text._tiles import HEADS, ROWS, attend_in_tiles, tiles_of, tiles_of_texts

BATCH, QUERIES, KEYS, WIDTH = 2, ROWS + 37, 2 * ROWS + 9, 6
SCALE = 0.4


def drawn(seed=0, queries=QUERIES, keys=KEYS, batch=BATCH, heads=HEADS + 1, far=None, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    far = keys - 1 if far is None else far

    def some(*shape):
        return torch.randn(*shape, generator=g, dtype=dtype).requires_grad_()

    return (some(batch, heads, queries, WIDTH + 2), some(batch, heads, queries, WIDTH), some(batch, heads, keys, WIDTH + 2),
            some(batch, heads, keys, WIDTH), some(heads, WIDTH, far + keys))


def plain(content, distance, k, v, r, mask, places, far):
    """The formula, with the vector of each pair's distance looked up. Places [B, Lq] are counted in keys."""
    columns = far - places[:, :, None] + torch.arange(k.shape[2])
    vectors = r[:, :, columns].permute(2, 0, 3, 4, 1)  # [B, H, Lq, Lk, d]
    scores = SCALE * (content @ k.transpose(2, 3) + (distance[:, :, :, None] * vectors).sum(-1))
    return (scores if mask is None else scores + mask).softmax(-1) @ v


def assert_same(found, expected, inputs):
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(9), dtype=found.dtype)
    ours = torch.autograd.grad((found * weights).sum(), inputs)
    theirs = torch.autograd.grad((expected * weights).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)


def hidden_keys(seed, queries=QUERIES, batch=BATCH):
    """Random ones; the keys of the second half of each row are hidden from the first tile, and the last ones from all."""
    hidden = torch.rand(batch, queries, KEYS, generator=torch.Generator().manual_seed(seed)) < 0.5
    hidden[..., 3] = False
    hidden[:, :ROWS, KEYS // 2:] = True
    hidden[..., -20:] = True
    return hidden


def mask_of(hidden):
    return torch.zeros(hidden.shape, dtype=torch.float64).masked_fill(hidden, -torch.inf)[:, None]


@pytest.mark.parametrize("masked", [False, True])
def test_the_last_keys_as_queries(masked):
    inputs, hidden = drawn(), hidden_keys(1)
    mask = mask_of(hidden) if masked else None
    tiles = tiles_of(hidden if masked else None, BATCH, QUERIES, KEYS)
    places = (KEYS - QUERIES + torch.arange(QUERIES)).expand(BATCH, -1)
    assert len(tiles) == 2 * BATCH and all(t.end == KEYS for t in tiles) is not masked
    assert_same(attend_in_tiles(*inputs, tiles, KEYS - 1, SCALE), plain(*inputs, mask, places, KEYS - 1), inputs)


def test_queries_at_any_places_and_one_behind_the_keys():
    queries = ROWS + 5
    inputs, hidden = drawn(2, queries, far=KEYS), hidden_keys(3, queries)
    g = torch.Generator().manual_seed(4)
    places = torch.stack([torch.randperm(KEYS + 1, generator=g)[:queries].sort().values for _ in range(BATCH)])
    places[0, -1], places[1, -3:] = KEYS, KEYS - queries + 2
    tiles = tiles_of(hidden, BATCH, queries, KEYS, places)
    mask = mask_of(hidden)
    assert_same(attend_in_tiles(*inputs, tiles, KEYS, SCALE), plain(*inputs, mask, places, KEYS), inputs)


def test_texts_side_by_side():
    lengths = (5, ROWS + 11, 1, 40)
    total, longest = sum(lengths), max(lengths)
    inputs = drawn(5, total, total, batch=1, far=longest - 1)
    r = inputs[-1][:, :, :2 * longest - 1].detach().requires_grad_()
    inputs = (*inputs[:-1], r)
    found = attend_in_tiles(*inputs, tiles_of_texts(lengths), longest - 1, SCALE)
    parts = [[t.split(lengths, 2)[n] for t in inputs[:-1]] for n in range(len(lengths))]
    expected = torch.cat([plain(*part, r, None, torch.arange(length)[None], longest - 1)
                          for part, length in zip(parts, lengths, strict=True)], 2)
    assert_same(found, expected, inputs)


def test_what_no_query_of_a_tile_sees_is_not_read_and_rows_without_a_tile_are_zeros():
    hidden = hidden_keys(6)
    hidden[1, ROWS:] = True
    tiles = tiles_of(hidden, BATCH, QUERIES, KEYS)
    assert [(t.row, t.first) for t in tiles] == [(0, 0), (1, 0), (0, ROWS)]
    content, distance, k, v, r = (t.detach() for t in drawn())
    k[:, :, -20:] = v[:, :, -20:] = torch.nan
    found = attend_in_tiles(content, distance, k, v, r, tiles, KEYS - 1, SCALE)
    assert bool(found.isfinite().all()) and not found[1, :, ROWS:].any() and bool(found[0].any(-1).all())


def test_dropout_draws_the_same_in_both_passes():
    inputs = drawn(7, 5, 6, batch=1, heads=2)
    tiles = tiles_of(None, 1, 5, 6)

    def dropped(*tensors):
        torch.manual_seed(3)
        return attend_in_tiles(*tensors, tiles, 5, SCALE, 0.4)

    assert torch.autograd.gradcheck(dropped, inputs)
    assert not torch.allclose(dropped(*inputs), attend_in_tiles(*inputs, tiles, 5, SCALE))
    many = torch.stack([attend_in_tiles(*inputs, tiles, 5, SCALE, 0.4).detach() for _ in range(3000)])
    spread = many.std(0) / 3000**0.5
    assert float(((many.mean(0) - attend_in_tiles(*inputs, tiles, 5, SCALE)).abs() / spread).max()) < 5


def test_bf16_is_rounding():
    inputs = [t.detach().float() for t in drawn(8)]
    tiles = tiles_of(hidden_keys(1), BATCH, QUERIES, KEYS)
    found = [t.bfloat16().requires_grad_() for t in inputs]
    rounded = [t.detach().float().requires_grad_() for t in found]
    a, b = (attend_in_tiles(*t, tiles, KEYS - 1, SCALE) for t in (found, rounded))
    assert a.dtype == torch.bfloat16 and float((a.float() - b).norm() / b.norm()) < 0.02
    for x, y in zip(torch.autograd.grad(a.sum(), found), torch.autograd.grad(b.sum(), rounded), strict=True):
        assert x.dtype == torch.bfloat16 and float((x.float() - y).norm() / y.norm()) < 0.05


@pytest.mark.parametrize("blind", [False, True])
def test_a_network_has_the_same_loss_and_gradients_either_way(blind, monkeypatch):
    """Two streams, segments and a memory, once in tiles, once in whole rows of scores; fp64."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "d_model": 40, "n_head": 5, "d_inner": 32, "n_layer": 3, "dropout": 0.0}
    net = noise(polymodal.system("xlnet", size="tiny", **sizes).net).double()
    g = torch.Generator().manual_seed(1)
    ids, types = torch.randint(50, (2, 150), generator=g), torch.randint(3, (2, 150), generator=g)
    order = torch.rand(2, 150, 150, generator=g) < 0.3
    places = torch.stack([torch.randperm(150, generator=g)[:30].sort().values for _ in range(2)])
    if blind:
        order[0, places[0, 4]] = True
    mems = None if blind else net.trunk(ids, use_mems=True).mems
    results = []
    for enough in (1, 1 << 60):
        monkeypatch.setattr(_two_streams, "ENOUGH", enough)
        net.zero_grad()
        out = net.trunk(ids, None, types, mems=mems, perm_mask=order, target_rows=places).last_hidden_state
        (out * torch.arange(40)).sum().backward()
        results.append([out, *(p.grad for p in net.parameters() if p.grad is not None)])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-9 * float(b.abs().max()))
