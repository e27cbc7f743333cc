"""Fine-tuned encoders on what they were fine-tuned for: what is measured, the tasks say themselves (`text.encoder_task.Use`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import numpy as np

from ...multimodal.pair_grounding import Grounder
from ...shared.sample import Sample
from ...shared.system import Batch, Objective
from ...text.choice import Chooser
from ...text.encoder_task import Use
from ...text.score import Scorer
from ...text.span import AnswerSettings, Reader
from ...text.tag import Tagger
from ...text.tasks import QuestionAnswering, reads_alone
from .intervals import bootstraps
from .measure import Measure, Numbers, in_order
from .subject import Subject


class TaskEvaluation:
    """The answers of a network to labelled samples."""

    use: ClassVar[type[Use[Any, Any, Any]]]
    batch_size: ClassVar[int] = 32

    def measures(self, subject: Subject) -> Mapping[str, Measure]:
        """One pass."""
        self.use.check(subject.model, subject.source)
        return {"": Answers(self.opened(subject))}

    def opened(self, subject: Subject) -> Use[Any, Any, Any]:
        """The network in use."""
        return self.use(subject.model, None if reads_alone(subject.model) else subject.tokenizer, subject.trained.max_length)


@dataclass(frozen=True)
class Score(TaskEvaluation):
    """Numbers for texts and pairs."""

    use: ClassVar[type[Use[Any, Any, Any]]] = Scorer
    name: ClassVar[str] = Scorer.task
    needs: ClassVar[tuple[str, ...]] = Scorer.needs


@dataclass(frozen=True)
class Tag(TaskEvaluation):
    """Tags of words."""

    use: ClassVar[type[Use[Any, Any, Any]]] = Tagger
    name: ClassVar[str] = Tagger.task
    needs: ClassVar[tuple[str, ...]] = Tagger.needs


@dataclass(frozen=True)
class Choice(TaskEvaluation):
    """One of several texts."""

    use: ClassVar[type[Use[Any, Any, Any]]] = Chooser
    name: ClassVar[str] = Chooser.task
    needs: ClassVar[tuple[str, ...]] = Chooser.needs
    batch_size: ClassVar[int] = 8


@dataclass(frozen=True)
class Span(TaskEvaluation, AnswerSettings):
    """Answers to questions about texts."""

    use: ClassVar[type[Use[Any, Any, Any]]] = Reader
    name: ClassVar[str] = Reader.task
    needs: ClassVar[tuple[str, ...]] = Reader.needs
    batch_size: ClassVar[int] = 8

    def opened(self, subject: Subject) -> Reader:
        """The network in use, with these settings."""
        return Reader(cast("QuestionAnswering", subject.model), subject.tokenizer, self, subject.trained.max_length)


@dataclass(frozen=True)
class Ground(TaskEvaluation):
    """Regions of pictures that phrases mean."""

    use: ClassVar[type[Use[Any, Any, Any]]] = Grounder
    name: ClassVar[str] = Grounder.task
    needs: ClassVar[tuple[str, ...]] = Grounder.needs


@dataclass(kw_only=True)
class _Labelled(Batch):
    inputs: list[Any] = field(default_factory=list)
    truths: list[Any] = field(default_factory=list)


class _Samples(Objective[tuple[Any, Any]]):
    """Inputs and their true answers."""

    def __init__(self, use: Use[Any, Any, Any]) -> None:
        self.labelled = use.labelled

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterable[tuple[Any, Any]]:
        return [self.labelled(sample)]

    def collate(self, examples: list[tuple[Any, Any]]) -> _Labelled:
        return _Labelled(counts={}, inputs=[given for given, _ in examples], truths=[truth for _, truth in examples])


class Answers(Measure):
    """What the task measures, with intervals from draws of samples."""

    def __init__(self, use: Use[Any, Any, Any]) -> None:
        self.use, self.objective = use, _Samples(use)
        self.method = use.method
        self.records: list[dict[str, Any]] = []

    def add(self, batch: _Labelled) -> None:
        """Keep the numbers of each sample."""
        for index, truth, answer in zip(batch.sample_ids, batch.truths, self.use.answer(batch.inputs), strict=True):
            self.records.append({"index": index, "tally": list(self.use.tally(truth, answer)), "shown": self.use.shown(truth, answer)})

    def result(self) -> Numbers:
        """All numbers, from the records of all ranks."""
        records = in_order(self.records)
        tallies = np.array([r["tally"] for r in records], dtype=np.float64)
        inside = bootstraps(lambda chosen: self.use.measures(tallies[chosen]), len(records))
        found = Numbers({}, predictions=[{"index": r["index"], **r["shown"]} for r in records])
        for name, value in self.use.measures(tallies).items():
            found.put(name, value, inside.get(name))
        return found
