"""Attention by distance on CPUs, tile by tile: no scores of a whole layer are held, and none of keys that no query of a tile sees.

With sinusoids, the scores by distance are one product with a column for each distance, of which every query needs another part: for whole
rows twice as many columns as there are keys, which then are shifted. A tile is a few rows of queries, so it needs few more columns than
keys, and its scores stay in a core's cache from the products to the weights. They are made again in the backward pass, as in
`shared.attention.tiled`, whose reasons and whose draws for dropout are the same here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ..shared.attention.plan import outside_graphs
from ..shared.attention.tiled import draw_kept

ROWS = 128
"""Queries of a tile."""
HEADS = 4
"""Heads that are computed together."""
ENOUGH = 1 << 15
"""Scores of a head below which whole rows are as fast."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Some queries that follow each other, and the keys that they may see; places are counted in keys."""

    row: int
    """Of the batch."""
    first: int
    last: int
    """Queries from `first` up to, and without, `last`."""
    begin: int
    end: int
    """Keys."""
    lowest: int
    highest: int
    """The lowest and the highest place of a query."""
    back: Tensor | None
    """int64 [queries]: how far the place of each lies before the highest; None where each stands behind the one before it."""
    mask: Tensor | None
    """float [queries, keys]: 0, or -inf for a key that a query does not see; None where all see all."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Queries, keys and distances."""
        keys = self.end - self.begin
        return self.last - self.first, keys, keys + self.highest - self.lowest


def tiles_of(hidden: Tensor | None, batch: int, queries: int, keys: int, places: Tensor | None = None) -> list[Tile]:
    """The tiles of a batch.

    Args:
        hidden: bool [B or 1, Lq, Lk]: keys that a query does not see; a query that sees none is as one that sees all of its tile's keys, or
            is in no tile. None where all see all.
        batch: B.
        queries: Lq.
        keys: Lk.
        places: int64 [B, Lq], the places of the queries; by default they are the last keys.
    """
    made: list[Tile] = []
    for first in range(0, queries, ROWS):
        last = min(first + ROWS, queries)
        for row in range(batch):
            unseen = None if hidden is None else hidden[row if len(hidden) > 1 else 0, first:last]
            begin, end, mask = _range(unseen, keys)
            if begin == end:
                continue
            if places is None:
                low, high, back = keys - queries + first, keys - queries + last - 1, None
            else:
                low, high = int(places[row, first:last].min()), int(places[row, first:last].max())
                back = high - places[row, first:last]
            made.append(Tile(row, first, last, begin, end, low, high, back, mask))
    return made


def _range(hidden: Tensor | None, keys: int) -> tuple[int, int, Tensor | None]:
    """The keys that some query sees, and the mask between them, from what is hidden [queries, keys]."""
    if hidden is None or not bool(hidden.any()):
        return 0, keys, None
    some = (~hidden).any(0).nonzero()
    if not len(some):
        return 0, 0, None
    begin, end = int(some[0]), int(some[-1]) + 1
    hidden = hidden[:, begin:end]
    hidden = hidden & ~hidden.all(1, keepdim=True)
    mask = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf) if bool(hidden.any()) else None
    return begin, end, mask


def tiles_of_texts(lengths: Sequence[int]) -> list[Tile]:
    """The tiles of texts side by side in one row, each of which sees only itself."""
    made: list[Tile] = []
    begin = 0
    for length in lengths:
        for first in range(begin, begin + length, ROWS):
            last = min(first + ROWS, begin + length)
            made.append(Tile(0, first, last, begin, begin + length, first, last - 1, None, None))
        begin += length
    return made


@outside_graphs
def attend_in_tiles(content: Tensor, distance: Tensor, k: Tensor, v: Tensor, r: Tensor, tiles: Sequence[Tile], far: int, scale: float,
                    dropout: float = 0.0) -> Tensor:
    """softmax(scale (content k + distance r)) v over the keys that are seen, where r is that of the distance between query and key.

    Args:
        content: [B, H, Lq, e].
        distance: [B, H, Lq, d].
        k: [B, H, Lk, e].
        v: [B, H, Lk, d].
        r: [H, d, R], vectors of the distances `far`, `far` - 1, ... from a query back to a key.
        tiles: they cover each query at most once; of one in no tile the result is 0.
        far: the first distance, not below that of any query and key of a tile.
        scale: of the scores.
        dropout: probability for the attention weights, in steps of 1 / 32768. The draws follow torch's default generator.

    Returns:
        [B, H, Lq, d].
    """
    seed = cast("int", torch.randint(1 << 62, ()).item()) if dropout else 0
    content, distance, k, r = (t.contiguous() for t in (content, distance, k, r))  # each is read many times
    return cast("Tensor", _InTiles.apply(content, distance, k, v, r, tiles, far, scale, dropout, seed))


class _InTiles(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, content: Tensor, distance: Tensor, k: Tensor, v: Tensor, r: Tensor, tiles: Sequence[Tile], far: int, scale: float,
                dropout: float, seed: int) -> Tensor:
        batch, heads, length, _ = content.shape
        out = v.new_zeros(batch, length, heads, v.shape[3]).transpose(1, 2)  # heads side by side, as what follows reads them
        work = _Work(content, distance, k, r, far, scale, dropout, seed)
        with torch.autocast("cpu", enabled=False):  # it would make the scores bf16 again
            for number, tile in enumerate(tiles):
                for part in work.heads():
                    weights = work.weights(tile, part)
                    if dropout:
                        weights *= work.kept(tile, part, number)
                    out[tile.row, part, tile.first:tile.last] = weights.to(v.dtype) @ v[tile.row, part, tile.begin:tile.end]
        ctx.save_for_backward(content, distance, k, v, r)
        ctx.settings = (tiles, far, scale, dropout, seed)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        content, distance, k, v, r = ctx.saved_tensors
        tiles, *settings = ctx.settings
        (gradient,) = gradients
        work = _Work(content, distance, k, r, *settings)
        wide = work.wide
        d_content, d_distance = torch.zeros_like(content), torch.zeros_like(distance)
        d_k, d_v, d_r = (torch.zeros(t.shape, dtype=wide) for t in (k, v, r))
        with torch.autocast("cpu", enabled=False):
            for number, tile in enumerate(tiles):
                queries, keys = slice(tile.first, tile.last), slice(tile.begin, tile.end)
                for part in work.heads():
                    g, mine = gradient[tile.row, part, queries], v[tile.row, part, keys]
                    weights = work.weights(tile, part)
                    d_weights = g.to(wide) @ mine.to(wide).transpose(1, 2)
                    used = weights
                    if work.dropout:
                        kept = work.kept(tile, part, number)
                        d_weights *= kept
                        used = kept.mul_(weights)
                    _add_product(d_v[tile.row, part, keys], used.to(g.dtype).transpose(1, 2), g)
                    # softmax: dS = P * (dP - rowsum(dP * P))
                    d_scores = torch._softmax_backward_data(d_weights, weights, -1, wide)  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001
                    d_scores = d_scores.to(content.dtype)
                    d_content[tile.row, part, queries] = (d_scores @ k[tile.row, part, keys]).mul_(work.scale)
                    _add_product(d_k[tile.row, part, keys], d_scores.transpose(1, 2), content[tile.row, part, queries], work.scale)
                    by_distance, columns = work.spread(tile, d_scores), work.columns(tile)
                    d_distance[tile.row, part, queries] = (by_distance @ r[part, :, columns].transpose(1, 2)).mul_(work.scale)
                    _add_product(d_r[part, :, columns], distance[tile.row, part, queries].transpose(1, 2), by_distance, work.scale)
        return d_content, d_distance, d_k.to(k.dtype), d_v.to(v.dtype), d_r.to(r.dtype), *(None,) * 5


def _add_product(total: Tensor, a: Tensor, b: Tensor, scale: float = 1.0) -> None:
    """Add scale a b to the total."""
    if total.dtype == a.dtype:
        total.baddbmm_(a, b, alpha=scale)
    else:
        total.add_(a @ b, alpha=scale)


class _Work:
    """The attention weights of a tile, for some heads."""

    def __init__(self, content: Tensor, distance: Tensor, k: Tensor, r: Tensor, far: int, scale: float, dropout: float, seed: int) -> None:
        self.content, self.distance, self.k, self.r = content, distance, k, r
        self.far, self.scale, self.dropout, self.seed = far, scale, dropout, seed
        self.wide = torch.promote_types(content.dtype, torch.float32)
        self.spreads: dict[tuple[int, ...], Tensor] = {}

    def heads(self) -> Iterator[slice]:
        """The heads that are computed together, whatever the number of threads, so that the draws do not depend on it."""
        count = self.content.shape[1]
        return (slice(first, min(first + HEADS, count)) for first in range(0, count, HEADS))

    def columns(self, tile: Tile) -> slice:
        """The distances of a tile."""
        first = self.far - tile.highest + tile.begin
        return slice(first, first + tile.shape[2])

    def weights(self, tile: Tile, part: slice) -> Tensor:
        """In fp32 or wider, [heads, queries, keys]."""
        queries = slice(tile.first, tile.last)
        by_distance = self.distance[tile.row, part, queries] @ self.r[part, :, self.columns(tile)]
        mine = self.shifted(tile, by_distance)
        if tile.mask is None:
            scores = mine.to(self.wide) * self.scale
        else:
            scores = torch.add(tile.mask.to(self.wide), mine.to(self.wide), alpha=self.scale)
        keys = self.k[tile.row, part, tile.begin:tile.end].to(self.wide)
        scores.baddbmm_(self.content[tile.row, part, queries].to(self.wide), keys.transpose(1, 2), alpha=self.scale)
        return torch.softmax(scores, -1)

    def shifted(self, tile: Tile, by_distance: Tensor) -> Tensor:
        """From a column for each distance to a column for each key, [heads, queries, keys]."""
        queries, keys, distances = tile.shape
        heads = len(by_distance)
        if tile.back is None:  # each row begins one column before the row above it
            return by_distance.as_strided((heads, queries, keys), (queries * distances, distances - 1, 1), queries - 1)
        return self._windows(by_distance, keys)[:, torch.arange(queries), tile.back]

    def spread(self, tile: Tile, scores: Tensor) -> Tensor:
        """The other way: scores [heads, queries, keys] at the columns of their distances, zeros beside them."""
        queries, keys, distances = tile.shape
        shape = (len(scores), queries, distances)
        if tile.back is not None:
            out = scores.new_zeros(shape)
            self._windows(out, keys)[:, torch.arange(queries), tile.back] = scores
            return out
        out = self.spreads.get(shape)
        if out is None:  # what is written is always the same part
            out = self.spreads[shape] = scores.new_zeros(shape)
        out.as_strided(scores.shape, (queries * distances, distances - 1, 1), queries - 1).copy_(scores)
        return out

    @staticmethod
    def _windows(by_distance: Tensor, keys: int) -> Tensor:
        """All stretches of as many columns as there are keys: [heads, queries, stretches, keys]."""
        return by_distance.unfold(2, keys, 1)

    def kept(self, tile: Tile, part: slice, number: int) -> Tensor:
        """For each weight 0 (dropped) or 1 / the probability to be kept; the same at every call."""
        queries, keys, _ = tile.shape
        out = self.k.new_empty(part.stop - part.start, queries, keys, dtype=self.wide)
        draw_kept(out, self.dropout, self.seed, number * self.content.shape[1] + part.start)
        return out
