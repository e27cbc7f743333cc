"""Fine-tuning to answer questions by a span of a text.

Devlin et al. 2018 (https://arxiv.org/abs/1810.04805), sections 4.2 and 4.3: [CLS] question [SEP] text [SEP]; the start and the end of the
answer are softmaxes over the tokens, and a question without an answer points at [CLS]. XLNet has the text before the question, and [CLS]
behind both (Yang et al. 2019, `run_squad.py` of its code).

As google-research/bert's `run_squad.py`: questions are cut to 64 tokens; a text that is too long is read in windows that move on by
`stride` tokens, and a window that does not hold the whole answer points at [CLS]. An answer is the best pair of one of the `n_best` starts
and ends of a window in the text with end >= start and at most `max_answer_length` tokens, over all windows; the score of no answer is the
lowest of [CLS] over the windows. Deviation: a token that stands in several windows counts in each, not only where its context is largest
(as in transformers' script).
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..shared.errors import UserError
from ..shared.family import Context
from ..shared.loss import cross_entropy_sum
from ..shared.sample import Answer, Sample
from ..shared.system import Preview, Step, System, Term
from ..shared.tokenizer import Tokenizer
from .encoder_task import EncoderTask, FramedBatch, FramedExample, FramedObjective, TaskSettings, Use, fitting, packed, read, with_labels
from .tasks import QuestionAnswering

QUESTION = 64
"""Tokens of a question; the rest is cut off. Never more than a quarter of a window."""
WINDOW = 512
"""Tokens of a window where the network has no table of positions that limits it (XLNet), special ones included."""
_MARKS = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class SpanSettings(TaskSettings):
    """What of the objective can be set."""

    stride: int = 128
    """Tokens by which the windows of a long text move on; at most half of the room that a question leaves is used where it is less."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if self.stride < 1:
            raise UserError(f"stride is {self.stride}, expected at least 1 token")


@dataclass(frozen=True, slots=True)
class SpanExample(FramedExample):
    """A question with a window of its text."""

    start: int
    """The first token of the answer; that of [CLS] where the window does not hold it."""
    end: int
    """Its last token."""
    cls: int
    """The place of [CLS]."""
    begin: int
    """The first token of the text."""
    places: tuple[tuple[int, int], ...]
    """Where in the text each token of the window is: (first character, the one after the last)."""


@dataclass(kw_only=True)
class SpanBatch(FramedBatch):
    """Packed windows, N of them."""

    starts: Tensor
    """[N], within the window."""
    ends: Tensor
    """[N]"""


class SpanObjective(FramedObjective[SpanExample]):
    """A question, a text, and where the answer is."""

    def __init__(self, tokenizer: Tokenizer, config: Any, max_length: int | None, stride: int) -> None:
        """Make the data side of a network with this config; `max_length` and `stride` as in `SpanSettings`."""
        vocabulary, length = fitting(tokenizer, config, max_length or (None if config.longest_input else WINDOW))
        super().__init__(vocabulary, "answering", length, config.type_vocab_size, config.summary_token)
        self.question_first: bool = config.question_first
        self.stride = stride

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterator[SpanExample]:
        """Yield the windows of a text."""
        (question, text), answers = labelled(sample)
        yield from self.windows(question, text, answers[0] if answers else None)

    def windows(self, question: str, text: str, answer: Answer | None = None) -> Iterator[SpanExample]:
        """The question with each window of the text."""
        asked = self.tokenizer.encode(question, add_special_tokens=False)[:min(QUESTION, self.max_length // 4)]
        ids, places = self.tokenizer.offsets(text)
        room = self.framed.room(self.max_length, pair=True) - len(asked)
        first, last = (-1, -1) if answer is None else _tokens(places, answer)
        for at in range(0, max(1, len(ids)), min(self.stride, room - room // 2)):
            end = min(at + room, len(ids))
            inside = at <= first <= last < end
            a, b = (asked, ids[at:end]) if self.question_first else (ids[at:end], asked)
            begin = self.framed.begins(len(a), pair=True)[int(self.question_first)]
            framed, types = self.around(a, b)
            cls = self.framed.summary(len(framed))
            start, stop = (begin + first - at, begin + last - at) if inside else (cls, cls)
            yield SpanExample(framed, types, start, stop, cls, begin, tuple(places[at:end]))
            if end == len(ids):
                return

    def collate(self, examples: list[SpanExample]) -> SpanBatch:
        """Pack windows side by side."""
        return SpanBatch(counts={"windows": len(examples)}, **packed(examples), starts=torch.tensor([e.start for e in examples]),
                         ends=torch.tensor([e.end for e in examples]))

    def describe(self, example: SpanExample) -> Preview:
        """The window, and the tokens of the answer."""
        found = self.tokenizer.show(example.input_ids[example.start:example.end + 1])
        answer = "none in this window" if example.start == example.cls else found
        return Preview((("input", self.tokenizer.show(example.input_ids)), ("answer", answer)))


def _tokens(places: Sequence[tuple[int, int]], answer: Answer) -> tuple[int, int]:
    """The first and the last token that share a character with the answer; (-1, -1) where none does."""
    end = answer.start + len(answer.text)
    inside = [n for n, (a, b) in enumerate(places) if a < end and b > answer.start]
    return (inside[0], inside[-1]) if inside else (-1, -1)


def labelled(sample: Sample) -> tuple[tuple[str, str], list[Answer]]:
    """The question and the text of a sample, and its answers; none where the text has none."""
    question, answers = sample.answers()
    return (question, sample.text()), answers


def edges(net: QuestionAnswering, batch: SpanBatch) -> tuple[Tensor, Tensor]:
    """The logits of start and end, [N, S] each, -inf behind the end of a window."""
    out = read(net, batch)
    start, end = (torch.nn.utils.rnn.pad_sequence(row[0].split(batch.lengths), batch_first=True, padding_value=-math.inf)
                  for row in (out.start_logits, out.end_logits))
    return start, end


class SpanSystem(System[QuestionAnswering, SpanObjective]):
    """A trunk with two outputs for each token, and cross-entropy over the tokens of a window."""

    def forward(self, batch: SpanBatch, carry: Any = None) -> Step:
        """Cross-entropy of start and end, each by half, and in how many windows both are right."""
        start, end = edges(self.net, batch)
        right = (start.argmax(-1) == batch.starts) & (end.argmax(-1) == batch.ends)
        return Step({"start": Term(cross_entropy_sum(start, batch.starts), "windows", 0.5, batch.starts),
                     "end": Term(cross_entropy_sum(end, batch.ends), "windows", 0.5, batch.ends)},
                    {"exact_windows": (right.sum(), len(right))})

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        return "exact_windows", "start", "start_chance", "end", "end_chance"

    @torch.no_grad()
    def preview(self, batch: SpanBatch, limit: int = 4) -> list[Preview]:
        """Windows with the tokens between start and end, guessed and true."""
        tokenizer = self.objective.tokenizer
        start, end = (row.argmax(-1).tolist() for row in edges(self.net, batch))
        texts = [part.tolist() for part in batch.input_ids[0].split(batch.lengths)[:limit]]
        return [Preview((("window", tokenizer.decode(ids)), ("answer", tokenizer.show(ids[a:b + 1])),
                         ("truth", tokenizer.show(ids[c:d + 1]))))
                for ids, a, b, c, d in zip(texts, start, end, batch.starts.tolist(), batch.ends.tolist())]


# ------------------------------------------------------------------------------------------------- in use


@dataclass(frozen=True)
class Found:
    """A possible answer; an empty text means that there is none."""

    text: str
    start: int
    """Its first character in the text."""
    score: float
    """Logits of start and end together."""
    probability: float
    """Softmax over the candidates."""


@dataclass(frozen=True)
class AnswerSettings:
    """How answers are found."""

    n_best: int = 20
    """Starts and ends of a window that are looked at, and candidates that are kept."""
    max_answer_length: int = 30
    """Tokens of an answer."""
    stride: int = 128
    """Tokens by which the windows of a long text move on."""
    no_answer_threshold: float | None = None
    """There is no answer where the score of none exceeds that of the best answer by more than this; by default each question has one."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("n_best", "max_answer_length", "stride"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 1")


class Reader(Use[tuple[str, str], list[Answer], list[Found]]):
    """Answers questions by spans of texts."""

    task = "span"
    needs = ("text", "annotations")
    head = QuestionAnswering
    method = "best span of all windows"

    def __init__(self, model: QuestionAnswering, tokenizer: Tokenizer, settings: AnswerSettings | None = None,
                 max_length: int | None = None) -> None:
        super().__init__(model, tokenizer)
        self._net, self.settings = model, settings or AnswerSettings()
        self._objective = SpanObjective(tokenizer, model.config, max_length, self.settings.stride)

    def labelled(self, sample: Sample) -> tuple[tuple[str, str], list[Answer]]:
        """The question and the text, and the answers."""
        return labelled(sample)

    @torch.no_grad()
    def answer(self, inputs: Sequence[tuple[str, str]]) -> list[list[Found]]:
        """The best answers to each (question, text), best first; windows of all are read together."""
        windows = [(number, window) for number, given in enumerate(inputs) for window in self._objective.windows(*given)]
        batch = self._objective.collate([window for _, window in windows]).to(self.device)
        starts, ends = (row.float().cpu().numpy() for row in edges(self._net, batch))
        spans: list[dict[tuple[int, int], float]] = [{} for _ in inputs]
        none = [math.inf] * len(inputs)
        for (number, window), start, end in zip(windows, starts, ends, strict=True):
            none[number] = min(none[number], float(start[window.cls] + end[window.cls]))
            inside = slice(window.begin, window.begin + len(window.places))
            for score, a, b in self._pairs(start[inside], end[inside]):
                place = window.places[a][0], window.places[b][1]
                spans[number][place] = max(score, spans[number].get(place, -math.inf))
        return [self._ranked(text, mine, null) for (_, text), mine, null in zip(inputs, spans, none, strict=True)]

    def _pairs(self, start: np.ndarray, end: np.ndarray) -> Iterator[tuple[float, int, int]]:
        """Scores of the best starts with the best ends."""
        for a in np.argsort(-start, kind="stable")[:self.settings.n_best].tolist():
            for b in np.argsort(-end, kind="stable")[:self.settings.n_best].tolist():
                if a <= b < a + self.settings.max_answer_length:
                    yield float(start[a] + end[b]), a, b

    def _ranked(self, text: str, spans: dict[tuple[int, int], float], none: float) -> list[Found]:
        """The candidates of a text, with that of no answer where it may be one."""
        rows = sorted(((score, a, text[a:b]) for (a, b), score in spans.items()), key=lambda row: -row[0])[:self.settings.n_best]
        if self.settings.no_answer_threshold is not None or not rows:
            wins = not rows or none - rows[0][0] > (self.settings.no_answer_threshold or 0.0)
            rows.insert(0 if wins else len(rows), (none, 0, ""))
        shares = torch.tensor([score for score, _, _ in rows]).softmax(0).tolist()
        return [Found(found, a, score, share) for (score, a, found), share in zip(rows, shares, strict=True)]

    def tally(self, truth: list[Answer], answer: list[Found]) -> tuple[float, ...]:
        """Exact match and F1, and whether there is an answer."""
        wanted = [a.text for a in truth if normalised(a.text)] or [""]
        return max(float(exact(answer[0].text, w)) for w in wanted), max(f1(answer[0].text, w) for w in wanted), float(bool(truth))

    def measures(self, tallies: np.ndarray) -> dict[str, float]:
        """Exact match and F1; where some questions have no answer, also for those that have one and those that have none."""
        match, overlap, has = tallies.T
        found = {"exact_match": float(match.mean()), "f1": float(overlap.mean())}
        for name, part in (("answerable", has > 0), ("unanswerable", has == 0)):
            if not (has > 0).all():
                found |= {f"exact_match/{name}": float(match[part].mean()) if part.any() else math.nan,
                          f"f1/{name}": float(overlap[part].mean()) if part.any() else math.nan}
        return found

    def shown(self, truth: list[Answer], answer: list[Found]) -> dict[str, Any]:
        """The true answers and the best one."""
        return {"answers": [a.text for a in truth], "prediction": answer[0].text, "start": answer[0].start, "score": answer[0].score}


def normalised(text: str) -> str:
    """As SQuAD's official script: lower case, without punctuation marks (of ASCII) and articles, single spaces."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_MARKS)).split())


def exact(guess: str, truth: str) -> bool:
    """Whether two answers are the same but for what `normalised` takes away."""
    return normalised(guess) == normalised(truth)


def f1(guess: str, truth: str) -> float:
    """F1 of the words of two answers; where one is empty, whether both are."""
    a, b = normalised(guess).split(), normalised(truth).split()
    if not a or not b:
        return float(a == b)
    same = (Counter(a) & Counter(b)).total()
    return 2 * same / (len(a) + len(b))


def with_two_outputs(config: Any, context: Context) -> Any:
    """The config with two outputs for each token, as transformers counts them."""
    return with_labels(config, ("start", "end"))


def create(net: QuestionAnswering, settings: SpanSettings, context: Context) -> SpanSystem:
    """The system of a network."""
    config: Any = net.config
    objective = context.objective("span", lambda tokenizer: SpanObjective(tokenizer, config, settings.max_length, settings.stride))
    return SpanSystem(net, objective)


TASK = EncoderTask("span", "the span of a text that answers a question", "QuestionAnswering", SpanSettings, with_two_outputs, create,
                   Reader)
