"""Recipes for Transformer-XL."""

from __future__ import annotations

from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings


def transformer_xl_tiny() -> Recipe:
    """Transformer-XL with 3 blocks of width 128, segments of 64 tokens and a memory of 128: a few minutes on a laptop.

    Paper: Dai et al. 2019, Transformer-XL (the architecture; plain softmax).
    Target: none in the paper; this is a tutorial and a smoke test. Held-out perplexity should fall as the memory grows.
    Measured: 2026-11-21, on documentation and docstrings of Python's standard library (1.9 MB, 4096 byte-bpe tokens; 489k tokens for
    training, 31k held out by document). Held-out perplexity of the unigram: 688. After 1500 updates, by the memory at evaluation
    (`evaluate perplexity --memory N`): 0 115.7, 16 102.7, 32 102.0, 64 101.5, 128 101.3, and 256, longer than in training, 101.7. With
    rows of 16 tokens the memory matters more (`--block 16`, data.global_batch=64, model.mem_len=96, 770 updates): 0 187.3, 8 136.4,
    16 129.4, 32 128.0, 64 127.4, 96 127.3.
    Deviates: size, no adaptive softmax (the vocabulary is small), AdamW with weight decay, no dropout.
    Data: `pack --tokenize TOKENIZER --block 64 --in-order`.
    Cost: 17 minutes on one thread of two cores (AMD EPYC, no GPU), shared with other work.
    Command: polymodal pretrain transformer-xl-tiny --data DATA --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="transformer-xl-tiny", system="transformer_xl", size="tiny", model={"dropout": 0.0},
        data=DataSettings(global_batch=16),
        optim=OptimSettings(lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1, clip=0.25),
        schedule=ScheduleSettings("cosine", warmup=50, final=0.1),
        max_updates=1500, log=LogSettings(every=10), evaluate=EvaluateSettings(every=500),
        checkpoint=CheckpointSettings(every=500),
    )


def transformer_xl_base() -> Recipe:
    """The paper's smaller WikiText-103 model: 16 blocks of width 410, 151M parameters, 200,000 updates.

    Paper: Dai et al. 2019, Transformer-XL, section 4.1, and the published script: 60 segments of 150 tokens, memory 150, Adam 2.5e-4
    with a cosine decay to zero without warmup, clip 0.25, dropout 0.1, cutoffs 20k, 40k and 200k.
    Target: WikiText-103 test perplexity 24.0 (table 1), evaluated on segments of 64 with a memory of 640 (`evaluate perplexity --memory
    640`), with distances clamped at 400 and `same_length` (`clamp_len`, `same_length` in the export's config.json).
    Deviates: the cutoffs are for a vocabulary of words sorted by frequency; cutoffs beyond the tokenizer's vocabulary are dropped.
    Data: `tokenizer train --kind word --size 267735`, then `pack --tokenize TOKENIZER --block 150 --in-order`.
    Unverified: never trained to the end.
    Cost: not measured.
    Command: torchrun --nproc-per-node 4 -m polymodal pretrain transformer-xl-base --data DATA --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="transformer-xl-base", system="transformer_xl", size="base",
        data=DataSettings(global_batch=60, workers=2),
        optim=OptimSettings(lr=2.5e-4, betas=(0.9, 0.999), weight_decay=0.0, clip=0.25),
        schedule=ScheduleSettings("cosine", warmup=0, final=0.0),
        max_updates=200_000, log=LogSettings(every=100), evaluate=EvaluateSettings(every=4000),
        checkpoint=CheckpointSettings(every=2000, keep_last=3, keep_every=50_000),
    )


RECIPES = (transformer_xl_tiny, transformer_xl_base)
