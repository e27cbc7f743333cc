"""Bag of characters: the next byte of a text from an unordered bag of the bytes before it.

A complete system in one file, made to be read: the smallest thing that the stream, the loop, the checkpoints and the
export can drive. It is no published system; what comes nearest is the bag of context words of word2vec's CBOW (Mikolov,
Chen, Corrado and Dean, "Efficient Estimation of Word Representations in Vector Space", 2013).

Faithful: the mean of the context's embeddings predicts the target. Deviations: bytes instead of words, only what stands
before the target, a full softmax.

The registry looks for `FAMILIES` in the family folders. To register this system, copy the file to `text/` and make its
imports relative (`from ..shared.system import ...`); nothing else changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from polymodal.shared.config import Config
from polymodal.shared.convert import Rename
from polymodal.shared.errors import UserError
from polymodal.shared.family import Card, Context, Family, Net, Task, transformers
from polymodal.shared.loss import accuracy_sum, cross_entropy_sum
from polymodal.shared.sample import Sample
from polymodal.shared.system import Batch, Objective, Preview, Step, System, Term
from torch import Tensor, nn

# --- the network -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BagConfig(Config):
    """The shape of the network."""

    vocab_size: int = 256
    """Bytes."""
    hidden_size: int = 64
    """Width D."""


class Bag(nn.Module):
    """The mean of the context's embeddings, and a linear map to the logits of the next byte."""

    def __init__(self, config: BagConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.EmbeddingBag(config.vocab_size, config.hidden_size, mode="mean")
        self.out = nn.Linear(config.hidden_size, config.vocab_size)
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, contexts: Tensor) -> Tensor:
        """Bytes [N, C] -> logits [N, 256]."""
        return self.out(self.embed(contexts))


# --- the data side: runs in the loader's workers, holds no weights ---------------------------------------------------


@dataclass(frozen=True)
class BagSettings:
    """What a recipe can set under `objective`."""

    context: int = 8
    """Bytes that are looked at."""
    targets: int = 32
    """Places of each text that are predicted, drawn anew in each epoch."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.context < 1 or self.targets < 1:
            raise UserError(f"context is {self.context} and targets {self.targets}, expected at least 1")


@dataclass(kw_only=True)
class BagBatch(Batch):
    """N contexts and what follows them."""

    contexts: Tensor
    """[N, C]"""
    targets: Tensor
    """[N]"""


class BagObjective(Objective[np.ndarray]):
    """An example is an array [targets, C + 1]: contexts, and in the last column what follows."""

    def __init__(self, settings: BagSettings) -> None:
        """Keep the settings; there is no tokenizer here."""
        self.settings = settings

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Draw places of the text. `rng` is keyed by (seed, epoch, sample), so a resumed run draws the same."""
        text = np.frombuffer(sample.text().encode(), dtype=np.uint8).astype(np.int64)  # `text` raises BadSample where there is none
        padded = np.concatenate([np.zeros(self.settings.context, dtype=np.int64), text])  # byte 0 stands before the beginning
        windows = np.lib.stride_tricks.sliding_window_view(padded, self.settings.context + 1)
        yield windows[rng.integers(len(windows), size=self.settings.targets)]

    def collate(self, examples: list[np.ndarray]) -> BagBatch:
        """Put examples together; the number of targets is known before the forward pass."""
        rows = torch.from_numpy(np.concatenate(examples))
        return BagBatch(counts={"targets": len(rows)}, tokens=len(rows), contexts=rows[:, :-1], targets=rows[:, -1])

    def describe(self, example: np.ndarray) -> Preview:
        """What `polymodal inspect --update` shows."""
        shown = [f"{bytes(row[:-1].astype(np.uint8).tolist())!r} -> {chr(row[-1])!r}" for row in example[:3]]
        return Preview(tuple(("predict", line) for line in shown))


# --- the loss side: sums with counts ---------------------------------------------------------------------------------


class BagSystem(System[Bag, BagObjective]):
    """Cross-entropy of the next byte."""

    def forward(self, batch: BagBatch, carry: Any = None) -> Step:
        """The SUM over targets; the loop divides by the count of the whole global batch."""
        logits = self.net(batch.contexts)
        loss = Term(cross_entropy_sum(logits, batch.targets), "targets")
        return Step({"next": loss}, {"accuracy": (accuracy_sum(logits, batch.targets), len(batch.targets))})

    def measured(self) -> tuple[str, ...]:
        """The names of all numbers of an evaluation but `loss`."""
        return "next", "accuracy", "bits_per_byte"

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """Bits for each byte."""
        return {"bits_per_byte": means["next"] / math.log(2)} if "next" in means else {}


# --- the entry -------------------------------------------------------------------------------------------------------


def create(config: BagConfig, settings: BagSettings, context: Context) -> BagSystem:
    """Build the system with randomly initialized weights. `context` brings a tokenizer or class names to systems that need them."""
    return BagSystem(Bag(config), BagObjective(settings))


CARD = Card(
    title="Bag of characters",
    paper="An example of this documentation",
    year=2026,
    url="https://arxiv.org/abs/1301.3781",
    equation=r"\mathcal{L} = -\frac{1}{T} \sum_{t=1}^{T} \log p_\theta(x_t \mid x_{t-C} + \dots + x_{t-1})",
    symbols="The C bytes before t count as a bag: their embeddings are added up.",
    masks={},
    reference="none",
)

FAMILIES = (
    Family(
        name="bag",
        card=CARD,
        config=BagConfig,
        sizes={"tiny": {}, "base": {"hidden_size": 256}},
        pretraining=Task("next byte from a bag of bytes", BagSettings, create),
        # how the weights are called in a directory: here as they are called in the network
        nets=(Net("BagModel", Bag, transformers(lambda config: tuple(Rename(n, n) for n in ("embed.weight", "out.weight", "out.bias")))),),
        model_type="bag",
    ),
)
