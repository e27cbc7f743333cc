"""Recipes for UNIMO."""

from __future__ import annotations

from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings


def unimo_tiny() -> Recipe:
    """UNIMO with 2 layers of width 128 on texts, pictures and pairs, all tasks in turns: minutes on a laptop.

    Paper: Li et al. 2021, UNIMO: Towards Unified-Modal Understanding and Generation via Cross-Modal Contrastive Learning (the objective).
    Target: none in the paper; this is a tutorial and a smoke test.
    Measured: not measured.
    Deviates: size, learning rate, batch, no dropout; initial weights with a standard deviation of 0.08, about 1 / sqrt(128), as in
    `roberta-tiny`.
    Cost: not measured.
    Command: polymodal pretrain unimo-tiny --data TEXTS --data PICTURES --data PAIRS --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="unimo-tiny", system="unimo", size="tiny",
        model={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.08},
        data=DataSettings(global_batch=64, window=1024),
        optim=OptimSettings(lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=60),
        max_updates=1600, log=LogSettings(every=16), evaluate=EvaluateSettings(every=160, limit=256),
        checkpoint=CheckpointSettings(every=160),
    )


def unimo_base() -> Recipe:
    """UNIMO base: 12 layers, width 768, from RoBERTa's weights.

    Paper: Li et al. 2021, section 3.1: from RoBERTa-base, Adam with learning rate 5e-5; texts of BookWiki and OpenWebText, pictures of
    OpenImages and of COCO without labels, pairs of COCO, Visual Genome, Conceptual Captions and SBU; 36 regions of a picture.
    Target: after fine-tuning, Flickr30k image retrieval R@1 74.66, VQA test-dev 73.79, SNLI-VE val 80.00, COCO captions CIDEr 124.4,
    MNLI 86.8.
    Deviates: batch, length, warmup and the shares of the tasks are not published.
    Unverified: never trained to the end; features and weights were not available in the development environment.
    Cost: not measured.
    Command: torchrun --nproc-per-node 8 -m polymodal pretrain unimo-base --model ROBERTA --data TEXTS --data IMAGES --data PAIRS --out RUN
    """
    return Recipe(
        name="unimo-base", system="unimo", size="base",
        data=DataSettings(global_batch=1024, micro_batch=16, workers=8),
        optim=OptimSettings(lr=5e-5, betas=(0.9, 0.98), weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=10_000),
        max_updates=500_000, log=LogSettings(every=80), evaluate=EvaluateSettings(every=5000, limit=4096),
        checkpoint=CheckpointSettings(every=2000, keep_last=3, keep_every=50_000),
    )


def unimo_caption_tiny() -> Recipe:
    """UNIMO tuned to write captions: a minute on a laptop.

    Paper: Li et al. 2021, appendix (the method): label smoothing 0.1, linear decay.
    Target: none in the paper.
    Measured: not measured.
    Deviates: size, learning rate, batch, no dropout.
    Cost: not measured.
    Command: polymodal finetune unimo-caption-tiny --model UNIMO --data PAIRS --eval-data HELD --out RUN
    """
    return Recipe(
        name="unimo-caption-tiny", system="unimo", size="tiny", task="caption",
        model={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        data=DataSettings(global_batch=64, window=1024),
        optim=OptimSettings(lr=5e-4, betas=(0.9, 0.98), weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=20),
        max_updates=300, log=LogSettings(every=20), evaluate=EvaluateSettings(every=100, limit=256),
        checkpoint=CheckpointSettings(every=100),
    )


RECIPES = (unimo_tiny, unimo_base, unimo_caption_tiny)
