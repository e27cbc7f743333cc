"""What UNITER tells of masked regions: their features, and their classes.

Chen et al. 2019, section 3.2, and ChenRocks/UNITER (`model/pretrain.py`): a dense layer, GELU and a norm; then the transposed projection of
the embedding, or a layer over the classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..shared.block import LayerNorm
from ..shared.embed import normal_


class RegionHead(nn.Module):
    """A dense layer, GELU and a norm on the states of masked regions; what follows maps them to features or to classes."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.norm(F.gelu(self.dense(x)))


class RegionRegression(RegionHead):
    """The features of masked regions, by the transposed projection of the embedding and a bias of its own."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.bias = nn.Parameter(torch.zeros(config.visual_feat_dim))
        normal_(self, config.initializer_range)

    def forward(self, x: Tensor, projection: Tensor) -> Tensor:  # type: ignore[override]
        """States [..., D] and `projection` [D, visual_feat_dim] -> [..., visual_feat_dim]."""
        return F.linear(super().forward(x), projection.t(), self.bias)


class RegionClassifier(RegionHead):
    """The classes of masked regions."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.classes = nn.Linear(config.hidden_size, config.num_object_labels)
        normal_(self, config.initializer_range)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., num_object_labels]."""
        return self.classes(super().forward(x))
