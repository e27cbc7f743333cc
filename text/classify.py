"""Fine-tuning to classify texts and pairs of texts, and the classifier that comes of it.

Devlin et al. 2018, section 4.1: [CLS] text [SEP], or [CLS] text [SEP] second text [SEP] with the second token type, or as the
tokenizer's template has it (RoBERTa's); a new output layer on the trunk's first token (XLNet's last); cross-entropy; everything is trained.
The network is the family's (`Family.nets`), such as `BertForSequenceClassification`.

Faithful: truncation as in google-research/bert's `run_classifier.py` (of a pair that is too long, the longer
text loses its last token, until both fit; at equal lengths the second one).

Deviation: texts are packed side by side without padding; each sees only itself, so nothing changes but speed.

Where each text may have several classes, or none, the loss and the measures are those of `labels`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..shared.config import MULTI_LABEL, need_one_class_each
from ..shared.errors import UserError
from ..shared.family import Context
from ..shared.heads import class_scores
from ..shared.loss import accuracy_sum, cross_entropy_sum
from ..shared.sample import Sample
from ..shared.system import Preview, Step, Term
from ..shared.tokenizer import Tokenizer
from .encoder_task import (
    EncoderTask,
    FramedBatch,
    FramedExample,
    FramedObjective,
    TaskSettings,
    TaskSystem,
    class_names,
    fitting,
    need_classes,
    packed,
    read,
    with_labels,
)
from .framing import SummaryToken
from .labels import LISTED, LabelsObjective, LabelsSystem
from .tasks import EarlyExit, SequenceClassifier, TextReader


@dataclass(frozen=True, slots=True)
class ClassifyExample(FramedExample):
    """A framed text or pair."""

    label: int


@dataclass(kw_only=True)
class ClassifyBatch(FramedBatch):
    """Packed texts, N of them."""

    labels: Tensor
    """[N]"""


class ClassifyObjective(FramedObjective[ClassifyExample]):
    """A text, or a pair, and its class."""

    def __init__(self, tokenizer: Tokenizer, labels: tuple[str, ...], max_length: int, token_types: int = 2,
                 summary: SummaryToken = "first") -> None:
        """Make the data side for the classes `labels`; the other arguments as in `FramedObjective`."""
        super().__init__(tokenizer, "classification", max_length, token_types, summary)
        self.labels = labels

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterator[ClassifyExample]:
        """Yield the one example of a sample."""
        label = sample.label()
        if not 0 <= label < len(self.labels):
            raise sample.bad(f"class {label}, the model has {len(self.labels)}")
        yield ClassifyExample(*self.frame(sample.text(), sample.pair()), label)

    def collate(self, examples: list[ClassifyExample]) -> ClassifyBatch:
        """Pack texts side by side."""
        return ClassifyBatch(counts={"texts": len(examples)}, **packed(examples), labels=torch.tensor([e.label for e in examples]))

    def describe(self, example: ClassifyExample) -> Preview:
        """The framed text and the name of its class."""
        return Preview((("input", self.tokenizer.show(example.input_ids)), ("class", self.labels[example.label])))


class ClassifySystem(TaskSystem[SequenceClassifier, ClassifyObjective]):
    """A trunk with an output layer for classes, and cross-entropy."""

    def __init__(self, net: SequenceClassifier, objective: ClassifyObjective, labels: tuple[str, ...]) -> None:
        super().__init__(net, objective)
        self.labels = labels

    def logits(self, batch: ClassifyBatch) -> Tensor:
        """[N, classes]."""
        return read(self.net, batch).logits

    def judged(self, logits: Tensor, batch: ClassifyBatch) -> Step:
        """Cross-entropy over the texts, how many are right, and in evaluations the F1 of each class."""
        step = Step({"classification": Term(cross_entropy_sum(logits, batch.labels), "texts", labels=batch.labels)},
                    {"accuracy": (accuracy_sum(logits, batch.labels), len(batch.labels))})
        if not self.training and len(self.labels) <= LISTED:
            guesses, count = logits.argmax(-1), len(self.labels)
            right = torch.bincount(batch.labels[guesses == batch.labels], minlength=count)
            either = torch.bincount(batch.labels, minlength=count) + torch.bincount(guesses, minlength=count)
            # F1 is 2 right / (guessed + true): a sum over a count, so it adds up over batches and ranks
            step.metrics |= {f"f1/{name}": (2 * r, e) for name, r, e in zip(self.labels, right, either)}
        return step

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        return ("classification", "classification_chance", "accuracy", *self.beside_names(), *(() if len(self.labels) > LISTED else (
            "macro_f1", *(f"f1/{label}" for label in self.labels))))

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """Macro-F1: the mean over all classes; one that neither occurs nor is guessed counts as 0."""
        scores = [means[name] for label in self.labels if (name := f"f1/{label}") in means]
        return {"macro_f1": sum(scores) / len(scores)} if scores else {}

    @torch.no_grad()
    def preview(self, batch: ClassifyBatch, limit: int = 4) -> list[Preview]:
        """Texts with the most probable classes and the true one."""
        tokenizer = self.objective.tokenizer
        scores, best = self.logits(batch).float().softmax(-1).topk(min(3, len(self.labels)))
        texts = batch.input_ids[0].split(list(batch.lengths))
        return [
            Preview((
                ("text", tokenizer.decode(ids.tolist(), skip_special_tokens=True)),
                ("class", ", ".join(f"{self.labels[c]} {s:.2f}" for c, s in zip(classes.tolist(), row.tolist()))),
                ("truth", self.labels[label]),
            ))
            for ids, classes, row, label in zip(texts[:limit], best, scores, batch.labels.tolist())
        ]


class TextClassifier:
    """Classifies texts and pairs by the classes of a fine-tuned network.

    Args:
        model: in eval mode.
        tokenizer: the model's; None where that reads texts without one.
        speed: for a model from which texts can leave early, see `EarlyExit`.
        max_length: tokens of a text or pair, such as those that the model was fine-tuned with; None takes its positions.

    Raises:
        UserError: `speed` is for another model, or out of its range.
    """

    def __init__(self, model: SequenceClassifier, tokenizer: Tokenizer | None, speed: float | None = None,
                 max_length: int | None = None) -> None:
        self.model = model
        if speed is not None:
            if not isinstance(model, EarlyExit):
                raise UserError(f"speed is for networks with a classifier behind each layer (fastbert), and this is a "
                                f"{type(model).__name__}: leave it out")
            model.hurry(speed)
        self.labels = class_names(model.config)
        self._objective = None if tokenizer is None or isinstance(model, TextReader) else objective_of(
            model.config, tokenizer, TaskSettings(max_length))

    @torch.no_grad()
    def probabilities(self, texts: Sequence[tuple[str, str | None]]) -> Tensor:
        """The scores of the classes (`class_scores`) of texts, each with the second text of its pair or None: [N, classes], on the CPU."""
        if isinstance(self.model, TextReader):
            return class_scores(self.model.logits(texts).float(), self.model.config).cpu()
        return self.scored(self.framed(texts))[0]

    def framed(self, texts: Sequence[tuple[str, str | None]]) -> ClassifyBatch:
        """Texts as the model reads them, on its device."""
        assert self._objective is not None, f"a {type(self.model).__name__} reads texts itself"
        device = next(self.model.parameters()).device
        return self._objective.collate([ClassifyExample(*self._objective.frame(*text), 0) for text in texts]).to(device)

    @torch.no_grad()
    def scored(self, batch: ClassifyBatch) -> tuple[Tensor, Any]:
        """The scores of framed texts as `probabilities` gives them, and all that the network gave."""
        out = read(self.model, batch)
        return class_scores(out.logits.float(), self.model.config).cpu(), out


def objective_of(config: Any, tokenizer: Tokenizer, settings: TaskSettings | None = None) -> ClassifyObjective:
    """The data side for a network with this config."""
    vocabulary, length = fitting(tokenizer, config, (settings or TaskSettings()).max_length)
    return ClassifyObjective(vocabulary, class_names(config), length, config.type_vocab_size, config.summary_token)


def with_one_or_several(config: Any, context: Context) -> Any:
    """The config with the classes of the data, where that is labelled, and whether a text may have several."""
    return config if context.classes is None else with_labels(config, context.classes, MULTI_LABEL if context.several_labels else None)


def create(net: SequenceClassifier, settings: TaskSettings, context: Context) -> ClassifySystem | LabelsSystem:
    """The system of a network."""
    config = net.config
    need_classes(config, context, "classification", "pack it with --label-field, or as folders of one class each")
    if config.problem_type == MULTI_LABEL:

        def objective(tokenizer: Tokenizer) -> LabelsObjective:
            vocabulary, length = fitting(tokenizer, config, settings.max_length)
            return LabelsObjective(vocabulary, class_names(config), length, config.type_vocab_size, config.summary_token)

        return LabelsSystem(net, context.objective("classify", objective))
    need_one_class_each(config, "fine-tuning")
    return ClassifySystem(net, context.objective("classify", lambda tokenizer: objective_of(config, tokenizer, settings)),
                          class_names(config))


TASK = EncoderTask("classify", "a class, or several labels, for a text or a pair of texts", "SequenceClassification", TaskSettings,
                   with_one_or_several, create)
