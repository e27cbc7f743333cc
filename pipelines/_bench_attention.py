"""Window attention, forward and backward, beside transformers' Longformer layer on the same weights.

A layer is projections, attention, output projection and post-norm residual, 12 heads of 64, one sequence,
a window of 256 tokens to each side (Longformer's `attention_window` 512), no global tokens, no dropout.
Full attention (SDPA, the same layer) runs beside them for orientation; it computes something else.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..shared.attention import Attention
from ..shared.block import LayerNorm, Residual
from ..shared.convert import Rule, affine, fused, to_theirs
from ..shared.embed import normal_
from ..shared.mask import Mask
from . import _bench_relative
from ._bench_machine import need
from .bench import Agreement, Case, Cases, Contender, Options

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
    """Tokens seen to each side."""
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
        plan = mask.plan(x.shape[0], x.shape[1], x.shape[1], x.device)
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


def ours(work: Work, window: bool = True) -> Side:
    """Our layer, with the window or seeing everything."""
    layer, x = _layer(work).to(work.device), work.input()
    mask = Mask(window=(work.reach, work.reach)) if window else Mask()

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


def agree(work: Work) -> Agreement:
    """Outputs, and gradients of the input, relative to the largest number of each."""
    sides = [ours(work), theirs(work)]
    outputs = [step(s) for s in sides]
    gradients = [cast(Tensor, s.x.grad) for s in sides]
    apart = max(((a - b).abs().max() / b.abs().max()).item() for a, b in (outputs, gradients))
    return Agreement("output and input gradient, largest difference, relative", apart, TOLERANCE if work.device == "cpu" else 2e-3)


def cases(options: Options) -> Cases:
    """Growing lengths at one window; attention by distance over a memory."""
    options.peer("attention", PEERS)
    small: dict[str, Any] = {"hidden": 32, "heads": 2} if options.quick else {}
    for length in (64, 128) if options.quick else (1024, 2048, 4096, 8192):
        yield window_case(Work(length, 8 if options.quick else 256, device=options.device, **small))
    yield from _bench_relative.cases(options)


def window_case(work: Work) -> Case:
    """One layer of window attention beside Longformer's; compared in fp32, timed as asked for."""
    sides = (
        Contender("polymodal", partial(ours, work), step),
        Contender("transformers Longformer", partial(theirs, work), step),
        Contender("polymodal, full attention", partial(ours, work, False), step, same_work=False),
    )
    kind = str(work.dtype).removeprefix("torch.")
    about = f"one layer, {work.length} tokens, {work.reach} seen to each side, {kind}, forward and backward"
    agreed = partial(agree, replace(work, dtype=torch.float32))
    return Case(f"window attention, {work.length} tokens", about, "tokens", work.length, sides, agreed, precision=kind)


def gpu_cases(options: Options) -> Cases:
    """A layer of Longformer-base at 4096 and 16384 tokens."""
    if options.quick:
        yield window_case(Work(64, 8, hidden=32, heads=2, device=options.device))
        return
    for length in (4096, 16384):
        yield replace(window_case(Work(length, 256, device=options.device, dtype=torch.bfloat16)), limit=40.0)
