"""Recipes for TinyBERT."""

from __future__ import annotations

from dataclasses import replace

from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings


def tinybert_tiny() -> Recipe:
    """A student with 1 layer of width 64 beside a run of bert-tiny, in sequences of 128 tokens: a minute on a laptop.

    Paper: Jiao et al. 2019, TinyBERT: Distilling BERT for Natural Language Understanding (the first stage).
    Target: none in the paper; this is a tutorial and a smoke test. `hidden` should be clearly below `hidden_chance`.
    Measured: 2026-11-28, one seed, beside a `bert-tiny` on Python's documentation: on held-out text the distance of the states is 0.229
    (1.964 for states of 0), that of the attention scores 0.114.
    Deviates: size, batch, learning rate, no dropout.
    Cost: 73 s of processor time on one thread (2 cores Intel Xeon, AVX-512 with AMX, 24 GiB).
    Command: polymodal distill tinybert-tiny --teacher TEACHER --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="tinybert-tiny", system="tinybert", size="tiny", model={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        objective={"max_length": 128, "teacher_size": 128},
        data=DataSettings(global_batch=32, window=1024, workers=1),
        optim=OptimSettings(lr=2e-3, eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=50),
        max_updates=500, log=LogSettings(every=10), evaluate=EvaluateSettings(every=100, limit=256),
        checkpoint=CheckpointSettings(every=100),
    )  # fmt: skip


def tinybert_base() -> Recipe:
    """TinyBERT with 4 layers of width 312, 14M parameters, beside BERT base: the first stage, on text alone.

    Paper: Jiao et al. 2019, section 4.2 and the authors' script: 3 epochs of English Wikipedia, batch 256, sequences of 128 tokens, Adam at
    1e-4, warmup over 10 %, linear decay, weight decay 0.01.
    Target: after the second stage, GLUE test set: MNLI 82.5, SST-2 92.6, QNLI 87.7, average 77.0 (paper, table 1).
    Deviates: the length is given in updates: about 3 epochs of 2.5 billion words.
    Unverified: never trained to the end; the teacher's published weights were not available in the development environment.
    Cost: not measured.
    Command: torchrun --nproc-per-node 8 -m polymodal distill tinybert-base --teacher BERT --data DATA --out RUN
    """
    return Recipe(
        name="tinybert-base", system="tinybert", size="base", objective={"max_length": 128},
        data=DataSettings(global_batch=256, workers=8),
        optim=OptimSettings(lr=1e-4, eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=30_000),
        max_updates=300_000, log=LogSettings(every=50), evaluate=EvaluateSettings(every=5000, limit=4096),
        checkpoint=CheckpointSettings(every=1000, keep_last=3),
    )


def tinybert_classify() -> Recipe:
    """TinyBERT's second stage for a class of a text or a pair of texts: the teacher's predictions; `objective.stage=intermediate` first.

    Paper: Jiao et al. 2019, section 4.2: intermediate for 20 epochs (10 for large tasks) at 5e-5, batch 32, then predictions for 3 epochs
    at 1e-5, 2e-5 or 3e-5, batch 16 or 32.
    Target: GLUE test set: MNLI 82.5, SST-2 92.6, QNLI 87.7 (paper, table 1, with augmented data).
    Deviates: the length is given in updates: 3 epochs of 67k samples (SST-2); `polymodal augment` makes the paper's
    augmented data, which is 20 times as much.
    Unverified: the published weights were not available in the development environment.
    Cost: not measured.
    Command: polymodal distill tinybert-classify --teacher TUNED --model TINYBERT --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="tinybert-classify", system="tinybert", size="base", task="classify", objective={"max_length": 128},
        data=DataSettings(global_batch=32, workers=2),
        optim=OptimSettings(lr=3e-5, eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=630),
        max_updates=6300, log=LogSettings(every=50), evaluate=EvaluateSettings(every=500, monitor="accuracy"),
        checkpoint=CheckpointSettings(every=500, keep_best=True),
    )


def tinybert_classify_tiny() -> Recipe:
    """TinyBERT's second stage with 1 layer of width 64, from a run of tinybert-tiny: a minute on a laptop.

    Paper: Jiao et al. 2019 (the method).
    Target: none in the paper.
    Deviates: 300 updates of 16 texts of 64 tokens; a higher learning rate.
    Cost: not measured.
    Command: polymodal distill tinybert-classify-tiny --teacher TUNED --model TINYBERT --data DATA --eval-data HELD --out RUN
    """
    return replace(
        tinybert_classify(), name="tinybert-classify-tiny", size="tiny", objective={"max_length": 64},
        data=DataSettings(global_batch=16, window=1024), optim=OptimSettings(lr=1e-3, eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=30), max_updates=300, log=LogSettings(every=10),
        evaluate=EvaluateSettings(every=50, limit=512, monitor="accuracy"), checkpoint=CheckpointSettings(every=50, keep_best=True),
    )


RECIPES = (tinybert_tiny, tinybert_base, tinybert_classify, tinybert_classify_tiny)
