"""Weights on disk: safetensors (one file or several with an index), HDF5 where a format says so, and old pickle files only where they hold
nothing but tensors.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError  # torch.load's way of refusing; nothing is ever unpickled
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...shared.errors import UserError
from ...shared.keys import read_json
from . import hdf5

WEIGHTS = "model.safetensors"


def read_weights(directory: Path, name: str = WEIGHTS) -> tuple[dict[str, Tensor], Path]:
    """The state dict of a model directory, and the file (or index) it came from.

    Looks for `name`, its index of several files, then the pickle file of the same place
    (`pytorch_model.bin` for `model.safetensors`) and its index. HDF5 may have any name that ends as `name` does.
    """
    if name.endswith(hdf5.SUFFIX):
        path = hdf5.find(directory, name)
        return hdf5.read(path), path
    old = name.replace(WEIGHTS, "pytorch_model.bin")
    for candidate in (name, f"{name}.index.json", old, f"{old}.index.json"):
        path = directory / candidate
        if path.is_file():
            return (_read_index(path) if candidate.endswith(".json") else _read_file(path)), path
    raise UserError(f"{directory} holds no weights: expected {name} (or {old})")


def _read_index(path: Path) -> dict[str, Tensor]:
    places = read_json(path).get("weight_map")
    if not isinstance(places, Mapping):
        raise UserError(f"{path} has no weight_map")
    state: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        part = path.parent / str(name)
        if part.parent != path.parent or not part.is_file():
            raise UserError(f"{path} names {name!r}, which is not beside it: copy the whole model directory")
        state |= _read_file(part)
    return state


def _read_file(path: Path) -> dict[str, Tensor]:
    device = torch.get_default_device()  # meta where names and shapes are enough
    if path.suffix == ".safetensors":
        try:
            return {name: tensor.to(device) for name, tensor in load_file(path).items()}  # nothing is read before it is used
        except SafetensorError as error:
            raise UserError(f"{path} is damaged ({error}): copy it again") from None
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} is a pickle file that holds more than tensors or is damaged, and is not opened "
                        f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); expected safetensors: "
                        f"convert it with a program that you trust") from None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path} is not a state dict of tensors; expected safetensors")
    return dict(state)


def write_files(directory: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a directory beside this one, then put each file into its place in one step."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as beside:
        work = Path(beside)
        write(work)
        for path in sorted(p for p in work.rglob("*") if p.is_file()):
            target = directory / path.relative_to(work)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.chmod(0o644)
            path.replace(target)


def write_directory(directory: Path, files: Mapping[str, Mapping[str, Any]], weights: Mapping[str, Tensor], name: str,
                    copies: Mapping[str, Path]) -> None:
    """Write a model directory.

    Args:
        directory: where to; made if it is not there.
        files: JSON files by name.
        weights: the state dict.
        name: of the weights' file.
        copies: files to copy, by name.
    """
    def write(work: Path) -> None:
        for file, record in files.items():
            (work / file).parent.mkdir(parents=True, exist_ok=True)
            (work / file).write_text(json.dumps(record, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
        for file, source in copies.items():
            shutil.copyfile(source, work / file)
        if name.endswith(hdf5.SUFFIX):
            hdf5.write(work / name, weights)
        else:
            save_file(dict(weights), work / name, metadata={"format": "pt"})

    write_files(directory, write)
