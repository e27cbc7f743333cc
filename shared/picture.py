"""Pictures from bytes: named formats only, and their size is known before a pixel is decoded.

Pillow reads the header of every picture and has the last word on what is an error. Where pixels are wanted as an array, those of plain
colour JPEGs come from torchvision's libjpeg-turbo, which gives the same bits without the copy into Pillow's own buffers
(docs/performance.md); where it is missing or refuses a file, Pillow decodes that one, too.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import io
import itertools
from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP")
_COLOUR = 3
"""torchvision's ImageReadMode.RGB."""


def open_picture(data: bytes) -> Image.Image:
    """A picture whose header alone was read: `size`, `mode`, `format`. Pillow's errors, of nearly any class, where that is damaged."""
    return Image.open(io.BytesIO(data), formats=FORMATS)


def rgb_pixels(picture: Image.Image, data: bytes) -> np.ndarray:
    """The pixels of an opened `picture` as `to_rgb` makes them, uint8 [H, W, 3]; `data` is what it was opened from."""
    if picture.format == "JPEG" and picture.mode == "RGB" and (decode := _jpeg()) is not None:
        try:
            pixels = decode(data)
        except RuntimeError:  # Pillow decides whether that is an error, and words it
            pixels = None
        if pixels is not None and pixels.shape == (picture.height, picture.width, 3):
            return pixels
    return np.array(to_rgb(picture))


def to_rgb(picture: Image.Image) -> Image.Image:
    """`picture` as RGB; transparency is laid over white, as a page shows it."""
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        page = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(page, picture).convert("RGB")
    return picture.convert("RGB")


@cache
def _jpeg() -> Callable[[bytes], np.ndarray] | None:
    """Decodes a colour JPEG to uint8 [H, W, 3], or raises `RuntimeError`; None where this torchvision cannot.

    Only torchvision's library is loaded: its Python side brings torch's compiler along, which takes seconds. (That side calls the function
    deprecated since 0.29. Where a later version lacks it, pictures are the same, and slower.) libjpeg remarks on stderr on damage that it
    can read past, which Pillow keeps to itself.
    """
    import torch

    package = importlib.util.find_spec("torchvision")
    folders = (package.submodule_search_locations if package else None) or []
    suffixes = (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
    for folder, name in itertools.product(folders, ("image_stable", "image")):  # its name now and before
        found = importlib.machinery.FileFinder(folder, suffixes).find_spec(name)
        if found is None or found.origin is None:
            continue
        try:
            torch.ops.load_library(found.origin)
            function = torch.ops.image.decode_jpeg.default
        except (OSError, AttributeError, RuntimeError):
            return None
        # a bytearray, since torch warns of memory that must not be written to; the pixels lie in memory as [H, W, 3]
        return lambda data: function(torch.frombuffer(bytearray(data), dtype=torch.uint8), _COLOUR, False).permute(1, 2, 0).numpy()
    return None
