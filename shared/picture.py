"""Pictures from bytes: named formats only, and their size is known before a pixel is decoded.

Pillow has the last word on what is an error. Where pixels are wanted as an array, those of colour JPEGs come from torchvision's
libjpeg-turbo, which gives the same bits without the copy into Pillow's own buffers (docs/performance.md); where it is missing or refuses
a file, Pillow decodes that one, too.
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
    colour = picture.format == "JPEG" and picture.mode == "RGB"
    pixels = _decoded(data, picture.height, picture.width) if colour else None
    return np.array(to_rgb(picture)) if pixels is None else pixels


def plain_pixels(data: bytes, max_pixels: int) -> np.ndarray | None:
    """The pixels of a colour JPEG that needs no look by Pillow, uint8 [H, W, 3]; None for any other picture, and where anything is amiss.

    Its header holds nothing but what most programs write (Pillow, OpenCV), in whole, and Pillow would find nothing in it to refuse. That
    look takes Pillow a sixth of the time of the pixels.
    """
    height, width = _plain_size(data)
    return _decoded(data, height, width) if 0 < height * width <= max_pixels else None


def _plain_size(data: bytes) -> tuple[int, int]:
    """(height, width) by the header of such a JPEG; zeros for any other."""
    size, at, end = (0, 0), 2, len(data) - 9
    if data[:2] != b"\xff\xd8":
        return size
    while at < end and data[at] == 0xFF:
        marker, length = data[at + 1], data[at + 2] << 8 | data[at + 3]
        if marker == 0xDA:  # the picture itself begins
            return size
        if marker in (0xC0, 0xC2):  # the frame, baseline or progressive: bits, height, width, components
            if size != (0, 0) or length != 17 or data[at + 4] != 8 or data[at + 9] != 3:
                break
            size = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
        elif marker == 0xDB:  # tables of 64 bytes
            if length % 65 != 2 or length == 2 or any(kind > 15 for kind in data[at + 4 : at + 2 + length : 65]):
                break
        elif marker == 0xE0:
            if length != 16 or data[at + 4 : at + 9] != b"JFIF\0":
                break
        elif marker not in (0xC4, 0xDD, 0xFE) or length < 2:  # Huffman codes, restart interval, a comment
            break
        at += 2 + length
    return 0, 0


def _decoded(data: bytes, height: int, width: int) -> np.ndarray | None:
    """The pixels of a colour JPEG of that size; None where Pillow has to decide whether that is an error, and to word it."""
    decode = _jpeg()
    if decode is None:
        return None
    try:
        pixels = decode(data)
    except RuntimeError:
        return None
    return pixels if pixels.shape == (height, width, 3) else None


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
