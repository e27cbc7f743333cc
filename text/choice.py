"""Fine-tuning to choose one of several texts that fit to another one: the end of a story, the answer to a question.

Devlin et al. 2018 (https://arxiv.org/abs/1810.04805), section 4.4 (SWAG): each choice is framed behind the text as its pair, and scored
by one number from the token that the network reads its summary off; softmax over the choices, cross-entropy. Samples may have different
numbers of choices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..shared.family import Context
from ..shared.loss import accuracy_sum, cross_entropy_sum
from ..shared.sample import Sample
from ..shared.system import Preview, Step, Term
from ..shared.tokenizer import Tokenizer
from .encoder_task import EncoderTask, FramedBatch, FramedExample, FramedObjective, TaskSettings, TaskSystem, Use, fitting, packed, read
from .tasks import MultipleChoice

Question = tuple[str, Sequence[str]]
"""A text and its choices."""


@dataclass(frozen=True, slots=True)
class ChoiceExample:
    """A text with each of its choices."""

    choices: tuple[FramedExample, ...]
    label: int


@dataclass(kw_only=True)
class ChoiceBatch(FramedBatch):
    """Packed pairs of text and choice, M of them for N samples."""

    choices: tuple[int, ...]
    """Choices of each sample, N numbers with sum M."""
    labels: Tensor
    """[N]"""


class ChoiceObjective(FramedObjective[ChoiceExample]):
    """A text, its choices, and the number of the right one."""

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterator[ChoiceExample]:
        """Yield the one example of a sample."""
        (text, choices), label = labelled(sample)
        yield self.framed_choices(text, choices, label)

    def framed_choices(self, text: str, choices: Sequence[str], label: int = 0) -> ChoiceExample:
        """The text with each choice."""
        return ChoiceExample(tuple(FramedExample(*self.frame(text, choice)) for choice in choices), label)

    def tokens_of(self, example: ChoiceExample) -> int:
        """Those of all choices."""
        return sum(len(c.input_ids) for c in example.choices)

    def collate(self, examples: list[ChoiceExample]) -> ChoiceBatch:
        """Pack the choices side by side."""
        return ChoiceBatch(counts={"samples": len(examples)}, **packed([c for e in examples for c in e.choices]),
                           choices=tuple(len(e.choices) for e in examples), labels=torch.tensor([e.label for e in examples]))

    def describe(self, example: ChoiceExample) -> Preview:
        """The framed choices."""
        rows = enumerate(self.tokenizer.show(c.input_ids) for c in example.choices)
        return Preview(tuple((f"choice {n}{' (right)' if n == example.label else ''}", shown) for n, shown in rows))


def labelled(sample: Sample) -> tuple[Question, int]:
    """The text and the choices of a sample, and the number of the right one."""
    text, choices, label = sample.text(), sample.choices(), sample.label()
    if not 0 <= label < len(choices):
        raise sample.bad(f"choice {label}, there are {len(choices)}, counted from 0")
    return (text, choices), label


def by_sample(logits: Tensor, batch: ChoiceBatch) -> Tensor:
    """Logits [M] as [N, choices], -inf behind the last choice of a sample."""
    return torch.nn.utils.rnn.pad_sequence(list(logits.split(batch.choices)), batch_first=True, padding_value=-math.inf)


def logits_of(net: MultipleChoice, batch: ChoiceBatch) -> Tensor:
    """[N, choices], see `by_sample`."""
    return by_sample(read(net, batch).logits, batch)


class ChoiceSystem(TaskSystem[MultipleChoice, ChoiceObjective]):
    """A trunk that scores each choice, and cross-entropy over the choices."""

    samples = "samples"

    def judged(self, logits: Tensor, batch: ChoiceBatch) -> Step:
        """Cross-entropy over the samples, and how many are right."""
        logits = by_sample(logits, batch)
        return Step({"choice": Term(cross_entropy_sum(logits, batch.labels), "samples", labels=batch.labels)},
                    {"accuracy": (accuracy_sum(logits, batch.labels), len(batch.labels))})

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        return "choice", "choice_chance", "accuracy", *self.beside_names()

    @torch.no_grad()
    def preview(self, batch: ChoiceBatch, limit: int = 4) -> list[Preview]:
        """The choices with their probabilities."""
        tokenizer = self.objective.tokenizer
        texts, shown = iter(batch.input_ids[0].split(batch.lengths)), list[Preview]()
        for row, count, label in zip(logits_of(self.net, batch).float().softmax(-1).tolist(), batch.choices[:limit], batch.labels.tolist()):
            pairs = zip(row[:count], texts)
            shown.append(Preview(tuple((f"choice {n}{' (right)' if n == label else ''}", f"{p:.2f} {tokenizer.decode(ids.tolist())}")
                                       for n, (p, ids) in enumerate(pairs))))
        return shown


class Chooser(Use[Question, int, list[float]]):
    """Chooses one of several texts."""

    task = "choice"
    needs = ("text", "annotations", "class numbers")
    head = MultipleChoice
    method = "softmax over the choices"

    def __init__(self, model: MultipleChoice, tokenizer: Tokenizer, max_length: int | None = None) -> None:
        super().__init__(model, tokenizer)
        vocabulary, length = fitting(tokenizer, model.config, max_length)
        self._net = model
        self._objective = ChoiceObjective(vocabulary, "choosing", length, model.config.type_vocab_size, model.config.summary_token)

    def labelled(self, sample: Sample) -> tuple[Question, int]:
        """The text with its choices, and the number of the right one."""
        return labelled(sample)

    @torch.no_grad()
    def answer(self, inputs: Sequence[Question]) -> list[list[float]]:
        """The probabilities of the choices."""
        batch = self._objective.collate([self._objective.framed_choices(*question) for question in inputs]).to(self.device)
        rows = logits_of(self._net, batch).float().softmax(-1).tolist()
        return [row[:count] for row, count in zip(rows, batch.choices, strict=True)]

    def tally(self, truth: int, answer: list[float]) -> tuple[float, float]:
        """Whether it is right, and the share that guessing reaches."""
        return float(max(range(len(answer)), key=answer.__getitem__) == truth), 1 / len(answer)

    def measures(self, tallies: np.ndarray) -> dict[str, float]:
        """The share of right choices, and that of guessing."""
        right, chance = tallies.mean(0).tolist()
        return {"accuracy": right, "chance": chance}

    def shown(self, truth: int, answer: list[float]) -> dict[str, Any]:
        """The right choice, the chosen one, and the probabilities."""
        return {"label": truth, "prediction": max(range(len(answer)), key=answer.__getitem__), "scores": answer}


def create(net: MultipleChoice, settings: TaskSettings, context: Context) -> ChoiceSystem:
    """The system of a network."""
    config = net.config

    def objective(tokenizer: Tokenizer) -> ChoiceObjective:
        vocabulary, length = fitting(tokenizer, config, settings.max_length)
        return ChoiceObjective(vocabulary, "choosing", length, config.type_vocab_size, config.summary_token)

    return ChoiceSystem(net, context.objective("choice", objective))


TASK = EncoderTask("choice", "the one of several texts that fits", "MultipleChoice", TaskSettings, lambda config, context: config, create,
                   Chooser)
