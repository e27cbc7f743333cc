"""A weighted mean of the layers of a network (Peters et al., 2018, https://arxiv.org/abs/1802.05365, equation 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ScalarMix(nn.Module):
    """γ Σ_j softmax(s)_j h_j: which layers a task reads, and how large.

    Args:
        layers: how many there are.
        layer_norm: normalise each layer before it is weighed, over everything that is read together, as AllenNLP does: then what one text
            gives depends on the others of its batch.
    """

    def __init__(self, layers: int, *, layer_norm: bool = False) -> None:
        super().__init__()
        self.layer_norm = layer_norm
        self.scalars = nn.Parameter(torch.zeros(layers))
        self.gamma = nn.Parameter(torch.ones(()))

    def forward(self, states: Sequence[Tensor], keep: Tensor | None = None) -> Tensor:
        """Mix states [..., D]; `keep` [...] is false at padding, and only read for the norm."""
        weights = self.scalars.softmax(0)
        parts = [self._normed(state, keep) if self.layer_norm else state for state in states]
        mixed = parts[0] * weights[0]
        for weight, part in zip(weights[1:], parts[1:], strict=True):
            mixed = torch.addcmul(mixed, part, weight)
        return self.gamma * mixed

    @staticmethod
    def _normed(state: Tensor, keep: Tensor | None) -> Tensor:
        there = state if keep is None else state[keep]
        mean = there.mean()
        return (state - mean) * ((there - mean).square().mean() + 1e-12).rsqrt()
