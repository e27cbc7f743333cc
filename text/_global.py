"""Attention with global tokens that have projections of their own (Beltagy et al., 2020, section 3.1).

A token that is not global sees, by the ordinary projections, what its window and the global tokens show. A global one sees every token of
its text by its own. Only the rows of global tokens are computed for that, those of all texts of a batch side by side.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..shared.attention import Attention
from ..shared.attention.cache import LayerCache
from ..shared.attention.choose import make_plan
from ..shared.attention.mask import Mask, on_device
from ..shared.attention.plan import Plan, Shape, outside_graphs
from ..shared.packed import starts


@dataclass(frozen=True, eq=False)
class GlobalMask(Mask):
    """A mask whose global tokens the host knows, too."""

    places: tuple[int, ...] | None = None
    """Where they are, counted over all texts; None: only `global_tokens` says it, and a GPU is waited for."""


class Globals(Plan):
    """What tokens see that are not global, and beside it where the global ones are and what they see.

    Args:
        mask: with its `global_tokens`.
        shape: of the attention.
        bias: none.
    """

    @classmethod
    def supports(cls, mask: Mask, shape: Shape, bias: Tensor | None) -> bool:
        """Whether this plan computes exactly this mask and bias: self-attention in both directions, without a bias."""
        return bias is None and not mask.causal and shape.query_length == shape.key_length

    def __init__(self, mask: Mask, shape: Shape, bias: Tensor | None = None) -> None:
        assert self.supports(mask, shape, bias)
        self.near = make_plan(replace(mask, global_tokens=None, global_keys=mask.global_tokens), *shape)
        self.places: Tensor | None = None
        """Where global tokens are, int64 [G], counted over all texts; None where none is."""
        if mask.global_tokens is None:
            return
        mask.check(*shape[:3])
        lengths = (shape.key_length,) * shape.batch if mask.lengths is None else mask.lengths
        marked: Sequence[int] | None = mask.places if isinstance(mask, GlobalMask) else None
        if marked is None:
            marked = mask.global_tokens.expand(shape.batch, -1).flatten().nonzero()[:, 0].tolist()
        if not marked:
            return
        begins, rows = starts(lengths), [list[int]() for _ in lengths]
        for place in marked:
            rows[bisect_right(begins, place) - 1].append(place)
        # a text without one has its first token computed, and not used: each text has some rows
        computed = [place for begin, own in zip(begins, rows, strict=True) for place in own or (begin,)]
        wanted = set(marked)
        used = [number for number, place in enumerate(computed) if place in wanted]
        self.used = None if len(used) == len(computed) else on_device(used, shape.device)
        self.places = on_device(computed, shape.device)
        keep = None if mask.keep is None else mask.keep.expand(shape.batch, -1).reshape(1, -1)
        self.far = make_plan(Mask(lengths=tuple(max(1, len(own)) for own in rows), key_lengths=tuple(lengths), keep=keep), 1, len(computed),
                             sum(lengths), shape.device)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, dropout: float = 0.0) -> Tensor:
        """What tokens see that are not global; shapes as in `Plan`."""
        return self.near(q, k, v, scale, dropout)


class GlobalAttention(Attention):
    """Self-attention with other projections for what global tokens see, `global_q` and `global_kv`; arguments as in `Attention`."""

    def __init__(self, hidden_size: int, num_heads: int, *, dropout: float = 0.0) -> None:
        super().__init__(hidden_size, num_heads, dropout=dropout)
        self.global_q = nn.Linear(hidden_size, hidden_size)
        self.global_kv = nn.Linear(hidden_size, 2 * hidden_size)

    def plan(
        self, mask: Mask, batch: int, query_length: int, key_length: int, device: torch.device, bias: Tensor | None = None
    ) -> Plan:
        """See `Attention.plan`."""
        return Globals(mask, Shape(batch, query_length, key_length, device), bias)

    def forward(self, x: Tensor, plan: Plan, memory: Tensor | None = None, cache: LayerCache | None = None) -> Tensor:
        """Attend; arguments as in `Attention.forward`, without memory and cache."""
        assert isinstance(plan, Globals) and memory is None and cache is None
        q, k, v = self.split(self.qkv(x), 3)
        dropout = self.dropout if self.training else 0.0
        tokens = plan(q, k, v, self.scale, dropout).transpose(1, 2).flatten(2)  # [B, S, D]
        return self.out(tokens if plan.places is None else self._with_globals(x, tokens, plan, dropout))

    @outside_graphs
    def _with_globals(self, x: Tensor, tokens: Tensor, plan: Globals, dropout: float) -> Tensor:
        """Put what global tokens see in their places."""
        assert plan.places is not None
        (q,) = self.split(self.global_q(x.flatten(0, 1).index_select(0, plan.places)[None]), 1)  # [1, H, G, d]
        k, v = self.split(self.global_kv(x.flatten(0, 1)[None]), 2)  # [1, H, B * S, d]
        own, places = plan.far(q, k, v, self.scale, dropout).transpose(1, 2).flatten(2)[0], plan.places  # [G, D]
        if plan.used is not None:
            own, places = own.index_select(0, plan.used), places.index_select(0, plan.used)
        return tokens.flatten(0, 1).index_copy(0, places, own).view_as(tokens)
