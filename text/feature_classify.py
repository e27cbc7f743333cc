"""Texts and pairs of texts by the layers of a trained network: the other half of `features`.

A text is its words' mixed layers through a BiLSTM, of whose states [T, 2 H] the maximum and the mean are taken: u [4 H]. A second text is
v, or zeros where there is none. Classes are read off [u; v; |u - v|; u v] through a layer with a ReLU, as Conneau et al. (2017,
https://arxiv.org/abs/1705.02364, section 3) do with pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..shared.errors import UserError
from ..shared.sample import Sample
from ..shared.system import Batch, Companion, Objective, Preview, Step, map_tensors
from ._lstm import BiLSTM
from ._mix import ScalarMix
from ._readers import Reader, Source, layers_of, need_sources, reader_of, sources_of, words_of
from .classify import ClassifySystem
from .tasks import TextReader


class FeatureClassifier(TextReader):
    """Classes of texts and pairs from the layers of a trained network, which lies beside it (`companions`)."""

    reads: ClassVar[tuple[str, ...]] = ("features",)

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.companions: dict[str, Source] = {}
        self.mix = ScalarMix(config.feature_layers, layer_norm=config.layer_norm)
        self.lstm = BiLSTM(config.feature_size, config.hidden_size, config.num_hidden_layers, config.dropout)
        self.dense = nn.Linear(16 * config.hidden_size, 2 * config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(2 * config.hidden_size, config.num_labels)

    def forward(self, layers: Sequence[Tensor], lengths: Sequence[int], seconds: Sequence[int]) -> Tensor:
        """Logits [N, classes].

        Args:
            layers: of N texts and then of the second texts, [T, D] each.
            lengths: words of each.
            seconds: which of the N texts have a second one.
        """
        states = self.lstm(self.mix(layers), lengths).split(list(lengths))
        pooled = torch.stack([torch.cat([part.amax(0), part.mean(0)]) for part in states])
        count = len(lengths) - len(seconds)
        u, there = pooled[:count], torch.tensor(list(seconds), dtype=torch.long).to(pooled.device, non_blocking=True)
        v = torch.zeros_like(u).index_copy(0, there, pooled[count:])
        return self.classifier(self.dropout(self.dense(torch.cat([u, v, (u - v).abs(), u * v], -1)).relu()))

    def scores(self, readers: Mapping[str, Reader], inputs: Mapping[str, dict[str, Tensor]], lengths: Sequence[int],
               seconds: Sequence[int], learning: bool = False) -> Tensor:
        """`forward` on what the reader made of words; with `learning` the other network has gradients."""
        layers = layers_of(self.companions, readers, inputs, lengths, self.classifier.weight, learning)
        return self(layers["features"], lengths, seconds)

    @torch.no_grad()
    def logits(self, texts: Sequence[tuple[str, str | None]]) -> Tensor:
        """See `TextReader`."""
        need_sources(self.companions, self.reads)
        readers = {name: reader_of(source) for name, source in self.companions.items()}
        examples = [TextExample(tuple(words_of(text)), tuple(words_of(pair or "")), 0) for text, pair in texts]
        for example in examples:
            if problem := unreadable(example, readers):
                raise UserError(f"the text {' '.join(example.words)[:60]!r} {problem}")
        batch = collated(examples, readers)
        device = self.classifier.weight.device
        return self.scores(readers, map_tensors(batch.inputs, lambda tensor: tensor.to(device)), batch.lengths, batch.seconds)


@dataclass(frozen=True, slots=True)
class TextExample:
    """A text or a pair."""

    words: tuple[str, ...]
    second: tuple[str, ...]
    """Empty where there is no second text."""
    label: int


@dataclass(kw_only=True)
class TextBatch(Batch):
    """N texts, and then the second ones of those that have one."""

    inputs: dict[str, dict[str, Tensor]]
    lengths: tuple[int, ...]
    seconds: tuple[int, ...]
    """Which of the N texts have a second one."""
    labels: Tensor
    """[N]"""
    texts: list[str]
    """For people."""


def unreadable(example: TextExample, readers: Mapping[str, Reader]) -> str | None:
    """Why a text cannot be read, as the end of a sentence; None where it can."""
    if not example.words:
        return "has no words"
    problems = (reader.fits(words) for reader in readers.values() for words in (example.words, example.second) if words)
    return next((f"has {problem}: cut it" for problem in problems if problem), None)


def collated(examples: Sequence[TextExample], readers: Mapping[str, Reader]) -> TextBatch:
    """The batch of some texts."""
    seconds = tuple(number for number, e in enumerate(examples) if e.second)
    sentences = [*(e.words for e in examples), *(examples[n].second for n in seconds)]
    lengths = tuple(map(len, sentences))
    return TextBatch(counts={"texts": len(examples)}, tokens=sum(lengths), lengths=lengths, seconds=seconds,
                     inputs={name: reader.collate(sentences) for name, reader in readers.items()},
                     labels=torch.tensor([e.label for e in examples]), texts=[" ".join((*e.words, *e.second)) for e in examples])


class TextObjective(Objective[TextExample]):
    """A text, or a pair, and its class."""

    def __init__(self, readers: Mapping[str, Reader], labels: tuple[str, ...]) -> None:
        """Make the data side; `readers` by the names of the networks."""
        self.readers, self.labels = dict(readers), labels

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterator[TextExample]:
        """Yield the one example of a sample."""
        label = sample.label()
        if not 0 <= label < len(self.labels):
            raise sample.bad(f"class {label}, the model has {len(self.labels)}")
        found = TextExample(tuple(words_of(sample.text())), tuple(words_of(sample.pair() or "")), label)
        if problem := unreadable(found, self.readers):
            raise sample.bad(f"the text {problem}")
        yield found

    def tokens_of(self, example: TextExample) -> int:
        """Its words."""
        return len(example.words) + len(example.second)

    def collate(self, examples: list[TextExample]) -> TextBatch:
        """Texts one after the other."""
        return collated(examples, self.readers)

    def describe(self, example: TextExample) -> Preview:
        """The words and the name of the class."""
        second = [("second text", " ".join(example.second))] if example.second else []
        return Preview((("text", " ".join(example.words)), *second, ("class", self.labels[example.label])))


class TextSystem(ClassifySystem):
    """The classifier, and cross-entropy; the network that it reads is frozen, or trained with it."""

    compiles = False

    def __init__(self, net: FeatureClassifier, objective: Any, labels: tuple[str, ...], companions: Mapping[str, Companion], *,
                 tuned: bool = False) -> None:
        super().__init__(net, objective, labels)
        self.companions, self.tuned = companions, tuned
        net.companions, self.sources = sources_of(companions, tuned)

    def logits(self, batch: Any) -> Tensor:
        """[N, classes]."""
        net: Any = self.net
        readers: Any = self.objective
        return net.scores(readers.readers, batch.inputs, batch.lengths, batch.seconds, learning=self.tuned)

    def forward(self, batch: Any, carry: Any = None) -> Step:
        """See `ClassifySystem.judged`."""
        return self.judged(self.logits(batch), batch)

    @torch.no_grad()
    def preview(self, batch: Any, limit: int = 4) -> list[Preview]:
        """Texts with the most probable class and the true one."""
        best = self.logits(batch).argmax(-1).tolist()
        return [Preview((("text", text), ("class", self.labels[guess]), ("truth", self.labels[label])))
                for text, guess, label in zip(batch.texts[:limit], best, batch.labels.tolist())]
