"""Fine-tuning to tag words: named entities, parts of speech.

Devlin et al. 2018 (https://arxiv.org/abs/1810.04805), section 5.3: the tag of a word is read off its first token, the others have no
label; cross-entropy over the words. Words are tokenised one by one, as transformers does with `is_split_into_words`.

A sentence that is longer than the network is cut between words, and every part is read alone; nothing is lost. Where all tags are O or
have the prefixes of BIO or BIOES, entities are counted as conlleval does (`entities`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ..shared.config import need_one_class_each
from ..shared.family import Context
from ..shared.loss import IGNORE, accuracy_sum, cross_entropy_sum
from ..shared.packed import joined
from ..shared.sample import Sample
from ..shared.system import Preview, Step, System, Term
from ..shared.tokenizer import Tokenizer
from .encoder_task import (
    EncoderTask,
    FramedBatch,
    FramedExample,
    FramedObjective,
    TaskSettings,
    Use,
    class_names,
    fitting,
    need_classes,
    packed,
    read,
    with_classes,
)
from .entities import are_entities, counts
from .framing import SummaryToken
from .tasks import TokenClassifier, WordTagger


@dataclass(frozen=True, slots=True)
class TagExample(FramedExample):
    """Words that are read together."""

    labels: np.ndarray
    """int64 [S], -100 but at the first token of each word."""


@dataclass(kw_only=True)
class TagBatch(FramedBatch):
    """Packed sentences. W words."""

    word_rows: Tensor
    """[W], the first tokens of the words."""
    labels: Tensor
    """[W]"""
    words: tuple[int, ...]
    """Words of each sentence, N numbers with sum W."""


def tag_number(tag: str | int, labels: Sequence[str], sample: Sample) -> int:
    """The number of a tag among `labels`, which has its name or its number."""
    found = tag if not isinstance(tag, str) else labels.index(tag) if tag in labels else -1
    if not 0 <= found < len(labels):
        known = ", ".join(labels[:8]) + (" ..." if len(labels) > 8 else "")
        raise sample.bad(f"the tag {tag!r}; the model has {known}")
    return found


def entity_metrics(truths: Sequence[Sequence[str]], guesses: Sequence[Sequence[str]]) -> dict[str, tuple[Tensor, Tensor]]:
    """F1, precision and recall of the entities of sentences, as sums with counts."""
    right, found, there = torch.tensor([counts(*pair) for pair in zip(truths, guesses, strict=True)]).sum(0)
    return {"entity_f1": (2 * right, found + there), "entity_precision": (right, found), "entity_recall": (right, there)}


class TagObjective(FramedObjective[TagExample]):
    """Words with their tags."""

    def __init__(self, tokenizer: Tokenizer, labels: tuple[str, ...], max_length: int, token_types: int = 2,
                 summary: SummaryToken = "first") -> None:
        """Make the data side for the tags `labels`; the other arguments as in `FramedObjective`."""
        super().__init__(tokenizer, "tagging", max_length, token_types, summary)
        self.labels = labels

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterator[TagExample]:
        """Yield the parts of a sentence."""
        words, tags = sample.tags()
        yield from self.parts(words, [tag_number(tag, self.labels, sample) for tag in tags])

    def parts(self, words: Sequence[str], labels: Sequence[int]) -> Iterator[TagExample]:
        """The words, cut between words into parts that fit. A word that is longer than a part loses its end."""
        room = self.framed.room(self.max_length, pair=False)
        begin = self.framed.begins(0)[0]
        rows = self.tokenizer.encode_batch([f" {word}" for word in words], add_special_tokens=False)
        unknown = [0 if self.tokenizer.unk_id is None else self.tokenizer.unk_id]
        ids, starts, used = list[int](), list[int](), 0
        for number, row in enumerate([*rows, None]):
            row = None if row is None else row[:room] or unknown
            if starts and (row is None or len(ids) + len(row) > room):
                framed, types = self.around(ids)
                marked = np.full(len(framed), IGNORE)
                marked[begin + np.array(starts)] = labels[used:number]
                yield TagExample(framed, types, marked)
                ids, starts, used = [], [], number
            if row is not None:
                starts.append(len(ids))
                ids += row

    def collate(self, examples: list[TagExample]) -> TagBatch:
        """Pack sentences side by side."""
        labels = joined([e.labels for e in examples])[0]
        rows = (labels != IGNORE).nonzero()[:, 0]
        words = tuple(int((e.labels != IGNORE).sum()) for e in examples)
        return TagBatch(counts={"words": len(rows)}, **packed(examples), word_rows=rows, labels=labels[rows], words=words)

    def describe(self, example: TagExample) -> Preview:
        """The tokens, and the tags of the words."""
        places = (example.labels != IGNORE).nonzero()[0]
        shown = " ".join(f"{self.tokenizer.show(example.input_ids[i:i + 1])}/{self.labels[example.labels[i]]}" for i in places)
        return Preview((("input", self.tokenizer.show(example.input_ids)), ("first tokens and tags", shown)))


class TagSystem(System[TokenClassifier, TagObjective]):
    """A trunk with an output layer for each token, and cross-entropy over the words."""

    def __init__(self, net: TokenClassifier, objective: TagObjective, labels: tuple[str, ...]) -> None:
        super().__init__(net, objective)
        self.labels = labels
        self.with_entities = are_entities(labels)

    def logits(self, batch: TagBatch) -> Tensor:
        """Of the words: [W, tags]."""
        return read(self.net, batch).logits[0, batch.word_rows]

    def forward(self, batch: TagBatch, carry: Any = None) -> Step:
        """Cross-entropy over the words, how many are right, and in evaluations precision, recall and F1 of the entities."""
        logits = self.logits(batch)
        step = Step({"tagging": Term(cross_entropy_sum(logits, batch.labels), "words", labels=batch.labels)},
                    {"accuracy": (accuracy_sum(logits, batch.labels), len(batch.labels))})
        if not self.training and self.with_entities:
            step.metrics |= entity_metrics(*(self._sentences(numbers, batch) for numbers in (batch.labels, logits.argmax(-1))))
        return step

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        entities = ("entity_f1", "entity_precision", "entity_recall") if self.with_entities else ()
        return "tagging", "tagging_chance", "accuracy", *entities

    def _sentences(self, numbers: Tensor, batch: TagBatch) -> list[list[str]]:
        """The names of tags [W], sentence by sentence."""
        return [[self.labels[n] for n in part.tolist()] for part in numbers.cpu().split(batch.words)]

    @torch.no_grad()
    def preview(self, batch: TagBatch, limit: int = 4) -> list[Preview]:
        """Sentences with the tags of their words, guessed and true."""
        texts = batch.input_ids[0].split(batch.lengths)[:limit]
        guesses, truths = (self._sentences(numbers, batch) for numbers in (self.logits(batch).argmax(-1), batch.labels))
        return [Preview((("text", self.objective.tokenizer.decode(ids.tolist())), ("tags", " ".join(guess)), ("truth", " ".join(truth))))
                for ids, guess, truth in zip(texts, guesses, truths)]


class Tagger(Use[Sequence[str], list[str], list[str]]):
    """Tags words. A network that reads words as they are needs no tokenizer."""

    task = "tag"
    needs = ("annotations",)
    head = TokenClassifier
    method: str = "first token of each word"

    def __init__(self, model: TokenClassifier, tokenizer: Tokenizer | None, max_length: int | None = None) -> None:
        super().__init__(model, tokenizer)
        self.labels = class_names(model.config)
        self.with_entities = are_entities(self.labels)
        self._objective: TagObjective | None = None
        self._tokenizer = tokenizer
        if isinstance(model, WordTagger):
            self.method = "its words"
            return
        assert tokenizer is not None
        vocabulary, length = fitting(tokenizer, model.config, max_length)
        self._objective = TagObjective(vocabulary, self.labels, length, model.config.type_vocab_size, model.config.summary_token)

    def labelled(self, sample: Sample) -> tuple[Sequence[str], list[str]]:
        """Words, and the names of their tags."""
        words, tags = sample.tags()
        return words, [self.labels[tag_number(tag, self.labels, sample)] for tag in tags]

    @torch.no_grad()
    def answer(self, inputs: Sequence[Sequence[str]]) -> list[list[str]]:
        """A tag for each word of each sentence."""
        if self._objective is None:
            return [[self.labels[n] for n in tags] for tags in cast("WordTagger", self.model).tag(inputs, self._tokenizer)]
        batch = self._objective.collate([part for words in inputs for part in self._objective.parts(words, [0] * len(words))])
        batch = batch.to(self.device)
        best = read(self.model, batch).logits[0, batch.word_rows].argmax(-1)
        return [[self.labels[n] for n in part.tolist()] for part in best.cpu().split([len(words) for words in inputs])]

    def tally(self, truth: list[str], answer: list[str]) -> tuple[int, ...]:
        """Entities right, guessed and true; words right and all."""
        return *counts(truth, answer), sum(a == b for a, b in zip(truth, answer, strict=True)), len(truth)

    def measures(self, tallies: np.ndarray) -> dict[str, float]:
        """Precision, recall and F1 of the entities, where tags mark entities; the share of right words."""
        right, found, there, hits, words = tallies.sum(0).tolist()
        shares = {"entity_f1": (2 * right, found + there), "entity_precision": (right, found), "entity_recall": (right, there)}
        return {**({name: a / b if b else math.nan for name, (a, b) in shares.items()} if self.with_entities else {}),
                "accuracy": hits / words}

    def shown(self, truth: list[str], answer: list[str]) -> dict[str, Any]:
        """Both."""
        return {"tags": truth, "predictions": answer}


def create(net: TokenClassifier, settings: TaskSettings, context: Context) -> TagSystem:
    """The system of a network."""
    config = net.config
    need_classes(config, context, "tagging", "pack it with --kind tag")
    need_one_class_each(config, "fine-tuning")

    def objective(tokenizer: Tokenizer) -> TagObjective:
        vocabulary, length = fitting(tokenizer, config, settings.max_length)
        return TagObjective(vocabulary, class_names(config), length, config.type_vocab_size, config.summary_token)

    return TagSystem(net, context.objective("tag", objective), class_names(config))


TASK = EncoderTask("tag", "a tag for each word", "TokenClassification", TaskSettings, with_classes, create, Tagger)
