"""A text encoder that was trained before, as the text tower of a contrastive system (locked-text tuning and the like).

Zhai et al., "LiT: Zero-Shot Transfer with Locked-image text Tuning", 2021 (https://arxiv.org/abs/2111.07991) locks the
image tower; here either may be locked. Any text family whose trunk is the BERT-shaped `shared.encoder.Encoder` serves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .. import text
from ..shared.attention.mask import on_device
from ..shared.convert import Ignore, Rule, to_ours
from ..shared.encoder import Encoder, EncoderConfig
from ..shared.errors import UserError
from ..shared.family import Family, Net, families_in, named_net
from ..shared.meta import without_weights

Pooling = Literal["mean", "cls"]


@dataclass(frozen=True)
class PretrainedTextConfig:
    """A text tower taken from a text family."""

    encoder: Mapping[str, Any]
    """The encoder's own config.json, `model_type` and `architectures` included."""
    pooling: Pooling = "mean"
    """Mean of the token states (sentence encoders), or the first token's."""

    @property
    def shape(self) -> EncoderConfig:
        """The encoder's config."""
        family, _ = _named(self.encoder, "text tower")
        config = family.config.from_dict(self.encoder, "text tower: encoder")
        if not isinstance(config, EncoderConfig):
            raise UserError(f"text tower: {family.name} has no BERT-shaped encoder; expected BERT or a descendant of it")
        return config

    @property
    def hidden_size(self) -> int:
        """Width of the pooled state."""
        return self.shape.hidden_size

    @property
    def max_position_embeddings(self) -> int:
        """Longest text in tokens."""
        return self.shape.longest_input

    @property
    def vocab_size(self) -> int:
        """Rows of the word table."""
        return self.shape.vocab_size


class PretrainedText(nn.Module):
    """The trunk of a text family with pooling: the same calls as CLIP's own text tower."""

    def __init__(self, config: PretrainedTextConfig) -> None:
        super().__init__()
        self.config = config
        encoder = _trunk(_bare(config).build(config.shape))
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
    table = _bare(config).format("transformers").rules(config.shape)
    return (*(r for r in table if not any(k.startswith("pooler.") for k in r.our_keys)), Ignore(r"(.*\.)?pooler\..*"))


def describe(directory: str, pooling: Pooling) -> PretrainedTextConfig:
    """The config of the text tower in `directory`."""
    record, file = read_config(Path(directory) / "config.json")
    family, net = _named(record, file)
    config = family.config.from_dict(record, file)
    return PretrainedTextConfig({**config.to_dict(), "model_type": family.model_type, "architectures": [net.architecture]}, pooling)


def load_weights(tower: PretrainedText, directory: str) -> None:
    """Fill `tower` from the safetensors file in `directory`: a bare encoder, or one below any head of its family."""
    path = Path(directory)
    record, what = read_config(path / "config.json")
    family, net = _named(record, what)
    config = family.config.from_dict(record, what)
    file = path / "model.safetensors"
    if not file.exists():
        raise UserError(f"text tower {directory}: no model.safetensors; expected a model directory in transformers' format")
    full = net.build(config)
    full.load_state_dict(to_ours(net.format("transformers").rules(config), load_file(file), str(file)), strict=False)
    tower.encoder.load_state_dict({k: v for k, v in _trunk(full).state_dict().items() if not k.startswith("pooler.")})


def read_config(file: Path) -> tuple[dict[str, Any], str]:
    """The contents of an encoder's config.json, and what to call them in a message."""
    if not file.is_file():
        raise UserError(f"text tower {file.parent}: no {file.name} there; expected the directory of a text encoder in transformers' format")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{file} is not JSON ({error})") from None
    if not isinstance(record, dict):
        raise UserError(f"{file} holds {type(record).__name__}, expected an object with model_type and architectures")
    return cast("dict[str, Any]", record), str(file)


def _named(record: Mapping[str, Any], what: str) -> tuple[Family, Net]:
    """The text family and the network that a config.json names."""
    return named_net(record, [family for family, _ in families_in(text)], what)


def _bare(config: PretrainedTextConfig) -> Net:
    """The family's network that is an encoder and nothing more."""
    family, _ = _named(config.encoder, "text tower")
    for net in family.nets:
        with without_weights():
            if isinstance(net.build(config.shape), Encoder):
                return net
    raise UserError(f"text tower: {family.name} has no bare encoder; expected BERT or a descendant of it")


def _trunk(net: nn.Module) -> Encoder:
    trunk = net if isinstance(net, Encoder) else getattr(net, "trunk", None)
    assert isinstance(trunk, Encoder), f"{type(net).__name__} has no encoder, although its config is one's"
    return trunk
