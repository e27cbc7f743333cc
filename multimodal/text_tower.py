"""A text encoder that was trained before, as the text tower of a contrastive system (locked-text tuning and the like).

Zhai et al., "LiT: Zero-Shot Transfer with Locked-image text Tuning", 2021 (https://arxiv.org/abs/2111.07991) locks the
image tower; here either may be locked. Any text family whose trunk is the BERT-shaped `shared.encoder.Encoder` serves.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .. import text as text_families
from ..shared.attention.mask import on_device
from ..shared.convert import Ignore, Rule, to_ours
from ..shared.encoder import Encoder
from ..shared.errors import UserError
from ..shared.family import Family, Net

Pooling = Literal["mean", "cls"]


@dataclass(frozen=True)
class PretrainedTextConfig:
    """A text tower taken from a text family."""

    encoder: Mapping[str, Any] = field(default_factory=dict)
    """The encoder's own config.json, `model_type` included."""
    pooling: Pooling = "mean"
    """Mean of the token states (sentence encoders), or the first token's."""

    @property
    def hidden_size(self) -> int:
        """Width of the pooled state."""
        return int(self.encoder["hidden_size"])

    @property
    def max_position_embeddings(self) -> int:
        """Longest text in tokens."""
        return int(self.encoder["max_position_embeddings"])

    @property
    def vocab_size(self) -> int:
        """Rows of the word table."""
        return int(self.encoder["vocab_size"])


class PretrainedText(nn.Module):
    """The trunk of a text family with pooling: the same calls as CLIP's own text tower."""

    def __init__(self, config: PretrainedTextConfig) -> None:
        super().__init__()
        self.config = config
        family, _ = _trunk_net(config.encoder)
        encoder = _trunk(_trunk_net(config.encoder)[1].build(family.config.from_dict(config.encoder)))
        encoder.pooler = None  # its summary is not used, and a parameter without gradient would stop DDP
        self.encoder = encoder

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None,
        *, lengths: tuple[int, ...] | None = None,
    ) -> Tensor:  # fmt: skip
        """Encode padded texts [N, S], or N texts packed in one row [1, T], as vectors [N, D]."""
        hidden = self.encoder(input_ids, attention_mask, position_ids=position_ids, lengths=lengths).last_hidden_state
        if lengths is not None:
            return pool_packed(hidden[0], lengths, self.config.pooling)
        if self.config.pooling == "cls":
            return hidden[:, 0]
        if attention_mask is None:
            return hidden.mean(1)
        keep = attention_mask.to(hidden.dtype)[..., None]
        return (hidden * keep).sum(1) / keep.sum(1).clamp(min=1)


def pool_packed(hidden: Tensor, lengths: Sequence[int], pooling: Pooling) -> Tensor:
    """Pool the documents of a packed row [T, D]: [N, D]."""
    count = on_device(lengths, hidden.device)
    if pooling == "cls":
        return hidden[count.cumsum(0) - count]
    document = torch.repeat_interleave(torch.arange(len(lengths), device=hidden.device), count, output_size=hidden.shape[0])
    return hidden.new_zeros(len(lengths), hidden.shape[-1]).index_add(0, document, hidden) / count[:, None].to(hidden.dtype)


def trunk_rules(config: PretrainedTextConfig) -> tuple[Rule, ...]:
    """The encoder's own rule table (transformers' bare model), without what the tower leaves out."""
    family, net = _trunk_net(config.encoder)
    table = net.format("transformers").rules(family.config.from_dict(config.encoder))
    return (*(r for r in table if not any(k.startswith("pooler.") for k in r.our_keys)), Ignore(r"(.*\.)?pooler\..*"))


def describe(directory: str, pooling: Pooling) -> PretrainedTextConfig:
    """The config of the text tower in `directory`."""
    record = _read_config(Path(directory))
    family, net = _full_net(record, directory)
    config = family.config.from_dict(record, f"{directory}/config.json")
    return PretrainedTextConfig({**config.to_dict(), "model_type": family.model_type, "architectures": [net.architecture]}, pooling)


def load_weights(tower: PretrainedText, directory: str) -> None:
    """Fill `tower` from the safetensors file in `directory`: a bare encoder, or one below any head of its family."""
    path = Path(directory)
    record = _read_config(path)
    family, net = _full_net(record, directory)
    config = family.config.from_dict(record, f"{directory}/config.json")
    file = path / "model.safetensors"
    if not file.exists():
        raise UserError(f"text tower {directory}: no model.safetensors; expected a model directory in transformers' layout")
    full = net.build(config)
    full.load_state_dict(to_ours(net.format("transformers").rules(config), load_file(file), str(file)), strict=False)
    tower.encoder.load_state_dict({k: v for k, v in _trunk(full).state_dict().items() if not k.startswith("pooler.")})


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if not file.is_file():
        raise UserError(f"text tower {path}: no config.json there; expected the directory of a text encoder in transformers' layout")
    try:
        return json.loads(file.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{file} is not JSON ({error})") from None


def _families() -> dict[str, Family]:
    """The text families by `model_type`."""
    found: dict[str, Family] = {}
    for info in pkgutil.iter_modules(text_families.__path__):
        module = importlib.import_module(f"{text_families.__name__}.{info.name}")
        found.update({f.model_type: f for f in getattr(module, "FAMILIES", ()) if f.model_type})
    return found


def _family(record: Mapping[str, Any]) -> Family:
    known = _families()
    kind = record.get("model_type")
    if kind not in known:
        raise UserError(f"text tower: model_type {kind!r} is no text family here, expected one of {', '.join(sorted(known))}")
    return known[kind]


def _full_net(record: Mapping[str, Any], where: str) -> tuple[Family, Net]:
    """The family and the net that the directory's `architectures` names."""
    family = _family(record)
    names = record.get("architectures") or []
    for net in family.nets:
        if net.architecture in names:
            return family, net
    raise UserError(f"text tower {where}: architectures {names} are not known, expected one of {[n.architecture for n in family.nets]}")


def _trunk_net(record: Mapping[str, Any]) -> tuple[Family, Net]:
    """The family and its bare model."""
    family = _family(record)
    for net in family.nets:
        if net.architecture.endswith("Model"):
            return family, net
    raise UserError(f"text tower: {family.name} has no bare encoder")


def _trunk(net: nn.Module) -> Encoder:
    trunk = net if isinstance(net, Encoder) else getattr(net, "trunk", None)
    if not isinstance(trunk, Encoder):
        raise UserError(f"text tower: {type(net).__name__} has no BERT-shaped encoder; expected BERT or a descendant of it")
    return trunk
