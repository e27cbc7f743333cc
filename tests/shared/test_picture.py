"""Pictures from bytes: one decoder or the other, the pixels and the errors are Pillow's."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
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
TURNED[0x0112] = 6  # the orientation tag; pictures are used as they are stored


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
    assert got.shape == (30, 40, 3) and got.flags.writeable and np.array_equal(got, np.asarray(sample.image()))


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
