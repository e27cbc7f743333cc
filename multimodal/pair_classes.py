"""Fine-tuning UNITER to answer: a class for a picture with a text, be it a question (VQA) or a statement (visual entailment).

Chen et al. 2019, section 4.1, and ChenRocks/UNITER (`model/vqa.py`, `model/ve.py`): a layer of twice the width, GELU and a norm on the
pooled first token, a logistic regression for each answer, and binary cross-entropy summed over the answers, mean over the pairs. An answer
may be right in part (VQA's soft scores).

A sample holds regions, a text, and either the number of its class (`cls`) or in its json `scores`, a mapping of class names to how right
they are, from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..shared.block import LayerNorm
from ..shared.embed import normal_
from ..shared.family import Context
from ..shared.loss import at_least_fp32
from ..shared.regions import Regions
from ..shared.sample import Sample
from ..shared.system import Objective, Preview, Step, System, Term
from ..shared.tokenizer import Tokenizer
from ..text.encoder_task import class_names, need_classes, with_classes
from ..text.labels import LISTED
from . import pair_ranking
from .region_pairs import PairSettings, RegionBatch, RegionPair, RegionReader, batch_of_pairs, check_length


@dataclass(frozen=True, slots=True)
class AnswerExample(RegionPair):
    """A text about a picture, and its answers."""

    scores: np.ndarray
    """fp32 [classes], how right each is, from 0 to 1."""


@dataclass(kw_only=True)
class AnswerBatch(RegionBatch):
    """N pairs with their answers."""

    scores: Tensor
    """fp32 [N, classes]"""


class AnswerObjective(Objective[AnswerExample]):
    """A text about a picture, and how right each answer is.

    Args:
        tokenizer: with tokens for classification and separation.
        settings: limits of length.
        width: of the features of regions.
        labels: names of the answers.
        training: whether a random text of several is taken; else the first.
    """

    def __init__(self, tokenizer: Tokenizer, settings: PairSettings, width: int, labels: tuple[str, ...], training: bool = True) -> None:
        self.tokenizer, self.settings, self.width, self.labels = tokenizer, settings, width, labels
        self.numbers = {name: number for number, name in enumerate(labels)}
        self.reader = RegionReader(tokenizer, settings, width, 0, training)

    def evaluation(self) -> AnswerObjective:
        """With the first text of each sample."""
        return AnswerObjective(self.tokenizer, self.settings, self.width, self.labels, False)

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterable[AnswerExample]:
        """The one example of a sample."""
        yield AnswerExample(self.reader.caption(sample, rng), self.reader.regions(sample), self.scores(sample))

    def scores(self, sample: Sample) -> np.ndarray:
        """How right each answer is, fp32 [classes]."""
        row = np.zeros(len(self.labels), dtype=np.float32)
        given = sample.json().get("scores") if "json" in sample.fields else None
        if given is None:
            label = sample.label()
            if not 0 <= label < len(row):
                raise sample.bad(f"class {label}, the model has {len(row)}")
            row[label] = 1
            return row
        if not isinstance(given, dict):
            raise sample.bad("'scores' of field 'json' is no mapping of answers to numbers")
        for name, score in given.items():
            if isinstance(score, bool) or not isinstance(score, (int, float)) or not 0 <= score <= 1:
                raise sample.bad(f"the score of {name!r} is {str(score)[:40]!r}, expected a number from 0 to 1")
            if name in self.numbers:  # rare answers are not among the classes: a pair may have none of them (as in VQA)
                row[self.numbers[name]] = score
        return row

    def tokens_of(self, example: AnswerExample) -> int:
        """Tokens and regions."""
        return len(example.input_ids) + len(example.regions.features)

    def collate(self, examples: list[AnswerExample]) -> AnswerBatch:
        """Pack pairs side by side; the loss is counted in pairs."""
        fields = batch_of_pairs([e.input_ids for e in examples], [e.regions for e in examples])
        return AnswerBatch(counts={"pairs": len(examples)}, **fields, scores=torch.from_numpy(np.stack([e.scores for e in examples])))

    def describe(self, example: AnswerExample) -> Preview:
        """The text, how many regions the picture has, and the answers."""
        return Preview((("text", self.tokenizer.show(example.input_ids)), ("regions", str(len(example.regions.features))),
                        ("answers", self.told(example.scores))))

    def told(self, scores: np.ndarray | Tensor) -> str:
        """The answers that are right, with how right they are."""
        return ", ".join(f"{name} {float(score):g}" for name, score in zip(self.labels, scores, strict=True) if score > 0) or "none"


class UniterForVisualQuestionAnswering(nn.Module):
    """The trunk, and a score for each answer.

    Args:
        trunk: a `UniterModel` with a pooler.
        config: its own.
    """

    def __init__(self, trunk: nn.Module, config: Any) -> None:
        super().__init__()
        self.config = config
        self.trunk = trunk
        width = config.hidden_size
        self.classifier = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), LayerNorm(2 * width, eps=config.layer_norm_eps),
                                        nn.Linear(2 * width, config.num_labels))
        normal_(self.classifier, config.initializer_range)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None, *, visual_feats: Tensor, visual_pos: Tensor, visual_attention_mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Logits [B, classes] of padded pairs; see `UniterModel.forward` for the arguments."""
        out = self.trunk(input_ids, attention_mask, token_type_ids, position_ids, visual_feats=visual_feats, visual_pos=visual_pos,
                         visual_attention_mask=visual_attention_mask)
        return self.classifier(out.pooled)

    def logits(self, batch: RegionBatch) -> Tensor:
        """Logits of packed pairs, fp32 [N, classes]."""
        return at_least_fp32(self.classifier(self.trunk.packed(batch).pooled))  # type: ignore[operator]


class AnswerSystem(System[UniterForVisualQuestionAnswering, AnswerObjective]):
    """Fine-tuning to answer."""

    def __init__(self, net: UniterForVisualQuestionAnswering, objective: AnswerObjective) -> None:
        super().__init__(net, objective)
        self.labels = class_names(net.config)
        net.trunk.masks_nothing()  # type: ignore[operator]

    def forward(self, batch: AnswerBatch, carry: Any = None) -> Step:
        """Binary cross-entropy summed over answers and pairs, and how right the most probable answer is."""
        logits = self.net.logits(batch)
        total = F.binary_cross_entropy_with_logits(logits, batch.scores.to(logits.dtype), reduction="sum")
        right = batch.scores.gather(1, logits.argmax(-1, keepdim=True)).sum()
        step = Step({"answers": Term(total, "pairs")}, {"accuracy": (right, len(logits))})
        if not self.training and len(self.labels) <= LISTED:
            step.metrics |= {f"share/{name}": (scores, len(logits)) for name, scores in zip(self.labels, batch.scores.sum(0), strict=True)}
        return step

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        few = len(self.labels) <= LISTED
        return "answers", "accuracy", *(("answers_chance", *(f"share/{name}" for name in self.labels)) if few else ())

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """The loss of always telling each answer's mean score: what a predictor reaches that never looks at its input."""
        shares = np.array([means[f"share/{name}"] for name in self.labels if f"share/{name}" in means])
        inside = shares[(shares > 0) & (shares < 1)]
        entropy = -(inside * np.log(inside) + (1 - inside) * np.log(1 - inside)).sum()
        return {"answers_chance": float(entropy)} if len(shares) else {}

    @torch.no_grad()
    def preview(self, batch: AnswerBatch, limit: int = 4) -> list[Preview]:
        """Texts with the most probable answers and the right ones."""
        scores, best = self.net.logits(batch).sigmoid().topk(min(3, len(self.labels)))
        texts = batch.input_ids[0].split(list(batch.lengths))
        return [Preview((("text", self.objective.tokenizer.show(ids.tolist())),
                         ("answers", ", ".join(f"{self.labels[c]} {s:.2f}" for c, s in zip(classes.tolist(), row.tolist()))),
                         ("truth", self.objective.told(true))))
                for ids, classes, row, true in list(zip(texts, best, scores, batch.scores.cpu(), strict=True))[:limit]]


class PairClassifier:
    """Answers by the classes of a fine-tuned network.

    Args:
        model: in eval mode.
        tokenizer: the model's.
    """

    def __init__(self, model: UniterForVisualQuestionAnswering, tokenizer: Tokenizer) -> None:
        settings = PairSettings(max_length=min(PairSettings.max_length, model.config.longest_input))
        self.model, self.labels = model, class_names(model.config)
        self.reader = RegionReader(tokenizer, settings, model.config.visual_feat_dim, 0, training=False)

    @torch.no_grad()
    def probabilities(self, pairs: Sequence[tuple[np.ndarray, Regions]]) -> Tensor:
        """Probabilities of the answers to texts (ids [S]) about pictures: [N, classes], on the CPU; they need not add up to 1."""
        fields = batch_of_pairs([ids for ids, _ in pairs], [regions for _, regions in pairs])
        batch = RegionBatch(counts={}, **fields).to(next(self.model.parameters()).device)
        return self.model.logits(batch).sigmoid().cpu()


def fitting(config: Any, context: Context) -> Any:
    """The config with the answers of the data; refuses data whose regions a network was not made for."""
    return with_classes(pair_ranking.fitting(config, context), context)


def create(net: UniterForVisualQuestionAnswering, settings: PairSettings, context: Context) -> AnswerSystem:
    """Build the system around a network."""
    config = net.config
    check_length(settings, config.longest_input)
    need_classes(config, context, "answering", "pack pictures with --label-field, then find their regions")
    labels = class_names(config)
    objective = context.objective("uniter", lambda tokenizer: AnswerObjective(tokenizer.fitting(config.vocab_size), settings,
                                                                               config.visual_feat_dim, labels))
    return AnswerSystem(net, objective)
