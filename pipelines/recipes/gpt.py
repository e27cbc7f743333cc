"""Recipes for GPT."""

from __future__ import annotations

from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings


def gpt_tiny() -> Recipe:
    """GPT with 2 blocks of width 128 and 128 positions: minutes on a laptop.

    Paper: Radford et al. 2018, Improving Language Understanding by Generative Pre-Training (the architecture).
    Target: none in the paper; this is a tutorial and a smoke test. Perplexity should be well below the unigram baseline.
    Measured: 2026-11-28, seed 0: after 500 updates 5.369 nats per token on 256 of the held-out rows, where the tokens' unigram entropy is
    6.223 (perplexity 215 and 504).
    Deviates: size, learning rate, batch, no dropout (one pass over little text); initial weights with a standard deviation of 0.08, about
    1 / sqrt(128): with the paper's 0.02 and a rate of 2e-3 the loss stayed above the unigram entropy for 100 updates.
    Data: documents of Python's standard library (1.9 MB), made with
    `python -c "import pathlib, polymodal.pipelines.demo.data as d; d.write_text(pathlib.Path('python.jsonl'))"`;
    `polymodal tokenizer train python.jsonl --for gpt --size 2048 --out TOKENIZER`;
    `polymodal pack python.jsonl --tokenize TOKENIZER --block 128 --holdout 0.1 --out DATA --holdout-out HELD`.
    Cost: not measured alone; 395 s of wall time on one thread of 2 cores beside much other work (Intel Xeon at 2.8 GHz, AVX-512, fp32).
    Command: polymodal pretrain gpt-tiny --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="gpt-tiny", system="gpt", size="tiny",
        model={"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "initializer_range": 0.08},
        data=DataSettings(global_batch=16, window=1024),
        optim=OptimSettings(lr=1e-3, betas=(0.9, 0.999), weight_decay=0.01),
        schedule=ScheduleSettings("cosine", warmup=40),
        max_updates=500, log=LogSettings(every=10), evaluate=EvaluateSettings(every=100, limit=256),
        checkpoint=CheckpointSettings(every=100),
    )


def gpt_base() -> Recipe:
    """GPT: 12 blocks of width 768, 117M parameters, blocks of 512 tokens in batches of 64.

    Paper: Radford et al. 2018, section 4.1: BooksCorpus, batch 64, 100 epochs, Adam at 2.5e-4, warmup over 2000 updates and cosine to 0,
    decoupled weight decay 0.01 on weights that are no biases or gains, dropout 0.1.
    Target: perplexity 18.4 on BooksCorpus (paper, section 4.1).
    Deviates: the length is given in updates: 100 epochs of about a billion tokens. For your data, set `max_updates` to tokens / 328.
    Unverified: never trained; BooksCorpus is no longer distributed.
    Cost: not measured.
    Command: torchrun --nproc-per-node 8 -m polymodal pretrain gpt-base --data DATA --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="gpt-base", system="gpt", size="base",
        data=DataSettings(global_batch=64, workers=4),
        optim=OptimSettings(lr=2.5e-4, betas=(0.9, 0.999), weight_decay=0.01),
        schedule=ScheduleSettings("cosine", warmup=2000),
        max_updates=3_000_000, log=LogSettings(every=100), evaluate=EvaluateSettings(every=10_000, limit=4096),
        checkpoint=CheckpointSettings(every=2000, keep_last=3, keep_every=100_000),
    )


def gpt_classify() -> Recipe:
    """GPT fine-tuned to classify texts or pairs of texts; with `--set task=score` or `choice` to score them, or to choose one of several.

    Paper: Radford et al. 2018, sections 3.2 and 4.1: batch 32, Adam at 6.25e-5, 3 epochs, warmup over 0.2 % and linear decay, dropout 0.1
    of the state before the output layer, lambda 0.5 for the language model's loss beside the task's (`objective.lm_weight`).
    Target: from the published weights, SST-2 91.3, MNLI 82.1 / 81.4 (task classify), STS-B Pearson 82.0 (score), RACE 59.0, Story Cloze
    86.5 (choice), all of the test sets (paper, tables 2 to 4).
    Deviates: the length is given in updates: 3 epochs of 67k samples (SST-2). For your data, set `max_updates` to 3 x samples / 32. For
    pairs whose order says nothing (STS-B, QQP, MRPC): `--set model.both_orders=true`.
    Unverified: the published weights were not available in the development environment.
    Cost: not measured at this size.
    Command: polymodal finetune gpt-classify --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="gpt-classify", system="gpt", size="base", task="classify",
        data=DataSettings(global_batch=32, workers=2),
        optim=OptimSettings(lr=6.25e-5, betas=(0.9, 0.999), weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=13),
        max_updates=6300, log=LogSettings(every=10), evaluate=EvaluateSettings(every=300),
        checkpoint=CheckpointSettings(every=300),
    )


def gpt_classify_tiny() -> Recipe:
    """GPT fine-tuned to classify texts, from a small decoder such as one of `gpt-tiny`: minutes on one core.

    Paper: Radford et al. 2018, section 3.2 (the method).
    Target: none in the paper.
    Deviates: 300 updates of 16 texts of 64 tokens, a higher learning rate, no dropout; early stopping after 4 evaluations without a better
    accuracy.
    Measured: docs/finetuning.md, "does the language model's loss help GPT's classifier?".
    Cost: 24 to 28 s of one core's time for 300 updates of single sentences (Intel Xeon, AVX-512, fp32).
    Command: polymodal finetune gpt-classify-tiny --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="gpt-classify-tiny", system="gpt", size="tiny", task="classify",
        model={"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "summary_first_dropout": 0.0}, objective={"max_length": 64},
        data=DataSettings(global_batch=16, window=1024),
        optim=OptimSettings(lr=5e-4, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=30),
        max_updates=300, log=LogSettings(every=10), evaluate=EvaluateSettings(every=50, limit=512, monitor="accuracy", patience=4),
        checkpoint=CheckpointSettings(every=50, keep_best=True),
    )


RECIPES = (gpt_tiny, gpt_base, gpt_classify, gpt_classify_tiny)
