"""How far the attention scores and the states of two networks are apart, over packed texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ..shared.attention.plan import Seen
from ..shared.loss import at_least_fp32
from ..shared.packed import starts


def score_distance_sum(ours: Seen, theirs: Seen, lengths: Sequence[int]) -> Tensor:
    """The squared differences of two layers' scores before the softmax, summed over the pairs of tokens of each text, mean over the heads.

    Scores of one text and all heads are held at a time; the gradient is computed with them.

    Args:
        ours: q and k [1, H, T, d] of packed texts.
        theirs: the same of the other network, of any width d; it has no gradient.
        lengths: of the texts, their sum T.

    Returns:
        A scalar in fp32 (fp64 for fp64 inputs).
    """
    with torch.autocast(ours.q.device.type, enabled=False):  # differences of numbers that were rounded to half precision would be noise
        q, k = at_least_fp32(ours.q) * ours.scale, at_least_fp32(ours.k)
        other_q, other_k = (x.detach().to(q.dtype) for x in (theirs.q, theirs.k))
        return cast("Tensor", _ScoreDistance.apply(q, k, other_q * theirs.scale, other_k, tuple(lengths))) / q.shape[1]


class _ScoreDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, other_q: Tensor, other_k: Tensor, lengths: tuple[int, ...]) -> Tensor:
        total, d_q, d_k = q.new_zeros(()), torch.empty_like(q), torch.empty_like(k)
        for start, length in zip(starts(lengths), lengths, strict=True):
            place = slice(start, start + length)
            apart = q[:, :, place] @ k[:, :, place].transpose(-1, -2)
            apart -= other_q[:, :, place] @ other_k[:, :, place].transpose(-1, -2)
            total += apart.square().sum()
            d_q[:, :, place] = apart @ k[:, :, place]
            d_k[:, :, place] = apart.transpose(-1, -2) @ q[:, :, place]
        ctx.save_for_backward(d_q, d_k)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        d_q, d_k = ctx.saved_tensors
        return 2 * gradients[0] * d_q, 2 * gradients[0] * d_k, None, None, None


def state_distance_sum(ours: Tensor, theirs: Tensor) -> Tensor:
    """The squared differences of states [..., T, D], summed over all but the last dimension, mean over that; in fp32 at least."""
    wide = at_least_fp32(ours)
    return (wide - theirs.to(wide.dtype)).square().mean(-1).sum()
