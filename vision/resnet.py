"""CLIP's convolutional image tower: a ResNet-D-like network with an attention pool.

Radford, Kim, Hallacy et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021
(https://arxiv.org/abs/2103.00020), section 2.4 and the released code. It differs from torchvision's ResNet
in three places: the stem has three 3x3 convolutions and an average pool; strided convolutions are replaced by
an average pool followed by a convolution of stride 1 (anti-aliasing); and the global average pool is a
single-query multi-head attention whose query is the mean of the positions.

Faithful to the released models, which have four stages. One addition: `layers` may name fewer stages, which makes
less strided towers for small pictures (open_clip has no class for those).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..shared.errors import UserError, raise_problems

EXPANSION = 4


@dataclass(frozen=True)
class ResNetConfig:
    """The shape of the tower, in open_clip's terms."""

    layers: tuple[int, ...] = (3, 4, 6, 3)
    """Bottleneck blocks of each stage; the released models have four stages."""
    width: int = 64
    """Channels after the stem; stage s works at width * 2**s and gives 4 times as many."""
    image_size: int = 224
    """Side of the pictures: even, at least the total stride 4 * 2**(stages - 1)."""
    head_width: int = 64
    """Channels of one head of the attention pool."""

    def __post_init__(self) -> None:
        """Check what the fields must satisfy, alone and together."""
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers or min(self.layers) < 1:
            raise UserError(f"layers is {list(self.layers)}: expected at least one stage of at least one block, such as [3, 4, 6, 3]")
        raise_problems([f"{name} is {getattr(self, name)}, expected at least 1" for name in ("width", "image_size", "head_width")
                        if getattr(self, name) < 1])
        if self.image_size % 2 or self.image_size < self.stride:
            raise UserError(f"image_size is {self.image_size}: expected an even number of at least the ResNet's total stride {self.stride}")
        if self.hidden_size % self.head_width:
            raise UserError(f"the ResNet gives {self.hidden_size} channels, not a multiple of head_width {self.head_width}")
        if self.width % 2:
            raise UserError(f"width {self.width} is odd: the stem starts with half of it")

    @property
    def stride(self) -> int:
        """Pixels of the picture for one position of the last feature map."""
        return 4 * 2 ** (len(self.layers) - 1)

    @property
    def hidden_size(self) -> int:
        """Channels of the last feature map (2048 for RN50)."""
        return self.width * 2 ** (len(self.layers) - 1) * EXPANSION


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a residual; an average pool stands in for the stride."""

    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        out = planes * EXPANSION
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.downsample = _Downsample(channels, out) if stride > 1 or channels != out else None
        nn.init.zeros_(self.bn3.weight)  # every block starts as the identity

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> [B, 4 * planes, H / stride, W / stride]."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(self.pool(out)))
        shortcut = x if self.downsample is None else self.downsample(self.pool(x))
        return F.relu(out + shortcut, inplace=True)


class _Downsample(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 1, bias=False)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class AttentionPool(nn.Module):
    """Attention whose one query is the mean of all positions; pools a feature map into a vector.

    Args:
        config: of the trunk whose feature map it reads.
        output_size: of the vector.
    """

    no_decay: ClassVar[tuple[str, ...]] = ("positional_embedding",)

    def __init__(self, config: ResNetConfig, output_size: int) -> None:
        super().__init__()
        width, positions = config.hidden_size, (config.image_size // config.stride) ** 2
        self.num_heads = width // config.head_width
        self.positional_embedding = nn.Parameter(torch.randn(positions + 1, width) * width**-0.5)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, output_size)
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.c_proj):
            nn.init.normal_(linear.weight, std=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W] -> [B, output_size]."""
        tokens = x.flatten(2).transpose(1, 2)  # [B, H*W, width]
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1) + self.positional_embedding
        q, k, v = self.q_proj(tokens[:, :1]), self.k_proj(tokens), self.v_proj(tokens)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))  # [B, heads, ., head_width]
        pooled = F.scaled_dot_product_attention(q, k, v)  # [B, heads, 1, head_width]
        return self.c_proj(pooled.transpose(1, 2).flatten(1))


class ResNet(nn.Module):
    """The trunk of CLIP-RN50 and its relatives: pictures [B, 3, H, W] to the last feature map; `AttentionPool` is its head."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        stages, channels = [], width
        for number, blocks in enumerate(config.layers):
            planes = width * 2**number
            stage = [Bottleneck(channels if i == 0 else planes * EXPANSION, planes, 2 if number and i == 0 else 1) for i in range(blocks)]
            stages.append(nn.Sequential(*stage))
            channels = planes * EXPANSION
        self.stages = nn.ModuleList(stages)
        self.to(memory_format=torch.channels_last)  # 1.4 to 1.9 times faster on CPU, and what tensor cores want

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        """[B, 3, H, W] -> [B, C, H / stride, W / stride]; the attention pool has positions for one size of pictures alone."""
        if interpolate_pos_encoding:
            raise UserError("a ResNet's attention pool does not interpolate its positions: resize the pictures")
        side = self.config.image_size
        if pixel_values.shape[-2:] != (side, side):
            raise UserError(f"pictures of {pixel_values.shape[-2]}x{pixel_values.shape[-1]} pixels do not fit the attention pool's "
                            f"positions: expected {side}x{side}")
        x = F.relu(self.bn1(self.conv1(pixel_values.contiguous(memory_format=torch.channels_last))), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        x = F.avg_pool2d(F.relu(self.bn3(self.conv3(x)), inplace=True), 2)
        for stage in self.stages:
            x = stage(x)
        return x
