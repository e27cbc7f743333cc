"""Attention by distance (Dai et al., 2019, section 3.3; appendix B for the shift), for networks with a memory.

What the mask and the distances decide is a plan (`Relative`), made once for all layers; what a layer's queries add to it is
computed in `RelativeAttention`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..shared.attention import Attention
from ..shared.attention.cache import LayerCache
from ..shared.attention.mask import Mask, on_device
from ..shared.attention.plan import Plan, Shape
from ..shared.attention.tiled import attend
from ..shared.block import Block
from ..shared.system import Batch, map_tensors


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
    """From a column for each distance to a column for each key, without a copy where no two rows of the result overlap, else with one.

    Args:
        scores: [B, H, Lq, R]; column c belongs to the distance Lk - 1 - c from a query back to a key.
        key_length: Lk; the last query stands at the last key.

    Returns:
        [B, H, Lq, Lk]. Keys after a query are filled where R >= Lk + Lq - 1; else they hold other numbers and must be masked.
    """
    batch, heads, queries, distances = scores.shape
    if distances > key_length and not torch.compiler.is_compiling():  # each row begins one column before the row above it
        steps = heads * queries * distances, queries * distances, distances - 1, 1
        return scores.contiguous().as_strided((batch, heads, queries, key_length), steps, queries - 1)
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
        q, k, v = self.project(x, x if memory is None else torch.cat([memory, x], 1))
        scale = self.head_size**-0.5
        u, w = (bias[:, None].to(q.dtype) for bias in (self.content_bias, self.position_bias))
        by_distance = relative_shift(((q + w) * scale) @ self.distances(plan.positions.to(q.dtype)), k.shape[2])
        return self.merge(plan(q + u, k, v, scale, self.dropout if self.training else 0.0, by_distance))

    def project(self, x: Tensor, read: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of x [B, S, D], keys and values of what is read [B, Lk, D]: [B, H, S or Lk, d] each."""
        if read is x:
            q, k, v = self.split(self.qkv(x), 3)
        elif not isinstance(self.qkv, nn.Linear):  # laid out for inference: its weight cannot be split
            q, k, v = self.split(self.qkv(x), 3)[0], *self.split(self.qkv(read), 3)[1:]
        else:  # what is only read has no queries
            inner = self.num_heads * self.head_size
            w_q, w_kv = self.qkv.weight.split((inner, 2 * inner))
            (q,) = self.split(F.linear(x, w_q), 1)
            k, v = self.split(F.linear(read, w_kv), 2)
        return q, k, v

    def distances(self, positions: Tensor) -> Tensor:
        """The vectors of distances [R, D] as the heads read them, [H, d, R]."""
        return self.r(positions).unflatten(-1, (self.num_heads, self.head_size)).permute(1, 2, 0)


@dataclass(frozen=True)
class Memory:
    """What a network remembers of earlier segments, detached."""

    states: tuple[Tensor, ...]
    """The input of each layer, [B, M, D]."""
    keep: Tensor
    """bool [B, M]: false before the beginning of a text."""

    def in_front(self, length: int) -> Tensor:
        """`keep` with `length` more keys behind it, all of them kept: bool [B, M + length]."""
        return F.pad(self.keep, (0, length), value=True)


@torch.no_grad()
def remember(states: Sequence[Tensor], mems: Memory | None, keep: Tensor, wanted: int) -> Memory | None:
    """The last `wanted` states of each row, of the memory and then of the segment; places before the beginning are masked.

    Args:
        states: the input of each layer, [B, S, D].
        mems: what was remembered before.
        keep: bool [B, S]: what of each row is remembered, the first tokens of it.
        wanted: M; with 0 there is no memory.
    """
    if not wanted:
        return None
    past = 0 if mems is None else mems.keep.shape[1]
    seen = keep if mems is None else torch.cat([mems.keep, keep], 1)
    place = (past - wanted + keep.sum(1))[:, None] + torch.arange(wanted, device=keep.device)  # [B, M]
    index = place.clamp(min=0)
    kept = seen.gather(1, index) & (place >= 0)
    whole = (s if mems is None else torch.cat([m, s], 1) for m, s in zip(mems.states if mems else states, states, strict=True))
    return Memory(tuple(s.gather(1, index[:, :, None].expand(-1, -1, s.shape[2])) for s in whole), kept)


def continued(batch: Batch, carry: Any) -> tuple[dict[str, Any], Tensor | None] | None:
    """What the rows of a batch go on from: tensors of a carry, row by row, and which rows begin anew, bool [B].

    A row goes on from the row of the sample before it in its lane, wherever that stood: `ids` of the carry are the samples of its rows.
    A row that begins anew has another's tensors, and none of them in `keep`.

    Returns:
        None where every row begins anew; the second is None where none does.
    """
    place: dict[int, int] = {sample: row for row, sample in enumerate(carry["ids"])} if carry is not None else {}
    rows = [place.get(sample, -1) for sample in batch.follows or [sample - 1 for sample in batch.sample_ids]]
    if carry is None or max(rows, default=-1) < 0:
        return None
    there = {name: value for name, value in carry.items() if name != "ids"}
    if rows == list(range(len(carry["ids"]))):  # they stand as they stood
        return there, None
    device = carry["keep"].device
    index, new = on_device([max(row, 0) for row in rows], device), on_device([row < 0 for row in rows], device)
    there = map_tensors(there, lambda tensor: tensor[index])
    return {**there, "keep": there["keep"] & ~new[:, None]}, new


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
