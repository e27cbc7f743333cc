"""FlexAttention, for masks that SDPA's fast kernels cannot take, on CUDA.

The lowering is checked against the dense definition on a CPU, forward only (FlexAttention has no
backward there). The compiled CUDA kernels have not been run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from .mask import Layout, Mask
from .plan import Dense, Plan, Shape, warn_of_dropout


class Flex(Plan):
    """The mask as a `BlockMask`: blocks of keys that no query of a block sees are never read."""

    @classmethod
    def supports(cls, mask: Mask, shape: Shape, bias: Tensor | None) -> bool:
        """Whether this plan computes exactly this mask and bias: any mask that counts each key once, no bias."""
        return bias is None and not mask.repeats

    @classmethod
    def pays(cls, mask: Mask, shape: Shape) -> bool:
        """Whether whole blocks of keys are hidden, in a sequence long enough to matter."""
        structured = any(f is not None for f in (mask.window, mask.blocks, mask.prefix, mask.lengths))
        return structured and shape.query_length >= 1024

    def __init__(self, mask: Mask, shape: Shape, bias: Tensor | None) -> None:
        assert bias is None
        self.block_mask = _structure(mask, shape)
        self.source = (mask, shape)
        self.dense: Plan | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, dropout: float = 0.0) -> Tensor:
        """Attend; shapes as in `Plan`."""
        if dropout > 0.0:
            warn_of_dropout("flex_attention", "every query is compared with every key under a dense mask")
            self.dense = self.dense or Dense(*self.source, None)
            return self.dense(q, k, v, scale, dropout)
        attend = _compiled() if q.device.type == "cuda" else cast(Callable[..., Any], flex_attention)
        out = attend(q, k, v, block_mask=self.block_mask, scale=scale)
        assert isinstance(out, Tensor)
        return out


@cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention)


def _structure(mask: Mask, shape: Shape) -> BlockMask:
    fields = (mask.prefix, mask.keep, mask.lengths, mask.global_tokens, mask.global_keys, mask.extra, mask.dilation or None)
    if all(f is None for f in fields):
        return _fixed(mask.causal, mask.window, mask.blocks, mask.offset, *shape[1:])
    return _build(mask, *shape[1:])


@lru_cache(maxsize=64)
def _fixed(
    causal: bool,
    window: tuple[int, int] | None,
    blocks: Layout | None,
    offset: int,
    query_length: int,
    key_length: int,
    device: torch.device,
) -> BlockMask:
    """The block mask of a structure that is the same at every step, made once."""
    return _build(Mask(causal=causal, window=window, blocks=blocks, offset=offset), query_length, key_length, device)


def _build(mask: Mask, query_length: int, key_length: int, device: torch.device) -> BlockMask:
    batch = mask.batch if mask.batch > 1 else None
    heads = mask.heads if mask.heads > 1 else None
    return create_block_mask(mask.predicate(device), batch, heads, query_length, key_length, device=str(device))
