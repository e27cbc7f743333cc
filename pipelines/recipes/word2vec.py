"""Recipes for word2vec."""

from __future__ import annotations

from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings


def word2vec_tiny() -> Recipe:
    """Skip-gram vectors of 64 numbers with noise words: a minute on a laptop.

    Paper: Mikolov et al. 2013, Distributed Representations of Words and Phrases and their Compositionality (the objective).
    Target: none in the paper; this is a tutorial and a smoke test. A prediction should lose less than one that does not look at the
    input (`prediction_chance`).
    Data: `tokenizer train --for word2vec --min-count 5`, then `pack --tokenize TOKENIZER --block 1000`.
    Measured: 2026-11-28, one seed, on 5 million words of docstrings (numpy, scipy, scikit-learn, torch ...) and three English Bibles,
    20,975 words in the vocabulary, one pass: 625 updates with `--set model.hidden_size=100 --set objective.sample=1e-3`. A prediction
    on held-out text lost 2.273 (2.217 with `objective.max_share=0.02`), one that does not look at the input 2.703, and gensim 4.4's
    skip-gram after one pass over as many words with the same settings 2.185. So larger updates learn a little less from one pass.
    Deviates: size; fewer words are left out, as small vocabularies have no rare ones. The rate is the tool's 0.025 for each prediction,
    times the 8,000 words of an update, as the loop divides by them.
    Cost: 2026-11-29, one thread of 2 cores (Intel Xeon, AVX-512 with AMX, 24 GiB), with `--set objective.sparse=true`, D = 100, V = 21,000:
    407,000 words for each second of processor time with noise words (CBOW 415,000), 163,000 with a tree (CBOW 187,000), in turns with
    gensim 4.4 on the same core: 365,000 (1,230,000) and 462,000 (1,241,000).
    Command: polymodal pretrain word2vec-tiny --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="word2vec-tiny", system="word2vec", size="tiny", objective={"max_share": 0.005, "sample": 0.01},
        data=DataSettings(global_batch=8),
        optim=OptimSettings("sgd", lr=200.0, momentum=0.0, weight_decay=0.0, clip=None),
        schedule=ScheduleSettings("linear", final=1e-4),
        max_updates=2000, log=LogSettings(every=50), evaluate=EvaluateSettings(every=500, limit=256),
        checkpoint=CheckpointSettings(every=500),
    )


def word2vec_base() -> Recipe:
    """Skip-gram vectors of 300 numbers with 5 noise words, a billion words, as in the second paper.

    Paper: Mikolov et al. 2013, Distributed Representations of Words and Phrases and their Compositionality, section 3: 300 numbers,
    window 5, words that occur fewer than 5 times left out, subsampling 1e-5, one pass over a billion words.
    Target: 59% of the analogies without subsampling, 60% with it (table 1, NEG-5).
    Deviates: the size of an update (8,000 words), and `max_share`.
    Unverified: never trained to the end.
    Data: `tokenizer train --for word2vec --min-count 5 --size 700000`, then `pack --tokenize TOKENIZER --block 1000`.
    Cost: not measured.
    Command: polymodal pretrain word2vec-base --data DATA --out RUN
    """
    return Recipe(
        name="word2vec-base", system="word2vec", size="base", objective={"max_share": 0.02, "sample": 1e-5, "sparse": True},
        data=DataSettings(global_batch=8, workers=4),
        optim=OptimSettings("sgd", lr=200.0, momentum=0.0, weight_decay=0.0, clip=None),
        schedule=ScheduleSettings("linear", final=1e-4),
        max_updates=125_000, log=LogSettings(every=500), evaluate=EvaluateSettings(every=25_000, limit=256),
        checkpoint=CheckpointSettings(every=5000, keep_last=3),
    )


RECIPES = (word2vec_tiny, word2vec_base)
