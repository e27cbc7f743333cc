"""Attention by distance over a memory, forward and backward, beside the same formula in einsums on the same weights.

One layer of Transformer-XL's WikiText-103 model: 10 heads of 41, a segment and a memory of 150 tokens. The einsums look the vector of
each pair's distance up, as the paper writes the score; ours shifts the rows of one product. No library ships this layer any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor

from ...shared.attention.mask import Mask
from ...shared.attention.plan import Shape
from ...shared.attention.position import sinusoids
from ...text._relative import Relative, RelativeAttention
from .case import Agreement, Case, Cases, Contender, Options

TOLERANCE = 1e-4


@dataclass(frozen=True)
class RelativeSetup:
    """One layer on a batch of segments."""

    batch: int
    length: int
    memory: int
    hidden: int
    heads: int
    head_size: int
    device: str = "cpu"


@dataclass
class RelativeRun:
    """A layer, its input and its memory, and one way to compute it."""

    attention: RelativeAttention
    x: Tensor
    memory: Tensor
    distances: Tensor
    einsums: bool


def prepare(setup: RelativeSetup, einsums: bool) -> RelativeRun:
    """The same weights and numbers for both ways."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        attention = RelativeAttention(setup.hidden, setup.heads, setup.head_size)
        for parameter in attention.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        x = torch.randn(setup.batch, setup.length, setup.hidden)
        memory = torch.randn(setup.batch, setup.memory, setup.hidden)
    distances = sinusoids(torch.arange(setup.memory + setup.length - 1, -1, -1), setup.hidden, interleaved=False)
    return RelativeRun(attention.to(setup.device), x.to(setup.device).requires_grad_(), memory.to(setup.device),
                       distances.to(setup.device), einsums)


def step(run: RelativeRun) -> Tensor:
    """Forward and backward."""
    run.attention.zero_grad(set_to_none=True)
    run.x.grad = None
    out = (by_einsums if run.einsums else by_shift)(run)
    (0.5 * out.square().mean()).backward()
    return out.detach()


def by_shift(run: RelativeRun) -> Tensor:
    """Our layer; the plan is made anew, as a network does once for all its layers."""
    batch, length = run.x.shape[:2]
    past = run.memory.shape[1]
    plan = Relative(Mask(causal=True, offset=past), Shape(batch, length, past + length, run.x.device), positions=run.distances)
    return run.attention(run.x, plan, run.memory)


def by_einsums(run: RelativeRun) -> Tensor:
    """The score of section 3.3, term by term."""
    a, x = run.attention, run.x
    length, keys = x.shape[1], x.shape[1] + run.memory.shape[1]
    q, k, v = a.qkv(torch.cat([run.memory, x], 1)).unflatten(-1, (3, a.num_heads, a.head_size)).unbind(2)  # [B, L, H, d]
    q = q[:, -length:]
    i, j = torch.arange(keys - length, keys, device=x.device)[:, None], torch.arange(keys, device=x.device)
    r = a.r(run.distances).unflatten(-1, (a.num_heads, a.head_size)).flip(0)[(i - j).clamp(min=0)]  # [S, L, H, d]
    content = torch.einsum("bihd,bjhd->bhij", q + a.content_bias, k)
    position = torch.einsum("bihd,ijhd->bhij", q + a.position_bias, r)
    scores = ((content + position) * a.head_size**-0.5).masked_fill(j > i, float("-inf"))
    return a.out(torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).flatten(2))


def agree(setup: RelativeSetup) -> Agreement:
    """Outputs, and gradients of the input, relative to the largest number of each."""
    sides = [prepare(setup, einsums) for einsums in (False, True)]
    outputs = [step(s) for s in sides]
    gradients = [cast(Tensor, s.x.grad) for s in sides]
    apart = max(((a - b).abs().max() / b.abs().max()).item() for a, b in (outputs, gradients))
    return Agreement("output and input gradient, largest difference, relative", apart, TOLERANCE)


def cases(options: Options) -> Cases:
    """A segment with its memory."""
    setup = RelativeSetup(2, 8, 8, 32, 2, 16, options.device) if options.quick else RelativeSetup(4, 150, 150, 410, 10, 41, options.device)
    about = (f"one layer, {setup.batch} segments of {setup.length} tokens, a memory of {setup.memory}, {setup.heads} heads of "
             f"{setup.head_size}, float32, forward and backward")
    sides = (Contender("polymodal", partial(prepare, setup, False), step), Contender("einsums", partial(prepare, setup, True), step))
    tokens = setup.batch * setup.length
    yield Case("attention by distance over a memory", about, "tokens", tokens, sides, partial(agree, setup), flops(setup))


def flops(setup: RelativeSetup) -> float:
    """Useful operations, forward and backward: the projections of tokens, memory and distances, and three products for each pair seen."""
    width, keys = setup.heads * setup.head_size, setup.memory + setup.length
    pairs = setup.length * setup.memory + setup.length * (setup.length + 1) / 2
    projections = 2 * setup.hidden * width * (setup.batch * (2 * setup.length + 2 * keys) + keys)
    return 3.0 * (projections + 2 * 3 * setup.batch * width * pairs)
