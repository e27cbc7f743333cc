"""Fine-tuning to classify texts and pairs of texts, and the classifier that comes of it.

Devlin et al. 2018, section 4.1: [CLS] text [SEP], or [CLS] text [SEP] second text [SEP] with the second token type, or as the
tokenizer's template has it (RoBERTa's); a new output layer on the trunk's first token; cross-entropy; everything is trained.
The network is the family's (`Family.nets`), such as `BertForSequenceClassification`.

Faithful: truncation as in google-research/bert's `run_classifier.py` (of a pair that is too long, the longer
text loses its last token, until both fit; at equal lengths the second one).

Deviation: texts are packed side by side without padding; each sees only itself, so nothing changes but speed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ..shared.config import need_one_class_each
from ..shared.errors import UserError
from ..shared.family import Context, Net, Task
from ..shared.heads import class_scores
from ..shared.loss import accuracy_sum, cross_entropy_sum
from ..shared.packed import PackedBatch, joined, side_by_side
from ..shared.sample import Sample
from ..shared.system import Objective, Preview, Step, System, Term
from ..shared.tokenizer import Tokenizer
from .framing import Frame, longest
from .tasks import SequenceClassifier

LISTED = 50
"""With at most this many classes, the metrics have an F1 for each."""


@dataclass(frozen=True)
class ClassifySettings:
    """What of the objective can be set."""

    max_length: int | None = None
    """Tokens of a text or pair, special ones included, the rest is cut off; None takes the model's positions."""

    def __post_init__(self) -> None:
        """Check the range."""
        if self.max_length is not None and self.max_length < 8:
            raise UserError(f"max_length is {self.max_length}, expected at least 8 tokens")


@dataclass(frozen=True, slots=True)
class ClassifyExample:
    """A framed text or pair."""

    input_ids: np.ndarray
    """int64 [S]"""
    token_type_ids: np.ndarray
    """int64 [S]"""
    label: int


@dataclass(kw_only=True)
class ClassifyBatch(PackedBatch):
    """Packed texts. T tokens, N texts."""

    token_type_ids: Tensor
    """[1, T]"""
    labels: Tensor
    """[N]"""


class ClassifyObjective(Objective[ClassifyExample]):
    """A text, or a pair, and its class."""

    def __init__(self, tokenizer: Tokenizer, labels: tuple[str, ...], max_length: int, token_types: int = 2) -> None:
        """Make the data side for the classes `labels`, texts of at most `max_length` tokens and a trunk with `token_types` token types."""
        self.framed = Frame(tokenizer, "classification")
        self.tokenizer = tokenizer
        self.labels = labels
        self.max_length = max_length
        self.token_types = token_types

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterator[ClassifyExample]:
        """Yield the one example of a sample."""
        label = sample.label()
        if not 0 <= label < len(self.labels):
            raise sample.bad(f"class {label}, the model has {len(self.labels)}")
        ids, types = self.frame(sample.text(), sample.pair())
        yield ClassifyExample(ids, types, label)

    def frame(self, text: str, pair: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Ids and token types, int64 [S] each, of a text or pair, cut to `max_length`."""
        a, b = ([] if t is None else self.tokenizer.encode(t, add_special_tokens=False) for t in (text, pair))
        a, b = shortened(a, b, self.framed.room(self.max_length, pair is not None))
        ids, types = self.framed(a, None if pair is None else b)
        return ids, types.clip(max=self.token_types - 1)

    def tokens_of(self, example: ClassifyExample) -> int:
        """The text's."""
        return len(example.input_ids)

    def collate(self, examples: list[ClassifyExample]) -> ClassifyBatch:
        """Pack texts side by side."""
        packed = side_by_side([e.input_ids for e in examples])
        return ClassifyBatch(
            counts={"texts": len(examples)},
            tokens=sum(packed.lengths),
            input_ids=packed.input_ids,
            position_ids=packed.position_ids,
            lengths=packed.lengths,
            token_type_ids=joined([e.token_type_ids for e in examples]),
            labels=torch.tensor([e.label for e in examples]),
        )

    def describe(self, example: ClassifyExample) -> Preview:
        """The framed text and the name of its class."""
        return Preview((("input", self.tokenizer.show(example.input_ids)), ("class", self.labels[example.label])))


def shortened(a: Sequence[int], b: Sequence[int], room: int) -> tuple[Sequence[int], Sequence[int]]:
    """Cut the ends of two texts until both fit into `room` together; each time the longer one loses a token, else the second."""
    first, second = len(a), len(b)
    if first + second > room:
        # the shorter one keeps all it has up to half of the room; the larger half is the first one's
        second = min(second, max(room // 2, room - first))
        first = room - second
    return a[:first], b[:second]


class ClassifySystem(System[SequenceClassifier, ClassifyObjective]):
    """A trunk with an output layer for classes, and cross-entropy."""

    def __init__(self, net: SequenceClassifier, objective: ClassifyObjective, labels: tuple[str, ...]) -> None:
        super().__init__(net, objective)
        self.labels = labels

    def logits(self, batch: ClassifyBatch) -> Tensor:
        """[N, classes]."""
        return self.net(batch.input_ids, None, batch.token_type_ids, batch.position_ids, lengths=batch.lengths).logits

    def forward(self, batch: ClassifyBatch, carry: Any = None) -> Step:
        """Cross-entropy over the texts, how many are right, and in evaluations the F1 of each class."""
        logits = self.logits(batch)
        step = Step({"classification": Term(cross_entropy_sum(logits, batch.labels), "texts", labels=batch.labels)},
                    {"accuracy": (accuracy_sum(logits, batch.labels), len(batch.labels))})
        if not self.training and len(self.labels) <= LISTED:
            guesses, count = logits.argmax(-1), len(self.labels)
            right = torch.bincount(batch.labels[guesses == batch.labels], minlength=count)
            either = torch.bincount(batch.labels, minlength=count) + torch.bincount(guesses, minlength=count)
            # F1 is 2 right / (guessed + true): a sum over a count, so it adds up over batches and ranks
            step.metrics |= {f"f1/{name}": (2 * r, e) for name, r, e in zip(self.labels, right, either)}
        return step

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
        tokenizer: the model's.
    """

    def __init__(self, model: SequenceClassifier, tokenizer: Tokenizer) -> None:
        self.model = model
        self.labels = class_names(model.config)
        self._objective = objective_of(model.config, tokenizer)

    @torch.no_grad()
    def probabilities(self, texts: Sequence[tuple[str, str | None]]) -> Tensor:
        """The scores of the classes (`class_scores`) of texts, each with the second text of its pair or None: [N, classes], on the CPU."""
        device = next(self.model.parameters()).device
        batch = self._objective.collate([ClassifyExample(*self._objective.frame(*text), 0) for text in texts]).to(device)
        out = self.model(batch.input_ids, None, batch.token_type_ids, batch.position_ids, lengths=batch.lengths)
        return class_scores(out.logits.float(), self.model.config).cpu()


def class_names(config: Any) -> tuple[str, ...]:
    """The names of a config's classes; LABEL_0, LABEL_1 ... where it has none, as in transformers."""
    return config.labels or tuple(f"LABEL_{i}" for i in range(config.num_labels))


def objective_of(config: Any, tokenizer: Tokenizer, settings: ClassifySettings | None = None) -> ClassifyObjective:
    """The data side for a network with this config."""
    length = longest(config, (settings or ClassifySettings()).max_length)
    return ClassifyObjective(tokenizer.fitting(config.vocab_size), class_names(config), length, config.type_vocab_size)


def with_classes(config: Any, context: Context) -> Any:
    """The config with the classes of the data, where that is labelled."""
    return config if context.classes is None else replace(config, num_labels=len(context.classes), labels=context.classes)


def task(net: Net) -> Task:
    """The task `classify` of a family whose network for it is `net`, a `SequenceClassifier`."""

    def create(config: Any, settings: ClassifySettings, context: Context) -> ClassifySystem:
        if context.classes is None and config.labels is None and not context.net_only:
            raise UserError("classification needs classes and the data set names none: pack it with --label-field, "
                            "or as folders of one class each")
        need_one_class_each(config, "fine-tuning")
        objective = context.objective("classify", lambda tokenizer: objective_of(config, tokenizer, settings))
        return ClassifySystem(cast("SequenceClassifier", net.build(config)), objective, class_names(config))

    return Task("a class for a text or a pair of texts", ClassifySettings, create, "classify", with_classes, net.architecture)
