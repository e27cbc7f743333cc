"""Fine-tuning from text to text: translation, summaries, questions, anything whose answer is a text.

Raffel et al. 2020, section 2.4: every task is a text that is read, behind a prefix that names the task, and a text that
is written. Prefixes are data: they stand in the texts, or all samples get the one of the settings, or a sample brings
its own (`prefix` in its json). A mixture of data sets with different prefixes trains many tasks at once. The prefixes
of the paper (appendix D): "summarize: ", "translate English to German: ", "cola sentence: ", "mnli hypothesis: ... premise: ...",
"question: ... context: ...", "stsb sentence1: ... sentence2: ..." with targets such as "acceptable" or "3.8".

Faithful: teacher forcing behind the decoder's start id, targets closed by the end-of-text token, cross-entropy as a sum
over target tokens.

Texts longer than `max_length` are cut at their end, as in the reference's fine-tuning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..shared.errors import UserError, raise_problems
from ..shared.family import Context, Task
from ..shared.sample import Sample
from ..shared.tokenizer import Tokenizer
from .encoder_decoder import EncoderDecoderLM
from .teacher_forcing import Seq2SeqExample, Seq2SeqObjective, Seq2SeqSystem, SmoothingSettings

LENGTHS = {"max_length": 512, "max_target_length": 128}
"""Tokens of texts and of targets where nothing says otherwise."""


@dataclass(frozen=True)
class Text2TextSettings(SmoothingSettings):
    """What of the objective can be set."""

    prefix: str = ""
    """Stands before every text, such as "summarize: "; a sample with a `prefix` in its json has that one instead."""
    max_length: int | None = None
    """Tokens of a text with its prefix and end-of-text token; the rest is cut off. None takes 512, or the model's positions where these are
    fewer."""
    max_target_length: int | None = None
    """Tokens of a target with its end-of-text token; the rest is cut off. None takes 128, or the model's positions where they are fewer."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        problems = [f"{name} is {getattr(self, name)}, expected at least 2 tokens"
                    for name in LENGTHS if (length := getattr(self, name)) is not None and length < 2]
        raise_problems([*problems, *self.smoothing_problems()])


class Text2TextObjective(Seq2SeqObjective):
    """A text to be read and a text to be written.

    Args:
        tokenizer: the vocabulary.
        settings: prefix and lengths.
        start_id: what the decoder starts from.
        positions: of the network; None where it has no table of them.
    """

    def __init__(self, tokenizer: Tokenizer, settings: Text2TextSettings, start_id: int, positions: int | None = None) -> None:
        super().__init__(tokenizer, start_id)
        self.settings = settings
        self.max_length, self.max_target_length = (self._length(name, usual, positions) for name, usual in LENGTHS.items())

    def _length(self, name: str, usual: int, positions: int | None) -> int:
        length: int | None = getattr(self.settings, name)
        if positions is not None and length is not None and length > positions:
            raise UserError(f"objective.{name} is {length}, the model has {positions} positions: lower it")
        length = length or min(usual, positions or usual)
        if length <= self.specials:
            raise UserError(f"{name} is {length}, expected more than the {self.specials} special tokens around a text")
        return length

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterator[Seq2SeqExample]:
        """Yield the one example of a sample."""
        yield Seq2SeqExample(*self.pair(sample))

    def pair(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """The text and the target of a sample, int64 [S] and [T]."""
        texts = [prefixed_text(sample, self.settings.prefix), sample.target()]
        text, target = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        return (self.framed(text[:self.max_length - self.specials]),
                self.written(target[:self.max_target_length - self.specials]))


def prefixed_text(sample: Sample, prefix: str) -> str:
    """The text of a sample behind its own prefix, or else behind this one."""
    own = sample.json().get("prefix", prefix) if "json" in sample.fields else prefix
    if not isinstance(own, str):
        raise sample.bad(f"prefix is {own!r}, expected text")
    return own + sample.text()


class Text2TextSystem(Seq2SeqSystem):
    """An encoder-decoder that learns to answer texts with texts."""


def task(architecture: str, build: Callable[[Any], EncoderDecoderLM], name: str = "text2text",
         adapt: Callable[[Any, Context], Any] = lambda config, context: config) -> Task:
    """The task `text2text`, or another `name`, of a family whose encoder-decoder `build` makes of a config with a `start_id`."""

    def create(config: Any, settings: Text2TextSettings, context: Context) -> Text2TextSystem:

        def objective(tokenizer: Tokenizer) -> Text2TextObjective:
            positions = getattr(config, "longest_input", None)
            return Text2TextObjective(tokenizer.fitting(config.vocab_size), settings, config.start_id, positions)

        return Text2TextSystem(build(config), context.objective(name, objective), settings.label_smoothing)

    return Task("a text from a text", Text2TextSettings, create, name, adapt, architecture)
