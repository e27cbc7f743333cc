"""Losses as sums over targets; the loop divides by the global number of targets."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100
"""The label that counts for nothing."""

CHUNK_LOGITS = 1 << 24
"""Logits that `linear_cross_entropy_sum` holds at a time by default (64 MiB in fp32)."""


def at_least_fp32(x: Tensor) -> Tensor:
    """Half-precision numbers as fp32, others as they are: losses are never summed in half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def cross_entropy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """The summed cross-entropy of logits [N, V] against targets [N]; label -100 is ignored. In fp32 at least."""
    return F.cross_entropy(at_least_fp32(logits), targets, ignore_index=IGNORE, reduction="sum")


def accuracy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """How many targets [N] are the largest logit of their row [N, V]; label -100 is ignored."""
    return ((logits.argmax(-1) == targets) & (targets != IGNORE)).sum()


def linear_cross_entropy_sum(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int | None = None) -> Tensor:
    """`cross_entropy_sum(hidden @ weight.T + bias, targets)` without ever holding all logits.

    The gradients are computed in the forward pass, chunk by chunk, while the logits are there; they are
    those of autograd, in the same three matrix products.

    Args:
        hidden: [N, D].
        weight: [V, D].
        bias: [V] or None.
        targets: [N]; label -100 is ignored.
        chunk: rows at a time; by default as many as make `CHUNK_LOGITS` logits.

    Returns:
        The sum, a scalar in fp32 (fp64 for fp64 inputs).
    """
    rows = chunk or max(1, CHUNK_LOGITS // weight.shape[0])
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        total = _LinearCrossEntropy.apply(hidden, weight, bias, targets, rows, torch.is_grad_enabled())
    assert isinstance(total, Tensor)
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, rows: int, learning: bool) -> Tensor:
        wide = torch.float32 if hidden.dtype in (torch.float16, torch.bfloat16) else hidden.dtype
        needs_hidden, needs_weight, needs_bias = (learning and needs for needs in ctx.needs_input_grad[:3])
        count, chunks = hidden.shape[0], max(1, -(-hidden.shape[0] // rows))
        rows = -(-count // chunks)  # chunks of nearly one size
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        # One chunk writes its gradient, several add theirs up in fp32.
        grad_weight = torch.zeros_like(weight, dtype=wide) if needs_weight and chunks > 1 else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and needs_bias else None
        total = hidden.new_zeros((), dtype=wide)
        for start in range(0, count, max(rows, 1)):
            x, target = hidden[start : start + rows], targets[start : start + rows]
            log_p = F.linear(x, weight, bias).to(wide).log_softmax(-1)
            counted = (target != IGNORE)[:, None]
            index = target.clamp(min=0)[:, None]
            total -= (log_p.gather(1, index) * counted).sum()
            if not (needs_hidden or needs_weight or needs_bias):
                continue
            gradient = log_p.exp_().scatter_add_(1, index, log_p.new_full((1, 1), -1.0).expand_as(index))
            if counted.device.type != "cpu" or not bool(counted.all()):  # on a GPU, looking costs more than doing
                gradient.mul_(counted)
            if grad_bias is not None:
                grad_bias += gradient.sum(0)
            gradient = gradient.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(gradient, weight, out=grad_hidden[start : start + rows])
            if grad_weight is None:
                grad_weight = gradient.T @ x if needs_weight else None
            elif grad_weight.dtype == gradient.dtype:
                grad_weight.addmm_(gradient.T, x)
            else:
                grad_weight += gradient.T @ x
        if needs_weight and grad_weight is None:
            grad_weight = torch.zeros_like(weight)
        ctx.gradients = (grad_hidden, grad_weight, grad_bias)
        ctx.types = (weight.dtype, bias.dtype if bias is not None else None)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grads
        assert ctx.gradients, "this loss gives its gradient once: do not retain its graph"
        grad_hidden, grad_weight, grad_bias = ctx.gradients
        ctx.gradients = ()  # the memory is free as soon as the caller has used it
        weight_type, bias_type = ctx.types
        return (
            None if grad_hidden is None else grad_hidden.mul_(grad),
            None if grad_weight is None else grad_weight.mul_(grad).to(weight_type),
            None if grad_bias is None else grad_bias.mul_(grad).to(bias_type),
            None,
            None,
            None,
        )


def contrastive_sum(
    image: Tensor, text: Tensor, scale: Tensor, all_image: Tensor | None = None, all_text: Tensor | None = None, offset: int = 0
) -> Tensor:
    """The symmetric contrastive loss of CLIP, summed over this rank's pairs.

    Args:
        image: unit vectors [N, D] of this rank.
        text: unit vectors [N, D] of this rank, row for row.
        scale: the inverse temperature, a scalar (the exponential of the learned logit scale).
        all_image: unit vectors [M, D] of all ranks; by default `image`.
        all_text: unit vectors [M, D] of all ranks; by default `text`.
        offset: the row of this rank's first pair among all.

    Returns:
        The sum over N of the mean of both directions.
    """
    all_image = image if all_image is None else all_image
    all_text = text if all_text is None else all_text
    targets = torch.arange(offset, offset + image.shape[0], device=image.device)
    to_text = cross_entropy_sum(scale * image @ all_text.T, targets)
    to_image = cross_entropy_sum(scale * text @ all_image.T, targets)
    return (to_text + to_image) / 2
