"""Regions that were made elsewhere: `.npz` files of bottom-up attention (Anderson et al. 2018), one for each picture.

Read are the names of the releases of UNITER (`features`, `norm_bb`, `soft_labels`) and of the extractors of bottom-up attention (`x` or
`features`; `bbox` or `boxes` in pixels, with `image_w` and `image_h`; `cls_prob` or `soft_labels`). Nothing is unpickled.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ...shared.errors import BadSample
from ...shared.regions import Regions

_FEATURES, _SHARES, _PIXELS, _CLASSES = ("features", "x"), ("norm_bb",), ("bbox", "boxes"), ("soft_labels", "cls_prob", "classes")
_MAX_BYTES = 256 << 20


def read_regions(path: Path) -> Regions:
    """The regions in an `.npz` file, checked; raises `BadSample`."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > _MAX_BYTES:
            raise BadSample(f"{path} unpacks to {size >> 20} MiB, at most {_MAX_BYTES >> 20} are read")
        with np.load(path, allow_pickle=False) as file:
            found = _regions(file, path)
    except BadSample:
        raise
    except FileNotFoundError:
        raise BadSample(f"{path} does not exist: expected the regions of this picture there") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BadSample(f"{path} cannot be read as npz ({type(error).__name__}: {' '.join(str(error).split())[:160]})") from None
    if problem := found.problem() or found.stored().problem():
        raise BadSample(f"{path}: {problem}")
    return found


def _regions(file: Any, path: Path) -> Regions:
    def one(names: Iterable[str]) -> np.ndarray | None:
        name = next((name for name in names if name in file.files), None)
        if name is None:
            return None
        array = file[name]
        if array.dtype.kind not in "fiu":
            raise BadSample(f"{path}: {name!r} holds {array.dtype}, expected numbers")
        return array.astype(np.float32)

    features, boxes, pixels = one(_FEATURES), one(_SHARES), one(_PIXELS)
    if features is None or (boxes is None and pixels is None):
        raise BadSample(f"{path} holds {', '.join(file.files[:8])}: expected features ({' or '.join(_FEATURES)}) and boxes "
                        f"({' or '.join((*_SHARES, *_PIXELS))})")
    if boxes is None:
        assert pixels is not None
        width, height = (one((name,)) for name in ("image_w", "image_h"))
        if width is None or height is None or width.size != 1 or height.size != 1 or min(width.item(), height.item()) <= 0:
            raise BadSample(f"{path} has boxes in pixels and no 'image_w' and 'image_h', by which they become shares of the picture")
        if pixels.ndim == 2 and pixels.shape[1] == 4:
            pixels = pixels / np.array([width.item(), height.item()] * 2, dtype=np.float32)
        boxes = pixels
    elif boxes.ndim == 2 and boxes.shape[1] > 4:
        boxes = boxes[:, :4]  # the released ones go on with width and height
    return Regions(features, boxes, one(_CLASSES))
