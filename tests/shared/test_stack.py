from typing import Any
from unittest.mock import patch

import pytest
import torch
from polymodal.shared.attention import Attention
from polymodal.shared.attention.cache import KVCache
from polymodal.shared.attention.choose import make_plan
from polymodal.shared.attention.mask import Mask
from polymodal.shared.attention.plan import Plan
from polymodal.shared.attention.position import BucketBias
from polymodal.shared.block import Block, FeedForward, LayerNorm, RMSNorm
from polymodal.shared.embed import normal_
from polymodal.shared.errors import UserError
from polymodal.shared.stack import Stack
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

D = 16


def block(order: str = "pre", cross: bool = False) -> Block:
    return Block(
        Attention(D, 4),
        FeedForward(D, 2 * D),
        norm=lambda: LayerNorm(D),
        order=order,  # type: ignore[arg-type]
        cross=Attention(D, 4, cross=True) if cross else None,
    )


def stack(layers: int = 2, *, order: str = "pre", cross: bool = False, bias: bool = False, seed: int = 0) -> Stack:
    torch.manual_seed(seed)
    position_bias = BucketBias(4, num_buckets=8, max_distance=16, bidirectional=False) if bias else None
    made = Stack([block(order, cross) for _ in range(layers)], final_norm=LayerNorm(D), position_bias=position_bias)
    normal_(made, 0.3)
    return made


def numbers(*shape: int, seed: int = 9) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("order", ["pre", "post"])
def test_packed_documents_equal_each_document_alone(causal: bool, order: str) -> None:
    """Values and the gradient of every parameter; and nothing leaks."""
    net, lengths = stack(order=order), (3, 7, 3, 2)
    x = numbers(1, 15, D)
    packed = net(x, Mask(causal=causal, lengths=lengths))
    (packed**2).sum().backward()
    grads = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    alone = torch.cat([net(part, Mask(causal=causal)) for part in x.split(lengths, dim=1)], dim=1)
    (alone**2).sum().backward()
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)
    for n, p in net.named_parameters():
        torch.testing.assert_close(grads[n], p.grad, atol=1e-4, rtol=1e-4)

    moved = x.clone()
    moved[:, 3:10] += numbers(1, 7, D, seed=2)
    after = net(moved, Mask(causal=causal, lengths=lengths))
    same = (after == packed).all(-1)[0]
    assert same[:3].all()
    assert same[10:].all()
    assert not same[3:10].any()


def test_padding_changes_nothing() -> None:
    net, x = stack(order="post"), numbers(2, 6, D)
    keep = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    padded = net(x, Mask(keep=keep))
    torch.testing.assert_close(padded[1, :4], net(x[1:, :4])[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(net(x)[1, :4], padded[1, :4], atol=1e-3)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("steps", [(1,) * 9, (4, 1, 1, 3), (9,)])
def test_cached_decoding_equals_one_pass(bias: bool, steps: tuple[int, ...]) -> None:
    net, x = stack(3, cross=True, bias=bias), numbers(2, 9, D)
    memory, keep = numbers(2, 5, D, seed=4), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    mask, memory_mask = Mask(causal=True), Mask(keep=keep)
    with torch.no_grad():
        whole = net(x, mask, memory=memory, memory_mask=memory_mask)
        cache = KVCache(3, 9)
        parts: list[Tensor] = []
        for number, part in enumerate(x.split(steps, dim=1)):
            parts.append(net(part, mask, memory=memory if number == 0 else None, memory_mask=memory_mask, cache=cache))
    assert cache.length == 9
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=2e-5, rtol=1e-4)


def test_cached_decoding_of_padded_prompts() -> None:
    """Prompts padded on the left: `keep` covers the cached keys too."""
    net, x = stack(), numbers(2, 7, D)
    keep = torch.ones(2, 7, dtype=torch.bool)
    keep[1, :3] = False
    with torch.no_grad():
        whole = net(x, Mask(causal=True, keep=keep))
        cache = KVCache(2, 8)
        parts = [net(x[:, :4], Mask(causal=True, keep=keep[:, :4]), cache=cache)]
        parts += [net(x[:, i : i + 1], Mask(causal=True, keep=keep[:, : i + 1]), cache=cache) for i in range(4, 7)]
    torch.testing.assert_close(torch.cat(parts, dim=1)[keep], whole[keep], atol=2e-5, rtol=1e-4)


def test_a_memory_before_the_queries_is_an_offset() -> None:
    mask = Mask(causal=True, offset=3)
    plan = make_plan(mask, 1, 2, 5, torch.device("cpu"))
    v = numbers(1, 1, 5, 4)
    q = torch.zeros(1, 1, 2, 4)
    out = plan(q, torch.zeros(1, 1, 5, 4), v)
    torch.testing.assert_close(out[0, 0, 0], v[0, 0, :4].mean(0))


def test_the_plan_is_made_once_for_all_layers() -> None:
    made: list[Mask] = []

    def counting(mask: Mask, *args: Any) -> Plan:
        made.append(mask)
        return make_plan(mask, *args)

    net = stack(4)
    with patch("polymodal.shared.attention.attention.make_plan", counting):
        net(numbers(1, 5, D), Mask(causal=True))
    assert len(made) == 1


def test_masks_take_turns_over_the_layers() -> None:
    """GPT-3: even layers are dense, odd layers see a band."""
    net, x = stack(4), numbers(1, 12, D)
    dense, band = Mask(causal=True), Mask(causal=True, window=(2, 0))
    got = net(x, [dense, band])
    want = x
    for number in range(4):
        plan = make_plan((dense, band)[number % 2], 1, 12, 12, x.device)
        want = net.block(number)(want, plan)
    assert net.final_norm is not None
    torch.testing.assert_close(got, net.final_norm(want))
    assert not torch.allclose(got, net(x, dense), atol=1e-3)


def test_layers_share_blocks() -> None:
    torch.manual_seed(0)
    one = block()
    shared = Stack([one], num_layers=3)
    apart = Stack([one, one, one])
    x = numbers(1, 4, D)
    assert torch.equal(shared(x), apart(x))
    assert len(shared.state_dict()) == len(one.state_dict())
    two = Stack([block(), block()], num_layers=4)
    assert [two.block(i) is two.blocks[0] for i in range(4)] == [True, True, False, False]
    with pytest.raises(ValueError, match="3 layers cannot share 2 blocks"):
        Stack([block(), block()], num_layers=3)


def test_hidden_states_are_the_input_and_every_layer() -> None:
    net, x, seen = stack(3), numbers(1, 4, D), list[Tensor]()
    out = net(x, hidden_states=seen)
    assert len(seen) == 4
    assert seen[0] is x
    assert seen[-1] is out
    torch.testing.assert_close(net.block(0)(x, make_plan(Mask(), 1, 4, 4, x.device)), seen[1])


@pytest.mark.parametrize("order", ["pre", "post"])
def test_block_order_as_written_in_the_papers(order: str) -> None:
    torch.manual_seed(0)
    one, x, memory = block(order, cross=True), numbers(1, 4, D), numbers(1, 6, D, seed=1)
    normal_(one, 0.3)
    plan, read = make_plan(Mask(), 1, 4, 4, x.device), make_plan(Mask(), 1, 4, 6, x.device)
    assert one.cross is not None
    assert one.cross_residual is not None
    norms = [r.norm for r in (one.attention_residual, one.cross_residual, one.feed_forward_residual)]
    parts = [lambda y: one.attention(y, plan), lambda y: one.cross(y, read, memory), one.feed_forward]  # type: ignore[misc]
    want = x
    for norm, part in zip(norms, parts):
        want = want + part(norm(want)) if order == "pre" else norm(want + part(want))
    torch.testing.assert_close(one(x, plan, memory, read), want)


def test_rms_norm_and_position_bias_compose_to_t5() -> None:
    """The relative bias reaches every layer: permuting keys of a bias-free stack is invisible, with the bias it is not."""
    torch.manual_seed(0)

    def make(bias: bool) -> Stack:
        layer = Block(Attention(D, 4, bias=False, scale=1.0), FeedForward(D, D, "relu", bias=False), norm=lambda: RMSNorm(D), order="pre")
        made = Stack([layer], final_norm=RMSNorm(D), position_bias=BucketBias(4) if bias else None)
        for p in made.parameters():
            nn.init.normal_(p, std=0.3)
        return made

    x, turn = numbers(1, 6, D), torch.tensor([0, 5, 4, 3, 2, 1])
    for bias in (False, True):
        net = make(bias)
        alike = torch.allclose(net(x)[:, 0], net(x[:, turn])[:, 0], atol=1e-5)
        assert alike is not bias
        if bias:  # packed documents get the bias of their own positions
            packed = net(x, Mask(lengths=(2, 4)))
            torch.testing.assert_close(packed, torch.cat([net(x[:, :2]), net(x[:, 2:])], dim=1), atol=1e-5, rtol=1e-4)
            packed.sum().backward()
            assert net.position_bias is not None
            assert net.position_bias.table.weight.grad is not None
            assert net.position_bias.table.weight.grad.abs().sum() > 0


def test_a_compiled_stack_is_one_graph_with_the_same_gradients() -> None:
    net, x = stack(), numbers(1, 8, D)
    mask = Mask(causal=True)
    (net(x, mask) ** 2).sum().backward()
    want = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    (compiled(x, mask) ** 2).sum().backward()
    for n, p in net.named_parameters():
        torch.testing.assert_close(p.grad, want[n], atol=1e-4, rtol=1e-4)


def test_new_documents_do_not_compile_a_packed_stack_anew() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = stack()

        def forward(self, x: Tensor, lengths: tuple[int, ...]) -> Tensor:
            return self.net(x, Mask(causal=True, lengths=lengths))

    graphs = CompileCounter()
    net, x = Packed(), numbers(1, 16, D)
    compiled = torch.compile(net, backend=graphs)
    compiled(x, (5, 7, 4))
    first = graphs.frame_count
    for lengths in ((4, 4, 8), (10, 6), (1, 2, 3, 10), (8, 8)):
        assert torch.equal(compiled(x, lengths), net(x, lengths))
    assert graphs.frame_count == first > 0


def test_the_cache_reorders_its_rows() -> None:
    net, x = stack(cross=True), numbers(3, 6, D)
    memory = numbers(3, 4, D, seed=5)
    mask, rows = Mask(causal=True), torch.tensor([2, 2, 0])
    with torch.no_grad():
        cache = KVCache(2, 6)
        net(x[:, :5], mask, memory=memory, cache=cache)
        cache.reorder(rows, cross=True)
        got = net(x[rows][:, 5:], mask, cache=cache)
        want = net(x[rows], mask, memory=memory[rows])[:, 5:]
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
        fewer = torch.tensor([1])
        cache = KVCache(2, 6)
        net(x[:, :5], mask, memory=memory, cache=cache)
        cache.reorder(fewer, cross=True)
        got = net(x[fewer][:, 5:], mask, cache=cache)
        torch.testing.assert_close(got, net(x[fewer], mask, memory=memory[fewer])[:, 5:], atol=1e-5, rtol=1e-4)


def test_rows_that_share_a_memory_read_it_once() -> None:
    net, x, memory = stack(cross=True), numbers(6, 5, D), numbers(2, 4, D, seed=5)
    keep = torch.tensor([[True] * 4, [True, True, False, False]])
    every = memory.repeat_interleave(3, 0)
    with torch.no_grad():
        want = net(x, Mask(causal=True), memory=every, memory_mask=Mask(keep=keep.repeat_interleave(3, 0)))
        got = net(x, Mask(causal=True), memory=memory, memory_mask=Mask(keep=keep))
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
        cache = KVCache(2, 5)
        first = net(x[:, :3], Mask(causal=True), memory=memory, memory_mask=Mask(keep=keep), cache=cache)
        rest = [net(x[:, i:i + 1], Mask(causal=True), memory_mask=Mask(keep=keep), cache=cache) for i in (3, 4)]
        torch.testing.assert_close(torch.cat([first, *rest], 1), want, atol=1e-5, rtol=1e-4)
        assert cache.layers[0].cross is not None and cache.layers[0].cross[0].shape[0] == 2
    with pytest.raises(UserError, match="cannot share"):
        net(x[:5], Mask(causal=True), memory=memory)


def test_the_cache_reorders_what_comes_behind_a_shared_prompt() -> None:
    net, x, cache = stack(), numbers(2, 5, D), KVCache(2, 6)
    with torch.no_grad():
        net(x, Mask(causal=True), cache=cache)
    assert cache.buffer is not None
    before = cache.buffer.clone()
    cache.reorder(torch.tensor([1, 1]), start=3)
    assert torch.equal(cache.buffer[:, :, :, :3], before[:, :, :, :3])
    assert torch.equal(cache.buffer[:, 0, :, 3:], before[:, 1, :, 3:]) and torch.equal(cache.buffer[:, 1], before[:, 1])


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [1, 0, 3, 2], [3, 0, 1, 2], [1, 2, 2, 0], [2, 2, 3, 3], [0, 0, 0, 0]])
def test_rows_move_wherever_they_come_from(rows: list[int]) -> None:
    cache = KVCache(1, 3)
    cache.layer(0).append(numbers(4, 2, 3, 5), numbers(4, 2, 3, 5, seed=1))
    cache.advance(3)
    assert cache.buffer is not None
    before = cache.buffer.clone()
    cache.reorder(torch.tensor(rows))
    assert torch.equal(cache.buffer, before[:, rows])


def test_a_cache_is_static_bounded_and_keeps_no_gradient() -> None:
    net, x = stack(), numbers(1, 4, D)
    cache = KVCache(2, 4)
    with torch.no_grad():
        net(x[:, :2], Mask(causal=True), cache=cache)
        address = cache.buffer.data_ptr() if cache.buffer is not None else 0
        net(x[:, 2:], Mask(causal=True), cache=cache)
        assert cache.buffer is not None
        assert cache.buffer.data_ptr() == address
        with pytest.raises(UserError, match="holds 4 positions and 5 are needed"):
            net(x[:, :1], Mask(causal=True), cache=cache)
    with pytest.raises(AssertionError, match="no gradients"):
        net(x, Mask(causal=True), cache=KVCache(2, 4))
