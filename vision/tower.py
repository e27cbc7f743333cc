"""The image Transformer that ViT, MAE, CLIP and their relatives share.

    picture                [B, 3, H, W]
      | cut into P patches (MAE leaves most of them out), each through one linear layer
    patches                [B, P, D]
      | class token in front, positions added, learned or fixed
    tokens                 [B, 1 + P, D]
      | pre-norm blocks; a norm before the first (CLIP) or after the last (ViT)
    states                 [B, 1 + P, D]

A family says what its blocks are made of; its heads read the states.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..shared.attention import Attention
from ..shared.attention.mask import Mask
from ..shared.block import Block, FeedForward, LayerNorm
from ..shared.config import Config
from ..shared.convert import Rename, Reshape, Rule, affine, fused
from ..shared.embed import PatchEmbedding, chosen_rows
from ..shared.errors import UserError
from ..shared.keys import shown
from ..shared.stack import Stack


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(Config):
    """The shape of a stack of pre-norm blocks, in transformers' terms."""

    hidden_size: int = 768
    """Width D."""
    num_hidden_layers: int = 12
    """Blocks."""
    num_attention_heads: int = 12
    """Attention heads; they divide `hidden_size`."""
    intermediate_size: int = 3072
    """Width of the feed-forward layer."""
    hidden_act: str = "gelu"
    """Activation of the feed-forward layer."""
    layer_norm_eps: float = 1e-5
    """Epsilon of every layer norm."""

    AT_LEAST_ONE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    NOT_NEGATIVE = ("layer_norm_eps",)
    ACTIVATION = "hidden_act"

    def problems(self) -> list[str]:
        """What is wrong with the fields, alone and together."""
        found = super().problems()
        if self.num_attention_heads > 0 and self.hidden_size % self.num_attention_heads:
            found.append(f"num_attention_heads {self.num_attention_heads} does not divide hidden_size {self.hidden_size}")
        return found


@dataclass(frozen=True, kw_only=True)
class TowerConfig(TransformerConfig):
    """The shape of an image tower, in transformers' terms."""

    image_size: int = 224
    """Side of the square pictures in pixels; `patch_size` divides it."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    num_channels: int = 3
    """Colours: red, green and blue."""

    AT_LEAST_ONE = (*TransformerConfig.AT_LEAST_ONE, "image_size", "patch_size")

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], what: str = "config.json") -> Self:
        """Read a config.json, where a size is a number or a square [height, width]."""
        sides = {key: square_side(record[key], f"{what}: {key}") for key in ("image_size", "patch_size") if key in record}
        return super().from_dict({**record, **sides}, what)

    def problems(self) -> list[str]:
        """What is wrong with the fields."""
        found = super().problems()
        if self.patch_size > 0 and self.image_size % self.patch_size:
            found.append(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.num_channels != 3:
            found.append(f"num_channels is {self.num_channels}, expected 3")
        return found


def square_side(size: Any, what: str) -> int:
    """The side of a square that another library gives as one number or as [height, width]."""
    sides = list(cast("list[Any]", size)) if isinstance(size, (list, tuple)) else [size]
    if len(set(map(str, sides))) != 1 or len(sides) > 2 or isinstance(sides[0], bool) or not isinstance(sides[0], int):
        raise UserError(f"{what} is {shown(size)}, expected a number, or a square [height, width]")
    return sides[0]


class ImageEmbedding(nn.Module):
    """Patches, a class token in front of them, and positions for both.

    Args:
        image_size: side of the pictures in pixels, a multiple of `patch_size`.
        patch_size: side of a patch in pixels.
        hidden_size: D.
        bias: whether the linear layer of the patches has a bias.
        dropout: probability after the sum.
        learned_positions: whether the positions are trained; else they are `sine_positions`, saved with the weights.
    """

    def __init__(self, image_size: int, patch_size: int, hidden_size: int, *, bias: bool = True, dropout: float = 0.0,
                 learned_positions: bool = True) -> None:  # fmt: skip
        super().__init__()
        self.patch_size = patch_size
        self.grid = image_size // patch_size
        self.patches = PatchEmbedding(patch_size, hidden_size, bias=bias)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, hidden_size))
        self.position_embeddings: Tensor
        if learned_positions:
            self.position_embeddings = nn.Parameter(torch.zeros(1, self.grid**2 + 1, hidden_size))
        else:
            self.register_buffer("position_embeddings", sine_positions(self.grid, hidden_size))
        self.no_decay = ("cls_token", "position_embeddings") if learned_positions else ("cls_token",)
        self.dropout = nn.Dropout(dropout)

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False, *, keep: Tensor | None = None) -> Tensor:
        """Make the tokens of pictures.

        Args:
            pixel_values: [B, 3, H, W].
            interpolate_pos_encoding: resample the positions, as other sizes than the config's need it.
            keep: int64 [B, K], numbers of patches in any order: no others become tokens. None for all, in their order.

        Returns:
            [B, 1 + K, D].
        """
        height, width = (side // self.patch_size for side in pixel_values.shape[-2:])
        positions = self.position_embeddings
        if interpolate_pos_encoding:
            positions = interpolate_positions(positions, (height, width))
        elif tuple(pixel_values.shape[-2:]) != (self.grid * self.patch_size,) * 2:
            side = self.grid * self.patch_size
            raise UserError(f"pictures of {pixel_values.shape[-2]}x{pixel_values.shape[-1]} pixels, the model was made for {side}x{side}: "
                            "resize them or pass interpolate_pos_encoding=True")
        if keep is not None:
            kept = chosen_rows(positions[:, 1:].expand(len(keep), -1, -1), keep)
            positions = torch.cat([positions[:, :1].expand(len(keep), -1, -1), kept], dim=1)
        patches = self.patches(pixel_values, keep)
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        return self.dropout(tokens + positions)


def sine_positions(side: int, hidden_size: int) -> Tensor:
    """Fixed positions of a class token and a square grid: [1, 1 + side^2, D], zeros for the class token.

    The first half of a row depends on the patch's column alone, the second half on its row: sines, then cosines, of the number times
    10000^(-4 i / D). That order is MAE's own code's (https://arxiv.org/abs/2111.06377), on which its published weights depend.
    """
    rate = 10000.0 ** -(torch.arange(hidden_size // 4, dtype=torch.float64) / (hidden_size // 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * rate
    line = torch.cat([angle.sin(), angle.cos()], dim=1)  # [side, D / 2]
    rows, columns = line[:, None].expand(side, side, -1), line[None].expand(side, side, -1)
    table = torch.cat([columns, rows], dim=-1).reshape(side * side, hidden_size)
    return torch.cat([table.new_zeros(1, hidden_size), table]).float()[None]


def interpolate_positions(positions: Tensor, grid: tuple[int, int], *, antialias: bool = False) -> Tensor:
    """Positions [1, 1 + N, D] of a square grid, resampled for another `grid`: [1, 1 + h * w, D].

    Bicubic, the class token's row kept. transformers does not antialias, timm does; the original's scipy zoom is
    bilinear. In float32, whatever the table's type.
    """
    first, table = positions[:, :1], positions[:, 1:]
    side = math.isqrt(table.shape[1])
    if (side, side) == grid:
        return positions
    table = table.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    table = F.interpolate(table, size=grid, mode="bicubic", align_corners=False, antialias=antialias)
    return torch.cat([first, table.permute(0, 2, 3, 1).flatten(1, 2).to(first.dtype)], dim=1)


def pre_norm_stack(
    config: TransformerConfig, *, final_norm: bool, qkv_bias: bool = True, dropout: float = 0.0, attention_dropout: float = 0.0,
    drop_path: float = 0.0,
) -> Stack:  # fmt: skip
    """The pre-norm blocks of ViT, of MAE's encoder and decoder, and of both CLIP towers.

    Args:
        config: their shape.
        final_norm: whether a norm follows the last block.
        qkv_bias: whether queries, keys and values have biases.
        dropout: probability before each residual sum.
        attention_dropout: probability for the attention weights.
        drop_path: probability of leaving a part of the last block out (stochastic depth); it rises evenly from 0 in the first block.
    """
    c = config

    def norm() -> nn.Module:
        return LayerNorm(c.hidden_size, eps=c.layer_norm_eps)

    blocks: list[Block] = []
    for number in range(c.num_hidden_layers):
        depth = number / max(1, c.num_hidden_layers - 1)
        attention = Attention(c.hidden_size, c.num_attention_heads, dropout=attention_dropout)
        if not qkv_bias:
            attention.qkv = nn.Linear(c.hidden_size, 3 * c.hidden_size, bias=False)
        feed_forward = FeedForward(c.hidden_size, c.intermediate_size, c.hidden_act)
        blocks.append(Block(attention, feed_forward, norm=norm, order="pre", dropout=dropout, drop_path=depth * drop_path))
    return Stack(blocks, final_norm=norm() if final_norm else None)


class ImageTower(nn.Module):
    """A picture becomes tokens, and blocks read them.

    Args:
        embed: makes the tokens.
        stack: reads them.
        pre_norm: stands between the two; None for none.
    """

    def __init__(self, embed: ImageEmbedding, stack: Stack, *, pre_norm: nn.Module | None = None) -> None:
        super().__init__()
        self.embed = embed
        self.pre_norm = pre_norm
        self.stack = stack

    def forward(
        self, pixel_values: Tensor, interpolate_pos_encoding: bool = False, *, keep: Tensor | None = None,
        hidden_states: list[Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """Read normalised pictures.

        Args:
            pixel_values: [B, 3, H, W].
            interpolate_pos_encoding: resample the positions for pictures of another size than the config's.
            keep: int64 [B, K], the patches to read; by default all.
            hidden_states: a list that receives the blocks' input and every block's output.

        Returns:
            [B, 1 + K, D], the class token first.
        """
        tokens = self.embed(pixel_values, interpolate_pos_encoding, keep=keep)
        if self.pre_norm is not None:
            tokens = self.pre_norm(tokens)
        return self.stack(tokens, Mask(), hidden_states=hidden_states)


class PatchStates(nn.Module):
    """A network with an `ImageTower` as its trunk, whose states of single patches can be had."""

    trunk: ImageTower

    def get_patch_features(self, pixel_values: Tensor) -> Tensor:
        """States of all patches of normalised pictures [B, 3, H, W], row by row: [B, P, D]."""
        return self.trunk(pixel_values)[:, 1:]


# ------------------------------------------------------------------------------------ names of the references


def patch_rule(theirs: str, ours: str, patch_size: int) -> Rule:
    """A patch convolution's weight [D, 3, p, p] as our linear map's [D, 3 * p * p]."""
    return Reshape(theirs, ours, their_shape=(-1, 3, patch_size, patch_size), our_shape=(-1, 3 * patch_size**2))


def block_rules(theirs: Mapping[str, str], prefix: str, ours: str, *, qkv_bias: bool = True) -> tuple[Rule, ...]:
    """The names of one pre-norm block.

    Args:
        theirs: what the reference calls norm1, q, k, v (or qkv, up to `weight` and `bias`), out, norm2, up and down.
        prefix: stands before each of these names.
        ours: our name of the block.
        qkv_bias: whether queries, keys and values have biases.
    """
    names = {part: prefix + name for part, name in theirs.items()}
    if "qkv" in names:
        parts = ("weight", "bias") if qkv_bias else ("weight",)
        qkv: tuple[Rule, ...] = tuple(Rename(names["qkv"] + p, f"{ours}.attention.qkv.{p}") for p in parts)
    else:
        qkv = fused((names["q"], names["k"], names["v"]), f"{ours}.attention.qkv", bias=qkv_bias)
    return (
        *affine(names["norm1"], f"{ours}.attention_residual.norm"),
        *qkv,
        *affine(names["out"], f"{ours}.attention.out"),
        *affine(names["norm2"], f"{ours}.feed_forward_residual.norm"),
        *affine(names["up"], f"{ours}.feed_forward.up"),
        *affine(names["down"], f"{ours}.feed_forward.down"),
    )
