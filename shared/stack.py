"""A stack of blocks: plans its attention once, then runs the layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from torch import Tensor, nn

from .attention.cache import KVCache
from .attention.choose import make_plan
from .attention.mask import Mask
from .attention.plan import Plan, Seen, Watched
from .block import Block
from .errors import UserError

FULL = Mask()


class Stack(nn.Module):
    """Blocks, one after the other.

    Args:
        blocks: the layers; with `num_layers`, layers share them (ALBERT): consecutive layers
            use the same block, all of them where there is only one.
        num_layers: by default the number of blocks.
        final_norm: after the last block (pre-norm stacks).
        position_bias: relative positions, added to the scores of every layer: (query length, key length, offset of the queries) ->
            [1, H, Lq, Lk], such as `BucketBias` (T5).
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        *,
        num_layers: int | None = None,
        final_norm: nn.Module | None = None,
        position_bias: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.num_layers = num_layers or len(blocks)
        if not blocks or self.num_layers % len(blocks):
            raise ValueError(f"{self.num_layers} layers cannot share {len(blocks)} blocks evenly")
        self.blocks = nn.ModuleList(blocks)
        self.final_norm = final_norm
        self.position_bias = position_bias

    def block(self, number: int) -> Block:
        """The block that layer `number` runs."""
        return cast(Block, self.blocks[number * len(self.blocks) // self.num_layers])

    def forward(
        self,
        x: Tensor,
        mask: Mask | Sequence[Mask] = FULL,
        *,
        memory: Tensor | None = None,
        memory_mask: Mask | None = None,
        cache: KVCache | None = None,
        hidden_states: list[Tensor] | None = None,
        seen: list[Seen] | None = None,
    ) -> Tensor:
        """Run all layers.

        Args:
            x: [B, S, D].
            mask: for self-attention. Several masks take turns over the layers (GPT-3's banded layers, Longformer's windows).
                With a cache, the positions it holds come on top of `offset`, and `keep` covers them.
            memory: [B, Lk, D], an encoder's output, for blocks with cross-attention; or [B / n, Lk, D], where
                n rows of `x`, one behind the other, share each.
            memory_mask: for cross-attention, usually `Mask(keep=...)`, of packed texts `Mask(lengths=..., key_lengths=...)`; by default
                everything is seen.
            cache: earlier positions; the new ones are added to it.
            hidden_states: a list that receives the input and every layer's output (the last one after
                `final_norm`).
            seen: a list that receives the queries and keys of every layer's self-attention.

        Returns:
            [B, S, D].
        """
        batch, length = x.shape[:2]
        past = cache.length if cache is not None else 0
        masks = [mask] if isinstance(mask, Mask) else list(mask)
        plans = self._plans(masks, batch, length, past, x)
        memory_plan = self._memory_plan(memory, memory_mask, batch, length, cache, x)
        for number in range(self.num_layers):
            if hidden_states is not None:
                hidden_states.append(x)
            layer = cache.layer(number) if cache is not None else None
            watched = Watched(plans[number]) if seen is not None else None  # one for each layer: a compiled one is compiled once
            x = self.block(number)(x, watched or plans[number], memory, memory_plan, layer)
            if seen is not None and watched is not None:
                seen += watched.seen[:1]  # layers that are computed again are seen again
        if cache is not None:
            cache.advance(length)
        if self.final_norm is not None:
            x = self.final_norm(x)
        if hidden_states is not None:
            hidden_states.append(x)
        return x

    def _plans(self, masks: Sequence[Mask], batch: int, length: int, past: int, x: Tensor) -> list[Plan]:
        """The plan of each layer, before the first one runs: a compiler then sees all layers in one graph."""
        plans: list[Plan] = []
        for number in range(self.num_layers):
            same = next((n for n in range(number) if self._share(n, number, masks)), None)
            plans.append(self._plan(number, masks, batch, length, past, x) if same is None else plans[same])
        return plans

    def _share(self, first: int, second: int, masks: Sequence[Mask]) -> bool:
        """Whether two layers have one plan."""
        a, b = self.block(first).attention, self.block(second).attention
        return masks[first % len(masks)] is masks[second % len(masks)] and type(a) is type(b) and a.plan_key == b.plan_key

    def _plan(self, number: int, masks: Sequence[Mask], batch: int, length: int, past: int, x: Tensor) -> Plan:
        mask = masks[number % len(masks)]
        if past:
            mask = replace(mask, offset=mask.offset + past)
        keys = length + mask.offset
        bias = None
        if self.position_bias is not None:  # packed documents have the same distances
            longest = length if mask.lengths is None else max(mask.lengths)
            bias = self.position_bias(longest, keys if mask.lengths is None else longest, mask.offset)
        return self.block(number).attention.plan(mask, batch, length, keys, x.device, bias)

    def _memory_plan(
        self, memory: Tensor | None, mask: Mask | None, batch: int, length: int, cache: KVCache | None, x: Tensor
    ) -> Plan | None:
        if memory is not None:
            rows, keys = memory.shape[:2]
        elif cache is not None and cache.layer(0).cross is not None:
            kept = cache.layer(0).cross
            assert kept is not None
            rows, keys = kept[0].shape[0], kept[0].shape[2]
        else:
            return None
        if batch % rows:
            raise UserError(f"{batch} rows cannot share {rows} memories evenly")
        return make_plan(mask or FULL, rows, length * (batch // rows), keys, x.device)
