"""Recipes for RoBERTa."""

from __future__ import annotations

from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings


def roberta_tiny() -> Recipe:
    """RoBERTa with 2 layers of width 128 and sequences of 128 tokens: minutes on a laptop.

    Paper: Liu et al. 2019, RoBERTa: A Robustly Optimized BERT Pretraining Approach (the objective).
    Target: none in the paper; this is a tutorial and a smoke test. The loss should be clearly below the unigram entropy (`mlm_chance`).
    Measured: 2026-11-27, seed 0: after 1000 updates 5.674 nats per masked token on 256 of the 284 held-out rows, where the tokens' unigram
    entropy is 5.936 (perplexity 291 and 378). After 200 updates it was 5.942.
    Deviates: size, learning rate, batch, no dropout; initial weights with a standard deviation of 0.08, about 1 / sqrt(128): with the
    paper's 0.02 the loss after 200 updates was 6.005.
    Data: documents of Python's standard library (1.9 MB), made with
    `python -c "import pathlib, polymodal.pipelines.demo.data as d; d.write_text(pathlib.Path('python.jsonl'))"`;
    `polymodal tokenizer train python.jsonl --kind byte-bpe --style roberta --size 2048 --out TOKENIZER`;
    `polymodal pack python.jsonl --tokenize TOKENIZER --block 128 --holdout 0.1 --out DATA --holdout-out HELD`.
    Cost: 264 s of one thread's time on 2 cores (Intel Xeon at 2.8 GHz, AVX-512, no GPU, fp32), shared with other work.
    Command: polymodal pretrain roberta-tiny --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="roberta-tiny", system="roberta", size="tiny",
        model={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.08},
        data=DataSettings(global_batch=32, window=1024),
        optim=OptimSettings(lr=2e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=60),
        max_updates=1000, log=LogSettings(every=10), evaluate=EvaluateSettings(every=100, limit=256),
        checkpoint=CheckpointSettings(every=100),
    )


def roberta_base() -> Recipe:
    """RoBERTa base: 12 layers of width 768, 125M parameters, sequences of 512 tokens in batches of 8192.

    Paper: Liu et al. 2019, table 9: batch 8k, Adam 6e-4 (0.9, 0.98, eps 1e-6), weight decay 0.01, no clipping, warmup 24k, linear decay
    over 500k updates, dropout 0.1.
    Target: after fine-tuning, GLUE development set: MNLI 87.6, QNLI 92.8, SST-2 94.8 (fairseq's README).
    Unverified: never trained to the end; the paper's corpora (160 GB) are not all distributed.
    Cost: not measured.
    Command: torchrun --nproc-per-node 8 -m polymodal pretrain roberta-base --data DATA --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="roberta-base", system="roberta", size="base",
        data=DataSettings(global_batch=8192, micro_batch=32, workers=8),
        optim=OptimSettings(lr=6e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01, clip=None),
        schedule=ScheduleSettings("linear", warmup=24_000),
        max_updates=500_000, log=LogSettings(every=50), evaluate=EvaluateSettings(every=5000, limit=4096),
        checkpoint=CheckpointSettings(every=1000, keep_last=3, keep_every=50_000),
    )


def roberta_classify() -> Recipe:
    """RoBERTa fine-tuned to classify texts or pairs of texts, with the paper's settings for GLUE.

    Paper: Liu et al. 2019, table 10: batch 16 or 32, Adam (0.9, 0.98, eps 1e-6) at 1e-5, 2e-5 or 3e-5, weight decay 0.1, warmup over 6 %
    and linear decay, 10 epochs, dropout 0.1.
    Target: from the published base weights, MNLI 87.6, SST-2 94.8, MRPC 90.2 on the development sets (fairseq's README).
    Deviates: the length is given in updates: 10 epochs of 67k samples (SST-2). For your data, set `max_updates` to 10 x samples / 32 and
    `schedule.warmup` to 6 % of it.
    Unverified: the published weights were not available in the development environment.
    Cost: not measured.
    Command: polymodal finetune roberta-classify --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="roberta-classify", system="roberta", size="base", task="classify", objective={"max_length": 128},
        data=DataSettings(global_batch=32, workers=2),
        optim=OptimSettings(lr=2e-5, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1, clip=None),
        schedule=ScheduleSettings("linear", warmup=1260),
        max_updates=21_000, log=LogSettings(every=50), evaluate=EvaluateSettings(every=500, monitor="accuracy"),
        checkpoint=CheckpointSettings(every=500, keep_best=True),
    )


def roberta_classify_tiny() -> Recipe:
    """RoBERTa fine-tuned to classify texts, from a run of roberta-tiny: about a minute on a laptop.

    Paper: Liu et al. 2019, section 5.1 (the method).
    Target: none in the paper.
    Deviates: 300 updates of 16 texts of 64 tokens; a higher learning rate; early stopping after 4 evaluations without a better accuracy.
    Cost: 33 s of one thread's time, with its 6 evaluations of 283 sentences (2026-11-27, Intel Xeon at 2.8 GHz, fp32).
    Command: polymodal finetune roberta-classify-tiny --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="roberta-classify-tiny", system="roberta", size="tiny", task="classify", objective={"max_length": 64},
        data=DataSettings(global_batch=16, window=1024),
        optim=OptimSettings(lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=30),
        max_updates=300, log=LogSettings(every=10), evaluate=EvaluateSettings(every=50, limit=512, monitor="accuracy", patience=4),
        checkpoint=CheckpointSettings(every=50, keep_best=True),
    )


RECIPES = (roberta_tiny, roberta_base, roberta_classify, roberta_classify_tiny)
