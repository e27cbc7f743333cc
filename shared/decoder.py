"""What generating asks of a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from .attention.cache import KVCache
from .errors import UserError


@dataclass(frozen=True)
class DecoderInfo:
    """Where generating with a decoder starts and ends, and how long it may run."""

    max_positions: int
    """The longest sequence, prompt included."""
    num_layers: int
    """Layers that keep keys and values."""
    bos_token_id: int | None = None
    """Starts a text that has no prompt."""
    eos_token_id: int | tuple[int, ...] | None = None
    """Ends a text, or each of several does."""
    pad_token_id: int | None = None
    """Fills what follows a text that has ended; None takes 0."""
    shares_positions: bool = False
    """Whether a text and the answer behind it share the positions; else a text that is answered takes none of them."""
    reread: int = 0
    """Tokens before the new ones that are read again with them, as they see what follows; 0 where no token sees a later one."""


@runtime_checkable
class Decoder(Protocol):
    """A network that predicts the next token."""

    @property
    def decoder_info(self) -> DecoderInfo:
        """Where generating starts and ends, and how long it may run."""
        ...

    def next_logits(self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor, cache: KVCache) -> Tensor:
        """Logits [B, V] of the id after `input_ids` [B, S], which come after what the cache holds.

        `attention_mask` [B, past + S] hides padding (None: there is none), `position_ids` is [B, S]. The first of `input_ids` are the last
        that were read before, `decoder_info.reread` of them.
        """
        ...


@runtime_checkable
class EncoderDecoder(Protocol):
    """A network that reads one text and writes another."""

    def decoder_for(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> ConditionedDecoder:
        """Encode texts [B, S]; `attention_mask` [B, S] is nonzero where there is not padding, on either side."""
        ...


def longest_source(model: nn.Module, new_tokens: int) -> int | None:
    """Tokens of a text, special ones included, that leave positions for an answer of `new_tokens`; None where answers have their own."""
    info: DecoderInfo | None = getattr(model, "decoder_info", None)
    if info is None or not info.shares_positions:
        return None
    if new_tokens >= info.max_positions:
        raise UserError(f"{new_tokens} new tokens leave nothing of the model's {info.max_positions} positions for a text: ask for fewer "
                        "with max_new_tokens")
    return info.max_positions - new_tokens


class ConditionedDecoder(nn.Module):
    """A `Decoder` for texts that an encoder has read.

    It also takes n times as many rows as there are texts; then n rows, one behind the other, answer the same text.
    """

    start: Tensor
    """int64 [B, 1]: the ids it begins with."""
