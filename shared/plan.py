"""How attention under a `Mask` is computed: a plan, chosen once per forward pass for all layers.

A mask never makes SDPA faster, only a plan does: no mask and `is_causal` reach its fastest kernels,
packed documents never meet each other's keys, windows and block tables read only the keys they see.

A query that may see no key gets zeros, in every plan.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .mask import Mask


class Shape(NamedTuple):
    """What a plan is made for."""

    batch: int
    query_length: int
    key_length: int
    device: torch.device


class Plan(ABC):
    """Attention with everything decided but the numbers."""

    @classmethod
    @abstractmethod
    def supports(cls, mask: Mask, shape: Shape, bias: Tensor | None) -> bool:
        """Whether this plan computes exactly this mask and bias."""

    @abstractmethod
    def __init__(self, mask: Mask, shape: Shape, bias: Tensor | None) -> None: ...

    @abstractmethod
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, dropout: float = 0.0) -> Tensor:
        """Attend.

        Args:
            q: [B, H, Lq, d].
            k: [B, H, Lk, d].
            v: [B, H, Lk, d].
            scale: of the scores before the bias; by default 1 / sqrt(d).
            dropout: probability for the attention weights.

        Returns:
            [B, H, Lq, d].
        """


class Dense(Plan):
    """Scaled dot-product attention: without a mask, causal, with a bool mask, or with an additive bias."""

    @classmethod
    def supports(cls, mask: Mask, shape: Shape, bias: Tensor | None) -> bool:
        """Whether this plan computes exactly this mask and bias: always."""
        return True

    def __init__(self, mask: Mask, shape: Shape, bias: Tensor | None) -> None:
        only_causal = mask.causal and mask.window is None and mask.shift_invariant
        # is_causal counts from the first key, so it is right only where queries and keys coincide.
        self.is_causal = only_causal and bias is None and mask.offset == 0 and shape.query_length == shape.key_length
        hides = mask.causal or mask.window is not None or not mask.shift_invariant
        ok = mask.dense(*shape) if hides and not self.is_causal else None
        if bias is None or ok is None:
            self.mask = ok if bias is None else bias
        else:
            self.mask = bias.masked_fill(~ok, float("-inf"))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, dropout: float = 0.0) -> Tensor:
        """Attend; shapes as in `Plan`."""
        mask = self.mask
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(q.dtype)  # under autocast the bias table stays in fp32
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=self.is_causal, scale=scale)


class Documents(Plan):
    """Documents packed in one row: each is attended on its own, so padding and neighbours cost nothing.

    On CUDA in half precision this is one varlen kernel over cumulative lengths, made once here.
    Elsewhere documents of equal length share one SDPA call.
    """

    @classmethod
    def supports(cls, mask: Mask, shape: Shape, bias: Tensor | None) -> bool:
        """Whether this plan computes exactly this mask and bias: causal, window and keep inside each document."""
        others = (mask.prefix, mask.global_tokens, mask.blocks, mask.extra)
        whole = shape.query_length == shape.key_length and mask.offset == 0 and shape.batch == 1
        return mask.lengths is not None and whole and all(f is None for f in others)

    def __init__(self, mask: Mask, shape: Shape, bias: Tensor | None) -> None:
        assert mask.lengths is not None
        self.lengths = list(mask.lengths)
        starts = [0]
        for length in self.lengths:
            starts.append(starts[-1] + length)
        left, right = mask.window or (-1, -1)
        self.window = (left, 0 if mask.causal else right)
        self.varlen = shape.device.type == "cuda" and bias is None and mask.keep is None
        self.cumulative = torch.tensor(starts, dtype=torch.int32, device=shape.device) if self.varlen else None

        members: dict[int, list[int]] = {}
        for number, length in enumerate(self.lengths):
            members.setdefault(length, []).append(number)
        self.groups: list[tuple[list[int], Plan]] = []
        for length, numbers in members.items():
            spans = [slice(starts[n], starts[n] + length) for n in numbers]
            keep = None if mask.keep is None else torch.cat([mask.keep[:, s] for s in spans])
            part = None if bias is None else torch.cat([bias[:, :, s, s] for s in spans])
            inner = Mask(causal=mask.causal, window=mask.window, keep=keep)
            self.groups.append((numbers, make_plan(inner, len(numbers), length, length, shape.device, part)))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, dropout: float = 0.0) -> Tensor:
        """Attend; shapes as in `Plan`, with B = 1."""
        if self.varlen and dropout == 0.0 and q.dtype in (torch.float16, torch.bfloat16):
            return self._varlen(q, k, v, scale)
        # split, not slices: the backward of a split is one concatenation
        pieces = [t.split(self.lengths, dim=2) for t in (q, k, v)]
        out: list[Tensor] = [q] * len(self.lengths)
        for numbers, plan in self.groups:
            if len(numbers) == 1:
                n = numbers[0]
                out[n] = plan(pieces[0][n], pieces[1][n], pieces[2][n], scale, dropout)
            else:
                rows = [torch.cat([piece[n] for n in numbers]) for piece in pieces]
                together = plan(rows[0], rows[1], rows[2], scale, dropout)
                for n, row in zip(numbers, together.split(1)):
                    out[n] = row
        return torch.cat(out, dim=2)

    def _varlen(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        longest = max(self.lengths)
        rows = [t[0].transpose(0, 1) for t in (q, k, v)]  # [T, H, d], a view of the fused projection
        out = varlen_attn(
            rows[0], rows[1], rows[2], self.cumulative, self.cumulative, longest, longest, scale=scale, window_size=self.window
        )
        assert isinstance(out, Tensor)
        return out.transpose(0, 1)[None]


class Local(Plan):
    """A sliding window: queries in chunks, each with the blocks of keys its window touches.

    Time and memory grow linearly with the length. The other fields of the mask only narrow the view
    and are applied chunk by chunk.
    """

    @classmethod
    def supports(cls, mask: Mask, shape: Shape, bias: Tensor | None) -> bool:
        """Whether this plan computes exactly this mask and bias: a window and no global tokens."""
        return mask.window is not None and mask.global_tokens is None

    @staticmethod
    def reach(mask: Mask) -> tuple[int, int, int]:
        """(left, right, chunk): how far a query sees, and how many queries share their keys."""
        assert mask.window is not None
        left, right = mask.window
        if mask.causal and mask.prefix is None:
            right = 0
        return left, right, min(max(left, right, 16), 512)

    @classmethod
    def pays(cls, mask: Mask, shape: Shape) -> bool:
        """Whether chunks beat dense attention (measured: they tie where they read 3/4 of the keys)."""
        left, right, chunk = cls.reach(mask)
        return shape.key_length >= 512 and 2 * (left + right + chunk) <= shape.key_length

    def __init__(self, mask: Mask, shape: Shape, bias: Tensor | None) -> None:
        left, right, self.chunk = self.reach(mask)
        self.key_length = shape.key_length
        device = shape.device
        allowed = mask.predicate(device)
        known: dict[tuple[int, int, int], Tensor] = {}
        last_block = (shape.key_length - 1) // self.chunk
        self.spans: list[tuple[int, int, Tensor]] = []
        for start in range(0, shape.query_length, self.chunk):
            stop = min(start + self.chunk, shape.query_length)
            first = max(start + mask.offset - left, 0) // self.chunk
            last = min((stop - 1 + mask.offset + right) // self.chunk, last_block)
            begin, end = first * self.chunk, min((last + 1) * self.chunk, shape.key_length)
            # A window alone looks the same everywhere; with documents or padding each chunk is its own.
            place = (stop - start, begin - start, end - begin)
            part = known.get(place) if mask.shift_invariant and bias is None else None
            if part is None:
                q, k = torch.arange(start, stop, device=device), torch.arange(begin, max(begin, end), device=device)
                part = mask.part(allowed, q, k)
                if bias is not None:
                    part = bias[:, :, start:stop, begin:end].masked_fill(~part, float("-inf"))
                known[place] = part
            self.spans.append((first, last, part))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, dropout: float = 0.0) -> Tensor:
        """Attend; shapes as in `Plan`."""
        # split, not slices: the backward of a slice allocates a gradient of the full length
        queries, keys, values = (t.split(self.chunk, dim=2) for t in (q, k, v))
        out: list[Tensor] = []
        for query, (first, last, mask) in zip(queries, self.spans, strict=True):
            if last < first:
                out.append(torch.zeros_like(query))
                continue
            key, value = (torch.cat(t[first : last + 1], dim=2) for t in (keys, values))
            mask = mask if mask.dtype == torch.bool else mask.to(q.dtype)
            out.append(F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale))
        return torch.cat(out, dim=2)


class Blocks(Plan):
    """A block table: each block of queries gathers the blocks of keys it sees.

    Rows of the table that see many blocks (global blocks) are attended densely beside the others,
    so that one wide row does not widen the gather of all.
    """

    @classmethod
    def supports(cls, mask: Mask, shape: Shape, bias: Tensor | None) -> bool:
        """Whether this plan computes exactly this mask and bias: a block table over the whole length, no bias."""
        whole = shape.query_length == shape.key_length and mask.offset == 0
        return mask.blocks is not None and whole and bias is None and mask.global_tokens is None

    @staticmethod
    def widths(mask: Mask, shape: Shape) -> tuple[list[int], int]:
        """(wide rows of the table, blocks that the other rows gather)."""
        assert mask.blocks is not None
        n = -(-shape.key_length // mask.blocks.size)
        seen = mask.blocks.heads[:, :n, :n].sum(-1).amax(0)  # [n], most over the heads
        limit = max(2 * int(seen.median()), 1)
        wide = [i for i, s in enumerate(seen.tolist()) if s > limit]
        narrow = [s for s in seen.tolist() if s <= limit]
        return wide, max(narrow, default=0)

    @classmethod
    def pays(cls, mask: Mask, shape: Shape) -> bool:
        """Whether gathering beats dense attention (measured: a tie where it reads a third of the keys)."""
        assert mask.blocks is not None
        wide, width = cls.widths(mask, shape)
        n = -(-shape.key_length // mask.blocks.size)
        return shape.key_length >= 1024 and 3 * (len(wide) * n + (n - len(wide)) * width) <= n * n

    def __init__(self, mask: Mask, shape: Shape, bias: Tensor | None) -> None:
        assert mask.blocks is not None
        size, length, device = mask.blocks.size, shape.key_length, shape.device
        n = -(-length // size)
        self.size, self.length, self.pad = size, length, n * size - length
        wide, self.width = self.widths(mask, shape)
        narrow = sorted(set(range(n)) - set(wide))
        table = mask.blocks.heads[:, :n, :n][:, narrow]  # [H or 1, R, n]
        # The blocks that a row sees come first (a stable sort keeps their order); the rest is hidden below.
        order = table.int().argsort(dim=-1, descending=True, stable=True)[..., : self.width]
        index = order.to(device)  # [H or 1, R, W]
        self.index, self.rows = index, torch.tensor(narrow, device=device, dtype=torch.long)
        places = torch.tensor([*narrow, *wide], dtype=torch.long)
        self.restore = places.argsort().to(device) if wide else None

        allowed = mask.predicate(device)
        inside = torch.arange(size, device=device)
        b = torch.arange(mask.batch, device=device)
        h = torch.arange(mask.heads, device=device)
        self.mask: Tensor | None = None
        if narrow and self.width:
            q = self.rows[:, None] * size + inside  # [R, size]
            k = (index[..., None] * size + inside).flatten(-2)  # [H or 1, R, W * size]
            q, k = q[None, None, :, :, None], k[None, :, :, None, :]
            real = (k < length) & (q < length)
            ok = allowed(b[:, None, None, None, None], h[:, None, None, None], q.clamp(max=length - 1), k.clamp(max=length - 1)) & real
            if ok.shape[0] * ok.shape[1] > 1:
                ok = ok.expand(shape.batch, -1, -1, -1, -1)
            self.mask = ok  # [B or 1, H or 1, R, size, W * size]
        self.wide_rows = self.wide_mask = None
        if wide:
            self.wide_rows = (torch.tensor(wide, device=device)[:, None] * size + inside).flatten()
            self.wide_mask = mask.part(allowed, self.wide_rows.clamp(max=length - 1), torch.arange(length, device=device))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, dropout: float = 0.0) -> Tensor:
        """Attend; shapes as in `Plan`."""
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
            mask = self.mask
            if mask.shape[0] * mask.shape[1] > 1:
                mask = mask.expand(batch, heads, -1, -1, -1)
            mask = mask.permute(2, 0, 1, 3, 4).flatten(1, 2)  # [R, 1 or B * H, size, W * size]
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale)
            parts.append(out.unflatten(1, (batch, heads)).permute(1, 2, 0, 3, 4))
        if self.wide_rows is not None:
            query = padded.index_select(2, self.wide_rows)
            out = F.scaled_dot_product_attention(query, k, v, attn_mask=self.wide_mask, dropout_p=dropout, scale=scale)
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


def make_plan(
    mask: Mask,
    batch: int,
    query_length: int,
    key_length: int,
    device: torch.device,
    bias: Tensor | None = None,
    backend: type[Plan] | None = None,
) -> Plan:
    """The fastest plan that computes exactly this mask (arguments as in `Mask.plan`)."""
    mask.check(batch, query_length, key_length)
    shape = Shape(batch, query_length, key_length, device)
    if backend is not None:
        if not backend.supports(mask, shape, bias):
            raise ValueError(f"{backend.__name__} cannot compute this mask; leave `backend` out to let the mask choose")
        return backend(mask, shape, bias)
    mask = mask.simplified(query_length, key_length)
    return _choose(mask, shape, bias)(mask, shape, bias)


def _choose(mask: Mask, shape: Shape, bias: Tensor | None) -> type[Plan]:
    from .flex import Flex

    if Documents.supports(mask, shape, bias):
        return Documents
    if shape.device.type == "cuda" and Flex.supports(mask, shape, bias) and Flex.pays(mask, shape):
        return Flex
    if Local.supports(mask, shape, bias) and Local.pays(mask, shape):
        return Local
    if Blocks.supports(mask, shape, bias) and Blocks.pays(mask, shape):
        return Blocks
    return Dense
