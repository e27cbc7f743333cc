"""Recipes for GPT-2."""

from __future__ import annotations

from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings


def gpt2_tiny() -> Recipe:
    """GPT-2 with 2 blocks of width 128 and 128 positions: about a minute on a laptop.

    Paper: Radford et al. 2019, Language Models are Unsupervised Multitask Learners (the architecture).
    Target: none in the paper; this is a tutorial and a smoke test. Perplexity should be well below the unigram baseline.
    Deviates: size, learning rate (AdamW 2e-3 works for this width), no dropout (one pass over little text).
    Measured: 2026-11-21, a run of 300 updates on 1.9 MB of Python's documentation (`polymodal demo`): held-out perplexity 328, unigram
    baseline 717.
    Cost: 46 s for the 300 updates on 2 cores (AMD EPYC, AVX-512, no GPU, bf16-mixed), including one kill and resume.
    Command: polymodal pretrain gpt2-tiny --data DATA --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="gpt2-tiny", system="gpt2", size="tiny", model={"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        data=DataSettings(global_batch=16, window=1024),
        optim=OptimSettings(lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1),
        schedule=ScheduleSettings("cosine", warmup=20, final=0.1),
        max_updates=500, log=LogSettings(every=10), evaluate=EvaluateSettings(every=100, limit=256),
        checkpoint=CheckpointSettings(every=100),
    )


def gpt2_small() -> Recipe:
    """GPT-2 with 6 blocks of width 384 and 512 positions: hours on one GPU.

    Paper: Radford et al. 2019 (the architecture); learning rate and weight decay as in Brown et al. 2020, table 2.1.
    Target: none published for this size.
    Cost: not measured.
    Command: polymodal pretrain gpt2-small --data DATA --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="gpt2-small", system="gpt2", size="small",
        data=DataSettings(global_batch=128, workers=4),
        optim=OptimSettings(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1),
        schedule=ScheduleSettings("cosine", warmup=1000, final=0.1),
        max_updates=50_000, log=LogSettings(every=50), evaluate=EvaluateSettings(every=1000, limit=2048),
        checkpoint=CheckpointSettings(every=1000, keep_last=3, keep_every=10_000),
    )


def gpt2_base() -> Recipe:
    """The smallest GPT-2 of the paper: 12 blocks, width 768, 1024 positions, 124M parameters.

    Paper: Radford et al. 2019, Language Models are Unsupervised Multitask Learners. Batch 512 x 1024 tokens on WebText (40 GB). Its
    learning rate was tuned by hand and not published; this recipe uses that of GPT-3 125M (Brown et al. 2020, table 2.1: 6e-4, Adam
    0.9/0.95, weight decay 0.1, clip 1, cosine decay to a tenth).
    Target: WikiText-2 perplexity 29.41, LAMBADA accuracy 45.99, LAMBADA perplexity 35.13 (paper, table 3).
    Unverified: never trained to the end; WebText was never released.
    Cost: not measured.
    Command: torchrun --nproc-per-node 8 -m polymodal pretrain gpt2-base --data DATA --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="gpt2-base", system="gpt2", size="base",
        data=DataSettings(global_batch=512, micro_batch=16, workers=8),
        optim=OptimSettings(lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1),
        schedule=ScheduleSettings("cosine", warmup=2000, final=0.1),
        max_updates=600_000, log=LogSettings(every=100), evaluate=EvaluateSettings(every=5000, limit=4096),
        checkpoint=CheckpointSettings(every=2000, keep_last=3, keep_every=50_000),
    )


RECIPES = (gpt2_tiny, gpt2_small, gpt2_base)
