"""Transforms: pixels equal to open_clip's and torchvision's; draws only from the generator that is passed in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image
from polymodal.shared.errors import UserError
from polymodal.vision.transforms import Augmentation, Normalize, Preprocessing, crop_box, jitter_colours, to_picture, to_tensor

SHAPES = [(50, 70), (300, 224), (48, 48), (20, 90), (91, 33), (333, 500)]


def picture(shape, seed=0):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)).resize(shape[::-1], Image.Resampling.BICUBIC)
    noise = rng.integers(-20, 20, (*shape, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8))


def normalized(preprocessing, image):
    return Normalize(preprocessing)(preprocessing.pixels(image)[None])[0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("resize", "interpolation"), [("shortest", "bicubic"), ("shortest", "bilinear"), ("squash", "bicubic")])
def test_open_clips_pixels_exactly(shape, resize, interpolation):
    image = picture(shape)
    theirs = image_transform(48, is_train=False, resize_mode=resize, interpolation=interpolation)(image)
    ours = Preprocessing(image_size=48, resize=resize, interpolation=interpolation)
    assert torch.allclose(normalized(ours, image), theirs, atol=1e-6)
    mean, std = (torch.tensor(t).view(3, 1, 1) for t in (ours.image_mean, ours.image_std))
    assert torch.equal(((theirs * std + mean) * 255).round().to(torch.uint8), ours.pixels(image))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("resize_size", [None, 53, 31])
def test_torchvisions_pixels_exactly(shape, resize_size):
    """Also where the picture is smaller than what is cut out of it (timm's crop_pct above 1)."""
    from torchvision.transforms.v2 import functional

    image = picture(shape)
    theirs = functional.center_crop(functional.resize(image, [resize_size or 48], interpolation=3), [48, 48])
    ours = Preprocessing(image_size=48, resize_size=resize_size).pixels(image)
    assert torch.equal(ours, functional.pil_to_tensor(theirs))


@pytest.mark.parametrize("shape", [(300, 224), (333, 500), (91, 33)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_training_view_is_pillows_to_a_few_levels(shape, interpolation):
    image, target = picture(shape), Preprocessing(image_size=64, interpolation=interpolation)
    ours = Augmentation(crop_scale=(0.4, 0.9)).pixels(np.array(image), target, np.random.default_rng(3))
    top, left, height, width = crop_box(*shape, (0.4, 0.9), (3 / 4, 4 / 3), np.random.default_rng(3))
    crop = image.crop((left, top, left + width, top + height))
    theirs = target.pixels(crop.resize((64, 64), getattr(Image.Resampling, interpolation.upper())))
    difference = (ours.int() - theirs.int()).abs()
    assert difference.max() <= 2 and (difference > 0).float().mean() < 0.02


@pytest.mark.parametrize("size", [(1, 8000), (30000, 1)])
@pytest.mark.parametrize("resize_size", [None, 256, 100])
def test_a_thin_picture_costs_no_more_than_others(size, resize_size):
    """224 x 1,792,000 pixels of the whole would be 1.2 GB."""
    strip = Image.new("RGB", size)
    for place in range(max(size)):  # the middle is told from the rest
        strip.putpixel((0, place) if size[0] == 1 else (place, 0), (place % 251, 40, 90) if abs(place - max(size) / 2) < 300 else (0, 0, 0))
    got = Preprocessing(resize_size=resize_size).pixels(strip)
    assert got.shape == (3, 224, 224)
    shown = slice(62, 162) if resize_size == 100 else slice(None)  # black around a picture smaller than the crop
    centre = max(size) // 2
    middle = got[0, :, 112] if size[0] == 1 else got[0, 112]
    assert {centre % 251, (centre - 1) % 251} & set(middle.tolist()) and int(got[2, shown, shown].float().mean()) == 90


@pytest.mark.parametrize("shape", [(700, 3), (3, 700), (3001, 5), (17, 4000)])
@pytest.mark.parametrize(("side", "resize_size"), [(32, None), (33, 41), (48, 20)])
@pytest.mark.parametrize(("interpolation", "like"), [("bicubic", "torchvision"), ("bilinear", "transformers")])
def test_of_a_long_picture_the_middle_part_is_that_of_the_whole(shape, side, resize_size, interpolation, like, monkeypatch):
    image = picture(shape)
    target = Preprocessing(image_size=side, resize_size=resize_size, interpolation=interpolation, like=like)
    part = target.pixels(image)
    monkeypatch.setattr("polymodal.vision.transforms._LONGEST", 10**9)
    difference = (target.pixels(image).int() - part.int()).abs()
    assert difference.max() <= 3 and difference.float().mean() < 0.05


FULL = Augmentation(crop_scale=(0.3, 1.0), flip=0.5, jitter=(0.4, 0.4, 0.4, 0.1), jitter_prob=0.8, grayscale=0.2)


def test_the_generator_alone_decides():
    image, target = picture((50, 70)), Preprocessing(image_size=32)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = [FULL.pixels(np.array(image), target, np.random.default_rng(seed)) for seed in range(8)]
    torch.manual_seed(99)
    np.random.seed(3)  # noqa: NPY002  (the point: global state has no say)
    second = [FULL.pixels(np.array(image), target, np.random.default_rng(seed)) for seed in range(8)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(x.shape == (3, 32, 32) and x.dtype == torch.uint8 for x in first)
    assert len({x.numpy().tobytes() for x in first}) == 8
    torch.manual_seed(0)
    FULL.pixels(np.array(image), target, np.random.default_rng(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_crops_are_distributed_as_torchvisions():
    from torchvision.transforms import RandomResizedCrop

    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    image = torch.zeros(3, 60, 90)
    ours = np.array([crop_box(60, 90, (0.2, 1.0), (3 / 4, 4 / 3), rng) for _ in range(3000)])
    theirs = np.array([RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)])
    assert np.all(ours[:, 0] + ours[:, 2] <= 60) and np.all(ours[:, 1] + ours[:, 3] <= 90) and np.all(ours >= 0)
    for column in range(4):
        a, b = ours[:, column], theirs[:, column]
        error = 4 * np.sqrt((a.var() + b.var()) / 3000)
        assert abs(a.mean() - b.mean()) < error, column
        assert abs(a.std() - b.std()) < 0.1 * b.std(), column


def test_a_crop_that_never_fits_is_centred():
    assert crop_box(10, 1000, (1.0, 1.0), (1.0, 1.0), np.random.default_rng(0)) == (0, 495, 10, 10)
    assert crop_box(1000, 10, (1.0, 1.0), (1.0, 1.0), np.random.default_rng(0)) == (495, 0, 10, 10)


def test_each_change_does_what_it_says():
    image, target = picture((40, 40)), Preprocessing(image_size=40)
    still = Augmentation(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    rng = np.random.default_rng
    plain = still.pixels(np.array(image), target, rng(0))
    assert torch.equal(plain, target.pixels(image))
    flipped = Augmentation(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=1.0).pixels(np.array(image), target, rng(0))
    assert torch.equal(flipped, plain.flip(-1))
    gray = Augmentation(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), grayscale=1.0).pixels(np.array(image), target, rng(0))
    assert torch.equal(gray[0], gray[1]) and torch.equal(gray[1], gray[2])
    for place in range(4):
        strength = [0.0] * 4
        strength[place] = 0.4
        changed = Augmentation(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), jitter=tuple(strength)).pixels(np.array(image), target, rng(1))
        assert not torch.equal(changed, plain)


def test_colours_change_as_torchvisions():
    """The drawn factors, in the drawn order, through torchvision's functions."""
    from torchvision.transforms.v2 import functional

    image, strength = picture((24, 24)), (0.4, 0.3, 0.2, 0.1)
    for seed in range(6):
        found, rng = jitter_colours(image, strength, np.random.default_rng(seed)), np.random.default_rng(seed)
        factors = [rng.uniform(centre - s, centre + s) for centre, s in zip((1.0, 1.0, 1.0, 0.0), strength, strict=True)]
        changes = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation, functional.adjust_hue)
        expected = image
        for place in rng.permutation(4):
            expected = changes[place](expected, factors[place])
        assert np.array_equal(np.asarray(found), np.asarray(expected))


def test_pictures_and_tensors_both_ways():
    image = picture((13, 37))
    pixels = to_tensor(image)
    assert pixels.shape == (3, 13, 37) and pixels.is_contiguous()
    assert np.array_equal(np.asarray(to_picture(pixels)), np.asarray(image)) and torch.equal(to_tensor(to_picture(pixels)), pixels)
    assert np.array_equal(np.asarray(to_picture(pixels.flip(-1))), np.asarray(image)[:, ::-1])


@pytest.mark.parametrize(("settings", "message"), [
    ({"crop_scale": (0.0, 1.0)}, "crop_scale"), ({"crop_scale": (0.9, 0.5)}, "crop_scale"), ({"flip": 1.5}, "probabilities"),
    ({"crop_ratio": (2.0, 1.0)}, "crop_ratio"), ({"jitter": (0.1, 0.1, 0.1, 0.6)}, "jitter"),
])  # fmt: skip
def test_impossible_augmentation(settings, message):
    with pytest.raises(UserError, match=message):
        Augmentation(**settings)


def test_at_another_size():
    assert Preprocessing(image_size=224, resize_size=256).at(384) == Preprocessing(image_size=384, resize_size=439)
