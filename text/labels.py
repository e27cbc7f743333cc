"""Fine-tuning to give texts and pairs of texts any number of labels: topics, kinds of toxic language.

The network is the one that classifies, with a logistic regression for each label in place of the softmax over all of them, as
transformers has it under `problem_type` multi_label_classification: the mean over texts and labels of the binary cross-entropy. A text
has a label where its probability is above 1/2. `classify` hands over to this file where the data has several labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..shared.config import MULTI_LABEL
from ..shared.loss import at_least_fp32
from ..shared.sample import Sample
from ..shared.system import Preview, Step, Term
from ..shared.tokenizer import Tokenizer
from .encoder_task import FramedBatch, FramedExample, FramedObjective, TaskSystem, Use, class_names, fitting, packed, read
from .framing import SummaryToken
from .tasks import SequenceClassifier

LISTED = 50
"""With at most this many classes, the metrics have an F1 for each."""


@dataclass(frozen=True, slots=True)
class LabelsExample(FramedExample):
    """A framed text or pair."""

    labels: np.ndarray
    """bool [classes]"""


@dataclass(kw_only=True)
class LabelsBatch(FramedBatch):
    """Packed texts, N of them."""

    labels: Tensor
    """bool [N, classes]"""


class LabelsObjective(FramedObjective[LabelsExample]):
    """A text, or a pair, and its labels."""

    def __init__(self, tokenizer: Tokenizer, labels: tuple[str, ...], max_length: int, token_types: int = 2,
                 summary: SummaryToken = "first") -> None:
        """Make the data side for the classes `labels`; the other arguments as in `FramedObjective`."""
        super().__init__(tokenizer, "classification", max_length, token_types, summary)
        self.labels = labels
        self.numbers = {name: number for number, name in enumerate(labels)}

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterator[LabelsExample]:
        """Yield the one example of a sample."""
        labels = self.row(sample)
        yield LabelsExample(*self.frame(sample.text(), sample.pair()), labels)

    def row(self, sample: Sample) -> np.ndarray:
        """Which labels a sample has: bool [classes]."""
        row = np.zeros(len(self.labels), dtype=bool)
        for label in sample.labels():
            number = self.numbers.get(label) if isinstance(label, str) else label
            if number is None or not 0 <= number < len(row):
                known = ", ".join(self.labels[:8]) + (" ..." if len(self.labels) > 8 else "")
                raise sample.bad(f"the label {label!r}; the model has {known}")
            row[number] = True
        return row

    def named(self, row: Sequence[bool] | np.ndarray) -> list[str]:
        """The names of the labels in a row [classes]."""
        return [name for name, has in zip(self.labels, row, strict=True) if has]

    def collate(self, examples: list[LabelsExample]) -> LabelsBatch:
        """Pack texts side by side. Each text has a target for each class."""
        labels = torch.from_numpy(np.stack([e.labels for e in examples]))
        return LabelsBatch(counts={"labels": labels.numel(), "texts": len(examples)}, **packed(examples), labels=labels)

    def describe(self, example: LabelsExample) -> Preview:
        """The framed text and the names of its labels."""
        return Preview((("input", self.tokenizer.show(example.input_ids)), ("labels", ", ".join(self.named(example.labels)) or "(none)")))


class LabelsSystem(TaskSystem[SequenceClassifier, LabelsObjective]):
    """A trunk with an output for each label, and binary cross-entropy."""

    def logits(self, batch: LabelsBatch) -> Tensor:
        """[N, classes], in fp32 at least."""
        return at_least_fp32(read(self.net, batch).logits)

    def judged(self, logits: Tensor, batch: LabelsBatch) -> Step:
        """Binary cross-entropy over texts and labels; F1 over all labels, texts with all labels right; in evaluations F1 of each label."""
        logits, truth = at_least_fp32(logits), batch.labels
        guess = logits > 0
        total = F.binary_cross_entropy_with_logits(logits, truth.to(logits.dtype), reduction="sum")
        right, either = (guess & truth).sum(0), guess.sum(0) + truth.sum(0)
        # F1 is 2 right / (guessed + true): a sum over a count, so it adds up over batches and ranks
        step = Step({"classification": Term(total, "labels")}, {
            "micro_f1": (2 * right.sum(), either.sum()), "exact_match": ((guess == truth).all(1).sum(), len(truth))})
        if not self.training and len(self.objective.labels) <= LISTED:
            for name, r, e, t in zip(self.objective.labels, right, either, truth.sum(0), strict=True):
                step.metrics |= {f"f1/{name}": (2 * r, e), f"frequency/{name}": (t, len(truth))}
        return step

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        return ("classification", "micro_f1", "exact_match", *self.beside_names(), *(() if len(self.objective.labels) > LISTED else (
            *(f"{name}/{label}" for label in self.objective.labels for name in ("f1", "frequency")), "macro_f1", "classification_chance")))

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """Macro-F1 (a label that neither occurs nor is guessed counts as 0), and the loss of who knows only how frequent each label is."""
        names = [name for name in self.objective.labels if f"f1/{name}" in means]
        if not names:
            return {}
        frequent = [means[f"frequency/{name}"] for name in names]
        entropies = [-sum(p * math.log(p) for p in (share, 1 - share) if p > 0) for share in frequent]
        return {"macro_f1": sum(means[f"f1/{name}"] for name in names) / len(names),
                "classification_chance": sum(entropies) / len(entropies)}

    @torch.no_grad()
    def preview(self, batch: LabelsBatch, limit: int = 4) -> list[Preview]:
        """Texts with the labels that they get and the true ones."""
        objective = self.objective
        texts = batch.input_ids[0].split(batch.lengths)[:limit]
        return [
            Preview((
                ("text", objective.tokenizer.decode(ids.tolist(), skip_special_tokens=True)),
                ("labels", ", ".join(f"{name} {score:.2f}" for name, score in zip(objective.labels, row) if score > 0.5) or "(none)"),
                ("truth", ", ".join(objective.named(truth)) or "(none)"),
            ))
            for ids, row, truth in zip(texts, self.logits(batch).sigmoid().tolist(), batch.labels.tolist())
        ]


Text = tuple[str, str | None]
"""A text, and the second text of its pair."""


class Labeller(Use[Text, np.ndarray, np.ndarray]):
    """Gives texts and pairs their labels.

    Args:
        model: in eval mode.
        tokenizer: the model's.
        labels: names of the classes in the order of their numbers; by default the config's.
    """

    task = "classify"
    needs = ("text", "annotations")
    head = SequenceClassifier
    method = "a probability for each label"

    def __init__(self, model: SequenceClassifier, tokenizer: Tokenizer, max_length: int | None = None,
                 labels: tuple[str, ...] | None = None) -> None:
        super().__init__(model, tokenizer)
        vocabulary, length = fitting(tokenizer, model.config, max_length)
        self.labels = labels or class_names(model.config)
        self._objective = LabelsObjective(vocabulary, self.labels, length, model.config.type_vocab_size, model.config.summary_token)

    @classmethod
    def fits(cls, model: Any) -> bool:
        """Whether it has the head, for several labels."""
        return super().fits(model) and model.config.problem_type == MULTI_LABEL

    def labelled(self, sample: Sample) -> tuple[Text, np.ndarray]:
        """The text or pair, and which labels it has: bool [classes]."""
        return (sample.text(), sample.pair()), self._objective.row(sample)

    @torch.no_grad()
    def answer(self, inputs: Sequence[Text]) -> list[np.ndarray]:
        """The probability of each label, [classes] for each text."""
        nothing = np.zeros(len(self.labels), dtype=bool)
        batch = self._objective.collate([LabelsExample(*self._objective.frame(*text), nothing) for text in inputs]).to(self.device)
        return list(read(self.model, batch).logits.float().sigmoid().cpu().numpy())

    def tally(self, truth: np.ndarray, answer: np.ndarray) -> tuple[float, ...]:
        """Which labels it has, and which it gets."""
        return (*truth.astype(float).tolist(), *(answer > 0.5).astype(float).tolist())

    def measures(self, tallies: np.ndarray) -> dict[str, float]:
        """F1, precision and recall over all labels, the mean F1 of those that occur or are given, texts with all labels right.

        `every_label_f1` is the F1 over all labels of who gives each text all of them.
        """
        truth, guess = np.split(tallies, 2, axis=1)
        right, true, given = (truth * guess).sum(0), truth.sum(0), guess.sum(0)
        counted = true + given > 0
        shares = {"micro_f1": (2 * right.sum(), true.sum() + given.sum()), "micro_precision": (right.sum(), given.sum()),
                  "micro_recall": (right.sum(), true.sum()), "every_label_f1": (2 * true.sum(), true.sum() + truth.size)}
        return {**{name: float(a / b) if b else math.nan for name, (a, b) in shares.items()},
                "macro_f1": float((2 * right[counted] / (true + given)[counted]).mean()) if counted.any() else math.nan,
                "exact_match": float((truth == guess).all(1).mean())}

    def shown(self, truth: np.ndarray, answer: np.ndarray) -> dict[str, Any]:
        """The true labels, those that it gets, and the probability of each."""
        return {"labels": self._objective.named(truth), "predictions": self._objective.named(answer > 0.5),
                "scores": dict(zip(self.labels, answer.tolist(), strict=True))}
