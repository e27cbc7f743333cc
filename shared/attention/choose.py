"""Chooses the plan that computes a mask fastest, once per forward pass for all layers.

A mask never makes SDPA faster, only a plan does: no mask and `is_causal` reach its fastest kernels,
packed documents never meet each other's keys, windows and block tables read only the keys they see.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from .mask import Layout, Mask, on_device
from .plan import Dense, Plan, Shape, outside_graphs, warn_of_dropout
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
        bias: position bias that is added to the scores, broadcastable to [B, H, Lq, Lk]; with packed documents also one for the longest
            document, [1, H, L, L], where it depends on the distance alone.
        backend: force a class of plan; by default the fastest one that fits.

    Raises:
        UserError: the mask does not fit these lengths.
        ValueError: `backend` cannot compute this mask.
    """
    # documents have new lengths in every batch: a compiled graph of the choice would be made anew each time; block tables are host data
    make = _make if mask.lengths is None and mask.blocks is None else _make_outside_graphs
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
    if Prefixes.supports(mask, shape, bias):
        return Prefixes
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

    On CUDA in half precision this is one varlen kernel over cumulative lengths, made once here; it has no dropout.
    Elsewhere, and with dropout, documents of equal length share one SDPA call.
    """

    @classmethod
    def supports(cls, mask: Mask, shape: Shape, bias: Tensor | None) -> bool:
        """Whether this plan computes exactly this mask and bias: causal, window, tables, global tokens and keep in each document."""
        others = (mask.prefix, mask.prefix_lengths, mask.blocks, mask.extra)
        whole = (mask.key_lengths is not None or shape.query_length == shape.key_length) and mask.offset == 0 and shape.batch == 1
        return mask.lengths is not None and whole and all(f is None for f in others)

    def __init__(self, mask: Mask, shape: Shape, bias: Tensor | None) -> None:
        assert mask.lengths is not None
        self.lengths = list(mask.lengths)
        self.key_lengths = self.lengths if mask.key_lengths is None else list(mask.key_lengths)
        left, right = mask.window or (-1, -1)
        self.window = (left, 0 if mask.causal else right)
        self.longest, self.longest_keys = max(self.lengths), max(self.key_lengths)
        self.source = (mask, shape, bias)
        plain = all(f is None for f in (mask.keep, mask.global_tokens, mask.global_keys)) and max(mask.dilation, default=1) == 1
        plain = plain and not mask.layouts
        self.varlen = shape.device.type == "cuda" and bias is None and plain
        if self.varlen:
            self.cumulative = on_device([0, *accumulate(self.lengths)], shape.device, torch.int32)
            same = mask.key_lengths is None
            self.key_cumulative = self.cumulative if same else on_device([0, *accumulate(self.key_lengths)], shape.device, torch.int32)
        if bias is not None:
            _ = self.groups  # not within a layer, where the bias would be cut once, and not again when the layer is computed again

    @cached_property
    def groups(self) -> list[tuple[list[int], Plan]]:
        """The documents of equal lengths (and tables), and how they are attended together; not made where one kernel takes them all."""
        mask, shape, _ = self.source
        starts = [0, *accumulate(self.key_lengths)]
        members: dict[tuple[int, int, Layout | None], list[int]] = {}
        layouts = mask.document_blocks or (None,) * len(self.lengths)
        for number, alike in enumerate(zip(self.lengths, self.key_lengths, layouts, strict=True)):
            members.setdefault(alike, []).append(number)
        groups: list[tuple[list[int], Plan]] = []
        for (queries, keys, blocks), numbers in members.items():
            rows: dict[str, Any] = {name: torch.cat([whole[:, starts[n]:starts[n] + keys] for n in numbers])
                                    for name in ("keep", "global_tokens", "global_keys") if (whole := getattr(mask, name)) is not None}
            offset = keys - queries if mask.causal else 0
            inner = Mask(causal=mask.causal, window=mask.window, dilation=mask.dilation, blocks=blocks, offset=offset, **rows)
            groups.append((numbers, _make(inner, Shape(len(numbers), queries, keys, shape.device), self._bias(numbers, queries, keys))))
        return groups

    def _bias(self, numbers: list[int], queries: int, keys: int) -> Tensor | None:
        """The bias of documents of equal lengths: the same one for all, or cut out of the row's."""
        _, shape, bias = self.source
        if bias is None or self.of_one_document(bias, shape):
            return None if bias is None else bias[:, :, :queries, :keys]
        rows, columns = [0, *accumulate(self.lengths)], [0, *accumulate(self.key_lengths)]
        return torch.cat([bias[:, :, rows[n]:rows[n] + queries, columns[n]:columns[n] + keys] for n in numbers])

    @staticmethod
    def of_one_document(bias: Tensor, shape: Shape) -> bool:
        """Whether a bias is that of the longest document, whose first rows and columns shorter ones have, and not that of the row."""
        return tuple(bias.shape[2:]) != (shape.query_length, shape.key_length)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, dropout: float = 0.0) -> Tensor:
        """Attend; shapes as in `Plan`, with B = 1."""
        return self._varlen(q, k, v, scale) if self.is_one_kernel(q, dropout) else self._one_by_one(q, k, v, scale, dropout)

    def is_one_kernel(self, q: Tensor, dropout: float) -> bool:
        """Whether one kernel takes all documents: on CUDA, in half precision, without dropout."""
        if not self.varlen or q.dtype not in (torch.float16, torch.bfloat16):
            return False
        if dropout:
            warn_of_dropout("varlen_attn", "packed documents are attended one length after another")
        return not dropout

    @outside_graphs
    def _one_by_one(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None, dropout: float) -> Tensor:
        if len(self.groups) == 1:  # all documents are equally long: rows of a batch, without a copy
            plan, count = self.groups[0][1], len(self.lengths)
            rows = [t[0].unflatten(1, (count, -1)).transpose(0, 1) for t in (q, k, v)]  # [N, H, L, d]
            return _side_by_side([plan(rows[0], rows[1], rows[2], scale, dropout).transpose(1, 2).flatten(0, 1)])
        # split, not slices: the backward of a split is one concatenation
        keys, values = (t.split(self.key_lengths, dim=2) for t in (k, v))
        return _side_by_side(self.apart(q.split(self.lengths, dim=2), keys, values, scale, dropout))

    def apart(self, q: Sequence[Tensor], k: Sequence[Tensor], v: Sequence[Tensor], scale: float | None, dropout: float) -> list[Tensor]:
        """Attend to documents that are given apart, [1, H, L, d] each; their outputs, [L, H, d]."""
        out: list[Tensor] = list(q)
        for numbers, plan in self.groups:
            if len(numbers) == 1:
                n = numbers[0]
                out[n] = plan(q[n], k[n], v[n], scale, dropout)
            else:
                rows = [torch.cat([piece[n] for n in numbers]) for piece in (q, k, v)]
                together = plan(rows[0], rows[1], rows[2], scale, dropout)
                for n, row in zip(numbers, together.split(1)):
                    out[n] = row
        return [piece[0].transpose(0, 1) for piece in out]

    def _varlen(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        rows = [t[0].transpose(0, 1) for t in (q, k, v)]  # [T, H, d], a view of the fused projection
        out = varlen_attn(
            rows[0], rows[1], rows[2], self.cumulative, self.key_cumulative, self.longest, self.longest_keys,
            scale=scale, window_size=self.window,
        )
        assert isinstance(out, Tensor)
        return out.transpose(0, 1)[None]


class Prefixes(Plan):
    """Documents in one row, each with a prefix: what is hidden is not computed.

    Prefixes see nothing but themselves: they are packed documents without a mask. What stands behind them is packed documents, too, whose
    keys are whole documents and whose queries are the last of these, in causal order. Each part is computed as `Documents` does it.
    """

    @classmethod
    def supports(cls, mask: Mask, shape: Shape, bias: Tensor | None) -> bool:
        """Whether this plan computes exactly this mask and bias: prefixes of packed documents, and nothing else."""
        others = (mask.window, mask.prefix, mask.keep, mask.global_tokens, mask.global_keys, mask.blocks, mask.document_blocks, mask.extra,
                  bias)
        whole = shape.query_length == shape.key_length and mask.offset == 0 and shape.batch == 1
        return mask.prefix_lengths is not None and whole and all(f is None for f in others)

    def __init__(self, mask: Mask, shape: Shape, bias: Tensor | None) -> None:
        assert mask.prefix_lengths is not None and mask.lengths is not None
        rests = tuple(length - prefix for prefix, length in zip(mask.prefix_lengths, mask.lengths))
        self.lengths = list(mask.lengths)
        self.parts = [size for pair in zip(mask.prefix_lengths, rests) for size in pair]
        first, behind, device = sum(mask.prefix_lengths), sum(rests), shape.device
        self.prefixes = Documents(Mask(lengths=mask.prefix_lengths), Shape(1, first, first, device), None)
        self.rests = Documents(Mask(causal=True, lengths=rests, key_lengths=mask.lengths), Shape(1, behind, shape.key_length, device), None)
        if self.prefixes.varlen:
            places = torch.tensor(mask.in_prefix()).logical_not().argsort(stable=True)  # of the prefixes, then the others
            self.places, self.back = (t.to(device, non_blocking=True) for t in (places, places.argsort()))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, dropout: float = 0.0) -> Tensor:
        """Attend; shapes as in `Plan`, with B = 1."""
        if not self.prefixes.is_one_kernel(q, dropout):
            return self._one_by_one(q, k, v, scale, dropout)
        count = sum(self.parts[::2])
        sorted_q, sorted_k, sorted_v = (t.transpose(1, 2).index_select(1, self.places).transpose(1, 2) for t in (q, k, v))
        first = self.prefixes(sorted_q[:, :, :count], sorted_k[:, :, :count], sorted_v[:, :, :count], scale)
        behind = self.rests(sorted_q[:, :, count:], k, v, scale)
        return torch.cat([t.transpose(1, 2) for t in (first, behind)], 1).index_select(1, self.back).transpose(1, 2)

    @outside_graphs
    def _one_by_one(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None, dropout: float) -> Tensor:
        queries, keys, values = (t.split(self.parts, dim=2) for t in (q, k, v))
        first = self.prefixes.apart(queries[::2], keys[::2], values[::2], scale, dropout)
        behind = self.rests.apart(queries[1::2], k.split(self.lengths, dim=2), v.split(self.lengths, dim=2), scale, dropout)
        return _side_by_side([part for pair in zip(first, behind) for part in pair])


def _side_by_side(documents: list[Tensor]) -> Tensor:
    """Outputs [L, H, d] in one row [1, H, T, d], which lies in memory as the output projection reads it: token by token."""
    return (documents[0] if len(documents) == 1 else torch.cat(documents)).transpose(0, 1)[None]
