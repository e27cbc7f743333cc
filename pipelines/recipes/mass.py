"""Recipes for MASS."""

from __future__ import annotations

from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings


def mass_tiny() -> Recipe:
    """MASS with 2 + 2 blocks of width 128 on texts of 128 tokens: minutes on a laptop.

    Paper: Song et al. 2019, MASS: Masked Sequence to Sequence Pre-training (the objective).
    Target: none in the paper; this is a tutorial and a smoke test. The loss should be below the unigram entropy (`lm_chance`).
    Measured: 2026-11-28, seed 0, with `--max-updates 250`: 5.281 nats per token on 256 of the 284 held-out rows, where the tokens' unigram
    entropy is 6.095 (perplexity 197 and 444); 0.141 of the tokens right.
    Deviates: size, learning rate, batch, no dropout; initial weights with a standard deviation of 0.08, about 1 / sqrt(128), as in
    `bart-tiny`.
    Data: documents of Python's standard library (1.9 MB), made with
    `python -c "import pathlib, polymodal.pipelines.demo.data as d; d.write_text(pathlib.Path('python.jsonl'))"`;
    `polymodal tokenizer train python.jsonl --for mass --size 2048 --out TOKENIZER`;
    `polymodal pack python.jsonl --tokenize TOKENIZER --block 128 --holdout 0.1 --out DATA --holdout-out HELD`.
    Cost: not measured alone; 27 minutes for 250 updates, one thread (Intel Xeon at 2.8 GHz, fp32) on 2 cores that ran many tests.
    Command: polymodal pretrain mass-tiny --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="mass-tiny", system="mass", size="tiny", model={"dropout": 0.0, "attention_dropout": 0.0, "init_std": 0.08},
        data=DataSettings(global_batch=32, window=1024),
        optim=OptimSettings(lr=2e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=100),
        max_updates=1000, log=LogSettings(every=10), evaluate=EvaluateSettings(every=100, limit=256),
        checkpoint=CheckpointSettings(every=100),
    )


def mass_base() -> Recipe:
    """MASS base: 6 + 6 blocks of width 768, for summaries and other text of one language.

    Paper: Song et al. 2019, section 4.3; microsoft/MASS, MASS-summarization (transformer_mass_base): Adam (0.9, 0.98), weight decay 0.01,
    learning rate 5e-4 with inverse square root and 10,000 updates of warmup, batches of 4096 tokens on 8 devices, two accumulated.
    Target: after fine-tuning, Gigaword ROUGE 38.73 / 19.71 / 35.96, CNN/DM 42.12 / 19.50 / 39.01.
    Deviates: batches count texts of up to 512 tokens, of which 128 have the tokens of the code's batch; the span is one of the whole text
    (see seq2seq/mass.py).
    Unverified: never trained to the end.
    Cost: not measured.
    Command: torchrun --nproc-per-node 8 -m polymodal pretrain mass-base --data DATA --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="mass-base", system="mass", size="base",
        data=DataSettings(global_batch=128, micro_batch=16, workers=8),
        optim=OptimSettings(lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("inverse_sqrt", warmup=10_000),
        max_updates=500_000, log=LogSettings(every=100), evaluate=EvaluateSettings(every=5000, limit=4096),
        checkpoint=CheckpointSettings(every=2000, keep_last=3, keep_every=50_000),
    )


def mass_large() -> Recipe:
    """The paper's model for translation: 6 + 6 blocks of width 1024 and the languages of the data.

    Paper: Song et al. 2019, section 4.1: sentences of two languages, Adam with learning rate 1e-4 and inverse square root, 3000 tokens on
    each of 8 devices.
    Target: after back-translation, which is not part of this library, newstest BLEU en-fr 37.5, fr-en 34.9, en-de 28.3, de-en 35.2.
    Deviates: batches count sentences, of which about 800 have the paper's 24,000 tokens.
    Data: rows with the sentence and the name of its language, `polymodal pack SENTENCES.jsonl --label-field language`; the names also in
    `--set 'model.languages=[en,fr]'`.
    Unverified: never trained to the end.
    Cost: not measured.
    Command: torchrun --nproc-per-node 8 -m polymodal pretrain mass-large --set 'model.languages=[en,fr]' --data DATA
    --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="mass-large", system="mass", size="large",
        data=DataSettings(global_batch=800, micro_batch=100, workers=8),
        optim=OptimSettings(lr=1e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0),
        schedule=ScheduleSettings("inverse_sqrt", warmup=4000),
        max_updates=1_000_000, log=LogSettings(every=100), evaluate=EvaluateSettings(every=5000, limit=4096),
        checkpoint=CheckpointSettings(every=2000, keep_last=3, keep_every=50_000),
    )


def mass_text2text() -> Recipe:
    """MASS fine-tuned to write texts, such as summaries or translations.

    Paper: Song et al. 2019, section 4; microsoft/MASS, MASS-summarization: label smoothing 0.1, Adam (0.9, 0.98), learning rate 1e-4 with
    inverse square root and 4000 updates of warmup, weight decay 0.01.
    Target: Gigaword ROUGE 38.73 / 19.71 / 35.96 with 5 beams (base).
    Data: `pack --target-field COLUMN`; with languages `objective.source_language` and `objective.target_language`.
    Unverified: the published weights are a fairseq checkpoint, which is not read here.
    Cost: not measured.
    Command: polymodal finetune mass-text2text --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="mass-text2text", system="mass", size="base", task="text2text",
        objective={"max_length": 512, "max_target_length": 128, "label_smoothing": 0.1},
        data=DataSettings(global_batch=128, workers=4),
        optim=OptimSettings(lr=1e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("inverse_sqrt", warmup=4000),
        max_updates=50_000, log=LogSettings(every=50), evaluate=EvaluateSettings(every=1000, limit=2048),
        checkpoint=CheckpointSettings(every=1000, keep_best=True),
    )


def mass_text2text_tiny() -> Recipe:
    """MASS fine-tuned to write texts of up to 64 tokens for texts of 128: minutes on one core.

    Paper: Song et al. 2019, section 4 (the method).
    Target: none in the paper.
    Deviates: size, batch, a higher learning rate, no dropout.
    Cost: not measured.
    Command: polymodal finetune mass-text2text-tiny --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="mass-text2text-tiny", system="mass", size="tiny", task="text2text", model={"dropout": 0.0, "attention_dropout": 0.0},
        objective={"max_length": 128, "max_target_length": 64, "label_smoothing": 0.1},
        data=DataSettings(global_batch=32, window=1024),
        optim=OptimSettings(lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=50),
        max_updates=1800, log=LogSettings(every=20), evaluate=EvaluateSettings(every=300, limit=256),
        checkpoint=CheckpointSettings(every=300, keep_best=True),
    )


RECIPES = (mass_tiny, mass_base, mass_large, mass_text2text, mass_text2text_tiny)
