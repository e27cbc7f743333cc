"""How attention under a `Mask` is computed: the interface of a plan, and the plan that computes any mask.

A query that may see no key gets zeros, in every plan.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from .mask import Mask
from .tiled import attend

P = ParamSpec("P")
R = TypeVar("R")


def outside_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """Keep `function` out of compiled graphs: documents have new lengths in every batch, and each would compile anew.

    `torch.compiler.disable` would do, but it imports the compiler, which takes seconds, with this module; torch's own
    variant imports it at the first call (as its optimizers do).
    """
    return torch._disable_dynamo(function)  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001


_without_dropout: set[str] = set()


@outside_graphs
def warn_of_dropout(kernel: str, instead: str) -> None:
    """Say once in a process that dropout of the attention weights keeps a fast kernel of the GPU from being used.

    Args:
        kernel: the one that has no dropout.
        instead: what computes the same.
    """
    if kernel not in _without_dropout:
        _without_dropout.add(kernel)
        warnings.warn(f"torch's {kernel} has no dropout of attention weights, so {instead}: slower, and the same otherwise. Set the "
                      "model's attention dropout (attention_probs_dropout_prob, attn_pdrop) to 0 for the fast kernel", stacklevel=3)


class Shape(NamedTuple):
    """What a plan is made for."""

    batch: int
    query_length: int
    key_length: int
    device: torch.device


class Plan(ABC):
    """Attention with everything decided but the numbers."""

    @classmethod
    @abstractmethod
    def supports(cls, mask: Mask, shape: Shape, bias: Tensor | None) -> bool:
        """Whether this plan computes exactly this mask and bias."""

    @abstractmethod
    def __init__(self, mask: Mask, shape: Shape, bias: Tensor | None) -> None: ...

    @abstractmethod
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, dropout: float = 0.0) -> Tensor:
        """Attend.

        Args:
            q: [B, H, Lq, d].
            k: [B, H, Lk, d].
            v: [B, H, Lk, d].
            scale: of the scores before the bias; by default 1 / sqrt(d).
            dropout: probability for the attention weights.

        Returns:
            [B, H, Lq, d].
        """


class Seen(NamedTuple):
    """What one layer's attention compares."""

    q: Tensor
    """[B, H, Lq, d]"""
    k: Tensor
    """[B, H, Lk, d]"""
    scale: float
    """The scores are scale q k^T."""


class Watched(Plan):
    """Another plan, whose queries and keys are kept (`seen`) for who compares scores.

    Args:
        plan: what attends.
    """

    @classmethod
    def supports(cls, mask: Mask, shape: Shape, bias: Tensor | None) -> bool:
        """Nothing by itself."""
        return False

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.seen: list[Seen] = []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, dropout: float = 0.0) -> Tensor:
        """Attend; shapes as in `Plan`."""
        self.seen.append(Seen(q, k, q.shape[-1] ** -0.5 if scale is None else scale))
        return self.plan(q, k, v, scale, dropout)


class Dense(Plan):
    """Scaled dot-product attention: without a mask, causal, with a bool mask, or with an additive bias."""

    @classmethod
    def supports(cls, mask: Mask, shape: Shape, bias: Tensor | None) -> bool:
        """Whether this plan computes exactly this mask and bias: always."""
        return True

    def __init__(self, mask: Mask, shape: Shape, bias: Tensor | None) -> None:
        only_causal = mask.causal and mask.window is None and mask.shift_invariant
        # is_causal counts from the first key, so it is right only where queries and keys coincide.
        self.is_causal = only_causal and bias is None and mask.offset == 0 and shape.query_length == shape.key_length
        hides = mask.causal or mask.window is not None or not mask.shift_invariant
        ok = mask.dense(*shape) if hides and not self.is_causal else None
        if (weigh := mask.weights(shape.device)) is not None:
            weights = mask.spread(weigh, *(torch.arange(n, device=shape.device) for n in shape[1:3]))
            bias = weights if bias is None else bias + weights.to(bias.dtype)
        if bias is None or ok is None:
            self.mask = ok if bias is None else bias
        else:
            self.mask = bias.masked_fill(~ok, float("-inf"))
        self._ok = None if bias is None else ok

    @cached_property
    def _hidden(self) -> Tensor | None:
        """Queries that the mask in a bias lets see no key."""
        return None if self._ok is None else ~self._ok.any(-1, keepdim=True)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, dropout: float = 0.0) -> Tensor:
        """Attend; shapes as in `Plan`."""
        return attend(q, k, v, self.mask, causal=self.is_causal, hidden=lambda: self._hidden, scale=scale, dropout=dropout)
