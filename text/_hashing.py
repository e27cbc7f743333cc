"""Attention to what hashes alike (Reformer): buckets by random rotations, and attention between chunks of tokens in a given order.

Kitaev, Kaiser and Levskaya, "Reformer: The Efficient Transformer", 2020, section 2. https://arxiv.org/abs/2001.04451
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ..shared.attention.tiled import draw_kept, is_short_half

# ----------------------------------------------------------------------------------------------- hashing


def bucket_factors(length: int, chunk: int) -> tuple[int, ...]:
    """Even numbers whose product is the number of buckets for texts of `length` tokens: about two for each chunk, a power of two.

    One number up to two chunks, then two factors, as transformers has it (for up to chunk^3 positions); more where these would be larger
    than that. So n tokens take O(n log n) products with rotations.
    """
    power = max(1, (2 * (length // chunk)).bit_length() - 1)
    count = -(-power // max(1, (2 * chunk).bit_length() - 1))
    shares = [power * (n + 1) // count - power * n // count for n in range(count)]
    return tuple(1 << share for share in shares)


def rotation(seed: int, heads: int, size: int, rounds: int, factors: Sequence[int]) -> Tensor:
    """Random rotations of one layer for one text, [H, d, rounds, half the sum of the factors], from N(0, 1) by a generator of their own.

    They are the numbers that torch's global generator gives after `manual_seed(seed)`, as transformers draws them.
    """
    return torch.randn(heads, size, rounds, sum(factors) // 2, generator=torch.Generator().manual_seed(seed))


def buckets(vectors: Tensor, rotations: Tensor, factors: Sequence[int]) -> Tensor:
    """The bucket of each vector in each round, int64 [B, H, rounds, S], below the product of the factors.

    Args:
        vectors: [B, H, S, d].
        rotations: [B or 1, H, d, rounds, half the sum of the factors].
        factors: an angular hash of each of these sizes (section 2: argmax of [xR; -xR]) is one digit of the bucket's number.
    """
    rounds = rotations.shape[3]
    rotated = (rotations.flatten(3).transpose(2, 3).to(vectors.dtype) @ vectors.transpose(2, 3)).unflatten(2, (rounds, -1))
    found, times = None, 1
    for part, factor in zip(rotated.split([f // 2 for f in factors], 3), factors, strict=True):
        high, top = part.max(3)
        low, bottom = part.min(3)
        digit = torch.where(high >= -low, top, bottom + factor // 2)
        found = digit if found is None else found + times * digit
        times *= factor
    assert found is not None
    return found


def order_by(bucket: Tensor, keep: Tensor | None) -> Tensor:
    """The tokens of each round sorted by bucket, then by place; int32 [B, H, rounds * S]. Padding comes last.

    Args:
        bucket: int64 [B, H, rounds, S].
        keep: bool [B, S], False at padding.
    """
    length = bucket.shape[-1]
    if keep is not None:
        bucket = bucket.masked_fill(~keep[:, None, None], torch.iinfo(torch.int32).max)
    sorted_keys = (bucket * length + torch.arange(length, device=bucket.device)).sort(-1).values
    return (sorted_keys % length).int().flatten(2)


# ---------------------------------------------------------------------------------------- attention


LONELY = float(1 << 17)
"""So much is taken off the score that a token gives itself: it sees itself only where it sees nobody else. Off what stands later, or is
padding, more still is taken. A power of two: products with places are exact."""
TILE = 1 << 18
"""Scores that are held at a time on a CPU for each thread: 1 MiB in fp32."""

_forward, _backward = (getattr(torch.ops.aten, f"_scaled_dot_product_flash_attention_for_cpu{end}") for end in ("", "_backward"))


@dataclass(frozen=True, slots=True)
class Nearby:
    """Which tokens see each other once they are in order: those of a chunk, and of some chunks before and after, in a circle."""

    chunk: int
    before: int
    after: int
    causal: bool
    """Whether a token sees none that stands later in the text."""
    alone: bool
    """Whether a token sees itself only where it sees nobody else."""

    @property
    def width(self) -> int:
        """Tokens that one sees at most."""
        return (self.before + 1 + self.after) * self.chunk

    def whole(self, length: int) -> Nearby:
        """The same for a text of one chunk."""
        return Nearby(length, 0, 0, self.causal, self.alone)


def attend_nearby(q: Tensor, k: Tensor, v: Tensor, order: Tensor | None, near: Nearby, keep: Tensor | None = None,
                  dropout: float = 0.0) -> Tensor:
    """softmax(q k / sqrt(d)) v over the tokens nearby in each round; a key that is nearby in two rounds counts twice.

    That is the paper's sum over the rounds, each weighted by its part of the denominator (section 2).

    Args:
        q: [B, H, S, d].
        k: [B, H, S, d].
        v: [B, H, S, d].
        order: int32 [B, H, rounds * S], the tokens of each round in their order; None: as they stand, in one round.
        near: who sees whom; its chunk divides rounds * S.
        keep: bool [B, S], False at padding, which nobody sees.
        dropout: probability for the weights, in steps of 1 / 32768; the draws follow torch's default generator.

    Returns:
        [B, H, S, d].
    """
    seed = cast("int", torch.randint(1 << 62, ()).item()) if dropout else 0
    kind = q.device.type
    if torch.is_autocast_enabled(kind):
        q, k, v = (t.to(torch.get_autocast_dtype(kind)) for t in (q, k, v))
    with torch.autocast(kind, enabled=False):
        return cast("Tensor", _Nearby.apply(q, k, v, order, near, keep, dropout, seed))


class _Ordered:
    """The queries, keys and values of some rows and heads, N together, in their order; `places` cut them into tiles of chunks."""

    def __init__(self, order: Tensor, length: int, near: Nearby, hidden: Tensor | None, *, fast: bool) -> None:
        """Lay out N rows.

        Args:
            order: int64 [N, rounds * S].
            length: S.
            near: who sees whom.
            hidden: bool [N, S], True at padding.
            fast: whether torch's kernel for CPUs computes them.
        """
        self.near, self.length, self.fast = near, length, fast
        self.rows, total = order.shape
        self.count = total // near.chunk
        ring = torch.arange(-near.before, self.count + near.after, device=order.device) % self.count
        self.order = order
        self.keys = order.view(self.rows, self.count, near.chunk)[:, ring].flatten(1)
        number = torch.arange(total, device=order.device)
        self.inverse = torch.empty_like(order).scatter_(1, order + number // length * length, number.expand_as(order))
        self.hidden = None if hidden is None else hidden.gather(1, self.keys)

    def chunks(self, t: Tensor) -> Tensor:
        """Rows [N, S, d] in order and cut: [N, chunks, chunk, d]."""
        return self._read(t, self.order).view(self.rows, self.count, self.near.chunk, -1)

    def windows(self, t: Tensor) -> Tensor:
        """What each chunk sees of rows [N, S, d]: [N, chunks, W, d], which overlap in memory."""
        found = self._read(t, self.keys)
        size, d = self.near.chunk, t.shape[2]
        return found.as_strided((self.rows, self.count, self.near.width, d), (found.stride(0), size * d, d, 1))

    def _read(self, t: Tensor, order: Tensor) -> Tensor:
        if self.rows == 1:
            return t[0].index_select(0, order[0])[None]
        return t.gather(1, order[:, :, None].expand(-1, -1, t.shape[2]))

    def back(self, t: Tensor) -> Tensor:
        """What is in order [N, chunks, chunk, d] as it stands in the text, one round behind the other: [N, rounds, S, d]."""
        return self._read(t.flatten(1, 2), self.inverse).unflatten(1, (-1, self.length))

    def folded(self, t: Tensor) -> Tensor:
        """The gradients of windows [N, chunks, W, d] added up, and over the rounds: [N, S, d]."""
        parts = t.unflatten(2, (-1, self.near.chunk)).unbind(2)
        total = sum((part.roll(n - self.near.before, 1) for n, part in enumerate(parts[1:], 1)), parts[0].roll(-self.near.before, 1))
        return self.back(cast("Tensor", total)).sum(1)

    def places(self, threads: int) -> list[slice]:
        """Tiles of chunks: a few for a core's cache, or all where a kernel or a GPU wants them all."""
        if not self.fast and self.order.device.type == "cpu" and type(self.order) is Tensor:
            step = max(1, TILE * threads // (self.rows * self.near.chunk * self.near.width))
        else:
            step = self.count
        return [slice(first, first + step) for first in range(0, self.count, step)]

    def bias(self, place: slice, like: Tensor) -> Tensor:
        """What is added to the scores of some chunks, [N, chunks, chunk, W]; see `LONELY`."""
        near, size = self.near, self.near.chunk
        wide = torch.promote_types(like.dtype, torch.float32)
        mine = self.order.view(self.rows, self.count, size, 1)[:, place].to(wide)
        seen = self.keys.to(wide)
        seen = seen.as_strided((self.rows, self.count, 1, near.width), (seen.stride(0), size, near.width, 1))[:, place]
        apart = (mine * LONELY) - (seen * LONELY)
        if near.causal:
            apart = (apart.sub_(LONELY) if near.alone else apart).clamp_(max=0)
        elif near.alone:
            apart = apart.abs_().clamp_(max=LONELY).sub_(LONELY)
        else:
            apart.zero_()
        if self.hidden is not None:
            low = self.hidden.to(wide).mul_(-4 * LONELY)
            apart += low.as_strided((self.rows, self.count, 1, near.width), (low.stride(0), size, near.width, 1))[:, place]
        return apart.to(like.dtype) if self.fast else apart

    def weights(self, place: slice, q: Tensor, k: Tensor, scale: float, sums: Tensor | None) -> tuple[Tensor, Tensor]:
        """exp(scores - sums) of some chunks [N, chunks, chunk, W] in fp32 at least, and sums [N, chunks, chunk], by default their own."""
        bias = self.bias(place, q)
        scores = torch.matmul(q[:, place].to(bias.dtype) * scale, k[:, place].to(bias.dtype).transpose(-1, -2)).add_(bias)
        found = scores.logsumexp(-1) if sums is None else sums[:, place]
        return scores.sub_(found[..., None]).exp_(), found

    def kept(self, place: slice, like: Tensor, dropout: float, seed: int) -> Tensor:
        """For each weight of some chunks 0 or 1 / the probability to be kept; what a lonely token gives itself is kept as it is."""
        out = torch.empty_like(like)
        if out.device.type == "cpu":
            draw_kept(out, dropout, seed, place.start)
        else:
            generator = torch.Generator(out.device).manual_seed((seed + place.start) % (1 << 63))
            out.bernoulli_(1 - dropout, generator=generator).div_(max(1 - dropout, 1e-9))
        return out.masked_fill_(self.bias(place, like) < 0, 1.0) if self.near.alone else out


class _Nearby(torch.autograd.Function):
    """Some rows and heads at a time. Of the scores nothing is kept but the logarithm of each token's sum of exponentials over all rounds:
    with it, and the output of all rounds, the gradient of each round is that of a softmax of its own (Dao et al., 2022, algorithm 4).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, order: Tensor | None, near: Nearby, keep: Tensor | None, dropout: float,
                seed: int) -> Tensor:
        batch, heads, length, size = v.shape
        q, k, v = (t.reshape(batch * heads, length, -1) for t in (q, k, v))
        out = torch.empty_like(v)
        sums = v.new_empty(v.shape[:2], dtype=torch.promote_types(v.dtype, torch.float32))
        for rows, ordered in _some(q, order, near, keep, heads, dropout):
            found, logs = _attended(ordered, q[rows], k[rows], v[rows], dropout, seed + rows.start)
            # not exp(logs - total): near LONELY, sums are rounded to a hundredth
            out[rows] = (found * logs.softmax(1).to(found.dtype)[..., None]).sum(1)
            sums[rows] = logs.logsumexp(1)
        ctx.save_for_backward(q, k, v, out, sums, order, keep)
        ctx.settings = (near, heads, dropout, seed)
        return out.view(batch, heads, length, size)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *wanted: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, out, sums, order, keep = ctx.saved_tensors
        near, heads, dropout, seed = ctx.settings
        shape = wanted[0].shape
        gradient = wanted[0].reshape(out.shape)
        found = [torch.empty_like(t) for t in (q, k, v)]
        for rows, ordered in _some(q, order, near, keep, heads, dropout):
            parts = _gradients(ordered, q[rows], k[rows], v[rows], out[rows], sums[rows], gradient[rows], dropout, seed + rows.start)
            for whole, part in zip(found, parts, strict=True):
                whole[rows] = part
        return (*(t.view(*shape[:3], -1) for t in found), None, None, None, None, None)


def _some(q: Tensor, order: Tensor | None, near: Nearby, keep: Tensor | None, heads: int, dropout: float
          ) -> Iterator[tuple[slice, _Ordered]]:
    """Some of the rows [B * H] at a time, in order: one where a core's cache is to hold them, all on a GPU."""
    count, length = q.shape[:2]
    here = q.device.type == "cpu"
    fast = here and not dropout and not is_short_half(q, near.chunk * near.width)
    step = 1 if here and type(q) is Tensor else count  # tensors without numbers, which `plan` rehearses with, cost by the operation
    order = torch.arange(length, device=q.device).expand(count, -1) if order is None else order.flatten(0, 1).long()
    hidden = None if keep is None else ~keep.repeat_interleave(heads, 0)
    for first in range(0, count, step):
        rows = slice(first, first + step)
        yield rows, _Ordered(order[rows], length, near, None if hidden is None else hidden[rows], fast=fast)


def _attended(ordered: _Ordered, q: Tensor, k: Tensor, v: Tensor, dropout: float, seed: int) -> tuple[Tensor, Tensor]:
    """What each round makes of rows [N, S, d], [N, rounds, S, d], and the logarithms of its sums, [N, rounds, S]."""
    q, k, v, scale = ordered.chunks(q), ordered.windows(k), ordered.windows(v), q.shape[2] ** -0.5
    outs: list[Tensor] = []
    logs: list[Tensor] = []
    for place in ordered.places(torch.get_num_threads()):
        if ordered.fast:
            out, log = _forward(q[:, place], k[:, place], v[:, place], 0.0, False, attn_mask=ordered.bias(place, q), scale=scale)
        else:
            weights, log = ordered.weights(place, q, k, scale, None)
            if dropout:
                weights *= ordered.kept(place, weights, dropout, seed)
            out = torch.matmul(weights.to(v.dtype), v[:, place])
        outs.append(out)
        logs.append(log)
    return ordered.back(_joined(outs)), ordered.back(_joined(logs)[..., None])[..., 0]


def _joined(tiles: Sequence[Tensor]) -> Tensor:
    """All chunks again."""
    return tiles[0] if len(tiles) == 1 else torch.cat(list(tiles), 1)


def _gradients(ordered: _Ordered, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, gradient: Tensor, dropout: float, seed: int
               ) -> tuple[Tensor, Tensor, Tensor]:
    """Of rows q, k, v [N, S, d], from the output of all rounds [N, S, d], the logarithms of its sums [N, S], and its gradient."""
    scale, wide = q.shape[2] ** -0.5, sums.dtype
    q, k, v, g, o = ordered.chunks(q), ordered.windows(k), ordered.windows(v), ordered.chunks(gradient), ordered.chunks(out)
    lonely = (sums < -LONELY / 2)[..., None]  # they give all their gradient to their own value, and their scores none
    logs = ordered.chunks(sums[..., None].masked_fill(lonely, 1e30))[..., 0]
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for place in ordered.places(torch.get_num_threads()):
        query, key, value, d_out = q[:, place], k[:, place], v[:, place], g[:, place]
        if ordered.fast:
            found.append(_backward(d_out, query, key, value, o[:, place], logs[:, place], 0.0, False,
                                   attn_mask=ordered.bias(place, q), scale=scale))
            continue
        weights, _ = ordered.weights(place, q, k, scale, logs)
        d_weights = torch.matmul(d_out.to(wide), value.to(wide).transpose(-1, -2))
        used = weights
        if dropout:
            kept = ordered.kept(place, weights, dropout, seed)
            d_weights *= kept
            used = kept.mul_(weights)  # of a lonely token all weights are 0 here
        d_value = torch.matmul(used.to(d_out.dtype).transpose(-1, -2), d_out)
        # softmax: dS = P * (dP - rowsum(dP * P)), and the rowsum is that of the output and its gradient
        rest = (d_out.to(wide) * o[:, place].to(wide)).sum(-1, keepdim=True)
        d_scores = d_weights.sub_(rest).mul_(weights).mul_(scale).to(query.dtype)
        found.append((torch.matmul(d_scores, key), torch.matmul(d_scores.transpose(-1, -2), query), d_value))
    d_q, d_k, d_v = (_joined(parts) for parts in zip(*found, strict=True))
    return ordered.back(d_q).sum(1), ordered.folded(d_k), ordered.folded(d_v).add_(gradient * lonely)
