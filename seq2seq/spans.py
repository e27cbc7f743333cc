"""The data side of T5: spans are cut out of a text, and are its target."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..shared.corrupt import cut_spans, noise_spans, span_count, span_lengths
from ..shared.documents import documents
from ..shared.errors import UserError, raise_problems
from ..shared.sample import Sample
from ..shared.tokenizer import Tokenizer
from .teacher_forcing import Seq2SeqExample, Seq2SeqObjective, SmoothingSettings


@dataclass(frozen=True)
class SpanSettings(SmoothingSettings):
    """What of the objective can be set."""

    max_length: int = 512
    """Tokens of an input, sentinels and end-of-text token included; texts are cut so that they fill it."""
    noise_density: float = 0.15
    """Fraction of the tokens that is corrupted."""
    mean_noise_span_length: float = 3.0
    """Tokens of a corrupted span, on average."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        problems: list[str] = []
        if self.max_length < 16:
            problems.append(f"max_length is {self.max_length}, expected at least 16 tokens")
        if not 0 < self.noise_density < 1:
            problems.append(f"noise_density is {self.noise_density}, expected a fraction between 0 and 1")
        if not self.mean_noise_span_length >= 1:
            problems.append(f"mean_noise_span_length is {self.mean_noise_span_length}, expected at least 1 token")
        raise_problems([*problems, *self.smoothing_problems()])


class SpanObjective(Seq2SeqObjective):
    """Corrupted spans, from the rest of the text."""

    def __init__(self, tokenizer: Tokenizer, settings: SpanSettings, start_id: int) -> None:
        """Make the data side; `start_id` is what the decoder starts from."""
        super().__init__(tokenizer, start_id)
        self.settings = settings
        self.text_length, self.target_length = span_lengths(settings.max_length, settings.noise_density, settings.mean_noise_span_length)
        _, spans = span_count(self.text_length, settings.noise_density, settings.mean_noise_span_length)
        self.sentinels = sentinel_ids(tokenizer)
        if len(self.sentinels) < spans:
            fix = "lower objective.max_length" if len(self.sentinels) else "train one with --style t5"
            raise UserError(f"texts of {self.text_length} tokens need {spans} sentinels (<extra_id_0>, ...), "
                            f"the tokenizer has {len(self.sentinels)}: {fix}")

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterator[Seq2SeqExample]:
        """Yield the pieces of a text, or of the documents of a row, joined without the special tokens around them."""
        ids = np.concatenate(documents(sample, self.tokenizer))
        if len(ids) < 2:
            raise sample.bad("a text of two tokens or more is needed")
        settings, eos = self.settings, [self.eos_id]
        borders = [*range(0, len(ids), self.text_length), len(ids)]
        if borders[-1] - borders[-2] == 1:
            borders[-2] -= 1  # one token is not a text: the last piece has two
        for piece in (ids[a:b] for a, b in itertools.pairwise(borders)):
            noise = noise_spans(len(piece), rng, noise_density=settings.noise_density, mean_span_length=settings.mean_noise_span_length)
            text, target = cut_spans(piece, noise, self.sentinels)
            yield Seq2SeqExample(np.concatenate([text, eos]), np.concatenate([target, eos]))


def sentinel_ids(tokenizer: Tokenizer) -> np.ndarray:
    """The ids of <extra_id_0>, <extra_id_1>, ... as far as the vocabulary has them, int64."""
    found: list[int] = []
    while (i := tokenizer.token_to_id(f"<extra_id_{len(found)}>")) is not None:
        found.append(i)
    return np.asarray(found, dtype=np.int64)
