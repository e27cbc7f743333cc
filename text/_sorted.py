"""Reformer's layers: attention to the tokens nearby, as they stand or sorted by their hashes, in reversible residuals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ..shared.attention import Attention
from ..shared.attention.cache import LayerCache
from ..shared.attention.plan import Plan
from ..shared.block import Block
from ._hashing import Nearby, attend_nearby, buckets, order_by
from ._reversible import Half, Kept


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Texts of one length below each other, as the layers read them."""

    keep: Tensor | None
    """bool [B, S], False at padding, which stands on the right; None where there is none."""
    factors: tuple[int, ...]
    """Of the number of buckets."""
    rotations: Mapping[nn.Module, Tensor]
    """[B or 1, H, d, rounds, half the sum of the factors], for each attention that hashes; none where a text is one chunk."""


class NearbyAttention(Attention):
    """A local layer: each token sees its chunk, and some before and after.

    Args:
        hidden_size: D.
        num_heads: H.
        head_size: d.
        near: who sees whom.
        dropout: probability for the attention weights.
    """

    def __init__(self, hidden_size: int, num_heads: int, head_size: int, near: Nearby, *, dropout: float) -> None:
        super().__init__(hidden_size, num_heads, head_size=head_size, bias=False, dropout=dropout)
        self.near = near

    def nearby(self, x: Tensor, rows: Rows, kept: Kept) -> Tensor:
        """Attend: [B, S, D] to [B, S, D]; `kept` as in `Half`."""
        q, k, v = self.split(self.qkv(x), 3)
        near = self.near if x.shape[1] > self.near.chunk else self.near.whole(x.shape[1])
        return self.merge(attend_nearby(q, k, v, None, near, rows.keep, self.dropout if self.training else 0.0))


class HashedAttention(NearbyAttention):
    """Tokens sorted by the hashes of their one vector for query and key, in several rounds; arguments as above."""

    def __init__(self, hidden_size: int, num_heads: int, head_size: int, near: Nearby, *, dropout: float) -> None:
        super().__init__(hidden_size, num_heads, head_size, near, dropout=dropout)
        self.qkv = nn.Linear(hidden_size, 2 * num_heads * head_size, bias=False)

    def nearby(self, x: Tensor, rows: Rows, kept: Kept) -> Tensor:
        """Attend; the order is found once, as what is computed backwards differs by rounding and might hash otherwise."""
        q, v = self.split(self.qkv(x), 2)
        order, near = None, self.near
        if self in rows.rotations:
            if not kept:
                kept.append(order_by(buckets(q.detach(), rows.rotations[self], rows.factors), rows.keep))
            (order,) = kept
        else:
            near = near.whole(x.shape[1])
        return self.merge(attend_nearby(q, _unit(q), v, order, near, rows.keep, self.dropout if self.training else 0.0))

    def forward(self, x: Tensor, plan: Plan, memory: Tensor | None = None, cache: LayerCache | None = None) -> Tensor:
        """Attend to all that `plan` shows; see `Attention.forward`."""
        q, v = self.split(self.qkv(x), 2)
        k = _unit(q)
        if cache is not None:
            k, v = cache.append(k, v)
        return self.merge(plan(q, k, v, self.scale, self.dropout if self.training else 0.0))


def _unit(q: Tensor) -> Tensor:
    """Keys from queries [B, H, S, d]: divided by their root mean square."""
    return F.rms_norm(q, q.shape[-1:], eps=1e-6)


class ReversibleBlock(Block):
    """A pre-norm layer that is run a half at a time, each between two streams."""

    runs_whole: ClassVar[bool] = False

    attention: NearbyAttention

    def halves(self, rows: Rows, piece: int) -> tuple[Half, Half]:
        """Attention, and the feed-forward net, which computes `piece` tokens at a time (0: all)."""
        draws = self.training and (self.attention.dropout > 0 or any(m.p > 0 for m in self.modules() if isinstance(m, nn.Dropout)))
        return (Half(partial(self._attend, rows), (self.attention_residual, self.attention), draws),
                Half(self._feed, (self.feed_forward_residual, self.feed_forward), draws, piece))

    def _attend(self, rows: Rows, x: Tensor, kept: Kept) -> Tensor:
        return self.attention_residual.dropout(self.attention.nearby(self.attention_residual.norm(x), rows, kept))

    def _feed(self, x: Tensor, kept: Kept) -> Tensor:
        return self.feed_forward_residual.dropout(self.feed_forward(self.feed_forward_residual.norm(x)))

    def generate(self, a: Tensor, b: Tensor, plan: Plan, cache: LayerCache) -> tuple[Tensor, Tensor]:
        """Both streams [B, S, D] behind this layer, where `plan` shows the tokens that a cache holds."""
        a = a + self.attention(self.attention_residual.norm(b), plan, None, cache)
        return a, b + self._feed(a, [])
