"""mixup, CutMix, label smoothing, RandAugment and random erasing: what they make, and that they depend on the sample alone."""

from __future__ import annotations

import io

import numpy as np
import polymodal
import pytest
import torch
from contract.cases import write_shards
from PIL import Image
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.run import checkpoint
from polymodal.pipelines.run.recipe import recipe
from polymodal.pipelines.train.loop import pretrain
from polymodal.shared.errors import UserError
from polymodal.shared.sample import Sample
from polymodal.vision.classify import ImageClassification, Mixing
from polymodal.vision.transforms import Augmentation, Preprocessing, erased, rand_augment
from safetensors.torch import load_file
from torch.nn import functional as F

BLACK, WHITE = torch.zeros(3, 20, 30, dtype=torch.uint8), torch.full((3, 20, 30), 200, dtype=torch.uint8)


def sample(label, level, partner=None):
    out = io.BytesIO()
    Image.new("RGB", (16, 16), (level,) * 3).save(out, "PNG")
    made = Sample(f"s{level}", {"png": out.getvalue() if level < 256 else b"broken", "cls": str(label).encode()}, index=level)
    made.pair_with(lambda: partner)
    return made


def objective(**mixing):
    return ImageClassification(Preprocessing(image_size=16), 3, ("cat", "dog", "hen"), Augmentation(), Mixing(**mixing))


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_mixup_blends_by_a_beta_share(alpha):
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(2000):
        mixed, share = Mixing(mixup=alpha).mix(BLACK, WHITE, rng)
        assert (mixed == mixed[0, 0, 0]).all() and mixed.dtype == torch.uint8 and abs(int(mixed[0, 0, 0]) - 200 * (1 - share)) <= 0.5 + 1e-4
        shares.append(share)
    assert abs(np.mean(shares) - 0.5) < 4 * np.std(shares) / 2000**0.5
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.12)


def test_cutmix_pastes_a_box_and_tells_what_is_left():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(500):
        mixed, share = Mixing(cutmix=1.0).mix(BLACK, WHITE, rng)
        pasted = (mixed[0] == 200).numpy()
        assert share == pytest.approx(1 - pasted.mean()) and (mixed == mixed[:1]).all()
        rows, columns = np.flatnonzero(pasted.any(1)), np.flatnonzero(pasted.any(0))
        assert not pasted.any() or pasted[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        shares.append(share)
    assert 0.5 < np.mean(shares) < 0.75, "a box that reaches over the edge is smaller"
    kinds = [len(mixed.unique()) > 1 for mixed, _ in (Mixing(mixup=1.0, cutmix=1.0).mix(BLACK, WHITE, rng) for _ in range(400))]
    assert 130 < sum(kinds) < 230, "about half of them are cut"


def test_a_picture_is_mixed_with_its_partner():
    mixing, rng = objective(mixup=1.0), np.random.default_rng
    assert mixing.needs_partner and not mixing.evaluation().needs_partner and not objective().needs_partner
    assert not objective(mixup=1.0, prob=0.0).needs_partner
    (example,) = mixing.example(sample(0, 0, sample(2, 200)), rng(1))
    assert (example.label, example.other) == (0, 2) and int(example.pixels.max()) == round(200 * (1 - example.share))
    assert mixing.describe(example).rows[0][1] == f"{example.share:.0%} cat, {1 - example.share:.0%} hen"
    batch = mixing.collate([example, *mixing.example(sample(1, 50), rng(0))])  # without a partner
    assert batch.labels.tolist() == [0, 1] and batch.others.tolist() == [2, 1]
    assert batch.shares.tolist() == pytest.approx([example.share, 1])
    (alone,) = mixing.example(sample(1, 50, sample(2, 256)), rng(0))
    assert (alone.other, alone.share) == (-1, 1.0) and int(alone.pixels.max()) == 50, "a damaged partner is told in its own turn"
    (held_out,) = mixing.evaluation().example(sample(0, 0, sample(2, 200)), rng(1))
    assert held_out.other == -1
    mixed = sum(next(iter(objective(mixup=1.0, prob=0.3).example(sample(0, 0, sample(2, 200)), rng(n)))).other >= 0 for n in range(400))
    assert 80 < mixed < 160


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_the_loss_of_mixed_pictures_is_that_of_both_classes(loss):
    torch.manual_seed(0)
    sys = polymodal.system("vit", size="tiny", classes=("cat", "dog", "hen"), hidden_size=16, num_attention_heads=2, intermediate_size=16,
                           image_size=16, objective={"loss": loss, "label_smoothing": 0.2, "mixing": {"mixup": 1.0}})  # fmt: skip
    batch = sys.objective.collate([next(iter(sys.objective.example(sample(n % 3, 40 * n, sample(2, 200)), np.random.default_rng(n))))
                                   for n in range(4)])  # fmt: skip
    logits = sys.net(sys.normalize(batch.images)).logits

    def each(labels, smoothing):
        if loss == "softmax":
            return F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        targets = F.one_hot(labels, 3) * (1 - smoothing) + smoothing / 3
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(-1)

    def expected(smoothing):
        return (batch.shares * each(batch.labels, smoothing) + (1 - batch.shares) * each(batch.others, smoothing)).sum()

    assert torch.allclose(sys(batch).terms["classification"].total, expected(0.2), rtol=1e-5)
    assert torch.allclose(sys.eval()(batch).terms["classification"].total, expected(0.0), rtol=1e-5), "smoothing is for training"


def test_a_run_with_all_of_it_continues_bit_for_bit(tmp_path):
    """Also on other micro-batches: up to rounding, the same pictures give the same first update."""
    data = write_shards(tmp_path / "data", range(16))
    settings = ["data.global_batch=8", "data.window=8", "data.lanes=2", "max_updates=3", "log.every=1", "log.tensorboard=false",
                "precision=32", "checkpoint.every=2", "checkpoint.keep_best=false", "checkpoint.keep_last=9", "evaluate.monitor=loss",
                "model.drop_path_rate=0.3", "objective.augmentation.rand_augment=[2, 9]"]  # fmt: skip

    def run(out, *more, **options):
        rows = pretrain(recipe("mae-classify-tiny", [*settings, *more]), data, tmp_path / out, console=Console(quiet=True), **options)
        return rows["train"]

    whole = run("whole", "data.micro_batch=4")
    again = run("again", "data.micro_batch=4", resume=str(tmp_path / "whole/checkpoints" / checkpoint.name_of(2)))
    assert whole["loss"] == again["loss"]
    files = [(tmp_path / out / "checkpoints" / checkpoint.name_of(3)).glob("shard-*.safetensors") for out in ("whole", "again")]
    last = [{name: tensor for file in found for name, tensor in load_file(file).items()} for found in files]
    assert last[0].keys() == last[1].keys() and all(torch.equal(last[0][name], last[1][name]) for name in last[0])
    still = ["model.drop_path_rate=0", "max_updates=1"]
    one, two = run("one", *still), run("two", *still, "data.micro_batch=2")
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-5) and one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-4)


# ----------------------------------------------------------------------------------------------- pictures


def test_rand_augment_draws_from_its_generator_alone():
    view = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (3, 32, 32), dtype=np.uint8))
    before = torch.get_rng_state()
    made = [rand_augment(view, 2, 9, np.random.default_rng(seed)) for seed in range(20)]
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    assert all(torch.equal(a, rand_augment(view, 2, 9, np.random.default_rng(seed))) for seed, a in enumerate(made))
    assert len({m.numpy().tobytes() for m in made}) > 12 and all(m.dtype == torch.uint8 and m.shape == view.shape for m in made)


def test_erasing_fills_a_box_with_noise():
    preprocessing, rng = Preprocessing(image_size=64, image_mean=(0.2, 0.5, 0.8), image_std=(0.05, 0.1, 0.05)), np.random.default_rng(0)
    view = torch.zeros(3, 64, 64, dtype=torch.uint8)
    areas, values = [], []
    for _ in range(200):
        made = erased(view, preprocessing, rng)
        touched = (made[2] > 0).numpy()
        rows, columns = np.flatnonzero(touched.any(1)), np.flatnonzero(touched.any(0))
        assert touched[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        areas.append(touched.mean())
        values.append(made[:, torch.from_numpy(touched)].float().mean(1))
    assert min(areas) > 0.015 and max(areas) < 0.34 and abs(np.mean(areas) - 0.176) < 0.03
    assert torch.allclose(torch.stack(values).mean(0), torch.tensor([51.0, 127.5, 204.0]), atol=1.0)
    assert not view.any(), "the picture that came in is as it was"
    shown = Augmentation(erase=1.0).pixels(np.zeros((20, 20, 3), dtype=np.uint8), preprocessing, np.random.default_rng(1))
    assert shown.any() and not Augmentation().pixels(np.zeros((20, 20, 3), dtype=np.uint8), preprocessing, np.random.default_rng(1)).any()


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Mixing(mixup=-1), "mixup -1"), (lambda: Mixing(prob=2), "prob 2"), (lambda: Augmentation(erase=1.5), "erase"),
    (lambda: Augmentation(rand_augment=(2, 31)), "magnitude from 0 to 30"), (lambda: Augmentation(rand_augment=(-1, 3)), "0 or more"),
    (lambda: recipe("vit-tiny", ["objective.label_smoothing=1"]), "label_smoothing is 1.0, expected a fraction"),
    (lambda: recipe("vit-tiny", ["objective.mixing.mixpu=1"]), "did you mean objective.mixing.mixup"),
])  # fmt: skip
def test_mistakes_are_told(make, message):
    with pytest.raises(UserError, match=message):
        make()
