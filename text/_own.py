"""Networks that no other library has: a layout of ours, "polymodal", with our names of weights as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..shared.config import Config
from ..shared.convert import Rename, Rule
from ..shared.family import Format


def own_format(build: type[nn.Module], config: type[Config], model_type: str) -> Format:
    """The layout of a network: config.json with this `model_type`, and safetensors."""
    name = build.__name__
    return Format(
        "polymodal", _same(build),
        recognises=lambda record: record.get("model_type") == model_type and name in record.get("architectures", []),
        read=lambda record, directory: config.from_dict(record, f"{directory}/config.json"),
        write=lambda net: {**net.config.to_dict(), "model_type": model_type, "architectures": [name]},
    )  # fmt: skip


def _same(build: Callable[[Any], nn.Module]) -> Callable[[Any], tuple[Rule, ...]]:
    def rules(config: Any) -> tuple[Rule, ...]:
        with torch.device("meta"):
            return tuple(Rename(name, name) for name in build(config).state_dict())

    return rules
