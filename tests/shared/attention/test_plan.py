"""Every plan computes what the mask says: random masks, values and gradients, against a definition written apart."""

from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polymodal.shared.attention import plan as plan_module
from polymodal.shared.attention.choose import Documents, Prefixes, make_plan
from polymodal.shared.attention.flex import Flex
from polymodal.shared.attention.mask import Layout, Mask
from polymodal.shared.attention.plan import Dense, Plan, Shape
from polymodal.shared.attention.sparse import Blocks, Local
from polymodal.shared.errors import UserError
from torch import Tensor
from torch.nn.attention import flex_attention

Case = tuple[Mask, int, int, int, int, bool, int]
CPU = torch.device("cpu")
PLANS: tuple[type[Plan], ...] = (Dense, Documents, Prefixes, Local, Blocks, Flex)


def sees(mask: Mask, batch: int, heads: int, query_length: int, key_length: int) -> np.ndarray:
    """The documented meaning of each field, in numpy, sharing no code with the core: bool [B, H, Lq, Lk]."""
    ok = np.ones((batch, heads, query_length, key_length), dtype=bool)
    position = np.arange(query_length)[:, None] + mask.offset
    key = np.arange(key_length)[None]
    near = np.ones_like(ok)
    if mask.window is not None:
        step = np.array(mask.dilation or (1,))[:, None, None]
        near &= (position - key <= mask.window[0] * step) & (key - position <= mask.window[1] * step) & ((key - position) % step == 0)
    if mask.layouts:
        near &= times(mask, heads, query_length, key_length) > 0
    if mask.global_tokens is not None:
        is_global = mask.global_tokens.numpy()
        near |= is_global[:, None, mask.offset : mask.offset + query_length, None] | is_global[:, None, None, :]
    if mask.global_keys is not None:
        near |= mask.global_keys.numpy()[:, None, None, :]
    ok &= near
    if mask.causal:
        before = np.broadcast_to(key <= position, ok.shape).copy()
        if mask.prefix is not None:
            before |= key < mask.prefix.numpy()[:, None, None, None]
        if mask.key_lengths is not None and mask.lengths is not None:
            at = zip(mask.lengths, mask.key_lengths, np.cumsum(mask.key_lengths))
            places = np.concatenate([np.arange(end - length, end) for length, _, end in at])
            before = np.broadcast_to(key <= places[:, None], ok.shape)
        if mask.prefix_lengths is not None and mask.lengths is not None:
            firsts = np.cumsum([0, *mask.lengths[:-1]])
            before |= np.any([(key >= first) & (key < first + n) for first, n in zip(firsts, mask.prefix_lengths)], axis=0)
        ok &= before
    if mask.keep is not None:
        ok &= mask.keep.numpy()[:, None, None, :]
    if mask.lengths is not None:
        document = np.repeat(np.arange(len(mask.lengths)), mask.lengths)
        keys_of = document if mask.key_lengths is None else np.repeat(np.arange(len(mask.key_lengths)), mask.key_lengths)
        ok &= document[mask.offset : mask.offset + query_length, None] == keys_of[None]
    if mask.extra is not None:
        ok &= mask.extra.numpy()
    return ok


def times(mask: Mask, heads: int, query_length: int, key_length: int) -> np.ndarray:
    """How often block tables count each key, as the documentation says: [H, Lq, Lk]."""
    def spread(layout: Layout) -> np.ndarray:
        table = layout.table.numpy().astype(int)
        return np.kron(table if table.ndim == 3 else table[None], np.ones((layout.size, layout.size), dtype=int))

    if mask.blocks is not None:
        whole = spread(mask.blocks)[:, mask.offset : mask.offset + query_length, :key_length]
        return np.broadcast_to(whole, (heads, query_length, key_length))
    found = np.ones((heads, key_length, key_length), dtype=int)
    for layout, length, end in zip(mask.document_blocks or (), mask.lengths or (), np.cumsum(mask.lengths or ())):
        if layout is not None:
            found[:, end - length : end, end - length : end] = spread(layout)[:, :length, :length]
    return found[:, mask.offset : mask.offset + query_length]


def attend(q: Tensor, k: Tensor, v: Tensor, ok: Tensor, bias: Tensor | None, scale: float | None) -> Tensor:
    """The definition of attention; a query that sees nothing gets zeros."""
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias
    weights = scores.masked_fill(~ok, -1e30).softmax(-1).masked_fill(~ok, 0.0)
    return weights @ v


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A random mask with the sizes it is for: (mask, batch, heads, queries, keys, whether there is a bias, seed)."""
    seed = draw(st.integers(0, 2**16))
    rng = torch.Generator().manual_seed(seed)
    # plans, and tables of documents (Layout), that random fields alone would seldom allow
    focus = draw(st.sampled_from([None, Documents, Documents, Prefixes, Prefixes, Local, Blocks, Blocks, Layout]))
    offset = 0 if focus in (Documents, Prefixes, Blocks, Layout) else draw(st.sampled_from([0, 0, 1, 7, 20]))
    queries = draw(st.sampled_from([1, 2, 5, 17, 33, 48, 70]))
    keys = queries + offset
    if focus is Prefixes:
        lengths = tuple(torch.randint(2, 9, (draw(st.integers(1, 5)),), generator=rng).tolist()) + (5,) * draw(st.integers(0, 3))
        some_of_each = tuple(int(torch.randint(1, length, (), generator=rng)) for length in lengths)
        mask = Mask(causal=True, lengths=lengths, prefix_lengths=some_of_each)
        return mask, 1, draw(st.sampled_from([1, 2])), sum(lengths), sum(lengths), False, seed
    packed = focus in (Documents, Layout) or draw(st.booleans())
    batch = 1 if packed else draw(st.integers(1, 3))
    heads = draw(st.sampled_from([1, 2]))
    cross = focus is None and not packed and offset == 0 and draw(st.booleans())
    if cross:
        keys = draw(st.sampled_from([1, 3, 40]))

    def bits(*shape: int) -> Tensor:
        return torch.rand(shape, generator=rng) < draw(st.sampled_from([0.1, 0.5, 0.9]))

    def sometimes() -> bool:
        return draw(st.integers(0, 2)) == 0

    def counted(table: Tensor) -> Tensor:
        """Some blocks twice or three times."""
        return table if draw(st.booleans()) else table * torch.randint(1, 4, table.shape, generator=rng, dtype=torch.uint8)

    causal = draw(st.booleans())
    lengths = None
    if packed:
        cuts = sorted(set(torch.randint(1, keys + 1, (draw(st.integers(0, 4)),), generator=rng).tolist()) | {keys})
        lengths = tuple(b - a for a, b in zip([0, *cuts], cuts))
        if draw(st.booleans()) and keys % 4 == 0:
            lengths = (keys // 4,) * 4
    key_lengths = None
    if focus is Documents and lengths and draw(st.booleans()):  # other texts, packed too
        more = torch.randint(0 if causal else -8, 9, (len(lengths),), generator=rng).tolist()
        key_lengths = tuple(max(1, length + n) for length, n in zip(lengths, more))
        keys = sum(key_lengths)
    blocks = None
    if focus is Blocks or (focus not in (Documents, Layout) and sometimes()):
        size = draw(st.sampled_from([1, 4, 16]))
        n = -(-max(keys, queries) // size)
        table = bits(n, n) if draw(st.booleans()) else bits(heads, n, n)
        table[..., 0, :] |= draw(st.booleans())  # often a wide row
        table[..., -1] |= draw(st.booleans())  # often the last block, which may reach beyond the end
        blocks = Layout(counted(table), size)
    document_blocks = None
    if lengths and not key_lengths and blocks is None and (focus is Layout or sometimes()):
        size = draw(st.sampled_from([1, 4]))
        tables = {n: Layout(counted(bits(heads, -(-n // size), -(-n // size))), size) for n in set(lengths)}
        document_blocks = tuple(tables[n] if n % 3 else None for n in lengths)
    reach = st.tuples(st.integers(0, 30), st.integers(0, 30))
    rich = focus is not Documents  # it takes causal, window, global tokens and keep
    window = None if key_lengths else draw(reach if focus is Local else st.one_of(st.none(), reach))
    mask = Mask(
        causal=causal,
        window=window,
        dilation=tuple(torch.randint(1, 4, (heads,), generator=rng).tolist()) if window and draw(st.booleans()) else (),
        prefix=torch.randint(0, keys + 1, (batch,), generator=rng) if rich and causal and sometimes() else None,
        keep=bits(batch, keys) if sometimes() else None,
        lengths=lengths,
        key_lengths=key_lengths,
        global_tokens=bits(batch, keys) if not cross and not key_lengths and focus is not Blocks and sometimes() else None,
        global_keys=bits(batch, keys) if focus is not Blocks and sometimes() else None,
        blocks=blocks,
        document_blocks=document_blocks,
        extra=bits(draw(st.sampled_from([1, batch])), draw(st.sampled_from([1, heads])), queries, keys) if rich and sometimes() else None,
        offset=offset,
    )
    return mask, batch, heads, queries, keys, focus is not Blocks and draw(st.booleans()), seed


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
@given(cases(), st.sampled_from([torch.float64, torch.float32]), st.sampled_from([None, 1.0]))
def test_every_plan_equals_the_definition(case: Case, dtype: torch.dtype, scale: float | None) -> None:
    check(case, dtype, scale)


def some(*shape: int, every: int = 40) -> Tensor:
    """True at every 40th place."""
    return torch.arange(int(np.prod(shape))).reshape(shape) % every == 3


TWICE = Layout(torch.randint(0, 3, (2, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8), 8)
CORNERS: tuple[Case, ...] = (
    # global tokens behind earlier keys, further apart than the chunks of a window
    (Mask(window=(2, 3), global_tokens=some(2, 221), offset=71), 2, 2, 150, 221, True, 0),
    (Mask(causal=True, window=(2, 0), global_tokens=some(2, 221), offset=71), 2, 2, 150, 221, False, 0),
    (Mask(window=(2, 3), global_keys=some(2, 221), offset=71), 2, 2, 150, 221, False, 0),
    (Mask(window=(2, 3), global_tokens=some(1, 160), global_keys=some(1, 160, every=17), lengths=(60, 1, 99)), 1, 2, 160, 160, False, 0),
    # heads that are dilated, with a window that would see all if they were not
    (Mask(window=(5, 9), dilation=(1, 3)), 2, 2, 160, 160, True, 0),
    (Mask(causal=True, window=(30, 0), dilation=(2, 1), lengths=(20, 31)), 1, 2, 51, 51, False, 0),
    # windows that hide something only because of the earlier keys
    (Mask(causal=True, window=(20, 0), offset=10), 1, 1, 17, 27, False, 0),
    (Mask(window=(20, 30), offset=10), 1, 1, 17, 27, True, 0),
    # many chunks with documents and padding in them
    (Mask(window=(5, 9), lengths=(60, 1, 99)), 1, 2, 160, 160, False, 0),
    (Mask(window=(5, 9), keep=~some(2, 160)), 2, 2, 160, 160, True, 0),
    # tables of documents, of which two are equally long, and one is shorter than a block; blocks that count several times
    (Mask(lengths=(60, 3, 60, 37), document_blocks=(TWICE, None, TWICE, TWICE)), 1, 2, 160, 160, False, 0),
    (Mask(lengths=(60, 3, 97), document_blocks=(TWICE, TWICE, None), causal=True), 1, 2, 160, 160, False, 0),
    (Mask(lengths=(60, 100), document_blocks=(TWICE, None), keep=~some(1, 160), window=(9, 20)), 1, 2, 160, 160, True, 0),
    (Mask(lengths=(60,), document_blocks=(TWICE,)), 1, 2, 60, 60, False, 0),
    (Mask(blocks=TWICE, keep=~some(2, 60)), 2, 2, 60, 60, False, 0),
    # queries whose window holds no key
    (Mask(window=(1, 1)), 2, 1, 100, 3, False, 0),
)


@pytest.mark.parametrize("case", CORNERS, ids=[str(n) for n in range(len(CORNERS))])
def test_every_plan_equals_the_definition_in_the_corners(case: Case) -> None:
    check(case, torch.float64, None)


def check(case: Case, dtype: torch.dtype, scale: float | None) -> None:
    """Compare the values and gradients of every plan that supports the mask with the definition."""
    mask, batch, heads, queries, keys, with_bias, seed = case
    rng = torch.Generator().manual_seed(seed + 1)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    q, k, v, out_grad = numbers(batch, heads, queries, 4), numbers(batch, heads, keys, 4), numbers(batch, heads, keys, 4), None
    bias = numbers(1, heads, queries, keys) if with_bias else None
    inputs = [t for t in (q, k, v, bias) if t is not None]
    for t in inputs:
        t.requires_grad_()
    ok = torch.from_numpy(sees(mask, batch, heads, queries, keys))
    often = torch.from_numpy(times(mask, heads, queries, keys).copy()).double().clamp(min=1).log() if mask.repeats else None
    expected = attend(q, k, v, ok, bias if often is None else often if bias is None else bias + often, scale)
    out_grad = numbers(*expected.shape)
    expected_grads = torch.autograd.grad(expected, inputs, out_grad)

    assert torch.equal(mask.dense(batch, queries, keys, CPU).expand(batch, heads, -1, -1), ok)
    limit = 1e-9 if dtype == torch.float64 else 3e-5
    shape = Shape(batch, queries, keys, CPU)
    for backend in (None, *PLANS):
        if backend is not None and not backend.supports(mask, shape, bias):
            continue
        ours = [t.detach().to(dtype).requires_grad_(backend is not Flex) for t in inputs]
        plan = make_plan(mask, batch, queries, keys, CPU, ours[3] if with_bias else None, backend)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)  # not traced: seconds become milliseconds
            out = plan(ours[0], ours[1], ours[2], scale)
        torch.testing.assert_close(out.double(), expected, atol=limit, rtol=limit, msg=lambda m: f"{backend} {mask}: {m}")  # noqa: B023
        if backend is Flex:  # has no backward on a CPU
            continue
        if not out.requires_grad:  # nothing is seen anywhere
            assert not ok.any()
            continue
        grads = torch.autograd.grad(out, ours, out_grad.to(dtype), materialize_grads=True)
        for got, want in zip(grads, expected_grads):
            torch.testing.assert_close(got.double(), want, atol=limit, rtol=limit, msg=lambda m: f"gradient {backend} {mask}: {m}")  # noqa: B023


def test_every_field_of_the_mask_is_drawn_and_every_plan_is_met() -> None:
    """The property above means something only if its cases cover the fields, their pairs and the plans."""
    met: dict[type[Plan], int] = dict.fromkeys(PLANS, 0)
    pairs: set[tuple[str, str]] = set()
    names = [f.name for f in fields(Mask)]

    @settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
    @given(cases())
    def look(case: Case) -> None:
        mask, batch, _, queries, keys, with_bias, _ = case
        used = [
            name for name in names if (value := getattr(mask, name)) is not None and value is not False and name != "offset"
            and not (isinstance(value, tuple) and not value)]
        pairs.update((a, b) for a in used for b in used if a < b)
        for plan in PLANS:
            met[plan] += plan.supports(mask, Shape(batch, queries, keys, CPU), torch.zeros(1) if with_bias else None)

    look()
    assert min(met.values()) >= 20, met
    # document_blocks go with all but blocks, key_lengths with lengths, keep, causal and global_keys, prefix_lengths with lengths and causal
    assert len(pairs) == 10 * 9 // 2 + 9 + 4 + 2, str(sorted(pairs))


def plan_for(mask: Mask, batch: int = 2, queries: int = 8, keys: int | None = None, bias: Tensor | None = None) -> Plan:
    return make_plan(mask, batch, queries, keys or queries, CPU, bias)


def test_no_mask_reaches_the_fastest_kernel() -> None:
    plan = plan_for(Mask())
    assert isinstance(plan, Dense)
    assert plan.mask is None
    assert not plan.is_causal


def test_causal_is_a_flag_and_no_tensor() -> None:
    for mask in (Mask(causal=True), Mask(causal=True, keep=torch.ones(2, 8, dtype=torch.bool)), Mask(causal=True, window=(7, 0))):
        plan = plan_for(mask)
        assert isinstance(plan, Dense)
        assert plan.is_causal
        assert plan.mask is None


def test_causal_with_earlier_keys_is_not_the_flag() -> None:
    plan = plan_for(Mask(causal=True, offset=3), queries=5, keys=8)
    assert isinstance(plan, Dense)
    assert not plan.is_causal
    assert plan.mask is not None


def test_one_query_after_its_keys_needs_no_mask() -> None:
    plan = plan_for(Mask(causal=True, offset=7), queries=1, keys=8)
    assert isinstance(plan, Dense)
    assert plan.mask is None
    assert not plan.is_causal


def test_padding_is_a_bool_mask_and_a_bias_stays_additive() -> None:
    keep = torch.ones(2, 8, dtype=torch.bool)
    keep[1, 6:] = False
    plan = plan_for(Mask(keep=keep))
    assert isinstance(plan, Dense)
    assert plan.mask is not None
    assert plan.mask.dtype == torch.bool
    bias = torch.randn(1, 2, 8, 8)
    plan = plan_for(Mask(), bias=bias)
    assert isinstance(plan, Dense)
    assert plan.mask is bias


def test_long_structured_masks_choose_their_plan() -> None:
    window = Mask(window=(32, 32))
    assert isinstance(plan_for(window, queries=1024), Local)
    assert isinstance(plan_for(window, queries=64), Dense)
    assert isinstance(plan_for(Mask(causal=True, window=(1023, 0)), queries=1024), Dense)
    few = torch.zeros(2, 1024, dtype=torch.bool)
    few[:, :2] = True
    assert isinstance(plan_for(replace(window, global_tokens=few), queries=1024), Local)
    assert isinstance(plan_for(replace(window, global_tokens=~few), queries=1024), Dense)
    table = torch.eye(64, dtype=torch.bool)
    table[0] = True
    assert isinstance(plan_for(Mask(blocks=Layout(table, 16)), queries=1024), Blocks)
    assert isinstance(plan_for(Mask(blocks=Layout(torch.ones(64, 64, dtype=torch.bool), 16)), queries=1024), Dense)


DIAGONAL = Layout(torch.eye(70, dtype=torch.bool), 16)


@pytest.mark.parametrize("mask", [Mask(window=(40, 24)), Mask(causal=True, window=(50, 0)), Mask(blocks=DIAGONAL)])
def test_chosen_sparse_plans_equal_the_dense_one_at_length(mask: Mask) -> None:
    length = 1100
    q, k, v = torch.randn(3, 1, 2, length, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind(0)
    plan = make_plan(mask, 1, length, length, CPU)
    assert not isinstance(plan, Dense)
    torch.testing.assert_close(plan(q, k, v), make_plan(mask, 1, length, length, CPU, backend=Dense)(q, k, v))


def test_documents_are_grouped_by_length_and_keep_the_causal_flag() -> None:
    plan = plan_for(Mask(causal=True, lengths=(3, 5, 3, 3, 2)), batch=1, queries=16)
    assert isinstance(plan, Documents)
    assert [numbers for numbers, _ in plan.groups] == [[0, 2, 3], [1], [4]]
    for _, inner in plan.groups:
        assert isinstance(inner, Dense)
        assert inner.is_causal
        assert inner.mask is None
    assert not isinstance(plan_for(Mask(lengths=(16,)), batch=1, queries=16), Documents)


def test_what_a_prefix_hides_is_not_computed() -> None:
    """Prefixes are packed documents without a mask, the rests ones with more keys; each of equal lengths together."""
    plan = plan_for(Mask(causal=True, lengths=(5, 7, 5), prefix_lengths=(3, 4, 3)), batch=1, queries=17)
    assert isinstance(plan, Prefixes)
    assert [numbers for numbers, _ in plan.prefixes.groups] == [[0, 2], [1]] == [numbers for numbers, _ in plan.rests.groups]
    assert all(isinstance(inner, Dense) and inner.mask is None for _, inner in plan.prefixes.groups)
    assert all(isinstance(inner, Dense) and inner.mask is not None for _, inner in plan.rests.groups)


def test_prefixes_are_two_kernels_on_a_gpu() -> None:
    """The same with rows that are sorted and put back, as a GPU has it; its kernel is what a CPU computes document by document."""
    mask = Mask(causal=True, lengths=(5, 7, 5), prefix_lengths=(3, 4, 1))
    plan, calls = plan_for(mask, batch=1, queries=17), []
    assert isinstance(plan, Prefixes)
    q, k, v = torch.randn(3, 1, 2, 17, 8, generator=torch.Generator().manual_seed(5)).unbind(0)
    expected = plan(q, k, v)
    order = torch.tensor([0, 1, 2, 5, 6, 7, 8, 12, 3, 4, 9, 10, 11, 13, 14, 15, 16])
    for part in (plan.prefixes, plan.rests):
        def kernel(q: Tensor, k: Tensor, v: Tensor, scale: float | None, part: Documents = part) -> Tensor:
            calls.append((q.shape[2], k.shape[2]))
            return part._one_by_one(q, k, v, scale, 0.0)

        part.is_one_kernel, part._varlen = (lambda q, dropout: True), kernel
    plan.places, plan.back = order, order.argsort()
    torch.testing.assert_close(plan(q, k, v), expected)
    assert calls == [(8, 8), (9, 17)]


@pytest.mark.parametrize("lengths", [(3, 5, 3, 2), (4, 4, 4), (6,)])
def test_the_bias_of_the_longest_document_serves_all(lengths: tuple[int, ...]) -> None:
    """Where it depends on the distance alone it is, document by document, that of the row."""
    length, longest = sum(lengths), max(lengths)
    rng = torch.Generator().manual_seed(4)
    q, k, v = torch.randn(3, 1, 2, length, 8, generator=rng).unbind(0)
    of_distance = torch.randn(2, 2 * length, generator=rng, requires_grad=True)
    places = torch.arange(length)
    row = of_distance[:, places[:, None] - places + length][None]
    mask, found = Mask(causal=True, lengths=lengths), []
    for bias in (row, row[:, :, :longest, :longest]):
        out = make_plan(mask, 1, length, length, CPU, bias)(q, k, v)
        found.append((out, *torch.autograd.grad(out.square().sum(), of_distance, retain_graph=True)))
    torch.testing.assert_close(found[0], found[1])


def test_no_document_leaks_into_another() -> None:
    """Change one document: only its own outputs move, and gradients of the others do not reach it."""
    lengths = (4, 7, 4, 9)
    rng = torch.Generator().manual_seed(3)
    q, k, v = torch.randn(3, 1, 2, 24, 8, generator=rng).unbind(0)
    prefix = Mask(causal=True, lengths=lengths, prefix_lengths=(2, 4, 1, 5))
    for mask in (Mask(lengths=lengths), Mask(causal=True, lengths=lengths), Mask(lengths=lengths, window=(2, 2)), prefix):
        for backend in (Prefixes if mask is prefix else Documents, Dense):
            plan = make_plan(mask, 1, 24, 24, CPU, backend=backend)
            before = plan(q, k, v)
            moved = [t.clone() for t in (q, k, v)]
            for t in moved:
                t[:, :, 4:11] += 1.0
            after = plan(moved[0], moved[1], moved[2])
            same = (before == after).all(-1).all(1)[0]
            assert same[:4].all()
            assert same[11:].all()
            assert not same[4:11].any()
            k_leaf = k.clone().requires_grad_()
            plan(q, k_leaf, v)[:, :, :4].sum().backward()
            assert k_leaf.grad is not None
            assert (k_leaf.grad[:, :, 4:] == 0).all()


@pytest.mark.parametrize(
    ("mask", "backend", "kernel"), [(Mask(lengths=(8, 8)), Documents, "varlen_attn"), (Mask(), Flex, "flex_attention")]
)
def test_dropout_that_a_fast_kernel_lacks_is_told_once(
    mask: Mask, backend: type[Plan], kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "_without_dropout", set())
    q = torch.ones(1, 2, 16, 8, dtype=torch.bfloat16)
    plan = make_plan(mask, 1, 16, 16, CPU, backend=backend)
    monkeypatch.setattr(plan, "varlen", True, raising=False)  # as on a GPU
    with pytest.warns(UserWarning, match=f"{kernel} has no dropout .* Set the model's attention dropout .* to 0"):
        dropped = plan(q, q, q, dropout=0.5)
    assert len(set(dropped.flatten().tolist())) > 1, "it drops weights all the same"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan(q, q, q, dropout=0.5)


def test_dropout_on_a_cpu_needs_no_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "_without_dropout", set())
    q = torch.ones(1, 2, 16, 8, dtype=torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_plan(Mask(lengths=(8, 8)), 1, 16, 16, CPU)(q, q, q, dropout=0.5)


def test_dropout_drops_weights_in_every_plan() -> None:
    length = 64
    q = k = torch.zeros(1, 1, length, 4)
    v = torch.ones(1, 1, length, 4)
    torch.manual_seed(0)
    for mask, backend in (
        (Mask(), Dense),
        (Mask(lengths=(32, 32)), Documents),
        (Mask(window=(20, 20)), Local),
        (Mask(blocks=Layout(torch.eye(4, dtype=torch.bool), 16)), Blocks),
        (Mask(), Flex),
    ):
        plan = make_plan(mask, 1, length, length, CPU, backend=backend)
        dropped = plan(q, k, v, dropout=0.5)
        assert dropped.std() > 0.05  # without dropout every output is exactly 1
        assert abs(dropped.mean().item() - 1.0) < 0.2


def test_the_bias_table_may_stay_in_fp32_under_autocast() -> None:
    bias = torch.randn(1, 1, 4, 4)
    plan = make_plan(Mask(causal=True), 1, 4, 4, CPU, bias)
    q = torch.randn(1, 1, 4, 8, dtype=torch.bfloat16)
    assert plan(q, q, q).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Mask(window=(-1, 0)), "window needs"),
        (lambda: Mask(dilation=(2,)), "dilation needs a window"),
        (lambda: Mask(window=(1, 1), dilation=(0,)), "at least 1 for each head"),
        (lambda: plan_for(Mask(window=(1, 1), global_keys=torch.ones(2, 7, dtype=torch.bool))), r"global_keys must be \[2, 8\]"),
        (lambda: Mask(prefix=torch.tensor([1])), "pass causal=True"),
        (lambda: plan_for(Mask(lengths=(8, 0)), batch=1), "lengths must hold"),
        (lambda: Mask(keep=torch.ones(2, 4)), "keep must be bool"),
        (lambda: Mask(extra=torch.ones(4, 4, dtype=torch.bool)), "four dimensions"),
        (lambda: Layout(torch.ones(2, 2), 4), "block table must be bool"),
        (lambda: Layout(torch.ones(2, 2, dtype=torch.bool), 0), "at least one token"),
        (lambda: plan_for(Mask(keep=torch.ones(2, 7, dtype=torch.bool))), r"keep must be \[2, 8\]"),
        (lambda: plan_for(Mask(causal=True, prefix=torch.tensor([1, 2, 3]))), r"prefix must be \[2\]"),
        (lambda: plan_for(Mask(lengths=(4, 3)), batch=1), "lengths must sum to the 8 tokens"),
        (lambda: plan_for(Mask(lengths=(4, 4), key_lengths=(3, 4)), batch=1), "key_lengths must sum to the 8 tokens"),
        (lambda: plan_for(Mask(lengths=(4, 4), key_lengths=(8,)), batch=1), "as many as lengths, 2, got 1"),
        (lambda: Mask(lengths=(4,), key_lengths=(4,), window=(1, 1)), "no window between them"),
        (lambda: make_plan(Mask(lengths=(4,), key_lengths=(3,), causal=True), 1, 4, 3, CPU), "key_lengths must be at least lengths"),
        (lambda: Mask(lengths=(4, 4), prefix_lengths=(1, 2)), "pass causal=True and lengths"),
        (lambda: Mask(causal=True, prefix_lengths=(1, 2)), "pass causal=True and lengths"),
        (lambda: plan_for(Mask(causal=True, lengths=(4, 4), prefix_lengths=(1,)), batch=1), "prefix_lengths must be of each document"),
        (lambda: plan_for(Mask(causal=True, lengths=(4, 4), prefix_lengths=(1, 4)), batch=1), "fewer than all"),
        (lambda: plan_for(Mask(lengths=(4, 4)), batch=2), "one packed row"),
        (lambda: plan_for(Mask(blocks=Layout(torch.ones(1, 1, dtype=torch.bool), 4))), "block table covers 4 x 4"),
        (lambda: Mask(document_blocks=(None,)), "pass lengths, no key_lengths, no blocks"),
        (lambda: Mask(lengths=(8,), blocks=DIAGONAL, document_blocks=(None,)), "pass lengths, no key_lengths, no blocks"),
        (lambda: plan_for(Mask(lengths=(4, 4), document_blocks=(None,)), batch=1), "document_blocks must be as many as lengths, 2, got 1"),
        (lambda: plan_for(Mask(lengths=(7, 1), document_blocks=(Layout(torch.ones(1, 1, dtype=torch.bool), 4), None)), batch=1),
         "the block table of a document covers 4 x 4 tokens, needed 7"),
        (lambda: plan_for(Mask(extra=torch.ones(2, 1, 8, 9, dtype=torch.bool))), "extra must broadcast"),
        (lambda: plan_for(Mask(causal=True, offset=3)), "need as many keys"),
        (lambda: make_plan(Mask(), 1, 8, 8, CPU, backend=Local), "Local cannot compute this mask"),
    ],
)
def test_a_mask_that_fits_nothing_says_why(make: object, says: str) -> None:
    with pytest.raises((UserError, ValueError), match=says):
        make()  # type: ignore[operator]


def test_on_a_cpu_no_compiler_is_imported():
    code = """
import sys, torch
from polymodal.shared.attention.mask import Mask
from polymodal.shared.attention.choose import make_plan
for mask in (Mask(causal=True), Mask(window=(1, 1))):
    make_plan(mask, 1, 8, 8, torch.device("cpu"))
heavy = {"sympy", "polymodal.shared.attention.flex", "torch.nn.attention.flex_attention"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)
