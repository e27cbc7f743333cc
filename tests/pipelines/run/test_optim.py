from __future__ import annotations

import polymodal
import pytest
import torch
from polymodal.pipelines.run.optim import OptimSettings, build_optimizer, freeze, parameter_groups, set_learning_rate
from polymodal.shared.attention import Attention
from polymodal.shared.attention.position import BucketBias
from polymodal.shared.block import Block, FeedForward
from polymodal.shared.embed import TokenEmbedding
from polymodal.shared.errors import UserError
from polymodal.shared.stack import Stack
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


def test_a_part_says_what_of_it_does_not_decay_wherever_it_stands():
    """Class tokens, position tables and Transformer-XL's u and v, also where layers share them."""
    expected = {
        "vit": {"net.trunk.embed.cls_token", "net.trunk.embed.position_embeddings"},
        "clip": {"net.text_trunk.embed.position.weight", "net.image_trunk.embed.cls_token", "net.image_trunk.embed.position_embeddings"},
        "transformer_xl": {"net.trunk.content_bias", "net.trunk.position_bias"},
        "bert": set(),
    }
    for name, tables in expected.items():
        system = polymodal.system(name, size="tiny")
        group = next(g for g in parameter_groups(system, OptimSettings()) if not g["weight_decay"])
        assert {n for n in _names(system, group["params"]) if system.get_parameter(n).ndim >= 2} == tables
    resnet = polymodal.system("clip", size="tiny-resnet")
    group = next(g for g in parameter_groups(resnet, OptimSettings()) if not g["weight_decay"])
    assert "net.image_head.positional_embedding" in _names(resnet, group["params"])
    untied = polymodal.system("transformer_xl", size="tiny", untie_r=True)
    group = next(g for g in parameter_groups(untied, OptimSettings()) if not g["weight_decay"])
    assert "net.trunk.layers.1.attention.content_bias" in _names(untied, group["params"])


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_lars_is_that_of_maes_code(decay):
    """Its util/lars.py: weights and gradients of matrices are compared, vectors take plain steps; decay is part of the gradient."""
    torch.manual_seed(0)
    net = nn.Linear(5, 3)
    optimizer = build_optimizer(net, OptimSettings(name="lars", lr=4.0, weight_decay=decay))
    weights = {n: p.detach().clone() for n, p in net.named_parameters()}
    moments = {n: torch.zeros_like(p) for n, p in weights.items()}
    for _ in range(4):
        optimizer.zero_grad()
        net(torch.randn(8, 5)).pow(2).mean().backward()
        for name, p in net.named_parameters():
            step = p.grad.clone()
            if p.ndim > 1:
                step += decay * weights[name]
                step *= 0.001 * weights[name].norm() / step.norm()
            moments[name] = 0.9 * moments[name] + step
            weights[name] -= 4.0 * moments[name]
        optimizer.step()
    if not decay:  # with decay, timm compares with the sum of both norms, as the paper does, instead of the norm of the sum
        for name, p in net.named_parameters():
            torch.testing.assert_close(p.detach(), weights[name], rtol=1e-5, atol=1e-6)
    else:
        assert (net.weight - weights["weight"]).norm() < 0.01 * weights["weight"].norm()


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


# --- fine-tuning: layers


def tower(layers):
    return Stack([Block(Attention(8, 2), FeedForward(8, 16, "gelu"), norm=lambda: nn.LayerNorm(8), order="pre") for _ in range(layers)],
                 final_norm=nn.LayerNorm(8))


class TwoStacks(nn.Module):
    """An encoder-decoder in small: a shared table, two stacks of different depth, a bias table, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Module()
        self.trunk.embed = TokenEmbedding(11, 8)
        self.trunk.encoder, self.trunk.decoder = tower(3), tower(2)
        self.trunk.encoder.position_bias = BucketBias(2)
        self.head = nn.Linear(8, 11)


def rates(model, settings):
    optimizer = build_optimizer(model, settings)
    set_learning_rate(optimizer, settings.lr)
    names = {id(p): n for n, p in model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("name", NAMES)
def test_layer_decay_gives_every_layer_its_rate(name):
    model = TwoStacks()
    found = rates(model, OptimSettings(name=name, lr=1.0, layer_decay=0.5))
    assert set(found) == {n for n, _ in model.named_parameters()}
    for key, rate in found.items():
        part = key.split(".")
        if part[1] in ("embed",) or part[2:3] == ["position_bias"]:
            expected = 0.5**4  # below the three blocks of the encoder
        elif part[2:3] == ["blocks"]:
            expected = 0.5 ** ({"encoder": 3, "decoder": 2}[part[1]] - int(part[3]))
        else:
            expected = 1.0  # final norms and the head
        assert rate == pytest.approx(expected), key
    assert len(set(rates(model, OptimSettings(name=name, lr=1.0)).values())) == 1


@pytest.mark.parametrize("size", ["bert", "vit", "clip", "xlnet", "transformer_xl"])
def test_layer_decay_finds_the_layers_of_real_networks(size):
    """Whether a `Stack` has the blocks, or the network itself."""
    small = {"bert": {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 20},
             "vit": {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}, "clip": {},
             "xlnet": {"d_model": 8, "n_head": 2, "d_inner": 16, "vocab_size": 20},
             "transformer_xl": {"d_model": 8, "d_embed": 8, "n_head": 2, "d_head": 4, "d_inner": 16, "vocab_size": 20, "n_layer": 2}}[size]
    system = polymodal.system(size, size="tiny", **small)
    found = rates(system, OptimSettings(lr=1.0, layer_decay=0.5))
    deepest = {key: rate for key, rate in found.items() if "embed" in key and "pre_norm" not in key}
    lowest, highest = ([rate for key, rate in found.items() if f".blocks.{n}." in key or f".layers.{n}." in key] for n in (0, 1))
    assert deepest and max(deepest.values()) < min(lowest) + 1e-9
    assert highest and set(highest) == {0.5}, "tiny networks have two blocks"
    assert all(rate == 1.0 for key, rate in found.items() if key.startswith(("net.head", "net.classifier", "net.next", "net.logit")))


def test_what_lies_beside_the_layers_is_frozen_with_the_embeddings():
    """XLNet's first query, and u and v where Transformer-XL's layers share them."""
    for name, sizes, beside in (("xlnet", {"d_model": 8, "n_head": 2, "d_inner": 16}, {"mask"}),
                                ("transformer_xl", {"d_model": 8, "d_embed": 8, "n_head": 2, "d_head": 4, "d_inner": 16},
                                 {"content_bias", "position_bias"})):
        system = polymodal.system(name, size="tiny", vocab_size=20, **sizes)
        tables = {n for n, _ in system.named_parameters() if n.startswith("net.trunk.embed.")}
        assert set(freeze(system, ["embed"])) == tables | {f"net.trunk.{n}" for n in beside} and tables
        assert set(freeze(system, ["layers:1"])) == {n for n, _ in system.named_parameters() if n.startswith("net.trunk.layers.0.")}


def test_freezing_by_layer_and_by_name():
    model = TwoStacks()
    frozen = freeze(model, ["embed", "layers:1", "head.bias"])
    expected = {n for n, _ in model.named_parameters() if ".embed." in n or "position_bias" in n or ".blocks.0." in n or n == "head.bias"}
    assert set(frozen) == expected == {n for n, p in model.named_parameters() if not p.requires_grad}
    assert set(rates(model, OptimSettings(lr=1.0, layer_decay=0.5))) == {n for n, _ in model.named_parameters()} - expected
    with pytest.raises(UserError, match=r"'layers:4' is not a number of layers, expected layers:1 to layers:3"):
        freeze(model, ["layers:4"])
    with pytest.raises(UserError, match=r"'nett.trunk' names no parameter; expected embed, layers:N, or a pattern"):
        freeze(model, ["nett.trunk"])
    with pytest.raises(UserError, match="nothing to train"):
        freeze(model, ["*"])
        build_optimizer(model, OptimSettings())


@pytest.mark.parametrize("factor", [0.0, 1.2])
def test_impossible_layer_decay(factor):
    with pytest.raises(UserError, match=f"layer_decay is {factor}, expected a factor above 0, at most 1"):
        OptimSettings(layer_decay=factor)


def test_layers_that_nobody_can_count_are_refused():
    """Without blocks a decay would do nothing, and nobody would be told."""
    model = nn.Sequential(nn.Linear(3, 3), nn.ModuleList([nn.Linear(3, 3)]))
    with pytest.raises(UserError, match=r"optim\.layer_decay is 0\.5, and this network has no list of blocks"):
        build_optimizer(model, OptimSettings(layer_decay=0.5))
    with pytest.raises(UserError, match=r"'layers:1' needs layers to count, and this network has no list of blocks"):
        freeze(model, ["layers:1"])
    assert build_optimizer(model, OptimSettings()).param_groups
