"""Fine-tuning UNITER for retrieval: a caption and a picture that belong together score higher than a caption or picture from elsewhere.

Chen et al. 2019, section 4.1, and ChenRocks/UNITER (`model/itm.py`, `data/itm.py`): each pair is compared with itself under another picture
and under another caption; the loss is max(0, margin + p - p+) of the scores' sigmoids, with margin 0.2. The scores' layer begins as the row
"they belong together" of the matching of pretraining.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..shared.embed import normal_
from ..shared.errors import UserError
from ..shared.family import Context
from ..shared.loss import at_least_fp32
from ..shared.packed import starts
from ..shared.sample import Sample
from ..shared.system import Objective, Preview, Step, System, Term
from ..shared.tokenizer import Tokenizer
from .region_pairs import MATCHES, PairSettings, RegionBatch, RegionPair, RegionReader, batch_of_pairs, check_length

COMPARED = 3
"""Pairs of an example: the true one, the caption with another picture, and the picture with another caption."""


@dataclass(frozen=True)
class RankingSettings(PairSettings):
    """What of fine-tuning for retrieval can be set."""

    margin: float = 0.2
    """By how much the true pair's probability is to exceed another one's."""

    def problems(self) -> list[str]:
        """What is wrong with the fields."""
        return super().problems() + ([] if 0 <= self.margin <= 1 else [f"margin is {self.margin}, expected a number from 0 to 1"])


@dataclass(frozen=True, slots=True)
class Comparison:
    """A pair, and the two that it is compared with."""

    pairs: tuple[RegionPair, RegionPair, RegionPair]


@dataclass(kw_only=True)
class ComparisonBatch(RegionBatch):
    """3 N pairs: of each example the true one, the caption with another picture, the picture with another caption."""


class RankingObjective(Objective[Comparison]):
    """A pair, compared with another picture and with another caption.

    Args:
        tokenizer: with tokens for classification and separation.
        settings: what can be set.
        width: of the features of regions.
        training: whether a random caption of several is taken; else the first.
    """

    needs_partner = True

    def __init__(self, tokenizer: Tokenizer, settings: RankingSettings, width: int, training: bool = True) -> None:
        self.tokenizer, self.settings, self.width = tokenizer, settings, width
        self.reader = RegionReader(tokenizer, settings, width, 0, training)

    def evaluation(self) -> RankingObjective:
        """With the first caption of each picture."""
        return RankingObjective(self.tokenizer, self.settings, self.width, False)

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterable[Comparison]:
        """The three pairs of a sample; where there is no other one, a pair is compared with itself, from which nothing is learnt."""
        ids, regions = self.reader.caption(sample, rng), self.reader.regions(sample)
        other = self.reader.others(sample) or sample
        yield Comparison((RegionPair(ids, regions), RegionPair(ids, self.reader.regions(other)),
                          RegionPair(self.reader.caption(other, rng), regions)))

    def tokens_of(self, example: Comparison) -> int:
        """Tokens and regions of the three."""
        return sum(len(pair.input_ids) + len(pair.regions.features) for pair in example.pairs)

    def collate(self, examples: list[Comparison]) -> ComparisonBatch:
        """Pack all pairs side by side; the loss is counted in comparisons, two for each example."""
        pairs = [pair for e in examples for pair in e.pairs]
        fields = batch_of_pairs([pair.input_ids for pair in pairs], [pair.regions for pair in pairs])
        return ComparisonBatch(counts={"comparisons": (COMPARED - 1) * len(examples)}, **fields)

    def describe(self, example: Comparison) -> Preview:
        """The captions, and how many regions each picture has."""
        names = ("true", "another picture", "another caption")
        return Preview(tuple((name, f"{self.tokenizer.show(pair.input_ids)} | {len(pair.regions.features)} regions")
                             for name, pair in zip(names, example.pairs, strict=True)))


class UniterForImageTextRetrieval(nn.Module):
    """The trunk, and one score for each pair.

    Args:
        trunk: a `UniterModel` with a pooler.
        config: its own.
    """

    def __init__(self, trunk: nn.Module, config: Any) -> None:
        super().__init__()
        self.config = config
        self.trunk = trunk
        self.match = nn.Linear(config.hidden_size, 1)
        normal_(self.match, config.initializer_range)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None, *, visual_feats: Tensor, visual_pos: Tensor, visual_attention_mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Scores [B] of padded pairs; see `UniterModel.forward` for the arguments."""
        out = self.trunk(input_ids, attention_mask, token_type_ids, position_ids, visual_feats=visual_feats, visual_pos=visual_pos,
                         visual_attention_mask=visual_attention_mask)
        return self.match(out.pooled)[:, 0]

    def score_pairs(self, batch: RegionBatch) -> Tensor:
        """How well each caption fits its picture, fp32 [N]."""
        return at_least_fp32(self.match(self.trunk.packed(batch).pooled)[:, 0])  # type: ignore[operator]


class RankingSystem(System[UniterForImageTextRetrieval, RankingObjective]):
    """Fine-tuning for retrieval."""

    def __init__(self, net: UniterForImageTextRetrieval, objective: RankingObjective, margin: float) -> None:
        super().__init__(net, objective)
        self.margin = margin
        net.trunk.masks_nothing()  # type: ignore[operator]

    def forward(self, batch: ComparisonBatch, carry: Any = None) -> Step:
        """The summed margins, and how often the true pair is ahead."""
        scores = self.net.score_pairs(batch).view(-1, COMPARED)
        chances = scores.sigmoid()
        total = (self.margin + chances[:, 1:] - chances[:, :1]).clamp(min=0).sum()
        ahead = (scores[:, :1] > scores[:, 1:]).sum()
        return Step({"ranking": Term(total, "comparisons")}, {"ranked": (ahead, (COMPARED - 1) * len(scores))})

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        return "ranking", "ranking_chance", "ranked"

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """The loss of scores that are all alike: the margin."""
        return {"ranking_chance": self.margin} if "ranking" in means else {}

    @torch.no_grad()
    def preview(self, batch: ComparisonBatch, limit: int = 4) -> list[Preview]:
        """Captions, and how probable the network finds the true pair and the two others."""
        chances = self.net.score_pairs(batch).sigmoid().view(-1, COMPARED).tolist()
        ids, begins = batch.input_ids[0], starts(batch.lengths)
        shown = [self.objective.tokenizer.show(ids[b:b + n].tolist()) for b, n in zip(begins, batch.lengths, strict=True)]
        return [Preview((("caption", shown[COMPARED * n]), ("its picture", f"{true:.2f}"), ("another picture", f"{picture:.2f}"),
                         ("its picture under: " + shown[COMPARED * n + 2], f"{caption:.2f}")))
                for n, (true, picture, caption) in enumerate(chances[:limit])]


def fitting(config: Any, context: Context) -> Any:
    """Refuse data whose regions a network was not made for."""
    if context.regions is not None and context.regions[0] != config.visual_feat_dim:
        raise UserError(f"the model reads regions with features of width {config.visual_feat_dim}, and those of the data have width "
                        f"{context.regions[0]}: find regions with the detector, or the tower, that it was trained with")
    return config


def create(net: UniterForImageTextRetrieval, settings: RankingSettings, context: Context) -> RankingSystem:
    """Build the system around a network."""
    config = net.config
    check_length(settings, config.longest_input)
    objective = context.objective("uniter", lambda tokenizer: RankingObjective(tokenizer.fitting(config.vocab_size), settings,
                                                                                config.visual_feat_dim))
    return RankingSystem(net, objective, settings.margin)


def from_matching(tensors: Mapping[str, Tensor], net: Any) -> Mapping[str, Tensor]:
    """The scores' layer begins as what told that a pair belongs together; other networks take everything as it is."""
    weight = tensors.get("match.weight")
    if not isinstance(net, UniterForImageTextRetrieval) or weight is None or len(weight) == 1:
        return tensors
    return {**tensors, **{name: tensors[name][MATCHES:MATCHES + 1] for name in ("match.weight", "match.bias")}}
