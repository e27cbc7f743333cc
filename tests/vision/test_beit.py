"""BEiT: parity with transformers both ways, loss and gradients; statistics of the masks; tables of positions; previews; mistakes."""

from __future__ import annotations

import io
import json
import math
import random

import numpy as np
import polymodal
import pytest
import torch
import transformers
from parity import RELATIVE, assert_equal, assert_same_gradients, assert_same_outputs, noise, saved
from PIL import Image
from polymodal.pipelines.train.start import copy_weights
from polymodal.registry import family
from polymodal.shared.convert import to_ours
from polymodal.shared.errors import UserError
from polymodal.shared.meta import without_weights
from polymodal.shared.sample import Sample
from polymodal.shared.system import Companion
from polymodal.vision import beit
from polymodal.vision._beit_layers import GridBias, geometric, spline
from polymodal.vision._masked_views import BeitSettings, blockwise_mask
from polymodal.vision.beit import BeitConfig, BeitSystem
from polymodal.vision.dvae import DVAE, DVAEConfig
from safetensors.torch import load_file, save_file
from torch import nn

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 32, "patch_size": 4,
         "vocab_size": 24, "drop_path_rate": 0.0}
SHARED = {"use_mask_token": True, "use_shared_relative_position_bias": True}
OWN = {"use_relative_position_bias": True}
OLD = {"q": "query", "k": "key", "v": "value"}
PRETRAINING, CLASSIFIER = beit.FAMILIES[0].nets


def pixels(count=3, side=32, seed=0):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def masks(count=3, seed=0):
    return torch.rand(count, 64, generator=torch.Generator().manual_seed(seed)) < 0.4


def assert_both_ways(theirs, folder, cases):
    """A model that `saved` left in `folder`/theirs is read, and what we write of another one is read by them, under its own names.

    (transformers 5 writes BEiT's files under the names of 4.)
    """
    ours = polymodal.load(folder / "theirs")
    assert ours.architecture == type(theirs).__name__
    noise(ours, seed=5, scale=0.15)
    polymodal.save(ours, folder / "ours")
    again, info = type(theirs).from_pretrained(folder / "ours", output_loading_info=True)
    assert not any(info.values()), info
    again.eval()
    for arguments in cases:
        assert_same_outputs(polymodal.load(folder / "theirs"), theirs, ["logits"], arguments)
        assert_same_outputs(ours, again, ["logits"], arguments)
        assert_same_outputs(polymodal.load(folder / "ours"), again, ["logits"], arguments)
    assert load_file(folder / "ours/model.safetensors").keys() == theirs.state_dict().keys()
    mine, yours = (json.loads((folder / d / "config.json").read_text()) for d in ("ours", "theirs"))
    assert mine == yours


@pytest.mark.parametrize("more", [{}, {"layer_scale_init_value": 0.0, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}],
                         ids=["default", "other"])  # fmt: skip
def test_pretraining_both_ways(more, tmp_path):
    theirs = saved("BeitForMaskedImageModeling", transformers.BeitConfig(**SHAPE, **SHARED, **more), tmp_path / "theirs", scale=0.15)
    assert_both_ways(theirs, tmp_path, [{"pixel_values": pixels(), "bool_masked_pos": masks()}, {"pixel_values": pixels(seed=1)}])


@pytest.mark.parametrize("more", [OWN, {**SHARED, "num_labels": 5}, {}], ids=["own tables", "a shared one", "none"])
def test_classification_both_ways(more, tmp_path):
    theirs = saved("BeitForImageClassification", transformers.BeitConfig(**SHAPE, **more), tmp_path / "theirs", scale=0.15)
    assert_both_ways(theirs, tmp_path, [{"pixel_values": pixels()}])


def test_pictures_of_another_size(tmp_path):
    theirs = saved("BeitForImageClassification", transformers.BeitConfig(**SHAPE, **OWN), tmp_path, scale=0.15)
    ours, large = polymodal.load(tmp_path), pixels(2, 48)
    with torch.no_grad():
        assert_equal(ours(large, interpolate_pos_encoding=True).logits, theirs(large).logits)
        assert_equal(ours.get_image_features(large, True), theirs.beit(large).pooler_output)
    with pytest.raises(UserError, match="pictures of 48x48 pixels, the model was made for 32x32: resize them, or pass interpolate"):
        ours(large)
    with pytest.raises(UserError, match=r"pictures of 32x48 pixels, the model was made for 32x32: resize them$"):
        ours(torch.zeros(1, 3, 32, 48), interpolate_pos_encoding=True)


@pytest.mark.parametrize(("architecture", "more"), [("BeitForMaskedImageModeling", SHARED), ("BeitForImageClassification", OWN)])
def test_transformers_4s_names_are_read(architecture, more, tmp_path):
    theirs = saved(architecture, transformers.BeitConfig(**SHAPE, **more), tmp_path, scale=0.15)
    old = {}
    for name, tensor in theirs.state_dict().items():
        key = name.replace("beit.layers.", "beit.encoder.layer.")
        key = key.replace("beit.shared_position_bias.", "beit.encoder.relative_position_bias.")
        key = key.replace(".relative_position_bias.", ".attention.attention.relative_position_bias.") if ".layer." in key else key
        for part, word in OLD.items():
            key = key.replace(f".attention.{part}_proj", f".attention.attention.{word}")
        key = key.replace(".attention.o_proj", ".attention.output.dense").replace(".mlp.fc1", ".intermediate.dense")
        old[key.replace(".mlp.fc2", ".output.dense")] = tensor
    index = "attention.attention.relative_position_bias.relative_position_index"
    old[f"beit.encoder.layer.0.{index}" if more is OWN else "beit.encoder.relative_position_bias.relative_position_index"] = torch.zeros(2)
    assert "beit.encoder.layer.1.attention.attention.query.bias" in old
    save_file(old, tmp_path / "model.safetensors", {"format": "pt"})
    with torch.no_grad():
        assert_equal(polymodal.load(tmp_path)(pixels()).logits, theirs(pixels()).logits)


def picture(seed, side=40):
    """Smooth colours."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    waves = [np.sin(2 * np.pi * (rng.uniform(-2, 2) * x + rng.uniform(-2, 2) * y) + rng.uniform(0, 6)) for _ in range(3)]
    out = io.BytesIO()
    Image.fromarray((127 + 100 * np.stack(waves, -1)).astype(np.uint8)).save(out, "PNG")
    return Sample(f"s{seed}", {"png": out.getvalue()}, index=seed)


def tokenizer():
    torch.manual_seed(3)
    return DVAE(DVAEConfig(vocab_size=24, n_hid=8, n_blk_per_group=1, group_count=3, n_init=8, image_size=32))


def system(settings=None, **more):
    torch.manual_seed(0)
    config = BeitConfig(**{**SHAPE, **SHARED, **more})
    return BeitSystem(config, settings or BeitSettings(min_block=4), Companion("here", tokenizer))


def batch_of(sys, count=4):
    return sys.objective.collate([e for i in range(count) for e in sys.objective.example(picture(i), np.random.default_rng(i))])


def test_the_loss_and_every_gradient_of_a_batch(tmp_path):
    theirs = saved("BeitForMaskedImageModeling", transformers.BeitConfig(**SHAPE, **SHARED), tmp_path, scale=0.1).train()
    sys = system().train()
    sys.net.load_state_dict(polymodal.load(tmp_path).state_dict())
    batch = batch_of(sys)
    term = sys(batch).terms["visual_tokens"]
    assert batch.counts == {"masked_patches": int(batch.masked.sum())}
    codes = tokenizer().get_codebook_indices(batch.token_images / 255 * 0.8 + 0.1)
    assert torch.equal(term.labels, codes[batch.masked]) and len(codes.unique()) > 3
    loss = term.total / batch.counts[term.count]
    expected = theirs(batch.images / 127.5 - 1, bool_masked_pos=batch.masked, labels=codes[batch.masked]).loss
    assert loss.item() == pytest.approx(expected.item(), rel=RELATIVE)
    loss.backward()
    expected.backward()
    assert_same_gradients(sys.net, theirs, PRETRAINING.format("transformers").rules(sys.net.config))
    batch.codes, batch.token_images = codes, None
    assert torch.equal(sys(batch).terms["visual_tokens"].total, term.total), "tokens that a batch brings are the tokenizer's"


def test_the_gradients_of_fine_tuning(tmp_path):
    theirs = saved("BeitForImageClassification", transformers.BeitConfig(**SHAPE, **OWN, num_labels=3), tmp_path, scale=0.1).train()
    ours, labels = polymodal.load(tmp_path).train(), torch.tensor([0, 2, 1])
    nn.functional.cross_entropy(ours(pixels()).logits, labels).backward()
    theirs(pixels(), labels=labels).loss.backward()
    assert_same_gradients(ours, theirs, CLASSIFIER.format("transformers").rules(ours.config))


def test_the_real_size():
    config = BeitConfig(**beit.SIZES["base"])
    with without_weights():
        theirs = transformers.BeitForMaskedImageModeling(transformers.BeitConfig(**SHARED)).state_dict()
        ours = beit.BeitForMaskedImageModeling(config)
    assert sum(p.numel() for p in ours.parameters()) == 91_965_776
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    found = to_ours(PRETRAINING.format("transformers").rules(config), theirs)
    assert {name: tensor.shape for name, tensor in found.items()} == shapes
    assert ours.trunk.stack.position_bias.table.weight.shape == (732, 12)


def test_initial_weights_are_the_authors():
    """Truncated normal of 0.02; what writes to the residual stream in layer l is divided by sqrt(2 l); tables are 0, scales 0.1."""
    torch.manual_seed(0)
    wide = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 512}
    net = beit.BeitForMaskedImageModeling(BeitConfig(**{**SHAPE, **SHARED, **wide}))
    net.requires_grad_(False)
    for number, block in enumerate(net.trunk.stack.blocks, 1):
        for layer in (block.attention.out, block.feed_forward.down):
            assert float(layer.weight.std()) == pytest.approx(0.02 / math.sqrt(2 * number), rel=0.02)
            assert torch.equal(layer.scale, torch.full((256,), 0.1))
        for layer in (block.attention.qkv, block.feed_forward.up):
            assert float(layer.weight.std()) == pytest.approx(0.02, rel=0.02)
    assert float(net.head.weight.std()) == pytest.approx(0.02, rel=0.02) and not net.trunk.stack.position_bias.table.weight.any()
    assert all(float(t.std()) == pytest.approx(0.02, rel=0.2) for t in (net.trunk.embed.mask_token, net.trunk.embed.cls_token))


def reference_mask(grid, budget, least, rng):
    """The generator of the authors' code, from its description: each call of `_mask` has ten attempts, and masks one block."""
    mask, count = [[0] * grid for _ in range(grid)], 0
    while count < budget:
        room, delta = budget - count, 0
        for _ in range(10):
            area, aspect = rng.uniform(least, room), math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if w < grid and h < grid:
                top, left = rng.randint(0, grid - h), rng.randint(0, grid - w)
                cells = [(i, j) for i in range(top, top + h) for j in range(left, left + w)]
                new = [(i, j) for i, j in cells if not mask[i][j]]
                if 0 < len(new) <= room:
                    for i, j in new:
                        mask[i][j] = 1
                    delta = len(new)
                    break
        if delta == 0:
            break
        count += delta
    return np.array(mask, dtype=bool)


def test_masks_have_the_papers_statistics():
    """75 of 196 patches in blocks, beside the authors' algorithm: share, how often fewer, where, and how many neighbours are alike."""
    count, rng, theirs = 3000, np.random.default_rng(0), random.Random(0)
    mine = np.stack([blockwise_mask(14, 75, 16, 0.3, rng) for _ in range(count)])
    other = np.stack([reference_mask(14, 75, 16, theirs) for _ in range(count)])

    def told(masks):
        n = masks.sum((1, 2))
        alike = (masks[:, 1:] == masks[:, :-1]).mean((1, 2))
        return n, n == 75, n / 196, alike, masks[:, 3:11, 3:11].mean((1, 2)), masks[:, 0, 0].astype(float)

    assert mine.sum((1, 2)).max() == 75 and mine.sum((1, 2)).min() >= 16
    for a, b in zip(told(mine), told(other), strict=True):
        error = math.sqrt((a.var() + b.var()) / count)
        assert abs(a.mean() - b.mean()) < 4.5 * error
    assert 0.37 < mine.mean() <= 75 / 196, "about 40 %"
    # a mask of single patches would have 1 - 2 * 0.38 * 0.62 of its neighbours alike
    assert told(mine)[3].mean() > 0.8


class Recorder:
    """A generator that keeps what it was asked for, with the answers."""

    def __init__(self, seed):
        self.rng, self.asked = np.random.default_rng(seed), []

    def __getattr__(self, name):
        def ask(*arguments):
            self.asked.append((name, arguments, getattr(self.rng, name)(*arguments)))
            return self.asked[-1][-1]
        return ask


def test_blocks_have_the_sizes_and_shapes_of_the_algorithm():
    """In masks of one block: areas from 16 patches to the budget, aspect ratios log-uniform from 0.3 to 1 / 0.3, any place as likely."""
    shapes = []
    for seed in range(4000):
        rng = Recorder(seed)
        mask = blockwise_mask(40, 75, 16, 0.3, rng)
        (_, _, share), (_, limits, aspect), *places = rng.asked
        assert limits == pytest.approx((math.log(0.3), -math.log(0.3)))
        height, width = 41 - places[0][1][0], 41 - places[1][1][0]  # a place is drawn of those where the block fits
        top, left = places[0][-1], places[1][-1]
        if height * width <= 75:
            assert mask[top : top + height, left : left + width].all(), "the block that was drawn is masked as a whole"
        shapes.append((height * width, math.log(height / width)))
        assert height == round(math.sqrt((16 + 59 * share) * math.exp(aspect)))
    areas, ratios = np.array(shapes).T
    assert areas.mean() == pytest.approx(45.5, rel=0.03), "uniform from 16 to 75"
    assert np.quantile(areas, [0.05, 0.95]) == pytest.approx([16 + 0.05 * 59, 16 + 0.95 * 59], abs=4)
    assert abs(ratios.mean()) < 0.05 and ratios.std() == pytest.approx(2 * math.log(1 / 0.3) / math.sqrt(12), rel=0.03)
    assert blockwise_mask(2, 3, 3, 1.0, np.random.default_rng(0)).sum() >= 1, "no mask is empty"


def test_both_views_are_of_the_same_crop():
    """The tokenizer's picture is the network's at another size: crop, flip and colours are the same draws."""
    torch.manual_seed(0)
    config = BeitConfig(**{**SHAPE, **SHARED, "image_size": 64, "patch_size": 8})
    sys = BeitSystem(config, BeitSettings(min_block=4), Companion("here", tokenizer))
    for seed in range(4):
        (example,) = sys.objective.example(picture(seed, 200), np.random.default_rng(seed))
        assert example.pixels.shape == (3, 64, 64) and example.token_pixels.shape == (3, 32, 32)
        small = nn.functional.avg_pool2d(example.pixels[None].float(), 2)[0]
        assert float((small - example.token_pixels).abs().mean()) < 2
        assert float((small.flip(-1) - example.token_pixels).abs().mean()) > 5
    assert sys.objective.evaluation().augmented is False


def test_only_masked_places_go_through_the_head():
    sys = system().train()
    batch, seen = batch_of(sys), []
    sys.net.head.transform.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    sys(batch)
    assert seen == [(batch.counts["masked_patches"], 32)]
    projected = sys.net.trunk.embed(sys.normalize(batch.images), batch.masked)[:, 1:]
    assert (projected[batch.masked] == sys.net.trunk.embed.mask_token[0, 0]).all()
    assert not (projected[~batch.masked] == sys.net.trunk.embed.mask_token[0, 0]).all(-1).any()


def test_tables_of_positions():
    """One number for each distance, three for the class token, as in transformers; without one the order of patches is unknown."""
    theirs = transformers.models.beit.modeling_beit.BeitRelativePositionBias(transformers.BeitConfig(**SHAPE))
    mine = GridBias(8, 4)
    with torch.no_grad():
        theirs.relative_position_bias_table.copy_(torch.randn(228, 4))
        mine.table.weight.copy_(theirs.relative_position_bias_table)
        assert torch.equal(mine(65, 65), theirs((8, 8)))
        assert torch.allclose(mine(101, 101), theirs((10, 10)), atol=1e-6)
    net = noise(system().net, scale=0.1)
    x = pixels(1)
    flipped = x.unflatten(-1, (8, 4)).flip(-2).flatten(-2)  # patches in the reverse order of columns
    with torch.no_grad():
        assert (net(x).logits.sum(1) - net(flipped).logits.sum(1)).abs().max() > 1e-3
        net.trunk.stack.position_bias.table.weight.zero_()
        assert torch.allclose(net(x).logits.sum(1), net(flipped).logits.sum(1), atol=1e-4)


def test_fine_tuning_begins_with_copies_of_the_shared_table():
    entry, source = family("beit"), noise(system().net, scale=0.1)
    torch.manual_seed(1)
    tuned = beit.BeitForImageClassification(BeitConfig(**SHAPE, **OWN, num_labels=3)).eval()
    lines = copy_weights(tuned, source, entry, "beit", entry.starts["beit"])
    assert any("randomly initialized: fc_norm (2 tensors), head (2 tensors)" in line for line in lines)
    for block in tuned.trunk.stack.blocks:
        assert torch.equal(block.attention.position_bias.table.weight, source.trunk.stack.position_bias.table.weight)
    with torch.no_grad():
        assert torch.allclose(tuned.trunk(pixels()), source.trunk(pixels()), atol=1e-5)
    large = beit.BeitForImageClassification(BeitConfig(**{**SHAPE, "image_size": 48}, **OWN)).eval()
    copy_weights(large, source, entry, "beit", entry.starts["beit"])
    expected = geometric(source.trunk.stack.position_bias.table.weight, 23)
    assert torch.equal(large.trunk.stack.blocks[1].attention.position_bias.table.weight, expected)
    again = beit.BeitForMaskedImageModeling(BeitConfig(**SHAPE, **SHARED))
    copy_weights(again, source, entry, "beit", entry.starts["beit"])
    assert torch.equal(again.head.weight, source.head.weight), "pretraining goes on with all of it"


def test_tables_for_another_grid_are_the_authors():
    """Their code: interp2d of scipy, cubic, over distances that grow geometrically; here a spline through the same points."""
    interpolate = pytest.importorskip("scipy.interpolate")
    table = torch.randn(27 * 27 + 3, 2, generator=torch.Generator().manual_seed(0))
    for side in (47, 21):
        left, right = 1.01, 1.5
        while right - left > 1e-6:
            q = (left + right) / 2
            if (1 - q**13) / (1 - q) > side // 2:
                right = q
            else:
                left = q
        places, step = [], 1.0
        for i in range(13):
            places.append(step)
            step += q ** (i + 1)
        x = [-p for p in reversed(places)] + [0] + places
        t = side // 2.0
        new = np.clip(np.arange(-t, t + 0.1, 1.0), x[0], x[-1])
        found = geometric(table, side)
        assert found.shape == (side * side + 3, 2) and torch.equal(found[-3:], table[-3:])
        for head in range(2):
            z = table[:-3, head].view(27, 27).double().numpy()
            expected = interpolate.RectBivariateSpline(x, x, z)(new, new)
            assert np.abs(found[:-3, head].view(side, side).numpy() - expected).max() < 1e-5
    assert geometric(table, 27) is table
    line = spline(np.array([0.0, 1.0, 3.0, 4.0]), np.array([0.5, 2.0])) @ np.array([0.0, 1.0, 27.0, 64.0])
    assert line == pytest.approx([0.125, 8.0]), "a cubic goes through itself"


def test_pictures_are_shown_with_what_the_tokenizer_draws():
    sys = system().eval()
    batch = batch_of(sys)
    first, second = sys.preview(batch, limit=2)
    whole, masked, own, made = np.split(second.image, 4, axis=1)
    hidden = np.kron(batch.masked[1].view(8, 8).numpy(), np.ones((4, 4), dtype=bool))
    assert (whole == batch.images[1].permute(1, 2, 0).numpy()).all()
    assert (masked[~hidden] == whole[~hidden]).all() and (masked[hidden] == 128).all() and own.any() and made.any()
    assert first.rows[1][1].endswith(f"of {int(batch.masked[0].sum())} masked patches")
    sys.companions, batch.codes = {}, sys.codes(batch)
    assert sys.preview(batch, limit=1)[0].image.shape == (32, 64, 3), "without a tokenizer nothing is drawn"
    (example,) = sys.objective.example(picture(3), np.random.default_rng(3))
    shown = sys.objective.describe(example)
    assert shown.rows[0] == ("masked", f"{int(example.masked.sum())} of 64 patches") and (shown.image == 128).all(-1).any()


def test_evaluation_counts_what_is_right():
    sys = system().eval()
    batch = batch_of(sys)
    with torch.no_grad():
        step = sys(batch)
        logits = sys.net(sys.normalize(batch.images), batch.masked).logits[batch.masked]
    codes = sys.codes(batch)[batch.masked]
    hits, count = step.metrics["accuracy"]
    assert int(hits) == int((logits.argmax(-1) == codes).sum()) and count == len(codes)
    expected = nn.functional.cross_entropy(logits, codes, reduction="sum")
    assert float(step.terms["visual_tokens"].total) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(("settings", "message"), [
    ({"use_relative_position_bias": True, "use_shared_relative_position_bias": True}, "are both true"),
    ({"drop_path_rate": 1.0}, "drop_path_rate is 1, expected less"),
    ({"labels": ("a",)}, "1 labels for num_labels 2"), ({"image_size": 30}, "not a multiple of patch_size"),
])  # fmt: skip
def test_impossible_shapes(settings, message):
    with pytest.raises(UserError, match=message):
        BeitConfig(**{**SHAPE, **settings})


@pytest.mark.parametrize(("settings", "message"), [
    ({"min_block": 16, "mask_patches": 10}, "min_block is 16 and a mask has at most 10"), ({"mask_patches": 64}, "mask_patches is 64"),
    ({"min_aspect": 0.0}, "min_aspect is 0.0"), ({"min_block": 0}, "min_block is 0"),
])  # fmt: skip
def test_impossible_masks(settings, message):
    with pytest.raises(UserError, match=message):
        system(BeitSettings(**settings))


def test_what_the_networks_here_do_not_have_is_refused(tmp_path):
    for more in ({"use_mean_pooling": False}, {"use_absolute_position_embeddings": True}):
        saved("BeitForMaskedImageModeling", transformers.BeitConfig(**SHAPE, **SHARED, **more), tmp_path)
        with pytest.raises(UserError, match=f"{next(iter(more))} = "):
            polymodal.load(tmp_path)
    assert load_file(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="use_mask_token is false, and pretraining masks patches"):
        polymodal.system("beit", size="tiny", use_mask_token=False)
    net = beit.BeitForImageClassification(BeitConfig(**SHAPE, **OWN))
    with pytest.raises(UserError, match="this BEiT has no mask token"):
        net.trunk(pixels(), masks())
