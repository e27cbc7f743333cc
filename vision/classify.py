"""Classes of pictures: a labelled picture as a training example, and a trained network as a classifier."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..shared.heads import class_scores
from ..shared.sample import Sample
from ..shared.system import Batch, Objective, Preview
from .transforms import Augmentation, Normalize, Preprocessing


@dataclass(kw_only=True)
class ImageBatch(Batch):
    """Pictures with labels."""

    images: Tensor
    """uint8 [B, 3, H, W]."""
    labels: Tensor
    """int64 [B]."""


@dataclass(frozen=True)
class LabelledImage:
    """One example."""

    pixels: Tensor
    """uint8 [3, H, W]."""
    label: int
    """The number of its class."""


class ImageClassification(Objective[LabelledImage]):
    """A picture and its class number (`Sample.label`).

    Args:
        preprocessing: how pictures are resized where they are not augmented.
        num_labels: classes.
        labels: their names in the order of their numbers; None for none.
        augmentation: of training pictures; None for none.
    """

    def __init__(
        self, preprocessing: Preprocessing, num_labels: int, labels: tuple[str, ...] | None, augmentation: Augmentation | None
    ) -> None:
        self.preprocessing = preprocessing
        self.num_labels = num_labels
        self.labels = labels
        self.augmentation = augmentation

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterable[LabelledImage]:
        """One augmented picture."""
        label = sample.label()
        if self.augmentation is None:
            pixels = self.preprocessing.pixels(sample.image())
        else:
            pixels = self.augmentation.pixels(sample.pixels(), self.preprocessing, rng)
        if not 0 <= label < self.num_labels:
            raise sample.bad(f"class {label}, the model has {self.num_labels}")
        return [LabelledImage(pixels, label)]

    def collate(self, examples: list[LabelledImage]) -> ImageBatch:
        """Stack them; the loss is counted in images."""
        return ImageBatch(counts={"images": len(examples)}, images=torch.stack([e.pixels for e in examples]),
                          labels=torch.tensor([e.label for e in examples]))  # fmt: skip

    def evaluation(self) -> ImageClassification:
        """Without augmentation."""
        return ImageClassification(self.preprocessing, self.num_labels, self.labels, None)

    def name(self, label: int) -> str:
        """The name of a class, or its number."""
        return self.labels[label] if self.labels else str(label)

    def describe(self, example: LabelledImage) -> Preview:
        """The picture as the network gets it, and its class."""
        return Preview((("class", self.name(example.label)),), example.pixels.permute(1, 2, 0).numpy())


class ImageClassifier(Protocol):
    """A network with a head for classes: what `TrainedClassifier` needs of it."""

    config: Any
    """Has `num_labels` and `labels`."""
    preprocessing: Preprocessing
    head: nn.Linear

    def __call__(self, pixel_values: Tensor) -> Any:
        """Read normalised pictures [B, 3, H, W]; the result has `logits` [B, num_labels]."""
        ...


class TrainedClassifier:
    """Classifies pictures by the classes that a network was trained on.

    Args:
        model: in eval mode.
    """

    def __init__(self, model: ImageClassifier) -> None:
        self.model = model
        self.labels: tuple[str, ...] = model.config.labels or tuple(f"LABEL_{i}" for i in range(model.config.num_labels))
        self.normalize = Normalize(model.preprocessing).to(model.head.weight.device)

    def probabilities(self, pictures: Sequence[Image.Image]) -> Tensor:
        """The scores of the classes (`class_scores`): [B, C], on the CPU."""
        return self.of_pixels(torch.stack([self.model.preprocessing.pixels(p) for p in pictures]))

    @torch.no_grad()
    def of_pixels(self, pixels: Tensor) -> Tensor:
        """The same of pictures that are resized and cropped already: uint8 [B, 3, H, W]."""
        pixels = pixels.to(self.normalize.scale.device)
        logits = self.model(self.normalize(pixels).to(self.model.head.weight.dtype)).logits.float()
        return class_scores(logits, self.model.config).cpu()
