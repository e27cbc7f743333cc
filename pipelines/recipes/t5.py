"""Recipes for T5."""

from __future__ import annotations

from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings


def t5_tiny() -> Recipe:
    """T5 with 2 + 2 blocks of width 128 on texts of 128 tokens: a few minutes on a laptop.

    Paper: Raffel et al. 2020, Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer (architecture, span
    corruption, Adafactor with inverse square root schedule).
    Target: none in the paper; this is a tutorial and a smoke test. Held-out loss should be below the unigram baseline.
    Measured: on docstrings and documentation of Python's standard library (1.9 MB, 4096 subwords), held-out nats per target token:
    unigram 5.83, after 930 updates 4.72. A quarter of the targets are sentinel and end tokens, which are learned first. On the other
    targets, given that they are none of these: unigram 6.45, model 5.75. The contents of the spans take longer to learn.
    Deviates: size, linear warmup, no dropout.
    Data: `pack --tokenize TOKENIZER --block 141` makes rows that fill the input exactly (the rest of a longer row becomes one shorter
    text); train the tokenizer with `--kind unigram --style t5`.
    Cost: 3 minutes on two CPU cores (87 samples/s).
    Command: polymodal pretrain t5-tiny --data DATA --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="t5-tiny", system="t5", size="tiny", model={"dropout_rate": 0.0}, objective={"max_length": 128},
        data=DataSettings(global_batch=16, window=1024),
        optim=OptimSettings("adafactor", lr=2e-2, weight_decay=0.0, clip=None),
        schedule=ScheduleSettings("inverse_sqrt", warmup=200),
        max_updates=1000, log=LogSettings(every=10), evaluate=EvaluateSettings(every=100, limit=256),
        checkpoint=CheckpointSettings(every=100),
    )


def t5_small() -> Recipe:
    """T5-small: 6 + 6 blocks of width 512, 60M parameters: days on one GPU.

    Paper: Raffel et al. 2020; the baseline's procedure (section 3.1) at the size of section 3.7: 2^19 updates of 128 texts of 512
    tokens (2^16 tokens), Adafactor with learning rate 1 / sqrt(max(update, 10^4)), so the peak is 0.01.
    Target: none: the paper's T5-small saw 32 times as much text and supervised tasks (section 3.7).
    Deviates: the first 10^4 updates are a linear warmup; the paper's learning rate is constant there. As in the paper, no gradient
    clipping besides Adafactor's own.
    Data: `pack --tokenize TOKENIZER --block 568` makes rows that fill the input of 512 tokens exactly.
    Unverified: never trained to the end.
    Cost: not measured.
    Command: polymodal pretrain t5-small --data DATA --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="t5-small", system="t5", size="small",
        data=DataSettings(global_batch=128, workers=4),
        optim=OptimSettings("adafactor", lr=1e-2, weight_decay=0.0, clip=None),
        schedule=ScheduleSettings("inverse_sqrt", warmup=10_000),
        max_updates=524_288, log=LogSettings(every=50), evaluate=EvaluateSettings(every=5000, limit=2048),
        checkpoint=CheckpointSettings(every=1000, keep_last=3, keep_every=50_000),
    )


def t5_base() -> Recipe:
    """The paper's baseline: 12 + 12 blocks of width 768, 220M parameters, 34B tokens of C4.

    Paper: Raffel et al. 2020, section 3.1: 2^19 updates of 128 texts of 512 tokens, dropout 0.1, Adafactor with learning rate
    1 / sqrt(max(update, 10^4)).
    Target: after fine-tuning, GLUE 83.28, CNN/Daily Mail ROUGE-2 19.24, SQuAD exact match 80.88, SuperGLUE 71.36 (table 1).
    Deviates: the first 10^4 updates are a linear warmup; the paper's learning rate is constant there.
    Data: `pack --tokenize TOKENIZER --block 568` makes rows that fill the input of 512 tokens exactly.
    Unverified: never trained to the end.
    Cost: not measured.
    Command: torchrun --nproc-per-node 8 -m polymodal pretrain t5-base --data DATA --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="t5-base", system="t5", size="base",
        data=DataSettings(global_batch=128, micro_batch=16, workers=8),
        optim=OptimSettings("adafactor", lr=1e-2, weight_decay=0.0, clip=None),
        schedule=ScheduleSettings("inverse_sqrt", warmup=10_000),
        max_updates=524_288, log=LogSettings(every=100), evaluate=EvaluateSettings(every=5000, limit=4096),
        checkpoint=CheckpointSettings(every=2000, keep_last=3, keep_every=50_000),
    )


def t5_text2text() -> Recipe:
    """T5 fine-tuned from text to text, with the paper's settings for any task, such as summarization or translation.

    Paper: Raffel et al. 2020, section 3.1.2: 2^18 updates of 128 texts of 512 tokens, constant learning rate 0.001, Adafactor, dropout
    0.1, a checkpoint every 5000 updates, of which the best is used.
    Target: from the published weights of the 220M baseline, CNN/Daily Mail ROUGE-2 19.24 (table 1).
    Data: `pack --target-field COLUMN`. The prefix that names the task is set in the recipe
    (`--set 'objective.prefix="summarize: "'`) or is part of the texts, so that a mixture of data sets trains several tasks.
    Unverified: the published weights were not available in the development environment.
    Cost: not measured.
    Command: polymodal finetune t5-text2text --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="t5-text2text", system="t5", size="small", task="text2text",
        data=DataSettings(global_batch=128, workers=4),
        optim=OptimSettings("adafactor", lr=1e-3, weight_decay=0.0, clip=None),
        schedule=ScheduleSettings("constant"),
        max_updates=262_144, log=LogSettings(every=50), evaluate=EvaluateSettings(every=5000, limit=2048),
        checkpoint=CheckpointSettings(every=5000, keep_best=True),
    )


def t5_text2text_tiny() -> Recipe:
    """T5 fine-tuned from text to text on texts of 128 tokens: a quarter of an hour on one core.

    Paper: Raffel et al. 2020, section 3.1.2 (the method).
    Target: none in the paper.
    Measured: docs/finetuning.md, "summaries of docstrings".
    Deviates: size, batch size, a higher learning rate that decays to 0 (such a small network is nearly trained from scratch), no dropout.
    Cost: 11 minutes of one core's time (AMD EPYC, AVX-512) for texts of about 128 tokens and targets of 15.
    Command: polymodal finetune t5-text2text-tiny --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="t5-text2text-tiny", system="t5", size="tiny", task="text2text", model={"dropout_rate": 0.0},
        objective={"max_length": 128, "max_target_length": 32},
        data=DataSettings(global_batch=16, window=1024),
        optim=OptimSettings("adafactor", lr=1e-2, weight_decay=0.0, clip=None),
        schedule=ScheduleSettings("linear", warmup=50),
        max_updates=3600, log=LogSettings(every=20), evaluate=EvaluateSettings(every=300, limit=256),
        checkpoint=CheckpointSettings(every=300, keep_best=True),
    )


RECIPES = (t5_tiny, t5_small, t5_base, t5_text2text, t5_text2text_tiny)
