"""From a picture to a tensor: deterministic augmentation for training, the reference's resize and crop for evaluation.

Evaluation resizes bit by bit as the reference does whose files the model came with (`Preprocessing.like`). Training resizes with torch,
which takes less than half of Pillow's time and differs by a level in a few values of a thousand.

Pictures travel as uint8 (a quarter of the bytes of float32) and are normalised on the device (`Normalize`).
Every random draw comes from the generator that is passed in, never from torch's global one, so a
sample is augmented the same way on any rank, in any worker and after any resume.
"""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, Self

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor, nn
from torch.nn import functional as F

from ..shared.errors import UserError
from ..shared.sample import Sample

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_LONGEST = 16
"""A picture whose longer side is at most this many crops is resized as a whole."""
_MAGNITUDES = 31
"""RandAugment's magnitudes are counted from 0 to 30."""
_HUE = 3
"""The place of the hue in `Augmentation.jitter`."""
_MODES = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@cache
def _torchvision() -> Any:
    """The functions of torchvision, imported with the first change of hue: they bring torch's compiler, which takes seconds.

    Their annotations leave out Pillow's pictures, which they take too; hence `Any`.
    """
    from torchvision.transforms.v2 import functional

    return functional


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the pixels of an evaluation; the same facts as transformers', open_clip's and timm's files."""

    image_size: int = 224
    """Side of the square the network sees."""
    resize: Literal["shortest", "squash"] = "shortest"
    """`shortest`: keep the aspect ratio. `squash`: make both sides equal. Then the centre square is cut."""
    resize_size: int | None = None
    """Length of the shorter side (or of both) before the cut; None is `image_size` (timm's crop_pct < 1 makes it larger)."""
    like: Literal["torchvision", "transformers"] = "torchvision"
    """Whose pixels these are, to the last bit: with `torchvision`, as open_clip and timm use it, Pillow resizes, and where an odd number of
    pixels is left over the cut is at the nearest even place; `transformers` 5 resizes with torch and cuts at the lower place."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """How pixels are resampled."""
    image_mean: tuple[float, float, float] = CLIP_MEAN
    """Subtracted from each colour, of pixels from 0 to 1."""
    image_std: tuple[float, float, float] = CLIP_STD
    """Each colour is divided by it, after the mean is subtracted."""

    def pixels(self, picture: Image.Image) -> Tensor:
        """The pixels of an RGB `picture` for evaluation: uint8 [3, image_size, image_size]."""
        side, theirs = self.image_size, self.like == "transformers"
        new = self.resize_size or side
        width, height = (1, 1) if self.resize == "squash" else picture.size
        short = min(width, height)
        width, height = int(new * width / short), int(new * height / short)
        if theirs and max(width, height) <= _LONGEST * side:
            pixels = _resized_tensor(to_tensor(picture), height, width, self.interpolation)
        else:
            pixels = to_tensor(_resized(picture, width, height, side, _MODES[self.interpolation], theirs))
        return _cut(pixels, side, theirs)

    def at(self, image_size: int) -> Self:
        """The same preprocessing at another size."""
        ratio = image_size / self.image_size
        return replace(self, image_size=image_size, resize_size=round(self.resize_size * ratio) if self.resize_size else None)

    def view(self, sample: Sample, augmentation: Augmentation | None, rng: np.random.Generator) -> Tensor:
        """A sample's picture as a network gets it, uint8 [3, S, S]: augmented in training, resized and cropped without."""
        return self.pixels(sample.image()) if augmentation is None else augmentation.pixels(sample.pixels(), self, rng)


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training picture. The default is open_clip's: a crop of 90 to 100 % of the area."""

    crop_scale: tuple[float, float] = (0.9, 1.0)
    """Smallest and largest share of the picture's area that a crop keeps."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest aspect ratio of a crop (it is then resized to a square)."""
    flip: float = 0.0
    """Probability of a horizontal flip (captions that say left or right argue against it)."""
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Strength of the random change of brightness, contrast, saturation and hue."""
    jitter_prob: float = 1.0
    """Probability that the colours change at all."""
    grayscale: float = 0.0
    """Probability of dropping the colours."""
    rand_augment: tuple[int, int] = (0, 9)
    """RandAugment (Cubuk et al. 2019): how many changes, drawn from torchvision's 14, and their magnitude, 0 to 30."""
    erase: float = 0.0
    """Random erasing (Zhong et al. 2017): probability that 2 to 33 % of the picture become noise around the mean colour."""

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise UserError(f"crop_scale is {self.crop_scale}: expected two shares with 0 < smallest <= largest <= 1")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise UserError(f"crop_ratio is {self.crop_ratio}: expected two positive ratios, the smaller one first")
        if any(not 0 <= p <= 1 for p in (self.flip, self.jitter_prob, self.grayscale, self.erase)):
            raise UserError("flip, jitter_prob, grayscale and erase are probabilities: expected numbers from 0 to 1")
        if self.rand_augment[0] < 0 or not 0 <= self.rand_augment[1] < _MAGNITUDES:
            raise UserError(f"rand_augment is {self.rand_augment}: expected a number of changes, 0 or more, and a magnitude from 0 to 30")
        if len(self.jitter) != 4 or any(j < 0 for j in self.jitter) or self.jitter[3] > 0.5:
            raise UserError(f"jitter is {self.jitter}: expected brightness, contrast, saturation >= 0 and hue from 0 to 0.5")

    def pixels(self, picture: np.ndarray, preprocessing: Preprocessing, rng: np.random.Generator) -> Tensor:
        """A random view of a `picture`, uint8 [H, W, 3] (`Sample.pixels`): uint8 [3, image_size, image_size]."""
        top, left, height, width = crop_box(picture.shape[0], picture.shape[1], self.crop_scale, self.crop_ratio, rng)
        size = (preprocessing.image_size, preprocessing.image_size)
        crop = torch.from_numpy(picture)[top : top + height, left : left + width].permute(2, 0, 1)[None]
        view = F.interpolate(crop, size, mode=preprocessing.interpolation, antialias=True)[0]
        if rng.random() < self.flip:
            view = view.flip(-1)
        if any(self.jitter) and rng.random() < self.jitter_prob:
            view = to_tensor(jitter_colours(to_picture(view), self.jitter, rng))
        if rng.random() < self.grayscale:
            view = to_tensor(to_picture(view).convert("L").convert("RGB"))
        if self.rand_augment[0]:
            view = rand_augment(view, *self.rand_augment, rng)
        if self.erase and rng.random() < self.erase:
            view = erased(view, preprocessing, rng)
        return view.contiguous()


def rand_augment(view: Tensor, changes: int, magnitude: int, rng: np.random.Generator) -> Tensor:
    """What torchvision's RandAugment makes of uint8 [3, H, W]; it draws from torch's global generator, which is lent and given back."""
    state = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(int(rng.integers(2**63)))
        return _rand_augment(changes, magnitude)(view)
    finally:
        torch.set_rng_state(state)


@cache
def _rand_augment(changes: int, magnitude: int) -> Any:
    from torchvision.transforms import v2

    return v2.RandAugment(changes, magnitude, _MAGNITUDES, interpolation=v2.InterpolationMode.BILINEAR, fill=128)


def erased(view: Tensor, preprocessing: Preprocessing, rng: np.random.Generator) -> Tensor:
    """uint8 [3, H, W] with a box of normal noise: mean and deviation are those by which pixels are normalised (timm's mode "pixel")."""
    top, left, height, width = crop_box(view.shape[1], view.shape[2], (0.02, 1 / 3), (0.3, 1 / 0.3), rng)
    mean, std = (np.array(values)[:, None, None] * 255 for values in (preprocessing.image_mean, preprocessing.image_std))
    noise = np.clip(rng.normal(mean, std, (3, height, width)).round(), 0, 255).astype(np.uint8)
    view = view.clone()
    view[:, top : top + height, left : left + width] = torch.from_numpy(noise)
    return view


def crop_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw a crop as torchvision's RandomResizedCrop does: (top, left, height, width).

    The area is uniform in `scale`, the aspect ratio log-uniform in `ratio`; after ten boxes that do not fit, the
    largest centred box whose ratio is allowed.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    aspect = width / height
    if aspect < ratio[0]:
        w, h = width, max(1, min(height, round(width / ratio[0])))
    elif aspect > ratio[1]:
        w, h = max(1, min(width, round(height * ratio[1]))), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


def jitter_colours(picture: Image.Image, jitter: tuple[float, float, float, float], rng: np.random.Generator) -> Image.Image:
    """Change brightness, contrast, saturation and hue by random factors, in random order, as torchvision's ColorJitter does.

    The first three are Pillow's, as in torchvision.
    """
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    centres = (1.0, 1.0, 1.0, 0.0)
    factors = [rng.uniform(max(0.0, c - j) if c else -j, c + j) for c, j in zip(centres, jitter, strict=True)]
    for i in rng.permutation(4):
        if jitter[i]:
            picture = _torchvision().adjust_hue(picture, factors[i]) if i == _HUE else enhancers[i](picture).enhance(factors[i])
    return picture


def _resized(picture: Image.Image, width: int, height: int, side: int, mode: Image.Resampling, lower: bool) -> Image.Image:
    """`picture` at `width` x `height`; of a very long one, only a middle part, which holds all that a centre crop of `side` shows.

    That part costs as much as an ordinary picture, where 1 x 30000 pixels would become 224 x 6,720,000. Its values are those of the whole
    but for rounding: Pillow rounds between the passes along the two sides, and picks their order by the size.
    """
    most = _LONGEST * side
    if max(width, height) <= most:
        return picture.resize((width, height), mode)
    tall = height > width
    old, new = (picture.height, height) if tall else (picture.width, width)
    scale = old / new
    begin = _centred(new, side, lower) - _centred(side + (new - side) % 2, side, lower)  # of the part, among the `new` pixels of the whole
    length = side + (new - side) % 2
    reach = math.ceil(2 * max(scale, 1.0)) + 1  # the source pixels that a filter looks at, on each side (bicubic's support is 2)
    first, last = max(0, math.floor(begin * scale) - reach), min(old, math.ceil((begin + length) * scale) + reach)
    part = picture.crop((0, first, picture.width, last) if tall else (first, 0, last, picture.height))
    a, b = begin * scale - first, (begin + length) * scale - first
    if tall:
        return part.resize((width, length), mode, box=(0, a, part.width, b))
    return part.resize((length, height), mode, box=(a, 0, b, part.height))


def _resized_tensor(pixels: Tensor, height: int, width: int, mode: str) -> Tensor:
    """uint8 [3, H, W] at another size, as torchvision's `resize` does it for tensors on this processor (and so transformers 5)."""
    if pixels.shape[-2:] == (height, width):
        return pixels
    capable = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") or platform.machine() in ("aarch64", "arm64")
    if mode == "bicubic" or capable:
        return F.interpolate(pixels[None], (height, width), mode=mode, antialias=True)[0]
    return F.interpolate(pixels[None].float(), (height, width), mode=mode, antialias=True)[0].round_().to(torch.uint8)


def _cut(pixels: Tensor, side: int, lower: bool) -> Tensor:
    """The square in the middle of uint8 [3, H, W]; black beyond the picture."""
    height, width = pixels.shape[-2:]
    if (height, width) == (side, side):
        return pixels
    top, left = _centred(height, side, lower), _centred(width, side, lower)
    out = pixels.new_zeros(3, side, side)
    inside = pixels[:, max(top, 0) : top + side, max(left, 0) : left + side]
    out[:, max(-top, 0) :, max(-left, 0) :][:, : inside.shape[1], : inside.shape[2]] = inside
    return out


def _centred(length: int, side: int, lower: bool = False) -> int:
    """Where `side` pixels in the middle of `length` begin, as torchvision's `center_crop` rounds; negative where there are too few."""
    if length < side:
        return -((side - length) // 2)
    return (length - side) // 2 if lower else round((length - side) / 2)


def to_picture(pixels: Tensor) -> Image.Image:
    """A picture of uint8 [3, H, W]."""
    return Image.merge("RGB", [Image.fromarray(band) for band in pixels.contiguous().numpy()])


def to_tensor(picture: Image.Image) -> Tensor:
    """The pixels of an RGB picture: uint8 [3, H, W]."""
    return torch.from_numpy(np.asarray(picture, dtype=np.uint8).transpose(2, 0, 1).copy())


class Normalize(nn.Module):
    """uint8 pixels [B, 3, H, W] to normalised floats, on the device they are on."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        mean, std = torch.tensor(preprocessing.image_mean), torch.tensor(preprocessing.image_std)
        # (x / 255 - mean) / std as one multiplication and one addition; not saved: the preprocessing is part of the model's files
        self.register_buffer("scale", (1 / (255 * std)).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean / std).view(3, 1, 1), persistent=False)
        self.scale: Tensor
        self.shift: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Normalise; floats that are already normalised must not come here."""
        assert images.dtype == torch.uint8, f"expected uint8 pixels, got {images.dtype}"
        return images.to(self.scale.dtype) * self.scale + self.shift
