"""Chooses the plan that computes a mask fastest, once per forward pass for all layers.

A mask never makes SDPA faster, only a plan does: no mask and `is_causal` reach its fastest kernels,
packed documents never meet each other's keys, windows and block tables read only the keys they see.
"""

from __future__ import annotations

from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from .mask import Mask, on_device
from .plan import Dense, Plan, Shape, outside_graphs
from .sparse import Blocks, Local


def make_plan(
    mask: Mask,
    batch: int,
    query_length: int,
    key_length: int,
    device: torch.device,
    bias: Tensor | None = None,
    backend: type[Plan] | None = None,
) -> Plan:
    """Decide how attention under `mask` is computed.

    Args:
        mask: which keys a query may see.
        batch: rows of the query, B.
        query_length: Lq.
        key_length: Lk.
        device: where the query lives.
        bias: position bias that is added to the scores, broadcastable to [B, H, Lq, Lk].
        backend: force a class of plan; by default the fastest one that fits.

    Raises:
        UserError: the mask does not fit these lengths.
        ValueError: `backend` cannot compute this mask.
    """
    # documents have new lengths in every batch: a compiled graph of the choice would be made anew each time
    make = _make if mask.lengths is None else _make_outside_graphs
    return make(mask, Shape(batch, query_length, key_length, device), bias, backend)


def _make(mask: Mask, shape: Shape, bias: Tensor | None, backend: type[Plan] | None = None) -> Plan:
    mask.check(shape.batch, shape.query_length, shape.key_length)
    if backend is not None:
        if not backend.supports(mask, shape, bias):
            raise ValueError(f"{backend.__name__} cannot compute this mask; leave `backend` out to let the mask choose")
        return backend(mask, shape, bias)
    mask = mask.simplified(shape.query_length, shape.key_length)
    return _choose(mask, shape, bias)(mask, shape, bias)


_make_outside_graphs = outside_graphs(_make)


def _choose(mask: Mask, shape: Shape, bias: Tensor | None) -> type[Plan]:
    if Documents.supports(mask, shape, bias):
        return Documents
    if shape.device.type == "cuda":
        from .flex import Flex  # with it comes torch's compiler: a second or two, and 45 MiB

        if Flex.supports(mask, shape, bias) and Flex.pays(mask, shape):
            return Flex
    if Local.supports(mask, shape, bias) and Local.pays(mask, shape):
        return Local
    if Blocks.supports(mask, shape, bias) and Blocks.pays(mask, shape):
        return Blocks
    return Dense


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
        left, right = mask.window or (-1, -1)
        self.window = (left, 0 if mask.causal else right)
        self.longest = max(self.lengths)
        self.source = (mask, shape, bias)
        self.varlen = shape.device.type == "cuda" and bias is None and mask.keep is None
        self.cumulative = on_device([0, *accumulate(self.lengths)], shape.device, torch.int32) if self.varlen else None

    @cached_property
    def groups(self) -> list[tuple[list[int], Plan]]:
        """The documents of each length, and how they are attended together; not made where one kernel takes them all."""
        mask, shape, bias = self.source
        starts = [0, *accumulate(self.lengths)]
        members: dict[int, list[int]] = {}
        for number, length in enumerate(self.lengths):
            members.setdefault(length, []).append(number)
        groups: list[tuple[list[int], Plan]] = []
        for length, numbers in members.items():
            spans = [slice(starts[n], starts[n] + length) for n in numbers]
            keep = None if mask.keep is None else torch.cat([mask.keep[:, s] for s in spans])
            part = None if bias is None else torch.cat([bias[:, :, s, s] for s in spans])
            inner = Mask(causal=mask.causal, window=mask.window, keep=keep)
            groups.append((numbers, _make(inner, Shape(len(numbers), length, length, shape.device), part)))
        return groups

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, dropout: float = 0.0) -> Tensor:
        """Attend; shapes as in `Plan`, with B = 1."""
        if self.varlen and dropout == 0.0 and q.dtype in (torch.float16, torch.bfloat16):
            return self._varlen(q, k, v, scale)
        return self._one_by_one(q, k, v, scale, dropout)

    @outside_graphs
    def _one_by_one(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None, dropout: float) -> Tensor:
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

        assert self.cumulative is not None
        rows = [t[0].transpose(0, 1) for t in (q, k, v)]  # [T, H, d], a view of the fused projection
        out = varlen_attn(
            rows[0], rows[1], rows[2], self.cumulative, self.cumulative, self.longest, self.longest, scale=scale, window_size=self.window
        )
        assert isinstance(out, Tensor)
        return out.transpose(0, 1)[None]
