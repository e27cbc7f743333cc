"""Recipes for BigBird."""

from __future__ import annotations

from dataclasses import replace

from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings
from .longformer import longformer_classify_tiny


def bigbird_tiny() -> Recipe:
    """BigBird with 2 layers of width 128, blocks of 16 tokens and texts of up to 1024: minutes on a laptop.

    Paper: Zaheer et al. 2020, Big Bird: Transformers for Longer Sequences (the objective).
    Target: none in the paper; this is a tutorial and a smoke test. The loss should be clearly below the unigram entropy (`mlm_chance`).
    Deviates: size, learning rate, batch, no dropout; from randomly initialized weights, with a standard deviation of 0.08, about
    1 / sqrt(128). With `--model` it begins as in the paper with those of a RoBERTa or BERT, such as a run of roberta-tiny; then set
    `--set model.block_size=16 --set model.max_position_embeddings=1024`.
    Data: documents of Python's standard library (1.9 MB), made with
    `python -c "import pathlib, polymodal.pipelines.demo.data as d; d.write_text(pathlib.Path('python.jsonl'))"`;
    `polymodal tokenizer train python.jsonl --kind byte-bpe --style roberta --size 2048 --out TOKENIZER`;
    `polymodal pack python.jsonl --holdout 0.1 --out DATA --holdout-out HELD`.
    Cost: not measured.
    Command: polymodal pretrain bigbird-tiny --data DATA --eval-data HELD --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="bigbird-tiny", system="bigbird", size="tiny",
        model={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.08},
        data=DataSettings(global_batch=4, window=1024),
        optim=OptimSettings(lr=2e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=60),
        max_updates=1000, log=LogSettings(every=10), evaluate=EvaluateSettings(every=100, limit=64),
        checkpoint=CheckpointSettings(every=100),
    )


def bigbird_base() -> Recipe:
    """BigBird base: 12 layers of width 768, 128M parameters, blocks of 64 tokens, texts of 4096; begins with RoBERTa's weights.

    Paper: Zaheer et al. 2020, appendix E.1: 500k updates of 256 sequences of 4096 tokens, Adam at 1e-4, warmup over 10k updates, linear
    decay.
    Target: 1.678 bits per character on the authors' held-out texts (ITC; paper, appendix E.1).
    Unverified: never trained to the end, and the paper's figures were not checked against its text; the authors' corpus and the published
    weights were not available in the development environment.
    Cost: not measured.
    Command: torchrun --nproc-per-node 8 -m polymodal pretrain bigbird-base --model ROBERTA --data DATA --out RUN
    """
    return Recipe(
        name="bigbird-base", system="bigbird", size="base",
        data=DataSettings(global_batch=256, micro_batch=2, workers=8),
        optim=OptimSettings(lr=1e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=10_000),
        max_updates=500_000, log=LogSettings(every=50), evaluate=EvaluateSettings(every=5000, limit=1024),
        checkpoint=CheckpointSettings(every=1000, keep_last=3, keep_every=50_000),
    )


def bigbird_classify_tiny() -> Recipe:
    """BigBird fine-tuned to classify long texts, from a run of bigbird-tiny or roberta-tiny: minutes on a laptop.

    Paper: Zaheer et al. 2020, section 4 (the method).
    Target: none in the paper.
    Deviates: 300 updates of 8 texts; a higher learning rate; early stopping after 4 evaluations without a better accuracy.
    Cost: not measured.
    Command: polymodal finetune bigbird-classify-tiny --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return replace(longformer_classify_tiny(), name="bigbird-classify-tiny", system="bigbird",
                   model={"block_size": 16, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})


RECIPES = (bigbird_tiny, bigbird_base, bigbird_classify_tiny)
