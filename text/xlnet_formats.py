"""The names of XLNet's weights in transformers' files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..shared.convert import Alias, Fuse, Rename, Reshape, Rule, Tied, affine, layers, prefixed
from .xlnet_config import XLNetConfig


@dataclass(frozen=True)
class Heads(Fuse):
    """Projections of theirs, [D, H, d] each, as one matrix of ours, [H d, D] each."""

    heads: int = 1

    def read(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Put the heads side by side, and the projections below each other."""
        return super().read([tensor.flatten(1).T for tensor in tensors])

    def write(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Cut them apart again."""
        return [part.T.unflatten(1, (self.heads, -1)) for part in super().write(tensors)]


def trunk_rules(config: XLNetConfig) -> tuple[Rule, ...]:
    """The keys of `XLNetModel`; their projections are [D, H, d], one for each of q, k and v."""
    their, our = "layer.{i}.rel_attn", "layers.{i}.attention"
    width, heads = config.d_model, config.n_head
    layer = (
        Heads(tuple(f"{their}.{n}" for n in "qkv"), f"{our}.qkv.weight", heads=heads),
        Heads((f"{their}.r",), f"{our}.r.weight", heads=heads),
        Reshape(f"{their}.o", f"{our}.out.weight", their_shape=(width, heads, width // heads), our_shape=(width, width)),
        Rename(f"{their}.r_w_bias", f"{our}.content_bias"),
        Rename(f"{their}.r_r_bias", f"{our}.position_bias"),
        Rename(f"{their}.r_s_bias", f"{our}.segment_bias"),
        Rename(f"{their}.seg_embed", f"{our}.segments"),
        *affine(f"{their}.layer_norm", "layers.{i}.attention_residual.norm"),
        *affine("layer.{i}.ff.layer_1", "layers.{i}.feed_forward.up"),
        *affine("layer.{i}.ff.layer_2", "layers.{i}.feed_forward.down"),
        *affine("layer.{i}.ff.layer_norm", "layers.{i}.feed_forward_residual.norm"),
    )
    return (Rename("word_embedding.weight", "embed.weight"), Rename("mask_emb", "mask"), *layers(config.n_layer, layer))


def head_rules(config: XLNetConfig) -> tuple[Rule, ...]:
    """The language model's head."""
    if config.tie_word_embeddings:
        weight = (Alias("lm_loss.weight", "transformer.word_embedding.weight"), Tied("head.weight", "trunk.embed.weight"))
    else:
        weight = (Rename("lm_loss.weight", "head.weight"),)
    return (Rename("lm_loss.bias", "head.bias"), *weight)


def rules_below(config: XLNetConfig) -> tuple[Rule, ...]:
    """The trunk, as it lies below a head."""
    return prefixed(trunk_rules(config), "transformer.", "trunk.")
