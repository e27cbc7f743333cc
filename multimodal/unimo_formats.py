"""The names of UNIMO's weights on disk: RoBERTa's for what it has, and these for the rest. (The published code has Paddle's, by number.)"""

from __future__ import annotations

from ..shared.convert import Alias, Rename, Rule, affine, prefixed
from ..shared.encoder import LEGACY, EncoderConfig, encoder_rules
from ..text.masking import head_rules


def text_rules(config: EncoderConfig) -> tuple[Rule, ...]:
    """The trunk as far as texts go."""
    return (*prefixed(encoder_rules(config, pooler=False), "unimo.", "trunk."), *LEGACY)


def trunk_rules(config: EncoderConfig, pooler: bool = True) -> tuple[Rule, ...]:
    """The trunk."""
    names = {"features": "features", "location": "location", "LayerNorm": "norm"}
    return (
        *text_rules(config),
        *(rule for theirs, ours in names.items() for rule in affine(f"unimo.image_embeddings.{theirs}", f"trunk.regions.{ours}")),
        *(rule for name in ("text_pooler", "picture_pooler") if pooler for rule in affine(f"unimo.{name}", f"trunk.{name}")),
    )


def with_head() -> tuple[Rule, ...]:
    """The language-model head."""
    return head_rules("lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "lm_head.decoder", "unimo.embeddings.word_embeddings.weight")


def with_parts(*names: str) -> tuple[Rule, ...]:
    """Layers that have one name on both sides; by default the other heads of pretraining."""
    if names:
        return tuple(rule for name in names for rule in affine(name, name))
    return (
        *with_parts("region_regression.dense", "region_regression.norm", "region_classifier.dense", "region_classifier.norm",
                    "region_classifier.classes", "match"),
        Rename("region_regression.bias", "region_regression.bias"),
        Alias("region_regression.weight", "unimo.image_embeddings.features.weight"),
    )
