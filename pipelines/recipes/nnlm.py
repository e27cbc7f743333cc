"""Recipes for NNLM."""

from __future__ import annotations

from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings


def nnlm_tiny() -> Recipe:
    """An NNLM of order 4 with vectors of 32 numbers: minutes on a laptop.

    Paper: Bengio et al. 2003, A Neural Probabilistic Language Model (the network).
    Target: none in the paper; this is a tutorial and a smoke test. The perplexity should be below the unigram's (`lm_chance`).
    Deviates: size; AdamW in place of plain gradient descent word by word.
    Measured: 2026-11-28, one seed, the data below: held-out loss 5.167 nats a word (perplexity 175), unigram entropy 5.709. Of counts alone
    (`examples/count_trigrams.py`), interpolated Kneser-Ney bigrams reach 181 and trigrams 155: the paper's network beats trigrams in a
    mixture with them, which is left out.
    Data: documents of Python's standard library (1.9 MB), made with
    `python -c "import pathlib, polymodal.pipelines.demo.data as d; d.write_text(pathlib.Path('python.jsonl'))"`;
    `polymodal tokenizer train python.jsonl --for nnlm --min-count 5 --size 20000 --out TOKENIZER`;
    `polymodal pack python.jsonl --tokenize TOKENIZER --block 256 --out DATA --holdout 0.1 --holdout-out HELD` (266,000 words).
    Cost: 101 s of processor time on one thread (2 cores Intel Xeon, AVX-512 with AMX, 24 GiB).
    Command: polymodal pretrain nnlm-tiny --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="nnlm-tiny", system="nnlm", size="tiny",
        data=DataSettings(global_batch=8),
        optim=OptimSettings(lr=3e-3, weight_decay=0.01),
        schedule=ScheduleSettings("cosine", warmup=20),
        max_updates=1000, log=LogSettings(every=20), evaluate=EvaluateSettings(every=250, limit=256),
        checkpoint=CheckpointSettings(every=250),
    )


def nnlm_base() -> Recipe:
    """The paper's network for the Brown corpus: order 5, vectors of 30 numbers, 100 units of tanh, direct connections.

    Paper: Bengio et al. 2003, section 4: gradient descent with a rate of 1e-3 for each word that falls very slowly, weight decay 1e-4,
    10 to 20 epochs of 800,000 words, words that occur three times or fewer as one.
    Target: a test perplexity of 252 in a mixture with a trigram (table 1).
    Deviates: updates of 256 words, the rate multiplied by their number and constant; no mixture with a trigram.
    Unverified: never trained to the end; the corpus was not available in the development environment.
    Data: `tokenizer train --for nnlm --min-count 4 --size 16383`, then `pack --tokenize TOKENIZER --block 256`.
    Cost: not measured.
    Command: polymodal pretrain nnlm-base --data DATA --out RUN
    """
    return Recipe(
        name="nnlm-base", system="nnlm", size="base",
        data=DataSettings(global_batch=1),
        optim=OptimSettings("sgd", lr=0.256, momentum=0.0, weight_decay=1e-4, clip=None),
        schedule=ScheduleSettings("constant"),
        max_updates=46_900, log=LogSettings(every=100), evaluate=EvaluateSettings(every=3125),
        checkpoint=CheckpointSettings(every=3125, keep_last=2),
    )


RECIPES = (nnlm_tiny, nnlm_base)
