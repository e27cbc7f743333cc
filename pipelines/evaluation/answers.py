"""Answers to texts about pictures: how right the most probable one is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...multimodal.pair_classes import AnswerObjective, PairClassifier
from ...multimodal.region_pairs import PairSettings
from ...shared.regions import Regions
from ...shared.sample import Sample
from ...shared.system import Batch, Objective
from ...shared.tokenizer import Tokenizer
from .intervals import bootstrap
from .measure import Measure, Numbers, in_order

SHOWN = 5
"""Answers in a line of the predictions."""


@dataclass(kw_only=True)
class _Asked(Batch):
    pairs: list[tuple[np.ndarray, Regions]] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)


class _Pairs(Objective[tuple[np.ndarray, Regions, np.ndarray]]):
    """Texts, regions, and how right each answer is."""

    def __init__(self, by: PairClassifier, tokenizer: Tokenizer) -> None:
        self.reader = by.reader
        self.answers = AnswerObjective(tokenizer, PairSettings(), by.reader.width, by.labels, training=False)

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterable[tuple[np.ndarray, Regions, np.ndarray]]:
        return [(self.reader.caption(sample, rng), self.reader.regions(sample), self.answers.scores(sample))]

    def collate(self, examples: list[tuple[np.ndarray, Regions, np.ndarray]]) -> _Asked:
        return _Asked(counts={}, pairs=[(ids, regions) for ids, regions, _ in examples], scores=[scores for *_, scores in examples])


class PairAnswers(Measure):
    """The mean score of the most probable answer (VQA's accuracy; the share of right ones where a single answer is right)."""

    def __init__(self, by: PairClassifier, tokenizer: Tokenizer) -> None:
        self.by, self.objective = by, _Pairs(by, tokenizer)
        self.method = f"{len(by.labels)} answers"
        self.records: list[dict[str, Any]] = []

    def add(self, batch: _Asked) -> None:
        """Keep the best answers of each sample."""
        chances, best = self.by.probabilities(batch.pairs).topk(min(SHOWN, len(self.by.labels)))
        for index, true, classes, row in zip(batch.sample_ids, batch.scores, best.tolist(), chances.tolist(), strict=True):
            self.records.append({"index": index, "score": float(true[classes[0]]), "classes": classes, "scores": row,
                                 "truth": {str(n): float(true[n]) for n in np.flatnonzero(true)}})

    def result(self) -> Numbers:
        """The numbers, from the records of all ranks."""
        records, labels = in_order(self.records), self.by.labels
        scores = np.array([r["score"] for r in records])
        truth = np.zeros((len(records), len(labels)))
        for row, r in zip(truth, records, strict=True):
            row[[int(n) for n in r["truth"]]] = list(r["truth"].values())
        found = Numbers({})
        found.put("accuracy", float(scores.mean()), bootstrap(lambda chosen: float(scores[chosen].mean()), len(records)))
        found.put("chance", float(truth.mean()))
        found.put("most_frequent", float(truth.mean(0).max()))
        for r in records:
            found.predictions.append({"index": r["index"], "answers": {labels[int(n)]: score for n, score in r["truth"].items()},
                                      "predictions": [labels[c] for c in r["classes"]], "scores": r["scores"]})
        return found
