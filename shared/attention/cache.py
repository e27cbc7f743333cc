"""Keys and values kept between steps of incremental decoding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import UserError


class KVCache:
    """Keys and values of every layer, in one static buffer; for inference only.

    The buffer [2 * num_layers, B, H, max_length, d] is allocated at the first step, from the shape,
    type and device of its keys. Keys and values of the encoder (cross-attention) are computed once.

    Args:
        num_layers: blocks of the stack.
        max_length: the most positions that will be decoded, prompt included.
    """

    def __init__(self, num_layers: int, max_length: int) -> None:
        self.num_layers = num_layers
        self.max_length = max_length
        self.length = 0
        """Positions that are complete in every layer."""
        self.lead = 0
        """Positions before number 0 (`precede`): they are seen by all, and not counted."""
        self.buffer: Tensor | None = None
        self.layers = [LayerCache(self, number) for number in range(num_layers)]

    def layer(self, number: int) -> LayerCache:
        """The view of one layer."""
        return self.layers[number]

    def append(self, number: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write new keys and values [B, H, S, d] of a layer; returns all of them [B, H, length + S, d]."""
        assert not (torch.is_grad_enabled() and k.requires_grad), "a cache keeps no gradients: decode under torch.no_grad()"
        batch, heads, new, d = k.shape
        if self.length + new > self.max_length:
            raise UserError(f"the cache holds {self.max_length} positions and {self.length + new} are needed: ask for fewer new tokens")
        if self.buffer is None:
            self.buffer = k.new_zeros(2 * self.num_layers, batch, heads, self.max_length, d)
        keys, values = self.buffer[2 * number], self.buffer[2 * number + 1]
        start, stop = self.lead + self.length, self.lead + self.length + new
        keys[:, :, start:stop] = k
        values[:, :, start:stop] = v
        return keys[:, :, :stop], values[:, :, :stop]

    def last(self, number: int) -> tuple[Tensor, Tensor]:
        """The key and value of a layer with one head at the last position that is complete, [B, d] each."""
        assert self.buffer is not None and self.length, "an empty cache has none"
        place = self.lead + self.length - 1
        return self.buffer[2 * number, :, 0, place], self.buffer[2 * number + 1, :, 0, place]

    def precede(self, earlier: Tensor, spare: int = 0) -> None:
        """Put keys and values before the first position of a cache that is empty: a text that several answers are written behind.

        Args:
            earlier: [2 * num_layers, B, H, L, d], as another cache has them in its buffer.
            spare: positions that the cache is to hold beyond `max_length`.
        """
        assert self.buffer is None and not self.length, "only an empty cache can be preceded"
        self.lead, self.max_length = earlier.shape[3], self.max_length + spare
        self.buffer = nn.functional.pad(earlier, (0, 0, 0, self.max_length))

    def advance(self, count: int) -> None:
        """Count `count` new positions as complete; `Stack.forward` calls it after the last layer."""
        self.length += count

    def rewind(self, length: int) -> None:
        """Forget all positions from number `length` on, which are going to be written again."""
        self.length = min(self.length, length)

    def reorder(self, rows: Tensor, *, start: int = 0, cross: bool = False) -> None:
        """Make row i a copy of the former row `rows[i]` (beams); `rows` may be shorter or longer than B.

        Args:
            rows: int64 [new B].
            start: positions before it stay as they are: beams of one prompt share the prompt's.
            cross: reorder the encoder's keys too. Beams of one source share them, so a search that only
                permutes beams within their source leaves them alone.
        """
        if self.buffer is not None:
            if rows.shape[0] == self.buffer.shape[1]:  # in place, and only what is filled
                filled = self.buffer[:, :, :, self.lead + start : self.lead + self.length]
                if filled.device.type == "cpu":
                    _move(filled, rows.tolist())
                else:
                    filled.copy_(filled.index_select(1, rows))
            else:
                self.buffer = self.buffer.index_select(1, rows)
        if cross:
            for layer in self.layers:
                if layer.cross is not None:
                    k, v = layer.cross
                    layer.cross = (k.index_select(0, rows), v.index_select(0, rows))


def _move(filled: Tensor, rows: list[int]) -> None:
    """Make row i of [2 * num_layers, B, ...] the former row `rows[i]`: whole rows, and only those that change.

    On a CPU that is several times faster than `index_select`, which goes number by number through a strided tensor.
    """
    moved = [(i, j) for i, j in enumerate(rows) if i != j]
    overwritten = {i for i, _ in moved}
    saved = {j: filled[:, j].clone() for _, j in moved if j in overwritten}
    for i, j in moved:
        filled[:, i] = saved[j] if j in saved else filled[:, j]


class LayerCache:
    """What one layer sees of a `KVCache`."""

    def __init__(self, cache: KVCache, number: int) -> None:
        self.cache = cache
        self.number = number
        self.cross: tuple[Tensor, Tensor] | None = None
        """Keys and values of the encoder's output, [B, H, Lk, d] each, once computed."""

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write new keys and values [B, H, S, d]; returns all of them."""
        return self.cache.append(self.number, k, v)
