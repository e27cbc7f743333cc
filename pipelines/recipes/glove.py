"""Recipes for GloVe."""

from __future__ import annotations

from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings


def glove_tiny() -> Recipe:
    """GloVe vectors of 64 numbers: a minute on a laptop.

    Paper: Pennington et al. 2014, GloVe: Global Vectors for Word Representation (the objective).
    Target: none in the paper; this is a tutorial and a smoke test. The error should be below that of always saying the same
    (`squared_error_chance`).
    Measured: 2026-11-28, one seed, on 243,000 words of Python's documentation (the data of `nnlm-tiny`; 542,000 pairs of words in 133
    blocks, so 38 passes). The nearest to "list": filenames 0.91, tuple 0.81, tuples 0.80; to "server": response 0.87, client_address 0.68,
    proxy 0.64; to "thread": has 0.77, calling 0.77, acquired 0.65, lock 0.65.
    Data: `tokenizer train --for glove --min-count 5`, then `pack --kind cooccurrence --tokenize TOKENIZER`.
    Deviates: size. A rate of 1 is the tool's 0.05 (see the family's docstring).
    Cost: 98 s of processor time on one thread (2 cores Intel Xeon, AVX-512 with AMX, 24 GiB), 410,000 records a second.
    Command: polymodal pretrain glove-tiny --data DATA --out RUN
    """
    return Recipe(
        name="glove-tiny", system="glove", size="tiny",
        data=DataSettings(global_batch=1),
        optim=OptimSettings("sgd", lr=1.0, momentum=0.0, weight_decay=0.0, clip=None),
        schedule=ScheduleSettings("constant"),
        max_updates=5000, log=LogSettings(every=100), evaluate=EvaluateSettings(every=1000, limit=64),
        checkpoint=CheckpointSettings(every=1000),
    )


def glove_base() -> Recipe:
    """The paper's vectors of 300 numbers for 400,000 words of 6 billion.

    Paper: Pennington et al. 2014, section 4.2: window 10, AdaGrad with a rate of 0.05, 100 passes over the records.
    Target: 71.7% of the analogies (table 2, 300 numbers, 6 billion words).
    Deviates: the size of an update. A rate of 2 for two blocks is the tool's.
    Unverified: never trained to the end; the number of updates is that of one pass over two billion records, and has to be set by the data.
    Data: `tokenizer train --for glove --size 400005 --lowercase`, then `pack --kind cooccurrence --tokenize TOKENIZER`.
    Cost: not measured.
    Command: polymodal pretrain glove-base --data DATA --out RUN
    """
    return Recipe(
        name="glove-base", system="glove", size="base",
        data=DataSettings(global_batch=2, workers=4),
        optim=OptimSettings("sgd", lr=2.0, momentum=0.0, weight_decay=0.0, clip=None),
        schedule=ScheduleSettings("constant"),
        max_updates=244_000, log=LogSettings(every=1000), evaluate=EvaluateSettings(every=0),
        checkpoint=CheckpointSettings(every=10_000, keep_last=2),
    )


RECIPES = (glove_tiny, glove_base)
