"""CLIP's configuration: two towers and the space they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Self

from ..shared.config import Config
from ..vision.resnet import ResNetConfig
from .text_tower import Pooling, PretrainedTextConfig

HIGHEST_ID = 2
"""The `eos_token_id` that means "pool at the highest id", as in transformers: OpenAI's files carry it."""


@dataclass(frozen=True, kw_only=True)
class CLIPTextConfig(Config):
    """CLIP's own text tower, in transformers' terms (and with transformers' defaults)."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0
    pad_token_id: int | None = 1
    bos_token_id: int | None = 49406
    eos_token_id: int = 49407
    """The state at the first such token is the text's; 2 means: at the highest id (OpenAI's rule)."""

    IGNORED = frozenset({"projection_dim", "initializer_range", "initializer_factor", "dropout"})


@dataclass(frozen=True, kw_only=True)
class CLIPVisionConfig(Config):
    """CLIP's ViT image tower, in transformers' terms (and with transformers' defaults)."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0

    FIXED = MappingProxyType({"num_channels": (3,)})
    IGNORED = frozenset({"projection_dim", "initializer_range", "initializer_factor", "dropout"})


@dataclass(frozen=True, kw_only=True)
class CLIPConfig(Config):
    """Two towers and the space they share."""

    text_config: CLIPTextConfig | PretrainedTextConfig = field(default_factory=CLIPTextConfig)
    """The text tower; filled in from `text_tower` where that is given."""
    vision_config: CLIPVisionConfig | ResNetConfig = field(default_factory=CLIPVisionConfig)
    """The image tower: a ViT, or with `layers` and `width` a ResNet."""
    projection_dim: int = 512
    """Dimension of the shared space."""
    logit_scale_init_value: float = 2.6592
    text_tower: str | None = None
    """Directory of a trained text encoder to start the text tower from (transformers' layout)."""
    text_pooling: Pooling = "mean"
    """How the states of such an encoder become one."""
    lock_text: bool = False
    """Leave the text tower as it is (dropout off); its projection still learns, unless `lock_text_projection`."""
    lock_text_projection: bool = False
    """Make the text tower's own space the shared one: its projection is the identity and stays so. Needs `projection_dim` = its width."""
    lock_image: bool = False
    """Leave the image tower and its projection as they are (batch statistics included)."""

    IGNORED = frozenset({"initializer_factor", "text_config_dict", "vision_config_dict"})

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], what: str = "config.json") -> Self:
        """Read a config.json of transformers, or one that names a ResNet or a pretrained text tower."""
        record = dict(record)
        for name, own in (("text_config", CLIPTextConfig), ("vision_config", CLIPVisionConfig)):
            part = record.get(name)
            older = record.pop(f"{name}_dict", None)  # transformers lets it override
            if isinstance(part, Mapping) and not {"encoder", "layers"} & set(part):
                record[name] = own.from_dict({**part, **(older or {})}, f"{what}: {name}")
        return super().from_dict(record, what)

    def to_dict(self) -> dict[str, Any]:
        """The keys of config.json; what only concerns training is left out."""
        record = super().to_dict()
        for name in ("text_tower", "text_pooling", "lock_text", "lock_text_projection", "lock_image"):
            record.pop(name)
        for name, kind in (("text_config", "clip_text_model"), ("vision_config", "clip_vision_model")):
            part = getattr(self, name)
            if isinstance(part, Config):
                record[name] = {**part.to_dict(), "model_type": kind, "projection_dim": self.projection_dim}
            else:
                record[name] = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(part).items()}
        return record
