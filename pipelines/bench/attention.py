"""Windows and block tables, forward and backward, beside transformers' Longformer and BigBird layers on the same weights.

A layer is projections, attention, output projection and post-norm residual, 12 heads of 64, one sequence, no dropout. Longformer: a
window of 256 tokens to each side (its `attention_window` 512), no global tokens. BigBird: blocks of 64, 3 in the window, 3 random (those
that its layer draws), 2 global. Full attention (SDPA, the same layer) runs beside them for orientation; it computes something else.
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
from ...shared.attention.mask import Mask
from ...shared.block import LayerNorm, Residual
from ...shared.convert import Rule, affine, fused, to_theirs
from ...shared.embed import normal_
from ...text._random_blocks import transformers_training
from . import hashed, relative
from .case import Agreement, Case, Cases, Contender, Options
from .layer import LayerRun, step
from .machine import need

PEERS = ("transformers",)
TOLERANCE = 1e-4

RULES: tuple[Rule, ...] = (
    *fused(tuple(f"self.{n}" for n in ("query", "key", "value")), "attention.qkv"),
    *affine("output.dense", "attention.out"),
    *affine("output.LayerNorm", "residual.norm"),
)


@dataclass(frozen=True)
class AttentionSetup:
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


def _layer(setup: AttentionSetup) -> Layer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = Layer(setup.hidden, setup.heads)
        normal_(layer)
        for parameter in layer.parameters():
            if parameter.ndim < 2:
                parameter.data.add_(0.02 * torch.randn_like(parameter))
    return layer


def ours(setup: AttentionSetup, mask: Mask) -> LayerRun:
    """Our layer with this mask."""
    layer, x = _layer(setup).to(setup.device), setup.input()

    def run() -> Tensor:
        with setup.autocast():
            return layer(x, mask)

    return LayerRun(layer, x, run)


def theirs(setup: AttentionSetup) -> LayerRun:
    """The layer of transformers: `LongformerAttention`."""
    transformers = need("transformers")
    config = transformers.LongformerConfig(
        hidden_size=setup.hidden, num_attention_heads=setup.heads, attention_window=[2 * setup.reach], layer_norm_eps=1e-5,
        attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0,
    )
    layer = transformers.models.longformer.modeling_longformer.LongformerAttention(config)
    state = to_theirs(RULES, _layer(setup).state_dict())
    found = layer.load_state_dict(state, strict=False)
    assert not found.unexpected_keys and all("_global" in k for k in found.missing_keys), found
    layer.to(setup.device)
    x = setup.input()
    shown = torch.zeros(1, setup.length, device=setup.device)
    masked = shown.bool()

    def run() -> Tensor:
        with setup.autocast():
            return layer(x, attention_mask=shown, is_index_masked=masked, is_index_global_attn=masked, is_global_attn=False)[0]

    return LayerRun(layer, x, run)


def bigbird(setup: AttentionSetup) -> LayerRun:
    """The layer of transformers: `BigBirdAttention`, which draws the same random blocks at each call."""
    transformers = need("transformers")
    big_bird = transformers.models.big_bird.modeling_big_bird
    config = transformers.BigBirdConfig(
        hidden_size=setup.hidden, num_attention_heads=setup.heads, block_size=setup.reach, num_random_blocks=3,
        max_position_embeddings=setup.length, layer_norm_eps=1e-5, attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0,
    )  # fmt: skip
    layer = big_bird.BigBirdAttention(config, seed=0)
    layer.load_state_dict(to_theirs(RULES, _layer(setup).state_dict()))
    layer.to(setup.device).train()  # when it evaluates it sees no random blocks
    x = setup.input()
    shown = torch.ones(1, setup.length, device=setup.device)
    blocks, band, rows, columns = big_bird.BigBirdModel.create_masks_for_block_sparse_attn(shown, setup.reach)

    def run() -> Tensor:
        with setup.autocast():
            return layer(x, band_mask=band, from_mask=rows, to_mask=columns, from_blocked_mask=blocks, to_blocked_mask=blocks)[0]

    return LayerRun(layer, x, run)


def block_mask(setup: AttentionSetup) -> Mask:
    """The blocks that BigBird's layer reads."""
    return Mask(blocks=transformers_training(setup.length // setup.reach, setup.reach, 3, 0, setup.heads, setup.length))


def window_mask(setup: AttentionSetup) -> Mask:
    """As far as the window reaches."""
    return Mask(window=(setup.reach, setup.reach))


def agree(setup: AttentionSetup, mask: Callable[[AttentionSetup], Mask], peer: Callable[[AttentionSetup], LayerRun]) -> Agreement:
    """Outputs, and gradients of the input, relative to the largest number of each."""
    sides = [ours(setup, mask(setup)), peer(setup)]
    outputs = [step(s) for s in sides]
    gradients = [cast(Tensor, s.x.grad) for s in sides]
    apart = max(((a - b).abs().max() / b.abs().max()).item() for a, b in (outputs, gradients))
    return Agreement("output and input gradient, largest difference, relative", apart, TOLERANCE if setup.device == "cpu" else 2e-3)


def cases(options: Options) -> Cases:
    """Growing lengths at one window; block tables; attention by hashes; attention by distance over a memory."""
    options.peer("attention", PEERS)
    small: dict[str, Any] = {"hidden": 32, "heads": 2} if options.quick else {}
    for length in (64, 128) if options.quick else (1024, 2048, 4096, 8192, 16384):
        yield window_case(AttentionSetup(length, 8 if options.quick else 256, device=options.device, **small))
    for length in (128,) if options.quick else (4096, 16384):
        yield block_case(AttentionSetup(length, 8 if options.quick else 64, device=options.device, **small))
    yield from hashed.cases(options)
    yield from relative.cases(options)


def window_case(setup: AttentionSetup) -> Case:
    """One layer of window attention beside Longformer's; compared in fp32, timed as asked for."""
    return _case(setup, f"window attention, {setup.length} tokens", f"{setup.reach} seen to each side", window_mask, "Longformer", theirs)


def block_case(setup: AttentionSetup) -> Case:
    """One layer of attention by a block table beside BigBird's; compared in fp32, timed as asked for."""
    seen = f"blocks of {setup.reach}: 3 near, 3 random, 2 global"
    return _case(setup, f"block table, {setup.length} tokens", seen, block_mask, "BigBird", bigbird)


def _case(setup: AttentionSetup, name: str, seen: str, mask: Callable[[AttentionSetup], Mask], peer_name: str,
          peer: Callable[[AttentionSetup], LayerRun]) -> Case:
    sides = (
        Contender("polymodal", partial(_masked, setup, mask), step),
        Contender(f"transformers {peer_name}", partial(peer, setup), step),
        Contender("polymodal, full attention", partial(ours, setup, Mask()), step, same_work=False),
    )
    kind = str(setup.dtype).removeprefix("torch.")
    about = f"one layer, {setup.length} tokens, {seen}, {kind}, forward and backward"
    return Case(name, about, "tokens", setup.length, sides, partial(agree, replace(setup, dtype=torch.float32), mask, peer),
                layer_flops(setup, seen_pairs(mask(setup), setup)), kind)


def seen_pairs(mask: Mask, setup: AttentionSetup) -> float:
    """Pairs of a query and a key that it sees, of one sequence: the mean over the heads."""
    if mask.blocks is not None:
        return float(mask.blocks.counts.float().sum()) / setup.heads * setup.reach**2
    return setup.length * (2 * setup.reach + 1) - setup.reach * (setup.reach + 1)


def layer_flops(setup: AttentionSetup, pairs: float) -> float:
    """Of one layer on one sequence, forward and backward: the four projections, and two products for each pair; biases and norms aside."""
    return 3.0 * (8 * setup.length * setup.hidden**2 + 4 * pairs * setup.hidden)


def _masked(setup: AttentionSetup, mask: Callable[[AttentionSetup], Mask]) -> LayerRun:
    return ours(setup, mask(setup))


def gpu_cases(options: Options) -> Cases:
    """A layer of Longformer-base at 4096 and 16384 tokens."""
    if options.quick:
        yield window_case(AttentionSetup(64, 8, hidden=32, heads=2, device=options.device))
        return
    for length in (4096, 16384):
        yield replace(window_case(AttentionSetup(length, 256, device=options.device, dtype=torch.bfloat16)), limit=40.0)
