"""Plans that read only the keys a mask shows: sliding windows in chunks, block tables by gathering."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .mask import Mask, on_device
from .pieces import Piece, attend_pieces
from .plan import Plan, Shape
from .tiled import attend


class Local(Plan):
    """A sliding window: queries in chunks, each with the blocks of keys its window touches.

    Time and memory grow linearly with the length. Global tokens are read by every chunk beside its
    window, and their own rows are attended densely. The other fields of the mask only narrow the view
    and are applied chunk by chunk. A head that is dilated reads all keys that its window reaches over.
    """

    @classmethod
    def supports(cls, mask: Mask, shape: Shape, bias: Tensor | None) -> bool:
        """Whether this plan computes exactly this mask and bias: everything that has a window, and counts each key once."""
        return mask.window is not None and not mask.repeats

    @staticmethod
    def reach(mask: Mask) -> tuple[int, int, int]:
        """(left, right, chunk): how far a query sees, and how many queries share their keys."""
        assert mask.window is not None
        left, right = mask.window
        if not mask.looks_ahead:
            right = 0
        left, right = (side * max(mask.dilation, default=1) for side in (left, right))
        return left, right, min(max(left, right, 32), 128)  # measured: longer chunks read keys in vain, shorter ones copy them more often

    @classmethod
    def pays(cls, mask: Mask, shape: Shape) -> bool:
        """Whether chunks beat dense attention (measured: they still win where they read 2/3 of the keys)."""
        left, right, chunk = cls.reach(mask)
        if shape.key_length < 256 or 5 * (left + right + chunk) > 4 * shape.key_length:
            return False
        positions = _positions(mask.global_tokens, mask.global_keys)
        return positions is None or 5 * (left + right + chunk + 2 * len(positions)) <= 4 * shape.key_length

    def __init__(self, mask: Mask, shape: Shape, bias: Tensor | None) -> None:
        left, right, self.chunk = self.reach(mask)
        device = shape.device
        allowed = mask.predicate(device)
        everywhere = _positions(mask.global_tokens, mask.global_keys)
        self.everywhere = None if everywhere is None else everywhere.to(device)
        known: dict[tuple[int, int, int], Tensor] = {}
        last_block = (shape.key_length - 1) // self.chunk
        self.spans: list[tuple[int, int, Tensor]] = []
        self.pieces: list[Piece] = []
        self.by_piece = device.type == "cpu" and bias is None
        for start in range(0, shape.query_length, self.chunk):
            stop = min(start + self.chunk, shape.query_length)
            first = max(start + mask.offset - left, 0) // self.chunk
            last = max(min((stop - 1 + mask.offset + right) // self.chunk, last_block), first - 1)
            begin, end = first * self.chunk, min((last + 1) * self.chunk, shape.key_length)
            # A window alone looks the same everywhere; with documents or padding each chunk is its own.
            place = (stop - start, begin - start, end - begin)
            part = known.get(place) if mask.shift_invariant and bias is None else None
            if part is None:
                q, k = torch.arange(start, stop, device=device), torch.arange(begin, max(end, begin), device=device)
                part = mask.part(allowed, q, k)
                if self.everywhere is not None:  # each key once: those of the chunk are hidden among the global ones
                    beside = (self.everywhere < begin) | (self.everywhere >= end)
                    more = mask.part(allowed, q, self.everywhere) & beside
                    part = torch.cat([part, more.expand(*part.shape[:3], -1)], dim=-1)
                    k = torch.cat([k, self.everywhere])
                if bias is not None:
                    part = bias[:, :, start:stop].index_select(3, k).masked_fill(~part, float("-inf"))
                known[place] = part
            self.spans.append((first, last, part))
            self.pieces.append(Piece(start, stop, begin, max(begin, end), part, self.everywhere))
        self.rows: Tensor | None = None
        if (rows := _positions(mask.global_tokens)) is not None:
            rows = rows.to(device) - mask.offset
            self.rows = rows[(rows >= 0) & (rows < shape.query_length)]
            part = mask.part(allowed, self.rows, torch.arange(shape.key_length, device=device))
            self.row_mask = part if bias is None else bias.index_select(2, self.rows).masked_fill(~part, float("-inf"))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, dropout: float = 0.0) -> Tensor:
        """Attend; shapes as in `Plan`."""
        if self.by_piece and not torch.compiler.is_compiling():
            result = attend_pieces(q, k, v, self.pieces, scale, dropout)
        else:
            result = self._chunks(q, k, v, scale, dropout)
        if self.rows is not None:
            own = attend(q.index_select(2, self.rows), k, v, self.row_mask, scale=scale, dropout=dropout)
            result = result.index_copy(2, self.rows, own)
        return result

    def _chunks(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None, dropout: float) -> Tensor:
        """The same with copies of the keys of each chunk, which autograd keeps."""
        # split, not slices: the backward of a slice allocates a gradient of the full length
        queries, keys, values = (t.split(self.chunk, dim=2) for t in (q, k, v))
        more: list[tuple[Tensor, ...]] = [(), ()]
        if self.everywhere is not None:
            more = [(k.index_select(2, self.everywhere),), (v.index_select(2, self.everywhere),)]
        out: list[Tensor] = []
        for query, (first, last, mask) in zip(queries, self.spans, strict=True):
            key = (*keys[first : last + 1], *more[0])
            value = (*values[first : last + 1], *more[1])
            if key:
                out.append(attend(query, torch.cat(key, dim=2), torch.cat(value, dim=2), mask, scale=scale, dropout=dropout))
            else:
                out.append(torch.zeros_like(query))
        return torch.cat(out, dim=2)


def _positions(*marked: Tensor | None) -> Tensor | None:
    """Positions that are marked in any row of the batch, or None where there are none (waits for the device)."""
    found = [m.any(0) for m in marked if m is not None]
    positions = torch.stack(found).any(0).nonzero()[:, 0] if found else ()
    return positions if isinstance(positions, Tensor) and len(positions) else None


class Blocks(Plan):
    """A block table: each block of queries gathers the blocks of keys it sees.

    Rows of the table that see many blocks (global blocks) are attended densely beside the others,
    so that one wide row does not widen the gather of all.
    """

    @classmethod
    def supports(cls, mask: Mask, shape: Shape, bias: Tensor | None) -> bool:
        """Whether this plan computes exactly this mask and bias: a block table over the whole length, no bias."""
        whole = shape.query_length == shape.key_length and mask.offset == 0
        return mask.blocks is not None and whole and bias is None and mask.global_tokens is None and mask.global_keys is None

    @staticmethod
    def widths(mask: Mask, shape: Shape) -> tuple[list[int], int]:
        """(wide rows of the table, blocks that the other rows gather)."""
        assert mask.blocks is not None
        n = -(-shape.key_length // mask.blocks.size)
        seen = (mask.blocks.array[:, :n, :n] > 0).sum(-1).max(0)  # [n], most over the heads
        limit = max(2 * int(np.sort(seen)[(n - 1) // 2]), 1)
        wide = [i for i, s in enumerate(seen.tolist()) if s > limit]
        narrow = [s for s in seen.tolist() if s <= limit]
        return wide, max(narrow, default=0)

    @classmethod
    def pays(cls, mask: Mask, shape: Shape) -> bool:
        """Whether gathering beats dense attention (measured: it still wins where it reads half of the keys)."""
        assert mask.blocks is not None
        wide, width = cls.widths(mask, shape)
        n = -(-shape.key_length // mask.blocks.size)
        return shape.key_length >= 512 and 3 * (len(wide) * n + (n - len(wide)) * width) <= 2 * n * n

    def __init__(self, mask: Mask, shape: Shape, bias: Tensor | None) -> None:
        assert mask.blocks is not None
        size, length, device = mask.blocks.size, shape.key_length, shape.device
        n = -(-length // size)
        self.size, self.length, self.pad = size, length, n * size - length
        wide, self.width = self.widths(mask, shape)
        narrow = sorted(set(range(n)) - set(wide))
        table = mask.blocks.heads[:, :n, :n][:, narrow]  # [H or 1, R, n]
        widths = table.sum(-1).amax(0).tolist()
        # The blocks that a row sees come first (a stable sort keeps their order); the rest is hidden below.
        order = table.int().argsort(dim=-1, descending=True, stable=True)[..., : self.width]
        index = order.to(device, non_blocking=True)  # [H or 1, R, W]
        self.index, self.rows = index, on_device(narrow, device, torch.long)
        places = torch.tensor([*narrow, *wide], dtype=torch.long)
        self.restore = places.argsort().to(device, non_blocking=True) if wide else None

        allowed, weigh = mask.predicate(device), mask.weights(device)
        inside = torch.arange(size, device=device)
        b = torch.arange(mask.batch, device=device)
        h = torch.arange(mask.heads, device=device)
        self.mask: Tensor | None = None
        self.weights: Tensor | None = None
        if narrow and self.width:
            # where the queries of a block see the same, one stands for all
            q = self.rows[:, None] * size + (inside[:1] if mask.by_block else inside)  # [R, size or 1]
            k = (index[..., None] * size + inside).flatten(-2)  # [H or 1, R, W * size]
            q, k = q[None, None, :, :, None], k[None, :, :, None, :]
            real = (k < length) & (q < length)
            q, k, every = q.clamp(max=length - 1), k.clamp(max=length - 1), h[:, None, None, None]
            ok = allowed(b[:, None, None, None, None], every, q, k) & real
            if weigh is not None:
                self.weights = weigh(every, q, k)  # [1, H or 1, R, size or 1, W * size]
            if ok.shape[0] * ok.shape[1] > 1:
                ok = ok.expand(shape.batch, -1, -1, -1, -1)
            self.mask = ok  # [B or 1, H or 1, R, size or 1, W * size]
        self.wide_rows = self.wide_mask = self.wide_weights = None
        if wide:
            self.wide_rows = (on_device(wide, device)[:, None] * size + inside).flatten()
            if not (mask.by_block and mask.keep is None and self.pad == 0 and bool((mask.blocks.counts[:, wide, :n] == 1).all())):
                rows, every = self.wide_rows.clamp(max=length - 1), torch.arange(length, device=device)
                self.wide_mask = mask.part(allowed, rows, every)
                self.wide_weights = None if weigh is None else mask.spread(weigh, rows, every)
        repeats = (mask.blocks.counts[:, :n, :n] > 1).any(0).any(-1).tolist()
        self.pieces = sorted(self._pieces(narrow, widths, wide, repeats), key=lambda piece: piece.first) if device.type == "cpu" else []

    def _pieces(self, narrow: list[int], widths: list[int], wide: list[int], repeats: list[bool]) -> Iterator[Piece]:
        """A piece for each row of the table."""
        def of(part: Tensor | None, row: int) -> Tensor | None:
            """What belongs to the queries of a row that are there."""
            return None if part is None or not repeats[row] else part[:, :, :min(self.size, self.length - row * self.size)]

        for number, (row, width) in enumerate(zip(narrow, widths, strict=True)):
            first, last = row * self.size, min((row + 1) * self.size, self.length)
            if self.mask is None or not width:
                yield Piece(first, last, 0, 0, None, size=self.size)
            else:
                seen = self.mask[:, :, number, :last - first, :width * self.size]
                index = self.index[:, number, :width]
                weights = None if self.weights is None else of(self.weights[:, :, number, :, :width * self.size], row)
                yield Piece(first, last, 0, 0, None if weights is None and bool(seen.all()) else seen,
                            index[0] if len(index) == 1 else index, self.size, weights)
        for number, row in enumerate(wide):
            first, last = row * self.size, min((row + 1) * self.size, self.length)
            place = slice(number * self.size, number * self.size + last - first)
            seen = None if self.wide_mask is None else self.wide_mask[:, :, place]
            weights = None if self.wide_weights is None else of(self.wide_weights[:, :, place], row)
            yield Piece(first, last, 0, self.length, seen, size=self.size, weights=weights)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, dropout: float = 0.0) -> Tensor:
        """Attend; shapes as in `Plan`."""
        if self.pieces and not torch.compiler.is_compiling():
            return attend_pieces(q, k, v, self.pieces, scale, dropout)
        batch, heads, _, d = q.shape
        padded = F.pad(q, (0, 0, 0, self.pad))
        parts: list[Tensor] = []
        rows = len(self.rows)
        if rows and self.mask is None:
            parts.append(q.new_zeros(batch, heads, rows, self.size, d))
        elif rows and self.mask is not None:
            query = padded.unflatten(2, (-1, self.size)).index_select(2, self.rows)
            query = query.permute(2, 0, 1, 3, 4).reshape(rows, batch * heads, self.size, d)
            key, value = (self._gather(t) for t in (k, v))
            mask = self.mask if self.weights is None else self.weights.masked_fill(~self.mask, -torch.inf)
            if mask.shape[0] * mask.shape[1] > 1:
                mask = mask.expand(batch, heads, -1, -1, -1)
            mask = mask.permute(2, 0, 1, 3, 4).flatten(1, 2)  # [R, 1 or B * H, size or 1, W * size]
            out = attend(query, key, value, mask, scale=scale, dropout=dropout)
            parts.append(out.unflatten(1, (batch, heads)).permute(1, 2, 0, 3, 4))
        if self.wide_rows is not None:
            query = padded.index_select(2, self.wide_rows)
            seen = self.wide_mask
            if seen is not None and self.wide_weights is not None:
                seen = self.wide_weights.masked_fill(~seen, -torch.inf)
            out = attend(query, k, v, seen, scale=scale, dropout=dropout)
            parts.append(out.unflatten(2, (-1, self.size)))
        out = torch.cat(parts, dim=2)
        if self.restore is not None:
            out = out.index_select(2, self.restore)
        return out.flatten(2, 3)[:, :, : self.length]

    def _gather(self, t: Tensor) -> Tensor:
        """The keys or values that each row of the table sees: [B, H, L, d] -> [R, B * H, W * size, d]."""
        batch, heads, _, d = t.shape
        blocks = F.pad(t, (0, 0, 0, self.pad)).unflatten(2, (-1, self.size))
        rows, width = self.index.shape[1:]
        if self.index.shape[0] == 1:
            seen = blocks.index_select(2, self.index.flatten())
        else:
            index = self.index.flatten(1)[None, :, :, None, None].expand(batch, -1, -1, self.size, d)
            seen = blocks.gather(2, index)
        seen = seen.unflatten(2, (rows, width))  # [B, H, R, W, size, d]
        return seen.permute(2, 0, 1, 3, 4, 5).reshape(rows, batch * heads, width * self.size, d)
