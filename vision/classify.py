"""Classes of pictures: a labelled picture as a training example, the loss, and a trained network as a classifier."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..shared.config import need_one_class_each
from ..shared.errors import BadSample, UserError
from ..shared.family import Context
from ..shared.heads import class_scores
from ..shared.loss import accuracy_sum, at_least_fp32, cross_entropy_sum
from ..shared.sample import Sample
from ..shared.system import Batch, Objective, Preview, Step, System, Term
from .transforms import HALF, Augmentation, Normalize, Preprocessing

ConfigT = TypeVar("ConfigT")


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


SMALL, SMALL_CROP = 64, 0.3
"""Pixels of a picture of which crops of this share and less keep too little."""


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
        if augmentation is not None and preprocessing.image_size <= SMALL and augmentation.crop_scale[0] < SMALL_CROP:
            least, size = augmentation.crop_scale[0], preprocessing.image_size
            self.notes = (f"note: crops keep as little as {least:.0%} of pictures of {size} pixels, which suits photographs, not drawings "
                          "or digits: objective.augmentation.crop_scale=[0.6,1.0] keeps more, objective.augmentation.flip=0 keeps left and "
                          "right",)
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
        pixels = self.preprocessing.view(sample, self.augmentation, rng)
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


@dataclass
class ImageClassifierOutput:
    """What a classifier of pictures returns, with transformers' names."""

    logits: Tensor
    """[B, num_labels]."""
    last_hidden_state: Tensor
    """[B, 1 + P, D], after the final norm (which stands behind the mean with `fc_norm`)."""
    pooler_output: Tensor
    """[B, D], what the head read (before `pre_logits` and `head_norm`)."""
    hidden_states: tuple[Tensor, ...] | None = None
    """The embeddings and each layer's output, where asked for."""


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


# ------------------------------------------------------------------------------------------- the loss side


@dataclass(frozen=True)
class ClassificationSettings:
    """The objective: supervised classification."""

    loss: Literal["softmax", "sigmoid"] = "softmax"
    """`sigmoid`: an independent binary cross entropy for each class (the paper's ImageNet-21k and JFT runs)."""
    head_bias: float | None = None
    """Initial bias of the head; None is 0 for softmax and -10 for sigmoid, so that no class starts likely."""
    head_std: float | None = None
    """Standard deviation of the head's initial weights: 0 in the paper's fine-tuning, 2e-5 in MAE's; None is `initializer_range`."""
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(crop_scale=(0.05, 1.0), flip=0.5))
    """Inception's crop and a flip, as in the paper."""
    mixing: Mixing = field(default_factory=Mixing)
    """mixup and CutMix."""
    label_smoothing: float = 0.0
    """Share of a class's probability that is spread over all classes in training."""
    image_mean: tuple[float, float, float] = HALF
    """Subtracted from each colour, of pixels from 0 to 1."""
    image_std: tuple[float, float, float] = HALF
    """Each colour is divided by it, after the mean is subtracted."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing is {self.label_smoothing}, expected a fraction from 0 up to 1")
        if self.head_std is not None and self.head_std < 0:
            raise UserError(f"head_std is {self.head_std}, expected 0 or more, or null")


class ClassificationSystem(System[Any, ImageClassification]):
    """A network of pictures with the classification loss.

    Args:
        net: an `ImageClassifier` (ViT, BEiT).
        settings: the objective's.
    """

    def __init__(self, net: nn.Module, settings: ClassificationSettings) -> None:
        classifier = cast("ImageClassifier", net)
        config: Any = classifier.config
        # training crops keep the aspect ratio, so held-out pictures do too
        view = Preprocessing(image_size=config.image_size, image_mean=settings.image_mean, image_std=settings.image_std)
        classifier.preprocessing = view
        super().__init__(net, ImageClassification(view, config.num_labels, config.labels, settings.augmentation,
                                                     settings.mixing))  # fmt: skip
        self.normalize = Normalize(view)
        self.loss, self.label_smoothing = settings.loss, settings.label_smoothing
        bias = settings.head_bias if settings.head_bias is not None else (-10.0 if settings.loss == "sigmoid" else 0.0)
        nn.init.constant_(self.net.head.bias, bias)
        if settings.head_std is not None:
            nn.init.normal_(self.net.head.weight, std=settings.head_std)

    def forward(self, batch: ImageBatch, carry: Any = None) -> Step:
        """The summed loss over the pictures, and how many were right."""
        logits = self.net(self.normalize(batch.images)).logits
        smoothing = self.label_smoothing if self.training else 0.0
        if self.loss == "softmax" and batch.others is None and not smoothing:
            total = cross_entropy_sum(logits, batch.labels)
        else:
            scores = at_least_fp32(logits)
            targets = self.targets(batch, smoothing).to(scores.dtype)
            total = (F.cross_entropy(scores, targets, reduction="sum") if self.loss == "softmax"
                     else F.binary_cross_entropy_with_logits(scores, targets, reduction="sum"))
        right = accuracy_sum(logits, batch.labels)
        labels = batch.labels if self.loss == "softmax" else None  # a sigmoid for each class has another baseline
        return Step({"classification": Term(total, "images", labels=labels)}, {"accuracy": (right, len(batch.labels))})

    def targets(self, batch: ImageBatch, smoothing: float) -> Tensor:
        """Probabilities of the classes, [B, num_labels]: a mixed picture has its two classes by their shares."""
        count = self.net.config.num_labels
        wanted = F.one_hot(batch.labels, count).float()
        if batch.others is not None and batch.shares is not None:
            wanted = torch.lerp(F.one_hot(batch.others, count).float(), wanted, batch.shares[:, None])
        return wanted * (1 - smoothing) + smoothing / count

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        return ("classification", *(("classification_chance",) if self.loss == "softmax" else ()), "accuracy")

    @torch.no_grad()
    def preview(self, batch: ImageBatch, limit: int = 4) -> list[Preview]:
        """Pictures with their true and most likely classes."""
        images = batch.images[:limit]
        probabilities, best = self.net(self.normalize(images)).logits.softmax(-1).topk(min(3, self.net.config.num_labels))
        name = self.objective.name
        return [
            Preview((("class", name(int(label))),
                     *(("predicted", f"{name(int(c))} ({float(p):.2f})") for c, p in zip(classes, scores, strict=True))),
                    image.permute(1, 2, 0).cpu().numpy())
            for image, label, classes, scores in zip(images, batch.labels, best, probabilities, strict=False)
        ]  # fmt: skip


def adapt(config: ConfigT, context: Context) -> ConfigT:
    """As many classes as the data names."""
    if context.classes is None:
        return config
    return replace(cast("Any", config), num_labels=len(context.classes), labels=tuple(context.classes))


def _some(names: tuple[str, ...] | None) -> str:
    return ", ".join((names or ())[:4]) + (", ..." if len(names or ()) > 4 else "")


def check_classes(config: Any, context: Context) -> None:
    """Refuse a network whose classes are not the data's."""
    need_one_class_each(config, "training")
    if None not in (context.classes, config.labels) and context.classes != config.labels:
        raise UserError(f"the model's classes are {_some(config.labels)}, the data's are {_some(context.classes)}: "
                        "set task=classify, which gives it a head for the data's")
    if context.classes is not None and len(context.classes) != config.num_labels:
        raise UserError(f"the model has {config.num_labels} classes, the data {len(context.classes)}: set task=classify, which gives it a "
                        "head for the data's")
