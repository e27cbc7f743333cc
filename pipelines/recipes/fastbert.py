"""Recipes for FastBERT."""

from __future__ import annotations

from dataclasses import replace

from ..run.recipe import CheckpointSettings, EvaluateSettings, Recipe
from ..run.schedule import ScheduleSettings
from .bert import bert_base, bert_classify, bert_classify_tiny, bert_tiny


def fastbert_tiny() -> Recipe:
    """The trunk of a FastBERT with 2 layers of width 128, pretrained as `bert-tiny` is.

    Paper: Liu et al. 2020, FastBERT, which begins with a pretrained BERT.
    Target: none in the paper; this is a tutorial and a smoke test.
    Deviates: as `bert-tiny`.
    Cost: as `bert-tiny`.
    Command: polymodal pretrain fastbert-tiny --data DATA --tokenizer TOKENIZER --out RUN
    """
    return replace(bert_tiny(), name="fastbert-tiny", system="fastbert")


def fastbert_base() -> Recipe:
    """The trunk of a FastBERT, pretrained as `bert-base` is; any BERT does as well (`fastbert-classify --model BERT`).

    Paper: Liu et al. 2020, FastBERT, which begins with a pretrained BERT.
    Target: that of `bert-base`.
    Unverified: never trained to the end.
    Cost: not measured.
    Command: torchrun --nproc-per-node 8 -m polymodal pretrain fastbert-base --data DATA --tokenizer TOKENIZER --out RUN
    """
    return replace(bert_base(), name="fastbert-base", system="fastbert")


def fastbert_classify() -> Recipe:
    """FastBERT's first stage: the trunk and the last classifier learn the classes of texts, as in BERT's fine-tuning.

    Paper: Liu et al. 2020, section 4, and the authors' code: 3 epochs, 2e-5, warmup over 10 %, 128 tokens.
    Target: Book review, accuracy 86.88 (paper, table 2).
    Deviates: the length is given in updates, as `bert-classify`.
    Unverified: the published weights were not available in the development environment.
    Cost: not measured.
    Command: polymodal finetune fastbert-classify --model BERT --data DATA --eval-data HELD --out RUN
    """
    return replace(bert_classify(), name="fastbert-classify", system="fastbert", optim=replace(bert_classify().optim, lr=2e-5))


def fastbert_exits() -> Recipe:
    """FastBERT's second stage: the classifiers of the lower layers learn what the last one predicts; labels are not read.

    Paper: Liu et al. 2020, section 4, and the authors' code: 5 epochs (Book review: 10), 2e-5, warmup over 10 %, 128 tokens.
    Target: Book review, accuracy 86.64 at speed 0.5 and 85.14 at 0.8 (paper, table 2; from secondary sources).
    Deviates: the length is given in updates, as `bert-classify`.
    Unverified: the published weights were not available in the development environment.
    Cost: not measured.
    Command: polymodal finetune fastbert-exits --model RUN --data DATA --eval-data HELD --out EXITS
    """
    return replace(fastbert_classify(), name="fastbert-exits", task="exits", max_updates=10_500, schedule=ScheduleSettings("linear", 1050),
                   evaluate=EvaluateSettings(every=500), checkpoint=CheckpointSettings(every=500))


def fastbert_classify_tiny() -> Recipe:
    """FastBERT's first stage from a small encoder: a few minutes on a laptop.

    Paper: Liu et al. 2020 (the method).
    Target: none in the paper.
    Deviates: as `bert-classify-tiny`.
    Cost: as `bert-classify-tiny`.
    Command: polymodal finetune fastbert-classify-tiny --model BERT --data DATA --eval-data HELD --out RUN
    """
    return replace(bert_classify_tiny(), name="fastbert-classify-tiny", system="fastbert")


def fastbert_exits_tiny() -> Recipe:
    """FastBERT's second stage, from a run of fastbert-classify-tiny: a minute on a laptop.

    Paper: Liu et al. 2020 (the method).
    Target: none in the paper; `exits` should be clearly below `exits_chance`.
    Measured: 2026-11-28, one seed, on Chinese reviews with 6 layers of width 192 (docs/distilling.md): `exits` 0.022, chance 1.289; at
    speed 0.8 the accuracy is 0.815, with all layers 0.814, in half the time.
    Deviates: 300 updates of 16 texts of 64 tokens; a higher learning rate.
    Cost: 151 s of processor time for 300 updates of 32 texts of 128 tokens with 6 layers, one thread (2 cores Intel Xeon, AVX-512, AMX).
    Command: polymodal finetune fastbert-exits-tiny --model RUN --data DATA --eval-data HELD --out EXITS
    """
    tiny = bert_classify_tiny()
    return replace(tiny, name="fastbert-exits-tiny", system="fastbert", task="exits", optim=replace(tiny.optim, lr=1e-3, layer_decay=1.0),
                   evaluate=EvaluateSettings(every=50, limit=512), checkpoint=CheckpointSettings(every=50))


RECIPES = (fastbert_tiny, fastbert_base, fastbert_classify, fastbert_exits, fastbert_classify_tiny, fastbert_exits_tiny)
