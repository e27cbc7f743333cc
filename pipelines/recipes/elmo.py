"""Recipes for ELMo."""

from __future__ import annotations

from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings


def elmo_tiny() -> Recipe:
    """ELMo with two LSTMs of 256 cells, projected to 128, in each direction, on rows of 20 words: a few minutes on a laptop.

    Paper: Peters et al. 2018, ELMo (the architecture; one softmax over all words).
    Target: none in the paper; this is a tutorial and a smoke test. The perplexity should be below that of a trigram of the same text.
    Measured: 2026-11-28, seed 0, verses of the World English Bible (docs/words.md): on six held-out books forward perplexity 61.8, backward
    67.9, unigram 245, Kneser-Ney trigram 88.0.
    Deviates: size, no adaptive softmax (the vocabulary is small), AdamW with weight decay.
    Data: `pack --tokenize TOKENIZER --block 20 --in-order`, with a vocabulary of words (`tokenizer train --for elmo`).
    Cost: 31 minutes on one thread beside other work for 1,500 updates (2 cores Intel Xeon, AVX-512 with AMX, 24 GiB, fp32).
    Command: polymodal pretrain elmo-tiny --data DATA --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="elmo-tiny", system="elmo", size="tiny",
        data=DataSettings(global_batch=64),
        optim=OptimSettings(lr=2e-3, betas=(0.9, 0.99), weight_decay=0.01, clip=1.0),
        schedule=ScheduleSettings("cosine", warmup=50, final=0.1),
        max_updates=1500, log=LogSettings(every=10), evaluate=EvaluateSettings(every=500),
        checkpoint=CheckpointSettings(every=500),
    )


def elmo_base() -> Recipe:
    """The published model: two LSTMs of 4096 cells, projected to 512, in each direction, 10 epochs of the 1B Word Benchmark.

    Paper: Peters et al. 2018, ELMo, section 3.4, and bilm-tf: 3 GPUs with 128 rows of 20 words each, Adagrad with a rate of 0.2, gradients
    clipped at a norm of 10, dropout 0.1, a vocabulary of 793,471 words.
    Target: perplexity 39.7 of both directions (section 3.4).
    Deviates: the softmax is adaptive, with the cutoffs and narrowing that Transformer-XL has for this corpus, where bilm-tf samples 8192
    words; the accumulators of Adagrad begin at 0, there at 1.
    Data: `tokenizer train --for elmo --size 793471`, then `pack --split line --tokenize TOKENIZER --block 20 --in-order`.
    Unverified: never trained to the end.
    Cost: not measured.
    Command: torchrun --nproc-per-node 3 -m polymodal pretrain elmo-base --data DATA --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="elmo-base", system="elmo", size="base",
        data=DataSettings(global_batch=384, workers=2),
        optim=OptimSettings("adagrad", lr=0.2, weight_decay=0.0, clip=10.0),
        schedule=ScheduleSettings("constant"),
        max_updates=1_000_000, log=LogSettings(every=100), evaluate=EvaluateSettings(every=20_000),
        checkpoint=CheckpointSettings(every=2000, keep_last=3, keep_every=100_000),
    )


RECIPES = (elmo_tiny, elmo_base)
