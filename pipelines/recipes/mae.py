"""Recipes for MAE."""

from __future__ import annotations

from dataclasses import replace

from ...vision.transforms import IMAGENET_MEAN, IMAGENET_STD
from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings


def mae_tiny() -> Recipe:
    """An MAE whose encoder is `vit-tiny`'s, with one decoder block of width 64, on small pictures: minutes on a laptop.

    Paper: He et al. 2021, Masked Autoencoders Are Scalable Vision Learners (the objective).
    Target: none in the paper; this is a tutorial and a smoke test. The error should be below that of always drawing the same grey
    (`reconstruction_chance`).
    Measured: 2026-11-28, seed 0: squared error 0.290 on the 297 held-out digits, where one grey has 2.516. (Each patch's own mean, which
    nobody can know who does not see the patch, has 0.235 over all patches.) With `--set model.norm_pix_loss=true`, after 250 of the 1000
    updates, where that run was stopped: 0.459, where each patch's own mean has 0.979.
    Deviates: size, batch, learning rate; plain pixels, as few of them lie in patches of 4 x 4.
    Data: `python examples/handwritten_digits.py DIGITS`; `polymodal pack DIGITS/all --out DATA`; `polymodal pack DIGITS/held --out HELD`.
    Cost: not measured alone; 150 s of one thread's time for 1000 updates on 2 cores (Intel Xeon at 2.8 GHz, AVX-512, fp32), beside other
    work.
    Command: polymodal pretrain mae-tiny --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="mae-tiny", system="mae", size="tiny",
        data=DataSettings(global_batch=64, window=1024),
        optim=OptimSettings(lr=1.5e-3, betas=(0.9, 0.95), weight_decay=0.05),
        schedule=ScheduleSettings("cosine", warmup=50),
        max_updates=1000, log=LogSettings(every=10), evaluate=EvaluateSettings(every=100, limit=512),
        checkpoint=CheckpointSettings(every=100),
    )


def mae_base() -> Recipe:
    """MAE ViT-B/16 on ImageNet-1k for 1600 epochs, as in the paper.

    Paper: He et al. 2021, table 8 (pretraining): AdamW (0.9, 0.95), weight decay 0.05, batch 4096, 1.5e-4 x batch / 256, warmup of 40
    epochs, cosine schedule, a crop and a flip; normalised pixels.
    Target: 83.6% top-1 after fine-tuning (paper, table 3).
    Unverified: never trained to the end.
    Cost: not measured.
    Command: torchrun --nproc-per-node 8 -m polymodal pretrain mae-base --data DATA --out RUN
    """
    return Recipe(
        name="mae-base", system="mae", size="base",
        data=DataSettings(global_batch=4096, micro_batch=256, workers=8),
        optim=OptimSettings(lr=2.4e-3, betas=(0.9, 0.95), weight_decay=0.05, clip=None),
        schedule=ScheduleSettings("cosine", warmup=12_500),
        max_updates=500_400, log=LogSettings(every=50), evaluate=EvaluateSettings(every=5000, limit=4096),
        checkpoint=CheckpointSettings(every=1000, keep_last=3, keep_every=25_000),
    )


def mae_classify() -> Recipe:
    """A ViT-B/16 with MAE's encoder, fine-tuned: mean of the patches, layer-wise learning rates, stochastic depth.

    Paper: He et al. 2021, table 9: AdamW, batch 1024, 5e-4 x batch / 256 (the code's for ViT-B), layer-wise decay 0.65, weight decay 0.05,
    100 epochs, warmup of 5 epochs, cosine schedule, stochastic depth 0.1, RandAugment (2, 9), random erasing 0.25, mixup 0.8, CutMix 1.0,
    label smoothing 0.1.
    Target: 83.6% top-1 on ImageNet-1k from 1600 epochs of pretraining (paper, table 3).
    Deviates: RandAugment is torchvision's (the code has timm's, whose magnitudes vary); mixup and CutMix mix a picture with a random other
    one of the shuffle window, not of its batch.
    Unverified: the published weights were not available in the development environment.
    Cost: not measured.
    Command: polymodal finetune mae-classify --model MAE --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="mae-classify", system="vit", size="base", task="classify",
        model={"pooling": "mean", "fc_norm": True, "drop_path_rate": 0.1},
        objective={"augmentation": {"crop_scale": [0.08, 1.0], "flip": 0.5, "rand_augment": [2, 9], "erase": 0.25},
                   "mixing": {"mixup": 0.8, "cutmix": 1.0}, "label_smoothing": 0.1, "head_std": 2e-5, "image_mean": list(IMAGENET_MEAN),
                   "image_std": list(IMAGENET_STD)},
        data=DataSettings(global_batch=1024, micro_batch=64, workers=8),
        optim=OptimSettings(lr=2e-3, weight_decay=0.05, layer_decay=0.65, clip=None),
        schedule=ScheduleSettings("cosine", warmup=6250),
        max_updates=125_000, log=LogSettings(every=50), evaluate=EvaluateSettings(every=2500, monitor="accuracy"),
        checkpoint=CheckpointSettings(every=1000, keep_best=True),
    )  # fmt: skip


def mae_classify_tiny() -> Recipe:
    """A ViT of 2 layers with the encoder of `mae-tiny`, fine-tuned: a minute on a laptop. As `pretrain` it begins from scratch.

    Paper: He et al. 2021, table 9 (the method).
    Target: none in the paper; this is a tutorial and a smoke test.
    Measured: docs/finetuning.md, with 100 labelled digits: 0.923 of 297 right, from scratch 0.731.
    Deviates: size, batch, learning rates, little augmentation.
    Cost: not measured alone; 100 s of one thread's time for 300 updates on 2 cores (Intel Xeon at 2.8 GHz, AVX-512, fp32), beside other
    work.
    Command: polymodal finetune mae-classify-tiny --model MAE --data DATA --eval-data HELD --out RUN
    """
    return replace(
        mae_classify(), name="mae-classify-tiny", size="tiny",
        objective={**mae_classify().objective, "augmentation": {"crop_scale": [0.6, 1.0], "flip": 0.0, "erase": 0.25},
                   "mixing": {"mixup": 0.2, "cutmix": 1.0, "prob": 0.5}, "label_smoothing": 0.05, "head_std": None},
        data=DataSettings(global_batch=64, window=1024), optim=OptimSettings(lr=1e-3, weight_decay=0.05, layer_decay=0.75),
        schedule=ScheduleSettings("cosine", warmup=30), max_updates=300, log=LogSettings(every=10),
        evaluate=EvaluateSettings(every=50, monitor="accuracy"), checkpoint=CheckpointSettings(every=50, keep_best=True),
    )  # fmt: skip


RECIPES = (mae_tiny, mae_base, mae_classify, mae_classify_tiny)
