"""Recipes for CoVe."""

from __future__ import annotations

from dataclasses import replace

from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings


def cove_tiny() -> Recipe:
    """CoVe with LSTMs of width 64 for each direction on pairs of sentences: minutes on a laptop.

    Paper: McCann et al. 2017, CoVe, section 3.
    Target: none in the paper; the loss should be well below the entropy of the targets' words (`lm_chance`).
    Measured: 2026-11-28, seed 0: after 1,000 updates 5.259 nats for each word of the held-out targets (six books), whose entropy is 5.424
    (perplexity 192 and 227); 18.3 % are right. It falls below the entropy after 800 updates and has not ended to fall. What it writes are
    commas and *the*: as a translator it is of no use yet.
    Deviates: size, Adam, rate, batch.
    Data: verses of two English Bibles, made with `python examples/verse_pairs.py pairs --part train > pairs.jsonl` (and `--part held`)
    and packed with `polymodal pack pairs.jsonl --target-field target --out DATA`; words of both versions,
    `python examples/verse_pairs.py sentences --part train > verses.jsonl`,
    `polymodal tokenizer train verses.jsonl --for cove --size 8000 --min-count 2 --split-punctuation --out TOKENIZER`.
    Cost: 681 s of processor time on one thread (2 cores Intel Xeon, AVX-512 with AMX, 24 GiB, fp32, beside other work).
    Command: polymodal pretrain cove-tiny --data DATA --eval-data HELD --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="cove-tiny", system="cove", size="tiny", objective={"max_length": 64, "max_target_length": 64},
        data=DataSettings(global_batch=32, window=1024),
        optim=OptimSettings(lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01, clip=5.0),
        schedule=ScheduleSettings("linear", warmup=50),
        max_updates=1000, log=LogSettings(every=10), evaluate=EvaluateSettings(every=200, limit=256),
        checkpoint=CheckpointSettings(every=200),
    )


def cove_base() -> Recipe:
    """The paper's encoder: two BiLSTMs of width 300 for each direction, trained on pairs of sentences.

    Paper: McCann et al. 2017, section 3: dropout 0.2, SGD at a rate of 1 that is halved when the perplexity rises.
    Target: MT-Large (7M pairs, English to German) with GloVe and characters: SST-5 53.7, SNLI 88.1, SQuAD F1 79.9 (tables 4 and 5; not
    looked up again).
    Deviates: Adam; the vectors of words begin at random; the length is given in updates, 7 epochs of 7M pairs in batches of 128.
    Data: `pack --target-field COLUMN`.
    Unverified: never trained; neither the data nor GloVe's vectors were available in the development environment.
    Cost: not measured.
    Command: polymodal pretrain cove-base --data DATA --tokenizer TOKENIZER --out RUN
    """
    return replace(
        cove_tiny(), name="cove-base", size="base", objective={"max_length": 80, "max_target_length": 80},
        data=DataSettings(global_batch=128, workers=4), optim=OptimSettings(lr=1e-3, weight_decay=0.0, clip=5.0),
        schedule=ScheduleSettings("inverse_sqrt", warmup=4000), max_updates=380_000, log=LogSettings(every=100),
        evaluate=EvaluateSettings(every=5000, limit=4096), checkpoint=CheckpointSettings(every=5000, keep_best=True),
    )


RECIPES = (cove_tiny, cove_base)
