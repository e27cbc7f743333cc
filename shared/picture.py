"""Pictures from bytes, as a viewer shows them: upright, 16 bits as 8, the first frame, transparency over white.

Only the formats in `FORMATS` are opened, and a picture's size is known before a pixel is decoded.

Pillow has the last word on what is an error. Where pixels are wanted as an array, those of colour JPEGs come from torchvision's
libjpeg-turbo, which gives the same bits without the copy into Pillow's own buffers (docs/performance.md); where it is missing or refuses
a file, Pillow decodes that one, too.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import io
import itertools
from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
from PIL import ExifTags, Image

ENDINGS = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "tif", "tiff", "bmp")
"""Endings of picture files, and fields of a sample that hold one; what a file is, its bytes say."""
FIELD_OF_FORMAT: Mapping[str, str] = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "TIFF": "tif", "BMP": "bmp"}
"""Pillow's names of the formats that are read, with the field that holds such a picture. (MPO: a JPEG with more pictures behind it.)"""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")  # an MPO opens as a JPEG
EXPECTED = "JPEG, PNG, WebP, GIF, TIFF or BMP"
"""For messages."""
_COLOUR = 3
"""torchvision's ImageReadMode.RGB."""

_TURNS: Mapping[int, tuple[Image.Transpose, Callable[[np.ndarray], np.ndarray]]] = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT, lambda a: a[:, ::-1]),
    3: (Image.Transpose.ROTATE_180, lambda a: a[::-1, ::-1]),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, lambda a: a[::-1]),
    5: (Image.Transpose.TRANSPOSE, lambda a: a.swapaxes(0, 1)),
    6: (Image.Transpose.ROTATE_270, lambda a: a.swapaxes(0, 1)[:, ::-1]),
    7: (Image.Transpose.TRANSVERSE, lambda a: a[::-1, ::-1].swapaxes(0, 1)),
    8: (Image.Transpose.ROTATE_90, lambda a: a.swapaxes(0, 1)[::-1]),
}
"""What makes a picture upright, by EXIF's orientation: for Pillow, and for pixels [H, W, 3]."""
_ORIENTED = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
"""Where Pillow keeps what may say an orientation."""


def open_picture(data: bytes) -> Image.Image:
    """A picture whose header alone was read: `size` as stored, `mode`, `format`. Pillow's errors, of any class, where that is damaged."""
    return Image.open(io.BytesIO(data), formats=FORMATS)


def is_picture(data: bytes) -> bool:
    """Whether `data` begins as one of the formats does."""
    begins = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
    return data.startswith(begins) or (data[:4], data[8:12]) == (b"RIFF", b"WEBP") or (data[:2], data[6:10]) == (b"BM", bytes(4))


def rgb_pixels(picture: Image.Image, data: bytes) -> np.ndarray:
    """The pixels of an opened `picture` as `to_rgb` makes them, uint8 [H, W, 3]; `data` is what it was opened from."""
    colour = picture.format in ("JPEG", "MPO") and picture.mode == "RGB"
    pixels = _decoded(data, picture.height, picture.width) if colour else None
    if pixels is None:
        return np.array(to_rgb(picture))
    turn = _TURNS.get(_orientation(picture))
    return pixels if turn is None else np.ascontiguousarray(turn[1](pixels))


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
    """`picture` as RGB and upright; transparency is laid over white, as a page shows it.

    Raises:
        ValueError: the pixels are of 32 bits, whose black and white no format fixes.
    """
    check_bits(picture)
    picture.load()  # a PNG's orientation may stand behind its pixels; a TIFF is turned by this
    turn = _TURNS.get(_orientation(picture))
    if turn is not None:
        picture = picture.transpose(turn[0])
    if picture.mode.startswith("I;16"):
        picture = _eight_bits(picture)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        page = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(page, picture).convert("RGB")
    return picture.convert("RGB")


def check_bits(picture: Image.Image) -> None:
    """Refuse greys of 32 bits: `ValueError`."""
    if picture.mode in ("I", "F"):
        raise ValueError("its pixels are numbers of 32 bits, which do not say what is black and what is white: convert it to 8 or 16 bits")


def _orientation(picture: Image.Image) -> int:
    """EXIF's orientation, 1 to 8, as viewers and transformers' `load_image` apply it; 1, upright, where it is missing or damaged."""
    if picture.format == "TIFF" or not any(key in picture.info for key in _ORIENTED):
        return 1
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow raises nearly anything on damaged EXIF, and the picture itself may be whole
        return 1


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Greys of 16 bits as RGB: the upper 8 bits, as Pillow has it for colours of 16 bits. (Its own conversion to RGB clips at 255.)"""
    values = np.asarray(picture).astype(np.uint16)
    if picture.info.get("transparency") is not None:  # the one grey that is
        values = np.where(values == picture.info["transparency"], np.uint16(65535), values)
    if getattr(picture, "tag_v2", {}).get(262) == 0:  # TIFF's "white is zero", which Pillow leaves as it is with 16 bits
        values = 65535 - values
    return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")


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
