"""Recipes for BERT."""

from __future__ import annotations

from dataclasses import replace

from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings


def bert_tiny() -> Recipe:
    """BERT with 2 layers of width 128 and 128 positions, masked language model only: about a minute on a laptop.

    Paper: Devlin et al. 2019, BERT: Pre-training of Deep Bidirectional Transformers (the objective).
    Target: none in the paper; this is a tutorial and a smoke test. Masked-token perplexity should be well below the unigram baseline.
    Deviates: size, learning rate, no dropout, no next-sentence prediction (`objective.nsp=true` enables it).
    Measured: 2026-11-21, a run of 300 updates on 1.9 MB of Python's documentation (`polymodal demo`): held-out masked-token perplexity
    462, unigram baseline 636.
    Cost: 41 s for the 300 updates on 2 cores (AMD EPYC, AVX-512, no GPU, bf16-mixed).
    Command: polymodal pretrain bert-tiny --data DATA --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="bert-tiny", system="bert", size="tiny", model={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        objective={"nsp": False},
        data=DataSettings(global_batch=32, window=1024, workers=1),
        optim=OptimSettings(lr=2e-3, eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=50),
        max_updates=500, log=LogSettings(every=10), evaluate=EvaluateSettings(every=100, limit=256),
        checkpoint=CheckpointSettings(every=100),
    )


def bert_small() -> Recipe:
    """BERT with 4 layers of width 512, one of Google's later miniatures: hours on one GPU.

    Paper: Turc et al. 2019, Well-Read Students Learn Better (the size); Devlin et al. 2019 (the objective).
    Target: none; no published result was trained from scratch with these settings.
    Deviates: peak learning rate 5e-4, chosen for this width.
    Cost: not measured.
    Command: polymodal pretrain bert-small --data DATA --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="bert-small", system="bert", size="small", objective={"max_length": 128},
        data=DataSettings(global_batch=256, workers=4),
        optim=OptimSettings(lr=5e-4, eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=5000),
        max_updates=125_000, log=LogSettings(every=50), evaluate=EvaluateSettings(every=1000, limit=2048),
        checkpoint=CheckpointSettings(every=1000, keep_last=3, keep_every=25_000),
    )


def bert_base() -> Recipe:
    """BERT base, phase 1 of the paper: 12 layers, width 768, 110M parameters, sequences of 128 tokens.

    Paper: Devlin et al. 2019. Masked language model with 15% of the tokens and next-sentence prediction; batch 256, Adam 1e-4 (0.9,
    0.999, eps 1e-6), weight decay 0.01, clip 1, warmup 10k, linear decay over 1M updates: 90% of them on 128 tokens, which are this
    recipe and end at a tenth of the rate; the rest on 512 tokens is `bert-base-512`.
    Target: after both phases and fine-tuning, GLUE MNLI 84.6, SST-2 93.5, QNLI 90.5; SQuAD 1.1 F1 88.5 (paper, tables 1 and 2).
    Deviates: AdamW with bias correction (the paper's Adam has none).
    Unverified: never trained to the end; BooksCorpus is no longer distributed.
    Cost: not measured.
    Command: torchrun --nproc-per-node 8 -m polymodal pretrain bert-base --data DATA --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="bert-base", system="bert", size="base", objective={"max_length": 128, "max_predictions": 20},
        data=DataSettings(global_batch=256, workers=8),
        optim=OptimSettings(lr=1e-4, eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=10_000, final=0.1),
        max_updates=900_000, log=LogSettings(every=100), evaluate=EvaluateSettings(every=10_000, limit=4096),
        checkpoint=CheckpointSettings(every=2000, keep_last=3, keep_every=100_000),
    )


def bert_base_512() -> Recipe:
    """BERT base, phase 2 of the paper: the last 100k updates, on sequences of 512 tokens.

    Paper: Devlin et al. 2019, appendix A.2: the position embeddings beyond 128 learn here. Weights and Adam's averages are those that
    phase 1 ended with, and the rate falls on from its tenth (1e-5) to 0. Up to 80 masked tokens of 512, as google-research/bert.
    Target: that of `bert-base`.
    Deviates: as `bert-base`.
    Unverified: never trained to the end; BooksCorpus is no longer distributed.
    Cost: not measured.
    Command: polymodal pretrain bert-base-512 --continue-from RUN-OF-BERT-BASE --data DATA --out RUN
    """
    return replace(
        bert_base(), name="bert-base-512", objective={"max_length": 512, "max_predictions": 80},
        optim=OptimSettings(lr=1e-5, eps=1e-6, weight_decay=0.01), schedule=ScheduleSettings("linear"), max_updates=100_000,
    )


def bert_classify() -> Recipe:
    """BERT fine-tuned to classify texts or pairs of texts, with the paper's settings for GLUE.

    Paper: Devlin et al. 2019, section 4.1 and appendix A.3: batch 16 or 32, Adam at 5e-5, 3e-5 or 2e-5, 2 to 4 epochs, all parameters
    trained, dropout 0.1; warmup over 10 % and linear decay as in google-research/bert (`run_classifier.py`).
    Target: from the published base weights, MNLI 84.6, SST-2 93.5, MRPC 88.9 (paper, table 1).
    Deviates: the length is given in updates: 3 epochs of 67k samples (SST-2). For your data, set `max_updates` to 3 x samples / 32 and
    `schedule.warmup` to a tenth of it. AdamW with bias correction (Mosbach et al. 2021); the paper's Adam has none.
    Unverified: the published weights were not available in the development environment.
    Cost: not measured.
    Command: polymodal finetune bert-classify --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="bert-classify", system="bert", size="base", task="classify", objective={"max_length": 128},
        data=DataSettings(global_batch=32, workers=2),
        optim=OptimSettings(lr=3e-5, eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=630),
        max_updates=6300, log=LogSettings(every=50), evaluate=EvaluateSettings(every=500, monitor="accuracy"),
        checkpoint=CheckpointSettings(every=500, keep_best=True),
    )


def bert_classify_tiny() -> Recipe:
    """BERT fine-tuned to classify texts, from a small encoder such as MiniLM: a few minutes on a laptop.

    Paper: Devlin et al. 2019, section 4.1 (the method).
    Target: none in the paper.
    Deviates: 300 updates of 16 texts of 64 tokens; a higher learning rate with layer-wise decay as in Clark et al. 2020; early stopping
    after 4 evaluations without a better accuracy.
    Measured: docs/finetuning.md, "which package does a docstring come from?" and "is a Chinese review positive?".
    Cost: 2.4 minutes of one core's time (AMD EPYC, AVX-512) with MiniLM on single sentences.
    Command: polymodal finetune bert-classify-tiny --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="bert-classify-tiny", system="bert", size="tiny", task="classify", objective={"max_length": 64},
        data=DataSettings(global_batch=16, window=1024),
        optim=OptimSettings(lr=2e-4, eps=1e-6, weight_decay=0.01, layer_decay=0.8),
        schedule=ScheduleSettings("linear", warmup=30),
        max_updates=300, log=LogSettings(every=10), evaluate=EvaluateSettings(every=50, limit=512, monitor="accuracy", patience=4),
        checkpoint=CheckpointSettings(every=50, keep_best=True),
    )


RECIPES = (bert_tiny, bert_small, bert_base, bert_base_512, bert_classify, bert_classify_tiny)
