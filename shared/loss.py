"""Losses as sums over targets; the loop divides by the global number of targets."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SoftmaxGradient = Callable[[Tensor, Tensor], Tensor]
"""(logits [N, V], targets [N, ...]) -> the summed loss; the logits become the gradient."""

IGNORE = -100
"""The label that counts for nothing."""

CHUNK_LOGITS = 1 << 24
"""Logits that `linear_cross_entropy_sum` holds at a time by default (64 MiB in fp32)."""

DEVICE_CHUNK_LOGITS = 1 << 27
"""The same on a GPU (512 MiB): every chunk reads and writes the whole gradient of the weight, and launches its own kernels."""

CACHED_LOGITS = 1 << 19
"""Of these, how many a CPU makes into gradients at a time (2 MiB in fp32)."""

ROW_LOGITS = 64
"""Rows of logits begin at multiples of this number of elements: with an odd vocabulary (50257) products of unaligned rows are slower."""


def at_least_fp32(x: Tensor) -> Tensor:
    """Half-precision numbers as fp32, others as they are: losses are never summed in half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def cross_entropy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """The summed cross-entropy of logits [N, V] against targets [N]; label -100 is ignored. In fp32 at least."""
    return F.cross_entropy(at_least_fp32(logits), targets, ignore_index=IGNORE, reduction="sum")


def perplexity(mean: float) -> float:
    """The exponential of a mean cross-entropy in nats; above 700 it would be no number any more."""
    return math.exp(min(mean, 700.0))


def accuracy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """How many targets [N] are the largest logit of their row [N, V]; label -100 is ignored."""
    return ((logits.argmax(-1) == targets) & (targets != IGNORE)).sum()


def softmax_gradient_(logits: Tensor, targets: Tensor) -> Tensor:
    """The summed cross-entropy of logits [N, V] against targets [N], a scalar in fp32 at least; the logits become its gradient."""
    if torch.compiler.is_compiling():
        return _fusible_softmax_gradient_(logits, targets)
    if logits.device.type != "cpu" or type(logits) is not Tensor:  # a fake tensor (`polymodal plan`) is in no cache
        return _softmax_gradient_(logits, targets, some_ignored=True)  # looking would cost more than doing
    total, some_ignored = logits.new_zeros((), dtype=_wide(logits)), bool((targets == IGNORE).any())
    rows = max(1, CACHED_LOGITS // logits.shape[1])  # a CPU goes over what its cache holds, a GPU over everything at once
    for part, target in zip(logits.split(rows), targets.split(rows), strict=True):
        total += _softmax_gradient_(part, target, some_ignored)
    return total


def _softmax_gradient_(logits: Tensor, targets: Tensor, some_ignored: bool) -> Tensor:
    log_p = logits.log_softmax(-1, dtype=_wide(logits))
    counted, index = (targets != IGNORE)[:, None], targets.clamp(min=0)[:, None]
    total = -(log_p.gather(1, index) * counted).sum()
    gradient = log_p.exp_().scatter_add_(1, index, log_p.new_full((1, 1), -1.0).expand_as(index))
    logits.copy_(gradient.mul_(counted) if some_ignored else gradient)
    return total


def _fusible_softmax_gradient_(logits: Tensor, targets: Tensor) -> Tensor:
    """The same without a scatter, at which a compiler would write everything down in fp32: two passes over the logits do it all."""
    log_p = logits.log_softmax(-1, dtype=_wide(logits))
    hit = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    logits.copy_((log_p.exp() - hit.to(log_p.dtype)) * (targets != IGNORE)[:, None])
    return -torch.where(hit, log_p, 0.0).sum()


def _wide(x: Tensor) -> torch.dtype:
    """What is wide enough for sums."""
    return torch.promote_types(x.dtype, torch.float32)


def linear_cross_entropy_sum(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int | None = None,
                             soften: SoftmaxGradient = softmax_gradient_) -> Tensor:
    """`cross_entropy_sum(hidden @ weight.T + bias, targets)` without ever holding all logits.

    The gradients are computed in the forward pass, chunk by chunk, while the logits are there; they are
    those of autograd, in the same three matrix products.

    Args:
        hidden: [N, D].
        weight: [V, D].
        bias: [V] or None.
        targets: [N]; label -100 is ignored. Another `soften` may read anything with a row for each of the N.
        chunk: rows at a time; by default as many as make `CHUNK_LOGITS` logits (on a GPU `DEVICE_CHUNK_LOGITS`).
        soften: what goes over the logits: `softmax_gradient_`, or a compiled one.

    Returns:
        The sum, a scalar in fp32 (fp64 for fp64 inputs).
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        total = _LinearCrossEntropy.apply(hidden.to(dtype), weight, bias, targets, chunk, soften, torch.is_grad_enabled())
    assert isinstance(total, Tensor)
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    """In the type of `hidden`. The gradients of weight and bias are summed in fp32 at least, whatever the products' type."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int | None,
                soften: SoftmaxGradient, learning: bool) -> Tensor:
        needs_hidden, needs_weight, needs_bias = (learning and needs for needs in ctx.needs_input_grad[:3])
        w, b = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
        count, vocabulary = hidden.shape[0], weight.shape[0]
        most = chunk or max(1, (CHUNK_LOGITS if hidden.device.type == "cpu" else DEVICE_CHUNK_LOGITS) // vocabulary)
        chunks = max(1, -(-count // most))
        rows = max(1, -(-count // chunks))  # chunks of nearly one size, all in the same memory
        room = hidden.new_empty(min(rows, count), -(-vocabulary // ROW_LOGITS) * ROW_LOGITS)[:, :vocabulary]
        total = hidden.new_zeros((), dtype=_wide(hidden))
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.empty_like(weight, dtype=total.dtype) if needs_weight and count else None
        grad_bias = torch.zeros_like(weight[:, 0], dtype=total.dtype) if needs_bias else None
        for start in range(0, count, rows):
            x, target = hidden[start : start + rows], targets[start : start + rows]
            logits = room[: x.shape[0]]
            torch.mm(x, w.T, out=logits)
            if b is not None:
                logits += b
            total += soften(logits, target)  # the logits are their gradient now
            if grad_bias is not None:
                grad_bias += logits.sum(0, dtype=grad_bias.dtype)
            if grad_hidden is not None:
                torch.mm(logits, w, out=grad_hidden[start : start + rows])
            if grad_weight is not None:
                _add_product(grad_weight, logits.T, x, first=start == 0)
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
            None,
        )


def _add_product(total: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    """`total += a @ b`, or `=` where it is the first; `total` may be wider than the factors."""
    if total.dtype == a.dtype:
        torch.addmm(total, a, b, beta=0 if first else 1, out=total)
        return
    rows = max(1, CACHED_LOGITS * 8 // total.shape[1]) if total.device.type == "cpu" else total.shape[0]
    room = b.new_empty(min(rows, total.shape[0]), b.shape[1])
    for start in range(0, total.shape[0], rows):
        there = total[start : start + rows]
        product = torch.mm(a[start : start + rows], b, out=room[: there.shape[0]])
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
