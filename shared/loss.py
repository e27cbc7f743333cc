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

DEVICE_CHUNK_LOGITS = 1 << 27
"""The same on a GPU (512 MiB): every chunk reads and writes the whole gradient of the weight, and launches its own kernels."""

CACHED_LOGITS = 1 << 19
"""Of these, how many a CPU makes into gradients at a time (2 MiB in fp32)."""


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
        chunk: rows at a time; by default as many as make `CHUNK_LOGITS` logits (on a GPU `DEVICE_CHUNK_LOGITS`).

    Returns:
        The sum, a scalar in fp32 (fp64 for fp64 inputs).
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        total = _LinearCrossEntropy.apply(hidden.to(dtype), weight, bias, targets, chunk, torch.is_grad_enabled())
    assert isinstance(total, Tensor)
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    """In the type of `hidden`. The gradients of weight and bias are summed in fp32 at least, whatever the products' type."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int | None,
                learning: bool) -> Tensor:
        wide = torch.float32 if hidden.dtype in (torch.float16, torch.bfloat16) else hidden.dtype
        needs_hidden, needs_weight, needs_bias = (learning and needs for needs in ctx.needs_input_grad[:3])
        w, b = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
        count, vocabulary = hidden.shape[0], weight.shape[0]
        most = chunk or max(1, (CHUNK_LOGITS if hidden.device.type == "cpu" else DEVICE_CHUNK_LOGITS) // vocabulary)
        chunks = max(1, -(-count // most))
        rows = max(1, -(-count // chunks))  # chunks of nearly one size
        # A CPU goes over what its cache holds; a GPU, and a compiler, want everything at once.
        cached = hidden.device.type == "cpu" and not torch.compiler.is_compiling()
        block = max(1, CACHED_LOGITS // vocabulary) if cached else rows
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.empty_like(weight, dtype=wide) if needs_weight and count else None
        grad_bias = torch.zeros_like(weight[:, 0], dtype=wide) if needs_bias else None
        total = hidden.new_zeros((), dtype=wide)
        for start in range(0, count, rows):
            x, target = hidden[start : start + rows], targets[start : start + rows]
            logits = F.linear(x, w, b)  # and then the gradient, in the same place
            counted = (target != IGNORE)[:, None]
            index = target.clamp(min=0)[:, None]
            some_ignored = hidden.device.type != "cpu" or not bool(counted.all())  # on a GPU, looking costs more than doing
            for first in range(0, x.shape[0], block):
                part = slice(first, first + block)
                log_p = logits[part].log_softmax(-1, dtype=wide)
                total -= (log_p.gather(1, index[part]) * counted[part]).sum()
                if not (needs_hidden or needs_weight or needs_bias):
                    continue
                gradient = log_p.exp_().scatter_add_(1, index[part], log_p.new_full((1, 1), -1.0).expand_as(index[part]))
                if some_ignored:
                    gradient.mul_(counted[part])
                if grad_bias is not None:
                    grad_bias += gradient.sum(0)
                logits[part] = gradient
            if grad_hidden is not None:
                torch.mm(logits, w, out=grad_hidden[start : start + rows])
            if grad_weight is not None:
                _add_product(grad_weight, logits.T, x, first=start == 0, cached=cached)
        ctx.gradients = (grad_hidden, torch.zeros_like(weight) if needs_weight and grad_weight is None else grad_weight, grad_bias)
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


def _add_product(total: Tensor, a: Tensor, b: Tensor, *, first: bool, cached: bool) -> None:
    """`total += a @ b`, or `=` where it is the first; `total` may be wider than the factors."""
    if total.dtype == a.dtype:
        torch.addmm(total, a, b, beta=0 if first else 1, out=total)
        return
    rows = max(1, CACHED_LOGITS * 8 // total.shape[1]) if cached else total.shape[0]
    for start in range(0, total.shape[0], rows):
        there, product = total[start : start + rows], a[start : start + rows] @ b
        if first:
            there.copy_(product)
        else:
            there += product


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
