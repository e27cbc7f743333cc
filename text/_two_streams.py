"""Attention of two streams by content, distance and segment (Yang et al., 2019, sections 2.3 and 2.5).

What the memory, the order and the segments decide is a plan (`TwoStreams`), made once for all layers; what a layer's queries add to it is
computed in `SegmentAttention`.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ..shared.attention.cache import LayerCache
from ..shared.attention.mask import Mask
from ..shared.attention.plan import Plan, Shape
from ..shared.attention.tiled import attend
from ..shared.block import Block
from ._relative import RelativeAttention, relative_shift
from ._tiles import ENOUGH, Tile, attend_in_tiles, tiles_of, tiles_of_texts


class Stream:
    """What the queries of one stream see, for all layers.

    Args:
        shape: of the attention.
        far: the first distance that there is a vector for, from a query back to a key.
        hidden: bool [B or 1, 1, 1 or Lq, Lk]: keys that a query does not see; None where all see all.
        segments: int64 [B, Lq] and [B, Lk], of the queries and of the keys; None where there are none.
        places: int64 [B, Lq], where the queries stand, counted in keys; None where they are the last keys.
        lengths: texts side by side in one row, each of which sees only itself; excludes the others but the segments. On CPUs alone.
    """

    def __init__(self, shape: Shape, far: int, hidden: Tensor | None = None, segments: tuple[Tensor, Tensor] | None = None,
                 places: Tensor | None = None, lengths: tuple[int, ...] | None = None) -> None:
        self.far, self.packed, self.segmented = far, lengths is not None, segments is not None
        self.mask, self.blind, self.different, self.columns = None, None, None, None
        host = shape.device.type == "cpu" and not torch.compiler.is_compiling()
        host &= all(type(t) is Tensor for t in (hidden, places, *(segments or ())) if t is not None)  # what `plan` rehearses with, is not
        if hidden is not None:
            self.mask = torch.zeros(hidden.shape, device=hidden.device).masked_fill(hidden, -torch.inf)
            blind = hidden.all(-1, keepdim=True)
            # looking costs nothing on the host; on a GPU it would wait for the device
            self.blind = blind if not host or bool(blind.any()) else None
        if segments is not None and not self.packed:
            self.different = (segments[0][:, :, None] != segments[1][:, None])[:, None].float()
        if places is not None:  # the column of the distance from query to key
            self.columns = (far - places[:, :, None] + torch.arange(shape.key_length, device=shape.device))[:, None]
        self.tiles = list[Tile]()
        if lengths is not None:
            self.tiles = tiles_of_texts(lengths)
        elif host and torch.is_grad_enabled() and shape.query_length * shape.key_length >= ENOUGH:
            unseen = None if hidden is None else hidden[:, 0].expand(-1, shape.query_length, -1)
            self.tiles = tiles_of(unseen, shape.batch, shape.query_length, shape.key_length, places)
        if self.tiles and segments is not None:
            count = 8 * (1 + int(max(part.max() for part in segments)) // 8)  # products like rows of whole cache lines
            others, self.members = (nn.functional.one_hot(part, count)[:, None].float() for part in segments)
            self.others = 1 - others


class TwoStreams(Plan):
    """Attention of the content stream, and of the query stream where something is to be predicted, over memory and segment.

    Args:
        positions: [R, D], vectors of the distances from a query back to a key, each one less than the one before it.
        far: the first distance.
        length: S, tokens of the segment.
        content: of the S tokens.
        query: of the places that are to be predicted.
    """

    @classmethod
    def supports(cls, mask: Mask, shape: Shape, bias: Tensor | None) -> bool:
        """No mask alone says who sees whom here."""
        return False

    def __init__(self, positions: Tensor, far: int, length: int, content: Stream, query: Stream | None = None) -> None:
        self.positions, self.far, self.length, self.content, self.query = positions, far, length, content, query

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, dropout: float = 0.0) -> Tensor:
        """A layer adds what it computes of its queries (`SegmentAttention`)."""
        raise AssertionError("this plan belongs to an attention that computes its bias")


class SegmentAttention(RelativeAttention):
    """Attention by content, distance and segment (section 2.5), of two streams with the content stream's keys and values.

    To Transformer-XL's score comes (q_i + s) e_ij, where e_ij is one of two learned vectors: of keys in the query's segment, and of the
    others.
    """

    no_decay: ClassVar[tuple[str, ...]] = (*RelativeAttention.no_decay, "segment_bias", "segments")

    def __init__(self, hidden_size: int, num_heads: int, head_size: int, *, dropout: float = 0.0) -> None:
        super().__init__(hidden_size, num_heads, head_size, dropout=dropout)
        self.segment_bias = nn.Parameter(torch.empty(num_heads, head_size))
        self.segments = nn.Parameter(torch.empty(2, num_heads, head_size))

    def forward(self, x: Tensor, plan: Plan, memory: Tensor | None = None, cache: LayerCache | None = None) -> Tensor:
        """Attend, as `streams` does with all rows as queries."""
        return self.streams(x, x, plan, memory, cache)

    def streams(self, x: Tensor, rows: Tensor, plan: Plan, memory: Tensor | None, cache: LayerCache | None) -> Tensor:
        """Attend.

        Args:
            x: [B, S + T, D]: S tokens, and T places of the query stream behind them.
            rows: the same, or its last T.
            plan: `TwoStreams`.
            memory: [B, M, D], this layer's input for the M tokens before.
            cache: their keys and values, in place of a memory; those of the S tokens are added.

        Returns:
            What the rows get, [B, S + T or T, D].
        """
        assert isinstance(plan, TwoStreams)
        read = x if plan.query is None else x[:, : plan.length]
        q, k, v = self.project(rows, read if memory is None else torch.cat([memory, read], 1))
        if cache is not None:
            k, v = cache.append(k, v)
        r = self.distances(plan.positions.to(q.dtype))

        def attended(rows: Tensor, stream: Stream) -> Tensor:
            return self._attend(rows, k, v, r[..., plan.far - stream.far:], stream)

        if plan.query is None:
            return self.merge(attended(q, plan.content))
        if rows is not x:
            return self.merge(attended(q, plan.query))
        first, second = q.split([plan.length, q.shape[2] - plan.length], 2)
        return self.merge(torch.cat([attended(first, plan.content), attended(second, plan.query)], 2))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, r: Tensor, stream: Stream) -> Tensor:
        scale, dropout = self.head_size**-0.5, self.dropout if self.training else 0.0
        u, w, s, e = (p.unsqueeze(-2).to(q.dtype) for p in (self.content_bias, self.position_bias, self.segment_bias, self.segments))
        # the softmax does not feel what all keys have in common: the vector of the query's own segment is taken off both
        apart = ((q + s) * (e[1] - e[0])).sum(-1, keepdim=True) if stream.segmented else None  # [B, H, Lq, 1]
        content, distance = q + u, q + w
        if stream.packed or (not torch.compiler.is_compiling() and stream.tiles):
            if apart is not None:  # the term of the segments as a part of the product: the members of a query's own segment get none of it
                content = torch.cat([content, apart * stream.others.to(q.dtype)], -1)
                k = torch.cat([k, stream.members.to(q.dtype).expand(-1, k.shape[1], -1, -1)], -1)
            out = attend_in_tiles(content, distance, k, v, r, stream.tiles, stream.far, scale, dropout)
            return out if stream.blind is None else out.masked_fill(stream.blind, 0.0)
        by_distance = (distance * scale) @ r  # [B, H, Lq, R]
        if stream.columns is None:
            bias = relative_shift(by_distance, k.shape[2])
        else:
            bias = by_distance.gather(3, stream.columns.expand(-1, self.num_heads, -1, -1))
        if apart is not None and stream.different is not None:
            bias = torch.addcmul(bias, apart * scale, stream.different.to(bias.dtype))
        if stream.mask is not None:
            bias = bias + stream.mask.to(bias.dtype)
        return attend(content, k, v, bias, hidden=lambda: stream.blind, scale=scale, dropout=dropout)


class TwoStreamBlock(Block):
    """A block for the content stream and the query stream behind it."""

    attention: SegmentAttention

    def forward(self, x: Tensor, plan: Plan, memory: Tensor | None = None, memory_plan: Plan | None = None,
                cache: LayerCache | None = None, *, only_queries: bool = False) -> Tensor:
        """Run the layer for all rows, or for the query stream's alone; see `SegmentAttention.streams`."""
        assert isinstance(plan, TwoStreams)
        rows = x[:, plan.length:] if only_queries else x
        y = self.attention_residual(rows, lambda _: self.attention.streams(x, rows, plan, memory, cache))
        return self.feed_forward_residual(y, self.feed_forward)
