"""Fine-tuning UNITER to find what a phrase means: one of the regions of a picture (referring expressions).

Chen et al. 2019, section 4.1, and ChenRocks/UNITER (`model/re.py`, `data/re.py`): one number for each region, softmax over the regions of a
picture, cross-entropy. A region is right where its box and the true one have more than half of their union in common.

A sample holds regions, a phrase, and in its json `box`, where the thing is: left, top, right, bottom, as shares of the picture. Training
takes the region that overlaps the box most, which must be a right one; with boxes that people drew, as in the paper, it is the box itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..shared.embed import normal_
from ..shared.family import Context
from ..shared.loss import at_least_fp32, cross_entropy_sum
from ..shared.regions import Regions, overlaps
from ..shared.sample import Sample
from ..shared.system import Objective, Preview, Step, System, Term
from ..shared.tokenizer import Tokenizer
from ..text.encoder_task import Use
from . import pair_ranking
from .region_pairs import PairSettings, RegionBatch, RegionPair, RegionReader, batch_of_pairs, check_length

RIGHT = 0.5
"""A region whose overlap with the true box is larger is a right one."""


@dataclass(frozen=True, slots=True)
class PhraseExample(RegionPair):
    """A phrase about a picture, and which regions are meant."""

    label: int
    """The region that overlaps the true box most."""
    right: np.ndarray
    """bool [R], the regions that overlap it by more than half."""


@dataclass(kw_only=True)
class PhraseBatch(RegionBatch):
    """N phrases with the regions of N pictures."""

    labels: Tensor
    """int64 [N]"""
    right: Tensor
    """bool [V]"""


class PhraseObjective(Objective[PhraseExample]):
    """A phrase about a picture, and the region that it means.

    Args:
        tokenizer: with tokens for classification and separation.
        settings: limits of length.
        width: of the features of regions.
        training: whether a random phrase of several is taken, and a picture without a right region refused.
    """

    def __init__(self, tokenizer: Tokenizer, settings: PairSettings, width: int, training: bool = True) -> None:
        self.tokenizer, self.settings, self.width, self.training = tokenizer, settings, width, training
        self.reader = RegionReader(tokenizer, settings, width, 0, training)

    def evaluation(self) -> PhraseObjective:
        """With the first phrase of each sample; where no region is right, none can be chosen, which counts as wrong."""
        return PhraseObjective(self.tokenizer, self.settings, self.width, False)

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterable[PhraseExample]:
        """The one example of a sample."""
        ids, regions = self.reader.caption(sample, rng), self.reader.regions(sample)
        shares = overlaps(regions.boxes, sample.box())
        best = int(shares.argmax())
        if self.training and shares[best] <= RIGHT:
            raise sample.bad(f"none of its {len(shares)} regions overlaps the box by more than {RIGHT:g} (the best by {shares[best]:.2f}): "
                             "find more regions")
        yield PhraseExample(ids, regions, best, shares > RIGHT)

    def tokens_of(self, example: PhraseExample) -> int:
        """Tokens and regions."""
        return len(example.input_ids) + len(example.regions.features)

    def collate(self, examples: list[PhraseExample]) -> PhraseBatch:
        """Pack pairs side by side; the loss is counted in phrases."""
        fields = batch_of_pairs([e.input_ids for e in examples], [e.regions for e in examples])
        return PhraseBatch(counts={"phrases": len(examples)}, **fields, labels=torch.tensor([e.label for e in examples]),
                           right=torch.from_numpy(np.concatenate([e.right for e in examples])))

    def describe(self, example: PhraseExample) -> Preview:
        """The phrase, how many regions the picture has, and the box of the right one."""
        return Preview((("phrase", self.tokenizer.show(example.input_ids)), ("regions", str(len(example.right))),
                        ("box", shown(example.regions.boxes[example.label]))))


def shown(box: np.ndarray | Tensor) -> str:
    """A box [4] for people."""
    return " ".join(f"{float(x):.2f}" for x in box)


class UniterForReferringExpressionComprehension(nn.Module):
    """The trunk, and a score for each region.

    Args:
        trunk: a `UniterModel` without a pooler.
        config: its own.
    """

    def __init__(self, trunk: nn.Module, config: Any) -> None:
        super().__init__()
        self.config = config
        self.trunk = trunk
        self.score = nn.Linear(config.hidden_size, 1)
        normal_(self.score, config.initializer_range)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None, *, visual_feats: Tensor, visual_pos: Tensor, visual_attention_mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Scores [B, R] of the regions of padded pairs, -inf at padding; see `UniterModel.forward` for the arguments."""
        out = self.trunk(input_ids, attention_mask, token_type_ids, position_ids, visual_feats=visual_feats, visual_pos=visual_pos,
                         visual_attention_mask=visual_attention_mask)
        scores = self.score(out.last_hidden_state[:, input_ids.shape[1]:])[..., 0]
        return scores if visual_attention_mask is None else scores.masked_fill(visual_attention_mask == 0, -math.inf)

    def logits(self, batch: RegionBatch) -> Tensor:
        """Scores of packed pairs, fp32 [N, R], -inf behind the last region of a picture."""
        places, keep = batch.region_places()
        states = self.trunk.packed(batch).last_hidden_state[0]  # type: ignore[operator]
        return at_least_fp32(self.score(states[places])[..., 0]).masked_fill(~keep, -math.inf)


class PhraseSystem(System[UniterForReferringExpressionComprehension, PhraseObjective]):
    """Fine-tuning to find what a phrase means."""

    def __init__(self, net: UniterForReferringExpressionComprehension, objective: PhraseObjective) -> None:
        super().__init__(net, objective)
        net.trunk.masks_nothing()  # type: ignore[operator]

    def forward(self, batch: PhraseBatch, carry: Any = None) -> Step:
        """Cross-entropy over the regions; whether the chosen one is right, and what choosing at random reaches of both."""
        logits = self.net.logits(batch)
        known = np.array(batch.counts_of_regions)
        counts, begins, each = (torch.from_numpy(x).to(logits.device, non_blocking=True)
                                for x in (known, np.cumsum(known) - known, np.repeat(known, known)))
        chosen = logits.argmax(-1) + begins
        guessed = (batch.right.to(logits.dtype) / each).sum()
        return Step({"region": Term(cross_entropy_sum(logits, batch.labels), "phrases")},
                    {"accuracy": (batch.right[chosen].sum(), len(counts)), "guessed": (guessed, len(counts)),
                     "region_chance": (counts.to(logits.dtype).log().sum(), len(counts))})

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        return "region", "region_chance", "accuracy", "guessed"

    @torch.no_grad()
    def preview(self, batch: PhraseBatch, limit: int = 4) -> list[Preview]:
        """Phrases with the box of the most probable region and that of the true one."""
        chances = self.net.logits(batch).softmax(-1)
        boxes = batch.locations[:, :4].split(list(batch.counts_of_regions))
        texts = batch.input_ids[0].split(list(batch.lengths))
        return [Preview((("phrase", self.objective.tokenizer.show(ids.tolist())),
                         ("box (probability)", f"{shown(there[row.argmax()])} ({float(row.max()):.2f})"), ("truth", shown(there[label]))))
                for ids, there, row, label in list(zip(texts, boxes, chances, batch.labels.tolist(), strict=True))[:limit]]


Phrase = tuple[np.ndarray, Regions]
"""Ids [S] of a phrase, and the regions of a picture."""


class Grounder(Use[Phrase, np.ndarray, list[float]]):
    """Finds the region that a phrase means."""

    task = "ground"
    needs = ("regions", "text", "annotations")
    head = UniterForReferringExpressionComprehension
    method = "softmax over the regions"

    def __init__(self, model: UniterForReferringExpressionComprehension, tokenizer: Tokenizer, max_length: int | None = None) -> None:
        super().__init__(model, tokenizer)
        settings = PairSettings(max_length=min(max_length or PairSettings.max_length, model.config.longest_input))
        self._net = model
        self._reader = RegionReader(tokenizer, settings, model.config.visual_feat_dim, 0, training=False)

    def labelled(self, sample: Sample) -> tuple[Phrase, np.ndarray]:
        """The phrase with the regions, and which of them are right."""
        regions = self._reader.regions(sample)
        return (self._reader.caption(sample, np.random.default_rng(0)), regions), overlaps(regions.boxes, sample.box()) > RIGHT

    @torch.no_grad()
    def answer(self, inputs: Sequence[Phrase]) -> list[list[float]]:
        """The probabilities of the regions."""
        batch = RegionBatch(counts={}, **batch_of_pairs([ids for ids, _ in inputs], [regions for _, regions in inputs])).to(self.device)
        rows = self._net.logits(batch).softmax(-1).tolist()
        return [row[:count] for row, count in zip(rows, batch.counts_of_regions, strict=True)]

    def tally(self, truth: np.ndarray, answer: list[float]) -> tuple[float, ...]:
        """Whether the most probable region is right, the share that guessing reaches, and whether any region is right."""
        return float(truth[int(np.argmax(answer))]), float(truth.mean()), float(truth.any())

    def measures(self, tallies: np.ndarray) -> dict[str, float]:
        """The share of right regions, that of guessing, and the share of pictures that have a right one: none can be better."""
        right, chance, found = tallies.mean(0).tolist()
        return {"accuracy": right, "chance": chance, "found": found}

    def shown(self, truth: np.ndarray, answer: list[float]) -> dict[str, Any]:
        """The regions that are right, the chosen one, and the probabilities."""
        return {"right": np.flatnonzero(truth).tolist(), "prediction": int(np.argmax(answer)), "scores": answer}


fitting = pair_ranking.fitting


def create(net: UniterForReferringExpressionComprehension, settings: PairSettings, context: Context) -> PhraseSystem:
    """Build the system around a network."""
    config = net.config
    check_length(settings, config.longest_input)
    objective = context.objective("uniter", lambda tokenizer: PhraseObjective(tokenizer.fitting(config.vocab_size), settings,
                                                                               config.visual_feat_dim))
    return PhraseSystem(net, objective)
