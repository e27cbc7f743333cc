"""What a network tells of masked words and regions: heads and losses of UNITER and UNIMO.

Chen et al. 2019, section 3.2, and ChenRocks/UNITER (`model/layer.py`, `model/pretrain.py`).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..shared.block import LayerNorm
from ..shared.embed import normal_
from ..shared.heads import LMHead
from ..shared.loss import accuracy_sum, at_least_fp32, cross_entropy_sum
from ..shared.system import Step, Term
from .region_pairs import MLM, MRC_KL, MRFR, RegionBatch


class RegionConfig(Protocol):
    """The sizes."""

    @property
    def hidden_size(self) -> int: ...  # noqa: D102
    @property
    def layer_norm_eps(self) -> float: ...  # noqa: D102
    @property
    def initializer_range(self) -> float: ...  # noqa: D102
    @property
    def visual_feat_dim(self) -> int: ...  # noqa: D102
    @property
    def num_object_labels(self) -> int: ...  # noqa: D102


class RegionHead(nn.Module):
    """A dense layer, GELU and a norm on the states of masked regions; what follows maps them to features or to classes."""

    def __init__(self, config: RegionConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.norm(F.gelu(self.dense(x)))


class RegionRegression(RegionHead):
    """The features of masked regions, by the transposed projection of the embedding and a bias of its own."""

    def __init__(self, config: RegionConfig) -> None:
        super().__init__(config)
        self.bias = nn.Parameter(torch.zeros(config.visual_feat_dim))
        normal_(self, config.initializer_range)

    def forward(self, x: Tensor, projection: Tensor) -> Tensor:  # type: ignore[override]
        """States [..., D] and `projection` [D, visual_feat_dim] -> [..., visual_feat_dim]."""
        return F.linear(super().forward(x), projection.t(), self.bias)


class RegionClassifier(RegionHead):
    """The classes of masked regions."""

    def __init__(self, config: RegionConfig) -> None:
        super().__init__(config)
        self.classes = nn.Linear(config.hidden_size, config.num_object_labels)
        normal_(self, config.initializer_range)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., num_object_labels]."""
        return self.classes(super().forward(x))


def words_step(head: LMHead, rows: Tensor, targets: Tensor, training: bool, name: str = MLM) -> Step:
    """Cross-entropy of words that states `rows` [M, D] stand for, called `name`."""
    if training:
        return Step({name: Term(head.loss(rows, targets), "words", labels=targets)})
    logits = head(rows)
    return Step({name: Term(cross_entropy_sum(logits, targets), "words", labels=targets)},
                {f"{name}_accuracy": (accuracy_sum(logits, targets), len(targets))})


def features_step(told: Tensor, wanted: Tensor, batch: RegionBatch, training: bool) -> Step:
    """The squared error of the features of masked regions [K, D], mean over a region's.

    Beside it, where it is measured, that of the mean of the picture's other regions.
    """
    told = at_least_fp32(told)
    wanted = wanted.to(told.dtype)
    step = Step({MRFR: Term((told - wanted).square().mean(-1).sum(), "regions")})
    if not training:
        counts = torch.tensor(batch.counts_of_regions, device=wanted.device)
        owner = torch.repeat_interleave(torch.arange(len(counts), device=wanted.device), counts)
        sums = wanted.new_zeros(len(counts), wanted.shape[1]).index_add_(0, owner, batch.features.to(wanted.dtype))  # masked: zeros
        seen = counts - torch.bincount(owner[batch.masked], minlength=len(counts))
        means = (sums / seen.clamp(min=1)[:, None])[owner[batch.masked]]
        step.metrics[f"{MRFR}_neighbours"] = ((means - wanted).square().mean(-1).sum(), len(wanted))
    return step


def most_probable(chances: Tensor) -> Tensor:
    """The most probable class that is not the background, [K], of class probabilities [K, C]."""
    return chances[:, 1:].argmax(-1) + 1


def divergence_step(logits: Tensor, chances: Tensor) -> Step:
    """Kullback-Leibler divergence from a detector's class probabilities [K, C], divided by the number of classes."""
    told = at_least_fp32(logits).log_softmax(-1)
    total = F.kl_div(told, chances.to(told.dtype), reduction="sum") / logits.shape[-1]
    labels = most_probable(chances)
    return Step({MRC_KL: Term(total, "regions")}, {f"{MRC_KL}_accuracy": (accuracy_sum(logits, labels), len(labels))})
