"""MAE: parity with transformers both ways, loss and gradients; statistics of the masks; what the encoder computes; mistakes."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import polymodal
import pytest
import torch
import transformers
from parity import RELATIVE, assert_equal, noise, saved
from PIL import Image
from polymodal.pipelines.inference.embed import embed_pictures
from polymodal.pipelines.model.export import export_system
from polymodal.shared.convert import to_ours, to_theirs
from polymodal.shared.errors import UserError
from polymodal.shared.meta import without_weights
from polymodal.shared.sample import Sample
from polymodal.vision.mae import FAMILIES, MAE, MAEConfig, MAESettings, MAESystem
from polymodal.vision.tower import sine_positions
from safetensors.torch import load_file, save_file
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 32, "patch_size": 4,
         "decoder_hidden_size": 24, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 3, "decoder_intermediate_size": 40}
WORDS = {"q": "query", "k": "key", "v": "value"}
RULES = FAMILIES[0].nets[0].format("transformers").rules


def drawn(count=3, patches=64, seed=0):
    """Pictures and noise, as transformers takes them."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 32, 32, generator=g), torch.rand(count, patches, generator=g)


@torch.no_grad()
def assert_same(ours, theirs):
    pixels, given = drawn()
    a, b = ours(pixels, given, output_hidden_states=True), theirs(pixels, noise=given, output_hidden_states=True)
    assert_equal(a.logits, b.logits)
    assert torch.equal(a.mask.float(), b.mask) and torch.equal(a.ids_restore, b.ids_restore)
    assert_equal(a.last_hidden_state, theirs.vit(pixels, noise=given).last_hidden_state)
    for mine, other in zip(a.hidden_states[:-1], b.hidden_states[:-1], strict=True):
        assert_equal(mine, other)


@pytest.mark.parametrize("more", [{}, {"qkv_bias": False, "mask_ratio": 0.6, "norm_pix_loss": True, "hidden_act": "gelu_pytorch_tanh"}],
                         ids=["default", "other"])  # fmt: skip
def test_both_ways(more, tmp_path):
    theirs = saved("ViTMAEForPreTraining", transformers.ViTMAEConfig(**SHAPE, **more), tmp_path / "theirs")
    ours = polymodal.load(tmp_path / "theirs")
    assert ours.architecture == "ViTMAEForPreTraining"
    assert_same(ours, theirs)
    noise(ours, seed=5)
    polymodal.save(ours, tmp_path / "ours")
    again, info = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    assert_same(ours, again.eval())
    assert_same(polymodal.load(tmp_path / "ours"), again)
    assert load_file(tmp_path / "ours/model.safetensors").keys() == theirs.state_dict().keys()
    mine, yours = (json.loads((tmp_path / d / "config.json").read_text()) for d in ("ours", "theirs"))
    assert mine == yours


def test_transformers_4s_names_are_read(tmp_path):
    theirs = saved("ViTMAEForPreTraining", transformers.ViTMAEConfig(**SHAPE), tmp_path)
    old = {}
    for key, tensor in theirs.state_dict().items():
        key = re.sub(r"^vit\.layers\.", "vit.encoder.layer.", key)
        key = re.sub(r"\.attention\.([qkv])_proj", lambda m: f".attention.attention.{WORDS[m[1]]}", key)
        key = key.replace(".attention.o_proj", ".attention.output.dense").replace(".mlp.fc1", ".intermediate.dense")
        old[key.replace(".mlp.fc2", ".output.dense")] = tensor
    assert "decoder.decoder_layers.0.output.dense.bias" in old and "vit.encoder.layer.1.attention.attention.query.weight" in old
    save_file(old, tmp_path / "model.safetensors", {"format": "pt"})
    assert_same(polymodal.load(tmp_path), theirs)


def picture(seed, side=40):
    """Smooth colours: a patch can be told from its neighbours."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    waves = [np.sin(2 * np.pi * (rng.uniform(-2, 2) * x + rng.uniform(-2, 2) * y) + rng.uniform(0, 6)) for _ in range(3)]
    out = io.BytesIO()
    Image.fromarray((127 + 100 * np.stack(waves, -1)).astype(np.uint8)).save(out, "PNG")
    return Sample(f"s{seed}", {"png": out.getvalue()}, index=seed)


def system(**more):
    torch.manual_seed(0)
    return MAESystem(MAEConfig(**{**SHAPE, **more}), MAESettings())


def batch_of(sys, count=4):
    examples = [e for i in range(count) for e in sys.objective.example(picture(i), np.random.default_rng(i))]
    return sys.objective.collate(examples)


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_the_loss_and_every_gradient_of_a_batch(norm_pix_loss, tmp_path):
    theirs = saved("ViTMAEForPreTraining", transformers.ViTMAEConfig(**SHAPE, norm_pix_loss=norm_pix_loss), tmp_path, scale=0.1).train()
    sys = system(norm_pix_loss=norm_pix_loss)
    sys.net.load_state_dict(polymodal.load(tmp_path).state_dict())
    batch = batch_of(sys)
    assert batch.counts == {"masked_patches": 4 * 48}
    term = sys(batch).terms["reconstruction"]
    loss = term.total / batch.counts[term.count]
    expected = theirs(sys.normalize(batch.images), noise=batch.noise.float() / 64).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    gradients = {n: p.grad for n, p in sys.net.named_parameters()}
    found = to_theirs(RULES(sys.net.config), {**sys.net.state_dict(), **gradients})
    trained = {n: p.grad for n, p in theirs.named_parameters() if p.requires_grad}
    assert found.keys() - trained.keys() == {"vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"}
    whole = float(torch.stack([g.norm() for g in trained.values()]).norm())
    for name, gradient in trained.items():  # those of the keys' biases are 0, but for rounding
        assert float((found[name] - gradient).norm()) < RELATIVE * float(gradient.norm()) + 1e-7 * whole, name


def test_the_real_size():
    with without_weights():
        theirs = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig()).state_dict()
        ours = MAE(MAEConfig(**FAMILIES[0].sizes["base"]))
    assert sum(t.numel() for t in theirs.values()) == 111_907_840
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert {name: tensor.shape for name, tensor in to_ours(RULES(ours.config), theirs).items()} == shapes
    # the tables of positions are not trained
    assert sum(p.numel() for p in ours.parameters()) == 111_907_840 - 197 * (768 + 512)


def test_positions_are_those_of_the_reference():
    theirs = build_2d_sinusoidal_position_embedding(8, 8, 32, cls_token=True)  # rows first; its network puts columns first
    assert torch.allclose(sine_positions(8, 32)[0], theirs.roll(16, -1), atol=1e-6)
    table = sine_positions(8, 32)[0, 1:].view(8, 8, 32)
    assert not sine_positions(8, 32)[0, 0].any()
    assert (table[:, :, :16] == table[:1, :, :16]).all() and (table[:, :, 16:] == table[:, :1, 16:]).all()


def test_masks_have_a_fixed_size_and_are_uniform():
    """Of 64 patches 48 are masked: each in 3/4 of all masks, two of them together in 48 * 47 / (64 * 63) of them."""
    objective, count = system().objective, 4000
    noise = np.stack([next(iter(objective.example(BLANK, np.random.default_rng((1, n))))).noise.numpy() for n in range(count)])
    masked = noise >= 16
    assert (masked.sum(1) == 48).all() and (np.sort(noise, 1) == np.arange(64)).all()
    share = masked.mean(0)
    assert np.abs(share - 0.75).max() < 4.5 * np.sqrt(0.75 * 0.25 / count)
    both = (masked.T.astype(float) @ masked / count)[np.triu_indices(64, 1)]
    expected = 48 * 47 / (64 * 63)
    assert abs(both.mean() - expected) < 1e-9, "the size of a mask is fixed"
    assert np.abs(both - expected).max() < 5 * np.sqrt(expected * (1 - expected) / count)


class _Blank(Sample):
    def pixels(self):
        return np.zeros((8, 8, 3), dtype=np.uint8)


BLANK = _Blank("blank", {}, index=0)


def test_no_masked_patch_reaches_the_encoder():
    """It gets as many tokens as patches are visible; what the others show changes nothing."""
    net = system().net.eval()
    pixels, given = drawn(2)
    seen = []
    net.trunk.stack.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    projected = []
    net.trunk.embed.patches.projection.register_forward_pre_hook(lambda _, inputs: projected.append(inputs[0].shape))
    with torch.no_grad():
        before = net(pixels, given)
        patches = net.patches(pixels)
        assert torch.equal(net.pictures(patches), pixels)
        changed = net.pictures(torch.where(before.mask[..., None], torch.randn_like(patches), patches))
        after = net(changed, given)
    assert seen[0] == (2, 17, 32) and projected[0] == (2, 16, 48)
    assert not torch.equal(changed, pixels) and torch.equal(before.last_hidden_state, after.last_hidden_state)


def test_a_patch_is_known_by_its_place():
    """Two pictures of one colour, with another patch visible: the positions tell them apart."""
    net = system().net.eval()
    one, other = torch.arange(64.0)[None], torch.arange(64.0).flip(0)[None]
    with torch.no_grad():
        a, b = net(torch.ones(1, 3, 32, 32), one), net(torch.ones(1, 3, 32, 32), other)
    assert (a.last_hidden_state - b.last_hidden_state).abs().max() > 1e-3


def test_what_a_constant_loses():
    """Normalised: the mean of each patch has an error near 1; plain: the variance of all pixels."""
    for norm_pix_loss, expected in ((True, 47 / 48), (False, None)):
        sys = system(norm_pix_loss=norm_pix_loss).eval()
        batch = batch_of(sys)
        with torch.no_grad():
            step = sys(batch)
            means = {name: float(total) / count for name, (total, count) in step.metrics.items()}
            targets = sys.targets(sys.net.patches(sys.normalize(batch.images)))[batch.noise >= 16]
        chance = sys.derive(means)["reconstruction_chance"]
        assert chance == pytest.approx(float(targets.var(correction=0)), rel=1e-4)
        assert expected is None or chance == pytest.approx(expected, rel=1e-3)
    assert not sys.train().derive({})


def test_pictures_are_shown_whole_masked_and_drawn():
    for norm_pix_loss in (False, True):
        sys = system(norm_pix_loss=norm_pix_loss).eval()
        batch = batch_of(sys)
        (first, second) = sys.preview(batch, limit=2)
        whole, masked, made = np.split(second.image, 3, axis=1)
        assert second.image.shape == (32, 96, 3) and second.image.dtype == np.uint8
        assert (whole == batch.images[1].permute(1, 2, 0).numpy()).all()
        hidden = np.kron((batch.noise[1] >= 16).view(8, 8).numpy(), np.ones((4, 4), dtype=bool))
        assert (masked[~hidden] == whole[~hidden]).all() and (masked[hidden] == 128).all()
        assert (made[~hidden] == whole[~hidden]).all() and (made[hidden] != whole[hidden]).any()
        assert ("contrast" in first.rows[0][1]) is norm_pix_loss
        (example,) = sys.objective.example(picture(3), np.random.default_rng(3))
        shown = sys.objective.describe(example)
        assert shown.rows == (("masked", "48 of 64 patches"),) and (shown.image == 128).all(-1).sum() >= 48 * 16


def test_vectors_of_pictures_from_an_export(tmp_path):
    sys = system().eval()
    export_system(sys, tmp_path / "out", None)
    net = polymodal.load(tmp_path / "out")
    assert net.preprocessing == sys.net.preprocessing
    pictures = [picture(n).image() for n in range(3)]
    vectors = embed_pictures(net, pictures, normalize=False)
    theirs = transformers.ViTMAEModel.from_pretrained(tmp_path / "out", mask_ratio=0.0).eval()
    pixels = sys.normalize(torch.stack([net.preprocessing.pixels(p) for p in pictures]))
    with torch.no_grad():
        expected = theirs(pixels).last_hidden_state[:, 1:].mean(1)  # shuffled, which a mean does not see
    assert vectors.shape == (3, 32)
    assert_equal(vectors, expected)
    with torch.no_grad():  # other sizes by resampled positions, as theirs
        large = torch.randn(1, 3, 48, 48)
        assert_equal(net.get_image_features(large, True),
                     theirs(large, interpolate_pos_encoding=True).last_hidden_state[:, 1:].mean(1))  # fmt: skip


@pytest.mark.parametrize(("settings", "message"), [
    ({"mask_ratio": 1.0}, "mask_ratio 1 leaves 0 of 64 patches visible"), ({"mask_ratio": 0.0}, "leaves 64 of 64 patches visible"),
    ({"mask_ratio": 1.5}, "mask_ratio is 1.5"), ({"hidden_size": 30, "num_attention_heads": 3}, "is 30, expected a multiple of 4"),
    ({"decoder_num_attention_heads": 5}, "decoder_num_attention_heads 5 does not divide decoder_hidden_size 24"),
    ({"decoder_num_hidden_layers": 0}, "decoder_num_hidden_layers is 0"), ({"image_size": 30}, "not a multiple of patch_size"),
])  # fmt: skip
def test_impossible_shapes(settings, message):
    with pytest.raises(UserError, match=message):
        MAEConfig(**{**SHAPE, **settings})
