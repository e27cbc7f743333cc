"""Windows and block tables, forward and backward, beside transformers' Longformer and BigBird layers on the same weights.

A layer is projections, attention, output projection and post-norm residual, 12 heads of 64, one sequence, no dropout. Longformer: a
window of 256 tokens to each side (its `attention_window` 512), no global tokens. BigBird: blocks of 64, 3 in the window, 3 random (those
that its layer has drawn), 2 global. Full attention (SDPA, the same layer) runs beside them for orientation; it computes something else.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...shared.attention import Attention
from ...shared.attention.choose import make_plan
from ...shared.attention.mask import Layout, Mask
from ...shared.block import LayerNorm, Residual
from ...shared.convert import Rule, affine, fused, to_theirs
from ...shared.embed import normal_
from . import relative
from .case import Agreement, Case, Cases, Contender, Options
from .machine import need

PEERS = ("transformers",)
TOLERANCE = 1e-4

RULES: tuple[Rule, ...] = (
    *fused(tuple(f"self.{n}" for n in ("query", "key", "value")), "attention.qkv"),
    *affine("output.dense", "attention.out"),
    *affine("output.LayerNorm", "residual.norm"),
)


@dataclass(frozen=True)
class Work:
    """One layer on one sequence."""

    length: int
    reach: int
    """Tokens seen to each side, or of a block."""
    hidden: int = 768
    heads: int = 12
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    """bfloat16 runs under autocast."""

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the layer."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device, self.dtype)

    def input(self) -> Tensor:
        """The sequence [1, L, D]."""
        generator = torch.Generator().manual_seed(1)
        return torch.randn(1, self.length, self.hidden, generator=generator).to(self.device).requires_grad_()


class Layer(nn.Module):
    """polymodal's attention in its residual."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(hidden, heads)
        self.residual = Residual(LayerNorm(hidden), "post")

    def forward(self, x: Tensor, mask: Mask) -> Tensor:
        """Map [B, L, D] to [B, L, D]; the plan is made anew, as a stack does once for all its layers."""
        plan = make_plan(mask, x.shape[0], x.shape[1], x.shape[1], x.device)
        return self.residual(x, lambda y: self.attention(y, plan))


@dataclass
class Side:
    """A layer and its input."""

    module: nn.Module
    x: Tensor
    run: Callable[[], Tensor]


def step(side: Side) -> Tensor:
    """Forward and backward; the output's gradient is the output's sign-free square, halved."""
    side.module.zero_grad(set_to_none=True)
    side.x.grad = None
    out = side.run()
    (0.5 * out.square().mean()).backward()
    return out.detach()


def _layer(work: Work) -> Layer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = Layer(work.hidden, work.heads)
        normal_(layer)
        for parameter in layer.parameters():
            if parameter.ndim < 2:
                parameter.data.add_(0.02 * torch.randn_like(parameter))
    return layer


def ours(work: Work, mask: Mask) -> Side:
    """Our layer with this mask."""
    layer, x = _layer(work).to(work.device), work.input()

    def run() -> Tensor:
        with work.autocast():
            return layer(x, mask)

    return Side(layer, x, run)


def theirs(work: Work) -> Side:
    """The layer of transformers: `LongformerAttention`."""
    transformers = need("transformers")
    config = transformers.LongformerConfig(
        hidden_size=work.hidden, num_attention_heads=work.heads, attention_window=[2 * work.reach], layer_norm_eps=1e-5,
        attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0,
    )
    layer = transformers.models.longformer.modeling_longformer.LongformerAttention(config)
    state = to_theirs(RULES, _layer(work).state_dict())
    found = layer.load_state_dict(state, strict=False)
    assert not found.unexpected_keys and all("_global" in k for k in found.missing_keys), found
    layer.to(work.device)
    x = work.input()
    shown = torch.zeros(1, work.length, device=work.device)
    masked = shown.bool()

    def run() -> Tensor:
        with work.autocast():
            return layer(x, attention_mask=shown, is_index_masked=masked, is_index_global_attn=masked, is_global_attn=False)[0]

    return Side(layer, x, run)


def bigbird(work: Work, kept: list[Tensor] | None = None) -> Side:
    """The layer of transformers: `BigBirdAttention`, which draws the same random blocks at each call; they are added to `kept`."""
    transformers = need("transformers")
    big_bird = transformers.models.big_bird.modeling_big_bird
    config = transformers.BigBirdConfig(
        hidden_size=work.hidden, num_attention_heads=work.heads, block_size=work.reach, num_random_blocks=3,
        max_position_embeddings=work.length, layer_norm_eps=1e-5, attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0,
    )  # fmt: skip
    layer = big_bird.BigBirdAttention(config, seed=0)
    layer.load_state_dict(to_theirs(RULES, _layer(work).state_dict()))
    layer.to(work.device).train()  # when it evaluates it sees no random blocks
    if kept is not None:
        gather = layer.self.torch_gather_b2
        layer.self.torch_gather_b2 = lambda blocks, places: (kept.append(places), gather(blocks, places))[1]
    x = work.input()
    shown = torch.ones(1, work.length, device=work.device)
    blocks, band, rows, columns = big_bird.BigBirdModel.create_masks_for_block_sparse_attn(shown, work.reach)

    def run() -> Tensor:
        with work.autocast():
            return layer(x, band_mask=band, from_mask=rows, to_mask=columns, from_blocked_mask=blocks, to_blocked_mask=blocks)[0]

    return Side(layer, x, run)


def block_mask(work: Work) -> Mask:
    """The blocks that BigBird's layer reads."""
    kept: list[Tensor] = []
    with torch.no_grad():
        bigbird(work, kept).run()
    drawn = kept[0][0].cpu()  # [H, n - 2, 3], of all blocks but the first and the last
    n = work.length // work.reach
    near = torch.ones(n, n, dtype=torch.bool).triu(-1).tril(1)
    near[:, [0, -1]] = True
    near[[0, -1]] = True
    table = near.repeat(work.heads, 1, 1)
    table[:, 1:-1].scatter_(2, drawn, torch.ones_like(drawn, dtype=torch.bool))
    return Mask(blocks=Layout(table, work.reach))


def window_mask(work: Work) -> Mask:
    """As far as the window reaches."""
    return Mask(window=(work.reach, work.reach))


def agree(work: Work, mask: Callable[[Work], Mask], peer: Callable[[Work], Side]) -> Agreement:
    """Outputs, and gradients of the input, relative to the largest number of each."""
    sides = [ours(work, mask(work)), peer(work)]
    outputs = [step(s) for s in sides]
    gradients = [cast(Tensor, s.x.grad) for s in sides]
    apart = max(((a - b).abs().max() / b.abs().max()).item() for a, b in (outputs, gradients))
    return Agreement("output and input gradient, largest difference, relative", apart, TOLERANCE if work.device == "cpu" else 2e-3)


def cases(options: Options) -> Cases:
    """Growing lengths at one window; block tables; attention by distance over a memory."""
    options.peer("attention", PEERS)
    small: dict[str, Any] = {"hidden": 32, "heads": 2} if options.quick else {}
    for length in (64, 128) if options.quick else (1024, 2048, 4096, 8192, 16384):
        yield window_case(Work(length, 8 if options.quick else 256, device=options.device, **small))
    for length in (128,) if options.quick else (4096, 16384):
        yield block_case(Work(length, 8 if options.quick else 64, device=options.device, **small))
    yield from relative.cases(options)


def window_case(work: Work) -> Case:
    """One layer of window attention beside Longformer's; compared in fp32, timed as asked for."""
    return _case(work, f"window attention, {work.length} tokens", f"{work.reach} seen to each side", window_mask, "Longformer", theirs)


def block_case(work: Work) -> Case:
    """One layer of attention by a block table beside BigBird's; compared in fp32, timed as asked for."""
    seen = f"blocks of {work.reach}: 3 near, 3 random, 2 global"
    return _case(work, f"block table, {work.length} tokens", seen, block_mask, "BigBird", bigbird)


def _case(work: Work, name: str, seen: str, mask: Callable[[Work], Mask], peer_name: str, peer: Callable[[Work], Side]) -> Case:
    sides = (
        Contender("polymodal", partial(_masked, work, mask), step),
        Contender(f"transformers {peer_name}", partial(peer, work), step),
        Contender("polymodal, full attention", partial(ours, work, Mask()), step, same_work=False),
    )
    kind = str(work.dtype).removeprefix("torch.")
    about = f"one layer, {work.length} tokens, {seen}, {kind}, forward and backward"
    return Case(name, about, "tokens", work.length, sides, partial(agree, replace(work, dtype=torch.float32), mask, peer),
                layer_flops(work, seen_pairs(mask(work), work)), kind)


def seen_pairs(mask: Mask, work: Work) -> float:
    """Pairs of a query and a key that it sees, of one sequence: the mean over the heads."""
    if mask.blocks is not None:
        return float(mask.blocks.table.float().sum()) / work.heads * work.reach**2
    return work.length * (2 * work.reach + 1) - work.reach * (work.reach + 1)


def layer_flops(work: Work, pairs: float) -> float:
    """Of one layer on one sequence, forward and backward: the four projections, and two products for each pair; biases and norms aside."""
    return 3.0 * (8 * work.length * work.hidden**2 + 4 * pairs * work.hidden)


def _masked(work: Work, mask: Callable[[Work], Mask]) -> Side:
    return ours(work, mask(work))


def gpu_cases(options: Options) -> Cases:
    """A layer of Longformer-base at 4096 and 16384 tokens."""
    if options.quick:
        yield window_case(Work(64, 8, hidden=32, heads=2, device=options.device))
        return
    for length in (4096, 16384):
        yield replace(window_case(Work(length, 256, device=options.device, dtype=torch.bfloat16)), limit=40.0)
