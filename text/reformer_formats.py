"""The names of Reformer's weights in transformers' files."""

from __future__ import annotations

from ..shared.convert import Alias, Ignore, Rename, Rule, affine, fused, prefixed
from .reformer_config import ReformerConfig


def trunk_rules(config: ReformerConfig) -> tuple[Rule, ...]:
    """The keys of `ReformerModel`."""
    position = "embeddings.position_embeddings."
    if config.axial_pos_embds:
        positions: tuple[Rule, ...] = tuple(Rename(f"{position}weights.{n}", f"embed.position.weights.{n}") for n in range(2))
    else:
        positions = (Rename(f"{position}embedding.weight", "embed.position.weight"),)

    def layer(number: int, kind: str) -> tuple[Rule, ...]:
        theirs, ours = f"encoder.layers.{number}.", f"layers.{number}."
        parts = ("query_key", "value") if kind == "lsh" else ("query", "key", "value")
        return (
            *affine(f"{theirs}attention.layer_norm", f"{ours}attention_residual.norm"),
            *fused(tuple(f"{theirs}attention.self_attention.{part}" for part in parts), f"{ours}attention.qkv", bias=False),
            Rename(f"{theirs}attention.output.dense.weight", f"{ours}attention.out.weight"),
            *affine(f"{theirs}feed_forward.layer_norm", f"{ours}feed_forward_residual.norm"),
            *affine(f"{theirs}feed_forward.dense.dense", f"{ours}feed_forward.up"),
            *affine(f"{theirs}feed_forward.output.dense", f"{ours}feed_forward.down"),
        )

    of_layers = (rule for number, kind in enumerate(config.attn_layers) for rule in layer(number, kind))
    return (Rename("embeddings.word_embeddings.weight", "embed.word.weight"), *positions, *of_layers, *affine("encoder.layer_norm", "norm"))


BUFFERS = Ignore(r"(reformer\.)?encoder\.layers\.\d+\.attention\.self_attention\.(self_)?mask_value_float(16|32)")
"""What older files hold beside the weights."""


def rules_below(config: ReformerConfig) -> tuple[Rule, ...]:
    """The trunk, as it lies below a head."""
    return (*prefixed(trunk_rules(config), "reformer.", "trunk."), BUFFERS)


HEAD = (Rename("lm_head.decoder.weight", "head.weight"), Rename("lm_head.bias", "head.bias"),
         Alias("lm_head.decoder.bias", "lm_head.bias"))
