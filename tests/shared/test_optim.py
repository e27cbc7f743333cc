from __future__ import annotations

import pytest
import torch
from polymodal.shared.errors import UserError
from polymodal.shared.optim import OptimSettings, build_optimizer, parameter_groups, set_learning_rate
from torch import nn

NAMES = ("adamw", "adafactor", "lamb", "muon", "sgd", "adagrad")


class Model(nn.Module):
    no_decay = ("position", "special.*")

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(7, 4)
        self.position = nn.Embedding(5, 4)
        self.layer = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.special = nn.Linear(4, 4, bias=False)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        return self.head(self.special(self.norm(self.layer(self.table(ids) + self.position(ids % 5)))))


def _names(model, parameters):
    by_id = {id(p): n for n, p in model.named_parameters()}
    return [by_id[id(p)] for p in parameters]


def test_decay_groups_by_rule():
    model = Model()
    groups = parameter_groups(model, OptimSettings(weight_decay=0.3))
    decayed = next(g for g in groups if g["weight_decay"] == 0.3)
    rest = next(g for g in groups if g["weight_decay"] == 0.0)
    assert _names(model, decayed["params"]) == ["table.weight", "layer.weight"]
    assert _names(model, rest["params"]) == ["position.weight", "layer.bias", "norm.weight", "norm.bias", "special.weight"]


def test_muon_orthogonalises_hidden_matrices_only():
    model = Model()
    groups = parameter_groups(model, OptimSettings(name="muon"))
    muon = [n for g in groups if not g.get("use_fallback") for n in _names(model, g["params"])]
    assert sorted(muon) == ["layer.weight", "special.weight"]
    optimizer = build_optimizer(model, OptimSettings(name="muon", lr=0.1, weight_decay=0.0))
    before = model.layer.weight.detach().clone()
    model(torch.arange(7)).pow(2).sum().backward()
    optimizer.step()
    # the norm after the layer leaves a gradient of rank 3; orthogonalised, its singular values are nearly equal
    values = torch.linalg.svdvals(model.layer.weight.detach() - before)[:3]
    assert values.max() / values.min() < 1.5
    gradient = torch.linalg.svdvals(model.layer.weight.grad)[:3]
    assert gradient.max() / gradient.min() > 1.5


def test_a_no_decay_name_that_matches_nothing_is_a_defect():
    model = Model()
    model.no_decay = ("positions",)
    with pytest.raises(AssertionError, match="positions"):
        parameter_groups(model, OptimSettings())


def test_nothing_to_train():
    with pytest.raises(UserError, match="every parameter is frozen"):
        build_optimizer(Model().requires_grad_(False), OptimSettings())


@pytest.mark.parametrize("name", NAMES)
def test_each_optimizer_learns_and_obeys_the_learning_rate(name):
    model = Model()
    optimizer = build_optimizer(model, OptimSettings(name=name, lr=0.02, weight_decay=0.01))
    ids = torch.arange(7)

    def update():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(ids), ids)
        loss.backward()
        optimizer.step()
        return loss.item()

    first = update()
    for _ in range(60):
        last = update()
    assert last < 0.9 * first
    set_learning_rate(optimizer, 0.0)
    before = [p.detach().clone() for p in model.parameters()]
    update()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


@pytest.mark.parametrize(("settings", "message"), [({"lr": 0}, "lr is 0"), ({"betas": (0.9, 1.0)}, "betas"), ({"clip": 0.0}, "clip"),
                                                   ({"nesterov": True}, "nesterov"), ({"momentum": 1.0}, "momentum")])
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        OptimSettings(**settings)
