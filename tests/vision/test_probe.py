"""ViT's heads: the hidden layer of pretraining, the linear probe on a frozen encoder, and files that say what pools the patches."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import polymodal
import pytest
import timm
import torch
import transformers
from PIL import Image
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.run.directory import Run
from polymodal.pipelines.run.optim import OptimSettings, parameter_groups
from polymodal.pipelines.run.recipe import recipe
from polymodal.pipelines.train.loop import pretrain
from polymodal.shared.errors import UserError
from polymodal.vision.vit import ViT, ViTConfig
from torch import nn

SMALL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 16}
DECODER = {"decoder_hidden_size": 8, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 16}
SETTINGS = ["data.global_batch=8", "max_updates=12", "log.tensorboard=false", "log.every=1", "precision=32", "checkpoint.every=0",
            "schedule.warmup=0", "evaluate.every=0", "checkpoint.keep_best=false"]
CLASSES = ("cat", "dog", "hen")


class Listener(Console):
    def __init__(self):
        super().__init__(quiet=True)
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pictures whose class is their colour."""
    root = tmp_path_factory.mktemp("probe")
    rng = np.random.default_rng(0)
    for number in range(24):
        path = root / "pictures" / CLASSES[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = rng.integers(0, 80, (16, 16, 3), dtype=np.uint8)
        picture[..., number % 3] += 150
        Image.fromarray(picture).save(path)
    pack(root / "pictures", root / "data", workers=Workers(1))
    torch.manual_seed(0)
    polymodal.save(polymodal.system("mae", size="tiny", **SMALL, **DECODER).net, root / "mae")
    return root


def config(**more):
    return ViTConfig(**{**SMALL, "num_hidden_layers": 1, "patch_size": 4, "num_labels": 3, "labels": CLASSES, "layer_norm_eps": 1e-6,
                        **more})


def shaken(net):
    torch.manual_seed(1)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                tensor.add_(0.1 * (torch.rand_like(tensor) if "running_var" in name else torch.randn_like(tensor)))
    return net.eval()


def test_a_probe_learns_on_a_frozen_encoder_and_is_exported_as_one_linear_layer(data, tmp_path):
    console = Listener()
    pretrain(recipe("vit-probe-tiny", [*SETTINGS, "objective.augmentation.crop_scale=[1.0, 1.0]", "optim.lr=0.3"]), data / "data",
             tmp_path / "run", model=data / "mae", console=console)
    assert any(line.startswith("frozen (net.trunk): ") for line in console.lines)
    assert any(line.startswith("randomly initialized: head_norm (3 tensors), head (2 tensors)") for line in console.lines), console.lines
    system = Run(tmp_path / "run").system()
    encoder = polymodal.load(data / "mae").trunk
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(system.net.trunk.state_dict()[name], tensor), f"{name} is frozen"
    rows = Run(tmp_path / "run").metrics("train")
    assert rows[-1]["accuracy"] == 1 and rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert system.net.head_norm.num_batches_tracked == 12 and not dict(system.net.head_norm.named_parameters())
    # what MAE's authors train: a batch norm without gain and bias, eps 1e-6, and a linear layer on the class token
    theirs = nn.Sequential(nn.BatchNorm1d(16, affine=False, eps=1e-6), nn.Linear(16, 3))
    theirs[1].load_state_dict(system.net.head.state_dict())
    pixels = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(system.net.train()(pixels).logits, theirs(encoder(pixels)[:, 0]))
    system = Run(tmp_path / "run").system()
    exported = polymodal.load(tmp_path / "run" / "export")
    reference = transformers.ViTForImageClassification.from_pretrained(tmp_path / "run" / "export").eval()
    with torch.no_grad():
        expected = system.net(pixels).logits
        for found in (exported(pixels).logits, reference(pixels).logits):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not exported.config.head_norm and system.net.config.head_norm
    polymodal.save(system.net, tmp_path / "timm", format="timm")
    with torch.no_grad():
        torch.testing.assert_close(timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()(pixels), expected,
                                   rtol=1e-4, atol=1e-5)
    assert system.net.head_norm is not None, "what is saved stays as it is"


def test_a_norm_over_one_picture_is_refused(data, tmp_path):
    with pytest.raises(UserError, match=r"model\.head_norm is a norm over the pictures of a micro-batch, and this one has one picture"):
        pretrain(recipe("vit-probe-tiny", [*SETTINGS, "data.micro_batch=1"]), data / "data", tmp_path / "run", model=data / "mae",
                 console=Listener())


def test_the_hidden_layer_of_pretraining_is_written_as_ours_and_left_out_in_fine_tuning(data, tmp_path):
    net = shaken(ViT(config(representation_size=12)))
    pixels = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        out = net(pixels)
        states = net.trunk(pixels)[:, 0]
        by_hand = (states @ net.pre_logits.weight.T + net.pre_logits.bias).tanh() @ net.head.weight.T + net.head.bias
        torch.testing.assert_close(out.logits, by_hand)
        assert torch.equal(net.get_image_features(pixels), states)
    assert net.head.weight.shape == (3, 12)
    polymodal.save(net, tmp_path / "ours")
    record = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert record["model_type"] == "polymodal-vit" and record["representation_size"] == 12
    again = polymodal.load(tmp_path / "ours")
    with torch.no_grad():
        assert torch.equal(again(pixels).logits, out.logits) and again.config == net.config
    for name, message in (("transformers", r"which has a hidden layer before its head .*write it as polymodal"),
                          ("timm", "timm's vit has no hidden layer before its head")):
        with pytest.raises(UserError, match=message):
            polymodal.save(net, tmp_path / name, format=name)
        assert not (tmp_path / name).exists()
    console = Listener()
    pretrain(recipe("vit-tiny", [*SETTINGS, "task=classify", "max_updates=1"]), data / "data", tmp_path / "run", model=tmp_path / "ours",
             console=console)
    tuned = polymodal.load(tmp_path / "run")
    assert tuned.pre_logits is None and tuned.head.weight.shape == (3, 16)
    assert any("not used: pre_logits (2 tensors)" in line for line in console.lines)


def test_a_mean_is_not_written_as_a_class_token(tmp_path):
    net = shaken(ViT(config(pooling="mean")))
    with pytest.raises(UserError, match=r"which has the mean of its patches before its head, where that class reads the class token"):
        polymodal.save(net, tmp_path / "theirs", format="transformers")
    odd = shaken(ViT(config(pooling="mean", layer_norm_eps=1e-12)))
    with pytest.raises(UserError, match="layer_norm_eps 1e-6, this model gelu and 1e-12: save it as polymodal"):
        polymodal.save(odd, tmp_path / "theirs", format="timm")
    pixels = torch.randn(2, 3, 16, 16)
    for number, (model, architecture) in enumerate(((net, "vit_base_patch16_224"), (odd, None))):
        polymodal.save(model, tmp_path / str(number))
        assert json.loads((tmp_path / str(number) / "config.json").read_text()).get("architecture") == architecture
        with torch.no_grad():
            assert torch.equal(polymodal.load(tmp_path / str(number))(pixels).logits, model(pixels).logits)
    # what earlier versions wrote where transformers' format was asked for is read as what it was
    record = json.loads((tmp_path / "1" / "config.json").read_text())
    (tmp_path / "1" / "config.json").write_text(json.dumps({**record, "model_type": "vit"}))
    with torch.no_grad():
        assert torch.equal(polymodal.load(tmp_path / "1")(pixels).logits, odd(pixels).logits)


@pytest.mark.parametrize("name", ["vit", "mae", "clip"])
def test_class_tokens_and_position_tables_do_not_decay(name):
    system = polymodal.system(name, size="tiny")
    names = {id(p): n for n, p in system.named_parameters()}
    groups = parameter_groups(system, OptimSettings(weight_decay=0.3))
    decayed, kept = ([names[id(p)] for g in groups if bool(g["weight_decay"]) == yes for p in g["params"]] for yes in (True, False))
    assert decayed and not [n for n in decayed if "position" in n or "cls_token" in n]
    assert any(n.endswith("cls_token") for n in kept) and any("patches.projection.weight" in n for n in decayed)
    assert any("position" in n for n in kept) or name == "mae"  # its positions are fixed


def test_a_sigmoid_begins_with_no_class_likely():
    system = polymodal.system("vit", size="tiny", classes=CLASSES, objective={"loss": "sigmoid"})
    assert (system.net.head.bias == -10).all()
    plain = polymodal.system("vit", size="tiny", classes=CLASSES)
    assert not plain.net.head.bias.any() and replace(plain.net.config, head_norm=True) != plain.net.config
