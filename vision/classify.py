"""Classification of pictures by the classes a network was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from .transforms import Normalize
from .vit import ViT


class TrainedClassifier:
    """Classifies pictures by the labels of a ViT's head.

    Args:
        model: in eval mode.
    """

    def __init__(self, model: ViT) -> None:
        self.model = model
        self.labels = model.config.labels or tuple(f"LABEL_{i}" for i in range(model.config.num_labels))
        self.normalize = Normalize(model.preprocessing).to(model.classifier.weight.device)

    def probabilities(self, pictures: Sequence[Image.Image]) -> Tensor:
        """The softmax over the classes: [B, C], on the CPU."""
        return self.of_pixels(torch.stack([self.model.preprocessing.pixels(p) for p in pictures]))

    @torch.no_grad()
    def of_pixels(self, pixels: Tensor) -> Tensor:
        """The same of pictures that are resized and cropped already: uint8 [B, 3, H, W]."""
        pixels = pixels.to(self.normalize.scale.device)
        return self.model(self.normalize(pixels).to(self.model.classifier.weight.dtype)).logits.float().softmax(-1).cpu()
