"""Recipes for Longformer."""

from __future__ import annotations

from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings


def longformer_tiny() -> Recipe:
    """Longformer with 2 layers of width 128, windows of 64 tokens and texts of up to 1024: minutes on a laptop.

    Paper: Beltagy et al. 2020, Longformer: The Long-Document Transformer (the objective).
    Target: none in the paper; this is a tutorial and a smoke test. The loss should be clearly below the unigram entropy (`mlm_chance`).
    Deviates: size, learning rate, batch, no dropout; `<s>` is global, so that its projections are trained; from randomly initialized
    weights, with a standard deviation of 0.08, about 1 / sqrt(128). With `--model` it begins as in the paper with those of a RoBERTa or
    BERT, such as a run of roberta-tiny; then set `--set model.attention_window=64 --set model.max_position_embeddings=1026`.
    Data: documents of Python's standard library (1.9 MB), made with
    `python -c "import pathlib, polymodal.pipelines.demo.data as d; d.write_text(pathlib.Path('python.jsonl'))"`;
    `polymodal tokenizer train python.jsonl --kind byte-bpe --style roberta --size 2048 --out TOKENIZER`;
    `polymodal pack python.jsonl --holdout 0.1 --out DATA --holdout-out HELD`.
    Measured: 2026-11-28, one seed: held-out masked-token loss 5.688 nats, unigram entropy 5.981; the texts have up to 1024 tokens.
    Cost: 495 s of processor time on one thread (2 cores Intel Xeon, AVX-512 with AMX, 24 GiB, shared with other work).
    Command: polymodal pretrain longformer-tiny --data DATA --eval-data HELD --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="longformer-tiny", system="longformer", size="tiny", objective={"global_first": True},
        model={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.08},
        data=DataSettings(global_batch=4, window=1024),
        optim=OptimSettings(lr=2e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=60),
        max_updates=1000, log=LogSettings(every=10), evaluate=EvaluateSettings(every=100, limit=64),
        checkpoint=CheckpointSettings(every=100),
    )


def longformer_base() -> Recipe:
    """Longformer base: 12 layers of width 768, 149M parameters, windows of 512 tokens, texts of 4096; begins with RoBERTa's weights.

    Paper: Beltagy et al. 2020, section 5 and the authors' notebook: 65k updates of 64 sequences of 4096 tokens, Adam at 3e-5, warmup over
    500 updates, polynomial decay with power 3.
    Target: 1.705 bits per character on the authors' held-out texts after 65k updates (1.846 with copied positions, before them; paper,
    table 5).
    Deviates: linear decay.
    Unverified: never trained to the end; the authors' corpus and the published weights were not available in the development environment.
    Cost: not measured.
    Command: torchrun --nproc-per-node 8 -m polymodal pretrain longformer-base --model ROBERTA --data DATA --out RUN
    """
    return Recipe(
        name="longformer-base", system="longformer", size="base",
        data=DataSettings(global_batch=64, micro_batch=2, workers=8),
        optim=OptimSettings(lr=3e-5, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=500),
        max_updates=65_000, log=LogSettings(every=50), evaluate=EvaluateSettings(every=1000, limit=1024),
        checkpoint=CheckpointSettings(every=500, keep_last=3, keep_every=5_000),
    )


def longformer_classify() -> Recipe:
    """Longformer fine-tuned to classify long texts; `<s>` is global.

    Paper: Beltagy et al. 2020, section 6.3 and appendix D: batch 32, Adam at 3e-5, 15 epochs, warmup over 10 % of the updates.
    Target: from the published base weights, Hyperpartisan F1 94.8, IMDB accuracy 95.7 (paper, table 7).
    Deviates: the length is given in updates: 15 epochs of 516 samples (Hyperpartisan's training part). For your data, set `max_updates`
    to 15 x samples / 32 and `schedule.warmup` to a tenth of it.
    Unverified: the published weights were not available in the development environment.
    Cost: not measured.
    Command: polymodal finetune longformer-classify --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="longformer-classify", system="longformer", size="base", task="classify",
        data=DataSettings(global_batch=32, micro_batch=2, workers=2),
        optim=OptimSettings(lr=3e-5, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=24),
        max_updates=242, log=LogSettings(every=10), evaluate=EvaluateSettings(every=24, monitor="accuracy"),
        checkpoint=CheckpointSettings(every=24, keep_best=True),
    )


def longformer_classify_tiny() -> Recipe:
    """Longformer fine-tuned to classify long texts, from a run of longformer-tiny or roberta-tiny: minutes on a laptop.

    Paper: Beltagy et al. 2020, section 6.3 (the method).
    Target: none in the paper.
    Deviates: 300 updates of 8 texts; a higher learning rate; early stopping after 4 evaluations without a better accuracy.
    Cost: not measured.
    Command: polymodal finetune longformer-classify-tiny --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="longformer-classify-tiny", system="longformer", size="tiny", task="classify",
        model={"attention_window": 64, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        data=DataSettings(global_batch=8, window=1024),
        optim=OptimSettings(lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=30),
        max_updates=300, log=LogSettings(every=10), evaluate=EvaluateSettings(every=50, limit=512, monitor="accuracy", patience=4),
        checkpoint=CheckpointSettings(every=50, keep_best=True),
    )


RECIPES = (longformer_tiny, longformer_base, longformer_classify, longformer_classify_tiny)
