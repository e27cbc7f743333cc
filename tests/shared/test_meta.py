"""Networks that are built without weights, and without drawing them."""

from __future__ import annotations

import polymodal
import pytest
import torch
from polymodal.registry import families
from polymodal.shared.family import Context
from polymodal.shared.meta import UndrawnWeights, without_weights
from polymodal.shared.settings import build_settings
from torch import nn


@pytest.mark.parametrize("name", families())
def test_a_network_without_weights_has_the_shapes_of_one_with_them(name):
    entry = families()[name]
    config = entry.adapt(build_settings(entry.config, next(iter(entry.sizes.values())), name), Context(net_only=True))
    for net in entry.nets:
        with without_weights():
            bare = net.build(config)
        whole = net.build(config)
        assert all(p.is_meta for p in bare.parameters())
        found, expected = ({k: (v.shape, v.dtype) for k, v in made.state_dict().items()} for made in (bare, whole))
        assert found == expected


def test_nothing_is_drawn_in_the_context_and_all_is_behind_it():
    torch.manual_seed(0)
    expected = torch.get_rng_state()
    with UndrawnWeights():
        nn.init.trunc_normal_(nn.Embedding(8, 4).weight)
        nn.Linear(4, 4)
        assert float(torch.empty(1000).normal_(std=1e-3).abs().max()) < 1e-2 and not torch.equal(torch.get_rng_state(), expected)
    torch.manual_seed(0)
    with UndrawnWeights():
        nn.Linear(4, 4)
    assert torch.equal(torch.get_rng_state(), expected)
    assert float(nn.init.constant_(nn.Linear(4, 4).weight, 3).detach().min()) == 3


def test_loading_draws_nothing(tmp_path):
    polymodal.save(polymodal.system("bert", size="tiny").net, tmp_path)
    before = torch.get_rng_state()
    polymodal.load(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
