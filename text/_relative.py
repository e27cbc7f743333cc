"""Attention by distance (Dai et al., 2019, section 3.3; appendix B for the shift), for networks with a memory.

What the mask and the distances decide is a plan (`Relative`), made once for all layers; what a layer's queries add to it is
computed in `RelativeAttention`.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..shared.attention import Attention
from ..shared.attention.cache import LayerCache
from ..shared.attention.mask import Mask
from ..shared.attention.plan import Plan, Shape
from ..shared.attention.tiled import attend
from ..shared.block import Block


class Relative(Plan):
    """Dense attention whose scores get a term that each layer computes from its queries and from distances.

    Args:
        mask: who sees whom; its `offset` counts the memory.
        shape: of the attention.
        bias: none here; what is added to the scores comes with each call.
        positions: [R, D], vectors of the distances from the last key to the first query position and on: Lk - 1, Lk - 2, ...
    """

    @classmethod
    def supports(cls, mask: Mask, shape: Shape, bias: Tensor | None) -> bool:
        """Whether this plan computes exactly this mask and bias: any mask."""
        return bias is None

    def __init__(self, mask: Mask, shape: Shape, bias: Tensor | None = None, positions: Tensor | None = None) -> None:
        assert bias is None and positions is not None
        self.hidden = ~mask.simplified(shape.query_length, shape.key_length).dense(*shape)
        self.positions = positions

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, dropout: float = 0.0, bias: Tensor | None = None
    ) -> Tensor:
        """Attend; shapes as in `Plan`, `bias` [B, H, Lq, Lk] is added to the scores."""
        assert bias is not None, "this plan belongs to an attention that computes its bias"
        bias = bias.masked_fill(self.hidden, float("-inf"))
        return attend(q, k, v, bias, hidden=lambda: self.hidden.all(-1, keepdim=True), scale=scale, dropout=dropout)


def relative_shift(scores: Tensor, key_length: int) -> Tensor:
    """From a column for each distance to a column for each key, in time and memory of one copy.

    Args:
        scores: [B, H, Lq, R]; column c belongs to the distance Lk - 1 - c from a query back to a key.
        key_length: Lk; the last query stands at the last key.

    Returns:
        [B, H, Lq, Lk]. Keys after a query are filled where R >= Lk + Lq - 1; else they hold other numbers and must be masked.
    """
    batch, heads, queries, distances = scores.shape
    padded = F.pad(scores, (1, 0)).view(batch, heads, distances + 1, queries)
    return padded[:, :, 1:].view(batch, heads, queries, distances)[..., :key_length]


class RelativeAttention(Attention):
    """Attention by content and distance (section 3.3), over a memory and the segment.

    With queries q, keys k and vectors r of distances, the score of query i and key j is
    ((q_i + u) k_j + (q_i + v) W r_(i-j)) / sqrt(d).

    Args:
        hidden_size: D.
        num_heads: H.
        head_size: d.
        dropout: probability for the attention weights.
        biases: u and v, [H, d] each, where layers share them; else the layer has its own.
    """

    no_decay: ClassVar[tuple[str, ...]] = ("content_bias", "position_bias")

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        head_size: int,
        *,
        dropout: float = 0.0,
        biases: tuple[nn.Parameter, nn.Parameter] | None = None,
    ) -> None:
        super().__init__(hidden_size, num_heads, head_size=head_size, bias=False, dropout=dropout)
        self.r = nn.Linear(hidden_size, num_heads * head_size, bias=False)
        own = biases or (nn.Parameter(torch.empty(num_heads, head_size)), nn.Parameter(torch.empty(num_heads, head_size)))
        self.content_bias, self.position_bias = own

    def forward(self, x: Tensor, plan: Plan, memory: Tensor | None = None, cache: LayerCache | None = None) -> Tensor:
        """Attend.

        Args:
            x: [B, S, D].
            plan: a `Relative` for S queries and M + S keys.
            memory: [B, M, D], this layer's input for the M tokens before.
            cache: not supported.

        Returns:
            [B, S, D].
        """
        assert isinstance(plan, Relative) and cache is None
        if memory is None:
            q, k, v = self.split(self.qkv(x), 3)
        elif not isinstance(self.qkv, nn.Linear):  # laid out for inference: its weight cannot be split
            q, k, v = self.split(self.qkv(torch.cat([memory, x], 1)), 3)
            q = q[:, :, memory.shape[1] :]
        else:  # the memory has no queries
            inner = self.num_heads * self.head_size
            w_q, w_kv = self.qkv.weight.split((inner, 2 * inner))
            (q,) = self.split(F.linear(x, w_q), 1)
            k, v = self.split(F.linear(torch.cat([memory, x], 1), w_kv), 2)
        r = self.r(plan.positions.to(q.dtype)).unflatten(-1, (self.num_heads, self.head_size)).permute(1, 2, 0)  # [H, d, R]
        scale = self.head_size**-0.5
        u, w = (bias[:, None].to(q.dtype) for bias in (self.content_bias, self.position_bias))
        by_distance = relative_shift(((q + w) * scale) @ r, k.shape[2])
        return self.merge(plan(q + u, k, v, scale, self.dropout if self.training else 0.0, by_distance))


class RecurrentBlock(Block):
    """A block whose self-attention also reads a memory of its own input."""

    def forward(
        self, x: Tensor, plan: Plan, memory: Tensor | None = None, memory_plan: Plan | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        """Run the layer; `memory` [B, M, D] is its input for the tokens before, the other arguments are as in `Block`."""
        if memory is not None and self.attention_residual.pre:
            memory = self.attention_residual.norm(memory)
        x = self.attention_residual(x, lambda y: self.attention(y, plan, memory, cache))
        return self.feed_forward_residual(x, self.feed_forward)
