"""The networks of every encoder-decoder: an encoder reads a text, and a decoder writes another one beside it.

    text                [B, S]            target up to here    [B, T]
      | embed                               | decoder_embed (`embed` again where the family has one for both)
      | encoder                             | decoder: causal self-attention, then cross-attention to the memory
    memory              [B, S, D] ------->  |
                                          states               [B, T, D]
                                            | head
                                          logits               [B, T, V]

A family makes the embeddings, the blocks of both stacks and the head from its config; nothing here knows one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..shared.attention.cache import KVCache
from ..shared.attention.mask import Mask
from ..shared.decoder import ConditionedDecoder, DecoderInfo
from ..shared.embed import TokenEmbedding
from ..shared.errors import UserError
from ..shared.heads import LMHead
from ..shared.stack import Stack


@dataclass
class TextEncoderOutput:
    """Outputs of a `TextEncoder`."""

    last_hidden_state: Tensor
    """[B, S, D]"""
    hidden_states: tuple[Tensor, ...] | None = None
    """The embeddings and every block's output, where asked for."""


@dataclass
class EncoderDecoderOutput:
    """Outputs of an `EncoderDecoderModel`."""

    last_hidden_state: Tensor
    """[B, T, D], the decoder's."""
    encoder_last_hidden_state: Tensor
    """[B, S, D]"""
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    """The embeddings and every block's output, where asked for; the last one after the final norm."""
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    """The same of the encoder."""


@dataclass
class EncoderDecoderLMOutput:
    """Outputs of an `EncoderDecoderLM`."""

    logits: Tensor
    """[B, T, V]"""
    encoder_last_hidden_state: Tensor
    """[B, S, D]"""
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    """The embeddings and every block's output, where asked for; the last one after the final norm."""
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    """The same of the encoder."""


class TextEncoder(nn.Module):
    """Embeddings and an encoder.

    Args:
        embed: of the text.
        encoder: the blocks.
        dropout: probability for the stacks' outputs (T5).
    """

    def __init__(self, embed: TokenEmbedding, encoder: Stack, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = embed
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        token_type_ids: Tensor | None = None,
        lengths: tuple[int, ...] | None = None,
        hidden_states: list[Tensor] | None = None,
    ) -> Tensor:
        """The memory of texts.

        Args:
            input_ids: [B, S]; with `lengths`, N texts packed in one row [1, S].
            attention_mask: [B, S], nonzero where there is not padding.
            position_ids: [B or 1, S]; by default 0, 1, ... . They restart in each packed text.
            token_type_ids: [B or 1, S or 1], where the embedding has a table of them (the languages of MASS).
            lengths: of packed texts, their sum S.
            hidden_states: a list that receives every block's output.

        Returns:
            [B, S, D].
        """
        mask = Mask(keep=_keep(attention_mask), lengths=lengths)
        return self.dropout(self.encoder(self.embed(input_ids, position_ids, token_type_ids), mask, hidden_states=hidden_states))


class EncoderDecoderModel(TextEncoder):
    """An encoder and a decoder: the trunk of every network that writes a text beside another one.

    Args:
        embed: of the text, and of the target where there is no `decoder_embed`.
        encoder: its blocks.
        decoder: its blocks, with cross-attention.
        decoder_embed: of the target. Where the word table is shared it is the same module (`decoder_embed.word = embed.word`).
        dropout: probability for the stacks' outputs (T5).
    """

    def __init__(
        self, embed: TokenEmbedding, encoder: Stack, decoder: Stack, *, decoder_embed: TokenEmbedding | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__(embed, encoder, dropout=dropout)
        self.decoder_embed = decoder_embed
        self.decoder = decoder

    def decode(
        self,
        decoder_input_ids: Tensor,
        memory: Tensor | None,
        attention_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        decoder_position_ids: Tensor | None = None,
        *,
        decoder_token_type_ids: Tensor | None = None,
        lengths: tuple[int, ...] | None = None,
        memory_lengths: tuple[int, ...] | None = None,
        cache: KVCache | None = None,
        hidden_states: list[Tensor] | None = None,
    ) -> Tensor:
        """Read targets beside the memory of their texts.

        Args:
            decoder_input_ids: [B, T].
            memory: [B, S, D]; not needed once a cache has seen it.
            attention_mask: [B, S], nonzero where the decoder may look at the memory: where it is not padding.
            decoder_attention_mask: [B, T], with a cache [B, past + T]. Padding on the right needs none: nothing sees it.
            decoder_position_ids: [B or 1, T]; by default 0, 1, ... (after what the cache holds). They restart in each packed target.
            decoder_token_type_ids: [B or 1, T or 1], where the embedding has a table of them.
            lengths: of N targets packed in one row, their sum T.
            memory_lengths: of their N texts, which are packed too.
            cache: keys and values of earlier positions; the new ones are added to it.
            hidden_states: a list that receives every block's output.

        Returns:
            [B, T, D].
        """
        embed = self.embed if self.decoder_embed is None else self.decoder_embed
        x = embed(decoder_input_ids, decoder_position_ids, decoder_token_type_ids, offset=0 if cache is None else cache.length)
        mask = Mask(causal=True, keep=_keep(decoder_attention_mask), lengths=lengths)
        beside = Mask(keep=_keep(attention_mask), lengths=lengths, key_lengths=memory_lengths)
        return self.dropout(self.decoder(x, mask, memory=memory, memory_mask=beside, cache=cache, hidden_states=hidden_states))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        *,
        token_type_ids: Tensor | None = None,
        decoder_token_type_ids: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> EncoderDecoderOutput:
        """Encode texts [B, S] and read their targets [B, T]; masks [B, S] and [B, T] are nonzero where there is not padding."""
        if decoder_input_ids is None:
            raise UserError("an encoder-decoder reads two sequences: pass decoder_input_ids beside input_ids")
        kept: list[list[Tensor]] = [[], []]
        lists = kept if output_hidden_states else [None, None]
        memory = self.encode(input_ids, attention_mask, token_type_ids=token_type_ids, hidden_states=lists[0])
        x = self.decode(decoder_input_ids, memory, attention_mask, decoder_attention_mask,
                        decoder_token_type_ids=decoder_token_type_ids, hidden_states=lists[1])
        states = [tuple(k) for k in kept] if output_hidden_states else [None, None]
        return EncoderDecoderOutput(x, memory, states[1], states[0])


class EncoderDecoderLM(nn.Module):
    """The trunk and a language-model head: text in, text out.

    Args:
        trunk: encoder and decoder.
        head: reads the decoder's states.
        decoder_info: where the decoder starts and ends, and how long it may run.
    """

    config: Any

    def __init__(self, trunk: EncoderDecoderModel, head: LMHead, decoder_info: DecoderInfo) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.decoder_info = decoder_info

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        decoder_token_type_ids: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> EncoderDecoderLMOutput:
        """Logits of targets.

        Args:
            input_ids: texts [B, S].
            attention_mask: [B, S], nonzero where there is not padding.
            decoder_input_ids: [B, T]: the start id, then the target without its last id.
            decoder_attention_mask: [B, T]. Padding on the right needs none.
            labels: targets [B, T] with -100 for padding; they make `decoder_input_ids` where those are not given.
            token_type_ids: [B or 1, S or 1], where the embedding has a table of them (the languages of MASS).
            decoder_token_type_ids: [B or 1, T or 1], the same of the targets.
            output_hidden_states: keep the outputs of every block.
        """
        if decoder_input_ids is None and labels is not None:
            decoder_input_ids = self.shift_right(labels)
        out = self.trunk(input_ids, attention_mask, decoder_input_ids, decoder_attention_mask, token_type_ids=token_type_ids,
                         decoder_token_type_ids=decoder_token_type_ids, output_hidden_states=output_hidden_states)
        return EncoderDecoderLMOutput(self.head(out.last_hidden_state), out.encoder_last_hidden_state,
                                      out.decoder_hidden_states, out.encoder_hidden_states)

    def shift_right(self, labels: Tensor) -> Tensor:
        """What the decoder reads to predict `labels` [B, T]."""
        info = self.decoder_info
        assert info.bos_token_id is not None and info.pad_token_id is not None, "an encoder-decoder has a start id and padding"
        start = labels.new_full((labels.shape[0], 1), info.bos_token_id)
        return torch.cat([start, labels[:, :-1].masked_fill(labels[:, :-1] < 0, info.pad_token_id)], dim=1)

    def decoder_for(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> MemoryDecoder:
        """Encode texts [B, S] for generating; `attention_mask` [B, S] is nonzero where there is not padding."""
        return MemoryDecoder(self, input_ids, attention_mask)


class MemoryDecoder(ConditionedDecoder):
    """What remains of an encoder-decoder once it has read its texts: a decoder beside their memory.

    Args:
        net: the network, in eval mode while this encodes.
        input_ids: [B, S].
        attention_mask: [B, S], nonzero where there is not padding.
        token_type_ids: of the texts, [B or 1, 1], where the embedding has a table of them.
        decoder_token_type_ids: of what is written, [B or 1, 1].
    """

    def __init__(self, net: EncoderDecoderLM, input_ids: Tensor, attention_mask: Tensor | None = None, *,
                 token_type_ids: Tensor | None = None, decoder_token_type_ids: Tensor | None = None) -> None:
        super().__init__()
        self.net = net
        self.decoder_info = net.decoder_info
        self.attention_mask = attention_mask
        assert self.decoder_info.bos_token_id is not None
        self.start = input_ids.new_full((input_ids.shape[0], 1), self.decoder_info.bos_token_id)
        training = net.training
        self.eval()
        self.memory = net.trunk.encode(input_ids, attention_mask, token_type_ids=token_type_ids)
        self.token_type_ids = decoder_token_type_ids
        self.train(training)

    def next_logits(self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor, cache: KVCache) -> Tensor:
        """Read new ids [B, T] after what the cache holds; logits [B, V] of the id that follows."""
        types = self.token_type_ids
        if types is not None and len(types) > 1:
            types = types.repeat_interleave(len(input_ids) // len(types), dim=0)
        x = self.net.trunk.decode(input_ids, self.memory, self.attention_mask, attention_mask, position_ids,
                                  decoder_token_type_ids=types, cache=cache)
        return self.net.head(x[:, -1])


def _keep(attention_mask: Tensor | None) -> Tensor | None:
    return None if attention_mask is None else attention_mask.bool()
