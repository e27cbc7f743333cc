"""CLIP's configuration: two towers and the space they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Self

from ..shared.config import Config
from ..vision.resnet import ResNetConfig
from ..vision.tower import TowerConfig, TransformerConfig
from .pretrained_text import Pooling, PretrainedTextConfig

HIGHEST_ID = 2
"""The `eos_token_id` that means "pool at the highest id", as in transformers: OpenAI's files carry it."""


TRANSFORMERS_OWN: Mapping[str, str] = MappingProxyType({
    "projection_dim": "the model's counts", "initializer_range": "about initial weights", "initializer_factor": "about initial weights",
    "dropout": "transformers' CLIP has none",
})
"""Keys of a tower's config in transformers that do not touch its outputs, with the reasons."""


@dataclass(frozen=True, kw_only=True)
class CLIPTextConfig(TransformerConfig):
    """CLIP's own text tower, in transformers' terms (and with transformers' defaults)."""

    vocab_size: int = 49408
    """Rows of the word table."""
    hidden_size: int = 512
    """Width D."""
    intermediate_size: int = 2048
    """Width of the feed-forward layer."""
    num_attention_heads: int = 8
    """Attention heads; they divide `hidden_size`."""
    max_position_embeddings: int = 77
    """Rows of the position table: the longest text."""
    hidden_act: str = "quick_gelu"
    """Activation of the feed-forward layer."""
    attention_dropout: float = 0.0
    """Dropout of the attention weights."""
    pad_token_id: int | None = 1
    """Id of padding."""
    bos_token_id: int | None = 49406
    """Id that a text starts with."""
    eos_token_id: int = 49407
    """The state at the first such token is the text's; 2 means: at the highest id (OpenAI's rule)."""

    AT_LEAST_ONE = (*TransformerConfig.AT_LEAST_ONE, "vocab_size", "max_position_embeddings")
    PROBABILITIES = ("attention_dropout",)
    IGNORED = TRANSFORMERS_OWN


@dataclass(frozen=True, kw_only=True)
class CLIPVisionConfig(TowerConfig):
    """CLIP's ViT image tower, in transformers' terms (and with transformers' defaults)."""

    patch_size: int = 32
    """Side of a patch in pixels."""
    hidden_act: str = "quick_gelu"
    """Activation of the feed-forward layer."""
    attention_dropout: float = 0.0
    """Dropout of the attention weights."""

    PROBABILITIES = ("attention_dropout",)
    IGNORED = TRANSFORMERS_OWN


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
    """Logarithm of the first scale of the cosines: ln(1/0.07)."""
    logit_bias_init_value: float | None = None
    """First value of the bias of the logits, which SigLIP's loss learns (-10 in its paper; open_clip's `init_logit_bias`); None: none."""
    text_tower: str | None = None
    """Directory of a trained text encoder to start the text tower from (transformers' format)."""
    text_pooling: Pooling = "mean"
    """How the states of such an encoder become one."""
    lock_text: bool = False
    """Leave the text tower as it is (dropout off); its projection still learns, unless `lock_text_projection`."""
    lock_text_projection: bool = False
    """Make the text tower's own space the shared one: its projection is the identity and stays so. Needs `projection_dim` = its width."""
    lock_image: bool = False
    """Leave the image tower and its projection as they are (batch statistics included)."""

    IGNORED = MappingProxyType({
        "initializer_factor": "about initial weights", "text_config_dict": "laid over text_config",
        "vision_config_dict": "laid over vision_config",
    })

    AT_LEAST_ONE = ("projection_dim",)

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
        if self.logit_bias_init_value is None:
            record.pop("logit_bias_init_value")
        for name, kind in (("text_config", "clip_text_model"), ("vision_config", "clip_vision_model")):
            part = getattr(self, name)
            if isinstance(part, Config):
                record[name] = {**part.to_dict(), "model_type": kind, "projection_dim": self.projection_dim}
            else:
                record[name] = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(part).items()}
        return record
