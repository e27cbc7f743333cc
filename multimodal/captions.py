"""Writing what a picture shows: how UNIMO does it, and its fine-tuning for captions.

Li et al. 2021, section 2.2 and appendix: the caption's words are told one after the other behind [CLS], and see the picture whole; label
smoothing 0.1 (PaddlePaddle/Research, NLP/UNIMO, the configuration of COCO captions, whose search has 5 beams and a length penalty of 0.6).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Unpack, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from ..seq2seq.generation.generate import generate_ids
from ..seq2seq.generation.options import GenerationOptions
from ..seq2seq.teacher_forcing import smoothed_sum
from ..shared.attention.cache import KVCache
from ..shared.attention.mask import Mask
from ..shared.decoder import ConditionedDecoder, DecoderInfo
from ..shared.family import Context
from ..shared.loss import perplexity
from ..shared.regions import Regions
from ..shared.system import Preview, Step, System, Term
from ..shared.tokenizer import Tokenizer
from ..text.masking import MaskedWords
from . import pair_ranking
from .region_heads import words_step
from .region_pairs import PairSettings, RegionBatch, check_length
from .unimo_data import CAPTION, Row, UnimoBatch, UnimoObjective, UnimoSettings, batch_of_padded, fields_of, kept, row_order

LM = "lm"


class PrefixDecoder(ConditionedDecoder):
    """What writes behind rows that were read whole, kept as keys and values.

    Args:
        net: the network.
        x: what was read, embedded: [B, L, D].
        keep: bool [B, L], False at padding, which stands before the rest.
    """

    def __init__(self, net: Any, x: Tensor, keep: Tensor) -> None:
        super().__init__()
        self.net = net
        self.start = torch.full((len(x), 1), net.config.cls_token_id, device=x.device)
        self.decoder_info: DecoderInfo = net.decoder_info
        cache = KVCache(net.config.num_hidden_layers, x.shape[1])
        net.trunk.stack(x, Mask(keep=keep), cache=cache)
        assert cache.buffer is not None
        self.before, self.keep = cache.buffer, None if bool(keep.all()) else keep

    def next_logits(self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor, cache: KVCache) -> Tensor:
        """Read new ids [R, T] behind what the cache holds; logits [R, V] of the id that follows."""
        copies = len(input_ids) // self.before.shape[1]
        if cache.buffer is None:
            cache.precede(self.before.repeat_interleave(copies, 1) if copies > 1 else self.before)
        keep = None
        if self.keep is not None:
            keep = nn.functional.pad(self.keep.repeat_interleave(copies, 0), (0, cache.length + input_ids.shape[1]), value=True)
        x = self.net.trunk.embed(input_ids, position_ids)
        return self.net.head(self.net.trunk.stack(x, Mask(causal=True, keep=keep, offset=cache.lead), cache=cache)[:, -1])


class Writer(nn.Module):
    """A network that writes behind pictures, with a trunk like `UnimoModel` and a language-model head."""

    config: Any
    trunk: Any

    @property
    def decoder_info(self) -> DecoderInfo:
        """Where writing ends, and how long what is written may be: its positions begin anew."""
        c = self.config
        return DecoderInfo(max_positions=c.longest_input, num_layers=c.num_hidden_layers, eos_token_id=c.sep_token_id,
                           pad_token_id=c.pad_token_id)

    def describer(self, pictures: RegionBatch) -> PrefixDecoder:
        """Read pictures, rows without words, to write behind them."""
        order = torch.from_numpy(row_order(pictures.lengths, pictures.counts_of_regions))
        rows = self.trunk.embedded(pictures)[order].split([count + 1 for count in pictures.counts_of_regions])
        x = nn.utils.rnn.pad_sequence([row.flip(0) for row in rows], batch_first=True).flip(1)
        sizes = torch.tensor([len(row) for row in rows], device=x.device)
        return PrefixDecoder(self, x, torch.arange(x.shape[1], device=x.device) >= x.shape[1] - sizes[:, None])


@runtime_checkable
class PictureWriter(Protocol):
    """A network that writes what pictures show."""

    config: Any

    def describer(self, pictures: RegionBatch) -> ConditionedDecoder:
        """Read pictures, rows without words, to write behind them."""
        ...


class UnimoForImageCaptioning(MaskedWords, Writer):
    """The trunk, and the language-model head.

    Args:
        trunk: a `UnimoModel` without poolers.
        config: its own.
    """

    trunk: Any

    def __init__(self, trunk: Any, config: Any) -> None:
        super().__init__(trunk, config, activation="gelu")

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, visual_feats: Tensor, visual_pos: Tensor,
                visual_attention_mask: Tensor | None = None) -> Tensor:
        """Logits [B, S, V] of what follows each word of padded captions, which begin with [CLS]; see `UnimoModel.forward`."""
        words = kept(attention_mask, input_ids)
        batch = batch_of_padded(input_ids, words, visual_feats, visual_pos, kept(visual_attention_mask, visual_feats[..., 0]))
        states = self.trunk.read(batch, tuple(count + 1 for count in batch.counts_of_regions)).words
        logits = self.head(states)
        out = logits.new_zeros(*input_ids.shape, logits.shape[-1])
        out[words] = logits
        return out


# ---------------------------------------------------------------------------------------------- fine-tuning


@dataclass(frozen=True)
class CaptionSettings(PairSettings):
    """What of fine-tuning for captions can be set."""

    label_smoothing: float = 0.1
    """Share of a token's probability that is spread over the whole vocabulary while training."""

    def problems(self) -> list[str]:
        """What is wrong with the fields."""
        fine = 0 <= self.label_smoothing < 1
        return super().problems() + ([] if fine else [f"label_smoothing is {self.label_smoothing}, expected a fraction from 0 up to 1"])


class CaptionSystem(System[UnimoForImageCaptioning, UnimoObjective]):
    """Fine-tuning for captions.

    Args:
        net: the network.
        objective: makes the batches.
        label_smoothing: share of a token's probability that is spread over the vocabulary while training.
    """

    def __init__(self, net: UnimoForImageCaptioning, objective: UnimoObjective, label_smoothing: float) -> None:
        super().__init__(net, objective)
        self.label_smoothing = label_smoothing

    def forward(self, batch: UnimoBatch, carry: Any = None) -> Step:
        """Cross-entropy of the captions, smoothed while training."""
        rows = self.net.trunk.read(batch, batch.prefixes).words[batch.target_rows]
        if not self.training or not self.label_smoothing:
            return words_step(self.net.head, rows, batch.targets, self.training, LM)
        return Step({LM: Term(smoothed_sum(self.net.head(rows), batch.targets, self.label_smoothing), "words", labels=batch.targets)})

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        return LM, f"{LM}_chance", f"{LM}_accuracy", f"{LM}_perplexity"

    def derive(self, means: Any) -> dict[str, float]:
        """Perplexity of the captions' words."""
        return {f"{LM}_perplexity": perplexity(means[LM])} if LM in means else {}

    def preview(self, batch: UnimoBatch, limit: int = 4) -> list[Preview]:
        """Captions, and what the network writes, greedily."""
        return written(self.net, batch, self.objective.tokenizer, limit)


def create(net: UnimoForImageCaptioning, settings: CaptionSettings, context: Context) -> CaptionSystem:
    """Build the system around a network."""
    config = net.config
    check_length(settings, config.longest_input)
    own = UnimoSettings(max_length=settings.max_length, max_regions=settings.max_regions)

    def make(tokenizer: Tokenizer) -> UnimoObjective:
        return UnimoObjective(tokenizer.fitting(config.vocab_size), own, config.visual_feat_dim, 0, config.longest_input, CAPTION)

    return CaptionSystem(net, context.objective("unimo", make), settings.label_smoothing)


fitting = pair_ranking.fitting


# ------------------------------------------------------------------------------------------------- writing


@torch.no_grad()
def written(net: Writer, batch: UnimoBatch, tokenizer: Tokenizer, limit: int) -> list[Preview]:
    """The first captions of a batch, and what the network writes of their pictures, greedily."""
    counts = batch.counts_of_regions[:limit]
    captions = batch.targets.split(list(batch.lengths))[:limit]
    regions = sum(counts)
    pictures = RegionBatch(counts={}, input_ids=batch.input_ids[:, :0], position_ids=batch.position_ids[:, :0], lengths=(0,) * len(counts),
                           features=batch.features[:regions], locations=batch.locations[:regions], masked=batch.masked[:regions],
                           counts_of_regions=counts, order=batch.order[:0])
    decoder = net.describer(pictures)
    room = min(net.decoder_info.max_positions - 1, max(map(len, captions)))
    told = generate_ids(decoder, decoder.start, max_new_tokens=room)[:, 1:]
    return [Preview((("caption", tokenizer.decode(true.tolist())), ("written", tokenizer.decode(ids.tolist()))))
            for true, ids in zip(captions, told)]


def describe(net: Writer, pictures: Sequence[Regions], tokenizer: Tokenizer, **options: Unpack[GenerationOptions]) -> list[str]:
    """What the network writes of each picture.

    Args:
        net: in eval mode.
        pictures: their regions.
        tokenizer: the network's.
        options: of `generate`; by default the most probable word each time, 60 at most.
    """
    nothing = np.zeros(0, dtype=np.int64)
    fields = fields_of([Row(nothing, regions) for regions in pictures], net.config.visual_feat_dim)
    with torch.no_grad():
        decoder = net.describer(RegionBatch(counts={}, **fields).to(next(net.parameters()).device))
        options.setdefault("max_new_tokens", PairSettings.max_length)
        ids = generate_ids(decoder, decoder.start, **options)[:, 1:]
    return [text.strip() for text in tokenizer.decode_batch(ids.tolist())]
