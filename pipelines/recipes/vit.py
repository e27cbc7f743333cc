"""Recipes for ViT."""

from __future__ import annotations

from dataclasses import replace

from ...vision.transforms import IMAGENET_MEAN, IMAGENET_STD
from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings


def vit_tiny() -> Recipe:
    """A ViT of 2 layers and width 128 on small images: about a minute on a laptop.

    Paper: Dosovitskiy et al. 2021, An Image is Worth 16x16 Words (the architecture).
    Target: none in the paper; this is a tutorial and a smoke test.
    Cost: not measured.
    Command: polymodal pretrain vit-tiny --data DATA --out RUN
    """
    return Recipe(
        name="vit-tiny", system="vit", size="tiny",
        data=DataSettings(global_batch=64, window=1024),
        optim=OptimSettings(lr=1e-3, weight_decay=0.05),
        schedule=ScheduleSettings("cosine", warmup=30),
        max_updates=500, log=LogSettings(every=10), evaluate=EvaluateSettings(every=100, limit=512),
        checkpoint=CheckpointSettings(every=100),
    )


def vit_small() -> Recipe:
    """ViT-S/16 on ImageNet-1k for 90 epochs: one node.

    Paper: Beyer, Zhai, Kolesnikov 2022, Better plain ViT baselines for ImageNet-1k: batch 1024, Adam 1e-3, weight decay 1e-4 scaled by
    the learning rate schedule (equal to AdamW 0.1 at a peak of 1e-3), warmup 10k, cosine schedule, clip 1.
    Target: 76.5% top-1 after 90 epochs (paper, table 1).
    Deviates: class token instead of global average pooling, no RandAugment and no mixup, so expect a lower accuracy.
    Unverified: never trained to the end.
    Cost: not measured.
    Command: torchrun --nproc-per-node 8 -m polymodal pretrain vit-small --data DATA --out RUN
    """
    return Recipe(
        name="vit-small", system="vit", size="small",
        data=DataSettings(global_batch=1024, workers=8),
        optim=OptimSettings(lr=1e-3, weight_decay=0.1),
        schedule=ScheduleSettings("cosine", warmup=10_000),
        max_updates=112_590, log=LogSettings(every=50), evaluate=EvaluateSettings(every=5000),
        checkpoint=CheckpointSettings(every=1000, keep_last=3, keep_every=25_000),
    )


def vit_base() -> Recipe:
    """ViT-B/16 on ImageNet-1k for 300 epochs, as in the paper.

    Paper: Dosovitskiy et al. 2021, table 3 (ImageNet-1k): batch 4096, Adam 3e-3, weight decay 0.3, dropout 0.1, warmup 10k, cosine
    schedule, clip 1, images of 224 x 224.
    Target: 77.9% top-1 after fine-tuning at 384 x 384 with `vit-classify` (paper, table 5).
    Unverified: never trained to the end.
    Cost: not measured.
    Command: torchrun --nproc-per-node 8 -m polymodal pretrain vit-base --data DATA --out RUN
    """
    return Recipe(
        name="vit-base", system="vit", size="base", model={"hidden_dropout_prob": 0.1},
        data=DataSettings(global_batch=4096, micro_batch=128, workers=8),
        optim=OptimSettings(lr=3e-3, weight_decay=0.3),
        schedule=ScheduleSettings("cosine", warmup=10_000),
        max_updates=93_900, log=LogSettings(every=50), evaluate=EvaluateSettings(every=5000),
        checkpoint=CheckpointSettings(every=1000, keep_last=3, keep_every=10_000),
    )


def vit_classify() -> Recipe:
    """ViT fine-tuned at 384 x 384 pixels, whatever it was pretrained at: its positions are resampled.

    Paper: Dosovitskiy et al. 2021, appendix B.1.1: SGD with momentum 0.9, batch 512, cosine schedule, no weight decay, clip 1; 20,000
    updates on ImageNet-1k with the best of the learning rates 0.003, 0.01, 0.03 and 0.06.
    Target: 77.9% top-1 for ViT-B/16 pretrained on ImageNet-1k, 84.0% from ImageNet-21k (paper, table 5).
    Deviates: one learning rate, 0.01; positions resampled bicubically.
    Unverified: the published weights were not available in the development environment.
    Cost: not measured.
    Command: polymodal finetune vit-classify --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="vit-classify", system="vit", size="base", task="classify", model={"image_size": 384, "hidden_dropout_prob": 0.0},
        objective={"head_std": 0.0},
        data=DataSettings(global_batch=512, micro_batch=32, workers=8),
        optim=OptimSettings("sgd", lr=0.01, weight_decay=0.0),
        schedule=ScheduleSettings("cosine", warmup=500),
        max_updates=20_000, log=LogSettings(every=50), evaluate=EvaluateSettings(every=1000, monitor="accuracy"),
        checkpoint=CheckpointSettings(every=1000, keep_best=True),
    )


def vit_probe() -> Recipe:
    """A linear probe: a head alone is trained on the class token of a frozen encoder, a ViT's or an MAE's, behind a batch norm.

    Paper: He et al. 2021, Masked Autoencoders Are Scalable Vision Learners, table 10 (linear probing): batch norm without gain and bias,
    LARS, momentum 0.9, no weight decay, batch 16,384, 0.1 x batch / 256, 90 epochs, warmup of 10 epochs, cosine schedule, a crop and a
    flip.
    Target: 68.0% top-1 on ImageNet-1k with the encoder of `mae-base` (paper, appendix).
    Deviates: the norm's statistics are those of a micro-batch; the code's are those of a GPU's share (512).
    Unverified: the published weights were not available in the development environment.
    Cost: not measured.
    Command: polymodal finetune vit-probe --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="vit-probe", system="vit", size="base", task="classify",
        model={"pooling": "cls", "fc_norm": False, "head_norm": True, "hidden_dropout_prob": 0.0, "drop_path_rate": 0.0},
        objective={"augmentation": {"crop_scale": [0.08, 1.0], "flip": 0.5}, "head_std": 0.01, "image_mean": list(IMAGENET_MEAN),
                   "image_std": list(IMAGENET_STD)},
        data=DataSettings(global_batch=16_384, micro_batch=512, workers=8),
        optim=OptimSettings("lars", lr=6.4, weight_decay=0.0, clip=None, freeze=("net.trunk",)),
        schedule=ScheduleSettings("cosine", warmup=782),
        max_updates=7038, log=LogSettings(every=10), evaluate=EvaluateSettings(every=250, monitor="accuracy"),
        checkpoint=CheckpointSettings(every=100, keep_best=True),
    )  # fmt: skip


def vit_probe_tiny() -> Recipe:
    """A linear probe of the encoder of `mae-tiny` or of a `vit-tiny`: a minute on a laptop.

    Paper: He et al. 2021, table 10 (the method).
    Target: none in the paper; this is a tutorial and a smoke test.
    Measured: docs/finetuning.md, with 100 labelled digits: 0.764 of 297 right with MAE's encoder (with `--set model.pooling=mean` 0.832),
    0.481 (0.498) with random weights.
    Deviates: size, batch, SGD instead of LARS (which is for large batches), learning rate, little augmentation.
    Cost: not measured alone; 65 s for 300 updates on one thread of 2 cores (Intel Xeon at 2.8 GHz, AVX-512, fp32), beside other work.
    Command: polymodal finetune vit-probe-tiny --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return replace(
        vit_probe(), name="vit-probe-tiny", size="tiny",
        objective={**vit_probe().objective, "augmentation": {"crop_scale": [0.6, 1.0], "flip": 0.0}},
        data=DataSettings(global_batch=64, window=1024),
        optim=replace(vit_probe().optim, name="sgd", lr=0.1),
        schedule=ScheduleSettings("cosine", warmup=30), max_updates=300, log=LogSettings(every=10),
        evaluate=EvaluateSettings(every=50, monitor="accuracy"), checkpoint=CheckpointSettings(every=50, keep_best=True),
    )  # fmt: skip


RECIPES = (vit_tiny, vit_small, vit_base, vit_classify, vit_probe, vit_probe_tiny)
