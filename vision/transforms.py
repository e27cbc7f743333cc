"""From a picture to a tensor: deterministic augmentation for training, the reference's resize and crop for evaluation.

Evaluation resizes with Pillow, bit by bit as the references do. Training resizes with torch, which takes less than half the time and
differs by a level in a few values of a thousand.

Pictures travel as uint8 (a quarter of the bytes of float32) and are normalised on the device (`Normalize`).
Every random draw comes from the generator that is passed in, never from torch's global one, so a
sample is augmented the same way on any rank, in any worker and after any resume.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..shared.errors import UserError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, as preprocessor_config.json stores them
_LONGEST = 16
"""A longer side of at most so many crops is resized as a whole."""
_MODES = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@cache
def _torchvision() -> Any:
    """The functions of torchvision, imported with the first change of colours: they bring torch's compiler, which takes seconds.

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
    """`shortest`: keep the aspect ratio, then cut the centre square. `squash`: resize both sides to `image_size`."""
    resize_size: int | None = None
    """Length of the shorter side before the crop; None is `image_size` (timm's crop_pct < 1 makes it larger)."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """How pixels are resampled."""
    image_mean: tuple[float, float, float] = CLIP_MEAN
    """Subtracted from each colour, of pixels from 0 to 1."""
    image_std: tuple[float, float, float] = CLIP_STD
    """Each colour is divided by it, after the mean is subtracted."""

    def pixels(self, picture: Image.Image) -> Tensor:
        """The pixels of an RGB `picture` for evaluation: uint8 [3, image_size, image_size]."""
        mode, side = _MODES[self.interpolation], self.image_size
        if self.resize == "squash":
            return to_tensor(picture.resize((side, side), mode))
        width, height = picture.size
        short, new = min(width, height), self.resize_size or side
        picture = _resized(picture, int(new * width / short), int(new * height / short), side, mode)
        left, top = _centred(picture.width, side), _centred(picture.height, side)
        return to_tensor(picture.crop((left, top, left + side, top + side)))  # black beyond the picture

    @classmethod
    def from_transformers(cls, record: Mapping[str, Any]) -> Self:
        """From the contents of `preprocessor_config.json`."""
        size, crop = record.get("size", 224), record.get("crop_size")
        if not record.get("do_resize", True) or not record.get("do_normalize", True):
            raise UserError("preprocessor_config.json turns resizing or normalisation off: expected do_resize and do_normalize to be true")
        side = _side(size)
        cropped = bool(record.get("do_center_crop", crop is not None)) and crop is not None
        shortest = (isinstance(size, Mapping) and "shortest_edge" in size) or (isinstance(size, int) and cropped)
        if shortest and not cropped:
            raise UserError("preprocessor_config.json resizes the shorter side without a centre crop: pictures would not be square; "
                            "expected do_center_crop with crop_size")
        image_size = _side(crop) if cropped else side
        return cls(image_size=image_size, resize="shortest" if shortest else "squash",
                   resize_size=side if side != image_size else None, interpolation=_interpolation(record.get("resample", 2)),
                   image_mean=_triple(record.get("image_mean", HALF)), image_std=_triple(record.get("image_std", HALF)))

    def to_transformers(self, kind: str) -> dict[str, Any]:
        """The contents of `preprocessor_config.json` for the image processor class `kind`."""
        side = {"height": self.image_size, "width": self.image_size}
        record = {"image_processor_type": kind, "do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
                  "do_convert_rgb": True, "resample": {v: k for k, v in _RESAMPLE.items()}[self.interpolation],
                  "image_mean": list(self.image_mean), "image_std": list(self.image_std)}
        if self.resize == "squash":
            return {**record, "size": side, "do_center_crop": False}
        return {**record, "size": {"shortest_edge": self.resize_size or self.image_size}, "do_center_crop": True, "crop_size": side}

    @classmethod
    def from_open_clip(cls, record: Mapping[str, Any], image_size: int) -> Self:
        """From the `preprocess_cfg` of `open_clip_config.json`."""
        mode = record.get("resize_mode") or "shortest"
        if mode not in ("shortest", "squash"):
            raise UserError(f"open_clip_config.json: resize_mode {mode!r} is not supported, expected shortest or squash")
        return cls(image_size=image_size, resize=mode, interpolation=_interpolation(record.get("interpolation") or "bicubic"),
                   image_mean=_triple(record.get("mean") or CLIP_MEAN), image_std=_triple(record.get("std") or CLIP_STD))

    def to_open_clip(self) -> dict[str, Any]:
        """The `preprocess_cfg` of `open_clip_config.json`."""
        return {"mean": list(self.image_mean), "std": list(self.image_std), "interpolation": self.interpolation, "resize_mode": self.resize}

    @classmethod
    def from_timm(cls, record: Mapping[str, Any], image_size: int) -> Self:
        """From the `pretrained_cfg` of timm's `config.json`."""
        crop = float(record.get("crop_pct") or 1.0)
        return cls(image_size=image_size, resize_size=math.floor(image_size / crop) if crop < 1 else None,
                   interpolation=_interpolation(record.get("interpolation") or "bicubic"),
                   image_mean=_triple(record.get("mean") or HALF), image_std=_triple(record.get("std") or HALF))

    def to_timm(self) -> dict[str, Any]:
        """The `pretrained_cfg` of timm's `config.json`."""
        return {"input_size": [3, self.image_size, self.image_size], "crop_pct": self.image_size / (self.resize_size or self.image_size),
                "interpolation": self.interpolation, "mean": list(self.image_mean), "std": list(self.image_std), "fixed_input_size": True}

    def at(self, image_size: int) -> Self:
        """The same preprocessing at another size."""
        ratio = image_size / self.image_size
        return replace(self, image_size=image_size, resize_size=round(self.resize_size * ratio) if self.resize_size else None)


def read_preprocessing(net: Any, record: Mapping[str, Any], directory: Path) -> None:
    """Take `preprocessor_config.json` over into `net.preprocessing`, where there is one."""
    path = directory / "preprocessor_config.json"
    if path.exists():
        found = Preprocessing.from_transformers(json.loads(path.read_text()))
        if found.image_size != net.preprocessing.image_size:
            raise UserError(f"{path} makes pictures of {found.image_size} pixels, the model takes {net.preprocessing.image_size}")
        net.preprocessing = found


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

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise UserError(f"crop_scale is {self.crop_scale}: expected two shares with 0 < smallest <= largest <= 1")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise UserError(f"crop_ratio is {self.crop_ratio}: expected two positive ratios, the smaller one first")
        if any(not 0 <= p <= 1 for p in (self.flip, self.jitter_prob, self.grayscale)):
            raise UserError("flip, jitter_prob and grayscale are probabilities: expected numbers from 0 to 1")
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
        return view.contiguous()


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
    """Change brightness, contrast, saturation and hue by random factors, in random order, as torchvision's ColorJitter does."""
    tv = _torchvision()
    changes = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    centres = (1.0, 1.0, 1.0, 0.0)
    factors = [rng.uniform(max(0.0, c - j) if c else -j, c + j) for c, j in zip(centres, jitter, strict=True)]
    for i in rng.permutation(4):
        if jitter[i]:
            picture = changes[i](picture, factors[i])
    return picture


def _resized(picture: Image.Image, width: int, height: int, side: int, mode: Image.Resampling) -> Image.Image:
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
    begin = _centred(new, side) - _centred(side + (new - side) % 2, side)  # of the part, among the `new` pixels of the whole
    length = side + (new - side) % 2
    reach = math.ceil(2 * max(scale, 1.0)) + 1  # the source pixels that a filter looks at, on each side (bicubic's support is 2)
    first, last = max(0, math.floor(begin * scale) - reach), min(old, math.ceil((begin + length) * scale) + reach)
    part = picture.crop((0, first, picture.width, last) if tall else (first, 0, last, picture.height))
    a, b = begin * scale - first, (begin + length) * scale - first
    if tall:
        return part.resize((width, length), mode, box=(0, a, part.width, b))
    return part.resize((length, height), mode, box=(a, 0, b, part.height))


def _centred(length: int, side: int) -> int:
    """Where `side` pixels in the middle of `length` begin, as torchvision's `center_crop` rounds; negative where there are too few."""
    return round((length - side) / 2) if length >= side else -((side - length) // 2)


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


def _side(size: Any) -> int:
    """The one length in transformers' `size` entry: an int, {shortest_edge} or a square {height, width}."""
    if isinstance(size, int):
        return size
    if isinstance(size, Mapping):
        if "shortest_edge" in size:
            return int(size["shortest_edge"])
        if size.get("height") is not None and size.get("height") == size.get("width"):
            return int(size["height"])
    raise UserError(f"preprocessor_config.json: size {size!r} is not supported, expected a square or a shortest_edge")


def _interpolation(value: Any) -> Literal["bicubic", "bilinear"]:
    name = _RESAMPLE.get(value, value)
    if name not in _MODES:
        raise UserError(f"interpolation {value!r} is not supported, expected bicubic or bilinear")
    return name  # type: ignore[return-value]


def _triple(values: Any) -> tuple[float, float, float]:
    numbers = tuple(float(v) for v in (values if isinstance(values, (list, tuple)) else (values,) * 3))
    if len(numbers) != 3:
        raise UserError(f"expected a mean or standard deviation for each of 3 channels, got {values!r}")
    return numbers  # type: ignore[return-value]
