"""ViT: parity with transformers and timm both ways, position interpolation, the two losses, mistakes."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from polymodal.shared.convert import to_ours, to_theirs
from polymodal.shared.errors import BadSample, UserError
from polymodal.shared.family import Context
from polymodal.shared.meta import without_weights
from polymodal.shared.sample import Sample
from polymodal.shared.settings import build_settings
from polymodal.vision.tower import interpolate_positions
from polymodal.vision.vit import FAMILIES, ViT, ViTConfig
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed
from torch.nn import functional as F

NET = FAMILIES[0].nets[0]
TIMM = NET.formats[1]
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32, "patch_size": 8}


def shaken(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model.eval()


def close(ours, theirs):
    assert ours.shape == theirs.shape
    error = (ours - theirs).abs().max() / theirs.abs().max()
    assert error < 1e-5, f"relative difference {error:.2e}"


@pytest.mark.parametrize("settings", [{}, {"qkv_bias": False}, {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}])
def test_transformers_parity_both_ways(settings, tmp_path):
    names = dict(enumerate(("cat", "dog", "house")))
    theirs = shaken(transformers.ViTForImageClassification(transformers.ViTConfig(**SHAPE, id2label=names, **settings)))
    theirs.save_pretrained(tmp_path)
    config = ViTConfig.from_dict(json.loads((tmp_path / "config.json").read_text()))
    assert config.labels == ("cat", "dog", "house")
    ours = ViT(config).eval()
    ours.load_state_dict(to_ours(NET.format("transformers").rules(config), load_file(tmp_path / "model.safetensors")))
    pixels, large = torch.randn(3, 3, 32, 32), torch.randn(2, 3, 48, 40)
    with torch.no_grad():
        a, b = ours(pixels, output_hidden_states=True), theirs(pixels, output_hidden_states=True)
        close(a.logits, b.logits)
        assert len(a.hidden_states) == len(b.hidden_states) == 3
        for mine, other in zip(a.hidden_states[:-1], b.hidden_states[:-1], strict=True):
            close(mine, other)
        close(a.last_hidden_state, theirs.vit(pixels).last_hidden_state)
        close(ours(large, interpolate_pos_encoding=True).logits, theirs(large, interpolate_pos_encoding=True).logits)

    written = to_theirs(NET.format("transformers").rules(config), ours.state_dict())
    assert all(torch.equal(written[k], v) for k, v in theirs.state_dict().items()) and len(written) == len(theirs.state_dict())
    out = tmp_path / "ours"
    out.mkdir()
    record = {**config.to_dict(), "model_type": "vit", "architectures": [NET.architecture]}
    (out / "config.json").write_text(json.dumps(record))
    save_file(written, out / "model.safetensors", {"format": "pt"})
    again = transformers.ViTForImageClassification.from_pretrained(out).eval()
    with torch.no_grad():
        close(again(pixels).logits, a.logits)
    assert again.config.id2label == names and ViTConfig.from_dict(record) == config


@pytest.mark.parametrize(("pool", "fc_norm"), [("token", {}), ("avg", {"fc_norm": False}), ("avg", {"fc_norm": True}), ("avg", {})])
def test_timm_parity_both_ways(pool, fc_norm, tmp_path):
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "global_pool": pool, **fc_norm}
    theirs = shaken(timm.create_model("vit_base_patch16_224", num_classes=5, **arguments))
    record = {"architecture": "vit_base_patch16_224", "num_classes": 5, "global_pool": pool, "model_args": arguments,
              "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "crop_pct": 0.9}}
    assert TIMM.recognises(record)
    config = TIMM.read(record, tmp_path)
    ours = ViT(config).eval()
    ours.load_state_dict(to_ours(TIMM.rules(config), theirs.state_dict()))
    TIMM.finish(ours, record, tmp_path)
    assert ours.preprocessing.image_mean == (0.1, 0.2, 0.3) and ours.preprocessing.resize_size == 35
    pixels = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        close(ours(pixels).logits, theirs(pixels))
    written = to_theirs(TIMM.rules(config), ours.state_dict())
    assert all(torch.equal(written[k], v) for k, v in theirs.state_dict().items()) and len(written) == len(theirs.state_dict())

    again = TIMM.write(ours)
    (tmp_path / "config.json").write_text(json.dumps(again))
    save_file(written, tmp_path / "model.safetensors")
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        close(loaded(pixels), ours(pixels).logits)
    assert TIMM.read(again, tmp_path) == config


def test_formats_refuse_what_they_cannot_say():
    with pytest.raises(UserError, match="layer_norm_eps"):
        TIMM.write(ViT(ViTConfig(**SHAPE)))
    with pytest.raises(UserError, match="not supported"):
        TIMM.read({"architecture": "vit_base_patch16_siglip_224"}, None)
    with pytest.raises(UserError, match="class_token"):
        TIMM.read({"architecture": "vit_base_patch16_224", "model_args": {"class_token": False}}, None)
    with pytest.raises(UserError, match=r"or 'avg' with any model_args\.fc_norm, got 'token' with True"):
        TIMM.read({"architecture": "vit_base_patch16_224", "model_args": {"fc_norm": True}}, None)
    config = ViTConfig(**SHAPE, pooling="mean", layer_norm_eps=1e-6)
    assert NET.default_format(config).name == "timm" and NET.default_format(replace(config, pooling="cls")).name == "transformers"


REAL = {"small": 22_050_664, "base": 86_567_656, "base32": 88_224_232, "large": 304_326_632, "huge": 632_045_800}


@pytest.mark.parametrize(("size", "parameters"), REAL.items())
def test_real_sizes(size, parameters):
    with without_weights():
        net = ViT(build_settings(ViTConfig, {**FAMILIES[0].sizes[size], "num_labels": 1000}, size))
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_timms_base_is_our_base():
    with without_weights():
        theirs = timm.create_model("vit_base_patch16_224").state_dict()
        config = TIMM.read({"architecture": "vit_base_patch16_224.augreg_in21k", "num_classes": 1000}, None)
        shapes = {k: v.shape for k, v in ViT(config).state_dict().items()}
    assert {k: v.shape for k, v in to_ours(TIMM.rules(config), theirs).items()} == shapes


@pytest.mark.parametrize("grid", [(6, 6), (3, 5), (4, 4)])
def test_interpolated_positions_equal_timms(grid):
    table = torch.randn(1, 17, 8)
    expected = resample_abs_pos_embed(table, list(grid), num_prefix_tokens=1, antialias=True)
    assert torch.allclose(interpolate_positions(table, grid, antialias=True), expected, atol=1e-6)


def test_other_sizes_need_interpolation():
    net = ViT(ViTConfig(**SHAPE))
    with pytest.raises(UserError, match="interpolate_pos_encoding"):
        net(torch.zeros(1, 3, 40, 32))
    with pytest.raises(UserError, match="multiple of patch_size"):
        ViTConfig(**{**SHAPE, "image_size": 30})


@pytest.mark.parametrize(("settings", "message"), [
    ({"hidden_act": "gleu"}, "hidden_act is 'gleu', expected one of gelu"), ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    ({"hidden_size": 30}, "does not divide hidden_size 30"), ({"patch_size": 0}, "patch_size is 0"), ({"image_size": -32}, "image_size is"),
    ({"num_hidden_layers": 0, "intermediate_size": 0}, r"(?s)num_hidden_layers is 0.*intermediate_size is 0"),
    ({"num_channels": 1}, "num_channels is 1, expected 3"), ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob is 1.5"),
    ({"fc_norm": True}, "fc_norm is a norm of the mean, and pooling is 'cls'"),
    ({"drop_path_rate": 1.0}, "drop_path_rate is 1, expected less"),
    ({"num_labels": 0}, "num_labels is 0"), ({"labels": ("cat",)}, "1 labels for num_labels 2"),
])  # fmt: skip
def test_impossible_shapes(settings, message):
    with pytest.raises(UserError, match=message):
        ViTConfig(**{**SHAPE, **settings})


# ------------------------------------------------------------------------------------------- training


def system(settings=None, classes=("cat", "dog", "house"), **overrides):
    torch.manual_seed(0)
    context = Context(classes=classes)
    config = FAMILIES[0].adapt(ViTConfig(**{**SHAPE, **overrides}), context)
    return FAMILIES[0].pretraining.build(config, settings or {}, context)


def sample(label, seed, size=(40, 30)):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)).save(out, "PNG")
    return Sample(f"s{seed}", {"png": out.getvalue(), "cls": str(label).encode()}, index=seed)


def batch_of(sys, count):
    examples = [e for i in range(count) for e in sys.objective.example(sample(i % 3, i), np.random.default_rng(i))]
    return sys.objective.collate(examples)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_the_loss_is_a_sum_and_learns(loss, pooling):
    sys = system({"loss": loss}, pooling=pooling)
    batch = batch_of(sys, 9)
    assert batch.counts == {"images": 9} and batch.images.dtype == torch.uint8 and batch.images.shape == (9, 3, 32, 32)
    assert batch.labels.tolist() == [0, 1, 2] * 3
    step = sys(batch)
    logits = sys.net(sys.normalize(batch.images)).logits
    if loss == "softmax":
        expected = F.cross_entropy(logits, batch.labels, reduction="sum")
    else:
        expected = -(F.logsigmoid(logits) * F.one_hot(batch.labels, 3) + F.logsigmoid(-logits) * (1 - F.one_hot(batch.labels, 3))).sum()
        assert (sys.net.head.bias == -10).all()
    term = step.terms["classification"]
    assert torch.allclose(term.total, expected, rtol=1e-5) and term.count == "images"
    term.total.backward()
    assert all(p.grad is not None and bool(p.grad.abs().max() > 0) for n, p in sys.named_parameters() if not n.endswith("qkv.bias"))
    optimizer = torch.optim.AdamW(sys.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        step = sys(batch)
        step.terms["classification"].total.backward()
        optimizer.step()
    assert step.metrics["accuracy"][0] == 9 and step.metrics["accuracy"][1] == 9


def test_the_head_begins_as_small_as_it_is_told_to():
    assert not system({"head_std": 0.0}).net.head.weight.any()
    assert system({"head_std": 1e-3}, hidden_size=512).net.head.weight.std().item() == pytest.approx(1e-3, rel=0.1)
    with pytest.raises(UserError, match="head_std is -1"):
        system({"head_std": -1.0})


def test_one_key_of_the_augmentation_leaves_the_others():
    own = system({}).objective.augmentation
    assert own.flip and system({"augmentation": {"flip": 0.0}}).objective.augmentation == replace(own, flip=0.0)


def test_small_pictures_that_are_cut_too_small_are_told():
    """vit-tiny's crops of 5 % on digits of 8 x 8 pixels: measured, and nobody was told."""
    (note,) = system({}).objective.notes
    assert note.startswith("note: crops keep as little as 5% of pictures of ") and "objective.augmentation.crop_scale=[0.6,1.0]" in note
    assert not system({"augmentation": {"crop_scale": [0.6, 1.0]}}).objective.notes
    assert not system({}, image_size=224, patch_size=32).objective.notes


def test_evaluation_is_not_augmented():
    sys = system({"augmentation": {"crop_scale": [0.1, 0.5], "flip": 0.5}})
    rng = np.random.default_rng
    (a,), (b,) = (sys.objective.example(sample(0, 1), rng(s)) for s in (1, 2))
    assert not torch.equal(a.pixels, b.pixels)
    held_out = sys.objective.evaluation()
    (a,), (b,) = (held_out.example(sample(0, 1), rng(s)) for s in (1, 2))
    assert torch.equal(a.pixels, b.pixels)


def test_labels_outside_the_classes_are_bad_samples():
    with pytest.raises(BadSample, match="class 3, the model has 3"):
        list(system().objective.example(sample(3, 0), np.random.default_rng(0)))


def test_previews_name_classes():
    sys = system().eval()
    batch = batch_of(sys, 5)
    shown = sys.preview(batch, limit=2)
    assert len(shown) == 2 and shown[1].rows[0] == ("class", "dog") and shown[0].image.shape == (32, 32, 3)
    best = int(sys.net(sys.normalize(batch.images[:1])).logits.argmax())
    assert shown[0].rows[1][1].startswith(("cat", "dog", "house")[best])
    (example,) = sys.objective.example(sample(2, 7), np.random.default_rng(0))
    assert sys.objective.describe(example).rows == (("class", "house"),)
