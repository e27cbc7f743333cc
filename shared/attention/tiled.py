"""Attention in training on CPUs where torch's kernel is slow: dropout of the weights, a bias that learns, short rows in bf16.

In the first two cases SDPA falls back to products and softmax of the whole [B, H, Lq, Lk] scores, keeps them for the backward pass, and
draws one number from a slow generator for each. Here the scores are made tile by tile, small enough for a core's cache, and made again
in the backward pass (Dao et al., 2022, algorithm 4, with tiles of whole rows), so no more than a tile of them is ever held. Dropout
takes 15 drawn bits for each weight, of 64 that one draw gives for four, and the same bits again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cpu import cpu_features

TILE = 1 << 18
"""Scores of a tile for each thread: 1 MiB in fp32."""
FEW = 64
"""Keys below which a single row of bf16 is as fast as two."""
_REHEARSED = 8
"""At most about this many tiles on the meta device."""


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool = False,
           hidden: Callable[[], Tensor | None] | None = None, scale: float | None = None, dropout: float = 0.0) -> Tensor:
    """Attention by torch's kernel, or in tiles where that is faster; arguments as in `tiled_attention`, `hidden` made only if needed."""
    if pays(q, k, mask, dropout):
        return tiled_attention(q, k, v, mask, causal=causal, hidden=hidden and hidden(), scale=scale, dropout=dropout)
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(q.dtype)  # under autocast a bias stays in fp32
    single = q.shape[2] == 1 and not causal and k.shape[2] >= FEW
    if single and q.dtype == torch.bfloat16 and q.device.type == "cpu" and not torch.is_grad_enabled():
        # one row of bf16 is multiplied by a kernel so slow that two take two thirds of its time
        return F.scaled_dot_product_attention(q.expand(-1, -1, 2, -1), k, v, attn_mask=mask, dropout_p=dropout, scale=scale)[:, :, :1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale)


def pays(q: Tensor, k: Tensor, bias: Tensor | None, dropout: float) -> bool:
    """Whether this call is faster here: in training, eager, on a CPU (measured by `polymodal bench attention`).

    With dropout or a bias that learns: in half precision always, else from 256 x 256 scores on. Without them: short sequences in
    bf16, where SDPA's kernel is slow on CPUs that have bf16 products but no AMX.
    """
    if q.device.type != "cpu" or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    size, half = q.shape[2] * k.shape[2], q.dtype in (torch.float16, torch.bfloat16)
    if dropout > 0 or (bias is not None and bias.requires_grad):
        return half or size >= 1 << 16
    return q.requires_grad and is_short_half(q, size)


def is_short_half(q: Tensor, size: int) -> bool:
    """Whether these are bf16 queries with at most 256 x 256 scores on a CPU that has bf16 products but no AMX."""
    # what `plan` rehearses has no numbers; there the kernel, which keeps as little, is one operation in place of many
    return q.dtype == torch.bfloat16 and size <= 1 << 16 and type(q) is Tensor and not cpu_features().get("amx_tile")


def tiled_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool = False, hidden: Tensor | None = None,
                    scale: float | None = None, dropout: float = 0.0) -> Tensor:
    """What `scaled_dot_product_attention` computes.

    Args:
        q: [B, H, Lq, d].
        k: [B, H, Lk, d].
        v: [B, H, Lk, d].
        mask: broadcasts to [B, H, Lq, Lk]: bool (True may be seen), or added to the scores, with or without a gradient.
        causal: query i sees the keys up to i; excludes a mask.
        hidden: broadcasts to [B, H, Lq, 1]: queries that a float mask lets see no key.
        scale: of the scores before the mask; by default 1 / sqrt(d).
        dropout: probability for the attention weights, in steps of 1 / 32768. The draws follow torch's default generator.

    Returns:
        [B, H, Lq, d]. A query that sees no key gets zeros.
    """
    assert mask is None or not causal, "causal excludes a mask"
    if causal:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()[None, None]
    if mask is not None and mask.dtype == torch.bool:
        hidden = ~mask.any(-1, keepdim=True)
        mask = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~(mask | hidden), -torch.inf)
    elif mask is not None and hidden is not None:
        mask = mask.masked_fill(hidden, 0.0)
    seed = cast("int", torch.randint(1 << 62, ()).item()) if dropout else 0
    out = cast("Tensor", _Tiled.apply(q, k, v, mask, q.shape[-1] ** -0.5 if scale is None else scale, dropout, seed))
    return out if hidden is None else out.masked_fill(hidden, 0.0)


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, dropout: float, seed: int) -> Tensor:
        batch, heads, length = q.shape[:3]
        out = v.new_empty(batch, length, heads, v.shape[3]).transpose(1, 2)  # heads side by side, as what follows reads them
        with torch.autocast("cpu", enabled=False):  # it would make the scores bf16 again
            fill(out, v, Tiles(q, k, bias, scale, dropout, seed))
        ctx.save_for_backward(q, k, v, bias)
        ctx.settings = (scale, dropout, seed)
        return out

    @staticmethod
    def backward(ctx: Any, *wanted: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias = ctx.saved_tensors
        (gradient,) = wanted
        with torch.autocast("cpu", enabled=False):
            found = gradients(gradient, v, Tiles(q, k, bias, *ctx.settings), learns=ctx.needs_input_grad[3])
        return (*found, None, None, None)


def fill(out: Tensor, v: Tensor, tiles: Tiles) -> None:
    """Write what the weights of the tiles make of v into `out` [B, H, Lq, d]; autocast must be off."""
    for place in tiles:
        weights = tiles.weights(place)
        if tiles.dropout:
            weights *= tiles.kept(place)
        out[place] = torch.matmul(weights.to(v.dtype), v[place])


def gradients(gradient: Tensor, v: Tensor, tiles: Tiles, *, learns: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Of q, k, v and, where it learns, the bias, from that of the output; autocast must be off."""
    q, k, bias, scale, wide = tiles.q, tiles.k, tiles.bias, tiles.scale, tiles.wide
    d_q, d_k, d_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    d_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and learns else None
    for place in tiles:
        g = gradient[place]
        weights = tiles.weights(place)
        # not rounded before the row's mean is taken off, either: what is left would be mostly rounding
        d_weights = torch.matmul(g.to(wide), v[place].to(wide).transpose(-1, -2))
        if tiles.dropout:
            kept = tiles.kept(place)
            d_weights *= kept
            d_v[place] = torch.matmul(kept.mul_(weights).to(g.dtype).transpose(-1, -2), g)
        else:
            d_v[place] = torch.matmul(weights.to(g.dtype).transpose(-1, -2), g)
        # softmax: dS = P * (dP - rowsum(dP * P))
        d_scores = torch._softmax_backward_data(d_weights, weights, -1, wide)  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001
        if d_bias is not None:
            part = d_bias[tiles.of(place, d_bias)]
            part += d_scores.sum_to_size(part.shape)
        d_scores = d_scores.to(q.dtype)
        d_q[place] = torch.matmul(d_scores, k[place]).mul_(scale)
        d_k[place] = torch.matmul(d_scores.transpose(-1, -2), q[place]).mul_(scale)
    return d_q, d_k, d_v, None if bias is None or d_bias is None else d_bias.to(bias.dtype)


Place = tuple[slice, slice]
"""Rows of the batch, and heads."""


class Tiles:
    """The attention weights, a tile at a time."""

    def __init__(self, q: Tensor, k: Tensor, bias: Tensor | None, scale: float, dropout: float, seed: int) -> None:
        self.q, self.k, self.bias, self.scale, self.dropout, self.seed = q, k, bias, scale, dropout, seed
        self.wide = torch.promote_types(q.dtype, torch.float32)
        # tensors without numbers, which `plan` rehearses with, cost by the operation
        scores = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
        self.together = torch.get_num_threads() if type(q) is Tensor else max(1, scores // _REHEARSED // TILE)

    def __iter__(self) -> Iterator[Place]:
        """As many tiles together as there are threads: rows of the batch with all their heads, or some heads of one row."""
        all_heads = self.q.shape[1]
        rows, heads = self._tile()
        a_row = -(-all_heads // heads)  # tiles
        heads = min(all_heads, heads * self.together)
        return _places(slice(0, self.q.shape[0]), slice(0, all_heads), max(1, rows * (self.together // a_row)), heads)

    def _tile(self) -> tuple[int, int]:
        """(rows, heads) of one tile."""
        heads, size = self.q.shape[1], self.q.shape[2] * self.k.shape[2]
        return max(1, TILE // (size * heads)), min(heads, max(1, TILE // size))

    @staticmethod
    def of(place: Place, tensor: Tensor) -> Place:
        """The place in a tensor that may have one row or one head for all."""
        rows, heads = (slice(None) if n == 1 else part for n, part in zip(tensor.shape[:2], place, strict=True))
        return rows, heads

    def weights(self, place: Place) -> Tensor:
        """softmax(scale q k^T + bias), in fp32 or wider."""
        # scores rounded to half precision would move the weights by several per cent
        scores = torch.matmul(self.q[place].to(self.wide) * self.scale, self.k[place].to(self.wide).transpose(-1, -2))
        if self.bias is not None:
            scores += self.bias[self.of(place, self.bias)]
        return torch.softmax(scores, -1)

    def kept(self, place: Place) -> Tensor:
        """For each weight of a tile 0 (dropped) or 1 / the probability to be kept; the same at every call and for any number of threads."""
        rows, heads = (slice(part.start, min(part.stop, size)) for part, size in zip(place, self.q.shape[:2], strict=True))
        out = self.q.new_empty(rows.stop - rows.start, heads.stop - heads.start, self.q.shape[2], self.k.shape[2], dtype=self.wide)
        for row, head in _places(rows, heads, *self._tile()):  # each draws for itself, so that threads change nothing
            part = out[row.start - rows.start : row.stop - rows.start, head.start - heads.start : head.stop - heads.start]
            draw_kept(part, self.dropout, self.seed, row.start * self.q.shape[1] + head.start)
        return out


def draw_kept(out: Tensor, dropout: float, seed: int, number: int) -> None:
    """Fill one tile with 0 (dropped) and 1 / the probability to be kept.

    Args:
        out: contiguous or not.
        dropout: the probability to be dropped, in steps of 1 / 32768.
        seed: of all tiles.
        number: of this tile.
    """
    limit = round(dropout * 32768)
    if limit == 32768:
        out.zero_()
        return
    generator = torch.Generator().manual_seed((seed + number * 2654435761) % (1 << 63))
    drawn = torch.empty(-(-out.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None, generator=generator)
    # 15 bits of each quarter, less the limit: the sign says which are dropped (integer operations, as CPUs compare slowly in torch)
    signs = drawn.view(torch.int16)[: out.numel()].bitwise_and_(0x7FFF).sub_(limit).bitwise_right_shift_(15)
    out.copy_(signs.view(out.shape)).add_(1).mul_(32768 / (32768 - limit))


def _places(rows: slice, heads: slice, rows_each: int, heads_each: int) -> Iterator[Place]:
    """The tiles of a range of rows and heads, row by row; the last ones may reach beyond it."""
    for row in range(rows.start, rows.stop, rows_each):
        for head in range(heads.start, heads.stop, heads_each):
            yield slice(row, row + rows_each), slice(head, head + heads_each)
