"""Recipes for BEiT."""

from __future__ import annotations

from dataclasses import replace

from ...vision.transforms import HALF
from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings

TUNED = {"use_mask_token": False, "use_shared_relative_position_bias": False, "use_relative_position_bias": True}
"""What becomes of the config in fine-tuning: each layer has a table of relative positions of its own."""


def beit_tiny() -> Recipe:
    """A BEiT of `vit-tiny`'s shape on small pictures, with the visual tokens of a `dvae-tiny`: minutes on a laptop.

    Paper: Bao et al. 2021, BEiT: BERT Pre-Training of Image Transformers (the objective).
    Target: none in the paper; this is a tutorial and a smoke test. The cross-entropy should be below the entropy of the visual tokens
    (`visual_tokens_chance`), which a predictor reaches that does not see the picture.
    Measured: 2026-11-28, seed 0, with `--max-updates 300`: cross-entropy 1.303 on the masked patches of the 297 held-out digits, where the
    entropy of their visual tokens is 1.599; 48.9 % are right.
    Deviates: size, batch, learning rate, little augmentation; blocks from 4 patches on, as there are 64 and not 196.
    Data: `python examples/handwritten_digits.py DIGITS`; `polymodal pack DIGITS/all --out DATA`; `polymodal pack DIGITS/held --out HELD`.
    Cost: not measured alone; 96 s of one thread's time for 300 updates on 2 cores (Intel Xeon at 2.8 GHz, AVX-512, fp32), beside other
    work.
    Command: polymodal pretrain beit-tiny --set companions.tokenizer=DVAE --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="beit-tiny", system="beit", size="tiny",
        objective={"min_block": 4, "augmentation": {"crop_scale": [0.6, 1.0], "flip": 0.0, "jitter": [0.0, 0.0, 0.0, 0.0]}},
        data=DataSettings(global_batch=64, window=1024),
        optim=OptimSettings(lr=1.5e-3, weight_decay=0.05, clip=3.0),
        schedule=ScheduleSettings("cosine", warmup=50),
        max_updates=500, log=LogSettings(every=10), evaluate=EvaluateSettings(every=100, limit=512),
        checkpoint=CheckpointSettings(every=100),
    )  # fmt: skip


def beit_base() -> Recipe:
    """BEiT-B/16 on ImageNet-1k for 800 epochs, as in the paper.

    Paper: Bao et al. 2021, appendix (pretraining): AdamW (0.9, 0.999), weight decay 0.05, batch 2048, 1.5e-3, warmup of 10 epochs, cosine
    schedule, clip 3, stochastic depth 0.1, layer scale 0.1, a crop, a flip and other colours.
    Target: 83.2% top-1 after fine-tuning (paper).
    Deviates: the tokenizer is a `dvae-base` of your own; the paper has DALL-E's, trained on 250 million pictures.
    Unverified: never trained to the end.
    Cost: not measured.
    Command: torchrun --nproc-per-node 8 -m polymodal pretrain beit-base --set companions.tokenizer=DVAE --data DATA --out RUN
    """
    return Recipe(
        name="beit-base", system="beit", size="base", objective={"token_image_size": 112},
        data=DataSettings(global_batch=2048, micro_batch=128, workers=8),
        optim=OptimSettings(lr=1.5e-3, weight_decay=0.05, clip=3.0),
        schedule=ScheduleSettings("cosine", warmup=6250),
        max_updates=500_400, log=LogSettings(every=50), evaluate=EvaluateSettings(every=5000, limit=4096),
        checkpoint=CheckpointSettings(every=1000, keep_last=3, keep_every=25_000),
    )


def beit_classify() -> Recipe:
    """BEiT-B/16, fine-tuned: mean of the patches, a table of positions for each layer, layer-wise learning rates, stochastic depth.

    Paper: Bao et al. 2021, appendix (fine-tuning), and the authors' code: AdamW, batch 1024, 4e-3, layer-wise decay 0.65, weight decay
    0.05, 100 epochs, warmup of 20 epochs, cosine schedule, stochastic depth 0.1, RandAugment (2, 9), random erasing 0.25, mixup 0.8,
    CutMix 1.0, label smoothing 0.1, head from N(0, 2e-5).
    Target: 83.2% top-1 on ImageNet-1k from 800 epochs of pretraining there (paper).
    Deviates: RandAugment is torchvision's (the code has timm's, whose magnitudes vary); mixup and CutMix mix a picture with a random other
    one of the shuffle window, not of its batch.
    Unverified: the published weights were not available in the development environment.
    Cost: not measured.
    Command: polymodal finetune beit-classify --model BEIT --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="beit-classify", system="beit", size="base", task="classify", model=TUNED,
        objective={"augmentation": {"crop_scale": [0.08, 1.0], "flip": 0.5, "rand_augment": [2, 9], "erase": 0.25},
                   "mixing": {"mixup": 0.8, "cutmix": 1.0}, "label_smoothing": 0.1, "head_std": 2e-5, "image_mean": list(HALF),
                   "image_std": list(HALF)},
        data=DataSettings(global_batch=1024, micro_batch=64, workers=8),
        optim=OptimSettings(lr=4e-3, weight_decay=0.05, layer_decay=0.65, clip=None),
        schedule=ScheduleSettings("cosine", warmup=25_000),
        max_updates=125_000, log=LogSettings(every=50), evaluate=EvaluateSettings(every=2500, monitor="accuracy"),
        checkpoint=CheckpointSettings(every=1000, keep_best=True),
    )  # fmt: skip


def beit_classify_tiny() -> Recipe:
    """A BEiT of 2 layers, fine-tuned: a minute on a laptop. As `pretrain` it begins from scratch.

    Paper: Bao et al. 2021 (the method).
    Target: none in the paper; this is a tutorial and a smoke test.
    Measured: docs/finetuning.md, with 100 labelled digits: after 300 updates of pretraining no better than from scratch.
    Deviates: size, batch, learning rates, little augmentation.
    Cost: not measured alone; 70 s of one thread's time for 300 updates on 2 cores (Intel Xeon at 2.8 GHz, AVX-512, fp32), beside other
    work.
    Command: polymodal finetune beit-classify-tiny --model BEIT --data DATA --eval-data HELD --out RUN
    """
    return replace(
        beit_classify(), name="beit-classify-tiny", size="tiny",
        objective={**beit_classify().objective, "augmentation": {"crop_scale": [0.6, 1.0], "flip": 0.0, "erase": 0.25},
                   "mixing": {"mixup": 0.2, "cutmix": 1.0, "prob": 0.5}, "label_smoothing": 0.05, "head_std": None},
        data=DataSettings(global_batch=64, window=1024), optim=OptimSettings(lr=1e-3, weight_decay=0.05, layer_decay=0.75),
        schedule=ScheduleSettings("cosine", warmup=30), max_updates=300, log=LogSettings(every=10),
        evaluate=EvaluateSettings(every=50, monitor="accuracy"), checkpoint=CheckpointSettings(every=50, keep_best=True),
    )  # fmt: skip


RECIPES = (beit_tiny, beit_base, beit_classify, beit_classify_tiny)
