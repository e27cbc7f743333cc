"""Questions with choices, asked of a language model that was trained for none of them: by likelihood, behind examples with their answers.

Brown et al. 2020, section 2.4: K examples are drawn for each question and stand before it, with their right choices. Each choice is scored
by its likelihood behind this prompt: the sum over its tokens, their mean, and the sum less the one behind the context "Answer:" alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, ClassVar

import numpy as np

from ...shared.errors import UserError
from ...shared.sample import Sample
from ...shared.system import Batch, Objective
from ...shared.tokenizer import Tokenizer
from ...text.choice import labelled
from ..data.dataset import DataSet
from .intervals import wilson
from .likelihood import Piece, causal_network, nats
from .measure import Measure, Numbers, in_order
from .subject import Subject

SCORES = ("sum", "per_token", "normalised")
"""How a choice is scored; each has an accuracy."""
BETWEEN = "\n\n"
"""Stands between examples."""


@dataclass(frozen=True)
class FewShot:
    """Choices by likelihood, behind examples."""

    shots: tuple[int, ...] = (0,)
    """Examples before a question, one pass for each number."""
    examples: str | None = None
    """The data set whose samples are the examples; None: the measured one, without the question itself."""
    template: str = "{text}\nAnswer:"
    """What stands before a choice; a space follows."""
    alone: str = "Answer:"
    """The context without the question, of the normalised likelihood."""

    name: ClassVar[str] = "fewshot"
    needs: ClassVar[tuple[str, ...]] = ("text", "annotations", "class numbers")
    batch_size: ClassVar[int] = 8

    def __post_init__(self) -> None:
        """Check the numbers and the template."""
        if not self.shots or min(self.shots) < 0 or len(set(self.shots)) < len(self.shots):
            raise UserError(f"shots are {', '.join(map(str, self.shots)) or 'none'}: expected different numbers, such as 0,1,8")
        if "{text}" not in self.template:
            raise UserError(f"template is {self.template!r}, expected one with {{text}} where the sample's text goes")

    def measures(self, subject: Subject) -> Mapping[str, Measure]:
        """One pass for each number of shots."""
        net = causal_network(subject, "asking by likelihood", "fine-tune others for the task choice, and use `polymodal evaluate choice`")
        pool = subject.data if self.examples is None else DataSet.open(self.examples)
        left = len(pool) - (self.examples is None)
        if max(self.shots) > left:
            raise UserError(f"{max(self.shots)} shots are asked for, and {pool.directory} has {left} samples for examples: ask for fewer")
        if self.examples is not None:
            subject.facts["examples"] = {"source": pool.directory, "fingerprint": pool.fingerprint}
        positions = net.decoder_info.max_positions
        return {f"{n}-shot": Likelihoods(_Questions(subject.tokenizer, self, pool, n, positions), net, subject) for n in self.shots}


@dataclass(frozen=True, slots=True)
class Question:
    """A question, ready to be scored."""

    prompt: str
    shots: int
    """Examples in the prompt."""
    label: int
    behind: tuple[Piece, ...]
    """Each choice behind the prompt."""
    alone: tuple[Piece, ...]
    """Each choice behind the context alone."""


@dataclass(kw_only=True)
class _Asked(Batch):
    questions: list[Question] = field(default_factory=list)


class _Questions(Objective[Question]):
    """Samples with choices as prompts; the generator draws the examples, and those of fewer shots are among those of more."""

    def __init__(self, tokenizer: Tokenizer, how: FewShot, pool: DataSet, shots: int, positions: int) -> None:
        self.tokenizer, self.how, self.pool, self.shots, self.positions = tokenizer, how, pool, shots, positions

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterable[Question]:
        """The question behind as many examples as have room."""
        (text, choices), label = labelled(sample)
        drawn: dict[int, None] = {}
        while len(drawn) < self.shots:  # one by one: the pool may be much larger
            number = int(rng.integers(len(self.pool)))
            if self.how.examples is not None or number != sample.index:
                drawn[number] = None
        solved: list[str] = []
        for other in self.pool.read_many(list(drawn)):
            if not isinstance(other, Sample):
                raise other
            (question, answers), right = labelled(other)
            solved.append(f"{self._before(question)} {answers[right]}")
        alone = tuple(self._piece(self.how.alone, choice, sample) for choice in choices)
        while True:
            prompt = BETWEEN.join([*solved, self._before(text)])
            behind = tuple(self._piece(prompt, choice, sample) for choice in choices)
            longest = max(len(ids) for ids, _ in behind) - 1  # the last token is not read
            if longest <= self.positions:
                return [Question(prompt, len(solved), label, behind, alone)]
            if not solved:
                raise sample.bad(f"{longest} tokens without any example, the model has {self.positions} positions")
            solved.pop()  # the one that was drawn last

    def _before(self, text: str) -> str:
        return self.how.template.replace("{text}", text)

    def _piece(self, before: str, choice: str, sample: Sample) -> Piece:
        """A choice behind a context: the tokens of both together, and the place of the first that is not the context's own."""
        context = self.tokenizer.encode(before, add_special_tokens=False)
        whole = self.tokenizer.encode(f"{before} {choice}" if before else choice, add_special_tokens=False)
        first = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(context, whole)))
        if first == len(whole):
            raise sample.bad(f"the tokenizer makes no tokens of the choice {choice!r}")
        if first == 0:
            start = self.tokenizer.eos_id if self.tokenizer.bos_id is None else self.tokenizer.bos_id
            if start is None:
                raise sample.bad("there is nothing before a choice, and the tokenizer has no token to start from: give a longer template")
            whole, first = [start, *whole], 1
        return np.array(whole, dtype=np.int64), first

    def collate(self, examples: list[Question]) -> _Asked:
        """Questions side by side."""
        return _Asked(counts={}, tokens=sum(len(ids) for q in examples for ids, _ in q.behind), questions=examples)


class Likelihoods(Measure):
    """How often the right choice is the most probable one."""

    method = "choice by likelihood"

    def __init__(self, objective: _Questions, net: Any, subject: Subject) -> None:
        self.objective, self.net, self.device, self.asked = objective, net, subject.device, objective.shots
        self.records: list[dict[str, Any]] = []

    def add(self, batch: _Asked) -> None:
        """Score every choice of every question."""
        pieces = [piece for q in batch.questions for piece in (*q.behind, *q.alone)]
        found = iter(nats(self.net, pieces, FewShot.batch_size, self.device))
        for index, question in zip(batch.sample_ids, batch.questions, strict=True):
            behind, alone = ([next(found) for _ in part] for part in (question.behind, question.alone))
            sums, before = ([-math.fsum(values) for values in part] for part in (behind, alone))
            scores = dict(zip(SCORES, (sums, [s / len(v) for s, v in zip(sums, behind)], [s - b for s, b in zip(sums, before)])))
            self.records.append({"index": index, "shots": question.shots, "label": question.label, "prompt": question.prompt,
                                 "scores": scores, "predictions": {name: _best(values) for name, values in scores.items()}})

    def result(self) -> Numbers:
        """Accuracies by way of scoring, the share that guessing reaches, and the examples that had room."""
        records = in_order(self.records)
        found = Numbers({}, predictions=[{"index": r["index"], "asked_shots": self.asked, **r} for r in records])
        for name in SCORES:
            hits = sum(r["predictions"][name] == r["label"] for r in records)
            found.put(f"accuracy_{name}", hits / len(records), wilson(hits, len(records)))
        found.put("chance", math.fsum(1 / len(r["scores"]["sum"]) for r in records) / len(records))
        found.put("mean_shots", sum(r["shots"] for r in records) / len(records))
        found.details["shots"] = {"asked": self.asked, "samples_with_fewer": sum(r["shots"] < self.asked for r in records)}
        return found


def _best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)
