"""Recipes for CLIP."""

from __future__ import annotations

from dataclasses import replace

from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings


def clip_tiny() -> Recipe:
    """CLIP with small towers: one or two minutes on a laptop.

    Paper: Radford et al. 2021, Learning Transferable Visual Models From Natural Language Supervision.
    Target: none in the paper; this is a tutorial and a smoke test. Zero-shot accuracy should be well above chance.
    Deviates: size, learning rate, batch size (with fewer pairs per batch the contrastive task is easier).
    Cost: not measured.
    Command: polymodal pretrain clip-tiny --data DATA --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="clip-tiny", system="clip", size="tiny",
        data=DataSettings(global_batch=128, window=2048, workers=1),
        optim=OptimSettings(lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1),
        schedule=ScheduleSettings("cosine", warmup=30),
        max_updates=500, log=LogSettings(every=10), evaluate=EvaluateSettings(every=100, limit=512),
        checkpoint=CheckpointSettings(every=100),
    )


def clip_tiny_siglip() -> Recipe:
    """CLIP's towers with SigLIP's loss: one or two minutes on a laptop.

    Paper: Zhai et al. 2023, Sigmoid Loss for Language Image Pre-Training: a sigmoid for each pair of picture and text, bias -10 and scale
    10 at first.
    Target: none in the paper; this is a tutorial and a smoke test.
    Deviates: CLIP's towers instead of its own, size, learning rate, batch size.
    Cost: not measured.
    Command: polymodal pretrain clip-tiny-siglip --data DATA --tokenizer TOKENIZER --out RUN
    """
    return replace(clip_tiny(), name="clip-tiny-siglip", size="tiny-siglip")


def clip_tiny_locked() -> Recipe:
    """CLIP with a small ResNet that learns to match a pretrained, locked text encoder: the model of `polymodal demo`.

    Paper: Zhai et al. 2022, LiT: Zero-Shot Transfer with Locked-image text Tuning, with the roles of the two towers exchanged; the
    contrastive loss of Radford et al. 2021. Set the text encoder with `--set model.text_tower=DIR`.
    Target: none in the papers.
    Measured: 2026-11-27 on the demo's data (seed 0, 1,506 OpenMoji pictures; 150 unseen concepts to name, chance 0.007 and 0.033), 200
    updates in fp32 with AVX2 kernels on an Intel Xeon at 2.8 GHz: zero-shot top-1 0.300, top-5 0.533, held-out loss 3.20. With crops of
    0.5 to 1 of the area it was 0.273, 0.493 and 3.31.
    Deviates: the text tower is locked instead of the image tower; size, batch size, learning rate.
    Cost: 150 s for 360 updates on 2 cores (AMD EPYC, AVX2, fp32), 2026-11-21.
    Command: polymodal demo
    """
    return Recipe(
        name="clip-tiny-locked", system="clip", size="tiny-resnet",
        model={
            "vision_config": {"image_size": 48}, "projection_dim": 384,
            "text_tower": None, "lock_text": True, "lock_text_projection": True,
        },
        objective={"augmentation": {"crop_scale": [0.35, 1.0], "flip": 0.5, "jitter": [0.2, 0.2, 0.2, 0.0]}},
        data=DataSettings(global_batch=256, window=2048, workers=1),
        optim=OptimSettings(lr=3e-3, betas=(0.9, 0.98), weight_decay=0.1),
        schedule=ScheduleSettings("cosine", warmup=20),
        max_updates=360, log=LogSettings(every=10), evaluate=EvaluateSettings(every=120),
        checkpoint=CheckpointSettings(every=100),
    )


def clip_small() -> Recipe:
    """CLIP with small towers on a few million pairs: one node.

    Paper: Radford et al. 2021 (the method); batch size and schedule as open_clip uses for CC3M and CC12M.
    Target: none published for this size.
    Cost: not measured.
    Command: torchrun --nproc-per-node 8 -m polymodal pretrain clip-small --data DATA --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="clip-small", system="clip", size="small",
        data=DataSettings(global_batch=1024, workers=8),
        optim=OptimSettings(lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1),
        schedule=ScheduleSettings("cosine", warmup=2000),
        max_updates=90_000, log=LogSettings(every=50), evaluate=EvaluateSettings(every=5000, limit=8192),
        checkpoint=CheckpointSettings(every=1000, keep_last=3, keep_every=10_000),
    )


def clip_base() -> Recipe:
    """CLIP ViT-B/32 as in the paper: batch 32,768, 32 epochs of 400M pairs.

    Paper: Radford et al. 2021, tables 18 to 20: AdamW 5e-4 (0.9, 0.98, eps 1e-6), weight decay 0.2 on matrices, warmup 2000, cosine
    schedule, temperature clamped at 100.
    Target: zero-shot ImageNet top-1 63.2% (paper, table 11).
    Unverified: never trained to the end; the 400M pairs were never released.
    Cost: not measured.
    Command: torchrun --nnodes 16 --nproc-per-node 8 -m polymodal pretrain clip-base --data DATA --tokenizer open_clip --out RUN
    """
    return Recipe(
        name="clip-base", system="clip", size="base",
        data=DataSettings(global_batch=32_768, workers=8, lanes=256),
        optim=OptimSettings(lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2),
        schedule=ScheduleSettings("cosine", warmup=2000),
        max_updates=390_625, log=LogSettings(every=50), evaluate=EvaluateSettings(every=5000, limit=32_768),
        checkpoint=CheckpointSettings(every=1000, keep_last=3, keep_every=25_000),
    )


RECIPES = (clip_tiny, clip_tiny_siglip, clip_tiny_locked, clip_small, clip_base)
