"""Attention piece by piece on CPUs: some queries with the keys that they see, read where these lie.

What autograd would keep of each piece (a copy of its keys and values, most of which other pieces have too) is not kept: the backward
pass reads them again and adds up their gradients in place, so a window or a block table holds what full attention holds: queries, keys,
values and the output. Each piece is one call of torch's kernel, or `tiled` with dropout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .tiled import Tiles, fill, gradients, is_short_half

_forward, _backward = (getattr(torch.ops.aten, f"_scaled_dot_product_flash_attention_for_cpu{end}") for end in ("", "_backward"))


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Some queries that follow each other, and the keys that they may see."""

    first: int
    last: int
    """Queries from `first` up to, and without, `last`."""
    begin: int
    end: int
    """Keys that follow each other; none where both are equal."""
    mask: Tensor | None
    """bool [B or 1, H or 1, queries or 1, keys]: True may be seen; None where all are seen."""
    more: Tensor | None = None
    """Further keys: numbers of blocks, int64 [M], or [H, M] where heads differ."""
    size: int = 1
    """Keys of such a block."""
    weights: Tensor | None = None
    """With `mask`, what is added to the scores, [1, H or 1, queries or 1, keys]: keys that a softmax counts several times."""

    @property
    def keys(self) -> int:
        """How many there are."""
        return self.end - self.begin + (0 if self.more is None else self.more.shape[-1] * self.size)

    def read(self, t: Tensor) -> Tensor:
        """Its keys or values, of all of them [B, H, Lk, d]; `whole_blocks` of them where `size` is not 1."""
        near = t[:, :, self.begin:self.end]
        if self.more is None:
            return near
        if self.more.dim() == 1 and self.size == 1:
            more = t.index_select(2, self.more)
        else:
            more = t.view(-1, self.size * t.shape[3]).index_select(0, self._rows(t)).view(*t.shape[:2], -1, t.shape[3])
        return more if self.begin == self.end else torch.cat([near, more], 2)

    def add(self, gradient: Tensor, part: Tensor) -> None:
        """Add the gradient of what `read` gave to that of all keys or values [B, H, Lk, d]."""
        near, more = part.split((self.end - self.begin, part.shape[2] - (self.end - self.begin)), dim=2)
        gradient[:, :, self.begin:self.end] += near
        if self.more is None:
            return
        if self.more.dim() == 1 and self.size == 1:
            gradient.index_add_(2, self.more, more)
        else:
            rows = gradient.view(-1, self.size * gradient.shape[3])
            rows.index_add_(0, self._rows(gradient), more.reshape(-1, rows.shape[1]))

    def _rows(self, t: Tensor) -> Tensor:
        """Where the further blocks of each row and head lie, those of t [B, H, Lk, d] one behind the other."""
        assert self.more is not None
        count = t.shape[0] * t.shape[1]
        return (self.more.expand(t.shape[0], t.shape[1], -1).reshape(count, -1) + torch.arange(count)[:, None] * (t.shape[2] // self.size)
                ).flatten()

    def added(self, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """What is added to the scores, and which queries see no key, bool [B or 1, H or 1, queries, 1]; None where nothing, and none."""
        if self.mask is None:
            return None, None
        mask = self.mask.expand(-1, -1, self.last - self.first, -1)
        hidden = ~mask.any(-1, keepdim=True)
        hides = bool(hidden.any())  # they see all instead, and the output is zeros: no kernel meets a row that is all -inf
        zeros = torch.zeros((), dtype=like.dtype)
        shown = zeros if self.weights is None else self.weights.to(like.dtype)
        return torch.where(mask | hidden if hides else mask, shown, zeros - torch.inf), hidden if hides else None


def attend_pieces(q: Tensor, k: Tensor, v: Tensor, pieces: Sequence[Piece], scale: float | None = None, dropout: float = 0.0) -> Tensor:
    """Attend, on a CPU and outside compiled graphs.

    Args:
        q: [B, H, Lq, d].
        k: [B, H, Lk, d].
        v: [B, H, Lk, d].
        pieces: of all queries, in their order, all with blocks of one size.
        scale: of the scores; by default 1 / sqrt(d).
        dropout: probability for the attention weights, in steps of 1 / 32768. The draws follow torch's default generator.

    Returns:
        [B, H, Lq, d]. A query that sees no key gets zeros.
    """
    seed = cast("int", torch.randint(1 << 62, ()).item()) if dropout else 0
    return cast("Tensor", _Pieces.apply(q, k, v, pieces, q.shape[-1] ** -0.5 if scale is None else scale, dropout, seed))


def whole_blocks(t: Tensor, size: int) -> Tensor:
    """[B, H, L, d] one head behind the other, with zeros behind the end until blocks of `size` are full."""
    return F.pad(t, (0, 0, 0, -t.shape[2] % size)).contiguous()


class _Pieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, pieces: Sequence[Piece], scale: float, dropout: float, seed: int) -> Tensor:
        out = v.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)  # heads side by side, as what follows reads them
        kept: list[Tensor] = []
        keys, values = (whole_blocks(t, size) if (size := pieces[0].size) > 1 else t for t in (k, v))
        with torch.autocast("cpu", enabled=False):
            for number, piece in enumerate(pieces):
                query, place = q[:, :, piece.first:piece.last], out[:, :, piece.first:piece.last]
                bias, hidden = piece.added(q)
                if not piece.keys:
                    place.zero_()
                elif _in_tiles(query, piece, dropout):
                    fill(place, piece.read(values), Tiles(query, piece.read(keys), bias, scale, dropout, seed + number))
                else:
                    found, sums = _forward(query, piece.read(keys), piece.read(values), 0.0, False, attn_mask=bias, scale=scale)
                    place.copy_(found)
                    kept.append(sums)
                if hidden is not None:
                    place.masked_fill_(hidden, 0.0)
        ctx.save_for_backward(q, k, v, out, *kept)
        ctx.settings = (pieces, scale, dropout, seed)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *wanted: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, out, *kept = ctx.saved_tensors
        pieces, scale, dropout, seed = ctx.settings
        sums, whole = iter(kept), wanted[0] if wanted[0].stride(-1) == 1 else wanted[0].contiguous()
        keys, values = (whole_blocks(t, size) if (size := pieces[0].size) > 1 else t for t in (k, v))
        d_q, d_k, d_v = (torch.zeros_like(t) for t in (q, keys, values))
        with torch.autocast("cpu", enabled=False):
            for number, piece in enumerate(cast("Sequence[Piece]", pieces)):
                if not piece.keys:
                    continue
                query, gradient = (t[:, :, piece.first:piece.last] for t in (q, whole))
                bias, hidden = piece.added(q)
                if hidden is not None:
                    gradient = gradient.masked_fill(hidden, 0.0)
                key, value = piece.read(keys), piece.read(values)
                if _in_tiles(query, piece, dropout):
                    parts = gradients(gradient, value, Tiles(query, key, bias, scale, dropout, seed + number))
                else:
                    parts = _backward(gradient, query, key, value, out[:, :, piece.first:piece.last], next(sums), 0.0, False,
                                      attn_mask=bias, scale=scale)
                d_q[:, :, piece.first:piece.last] = parts[0]
                piece.add(d_k, parts[1])
                piece.add(d_v, parts[2])
        return d_q, d_k[:, :, :k.shape[2]], d_v[:, :, :v.shape[2]], None, None, None, None


def _in_tiles(query: Tensor, piece: Piece, dropout: float) -> bool:
    return dropout > 0 or is_short_half(query, query.shape[2] * piece.keys)
