"""CLIP's ResNet: equal to open_clip's through `tests/multimodal/test_clip.py`; here its shapes, start and mistakes."""

from __future__ import annotations

import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from polymodal.shared.errors import UserError
from polymodal.vision.resnet import AttentionPool, ResNet, ResNetConfig
from torch import nn


def tower(config, output_size):
    return nn.Sequential(ResNet(config), AttentionPool(config, output_size))


@pytest.mark.parametrize(("layers", "width", "size"), [((1, 2, 1, 1), 8, 64), ((1, 1, 1, 1), 16, 48), ((2, 1, 3, 1), 8, 96)])
def test_as_many_parameters_as_open_clips(layers, width, size):
    ours = tower(ResNetConfig(layers, width, size, 32), 20)
    theirs = ModifiedResNet(list(layers), 20, width, size, width)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert ours(torch.randn(2, 3, size, size)).shape == theirs(torch.randn(2, 3, size, size)).shape == (2, 20)


def test_a_fresh_block_is_the_identity():
    net = ResNet(ResNetConfig((2, 1, 1, 1), 8, 32, 32)).eval()
    x = torch.randn(2, 32, 6, 6).relu()
    assert torch.equal(net.stages[0][1](x), x)


def test_fewer_stages_keep_a_larger_map():
    config = ResNetConfig((1, 1, 1), 8, 48, 32)
    assert (config.stride, config.hidden_size) == (16, 128)
    trunk, head = net = tower(config, 10)
    assert trunk(torch.randn(1, 3, 48, 48)).shape == (1, 128, 3, 3) and head.positional_embedding.shape == (10, 128)
    assert net(torch.randn(2, 3, 48, 48)).shape == (2, 10)


@pytest.mark.parametrize(("settings", "message"), [
    ({"layers": ()}, "at least one stage"), ({"image_size": 16}, "total stride"), ({"image_size": 33}, "even"),
    ({"head_width": 48}, "head_width"), ({"width": 9, "head_width": 32}, "odd"), ({"head_width": 0}, "head_width is 0"),
    ({"layers": (1, 0)}, "at least one block"), ({"width": -2}, "width is -2"), ({"image_size": 0}, "image_size is 0"),
])  # fmt: skip
def test_impossible_shapes(settings, message):
    with pytest.raises(UserError, match=message):
        ResNetConfig(**settings)


def test_pictures_of_another_size():
    net = ResNet(ResNetConfig((1, 1, 1, 1), 8, 32, 32))
    with pytest.raises(UserError, match="expected 32x32"):
        net(torch.zeros(1, 3, 64, 64))
    with pytest.raises(UserError, match="does not interpolate"):
        net(torch.zeros(1, 3, 64, 64), True)
