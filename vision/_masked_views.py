"""BEiT's data side: blockwise masks, and two views of each picture, for the network and for the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..shared.errors import UserError
from ..shared.sample import Sample
from ..shared.system import Batch, Objective, Preview
from .tower import TowerConfig
from .transforms import HALF, Augmentation, Preprocessing

GREY = 128


@dataclass(frozen=True)
class BeitSettings:
    """The objective: visual tokens of masked patches."""

    mask_patches: int | None = None
    """Most patches that a mask has; null is 75 of 196, rounded."""
    min_block: int = 16
    """Fewest patches of a block that is drawn."""
    min_aspect: float = 0.3
    """Lowest aspect ratio of a block; the highest is its inverse."""
    token_image_size: int | None = None
    """Side of the pictures that the tokenizer gets; null is what it was trained on. The paper has 112, for 14 x 14 tokens."""
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(crop_scale=(0.08, 1.0), flip=0.5, jitter=(0.4, 0.4, 0.4, 0.0)))
    """A crop, a flip and other colours, as in the paper; both views have the same."""
    image_mean: tuple[float, float, float] = HALF
    """Subtracted from each colour, of pixels from 0 to 1."""
    image_std: tuple[float, float, float] = HALF
    """Each colour is divided by it, after the mean is subtracted."""

    def __post_init__(self) -> None:
        if not 0 < self.min_aspect <= 1:
            raise UserError(f"min_aspect is {self.min_aspect}, expected a number from above 0 to 1")
        if self.min_block < 1:
            raise UserError(f"min_block is {self.min_block}, expected at least 1")

    def budget(self, grid: int) -> int:
        """Most patches of a mask over a grid of `grid` x `grid`."""
        patches = grid * grid
        budget = max(1, round(patches * 75 / 196)) if self.mask_patches is None else self.mask_patches
        if not 1 <= budget < patches:
            raise UserError(f"mask_patches is {budget} and a picture has {patches} patches: expected some masked and some visible")
        if self.min_block > budget:
            raise UserError(f"min_block is {self.min_block} and a mask has at most {budget} patches: set objective.min_block lower")
        return budget


def blockwise_mask(grid: int, budget: int, min_block: int, min_aspect: float, rng: np.random.Generator) -> np.ndarray:
    """Blocks of patches until `budget` are masked, or ten attempts in a row are in vain (the paper's algorithm 1, as in its code).

    Returns:
        bool [grid, grid] with at most `budget` masked patches, and at least one.
    """
    mask, limit = np.zeros((grid, grid), dtype=bool), abs(math.log(min_aspect))
    masked = attempts = 0
    while masked < budget and attempts < 10:
        room, attempts = budget - masked, attempts + 1
        area = min_block + (room - min_block) * rng.random()  # with less room than a block, from the room on
        aspect = math.exp(rng.uniform(-limit, limit))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (height < grid and width < grid):
            continue
        top, left = int(rng.integers(grid - height + 1)), int(rng.integers(grid - width + 1))
        block = mask[top : top + height, left : left + width]
        if 0 < (gain := block.size - int(block.sum())) <= room:
            block[:] = True
            masked, attempts = masked + gain, 0
    if not masked:
        mask.flat[rng.integers(grid * grid)] = True
    return mask


@dataclass(frozen=True)
class MaskedView:
    """One example."""

    pixels: Tensor
    """uint8 [3, H, W]."""
    token_pixels: Tensor
    """uint8 [3, h, w], the same view for the tokenizer."""
    masked: Tensor
    """bool [P]."""


@dataclass(kw_only=True)
class MaskedViewBatch(Batch):
    """Pictures with the patches that are masked, and what their visual tokens are made of."""

    images: Tensor
    """uint8 [B, 3, H, W]."""
    masked: Tensor
    """bool [B, P]."""
    token_images: Tensor | None = None
    """uint8 [B, 3, h, w]; None where `codes` are there."""
    codes: Tensor | None = None
    """int64 [B, P], the visual tokens where they are known; by default the tokenizer makes them."""


class MaskedViews(Objective[MaskedView]):
    """Two views of one crop of a picture, for the network and for the tokenizer, and a blockwise mask.

    Args:
        config: the network's.
        settings: of the masks and of the augmentation.
        views: how pictures are resized for the network and for the tokenizer.
        augmented: whether the settings' augmentation is used.
    """

    def __init__(self, config: TowerConfig, settings: BeitSettings, views: tuple[Preprocessing, Preprocessing],
                 augmented: bool = True) -> None:
        self.config, self.settings, self.views, self.augmented = config, settings, views, augmented
        self.grid = config.image_size // config.patch_size
        self.budget = settings.budget(self.grid)

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterable[MaskedView]:
        """Both views of the picture, and its mask."""
        s = self.settings
        if self.augmented:
            picture, seed = sample.pixels(), int(rng.integers(2**63))  # both views have the same draws
            made = [s.augmentation.pixels(picture, view, np.random.default_rng(seed)) for view in self.views]
        else:
            made = [view.pixels(sample.image()) for view in self.views]
        mask = blockwise_mask(self.grid, self.budget, s.min_block, s.min_aspect, rng)
        return [MaskedView(made[0], made[1], torch.from_numpy(mask.reshape(-1)))]

    def collate(self, examples: list[MaskedView]) -> MaskedViewBatch:
        """Stack them; the loss is counted in masked patches."""
        masked = torch.stack([e.masked for e in examples])
        images, token_images = (torch.stack(views) for views in zip(*((e.pixels, e.token_pixels) for e in examples), strict=True))
        return MaskedViewBatch(counts={"masked_patches": int(masked.sum())}, images=images, masked=masked, token_images=token_images)

    def evaluation(self) -> MaskedViews:
        """Without augmentation."""
        return MaskedViews(self.config, self.settings, self.views, augmented=False)

    def describe(self, example: MaskedView) -> Preview:
        """The picture, grey where it is masked."""
        shown = example.pixels.masked_fill(on_pixels(example.masked, self.config), GREY)
        told = f"{int(example.masked.sum())} of {len(example.masked)} patches"
        return Preview((("masked", told), ("tokens of", f"{example.token_pixels.shape[-1]} x {example.token_pixels.shape[-1]} pixels")),
                       shown.permute(1, 2, 0).numpy())  # fmt: skip


def on_pixels(masked: Tensor, config: TowerConfig) -> Tensor:
    """Masks of patches [..., P] as masks of pixels [..., H, W]."""
    side = config.image_size // config.patch_size
    grid = masked.unflatten(-1, (side, side))
    return grid.repeat_interleave(config.patch_size, -2).repeat_interleave(config.patch_size, -1)
