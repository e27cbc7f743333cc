"""One layer of a transformer: attention, perhaps cross-attention, and a feed-forward net, each in a residual."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention
from .attention.cache import LayerCache
from .attention.plan import Plan

LayerNorm = nn.LayerNorm


class RMSNorm(nn.Module):
    """Scale by the root mean square, without mean or bias (T5). Statistics in fp32.

    Args:
        hidden_size: D.
        eps: added to the mean square.
    """

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [..., D], to the same type."""
        exact = x.dtype == self.weight.dtype and x.dtype in (torch.float32, torch.float64)
        if exact and x.device.type == "cpu" and not torch.compiler.is_compiling():
            return cast("Tensor", _RMSNorm.apply(x, self.weight, self.eps))
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class _RMSNorm(torch.autograd.Function):
    """`F.rms_norm` for CPUs, where torch composes it of a dozen passes: two and a half times as fast, forward and backward.

    With r = 1 / rms(x) and y = w x r: dx = r (w dy - x r mean(w dy x r)). The backward pass of LayerNorm, told that the mean is zero, gives
    r (w dy - mean(w dy) - x r mean(w dy x r)) in one pass, so r mean(w dy) is added to it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        r = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        return (x * r).mul_(weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, r = ctx.saved_tensors
        gradient, no_mean, wanted = gradients[0].contiguous(), torch.zeros_like(r), [*ctx.needs_input_grad[:2], False]
        d_x, d_weight, _ = torch.ops.aten.native_layer_norm_backward(gradient, x, weight.shape, no_mean, r, weight, None, wanted)
        if d_x is not None:
            mean = torch.mv(gradient.flatten(0, -2), weight).div_(weight.shape[0])
            d_x.addcmul_(mean.view(r.shape), r)
        return d_x, d_weight, None


def gelu_new(x: Tensor) -> Tensor:
    """GELU by its tanh formula (GPT-2)."""
    return F.gelu(x, approximate="tanh")


def quick_gelu(x: Tensor) -> Tensor:
    """GELU by a sigmoid (CLIP)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": gelu_new,
    "gelu_pytorch_tanh": gelu_new,
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}
"""Activations under the names of transformers' configs."""


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation called `name` in a config, or an error that lists the known ones."""
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


class FeedForward(nn.Module):
    """Two linear layers around an activation; gated, the activation of a third one multiplies (T5 1.1).

    Args:
        hidden_size: D.
        intermediate_size: width between the layers.
        activation: a name in `ACTIVATIONS`.
        gated: activation(gate(x)) * up(x) instead of activation(up(x)).
        bias: whether the layers have biases.
        dropout: probability between the layers.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        activation: str = "gelu",
        *,
        gated: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.gate = nn.Linear(hidden_size, intermediate_size, bias=bias) if gated else None
        self.down = nn.Linear(intermediate_size, hidden_size, bias=bias)
        self.activation = _activation(activation)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., D] to [..., D]."""
        inner = self.activation(self.up(x)) if self.gate is None else self.activation(self.gate(x)) * self.up(x)
        return self.down(self.dropout(inner))


_activation = activation  # the argument of the same name hides it in FeedForward


class Residual(nn.Module):
    """A residual connection with its normalisation: the one place that knows pre from post norm.

    Args:
        norm: the normalisation.
        order: `pre`: x + f(norm(x)) (GPT-2, ViT); `post`: norm(x + f(x)) (BERT).
        dropout: probability for what f returns.
        drop_path: probability of leaving f out for a row of the batch in training (stochastic depth: Huang, Sun et al. 2016,
            https://arxiv.org/abs/1603.09382, divided by the probability of staying as in timm). Packed texts are one row.
    """

    def __init__(self, norm: nn.Module, order: Literal["pre", "post"], dropout: float = 0.0, drop_path: float = 0.0) -> None:
        super().__init__()
        if order not in ("pre", "post"):
            raise ValueError(f"order must be 'pre' or 'post', got {order!r}")
        self.norm = norm
        self.pre = order == "pre"
        self.dropout = nn.Dropout(dropout)
        self.drop_path = drop_path

    def forward(self, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply `f` to [B, S, D] inside the residual."""
        if self.pre:
            return x + self._branch(f(self.norm(x)))
        return self.norm(x + self._branch(f(x)))

    def _branch(self, y: Tensor) -> Tensor:
        y = self.dropout(y)
        if not self.drop_path or not self.training:
            return y
        stays = 1 - self.drop_path
        return y * y.new_empty(len(y), 1, 1).bernoulli_(stays).div_(stays)


class Block(nn.Module):
    """One layer of a transformer.

    Args:
        attention: self-attention.
        feed_forward: what follows; any module from [B, S, D] to [B, S, D].
        norm: makes one normalisation for each residual.
        order: `pre` or `post` norm.
        dropout: probability for the output of each part.
        drop_path: probability of leaving a part out; see `Residual`.
        cross: attention to an encoder's output, between the two.
    """

    runs_whole: ClassVar[bool] = True
    """Whether a layer runs by a call of this module; where its parts run one by one, what gathers weights around a call leaves it alone."""

    def __init__(
        self,
        attention: Attention,
        feed_forward: nn.Module,
        *,
        norm: Callable[[], nn.Module],
        order: Literal["pre", "post"],
        dropout: float = 0.0,
        drop_path: float = 0.0,
        cross: Attention | None = None,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.attention_residual = Residual(norm(), order, dropout, drop_path)
        self.cross = cross
        self.cross_residual = Residual(norm(), order, dropout, drop_path) if cross is not None else None
        self.feed_forward = feed_forward
        self.feed_forward_residual = Residual(norm(), order, dropout, drop_path)

    def forward(
        self, x: Tensor, plan: Plan, memory: Tensor | None = None, memory_plan: Plan | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        """Run the layer. What flows along the top is the residual stream; `cross` comes between the two, like them.

        ::

            pre:   x --+-----------------------> + --+--------------------------> + -->
                       |                         |   |                            |
                       +--> norm --> attention --+   +--> norm --> feed-forward --+

            post:  x --+----------------> + --> norm --+-------------------> + --> norm -->
                       |                  |            |                     |
                       +--> attention ----+            +--> feed-forward ----+

        Args:
            x: [B, S, D].
            plan: of the self-attention.
            memory: [B, Lk, D], the encoder's output, for `cross`.
            memory_plan: of the cross-attention.
            cache: earlier keys and values of this layer.

        Returns:
            [B, S, D].
        """
        x = self.attention_residual(x, lambda y: self.attention(y, plan, None, cache))
        if self.cross is not None and self.cross_residual is not None and memory_plan is not None:
            cross, read = self.cross, memory_plan
            x = self.cross_residual(x, lambda y: cross(y, read, memory, cache))
        return self.feed_forward_residual(x, self.feed_forward)


def depth_scaled_(blocks: list[Block], std: float) -> None:
    """Draw the layers that write to the residual stream from N(0, std / sqrt(2 * depth)) (GPT-2)."""
    scale = std / math.sqrt(2 * len(blocks))
    for block in blocks:
        nn.init.normal_(block.attention.out.weight, std=scale)
        if isinstance(block.feed_forward, FeedForward):
            nn.init.normal_(block.feed_forward.down.weight, std=scale)
