"""Runs of ViT that begin with other weights: at another resolution, or with MAE's encoder; stochastic depth."""

from __future__ import annotations

import json

import numpy as np
import polymodal
import pytest
import timm
import torch
from PIL import Image
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.inference.embed import embed_pictures
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.run.directory import open_run
from polymodal.pipelines.run.recipe import recipe
from polymodal.pipelines.train.loop import pretrain
from polymodal.pipelines.train.start import copy_weights
from polymodal.registry import family
from polymodal.shared.block import Residual
from polymodal.shared.errors import UserError
from polymodal.vision.tower import interpolate_positions
from torch import nn

SMALL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 16}
DECODER = {"decoder_hidden_size": 8, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 16}
SETTINGS = ["data.global_batch=4", "max_updates=2", "log.tensorboard=false", "log.every=1", "precision=32", "checkpoint.every=1"]


class Listener(Console):
    def __init__(self):
        super().__init__(quiet=True)
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("starts")
    rng = np.random.default_rng(0)
    for number in range(12):
        path = root / "pictures" / ("cat", "dog", "hen")[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 16, 3), dtype=np.uint8)).save(path)
    pack(root / "pictures", root / "data", workers=Workers(1))
    return root


@pytest.fixture(scope="module")
def mae(data):
    torch.manual_seed(0)
    system = polymodal.system("mae", size="tiny", **SMALL, **DECODER)
    polymodal.save(system.net, data / "mae")
    return data / "mae"


def test_positions_of_another_resolution(data, tmp_path):
    """Everything is copied, the positions are resampled, and pictures of the new size go through without being asked to."""
    torch.manual_seed(0)
    classes = ("cat", "dog", "hen")
    net = polymodal.system("vit", size="tiny", classes=classes, **SMALL).net
    polymodal.save(net, tmp_path / "vit")
    console = Listener()
    pretrain(recipe("vit-tiny", [*SETTINGS, "task=classify", "model.image_size=24", "optim.lr=1e-12"]), data / "data", tmp_path / "run",
             model=tmp_path / "vit", console=console)
    assert any("fitted to this network: trunk.embed.position_embeddings [1, 17, 16] -> [1, 37, 16]" in line for line in console.lines)
    tuned = polymodal.load(tmp_path / "run")
    assert tuned.config.image_size == tuned.preprocessing.image_size == 24 and tuned.config.labels == classes
    large = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        assert torch.allclose(tuned(large).logits, net.eval()(large, interpolate_pos_encoding=True).logits, atol=1e-5)
        expected = interpolate_positions(net.trunk.embed.position_embeddings, (6, 6))
        assert torch.allclose(tuned.trunk.embed.position_embeddings, expected, atol=1e-6)
    with pytest.raises(UserError, match=r"projection\.weight is \[16, 48\], this run needs \[16, 192\]"):
        pretrain(recipe("vit-tiny", [*SETTINGS, "task=classify", "model.patch_size=8"]), data / "data", tmp_path / "other",
                 model=tmp_path / "vit", console=console)


def test_a_run_begins_with_the_encoder_of_mae(data, mae, tmp_path):
    """Average pooling, layer-wise rates; it resumes without the model, and its network is timm's."""
    console, settings = Listener(), [*SETTINGS, "task=classify", "optim.layer_decay=0.5", "model.drop_path_rate=0.2"]
    pretrain(recipe("vit-tiny", [*settings, "max_updates=1"]), data / "data", tmp_path / "run", model=mae, console=console)
    assert "randomly initialized: fc_norm (2 tensors), head (2 tensors)" in console.lines
    assert any(line.startswith("not used: trunk.stack (2 tensors), decoder (") for line in console.lines)
    assert any("image_mean [0.485, 0.456, 0.406] (here [0.5, 0.5, 0.5])" in line for line in console.lines)
    pretrain(recipe("vit-tiny", settings), data / "data", tmp_path / "run", console=console)
    net, encoder = polymodal.load(tmp_path / "run"), polymodal.load(mae).trunk
    assert (net.config.pooling, net.config.fc_norm) == ("mean", True) and open_run(tmp_path / "run").config().drop_path_rate == 0.2
    assert not torch.equal(net.trunk.embed.position_embeddings, encoder.embed.position_embeddings), "here they are trained"
    moved = [(net.trunk.get_parameter(name) - p).abs().mean().item() for name, p in encoder.named_parameters() if "blocks" in name]
    assert 0 < max(moved) < 0.01
    theirs = timm.create_model(f"local-dir:{tmp_path / 'run/export'}", pretrained=True).eval()
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(theirs(pixels), net(pixels).logits, atol=1e-5)
        vectors = theirs.forward_head(theirs.forward_features(pixels), pre_logits=True)
        assert torch.allclose(vectors, net.get_image_features(pixels), atol=1e-5)
    with pytest.raises(UserError, match="which has a norm behind the mean of its patches"):
        polymodal.save(net, tmp_path / "no", format="transformers")
    picture = Image.new("RGB", (20, 20), (200, 10, 10))
    assert embed_pictures(net, [picture]).shape == (1, 16)


def test_the_weights_of_mae_are_those_that_timm_would_read(mae):
    """As MAE's authors fine-tune: all patches, the mean of the last block's states, a fresh norm."""
    source = polymodal.load(mae)
    entry = family("vit")
    adopt = entry.starts["mae"]
    net = polymodal.system("vit", size="tiny", **{k: getattr(source.config, k) for k in SMALL}, pooling="mean", fc_norm=True).net.eval()
    copy_weights(net, source, entry, "mae", adopt)
    pixels = torch.randn(2, 3, 16, 16)
    states = []
    with torch.no_grad():
        source.trunk(pixels, hidden_states=states)
        source.trunk.stack.final_norm = nn.Identity()
        expected = nn.functional.layer_norm(source.trunk(pixels)[:, 1:].mean(1), (16,), eps=1e-6)
        assert torch.allclose(net.get_image_features(pixels), expected, atol=1e-6)
    assert adopt.config(source.config) == net.config


def test_what_cannot_be_adopted_is_refused(data, mae, tmp_path):
    with pytest.raises(UserError, match="the model has 2 classes, the data 3: set task=classify"):
        pretrain(recipe("vit-tiny", SETTINGS), data / "data", tmp_path / "run", model=mae, console=Listener())
    net = polymodal.system("vit", size="tiny", classes=("cat", "dog", "hen"), **SMALL).net
    polymodal.save(net, tmp_path / "vit")
    with pytest.raises(UserError, match=r"holds a ViTForImageClassification \(vit\), recipe mae-tiny trains mae"):
        pretrain(recipe("mae-tiny", SETTINGS), data / "data", tmp_path / "run", model=tmp_path / "vit", console=Listener())
    (record := json.loads((mae / "config.json").read_text()))["mask_ratio"] = 0.999
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"mask_ratio 0\.999 leaves 0 of 16 patches visible"):
        polymodal.load(tmp_path / "bad")


def test_stochastic_depth_leaves_whole_pictures_out():
    torch.manual_seed(0)
    residual = Residual(nn.Identity(), "pre", drop_path=0.3)
    x = torch.ones(20_000, 2, 3)
    gained = residual(x, lambda y: 2 * y) - x
    kept = gained[:, 0, 0] != 0
    assert (gained[~kept] == 0).all() and torch.allclose(gained[kept], torch.tensor(2 / 0.7))
    assert abs(kept.float().mean() - 0.7) < 4 * (0.21 / 20_000) ** 0.5
    assert torch.equal(residual.eval()(x, lambda y: 2 * y), 3 * x)


def test_the_rate_of_stochastic_depth_rises_with_depth():
    net = polymodal.system("vit", size="tiny", num_hidden_layers=5, drop_path_rate=0.2, **SMALL).net
    rates = [block.attention_residual.drop_path for block in net.trunk.stack.blocks]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert rates == [block.feed_forward_residual.drop_path for block in net.trunk.stack.blocks]
    x = torch.randn(4, 3, 16, 16)
    assert torch.equal(net.eval()(x).logits, net(x).logits)
    torch.manual_seed(1)
    first = net.train()(x).logits
    torch.manual_seed(1)
    assert torch.equal(first, net(x).logits) and not torch.equal(first, net(x).logits)
