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

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..shared.errors import BadSample, raise_problems
from ..shared.family import Context, Task
from ..shared.loss import accuracy_sum, cross_entropy_sum
from ..shared.sample import Sample
from ..shared.system import Objective, Preview, Step, System, Term
from ..shared.tokenizer import Tokenizer
from .generation.generate import generate_ids
from .spans import Seq2SeqBatch, Seq2SeqExample, fitting, pad_pairs, show_tokens, with_ends


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


class Text2TextObjective(Objective[Seq2SeqExample]):
    """A text to be read and a text to be written."""

    def __init__(self, tokenizer: Tokenizer, settings: Text2TextSettings, start_id: int) -> None:
        """Make the data side; `start_id` is what the decoder starts from."""
        self.tokenizer = with_ends(tokenizer)
        self.settings = settings
        self.start_id = start_id

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterator[Seq2SeqExample]:
        """Yield the one example of a sample."""
        prefix = sample.json().get("prefix", self.settings.prefix) if "json" in sample.fields else self.settings.prefix
        if not isinstance(prefix, str):
            raise BadSample(f"sample {sample.key!r} of {sample.source or 'the data set'}: prefix is {prefix!r}, expected text")
        yield Seq2SeqExample(self._ids(prefix + sample.text(), self.settings.max_length),
                             self._ids(sample.target(), self.settings.max_target_length))

    def _ids(self, text: str, length: int) -> np.ndarray:
        ids = self.tokenizer.encode(text, add_special_tokens=False)[:length - 1]
        return np.array([*ids, self.tokenizer.eos_id], dtype=np.int64)

    def collate(self, examples: list[Seq2SeqExample]) -> Seq2SeqBatch:
        """Pad texts and targets on the right."""
        assert self.tokenizer.pad_id is not None
        return pad_pairs(examples, self.tokenizer.pad_id, self.start_id)

    def describe(self, example: Seq2SeqExample) -> Preview:
        """The text with its prefix, and the target."""
        return Preview((("input", show_tokens(self.tokenizer, example.input_ids)), ("target", show_tokens(self.tokenizer, example.labels))))


class Text2TextSystem(System[nn.Module, Objective[Seq2SeqExample]]):
    """An encoder-decoder that writes targets: cross-entropy of their tokens.

    Args:
        net: a network with `trunk.encode`, `trunk.decode` and `head`.
        objective: makes `Seq2SeqBatch`es.
        label_smoothing: share of the target's probability that is spread over the vocabulary while training.
    """

    rows: tuple[str, str, str] = ("text", "target", "written")
    """What a preview calls the text, its target, and what the network writes."""

    def __init__(self, net: nn.Module, objective: Objective[Seq2SeqExample], label_smoothing: float = 0.0) -> None:
        super().__init__(net, objective)
        self.label_smoothing = label_smoothing

    def forward(self, batch: Seq2SeqBatch, carry: Any = None) -> Step:
        """Cross-entropy of the targets, summed; the vocabulary is scored only where there is a target."""
        trunk, head = cast("Any", self.net.trunk), cast("Any", self.net.head)
        memory = trunk.encode(batch.input_ids, batch.attention_mask)
        hidden = trunk.decode(batch.decoder_input_ids, memory, batch.attention_mask)
        rows = hidden.flatten(0, 1)[batch.target_rows]  # [M, D]
        if not self.training:
            logits = head(rows)
            return Step({"lm": Term(cross_entropy_sum(logits, batch.targets), "targets", labels=batch.targets)},
                        {"accuracy": (accuracy_sum(logits, batch.targets), len(batch.targets))})
        if not self.label_smoothing:
            return Step({"lm": Term(head.loss(rows, batch.targets), "targets", labels=batch.targets)})
        return Step({"lm": Term(smoothed_sum(head(rows), batch.targets, self.label_smoothing), "targets", labels=batch.targets)})

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """Perplexity of the target tokens."""
        return {"perplexity": math.exp(min(means["lm"], 700.0))} if "lm" in means else {}

    @torch.no_grad()
    def preview(self, batch: Seq2SeqBatch, limit: int = 4) -> list[Preview]:
        """Texts, their targets, and what the network writes, greedily."""
        tokenizer = cast("Any", self.objective).tokenizer
        ids, mask = batch.input_ids[:limit], batch.attention_mask[:limit]
        written = generate_ids(self.net, ids, mask, max_new_tokens=max(batch.lengths[:limit]))[:, 1:].cpu().numpy()
        targets = [t.cpu().numpy() for t in batch.targets.split(list(batch.lengths))[:limit]]
        return [
            Preview(tuple((name, show_tokens(tokenizer, part)) for name, part in zip(self.rows, (row[keep].cpu().numpy(), target, guess))))
            for row, keep, target, guess in zip(ids, mask, targets, written)
        ]


def smoothed_sum(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """The summed cross-entropy of logits [M, V] against targets [M] that keep 1 - `smoothing`, the rest evenly over V."""
    scores = logits.float().log_softmax(-1) if logits.dtype in (torch.float16, torch.bfloat16) else logits.log_softmax(-1)
    return -(1 - smoothing) * scores.gather(-1, targets[:, None]).sum() - smoothing * scores.mean(-1).sum()


def task(architecture: str, build: Callable[[Any], nn.Module]) -> Task:
    """The task `text2text` of a family whose encoder-decoder `build` makes of a config with a `start_id`."""

    def create(config: Any, settings: Text2TextSettings, context: Context) -> Text2TextSystem:

        def objective(tokenizer: Tokenizer) -> Text2TextObjective:
            return Text2TextObjective(fitting(tokenizer, config.vocab_size), settings, config.start_id)

        return Text2TextSystem(build(config), context.objective("text2text", objective), settings.label_smoothing)

    return Task("a text from a text", Text2TextSettings, create, "text2text", architecture=architecture)
