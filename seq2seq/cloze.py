"""The data side of UniLM: four tasks that hide tokens, and differ in what a token sees and in the segments; and answers to texts.

    task           sequence               segments   a token sees
    bidirectional  [CLS] A [SEP] B [SEP]    0, 1     all tokens; B follows A, or is from elsewhere
    left_to_right  [CLS] A [SEP]            2        itself and what stands before it
    right_to_left  [CLS] A [SEP]            3        itself and what stands behind it
    seq2seq        [CLS] A [SEP] B [SEP]    4, 5     A with its [SEP], and of B itself and what stands before it; B follows A

Dong et al. 2019, sections 2.2 and 2.3, with the segments of microsoft/unilm (unilm-v1, `seq2seq_loader.py`). Of each sequence 15 % are
predicted: one token at a time in 80 % of the draws, else two or three that follow each other. Of these, 80 % become [MASK], 10 % any token,
and 10 % stay. The [SEP] that ends B in `seq2seq` may be drawn, too: from it the network learns where a text ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from ..shared.attention.mask import Mask
from ..shared.corrupt import prediction_count
from ..shared.documents import apart
from ..shared.errors import UserError, raise_problems
from ..shared.sample import Sample
from ..shared.tokenizer import Tokenizer
from ..text.bert import BertBatch, BertExample, BertObjective, PairSettings
from ..text.masking import MaskedExample, MaskingObjective, MaskingSettings
from ..text.sentences import consecutive
from ..text.words import choose_words
from .text2text import prefixed_text

Lengths = tuple[int, ...]


@dataclass(frozen=True)
class ClozeTask:
    """What makes a task what it is."""

    segments: tuple[int, ...]
    """Segment ids of the first text and of the second, where there is one."""
    mask: Callable[[Lengths, Lengths], Mask]
    """(tokens of packed sequences, tokens of the first segment of each) -> what a token sees."""


BIDIRECTIONAL, LEFT_TO_RIGHT, RIGHT_TO_LEFT, SEQ2SEQ = "bidirectional", "left_to_right", "right_to_left", "seq2seq"
TASKS: Mapping[str, ClozeTask] = {
    BIDIRECTIONAL: ClozeTask((0, 1), lambda lengths, first: Mask(lengths=lengths)),
    LEFT_TO_RIGHT: ClozeTask((2,), lambda lengths, first: Mask(causal=True, lengths=lengths)),
    RIGHT_TO_LEFT: ClozeTask((3,), lambda lengths, first: Mask(window=(0, max(lengths)), lengths=lengths)),
    SEQ2SEQ: ClozeTask((4, 5), lambda lengths, first: Mask(causal=True, lengths=lengths, prefix_lengths=first)),
}
SOURCE, TARGET = TASKS[SEQ2SEQ].segments
SEGMENTS = 1 + max(segment for task in TASKS.values() for segment in task.segments)


@dataclass(kw_only=True)
class ClozeBatch(BertBatch):
    """Packed sequences of one task."""

    mask: Mask
    """What each token sees."""


# ------------------------------------------------------------------------------------------ pretraining


@dataclass(frozen=True)
class ClozeSettings(PairSettings):
    """What of pretraining can be set."""

    bidirectional: int = 2
    """Updates of a cycle that have this task; 0 leaves it out, and next sentences with it."""
    seq2seq: int = 2
    """Updates of a cycle that have this task."""
    left_to_right: int = 1
    """Updates of a cycle that have this task."""
    right_to_left: int = 1
    """Updates of a cycle that have this task."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        shares = {name: getattr(self, name) for name in TASKS}
        raise_problems([f"{name} is {count}, expected 0 or more updates of a cycle" for name, count in shares.items() if count < 0])
        if not any(shares.values()):
            raise UserError(f"{', '.join(shares)} are all 0: at least one task must have an update in a cycle")

    @property
    def turns(self) -> dict[str, int]:
        """The tasks, in the order of the paper's mixture, with their updates in a cycle."""
        return {name: count for name in (BIDIRECTIONAL, SEQ2SEQ, LEFT_TO_RIGHT, RIGHT_TO_LEFT) if (count := getattr(self, name))}


class ClozeObjective(BertObjective):
    """The tasks in turns, or one of them.

    Args:
        tokenizer: with tokens for classification, separation and masking.
        settings: what can be set.
        max_length: tokens of a sequence at most, special ones included.
        task: a name of `TASKS`; empty for all that the settings have, which take turns.
    """

    ngrams: tuple[float, ...] = (0.8, 0.1, 0.1)

    def __init__(self, tokenizer: Tokenizer, settings: ClozeSettings, max_length: int, task: str = "") -> None:
        super().__init__(tokenizer, settings, max_length)
        self.cloze_settings = settings
        self.turns = {} if task else settings.turns
        self.task = task or next(iter(self.turns))
        self.needs_partner = self.task == BIDIRECTIONAL

    def by_turn(self) -> Mapping[str, ClozeObjective]:
        """See `Objective.by_turn`."""
        return {name: ClozeObjective(self.tokenizer, self.cloze_settings, self.max_length, name) for name in self.turns} or {"": self}

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterator[BertExample]:
        """Yield the sequences of each document: pairs with a label, pairs that follow each other, or single texts."""
        if self.task != SEQ2SEQ:
            yield from super().example(sample, rng)
            return
        for document in self.sentences(sample):
            for a, b in consecutive(document, self.room, self.short_prob, rng):
                yield BertExample(*self.masked(a, b, rng), None)

    def maskable(self, ids: np.ndarray) -> np.ndarray:
        """Which places of a framed sequence [S] may be predicted, bool [S]: never [CLS] or [SEP], but for the one that ends a target."""
        found = super().maskable(ids)
        found[-1] |= self.task == SEQ2SEQ
        return found

    def choose(self, ids: np.ndarray, bounds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The places of a framed sequence [S] that are to be predicted, int64 [M], ascending: tokens or words, alone or in n-grams."""
        return choose_words(bounds, prediction_count(len(ids), self.settings.mask_prob, self.settings.max_predictions), rng, self.ngrams)

    def masked(self, a: np.ndarray, b: np.ndarray | None,
               rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """A text, or both segments of a pair, framed and masked, with the segments of the task."""
        ids, types, positions, targets = super().masked(a, b, rng)
        return ids, np.array(TASKS[self.task].segments)[types], positions, targets

    def collate(self, examples: list[BertExample]) -> ClozeBatch:
        """Pack sequences side by side, with what their tokens see."""
        return with_mask(super().collate(examples), self.task, examples)


def with_mask(batch: BertBatch, task: str, examples: Sequence[MaskedExample]) -> ClozeBatch:
    """A batch with what the tokens of its sequences see."""
    chosen = TASKS[task]
    first = tuple(int((e.token_type_ids == chosen.segments[0]).sum()) for e in examples)
    return ClozeBatch(**vars(batch), mask=chosen.mask(batch.lengths, first))


# ------------------------------------------------------------------------------------------ fine-tuning


@dataclass(frozen=True)
class AnswerSettings(MaskingSettings):
    """What of fine-tuning for generation can be set."""

    mask_prob: float = 0.7
    """Fraction of a target that is predicted."""
    max_length: int | None = None
    """Tokens of a text and its target together, special ones included; the text is cut at its end. None takes the model's positions."""
    max_target_length: int = 128
    """Tokens of a target with its [SEP], and never more than half of all; the rest is cut off."""
    prefix: str = ""
    """Stands before every text; a sample with a `prefix` in its json has that one instead."""
    label_smoothing: float = 0.1
    """Share of a token's probability that is spread over the whole vocabulary while training."""

    PROBABILITIES: ClassVar[tuple[str, ...]] = (*MaskingSettings.PROBABILITIES, "label_smoothing")

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if self.max_target_length < 2:
            raise UserError(f"max_target_length is {self.max_target_length}, expected at least 2 tokens")


class AnswerObjective(MaskingObjective[MaskedExample]):
    """A text and its target as the two segments of `seq2seq`; only tokens of the target, its [SEP] included, are hidden and predicted.

    Args:
        tokenizer: with tokens for classification, separation and masking.
        settings: what can be set.
        max_length: tokens of both, special ones included.
    """

    def __init__(self, tokenizer: Tokenizer, settings: AnswerSettings, max_length: int) -> None:
        super().__init__(tokenizer, settings, max_length)
        self.prefix = settings.prefix
        self.longest_target = min(settings.max_target_length, max_length // 2) - 1

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterator[MaskedExample]:
        """Yield the one example of a sample."""
        parts = (prefixed_text(sample, self.prefix), sample.target())
        text, target = (self.tokenizer.encode(part, add_special_tokens=False) for part in parts)
        target = target[:self.longest_target]
        text = text[:self.frame.room(self.max_length, pair=True) - len(target)]
        yield MaskedExample(*self.masked(np.array(text, dtype=np.int64), np.array(target, dtype=np.int64), rng))

    def maskable(self, ids: np.ndarray) -> np.ndarray:
        """Which places of a framed sequence [S] may be predicted, bool [S]: never [CLS] or [SEP], but for the last one."""
        found = super().maskable(ids)
        found[-1] = True
        return found

    def masked(self, a: np.ndarray, b: np.ndarray | None,
               rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """A text and its target, framed and masked."""
        assert b is not None, "there is no text without a target"
        framed, types = self.frame(a, b)
        ids, units = apart(framed)
        bounds = self.bounds(ids, units)
        bounds = bounds[types[bounds[:, 0]] == 1]
        count = prediction_count(len(b), self.settings.mask_prob, self.settings.max_predictions)
        noisy = self.replace(ids, choose_words(bounds, count, rng), bounds, rng)
        return noisy.ids, np.array([SOURCE, TARGET])[types], noisy.positions, noisy.targets

    def collate(self, examples: list[MaskedExample]) -> ClozeBatch:
        """Pack texts with their targets side by side."""
        batch = BertBatch(**vars(super().collate(examples)), next_sentence=torch.zeros(0, dtype=torch.long))
        return with_mask(batch, SEQ2SEQ, examples)
