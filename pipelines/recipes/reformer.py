"""Recipes for Reformer."""

from __future__ import annotations

from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings


def reformer_tiny() -> Recipe:
    """Reformer with a local layer and one that hashes, of width 128, on texts of up to 512 tokens: minutes on a laptop.

    Paper: Kitaev et al. 2020, Reformer: The Efficient Transformer (the architecture).
    Target: none in the paper; this is a tutorial and a smoke test. The loss should be clearly below the unigram entropy (`lm_chance`).
    Deviates: size, learning rate, AdamW, no dropout; initial weights with a standard deviation of 0.08, about 1 / sqrt(128).
    Data: documents of Python's standard library (1.9 MB), made with
    `python -c "import pathlib, polymodal.pipelines.demo.data as d; d.write_text(pathlib.Path('python.jsonl'))"`;
    `polymodal tokenizer train python.jsonl --for reformer --size 2048 --out TOKENIZER`;
    `polymodal pack python.jsonl --holdout 0.1 --out DATA --holdout-out HELD`.
    Cost: not measured.
    Command: polymodal pretrain reformer-tiny --data DATA --eval-data HELD --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="reformer-tiny", system="reformer", size="tiny",
        model={"hidden_dropout_prob": 0.0, "local_attention_probs_dropout_prob": 0.0, "initializer_range": 0.08},
        data=DataSettings(global_batch=8, window=1024),
        optim=OptimSettings(lr=2e-3, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=60),
        max_updates=800, log=LogSettings(every=10), evaluate=EvaluateSettings(every=100, limit=64),
        checkpoint=CheckpointSettings(every=100),
    )


def reformer_base() -> Recipe:
    """The published enwik8 model: 12 layers of width 1024, 149M parameters, texts of 65,536 bytes.

    Paper: Kitaev et al. 2020, section 5: enwik8 in texts of 64K, one on each of 8 devices, Adafactor; 12 layers
    have 1.05 bits for each byte of the test set. Size: the config published as google/reformer-enwik8.
    Target: 1.05 bits for each byte.
    Deviates: AdamW with linear decay; the paper does not print learning rate and number of updates, those here are not the authors'.
    Unverified: never trained to the end; the published weights were not available in the development environment.
    Data: a byte-level tokenizer without merges, `polymodal tokenizer train FILES --for reformer --size 257 --out TOKENIZER`.
    Cost: not measured.
    Command: torchrun --nproc-per-node 8 -m polymodal pretrain reformer-base --data DATA --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="reformer-base", system="reformer", size="base", model={"chunk_size_feed_forward": 8192, "chunk_size_lm_head": 8192},
        data=DataSettings(global_batch=8, micro_batch=1, workers=2),
        optim=OptimSettings(lr=5e-4, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=10_000),
        max_updates=500_000, log=LogSettings(every=50), evaluate=EvaluateSettings(every=5000, limit=64),
        checkpoint=CheckpointSettings(every=1000, keep_last=3, keep_every=50_000),
    )


def reformer_classify_tiny() -> Recipe:
    """Reformer fine-tuned to classify long texts, from a run of reformer-tiny: minutes on a laptop.

    Paper: none; the head is that of transformers' `ReformerForSequenceClassification`.
    Target: none.
    Deviates: the paper has no classifier. The network that learned from left to right sees both ways here.
    Cost: not measured.
    Command: polymodal finetune reformer-classify-tiny --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="reformer-classify-tiny", system="reformer", size="tiny", task="classify",
        model={"hidden_dropout_prob": 0.0, "local_attention_probs_dropout_prob": 0.0},
        data=DataSettings(global_batch=8, window=1024),
        optim=OptimSettings(lr=5e-4, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=30),
        max_updates=300, log=LogSettings(every=10), evaluate=EvaluateSettings(every=50, limit=512, monitor="accuracy", patience=4),
        checkpoint=CheckpointSettings(every=50, keep_best=True),
    )


RECIPES = (reformer_tiny, reformer_base, reformer_classify_tiny)
