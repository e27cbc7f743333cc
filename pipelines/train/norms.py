"""Batch norm with the statistics of all ranks (`sync_batchnorm`), so that ranks that share a batch compute what one of them would.

Ioffe, Szegedy, "Batch Normalization", 2015 (https://arxiv.org/abs/1502.03167). torch's `SyncBatchNorm` runs on GPUs alone; this runs
wherever the ranks talk, in one collective forward and one backward. Means and variances are put together in fp64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...shared import dist
from ...shared.loss import at_least_fp32

BatchNorm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def batch_norms(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The norms over the batch that learn from it: in training mode, so not those of a locked tower."""
    return ((name, m) for name, m in module.named_modules() if isinstance(m, BatchNorm) and m.training)


def synchronize_norms(module: nn.Module) -> None:
    """Let the batch norms of a module, which stay what they are otherwise, use the statistics of all ranks in training."""
    for _, norm in batch_norms(module):
        norm.forward = _Synchronized(cast("nn.BatchNorm2d", norm))  # type: ignore[method-assign]


class _Synchronized:
    def __init__(self, norm: nn.BatchNorm2d) -> None:
        self._norm, self._alone = norm, norm.forward

    def __call__(self, x: Tensor) -> Tensor:
        norm = self._norm
        if not norm.training:
            return self._alone(x)
        wide = at_least_fp32(x.detach())
        places = [d for d in range(x.dim()) if d != 1]
        variance, mean = torch.var_mean(wide, places, correction=0)
        mine, mean, variance = x.numel() // x.shape[1], mean.double(), variance.double()
        sums = dist.all_reduce_sum(torch.cat([mean * mine, (variance + mean.square()) * mine, mean.new_tensor([mine])]))
        mean, square = (sums[:-1] / sums[-1]).chunk(2)
        variance = (square - mean.square()).clamp_(min=0)
        if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked.add_(1)
            share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
            norm.running_var.lerp_((variance * (sums[-1] / (sums[-1] - 1))).to(norm.running_var.dtype), share)
        mean, variance = mean.to(wide.dtype), variance.to(wide.dtype)
        return cast("Tensor", _Normalize.apply(x, norm.weight, norm.bias, mean, variance, sums[-1], norm.eps))


class _Normalize(torch.autograd.Function):
    """Normalises by statistics of all ranks, which depend on the input of each; `count` is how many numbers they are of."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, count: Tensor,
                eps: float) -> Tensor:
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt(), count)
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, mean, scale, count = ctx.saved_tensors
        shape = [1, -1, *[1] * (x.dim() - 2)]
        places = [d for d in range(x.dim()) if d != 1]
        grad = at_least_fp32(grads[0])
        normed = (at_least_fp32(x) - mean.view(shape)) * scale.view(shape)
        of_bias, of_weight = grad.sum(places), (grad * normed).sum(places)
        sums = dist.all_reduce_sum(torch.cat([of_bias, of_weight]).double()) / count
        of_mean, of_scale = (s.to(grad.dtype).view(shape) for s in sums.chunk(2))
        factor = scale if weight is None else scale * weight
        grad_x = (grad - of_mean - normed * of_scale) * factor.view(shape)
        return grad_x.to(x.dtype), None if weight is None else of_weight, None if weight is None else of_bias, None, None, None, None
