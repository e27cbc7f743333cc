"""Pictures from bytes: one decoder or the other, the pixels and the errors are Pillow's."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import transformers
from PIL import Image
from polymodal.shared import picture as pictures
from polymodal.shared.errors import BadSample
from polymodal.shared.sample import Sample


def drawn(width, height, seed=0):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / (width + height)], axis=-1)
    return Image.fromarray((smooth + rng.normal(0, 20, smooth.shape)).clip(0, 255).astype(np.uint8))


def saved(picture, kind="JPEG", **options):
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


TURNED = Image.Exif()
TURNED[0x0112] = 6  # the orientation tag


STORED = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
"""By EXIF's orientation: Pillow's number of the change that stores an upright picture so."""


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize(("kind", "options"), [
    ("JPEG", {}), ("JPEG", {"progressive": True}), ("JPEG grey", {}), ("PNG", {}), ("PNG grey of 16 bits", {}),
    ("WEBP", {"lossless": True}), ("TIFF", {}), ("MPO", {"save_all": True, "append_images": [drawn(4, 4)]})])  # fmt: skip
def test_pictures_are_upright(kind, options, orientation):
    """As transformers' `load_image` has it, and in the fast path as in Pillow's; numbers that are no orientation mean upright."""
    upright = drawn(40, 30)
    if "grey" in kind:
        upright = upright.convert("L")
    if "16" in kind:
        upright = Image.fromarray(np.asarray(upright).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(Image.Transpose(STORED[orientation])) if orientation in STORED else upright
    sample = Sample("a", {"jpg": saved(stored, kind.split()[0], exif=exif, **options)})
    got, pixels = np.asarray(sample.image()), sample.pixels()
    assert np.array_equal(got, pixels) and pixels.flags.writeable and pixels.flags.c_contiguous
    expected = np.asarray(Sample("a", {"png": saved(upright, "PNG")}).image())
    off = 25 if kind[0] in "JM" else 1e-9  # of noise; the wrong way up it is 80
    assert got.shape == (30, 40, 3) and np.abs(got.astype(int) - expected).mean() < off
    reference = transformers.image_utils.load_image(Image.open(io.BytesIO(sample.fields["jpg"])))
    assert "16" in kind or np.array_equal(got, np.asarray(reference))


def test_a_png_may_say_behind_its_pixels_that_it_is_turned():
    data = saved(drawn(40, 30), "PNG")
    exif = TURNED.tobytes().removeprefix(b"Exif\0\0")
    chunk = len(exif).to_bytes(4, "big") + b"eXIf" + exif + zlib.crc32(b"eXIf" + exif).to_bytes(4, "big")
    assert Sample("a", {"png": data[:-12] + chunk + data[-12:]}).pixels().shape == (40, 30, 3)


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\xff\x01\x12", b"Exif\0\0" + b"\xff" * 200, b"x" * 30])
def test_damaged_exif_does_not_cost_the_picture(exif):
    sample = Sample("a", {"jpg": saved(drawn(40, 30), exif=exif)})
    assert sample.pixels().shape == (30, 40, 3) and np.array_equal(sample.pixels(), np.asarray(sample.image()))


def chunks(*parts):
    """A PNG of chunks (name, data)."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big") for name, data in parts)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_greys_of_16_bits_keep_their_values(kind):
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    got = Sample("a", {"png": saved(Image.fromarray(ramp), kind)}).pixels()
    assert np.array_equal(got, np.repeat((ramp >> 8).astype(np.uint8)[..., None], 3, 2))
    eight = np.arange(256, dtype=np.uint8)[None].repeat(2, 0)  # 8 bits that were written as 16, in either way
    for wide in (eight.astype(np.uint16) * 257, eight.astype(np.uint16) << 8):
        assert np.array_equal(Sample("a", {"png": saved(Image.fromarray(wide), kind)}).pixels()[..., 0], eight)


def test_greys_of_16_bits_by_the_meaning_of_their_numbers():
    values = (np.arange(8) * 8192).astype(">u2")
    header = (b"IHDR", struct.pack(">IIBBBBB", 8, 1, 16, 0, 0, 0, 0))
    pixels, end = (b"IDAT", zlib.compress(b"\0" + values.tobytes())), (b"IEND", b"")
    transparent = Sample("a", {"png": chunks(header, (b"tRNS", struct.pack(">H", 8192)), pixels, end)})
    assert transparent.pixels()[0, :, 0].tolist() == [0, 255, 64, 96, 128, 160, 192, 224]
    white_is_zero = saved(Image.fromarray(values.astype(np.uint16)[None]), "TIFF", tiffinfo={262: 0})
    assert Sample("a", {"tif": white_is_zero}).pixels()[0, :, 0].tolist() == [255, 223, 191, 159, 127, 95, 63, 31]


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_greys_of_32_bits_are_refused(kind):
    sample = Sample("a", {"tif": saved(Image.fromarray(np.full((3, 4), 700, kind)), "TIFF")})
    for read in (sample.image, sample.pixels):
        with pytest.raises(BadSample, match=r"32 bits.*convert it to 8 or 16 bits"):
            read()


RED, CLEAR = (200, 30, 40), (0, 0, 0, 0)


@pytest.mark.parametrize(("mode", "kind"), [
    ("RGB", "BMP"), ("RGB", "TIFF"), ("P", "GIF"), ("P", "PNG"), ("P", "TIFF"), ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "TIFF")])
def test_colours_of_every_kind(mode, kind):
    got = Sample("a", {"jpg": saved(Image.new("RGB", (40, 30), RED).convert(mode, palette=Image.Palette.ADAPTIVE), kind)}).pixels()
    assert got.shape == (30, 40, 3) and np.abs(got.astype(int) - RED).max() <= 3


@pytest.mark.parametrize("kind", ["PNG", "PNG palette", "WEBP", "TIFF", "GIF"])
def test_what_is_transparent_is_white(kind):
    picture = Image.new("RGBA", (40, 30), (*RED, 255))
    picture.paste(CLEAR, (0, 0, 20, 30))
    if "palette" in kind:
        picture = picture.quantize(4)
    options = {"lossless": True} if kind == "WEBP" else {}
    got = Sample("a", {"png": saved(picture, kind.split()[0], **options)}).pixels().astype(int)
    assert np.all(got[:, :20] == 255) and np.abs(got[:, 20:] - RED).max() <= 3


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG", "MPO"])
def test_of_several_pictures_the_first(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(Image.new("RGB", (40, 30), RED), kind, save_all=True, append_images=[Image.new("RGB", (40, 30), (0, 0, 255))], **options)
    got = Sample("a", {"gif": data}).pixels()
    assert got.shape == (30, 40, 3) and np.abs(got.astype(int) - RED).max() <= 3


def test_every_format_has_a_field_and_is_known_by_its_first_bytes():
    assert set(pictures.FIELD_OF_FORMAT.values()) <= set(pictures.ENDINGS) and set(pictures.FORMATS) <= set(pictures.FIELD_OF_FORMAT)
    for kind in pictures.FORMATS:
        data = saved(drawn(5, 4), kind)
        assert pictures.is_picture(data) and pictures.open_picture(data).format == kind, kind
    assert not any(map(pictures.is_picture, (b"", b"BMW.jpg\nother.jpg\n", b"II.png", b"RIFF....WAVE", b"GIF.gif")))
    for kind in ("PPM", "ICO"):
        with pytest.raises(BadSample, match="cannot identify"):
            Sample("a", {"png": saved(drawn(5, 4), kind)}).image()


def tried(read):
    """The pixels, or the error's words."""
    try:
        return np.asarray(read())
    except BadSample as error:
        return str(error)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (17, 33), (224, 224), (401, 299)])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True, "quality": 30}, {"restart_marker_rows": 1}])
def test_the_pixels_of_colour_jpegs_are_pillows(size, subsampling, options, monkeypatch):
    sample = Sample("a", {"jpg": saved(drawn(*size), subsampling=subsampling, **options)})
    expected = np.asarray(sample.image())
    monkeypatch.setattr(pictures.Image, "open", None)  # so Pillow does nothing here
    got = sample.pixels()
    assert got.dtype == np.uint8 and got.flags.writeable and np.array_equal(got, expected)


@pytest.mark.parametrize("options", [{"exif": TURNED}, {"icc_profile": b"x" * 99}, {"keep_rgb": True}])
def test_where_pillow_reads_the_header_it_need_not_decode(options, monkeypatch):
    sample = Sample("a", {"jpg": saved(drawn(40, 30), **options)})
    expected = np.asarray(sample.image())
    monkeypatch.setattr(pictures, "to_rgb", None)
    assert pictures.plain_pixels(sample.fields["jpg"], 10**6) is None and np.array_equal(sample.pixels(), expected)


@pytest.mark.parametrize("data", [
    saved(drawn(40, 30).convert("L")), saved(drawn(40, 30).convert("CMYK")), saved(drawn(40, 30), keep_rgb=True),
    saved(drawn(40, 30), exif=TURNED), saved(drawn(40, 30), "PNG"), saved(drawn(40, 30).convert("P"), "PNG"),
    saved(drawn(40, 30).convert("RGBA"), "PNG"), saved(drawn(40, 30), "WEBP"), saved(drawn(40, 30), comment=b"x" * 60_000),
    saved(drawn(40, 30), "MPO", save_all=True, append_images=[drawn(40, 30, 1)]), saved(drawn(40, 30)) + b"more" * 9,
])  # fmt: skip
def test_the_pixels_of_all_others_too(data):
    sample = Sample("a", {"jpg": data})
    got = sample.pixels()
    assert got.shape in ((30, 40, 3), (40, 30, 3)) and got.flags.writeable and np.array_equal(got, np.asarray(sample.image()))


def test_damaged_pictures_are_the_same_or_the_same_error():
    rng = np.random.default_rng(0)
    errors = 0
    for i in range(300):
        data = bytearray(saved(drawn(*rng.integers(1, 80, 2), seed=i), subsampling=int(rng.integers(3)), progressive=bool(i % 2)))
        at = int(rng.integers(len(data) if i % 2 else 700))  # the header is 600 to 700 bytes
        if i % 5 == 0:
            del data[at:]
        elif i % 5 == 1:
            data[at] ^= 1 << int(rng.integers(8))
        elif i % 5 == 2:
            data[at:at] = rng.bytes(30)
        elif i % 5 == 3:
            del data[at : at + 30]
        else:
            for place in rng.integers(len(data), size=12):
                data[place] = int(rng.integers(256))
        sample = Sample("a", {"jpg": bytes(data)}, source="b")
        expected, got = tried(sample.image), tried(sample.pixels)
        errors += isinstance(expected, str)
        assert type(expected) is type(got) and np.array_equal(expected, got), (i, expected, got)
    assert 60 < errors < 240


def test_a_size_beyond_the_limit_is_refused_before_anything_is_decoded(monkeypatch):
    data = bytearray(saved(drawn(8, 8)))
    frame = data.index(b"\xff\xc0") + 5
    data[frame : frame + 4] = (60_000).to_bytes(2, "big") * 2
    monkeypatch.setattr(pictures, "_jpeg", None)
    monkeypatch.setattr(pictures, "to_rgb", None)
    for read in (Sample("a", {"jpg": bytes(data)}).pixels, Sample("a", {"jpg": bytes(data)}).image):
        with pytest.raises(BadSample, match=r"3600000000 pixels|60000x60000"):
            read()
    with pytest.raises(BadSample, match="picture of 9x8 pixels, at most 71 are decoded"):
        Sample("a", {"jpg": saved(drawn(9, 8))}).pixels(71)


@pytest.mark.parametrize("name", ["torchvision_that_is_not_there", "polymodal"])
def test_without_torchvisions_library(name, monkeypatch):
    """As a torchvision that no longer brings it, or none: the same pixels."""
    find = pictures.importlib.util.find_spec
    sample = Sample("a", {"jpg": saved(drawn(50, 20))})
    expected = sample.pixels()
    monkeypatch.setattr(pictures.importlib.util, "find_spec", lambda _: find(name))
    monkeypatch.setattr(pictures, "_jpeg", pictures._jpeg.__wrapped__)
    assert pictures._jpeg() is None
    assert np.array_equal(sample.pixels(), expected)


def test_torchvisions_python_side_is_not_imported():
    """It takes seconds, in the process that trains and in every worker."""
    code = """
import io, sys
import numpy as np
from PIL import Image
from polymodal.shared.picture import _jpeg
from polymodal.shared.sample import Sample
from polymodal.vision.transforms import Augmentation, Preprocessing
out = io.BytesIO()
Image.new("RGB", (40, 30), (200, 10, 10)).save(out, "JPEG")
sample = Sample("a", {"jpg": out.getvalue()})
view = Augmentation(flip=0.5).pixels(sample.pixels(), Preprocessing(image_size=16), np.random.default_rng(0))
Preprocessing(image_size=16).pixels(sample.image())
assert _jpeg() is not None and view.shape == (3, 16, 16)
assert "torchvision" not in sys.modules, "torchvision was imported"
"""
    subprocess.run([sys.executable, "-c", code], check=True)
