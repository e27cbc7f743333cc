"""How pictures are prepared, in the files of transformers, open_clip and timm: read and written.

transformers 5 writes processor_config.json, with the image processor inside, where a model reads pictures and text, and
preprocessor_config.json where it reads pictures alone; both are read, in transformers' order. open_clip has `preprocess_cfg` in
open_clip_config.json, timm `pretrained_cfg` in config.json.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from ..shared.errors import UserError
from ..shared.keys import Key, Keys, check_keys, honoured, no_effect, only, read_json, shown
from .transforms import CLIP_MEAN, CLIP_STD, HALF, IMAGENET_MEAN, IMAGENET_STD, Preprocessing

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
_RESAMPLE: Mapping[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers, as transformers stores them."""

# ------------------------------------------------------------------------------------------- transformers

ARRAYS = "about the arrays that its caller gets"
IMAGE_PROCESSOR: Keys = {
    "image_processor_type": honoured("the class whose defaults fill in what is missing; only the family's own is read"),
    "feature_extractor_type": honoured("as image_processor_type (transformers before 4.26)"),
    "do_resize": only(True),
    "size": honoured("a number, a square [height, width] or {height, width}, or {shortest_edge}, which needs a centre crop; "
                     "others are refused"),
    "default_to_square": honoured("whether a plain number in size is a square or the shorter side"),
    "resample": honoured("2 (bilinear) or 3 (bicubic); others are refused"),
    "do_center_crop": honoured(),
    "crop_size": honoured("a number, [height, width] or {height, width}; a square of the model's image_size"),
    "do_rescale": honoured(),
    "rescale_factor": honoured("becomes part of mean and deviation"),
    "do_normalize": honoured(),
    "image_mean": honoured("one number, or one for each colour"),
    "image_std": honoured("one number, or one for each colour"),
    "do_convert_rgb": no_effect("every picture is made RGB; transparency is laid over white"),
    "do_reduce_labels": no_effect("about maps of segmentation"),
    "reduce_labels": no_effect("about maps of segmentation"),
    "do_pad": only(False, None),
    "pad_size": no_effect("belongs to do_pad"),
    "use_square_size": only(False, None),
    "data_format": no_effect(ARRAYS),
    "input_data_format": no_effect(ARRAYS),
    "device": no_effect(ARRAYS),
    "return_tensors": no_effect(ARRAYS),
    "disable_grouping": no_effect("about speed"),
    "use_fast": no_effect("names one of transformers' implementations"),
    "backend": no_effect("names one of transformers' implementations"),
    "image_seq_length": no_effect("about models that read pictures as tokens of a text"),
    "pixels_like": honoured("written here, of a model whose pictures torchvision's rules prepare; transformers passes it over and differs "
                            "by up to a level, and by a pixel in place where an odd number is left over"),
    "processor_class": no_effect("names a class of transformers"),
    "auto_map": no_effect("names code, which is not run"),
    "transformers_version": no_effect("says who wrote the file"),
}
"""Keys of preprocessor_config.json, and of `image_processor` in processor_config.json."""
PROCESSOR_KEYS: Keys = {
    "image_processor": honoured("as preprocessor_config.json, which it comes before"),
    "processor_class": IMAGE_PROCESSOR["processor_class"],
    "auto_map": IMAGE_PROCESSOR["auto_map"],
    "transformers_version": IMAGE_PROCESSOR["transformers_version"],
    "chat_template": no_effect("about chats"),
}
"""Keys of processor_config.json."""


@dataclass(frozen=True)
class ProcessorDefaults:
    """What an image processor class of transformers does where its file says nothing."""

    size: Mapping[str, int]
    default_to_square: bool
    resample: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    do_center_crop: bool = False
    crop_size: int | None = None


PROCESSORS: Mapping[str, ProcessorDefaults] = {
    "ViTImageProcessor": ProcessorDefaults({"height": 224, "width": 224}, True, 2, HALF, HALF),
    "BeitImageProcessor": ProcessorDefaults({"height": 224, "width": 224}, True, 3, HALF, HALF),
    "CLIPImageProcessor": ProcessorDefaults({"shortest_edge": 224}, False, 3, CLIP_MEAN, CLIP_STD, True, 224),
}


def from_transformers(record: Mapping[str, Any], kind: str, what: str = PREPROCESSOR) -> Preprocessing:
    """From the contents of an image processor's file.

    Args:
        record: the contents.
        kind: the family's image processor class.
        what: what the contents are called in a message.
    """
    check_keys(record, IMAGE_PROCESSOR, what)
    record = {key: value for key, value in record.items() if value is not None}  # None stands for the class's default
    named = str(record.get("image_processor_type", record.get("feature_extractor_type", kind)))
    if re.sub(r"(FeatureExtractor|ImageProcessor(Fast|Pil)?)$", "ImageProcessor", named) != kind:
        raise UserError(f"{what} is of a {named}, expected {kind}: pictures would be prepared in another way")
    own = PROCESSORS[kind]
    square = record.get("default_to_square", own.default_to_square)
    height, width, shortest = _size(record.get("size", own.size), square, f"{what}: size")
    cropped = bool(record.get("do_center_crop", own.do_center_crop))
    crop = _square(*_size(record.get("crop_size", own.crop_size), True, f"{what}: crop_size"), f"{what}: crop_size") if cropped else None
    if shortest and crop is None:
        raise UserError(f"{what} resizes the shorter side without a centre crop: pictures would not be square; "
                        "expected do_center_crop with crop_size")  # fmt: skip
    side = shortest or _square(height, width, None, f"{what}: size")
    mean, std = _normalisation(record, own, what)
    like = record.get("pixels_like", "transformers")
    if like not in ("transformers", "torchvision"):
        raise UserError(f"{what}: pixels_like is {shown(like)}, expected transformers or torchvision")
    image_size = crop or side
    return Preprocessing(
        image_size=image_size, resize="shortest" if shortest else "squash", resize_size=side if side != image_size else None,
        like=like, interpolation=_interpolation(record.get("resample", own.resample), what), image_mean=mean, image_std=std,
    )  # fmt: skip


def to_transformers(preprocessing: Preprocessing, kind: str) -> dict[str, Any]:
    """The contents of preprocessor_config.json for the image processor class `kind`."""
    p = preprocessing
    side, before = ({"height": n, "width": n} for n in (p.image_size, p.resize_size or p.image_size))
    record = {"image_processor_type": kind, "do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
              "do_convert_rgb": True, "resample": {v: k for k, v in _RESAMPLE.items()}[p.interpolation], "image_mean": list(p.image_mean),
              "image_std": list(p.image_std), **({"pixels_like": p.like} if p.like != "transformers" else {})}  # fmt: skip
    if p.resize == "squash":
        return {**record, "size": before, "do_center_crop": p.resize_size is not None, **({"crop_size": side} if p.resize_size else {})}
    return {**record, "size": {"shortest_edge": p.resize_size or p.image_size}, "do_center_crop": True, "crop_size": side}


def reads_preprocessing(kind: str) -> Callable[[Any, Mapping[str, Any], Path], None]:
    """What takes the preprocessing in a directory of transformers over into `net.preprocessing` (`Format.finish`).

    Without a file, pictures are prepared as the image processor class `kind` does by default, at the network's size.
    """

    def read(net: Any, record: Mapping[str, Any], directory: Path) -> None:
        found = _image_processor(directory)
        if found is None:
            return
        what, contents = found
        preprocessing = from_transformers(contents, kind, what)
        if preprocessing.image_size != net.preprocessing.image_size:
            raise UserError(f"{what} makes pictures of {preprocessing.image_size} pixels, the model takes {net.preprocessing.image_size}")
        net.preprocessing = preprocessing

    return read


def _image_processor(directory: Path) -> tuple[str, Mapping[str, Any]] | None:
    """Where an image processor is described, and the description."""
    whole, alone = directory / PROCESSOR, directory / PREPROCESSOR
    if whole.is_file():
        record = read_json(whole)
        check_keys(record, PROCESSOR_KEYS, str(whole))
        inside = record.get("image_processor")
        if inside is not None:
            if not isinstance(inside, Mapping):
                raise UserError(f"{whole}: image_processor is {shown(inside)}, expected an object")
            return f"{whole}: image_processor", cast("Mapping[str, Any]", inside)
    return (str(alone), read_json(alone)) if alone.is_file() else None


def _size(size: Any, square: Any, what: str) -> tuple[int | None, int | None, int | None]:
    """(height, width, shortest edge), of which the first two or the last are there."""
    if _whole(size):
        return (size, size, None) if square else (None, None, size)
    if isinstance(size, (list, tuple)) and len(cast("list[Any]", size)) == 2 and all(map(_whole, cast("list[Any]", size))):
        return size[0], size[1], None
    if isinstance(size, Mapping):
        given = {key: value for key, value in cast("Mapping[str, Any]", size).items() if value is not None}
        if all(map(_whole, given.values())):
            if set(given) == {"height", "width"}:
                return given["height"], given["width"], None
            if set(given) == {"shortest_edge"}:
                return None, None, given["shortest_edge"]
    raise UserError(f"{what} {shown(size)} is not supported, expected a number, a square or a shortest_edge")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _square(height: int | None, width: int | None, shortest: int | None, what: str) -> int:
    if height is None or height != width or shortest is not None:
        raise UserError(f"{what} is {height}x{width}, expected a square: the networks here see squares")
    return height


def _normalisation(
    record: Mapping[str, Any], own: ProcessorDefaults, what: str
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and deviation of pixels from 0 to 1 that do what the file's factor, mean and deviation do to pixels from 0 to 255."""
    factor = record.get("rescale_factor", 1 / 255) if record.get("do_rescale", True) else 1.0
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < math.inf:
        raise UserError(f"{what}: rescale_factor is {shown(factor)}, expected a number above 0")
    mean, std = _triple(0.0), _triple(1.0)
    if record.get("do_normalize", True):
        mean = _triple(record.get("image_mean", own.image_mean))
        std = _triple(record.get("image_std", own.image_std))
    if not all(std):
        raise UserError(f"{what}: image_std is {std}, expected numbers other than 0")
    whole = 255 * factor  # 1 in most files
    return cast("tuple[tuple[float, float, float], tuple[float, float, float]]",
                (tuple(m / whole for m in mean), tuple(s / whole for s in std)))  # fmt: skip


# ---------------------------------------------------------------------------------------------- open_clip

PREPROCESS_CFG: Keys = {
    "mean": honoured(),
    "std": honoured(),
    "interpolation": honoured("bicubic or bilinear; random, which is about training, is bicubic"),
    "resize_mode": honoured("shortest or squash; longest is refused"),
    "mode": only("RGB", None),
    "size": no_effect("open_clip takes the image tower's image_size, too"),
    "fill_color": no_effect("belongs to resize_mode longest"),
}
"""Keys of `preprocess_cfg` in open_clip_config.json."""


def from_open_clip(record: Mapping[str, Any], image_size: int) -> Preprocessing:
    """From the `preprocess_cfg` of open_clip_config.json."""
    what = "open_clip_config.json: preprocess_cfg"
    check_keys(record, PREPROCESS_CFG, what)
    mode = record.get("resize_mode") or "shortest"
    if mode not in ("shortest", "squash"):
        raise UserError(f"{what}: resize_mode {shown(mode)} is not supported, expected shortest or squash")
    interpolation = record.get("interpolation") or "bicubic"
    return Preprocessing(image_size=image_size, resize=mode,
                         interpolation=_interpolation("bicubic" if interpolation == "random" else interpolation, what),
                         image_mean=_triple(record.get("mean") or CLIP_MEAN), image_std=_triple(record.get("std") or CLIP_STD))  # fmt: skip


def to_open_clip(preprocessing: Preprocessing) -> dict[str, Any]:
    """The `preprocess_cfg` of open_clip_config.json."""
    p = preprocessing
    if p.resize_size is not None:
        raise UserError(f"open_clip resizes pictures to what the model sees, {p.image_size} pixels, this model to {p.resize_size} before "
                        "the crop: save it in transformers' format")  # fmt: skip
    return {"mean": list(p.image_mean), "std": list(p.image_std), "interpolation": p.interpolation, "resize_mode": p.resize}


# --------------------------------------------------------------------------------------------------- timm

TRAINED_SIZE = "timm looks at it only when asked to (use_test_size)"
ORIGIN = "says where the weights come from"
PRETRAINED_CFG: Keys = {
    "input_size": honoured("three colours and the square that the model sees"),
    "fixed_input_size": honoured("with it, input_size is the model's size where model_args has no img_size"),
    "interpolation": honoured("bicubic or bilinear; others are refused"),
    "crop_pct": honoured(),
    "crop_mode": honoured("center or squash; border is refused"),
    "mean": honoured(),
    "std": honoured(),
    "num_classes": honoured("classes, where the file's top level does not say"),
    "global_pool": honoured("as in model_args"),
    "label_names": honoured("where the file's top level has none"),
    "first_conv": only("patch_embed.proj", None),
    "classifier": only("head", None),
    "custom_load": only(False, None),
    "label_offset": only(0, None),
    "test_input_size": no_effect(TRAINED_SIZE),
    "test_crop_pct": no_effect(TRAINED_SIZE),
    "test_pool_size": no_effect("about networks of convolutions"),
    "min_input_size": no_effect("about other sizes than the model's"),
    "pool_size": no_effect("about networks of convolutions"),
    "label_descriptions": no_effect("longer names of the classes"),
    **{name: no_effect(ORIGIN) for name in (
        "url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "architecture", "tag", "license", "description",
        "origin_url", "paper_name", "paper_ids", "notes")},
}  # fmt: skip
"""Keys of `pretrained_cfg` in timm's config.json."""


def from_timm(record: Mapping[str, Any], image_size: int) -> Preprocessing:
    """From the `pretrained_cfg` of timm's config.json; what is missing is as in timm."""
    what = "config.json: pretrained_cfg"
    check_keys(record, PRETRAINED_CFG, what)
    size = record.get("input_size")
    if size is not None and not record.get("fixed_input_size") and list(size) != [3, image_size, image_size]:
        raise UserError(f"{what}: input_size is {shown(size)}, expected {[3, image_size, image_size]}, which the model sees")
    mode, crop = record.get("crop_mode") or "center", float(record.get("crop_pct") or 0.875)
    if mode not in ("center", "squash"):
        raise UserError(f"{what}: crop_mode {shown(mode)} is not supported, expected center or squash")
    if not 0 < crop < math.inf:
        raise UserError(f"{what}: crop_pct is {crop}, expected a number above 0")
    before = math.floor(image_size / crop)
    return Preprocessing(image_size=image_size, resize="shortest" if mode == "center" else "squash",
                         resize_size=before if before != image_size else None,
                         interpolation=_interpolation(record.get("interpolation") or "bicubic", what),
                         image_mean=_triple(record.get("mean") or IMAGENET_MEAN),
                         image_std=_triple(record.get("std") or IMAGENET_STD))  # fmt: skip


def to_timm(preprocessing: Preprocessing) -> dict[str, Any]:
    """The `pretrained_cfg` of timm's config.json."""
    p = preprocessing
    before = p.resize_size or p.image_size
    crop = p.image_size / before
    while math.floor(p.image_size / crop) < before:  # timm rounds down
        crop = math.nextafter(crop, 0)
    return {"input_size": [3, p.image_size, p.image_size], "crop_pct": crop, "crop_mode": "center" if p.resize == "shortest" else "squash",
            "interpolation": p.interpolation, "mean": list(p.image_mean), "std": list(p.image_std), "fixed_input_size": True}  # fmt: skip


# ------------------------------------------------------------------------------------------------- values


def _interpolation(value: Any, what: str) -> Literal["bicubic", "bilinear"]:
    name = _RESAMPLE.get(value) if isinstance(value, int) else value
    if name not in ("bicubic", "bilinear"):
        raise UserError(f"{what}: interpolation {shown(value)} is not supported, expected bicubic or bilinear")
    return name


def _triple(values: Any) -> tuple[float, float, float]:
    given = list(cast("list[Any]", values)) if isinstance(values, (list, tuple)) else [values] * 3
    if len(given) != 3 or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in given):
        raise UserError(f"expected a mean or standard deviation for each of 3 channels, got {shown(values)}")
    return float(given[0]), float(given[1]), float(given[2])


TABLES: Mapping[str, Mapping[str, Key]] = {
    "preprocessor_config.json, and image_processor in processor_config.json (transformers)": IMAGE_PROCESSOR,
    "processor_config.json (transformers)": PROCESSOR_KEYS,
    "pretrained_cfg in config.json (timm)": PRETRAINED_CFG,
    "preprocess_cfg in open_clip_config.json (open_clip)": PREPROCESS_CFG,
}
"""The tables by the place they are about, for the documentation."""
