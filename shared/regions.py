"""Regions of a picture as data: feature vectors, boxes and class probabilities, as the fields of a sample.

    regions.npy   [R, D]   features, half or single precision
    boxes.npy     [R, 4]   left, top, right, bottom, as shares of the picture's width and height
    classes.npy   [R, C]   a detector's class probabilities; class 0 is the background (absent where nothing is known)

Arrays are read without pickle, and checked whenever they are read.
"""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np

FEATURES_FIELD, BOXES_FIELD, CLASSES_FIELD = "regions.npy", "boxes.npy", "classes.npy"
DEFAULT_REGIONS = 36
"""Regions of a picture where nothing else is said: those of bottom-up attention (Anderson et al. 2018, the fixed number)."""
_EDGE = 1e-3
"""How far a box may stand out of the picture: what rounding makes."""
_SUM = 2e-2
"""How far probabilities in half precision may be from 1 together."""


class Regions(NamedTuple):
    """The regions of one picture."""

    features: np.ndarray
    """fp32 [R, D]"""
    boxes: np.ndarray
    """fp32 [R, 4]: left, top, right, bottom, from 0 to 1."""
    classes: np.ndarray | None = None
    """fp32 [R, C], probabilities; class 0 is the background."""

    def first(self, count: int) -> Regions:
        """At most `count` of them, the first ones."""
        return Regions(self.features[:count], self.boxes[:count], None if self.classes is None else self.classes[:count])

    def problem(self) -> str:
        """What is wrong with them; empty where nothing is."""
        features, boxes, classes = self
        if features.ndim != 2 or not features.shape[0]:
            count = features.shape[0] if features.ndim else 0
            return f"{count} regions: their features are {list(features.shape)}, expected [R, D], R >= 1"
        if boxes.shape != (len(features), 4):
            return f"boxes are {list(boxes.shape)}, expected [{len(features)}, 4]: one for each of the features"
        if classes is not None and (classes.ndim != 2 or len(classes) != len(features)):
            return f"class probabilities are {list(classes.shape)}, expected [{len(features)}, classes]: one row for each of the features"
        for name, part in (("a feature", features), ("a box", boxes), ("a class probability", classes)):
            if part is not None and not np.isfinite(part).all():
                return f"{name} of region {int(np.flatnonzero(~np.isfinite(part).all(1))[0])} is not a finite number"
        out = (boxes < -_EDGE).any(1) | (boxes > 1 + _EDGE).any(1) | (boxes[:, 2:] < boxes[:, :2]).any(1)
        if out.any():
            at = int(np.flatnonzero(out)[0])
            return (f"the box of region {at} is {[round(float(x), 4) for x in boxes[at]]}, outside the picture: expected left <= right and "
                    "top <= bottom from 0 to 1 (shares of the picture's width and height)")
        if classes is not None:
            sums = classes.sum(1, dtype=np.float64)
            if (wrong := (classes < 0).any(1) | (np.abs(sums - 1) > _SUM)).any():
                at = int(np.flatnonzero(wrong)[0])
                return f"the class probabilities of region {at} add up to {sums[at]:.4g}, expected none below 0 and 1 together"
        return ""

    def stored(self) -> Regions:
        """They as a sample holds them: features and probabilities in half precision (too large ones are infinite), boxes in single."""
        with np.errstate(over="ignore"):
            return Regions(self.features.astype("<f2"), self.boxes.astype("<f4"),
                           None if self.classes is None else self.classes.astype("<f2"))

    def fields(self) -> dict[str, bytes]:
        """They as fields of a sample."""
        names = (FEATURES_FIELD, BOXES_FIELD, CLASSES_FIELD)
        return {name: array_bytes(part) for name, part in zip(names, self.stored(), strict=True) if part is not None}

    @property
    def shape(self) -> tuple[int, int]:
        """Width of the features, and number of classes (0 where nothing is known)."""
        return self.features.shape[1], 0 if self.classes is None else self.classes.shape[1]

    @property
    def locations(self) -> np.ndarray:
        """fp32 [R, 7]: left, top, right, bottom, width, height, area (UNITER)."""
        sides = self.boxes[:, 2:] - self.boxes[:, :2]
        return np.concatenate([self.boxes, sides, sides[:, :1] * sides[:, 1:]], axis=1)


def box_problem(box: object) -> str:
    """What is wrong with a box of a picture: left, top, right, bottom, as shares of its width and height; empty where nothing is."""
    if not isinstance(box, (list, tuple)) or len(box) != 4 or not all(
            isinstance(x, (int, float)) and not isinstance(x, bool) and -_EDGE <= x <= 1 + _EDGE for x in box):
        return f"the box is {str(box)[:60]}, expected four numbers from 0 to 1: left, top, right, bottom (shares of the picture's sides)"
    left, top, right, bottom = box
    return "" if left < right and top < bottom else f"the box is {list(box)}: expected left < right and top < bottom"


def overlaps(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """How much each of the boxes [R, 4] has in common with one [4]: the intersection's share of the union, fp32 [R]."""
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    common = np.prod(np.maximum(high - low, 0), axis=1)
    areas = [np.prod(part[..., 2:] - part[..., :2], axis=-1) for part in (boxes, box)]
    return common / (areas[0] + areas[1] - common)


def array_bytes(array: np.ndarray) -> bytes:
    """An array as the bytes of an `.npy` file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()
