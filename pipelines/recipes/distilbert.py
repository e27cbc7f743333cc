"""Recipes for DistilBERT."""

from __future__ import annotations

from dataclasses import replace

from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings
from .bert import bert_classify, bert_classify_tiny


def distilbert_tiny() -> Recipe:
    """A student of half the layers of its teacher, in sequences of 128 tokens: minutes on a laptop.

    Paper: Sanh et al. 2019, DistilBERT, a distilled version of BERT (the objective).
    Target: none in the paper; this is a tutorial and a smoke test. Beside a good teacher, masked-token loss should be below that of the
    same student with `--set objective.alpha_ce=0 --set objective.alpha_cos=0`, which has none.
    Measured: 2026-11-28, one seed. Beside MiniLM tuned on docstrings (docs/distilling.md): 5.317 nats a masked token after 200 updates, and
    5.351 without the teacher. Beside a `bert-tiny` after 500 updates on Python's documentation, which is hardly better than the unigram
    (5.645 of 5.806): 6.807, and 6.660 without it. A weak teacher holds its student back.
    Deviates: batch, learning rate, no dropout.
    Cost: 142 s of processor time beside a `bert-tiny`, 62 s without a teacher, one thread (2 cores Intel Xeon, AVX-512 with AMX, 24 GiB).
    Command: polymodal distill distilbert-tiny --teacher TEACHER --model TEACHER --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="distilbert-tiny", system="distilbert", size="tiny", model={"dropout": 0.0, "attention_dropout": 0.0},
        objective={"max_length": 128},
        data=DataSettings(global_batch=32, window=1024, workers=1),
        optim=OptimSettings(lr=1e-3, eps=1e-6, weight_decay=0.0, clip=5.0),
        schedule=ScheduleSettings("linear", warmup=50),
        max_updates=500, log=LogSettings(every=10), evaluate=EvaluateSettings(every=100, limit=256),
        checkpoint=CheckpointSettings(every=100),
    )


def distilbert_base() -> Recipe:
    """DistilBERT: 6 layers of width 768, 67M parameters, from a BERT of 12 layers.

    Paper: Sanh et al. 2019, and the authors' script: losses 5, 2 and 1, temperature 2, AdamW at 5e-4 (eps 1e-6), no weight decay, clip 5,
    warmup over 5 % and linear decay, 3 epochs of English Wikipedia and BookCorpus, batches of up to 4,000 sequences (here of 8 GPUs with
    5 sequences and 50 steps of accumulation each: 2,000).
    Target: after fine-tuning, GLUE development set: MNLI 82.2, SST-2 91.3, QNLI 89.2; SQuAD 1.1 F1 85.8 (paper, tables 1 and 2).
    Deviates: the length is given in updates: about 3 epochs of 3.3 billion words in sequences of 512 tokens.
    Unverified: never trained to the end; the published teacher was not available in the development environment.
    Cost: not measured.
    Command: torchrun --nproc-per-node 8 -m polymodal distill distilbert-base --teacher BERT --model BERT --data DATA --out RUN
    """
    return Recipe(
        name="distilbert-base", system="distilbert", size="base",
        data=DataSettings(global_batch=2000, micro_batch=25, workers=8),
        optim=OptimSettings(lr=5e-4, eps=1e-6, weight_decay=0.0, clip=5.0),
        schedule=ScheduleSettings("linear", warmup=630),
        max_updates=12_600, log=LogSettings(every=10), evaluate=EvaluateSettings(every=500, limit=4096),
        checkpoint=CheckpointSettings(every=250, keep_last=3),
    )


def distilbert_classify() -> Recipe:
    """DistilBERT fine-tuned to classify texts or pairs of texts.

    Paper: Sanh et al. 2019, section 4, names no settings; these are those of `bert-classify` (Devlin et al. 2019, appendix A.3).
    Target: from the published weights, MNLI 82.2, SST-2 91.3 on the development sets (paper, table 1).
    Deviates: as `bert-classify`.
    Unverified: the published weights were not available in the development environment.
    Cost: not measured.
    Command: polymodal finetune distilbert-classify --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return replace(bert_classify(), name="distilbert-classify", system="distilbert")


def distilbert_classify_tiny() -> Recipe:
    """A DistilBERT fine-tuned to classify texts, from a run of distilbert-tiny: about a minute on a laptop.

    Paper: Sanh et al. 2019 (the method).
    Target: none in the paper.
    Deviates: as `bert-classify-tiny`.
    Cost: not measured.
    Command: polymodal finetune distilbert-classify-tiny --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return replace(bert_classify_tiny(), name="distilbert-classify-tiny", system="distilbert", model={})


RECIPES = (distilbert_tiny, distilbert_base, distilbert_classify, distilbert_classify_tiny)
