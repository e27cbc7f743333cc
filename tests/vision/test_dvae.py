"""The dVAE: its formulas against an independent implementation, its noise, its schedules; what it shows; mistakes."""

from __future__ import annotations

import io
import math

import numpy as np
import polymodal
import pytest
import torch
from PIL import Image
from polymodal.shared.errors import UserError
from polymodal.shared.meta import without_weights
from polymodal.shared.sample import Sample
from polymodal.shared.system import Batch
from polymodal.vision import dvae
from polymodal.vision.dvae import DVAE, DVAEConfig, DVAESettings, DVAESystem
from torch.nn import functional as F

SMALL = {"vocab_size": 24, "n_hid": 16, "n_blk_per_group": 2, "group_count": 3, "n_init": 8, "image_size": 16}


def system(settings=None, **more):
    torch.manual_seed(0)
    return DVAESystem(DVAEConfig(**{**SMALL, **more}), settings or DVAESettings())


def picture(seed):
    rng = np.random.default_rng(seed)
    out = io.BytesIO()
    Image.fromarray(np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((6, 6, 1))).astype(np.uint8)).save(out, "PNG")
    return Sample(f"s{seed}", {"png": out.getvalue()}, index=seed)


def batch_of(sys, count=4):
    return sys.objective.collate([e for i in range(count) for e in sys.objective.example(picture(i), np.random.default_rng(i))])


def block(weights, name, x, gain):
    """A residual block, written out."""
    y = x
    for n in range(4):
        w = weights[f"{name}.convolutions.{n}.weight"]
        y = F.conv2d(y.clamp(min=0), w, weights[f"{name}.convolutions.{n}.bias"], padding=w.shape[-1] // 2)
    skip = weights.get(f"{name}.skip.weight")
    return (x if skip is None else F.conv2d(x, skip, weights[f"{name}.skip.bias"])) + gain * y


def written_out(net, x, codes=None):
    """Logits of pictures, or what the decoder makes of codes, by the released code's equations."""
    w, c = net.state_dict(), net.config
    part, gain = ("encoder", "decoder")[codes is not None], 1 / (c.group_count * c.n_blk_per_group) ** 2
    y = x if codes is None else codes
    y = F.conv2d(y, w[f"{part}.embed.weight"], w[f"{part}.embed.bias"], padding=3 if codes is None else 0)
    for group in range(c.group_count):
        if group and codes is None:
            y = y.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).amax((3, 5))
        elif group:
            y = y.repeat_interleave(2, 2).repeat_interleave(2, 3)
        for n in range(c.n_blk_per_group):
            y = block(w, f"{part}.groups.{group}.{n}", y, gain)
    return F.conv2d(y.clamp(min=0), w[f"{part}.head.weight"], w[f"{part}.head.bias"])


def test_the_loss_is_that_of_the_formulas():
    """In fp64 (but for the scale of pixels): encoder, relaxation, decoder, likelihood, KL divergence, and how the sums are weighted."""
    settings = DVAESettings(temperature=(0.7, 0.7), kl_weight=2.0, kl_updates=0)
    sys = system(settings).double().train()
    batch = batch_of(sys)
    step = sys(batch)
    assert batch.counts == {"values": 4 * 3 * 256, "places": 4 * 16}
    x = batch.images.double() / 255 * 0.8 + 0.1
    logits = written_out(sys.net, x)
    noise = dvae.gumbel(batch.seeds, logits)
    z = F.softmax((logits + noise) / 0.7, dim=1)
    mean, raw = written_out(sys.net, x, z).chunk(2, dim=1)
    ln_b = -4 + torch.log1p(torch.exp(raw + 4))
    logit = torch.log(x) - torch.log1p(-x)
    density = torch.exp(-(logit - mean).abs() / ln_b.exp()) / (2 * ln_b.exp() * x * (1 - x))
    nll = -density.log().sum()
    q = F.softmax(logits, dim=1)
    kl = (q * (q * 24).log()).sum()
    assert float(step.terms["reconstruction"].total.detach()) == pytest.approx(float(nll), rel=1e-6)
    assert float(step.terms["kl"].total) == pytest.approx(float(kl), rel=1e-6)
    whole = sum(t.weight * t.total / batch.counts[t.count] for t in step.terms.values())
    assert float(whole) == pytest.approx(float((nll + 2.0 * kl) / x.numel()), rel=1e-6), "both are divided by the number of colour values"


def test_the_likelihood_is_that_of_a_distribution_of_colours():
    """The density integrates to 1, also beyond the range of the pixels; it has no spike, whatever ln b is."""
    statistics = torch.tensor([0.3, 0.3, 0.3, -0.5, -0.5, -0.5], dtype=torch.float64).view(1, 6, 1, 1).expand(1, 6, 1, 200_000)
    x = (torch.arange(200_000, dtype=torch.float64) + 0.5).view(1, 1, 1, -1).expand(1, 3, 1, -1) / 200_000
    assert float((-dvae.logit_laplace_nll(statistics, x)).exp()[0, 0].mean()) == pytest.approx(1.0, rel=1e-4)
    sharp = torch.tensor([0.0, 0.0, 0.0, -30.0, -30.0, -30.0]).view(1, 6, 1, 1)
    nll = dvae.logit_laplace_nll(sharp, torch.full((1, 3, 1, 1), 0.5))
    assert float(nll[0, 0]) == pytest.approx(-4 - math.log(2), rel=1e-4)


def test_noise_is_gumbel_and_of_the_pictures_seed():
    like = torch.zeros(3, 50, 100, 100)
    noise = dvae.gumbel(torch.tensor([1, 2**62 + 1, 3 * 2**32 + 1]), like)
    n = noise[0].numel()
    for row in noise:
        assert abs(float(row.mean()) - 0.5772157) < 5 * math.pi / math.sqrt(6 * n)
        assert abs(float(row.var()) - math.pi**2 / 6) < 0.02 and bool(row.isfinite().all())
    flat = noise.flatten(1)
    for a, b in ((flat[0], flat[1]), (flat[0], flat[2]), (flat[0, 1:], flat[0, :-1]), (flat[1, 50:], flat[1, :-50])):
        assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 5 / math.sqrt(n)
    assert torch.equal(dvae.gumbel(torch.tensor([2**62 + 1]), like[:1])[0], noise[1]), "a picture's noise does not depend on its batch"
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0]).view(1, 4, 1, 1).expand(1, 4, 200, 200)
    won = (logits + dvae.gumbel(torch.tensor([5]), logits)).argmax(1).flatten().bincount(minlength=4) / 40_000
    share = logits[0, :, 0, 0].softmax(0)
    assert ((won - share).abs() < 5 * (share * (1 - share) / 40_000).sqrt()).all(), "the largest is a draw from the softmax"


def test_temperature_and_kl_weight_follow_the_papers_schedules():
    assert [dvae.annealed(1.0, 1 / 16, 150_000, u) for u in (0, 75_000, 150_000, 10**6)] == pytest.approx([1.0, 17 / 32, 1 / 16, 1 / 16])
    assert [dvae.annealed(0.0, 6.6, 5000, u) for u in (0, 2500, 5000)] == pytest.approx([0.0, 3.3, 6.6])
    sys = system(DVAESettings(kl_updates=10)).train()
    batch = batch_of(sys)
    weights = []
    for update in (0, 5, 10):
        batch.update = update
        weights.append(sys(batch).terms["kl"].weight * 3 * 16)
    assert weights == pytest.approx([0.0, 3.3, 6.6])
    assert sys.eval()(batch_of(sys)).terms["kl"].weight * 3 * 16 == pytest.approx(6.6), "evaluations are all weighted alike"
    assert Batch(counts={}).update == 0


def test_the_real_size():
    """As many weights as the released files of DALL-E: 215 and 175 MB."""
    with without_weights():
        net = DVAE(DVAEConfig(**dvae.SIZES["base"]))
    assert [sum(p.numel() for p in part.parameters()) for part in (net.encoder, net.decoder)] == [53_786_240, 43_829_766]


def test_codes_are_drawn_and_shown():
    sys = system().eval()
    batch = batch_of(sys)
    with torch.no_grad():
        out = sys.net(sys.normalize(batch.images))
    assert out.logits.shape == (4, 24, 4, 4) and torch.equal(out.codes, sys.net.get_codebook_indices(sys.normalize(batch.images)))
    assert torch.equal(out.codes, written_out(sys.net, sys.normalize(batch.images)).argmax(1).flatten(1))
    assert out.reconstruction.shape == (4, 3, 16, 16) and 0 <= float(out.reconstruction.min()) <= float(out.reconstruction.max()) <= 1
    first, second = sys.preview(batch, limit=2)
    assert second.image.shape == (16, 32, 3) and (second.image[:, :16] == batch.images[1].permute(1, 2, 0).numpy()).all()
    assert first.rows[1] == ("codes", f"{len(out.codes[0].unique())} different ones at 16 places")
    larger = torch.rand(1, 3, 32, 24)
    assert sys.net.get_codebook_indices(larger).shape == (1, 8 * 6)


def test_what_a_constant_loses():
    sys = system().eval()
    batch = batch_of(sys)
    with torch.no_grad():
        step = sys(batch)
    means = {name: float(total) / count for name, (total, count) in step.metrics.items()}
    assert sys.derive(means)["squared_error_chance"] == pytest.approx(float((batch.images / 255.0).var(correction=0)), rel=1e-4)
    drawn = sys.net(sys.normalize(batch.images)).reconstruction
    assert means["squared_error"] == pytest.approx(float((drawn - batch.images / 255.0).square().mean()), rel=1e-4)
    assert not sys.train().derive({})


def test_it_is_saved_and_loaded(tmp_path):
    net = system().net.eval()
    polymodal.save(net, tmp_path)
    again = polymodal.load(tmp_path)
    assert again.architecture == "DVAE" and again.config == net.config and again.preprocessing == net.preprocessing
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(again(x).logits, net(x).logits)


@pytest.mark.parametrize(("settings", "message"), [
    ({"image_size": 18}, "image_size 18 is not a multiple of 4, by which 3 groups"), ({"n_hid": 6}, "n_hid is 6, expected a multiple of 4"),
    ({"vocab_size": 0}, "vocab_size is 0"),
])  # fmt: skip
def test_impossible_shapes(settings, message):
    with pytest.raises(UserError, match=message):
        DVAEConfig(**{**SMALL, **settings})


@pytest.mark.parametrize("settings", [{"temperature": (1.0, 0.0)}, {"kl_weight": -1.0}, {"temperature_updates": -1}])
def test_impossible_settings(settings):
    with pytest.raises(UserError, match="expected"):
        DVAESettings(**settings)
