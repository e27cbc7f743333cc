"""Optimal transport between the words of a text and the regions of a picture (UNITER's word-region alignment).

Xie, Wang, Wang and Zha, "A Fast Proximal Point Method for Computing Exact Wasserstein Distance", 2018
(https://arxiv.org/abs/1802.04307): the inexact proximal point method (IPOT), with the constants of ChenRocks/UNITER (`model/ot.py`). All
pairs of a batch are solved together; what is padding moves nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..shared.loss import at_least_fp32

BETA, ITERATIONS = 0.5, 50
_FAR = 1e4
"""Stands in a denominator where there is padding, so that nothing is divided by 0."""


def cosine_costs(words: Tensor, regions: Tensor, word_keep: Tensor, region_keep: Tensor) -> Tensor:
    """1 - cosine of each word with each region, 0 at padding: [N, S, R].

    Args:
        words: [N, S, D].
        regions: [N, R, D].
        word_keep: bool [N, S], False at padding.
        region_keep: bool [N, R].
    """
    words, regions = (F.normalize(at_least_fp32(x), dim=-1, eps=1e-5) for x in (words, regions))
    return (1 - words @ regions.transpose(1, 2)).masked_fill(~(word_keep[:, :, None] & region_keep[:, None]), 0)


@torch.no_grad()
def ipot(costs: Tensor, word_keep: Tensor, region_keep: Tensor, beta: float = BETA, iterations: int = ITERATIONS) -> Tensor:
    """How much of each word goes to each region for the least cost, words and regions having equal shares: [N, S, R].

    Arguments as in `cosine_costs`; `beta` weighs the distance from one step's plan to the next, and a step balances words and regions once.
    """
    words, regions = (keep.sum(1, keepdim=True).to(costs.dtype) for keep in (word_keep, region_keep))  # [N, 1]
    both = region_keep[:, :, None] & word_keep[:, None]  # [N, R, S]
    kernel = (-costs.transpose(1, 2) / beta).exp().masked_fill(~both, 0)
    plan = both.to(costs.dtype)
    sigma = word_keep / words
    word_far, region_far = (_FAR * ~keep for keep in (word_keep, region_keep))
    for _ in range(iterations):
        q = kernel * plan
        delta = 1 / (regions * torch.bmm(q, sigma[:, :, None])[:, :, 0] + region_far)
        sigma = 1 / (words * torch.bmm(delta[:, None], q)[:, 0] + word_far)
        plan = delta[:, :, None] * q * sigma[:, None]
    return plan.transpose(1, 2)


def transport_distances(words: Tensor, regions: Tensor, word_keep: Tensor, region_keep: Tensor) -> Tensor:
    """The cost of the best transport for each pair, [N], in fp32 at least. The plan has no gradient, its costs have."""
    with torch.autocast(words.device.type, enabled=False):
        costs = cosine_costs(words, regions, word_keep, region_keep)
        return (costs * ipot(costs, word_keep, region_keep)).sum((1, 2))
