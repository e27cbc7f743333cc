"""SigLIP's loss: whether a picture and a text belong together is a question of its own for each of the N x N pairs of a batch.

Zhai, Mustafa, Kolesnikov, Beyer, "Sigmoid Loss for Language Image Pre-Training", 2023 (https://arxiv.org/abs/2303.15343), with the
implementation of its section 3.3: texts go from rank to rank, and each rank compares its pictures with those that are there. So no rank
ever holds the features of all, nor more logits than `CHUNK_LOGITS`. The gradient is computed in the same round: that of a text goes with
it, and is whole when it comes home.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..shared.dist import pass_on, rank
from ..shared.loss import CHUNK_LOGITS

EQUAL = 1e-6
"""Cosines that differ by less are equal: those of two equal captions, but for rounding."""


class SigmoidLoss(NamedTuple):
    """The loss over this rank's pictures and the texts of all ranks."""

    total: Tensor
    """Minus the sum of the log-probabilities of all N * M answers, a scalar."""
    image_to_text: Tensor
    """How many of this rank's pictures have no text with a higher cosine than their own; equal ones are right."""
    text_to_image: Tensor
    """The same of this rank's texts."""


def sigmoid_sum(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, sizes: list[int]) -> SigmoidLoss:
    """Compare this rank's pictures with the texts of all ranks; every rank must call it.

    The gradients of the ranks add up to that of one process with the whole batch, where all ranks multiply the loss by the same number.

    Args:
        image: unit vectors [N, D] in fp32 or fp64.
        text: unit vectors [N, D], row for row.
        scale: the inverse temperature, a scalar.
        bias: is added to all logits, a scalar.
        sizes: N of every rank (`first_dims`).
    """
    with torch.autocast(image.device.type, enabled=False):
        return SigmoidLoss(*_SigmoidLoss.apply(image, text, scale, bias, sizes, torch.is_grad_enabled()))  # type: ignore[misc]


class _SigmoidLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, sizes: list[int],
                learning: bool) -> tuple[Tensor, Tensor, Tensor]:
        count, width = image.shape
        total, grad_scale, grad_bias = image.new_zeros(3).unbind()
        grad_image, beaten = torch.zeros_like(image), torch.zeros(count, dtype=torch.bool, device=image.device)
        own = (image * text).sum(-1)
        # what travels: texts, the gradient of each, the cosine of its own picture, whether another picture has a higher one
        parcel = image.new_zeros(max(sizes), 2 * width + 2)
        parcel[:count, :width], parcel[:count, -2] = text, own
        for step in range(len(sizes)):
            there = parcel[: sizes[(rank() - step) % len(sizes)]]
            texts, grad_texts, theirs, lost = there[:, :width], there[:, width:-2], there[:, -2], there[:, -1]
            rows = max(1, CHUNK_LOGITS // len(there))
            for low in range(0, count, rows):
                part = slice(low, low + rows)
                cosines = image[part] @ texts.T
                if step == 0:
                    cosines.diagonal(low).copy_(own[part])
                beaten[part] |= (cosines > own[part, None] + EQUAL).any(1)
                lost.copy_(torch.maximum(lost, (cosines > theirs + EQUAL).any(0).to(lost.dtype)))
                logits = cosines * scale + bias
                if step == 0:
                    logits.diagonal(low).neg_()  # the answer is yes: from here on, of what is wrong
                total -= F.logsigmoid(-logits).sum()
                if not learning:
                    continue
                slope = logits.sigmoid_()
                if step == 0:
                    slope.diagonal(low).neg_()
                grad_image[part] += scale * (slope @ texts)
                grad_texts += scale * (slope.T @ image[part])
                grad_scale += (slope * cosines).sum()
                grad_bias += slope.sum()
            parcel = pass_on(parcel)
        # this rank's texts are back
        ctx.gradients = (grad_image, parcel[:count, width:-2].clone(), grad_scale, grad_bias)
        right = (count - beaten.sum(), count - parcel[:count, -1].sum().long())
        ctx.mark_non_differentiable(*right)
        return total, *right

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (*(gradient * grads[0] for gradient in ctx.gradients), None, None)
