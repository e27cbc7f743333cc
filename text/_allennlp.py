"""ELMo's files as bilm-tf writes them and AllenNLP reads them: options.json, and weights.hdf5 with TensorFlow's names and orders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..shared.convert import Rule
from ..shared.errors import UserError, raise_problems

OPTIONS, FILE = "options.json", "weights.hdf5"
_NAMES: Mapping[tuple[str, ...], str] = {
    ("lstm", "dim"): "cell_size", ("lstm", "projection_dim"): "hidden_size", ("lstm", "n_layers"): "num_hidden_layers",
    ("lstm", "cell_clip"): "cell_clip", ("lstm", "proj_clip"): "proj_clip", ("lstm", "use_skip_connections"): "use_skip_connections",
    ("char_cnn", "filters"): "filters", ("char_cnn", "n_highway"): "num_highway_layers", ("char_cnn", "activation"): "hidden_act",
    ("char_cnn", "embedding", "dim"): "embedding_size", ("char_cnn", "max_characters_per_token"): "max_characters_per_token",
}
"""Where the fields of our config stand in options.json."""
_CHARACTERS = 262


def read_options(record: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The fields of our config that options.json holds; all must be there."""
    found: dict[str, Any] = {}
    problems: list[str] = []
    for path, name in _NAMES.items():
        value: Any = record
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is None and name not in ("cell_clip", "proj_clip"):
            problems.append(f"{'.'.join(path)} is missing")
        found[name] = 0.0 if value is None else float(value) if name.endswith("_clip") else value
    count = record["char_cnn"].get("n_characters") if isinstance(record["char_cnn"], Mapping) else None
    if count != _CHARACTERS:
        problems.append(f"char_cnn.n_characters is {count}, expected {_CHARACTERS} (261 is for training with bilm-tf: add 1)")
    filters = found["filters"]
    if isinstance(filters, list) and all(isinstance(f, list) and len(f) == 2 and all(type(n) is int for n in f) for f in filters):
        found["filters"] = tuple((width, size) for width, size in filters)
    elif filters is not None:
        problems.append(f"char_cnn.filters is {filters!r}, expected pairs of a width and a number")
    for name, value in found.items():
        expected = {"hidden_act": str, "use_skip_connections": bool, "cell_clip": float, "proj_clip": float}.get(name, int)
        if value is not None and name != "filters" and type(value) is not expected:
            problems.append(f"{name} is {value!r}, expected {expected.__name__}")
    raise_problems(problems, what)
    return found


def write_options(config: Any) -> dict[str, Any]:
    """The contents of options.json."""
    if config.hidden_act not in ("relu", "tanh"):
        raise UserError(f"hidden_act is {config.hidden_act}, and AllenNLP's ELMo has relu and tanh: write it as polymodal")
    record: dict[str, Any] = {}
    for path, name in _NAMES.items():
        place = record
        for key in path[:-1]:
            place = place.setdefault(key, {})
        value = getattr(config, name)
        place[path[-1]] = [list(pair) for pair in value] if name == "filters" else value
    record["char_cnn"]["n_characters"] = _CHARACTERS
    return record


def _swapped(tensor: Tensor) -> Tensor:
    """TensorFlow's order of the gates on dimension 0 (i, g, f, o) for ours (i, f, g, o), and back."""
    i, g, f, o = tensor.chunk(4)
    return torch.cat([i, f, g, o])


@dataclass(frozen=True)
class Gates(Rule):
    """The gates of an LSTM: their kernel [in + D, 4 C] as our weights of the input and of the state, or their bias [4 C] as ours."""

    theirs: str
    ours: tuple[str, ...]
    width: int
    """Of the input, and of the state."""

    @property
    def their_keys(self) -> tuple[str, ...]:
        """The kernel, or the bias."""
        return (self.theirs,)

    @property
    def our_keys(self) -> tuple[str, ...]:
        """Both weights, or the bias."""
        return self.ours

    def read(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Turn the kernel, and order its rows."""
        (tensor,) = tensors
        found = _swapped(tensor.t() if tensor.ndim > 1 else tensor)
        return found.split(self.width, 1) if len(self.ours) > 1 else [found]

    def write(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The inverse."""
        found = _swapped(torch.cat(list(tensors), 1) if len(tensors) > 1 else tensors[0])
        return [found.t() if found.ndim > 1 else found]


@dataclass(frozen=True)
class Passing(Rule):
    """A highway's two maps as one of ours: they let the made part pass by a gate, we the input, so its map has the other sign."""

    theirs: tuple[str, ...]
    ours: str
    width: int

    @property
    def their_keys(self) -> tuple[str, ...]:
        """What is made, and the gate."""
        return self.theirs

    @property
    def our_keys(self) -> tuple[str, ...]:
        """Both."""
        return (self.ours,)

    def read(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Turn, negate the gate, and join."""
        made, gate = (t.t() if t.ndim > 1 else t for t in tensors)
        return [torch.cat([made, -gate])]

    def write(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The inverse."""
        made, gate = tensors[0].split(self.width)
        return [t.t() if t.ndim > 1 else t for t in (made, -gate)]
