"""What finds regions in pictures.

grid              the patches of an image tower of the library, averaged over a square grid of cells that cover the picture
torchvision:NAME  a Faster R-CNN of torchvision, where its weights are at hand
DIR               DIR/KEY.npz for the sample KEY, made elsewhere
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ...shared.errors import BadSample, UserError
from ...shared.regions import Regions
from ...shared.sample import Sample
from ...vision.transforms import Normalize, to_tensor
from ..model.frontdoor import load
from ..model.open import fingerprint
from ..pack.region_files import read_regions
from .codebook import Codebook

_OVERLAP = 0.7
"""Regions of a detector overlap by at most this share (intersection over union)."""


class Detector(Protocol):
    """Finds regions."""

    fingerprint: str
    """Hash of all that determines what is found, apart from options."""
    together: int
    """Pictures that run together."""

    def prepare(self, sample: Sample) -> Any:
        """What it takes of a sample; raises `BadSample`."""
        ...

    def find(self, items: Sequence[Any]) -> list[Regions]:
        """The regions of each."""
        ...


@runtime_checkable
class PatchFeatures(Protocol):
    """A network with states of a picture's patches (CLIP, ViT, MAE)."""

    preprocessing: Any

    def get_patch_features(self, pixel_values: Tensor) -> Tensor:
        """[B, P, D] of normalised pixels, row by row; the patches are a square."""
        ...


@dataclass(frozen=True)
class GridWork:
    """A grid over a tower's patches, as plain values."""

    model: str
    regions: int
    codebook: str
    """Where the codebook is; empty: regions get no classes."""
    batch_size: int = 32

    def open(self, device: str) -> Grid:
        """Load the tower."""
        return Grid(load(self.model, device=device), self, Codebook.load(Path(self.codebook)) if self.codebook else None)


class Grid:
    """Cells of a square grid, each the mean of the patches that it touches.

    The picture is squashed to the tower's square, so that the cells cover all of it, and the boxes are those of the patches in a cell.
    """

    def __init__(self, net: nn.Module, work: GridWork, codebook: Codebook | None) -> None:
        if not isinstance(net, PatchFeatures):
            raise UserError(f"--tower {work.model} holds a {type(net).__name__}, which has no patches: expected a CLIP, a ViT or an MAE")
        self.side = math.isqrt(work.regions)
        if self.side**2 != work.regions:
            raise UserError(f"--regions is {work.regions}: a grid has a square number of them, such as {max(self.side, 1)**2} or "
                            f"{(self.side + 1)**2}")
        self.net, self.codebook, self.together = net, codebook, work.batch_size
        self.fingerprint = fingerprint(net, codebook.fingerprint if codebook else "")
        self.preprocessing = replace(net.preprocessing, resize="squash", resize_size=None)
        self.device = next(net.parameters()).device
        self.normalize = Normalize(self.preprocessing).to(self.device)
        pixels = torch.zeros(1, 3, *[self.preprocessing.image_size] * 2, dtype=torch.uint8, device=self.device)
        with torch.inference_mode():
            count, self.width = net.get_patch_features(self.normalize(pixels)).shape[1:]
        self.patches = math.isqrt(count)
        if self.side > self.patches:
            raise UserError(f"--regions is {work.regions}, and the tower has {count} patches: ask for at most {count}")
        if codebook is not None and codebook.centres.shape[1] != self.width:
            raise UserError(f"the codebook is of features of width {codebook.centres.shape[1]}, the tower's have {self.width}: "
                            "give the tower that it was made with, or leave --codebook out")
        self.boxes = cell_boxes(self.patches, self.side)

    def prepare(self, sample: Sample) -> Tensor:
        """The picture's pixels."""
        return self.preprocessing.pixels(sample.image())

    @torch.inference_mode()
    def features(self, items: Sequence[Tensor]) -> Tensor:
        """fp32 [B, R, D] on the CPU."""
        states = self.net.get_patch_features(self.normalize(torch.stack(list(items)).to(self.device))).float()
        maps = states.transpose(1, 2).unflatten(2, (self.patches, self.patches))
        return F.adaptive_avg_pool2d(maps, self.side).flatten(2).transpose(1, 2).cpu()

    def find(self, items: Sequence[Tensor]) -> list[Regions]:
        """The cells of each picture."""
        features = self.features(items)
        classes = None if self.codebook is None else self.codebook.probabilities(features).numpy()
        return [Regions(rows, self.boxes, None if classes is None else classes[i]) for i, rows in enumerate(features.numpy())]


def cell_boxes(patches: int, side: int) -> np.ndarray:
    """The boxes of side x side cells over patches x patches, fp32 [side * side, 4], row by row.

    A cell begins in the patch in which its edge lies and ends behind that of the other edge (`adaptive_avg_pool2d`), so that cells overlap
    by a patch where the numbers do not divide.
    """
    low = np.arange(side) * patches // side
    high = -(-(np.arange(side) + 1) * patches // side)
    top, left = (part.ravel() for part in np.meshgrid(low, low, indexing="ij"))
    bottom, right = (part.ravel() for part in np.meshgrid(high, high, indexing="ij"))
    return (np.stack([left, top, right, bottom], axis=1) / patches).astype(np.float32)


@dataclass(frozen=True)
class TorchvisionWork:
    """A detector of torchvision, as plain values."""

    name: str
    regions: int
    batch_size: int = 4

    @property
    def model(self) -> str:
        """For messages."""
        return f"torchvision:{self.name}"

    def open(self, device: str) -> FasterRCNNRegions:
        """Load the detector; no weights are downloaded."""
        return FasterRCNNRegions(self, device)


class FasterRCNNRegions:
    """Proposals of a Faster R-CNN with the features of its box head (Ren et al. 2015; bottom-up attention's way of using them).

    Of a picture, the proposals whose best class that is not the background is most probable are kept, without those that overlap a better
    one.
    """

    def __init__(self, work: TorchvisionWork, device: str) -> None:
        from torchvision.models import detection, get_model, get_model_weights, list_models
        from torchvision.models.detection import FasterRCNN

        known = [name for name in list_models(module=detection) if name.startswith("fasterrcnn")]
        if work.name not in known:
            raise UserError(f"--detector torchvision:{work.name} is unknown, expected one of {', '.join(known)}")
        weights: Any = get_model_weights(work.name).DEFAULT  # type: ignore[attr-defined]
        path = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
        if not path.is_file():
            raise UserError(f"--detector torchvision:{work.name} has no weights here, and none are downloaded: put {path.name} (from "
                            f"{weights.url}) into {path.parent}, or use --detector grid")
        net = get_model(work.name, weights=None, weights_backbone=None)
        assert isinstance(net, FasterRCNN)
        try:
            net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:
            raise UserError(f"{path} does not hold the weights of {work.name} ({' '.join(str(error).split())[:160]})") from None
        self.net, self.regions, self.device, self.together = net.eval().to(device), work.regions, device, work.batch_size
        self.fingerprint = fingerprint(net)

    def prepare(self, sample: Sample) -> Image.Image:
        """The picture."""
        return sample.image()

    @torch.inference_mode()
    def find(self, items: Sequence[Image.Image]) -> list[Regions]:
        """The best regions of each picture, best first."""
        from torchvision.ops import nms

        net = self.net
        images, _ = net.transform([to_tensor(picture).to(self.device) / 255 for picture in items])
        maps: Any = net.backbone(images.tensors)
        maps = {"0": maps} if isinstance(maps, Tensor) else maps
        proposals, _ = net.rpn(images, maps)
        heads: Any = net.roi_heads
        features = heads.box_head(heads.box_roi_pool(maps, proposals, images.image_sizes))
        classes = heads.box_predictor(features)[0].softmax(-1)
        counts = [len(boxes) for boxes in proposals]
        found: list[Regions] = []
        for boxes, rows, chances, (height, width) in zip(proposals, features.split(counts), classes.split(counts), images.image_sizes):
            kept = nms(boxes, chances[:, 1:].amax(1), _OVERLAP)[:self.regions]
            shares = (boxes[kept] / boxes.new_tensor([width, height] * 2)).clamp(0, 1)
            found.append(Regions(*(part.float().cpu().numpy() for part in (rows[kept], shares, chances[kept]))))
        return found


@dataclass(frozen=True)
class FilesWork:
    """Regions made elsewhere, as plain values."""

    folder: str
    regions: int
    batch_size: int = 32

    @property
    def model(self) -> str:
        """For messages."""
        return self.folder

    def open(self, device: str) -> Files:
        """Look whether the folder is there."""
        if not Path(self.folder).is_dir():
            raise UserError(f"--detector {self.folder} is no folder with KEY.npz for every sample KEY: expected grid, torchvision:NAME or "
                            "such a folder")
        return Files(self)


class Files:
    """`DIR/KEY.npz`: at most so many regions of each, the first ones."""

    fingerprint = ""

    def __init__(self, work: FilesWork) -> None:
        self.folder, self.regions, self.together = Path(work.folder), work.regions, work.batch_size

    def prepare(self, sample: Sample) -> Regions:
        """The regions of a sample's file."""
        if "/" in sample.key or sample.key.startswith("."):
            raise sample.bad("its key is no name of a file")
        try:
            return read_regions(self.folder / f"{sample.key}.npz").first(self.regions)
        except BadSample as error:
            raise sample.bad(str(error)) from None

    def find(self, items: Sequence[Regions]) -> list[Regions]:
        """They as they are."""
        return list(items)
