"""Classes of pictures: a labelled picture as a training example, and a trained network as a classifier."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..shared.errors import BadSample, UserError
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
    others: Tensor | None = None
    """int64 [B], the class of what was mixed into each picture (`Mixing`); None where nothing ever is."""
    shares: Tensor | None = None
    """fp32 [B], how much of each picture is of the class in `labels`."""


@dataclass(frozen=True)
class LabelledImage:
    """One example."""

    pixels: Tensor
    """uint8 [3, H, W]."""
    label: int
    """The number of its class."""
    other: int = -1
    """The class of what was mixed into it; -1 where nothing was."""
    share: float = 1.0
    """How much of it is of the class `label`."""


@dataclass(frozen=True)
class Mixing:
    """Training pictures that are mixtures of two: of each and a random other one. Where both kinds are on, each is as likely.

    The reference libraries mix the pictures of a batch. Here a picture is mixed with its partner (`Sample.partner`), by draws of its own:
    what a sample becomes does not depend on batch, rank or worker. The price is that a second picture is decoded.
    """

    mixup: float = 0.0
    """mixup (Zhang et al. 2017, https://arxiv.org/abs/1710.09412): both are blended, the share of the first drawn from Beta(mixup, mixup);
    0: not at all."""
    cutmix: float = 0.0
    """CutMix (Yun et al. 2019, https://arxiv.org/abs/1905.04899): a box of the other is pasted in, whose area is 1 - a share drawn from
    Beta(cutmix, cutmix); 0: not at all."""
    prob: float = 1.0
    """Probability that a picture is mixed."""

    def __post_init__(self) -> None:
        if self.mixup < 0 or self.cutmix < 0 or not 0 <= self.prob <= 1:
            raise UserError(f"mixing has mixup {self.mixup}, cutmix {self.cutmix} and prob {self.prob}: expected two numbers of at least 0 "
                            "and a probability")  # fmt: skip

    @property
    def is_on(self) -> bool:
        """Whether any picture is mixed."""
        return self.prob > 0 and (self.mixup > 0 or self.cutmix > 0)

    def mix(self, pixels: Tensor, other: Tensor, rng: np.random.Generator) -> tuple[Tensor, float]:
        """Mix two pictures, uint8 [3, H, W] each; also gives the share of the first one."""
        cut = self.cutmix > 0 and (not self.mixup or rng.random() < 0.5)
        alpha = self.cutmix if cut else self.mixup
        share = rng.beta(alpha, alpha)
        if not cut:
            return (share * pixels.float() + (1 - share) * other.float()).round().to(torch.uint8), share
        height, width = pixels.shape[-2:]
        sides = [int(side * math.sqrt(1 - share)) for side in (height, width)]
        (top, low), (left, right) = (
            (max(0, centre - side // 2), min(whole, centre - side // 2 + side))
            for side, whole, centre in zip(sides, (height, width), (rng.integers(height), rng.integers(width)), strict=True))
        mixed = pixels.clone()
        mixed[:, top:low, left:right] = other[:, top:low, left:right]
        return mixed, 1 - (low - top) * (right - left) / (height * width)


class ImageClassification(Objective[LabelledImage]):
    """A picture and its class number (`Sample.label`).

    Args:
        preprocessing: how pictures are resized where they are not augmented.
        num_labels: classes.
        labels: their names in the order of their numbers; None for none.
        augmentation: of training pictures; None for none.
        mixing: of training pictures; None for none.
    """

    def __init__(
        self, preprocessing: Preprocessing, num_labels: int, labels: tuple[str, ...] | None, augmentation: Augmentation | None,
        mixing: Mixing | None = None,
    ) -> None:  # fmt: skip
        self.preprocessing = preprocessing
        self.num_labels = num_labels
        self.labels = labels
        self.augmentation = augmentation
        self.mixing = mixing if mixing is not None and mixing.is_on else None
        self.needs_partner = self.mixing is not None

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterable[LabelledImage]:
        """One augmented picture, mixed with its partner where that is drawn (and where that can be read)."""
        pixels, label = self._view(sample, rng)
        if self.mixing is None or rng.random() >= self.mixing.prob or sample.partner is None:
            return [LabelledImage(pixels, label)]
        try:
            other, other_label = self._view(sample.partner, rng)
        except BadSample:  # it is told when its own turn comes
            return [LabelledImage(pixels, label)]
        pixels, share = self.mixing.mix(pixels, other, rng)
        return [LabelledImage(pixels, label, other_label, share)]

    def _view(self, sample: Sample, rng: np.random.Generator) -> tuple[Tensor, int]:
        """A picture as the network gets it, and its class."""
        label = sample.label()
        if self.augmentation is None:
            pixels = self.preprocessing.pixels(sample.image())
        else:
            pixels = self.augmentation.pixels(sample.pixels(), self.preprocessing, rng)
        if not 0 <= label < self.num_labels:
            raise sample.bad(f"class {label}, the model has {self.num_labels}")
        return pixels, label

    def collate(self, examples: list[LabelledImage]) -> ImageBatch:
        """Stack them; the loss is counted in images."""
        batch = ImageBatch(counts={"images": len(examples)}, images=torch.stack([e.pixels for e in examples]),
                           labels=torch.tensor([e.label for e in examples]))  # fmt: skip
        if self.mixing is not None:
            batch.others = torch.tensor([e.label if e.other < 0 else e.other for e in examples])
            batch.shares = torch.tensor([e.share for e in examples], dtype=torch.float32)
        return batch

    def evaluation(self) -> ImageClassification:
        """Without augmentation and mixing."""
        return ImageClassification(self.preprocessing, self.num_labels, self.labels, None)

    def name(self, label: int) -> str:
        """The name of a class, or its number."""
        return self.labels[label] if self.labels else str(label)

    def describe(self, example: LabelledImage) -> Preview:
        """The picture as the network gets it, and its class."""
        name = self.name(example.label)
        if example.other >= 0:
            name = f"{example.share:.0%} {name}, {1 - example.share:.0%} {self.name(example.other)}"
        return Preview((("class", name),), example.pixels.permute(1, 2, 0).numpy())


@runtime_checkable
class ImageClassifier(Protocol):
    """A network of pictures with a head for classes (ViT): what `TrainedClassifier` needs of it."""

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
