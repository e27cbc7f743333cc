"""Multi-head attention: projections around a plan."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .cache import LayerCache
from .choose import make_plan
from .mask import Mask
from .plan import Plan


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al., 2017).

    One fused projection `qkv` makes queries, keys and values; with `cross`, `q` reads the input and
    `kv` reads the memory. A variant that scores differently (Transformer-XL) subclasses this and
    keeps `forward`'s signature, and one that looks elsewhere says how its `plan` is made (Longformer);
    blocks and stacks know nothing else about it.

    Args:
        hidden_size: width of the input and of the output, D.
        num_heads: H.
        head_size: d; by default D / H.
        bias: whether the projections have biases.
        scale: of the scores; by default 1 / sqrt(d). T5 uses 1.
        dropout: probability for the attention weights.
        cross: attend to a memory (an encoder's output) instead of the input.
    """

    plan_key: object = None
    """Layers of one stack whose attentions are of one class and have the same key share the plan of a mask."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        head_size: int | None = None,
        bias: bool = True,
        scale: float | None = None,
        dropout: float = 0.0,
        cross: bool = False,
    ) -> None:
        super().__init__()
        if head_size is None and hidden_size % num_heads:
            raise ValueError(f"hidden_size {hidden_size} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.head_size = head_size or hidden_size // num_heads
        self.scale = scale
        self.dropout = dropout
        self.cross = cross
        inner = num_heads * self.head_size
        if cross:
            self.q = nn.Linear(hidden_size, inner, bias=bias)
            self.kv = nn.Linear(hidden_size, 2 * inner, bias=bias)
        else:
            self.qkv = nn.Linear(hidden_size, 3 * inner, bias=bias)
        self.out = nn.Linear(inner, hidden_size, bias=bias)

    def plan(
        self, mask: Mask, batch: int, query_length: int, key_length: int, device: torch.device, bias: Tensor | None = None
    ) -> Plan:
        """How self-attention under `mask` is computed, decided once in a forward pass of a stack; arguments as in `make_plan`."""
        return make_plan(mask, batch, query_length, key_length, device, bias)

    def forward(self, x: Tensor, plan: Plan, memory: Tensor | None = None, cache: LayerCache | None = None) -> Tensor:
        """Attend.

        Args:
            x: [B, S, D].
            plan: made by `plan`, of a cross-attention by `choose.make_plan`.
            memory: [B, Lk, D], what a cross-attention reads. Not needed once a cache has seen it. It may have B / n rows:
                then n rows of `x`, one behind the other, share each (beams), and `plan` is for B / n rows of n * S queries.
            cache: earlier keys and values of this layer.

        Returns:
            [B, S, D].
        """
        if self.cross:
            (q,) = self.split(self.q(x), 1)
            k, v = self.memory_keys(memory, cache)
            if k.shape[0] != q.shape[0]:  # each memory is read once for all of its rows
                n = q.shape[0] // k.shape[0]
                together = q.unflatten(0, (-1, n)).transpose(1, 2).flatten(2, 3)  # [B / n, H, n * S, d]
                out = plan(together, k, v, self.scale, self.dropout if self.training else 0.0)
                return self.merge(out.unflatten(2, (n, -1)).transpose(1, 2).flatten(0, 1))
        else:
            q, k, v = self.split(self.qkv(x), 3)
            if cache is not None:
                k, v = cache.append(k, v)
        return self.merge(plan(q, k, v, self.scale, self.dropout if self.training else 0.0))

    def memory_keys(self, memory: Tensor | None, cache: LayerCache | None) -> tuple[Tensor, Tensor]:
        """Keys and values of the memory, [B, H, Lk, d] each; computed once where there is a cache."""
        if cache is not None and cache.cross is not None:
            return cache.cross
        assert memory is not None, "a cross-attention needs a memory"
        k, v = self.split(self.kv(memory), 2)
        if cache is not None:  # every step reads them, and views into the projection would be read at half the speed
            k, v = k.contiguous(), v.contiguous()
            cache.cross = (k, v)
        return k, v

    def split(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Cut a fused projection [B, L, parts * H * d] into `parts` views [B, H, L, d]."""
        batch, length = projected.shape[:2]
        return projected.view(batch, length, parts, self.num_heads, self.head_size).permute(2, 0, 3, 1, 4).unbind(0)

    def merge(self, attended: Tensor) -> Tensor:
        """Put the heads [B, H, S, d] together and project them to [B, S, D]."""
        return self.out(attended.transpose(1, 2).flatten(2))
