"""Fine-tuning to score texts and pairs of texts by a number, such as how alike two sentences are.

Devlin et al. 2018 (https://arxiv.org/abs/1810.04805), section 4.1, on STS-B: the network that classifies, with one output; squared
error; Pearson and Spearman correlation. As transformers has it: one class and `problem_type` regression.

The Pearson correlation during training comes from five means (of score, guess, their squares and product), which add up over batches
and ranks. Spearman needs all ranks together: `polymodal evaluate score` has it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..shared.family import Context
from ..shared.loss import at_least_fp32
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
    Use,
    fitting,
    packed,
    read,
    with_labels,
)
from .tasks import SequenceClassifier

MEANS = ("score", "guess", "score_squared", "guess_squared", "score_guess")
"""Of what evaluations take the mean."""


@dataclass(frozen=True, slots=True)
class ScoreExample(FramedExample):
    """A framed text or pair."""

    score: float


@dataclass(kw_only=True)
class ScoreBatch(FramedBatch):
    """Packed texts, N of them."""

    scores: Tensor
    """fp32 [N]"""


class ScoreObjective(FramedObjective[ScoreExample]):
    """A text, or a pair, and its score."""

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterator[ScoreExample]:
        """Yield the one example of a sample."""
        yield ScoreExample(*self.frame(sample.text(), sample.pair()), sample.score())

    def collate(self, examples: list[ScoreExample]) -> ScoreBatch:
        """Pack texts side by side."""
        return ScoreBatch(counts={"texts": len(examples)}, **packed(examples), scores=torch.tensor([e.score for e in examples]))

    def describe(self, example: ScoreExample) -> Preview:
        """The framed text and its score."""
        return Preview((("input", self.tokenizer.show(example.input_ids)), ("score", f"{example.score:g}")))


class ScoreSystem(TaskSystem[SequenceClassifier, ScoreObjective]):
    """A trunk with one output, and the squared error."""

    def guesses(self, batch: ScoreBatch) -> Tensor:
        """[N]"""
        return at_least_fp32(read(self.net, batch).logits[:, 0])

    def judged(self, logits: Tensor, batch: ScoreBatch) -> Step:
        """The squared error over the texts, and in evaluations what the correlation is computed from."""
        guesses = at_least_fp32(logits[:, 0])
        scores = batch.scores.to(guesses.dtype)
        step = Step({"regression": Term((guesses - scores).square().sum(), "texts")})
        if not self.training:
            # squares in double precision: guesses that hardly differ leave a difference of nearly equal means
            scores, guesses = (v if v.device.type == "mps" else v.double() for v in (scores, guesses))
            values = (scores, guesses, scores.square(), guesses.square(), scores * guesses)
            step.metrics |= {f"mean/{name}": (value.sum(), len(scores)) for name, value in zip(MEANS, values, strict=True)}
        return step

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        return "regression", "regression_chance", "pearson", *self.beside_names(), *(f"mean/{name}" for name in MEANS)

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """Pearson's correlation (0 where all guesses or all scores are equal), and the squared error of always guessing the mean."""
        if f"mean/{MEANS[0]}" not in means:
            return {}
        score, guess, score_squared, guess_squared, product = (means[f"mean/{name}"] for name in MEANS)
        spread, other = score_squared - score * score, guess_squared - guess * guess
        defined = min(spread / max(score_squared, 1e-30), other / max(guess_squared, 1e-30)) > 1e-12  # else it is rounding
        return {"pearson": (product - score * guess) / math.sqrt(spread * other) if defined else 0.0, "regression_chance": max(spread, 0.0)}

    @torch.no_grad()
    def preview(self, batch: ScoreBatch, limit: int = 4) -> list[Preview]:
        """Texts with their scores, guessed and true."""
        texts = batch.input_ids[0].split(batch.lengths)[:limit]
        return [Preview((("text", self.objective.tokenizer.decode(ids.tolist())), ("score", f"{guess:.2f}"), ("truth", f"{score:g}")))
                for ids, guess, score in zip(texts, self.guesses(batch).tolist(), batch.scores.tolist())]


Text = tuple[str, str | None]
"""A text, and the second text of its pair."""


class Scorer(Use[Text, float, float]):
    """Scores texts and pairs of texts."""

    task = "score"
    needs = ("text", "annotations")
    head = SequenceClassifier
    method = "one number"

    def __init__(self, model: SequenceClassifier, tokenizer: Tokenizer, max_length: int | None = None) -> None:
        super().__init__(model, tokenizer)
        vocabulary, length = fitting(tokenizer, model.config, max_length)
        self._objective = ScoreObjective(vocabulary, "scoring", length, model.config.type_vocab_size, model.config.summary_token)

    @classmethod
    def fits(cls, model: Any) -> bool:
        """Whether it has the head, with one output that is a number."""
        return super().fits(model) and model.config.problem_type == "regression" and model.config.num_labels == 1

    def labelled(self, sample: Sample) -> tuple[Text, float]:
        """The text or pair, and its score."""
        return (sample.text(), sample.pair()), sample.score()

    @torch.no_grad()
    def answer(self, inputs: Sequence[Text]) -> list[float]:
        """The scores."""
        batch = self._objective.collate([ScoreExample(*self._objective.frame(*text), 0.0) for text in inputs]).to(self.device)
        return read(self.model, batch).logits[:, 0].float().tolist()

    def tally(self, truth: float, answer: float) -> tuple[float, float]:
        """Both."""
        return truth, answer

    def measures(self, tallies: np.ndarray) -> dict[str, float]:
        """Pearson's and Spearman's correlation, and the root of the mean squared error."""
        from torchmetrics.functional.regression import pearson_corrcoef, spearman_corrcoef

        truth, guess = torch.from_numpy(np.ascontiguousarray(tallies.T))
        defined = len(truth) > 1 and bool(truth.std() > 0) and bool(guess.std() > 0)
        return {"pearson": float(pearson_corrcoef(guess, truth)) if defined else math.nan,
                "spearman": float(spearman_corrcoef(guess, truth)) if defined else math.nan,
                "rmse": float((guess - truth).square().mean().sqrt())}

    def shown(self, truth: float, answer: float) -> dict[str, Any]:
        """Both."""
        return {"score": truth, "prediction": answer}


def with_one_output(config: Any, context: Context) -> Any:
    """The config with one output, which is a number."""
    return with_labels(config, ("score",), "regression")


def create(net: SequenceClassifier, settings: TaskSettings, context: Context) -> ScoreSystem:
    """The system of a network."""

    def objective(tokenizer: Tokenizer) -> ScoreObjective:
        vocabulary, length = fitting(tokenizer, net.config, settings.max_length)
        return ScoreObjective(vocabulary, "scoring", length, net.config.type_vocab_size, net.config.summary_token)

    return ScoreSystem(net, context.objective("score", objective))


TASK = EncoderTask("score", "a number for a text or a pair of texts", "SequenceClassification", TaskSettings, with_one_output, create,
                   Scorer)
