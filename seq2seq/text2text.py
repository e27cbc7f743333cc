"""Fine-tuning from text to text: translation, summaries, questions, anything whose answer is a text.

Raffel et al. 2020, section 2.4: every task is a text that is read, behind a prefix that names the task, and a text that
is written. Prefixes are data: they stand in the texts, or all samples get the one of the settings, or a sample brings
its own (`prefix` in its json). A mixture of data sets with different prefixes trains many tasks at once. The prefixes
of the paper (appendix D): "summarize: ", "translate English to German: ", "cola sentence: ", "mnli hypothesis: ... premise: ...",
"question: ... context: ...", "stsb sentence1: ... sentence2: ..." with targets such as "acceptable" or "3.8".

Faithful: teacher forcing behind the decoder's start id, targets closed by the end-of-text token, cross-entropy as a sum
over target tokens.

Deviation: texts longer than `max_length` are cut at their end, as in the reference's fine-tuning; nothing is packed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..shared.errors import raise_problems
from ..shared.family import Context, Task
from ..shared.sample import Sample
from ..shared.tokenizer import Tokenizer
from .encoder_decoder import EncoderDecoderLM
from .teacher_forcing import Seq2SeqExample, Seq2SeqObjective, Seq2SeqSystem


@dataclass(frozen=True)
class Text2TextSettings:
    """What of the objective can be set."""

    prefix: str = ""
    """Stands before every text, such as "summarize: "; a sample with a `prefix` in its json has that one instead."""
    max_length: int = 512
    """Tokens of a text with its prefix and end-of-text token; the rest is cut off."""
    max_target_length: int = 128
    """Tokens of a target with its end-of-text token; the rest is cut off."""
    label_smoothing: float = 0.0
    """Share of the target's probability that is spread over the whole vocabulary while training."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        problems = [f"{name} is {getattr(self, name)}, expected at least 2 tokens"
                    for name in ("max_length", "max_target_length") if getattr(self, name) < 2]
        if not 0 <= self.label_smoothing < 1:
            problems.append(f"label_smoothing is {self.label_smoothing}, expected a fraction from 0 up to 1")
        raise_problems(problems)


class Text2TextObjective(Seq2SeqObjective):
    """A text to be read and a text to be written."""

    def __init__(self, tokenizer: Tokenizer, settings: Text2TextSettings, start_id: int) -> None:
        """Make the data side; `start_id` is what the decoder starts from."""
        super().__init__(tokenizer, start_id)
        self.settings = settings

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterator[Seq2SeqExample]:
        """Yield the one example of a sample."""
        prefix = sample.json().get("prefix", self.settings.prefix) if "json" in sample.fields else self.settings.prefix
        if not isinstance(prefix, str):
            raise sample.bad(f"prefix is {prefix!r}, expected text")
        yield Seq2SeqExample(self._ids(prefix + sample.text(), self.settings.max_length),
                             self._ids(sample.target(), self.settings.max_target_length))

    def _ids(self, text: str, length: int) -> np.ndarray:
        ids = self.tokenizer.encode(text, add_special_tokens=False)[:length - 1]
        return np.array([*ids, self.eos_id], dtype=np.int64)


class Text2TextSystem(Seq2SeqSystem):
    """An encoder-decoder that learns to answer texts with texts."""


def task(architecture: str, build: Callable[[Any], EncoderDecoderLM]) -> Task:
    """The task `text2text` of a family whose encoder-decoder `build` makes of a config with a `start_id`."""

    def create(config: Any, settings: Text2TextSettings, context: Context) -> Text2TextSystem:

        def objective(tokenizer: Tokenizer) -> Text2TextObjective:
            return Text2TextObjective(tokenizer.fitting(config.vocab_size), settings, config.start_id)

        return Text2TextSystem(build(config), context.objective("text2text", objective), settings.label_smoothing)

    return Task("a text from a text", Text2TextSettings, create, "text2text", architecture=architecture)
