"""How attention under a `Mask` is computed: a plan, chosen once per forward pass for all layers.

A mask never makes SDPA faster, only a plan does: no mask and `is_causal` reach its fastest kernels,
packed documents never meet each other's keys, windows and block tables read only the keys they see.

A query that may see no key gets zeros, in every plan.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from .mask import Mask, on_device
from .tiled import attend

P = ParamSpec("P")
R = TypeVar("R")


def outside_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """Keep `function` out of compiled graphs: documents have new lengths in every batch, and each would compile anew.

    `torch.compiler.disable` would do, but it imports the compiler, which takes seconds, with this module; torch's own
    variant imports it at the first call (as its optimizers do).
    """
    return torch._disable_dynamo(function)  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001


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
        self._ok = None if bias is None else ok

    @cached_property
    def _hidden(self) -> Tensor | None:
        """Queries that the mask in a bias lets see no key."""
        return None if self._ok is None else ~self._ok.any(-1, keepdim=True)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, dropout: float = 0.0) -> Tensor:
        """Attend; shapes as in `Plan`."""
        return attend(q, k, v, self.mask, causal=self.is_causal, hidden=lambda: self._hidden, scale=scale, dropout=dropout)


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
            groups.append((numbers, make_plan(inner, len(numbers), length, length, shape.device, part)))
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


make_plan_for_documents = outside_graphs(make_plan)


def _choose(mask: Mask, shape: Shape, bias: Tensor | None) -> type[Plan]:
    from .sparse import Blocks, Local

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
