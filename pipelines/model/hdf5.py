"""Weights in HDF5 (`h5py`, an optional package): ELMo's, as bilm-tf and AllenNLP have them. A tensor's name is its path in the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...shared.errors import UserError
from ..base.install import install_line

SUFFIX = ".hdf5"


def find(directory: Path, name: str) -> Path:
    """The file `name` in a directory, or the only one whose name ends with it, such as elmo_2x4096_512_2048cnn_2xhighway_weights.hdf5."""
    if (directory / name).is_file():
        return directory / name
    found = sorted(directory.glob(f"*{name}"))
    if len(found) != 1:
        raise UserError(f"{directory} holds {'no' if not found else len(found)} weights: expected one file called {name}")
    return found[0]


def _h5py() -> Any:
    try:
        import h5py  # pyright: ignore[reportMissingImports]  (an optional package)
    except ImportError:
        raise UserError(f"HDF5 files need the package h5py: {install_line('elmo')}") from None
    return h5py


def read(path: Path) -> dict[str, Tensor]:
    """Every data set of numbers in a file."""
    h5py, found = _h5py(), dict[str, Tensor]()
    device = torch.get_default_device()  # meta where names and shapes are enough

    def keep(name: str, entry: Any) -> None:
        if isinstance(entry, h5py.Dataset):
            if entry.dtype.kind != "f":
                raise UserError(f"{path}: {name} holds {entry.dtype}, expected floating-point numbers")
            found[name] = torch.from_numpy(np.asarray(entry[()], dtype=np.float32)).to(device)

    try:
        with h5py.File(path, "r") as file:
            file.visititems(keep)
    except OSError as error:
        raise UserError(f"{path} is damaged or no HDF5 file ({str(error).splitlines()[0]}): copy it again") from None
    return found


def write(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write tensors, each as a data set; without times, so that the same tensors make the same bytes."""
    with _h5py().File(path, "w", track_order=False) as file:
        for name, tensor in sorted(weights.items()):
            file.create_dataset(name, data=tensor.detach().cpu().float().numpy(), track_times=False)
