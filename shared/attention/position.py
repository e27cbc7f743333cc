"""Where a token stands: sinusoids, positions inside packed documents, T5's learned buckets.

Learned absolute positions are a table of `shared.embed.TokenEmbedding`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def document_positions(lengths: Iterable[int], device: torch.device | str = "cpu") -> Tensor:
    """Positions that restart at every document of a packed row, int64 [1, T]."""
    return torch.cat([torch.arange(length, device=device) for length in lengths])[None]


def sinusoids(positions: Tensor, hidden_size: int, *, interleaved: bool = True) -> Tensor:
    """Sinusoidal position vectors (Vaswani et al., 2017).

    Args:
        positions: [L], any real numbers.
        hidden_size: D, even.
        interleaved: sine and cosine take turns, as in the paper; else all sines come first (Transformer-XL, BERT's ancestors).

    Returns:
        fp32 [L, D].
    """
    if hidden_size % 2:
        raise ValueError(f"sinusoids come in pairs: hidden_size must be even, got {hidden_size}")
    steps = torch.arange(0, hidden_size, 2, device=positions.device, dtype=torch.float32)
    angles = positions.float()[:, None] * torch.exp(steps * (-math.log(10000.0) / hidden_size))
    if interleaved:
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class BucketBias(nn.Module):
    """T5's relative position bias: one learned number for each head and bucket of distances.

    Half of the buckets are exact distances, the others grow logarithmically up to `max_distance`.

    Args:
        num_heads: H.
        num_buckets: buckets, both directions together.
        max_distance: from here on all distances share the last bucket.
        bidirectional: tell keys before the query from keys after it (encoders).
    """

    def __init__(self, num_heads: int, *, num_buckets: int = 32, max_distance: int = 128, bidirectional: bool = True) -> None:
        super().__init__()
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.bidirectional = bidirectional
        self.table = nn.Embedding(num_buckets, num_heads)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, query_length: int, key_length: int, offset: int = 0) -> Tensor:
        """The bias for queries at positions offset, offset + 1 ... among the keys, [1, H, Lq, Lk]."""
        device = self.table.weight.device
        q = torch.arange(offset, offset + query_length, device=device)[:, None]
        k = torch.arange(key_length, device=device)
        return self.table(self.bucket(k - q)).permute(2, 0, 1)[None]

    def bucket(self, distance: Tensor) -> Tensor:
        """The bucket of each distance key - query, int64 of the same shape."""
        buckets = self.num_buckets
        if self.bidirectional:
            buckets //= 2
            after = (distance > 0).long() * buckets
            distance = distance.abs()
        else:
            after = torch.zeros_like(distance)
            distance = (-distance).clamp(min=0)
        exact = buckets // 2
        far = torch.log(distance.float().clamp(min=1) / exact) / math.log(self.max_distance / exact) * (buckets - exact)
        far = (exact + far.long()).clamp(max=buckets - 1)
        return after + torch.where(distance < exact, distance, far)
