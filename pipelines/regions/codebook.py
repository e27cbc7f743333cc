"""Classes for what no detector has named: a codebook of k means, made over the regions of a data set.

A class is the neighbourhood of a centre. It has no name, and its number means nothing beyond the codebook; so data sets that are used
together need the same one (`--codebook`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ...shared.errors import UserError
from ..base.files import write_atomic

FILE = "codebook.safetensors"
_ROUNDS = 25


@dataclass(frozen=True)
class Codebook:
    """Centres of classes."""

    centres: Tensor
    """fp32 [K, D]"""
    temperature: float
    """The squared distance over which a class becomes 1/e as probable as a nearer one."""

    def probabilities(self, features: Tensor) -> Tensor:
        """The classes of regions [..., D]: [..., 1 + K], softmax of negative squared distances; class 0, the background, has none."""
        distances = torch.cdist(features.float(), self.centres).square()
        return torch.nn.functional.pad((-distances / self.temperature).softmax(-1), (1, 0))

    @property
    def fingerprint(self) -> str:
        """Hash of its numbers."""
        return hashlib.sha256(self.centres.numpy().astype("<f4").tobytes() + repr(self.temperature).encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write it."""
        write_atomic(path, save({"centres": self.centres.contiguous()}, {"temperature": repr(self.temperature)}))

    @classmethod
    def load(cls, path: Path) -> Codebook:
        """Read it, from the file or from the data set that it lies in."""
        file = path / FILE if path.is_dir() else path
        try:
            with safe_open(file, "pt") as opened:
                return cls(opened.get_tensor("centres"), float((opened.metadata() or {})["temperature"]))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"--codebook {path}: no codebook there ({error}); expected {FILE}, as `polymodal regions` writes it beside "
                            "its shards") from None


def fit(features: Tensor, count: int, seed: int = 0) -> Codebook:
    """The k means of regions [N, D] (Lloyd 1982, with the starts of Arthur and Vassilvitskii 2007).

    The temperature is the mean by which the second nearest centre is farther away than the nearest one, in squared distance: then the
    second class of a region is 1/e as probable as its first, on the whole.
    """
    x = features.float()
    if len(x) < count:
        raise UserError(f"--classes {count} needs as many regions to begin with, and the pictures have {len(x)}: ask for fewer classes")
    draws = torch.Generator().manual_seed(seed)
    centres = x[torch.randint(len(x), (1,), generator=draws)]
    nearest = torch.cdist(x, centres).square()[:, 0]
    for _ in range(count - 1):  # a region becomes a centre as often as it is far from those that are there
        chosen = x[torch.multinomial(nearest.clamp(min=1e-30), 1, generator=draws)]
        nearest = torch.minimum(nearest, torch.cdist(x, chosen).square()[:, 0])
        centres = torch.cat([centres, chosen])
    for _ in range(_ROUNDS):
        owner = torch.cdist(x, centres).argmin(1)
        sizes = torch.bincount(owner, minlength=count)
        sums = torch.zeros_like(centres).index_add_(0, owner, x)
        moved = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    if count == 1:
        return Codebook(centres, 1.0)
    two = torch.cdist(x, centres).square().topk(2, largest=False).values
    return Codebook(centres, max(float((two[:, 1] - two[:, 0]).mean()), 1e-12))
