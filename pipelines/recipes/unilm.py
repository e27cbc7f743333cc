"""Recipes for UniLM."""

from __future__ import annotations

from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings


def unilm_tiny() -> Recipe:
    """UniLM with 2 layers of width 128 and 128 positions, all four tasks: minutes on a laptop.

    Paper: Dong et al. 2019, Unified Language Model Pre-training (the objective).
    Target: none in the paper; this is a tutorial and a smoke test. Each task's loss of hidden words should be well below their unigram
    entropy (`mlm_chance`).
    Measured: 2026-11-28, seed 0, with `--max-updates 600`, ended after 372: at update 360, in nats per hidden token of 256 held-out rows,
    beside the entropy of these tokens: bidirectional 5.822 (5.998), sequence to sequence 5.739 (5.954), left to right 5.868 (6.001), right
    to left 5.865 (6.001); 0.118, 0.135, 0.122 and 0.122 of them right. Next sentences are not learned yet: 0.689 (0.691). All losses of
    tokens still fall.
    Deviates: size, learning rate, batch, no dropout; initial weights with a standard deviation of 0.08, about 1 / sqrt(128), as in
    `roberta-tiny`.
    Data: documents of Python's standard library (1.9 MB), made with
    `python -c "import pathlib, polymodal.pipelines.demo.data as d; d.write_text(pathlib.Path('python.jsonl'))"`;
    `polymodal tokenizer train python.jsonl --for unilm --size 2048 --out TOKENIZER`;
    `polymodal pack python.jsonl --tokenize TOKENIZER --block 126 --holdout 0.1 --out DATA --holdout-out HELD`.
    Cost: not measured: 2 cores (Intel Xeon at 2.8 GHz, fp32) were shared with other programs, at a load of 8 to 16.
    Command: polymodal pretrain unilm-tiny --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="unilm-tiny", system="unilm", size="tiny",
        model={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.08},
        data=DataSettings(global_batch=32, window=1024),
        optim=OptimSettings(lr=2e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=60),
        max_updates=1200, log=LogSettings(every=12), evaluate=EvaluateSettings(every=120, limit=256),
        checkpoint=CheckpointSettings(every=120),
    )


def unilm_base() -> Recipe:
    """UniLM base: 12 layers, width 768, 109M parameters, sequences of 512 tokens.

    Paper: Dong et al. 2019, sections 2.3 and 2.4: English Wikipedia and BookCorpus, batch 330, Adam (0.9, 0.999), decay 0.01, learning rate
    3e-5, linear warmup over 40,000 updates and linear decay, dropout 0.1, 770,000 updates.
    Target: none for this size; of the large one, `unilm-large`.
    Deviates: the paper trains the large size, from BERT's weights (`unilm-large`); here are random ones, and BERT's rate and warmup for
    these. A BERT may be given with `--model`, too.
    Unverified: never trained to the end; BookCorpus is no longer distributed.
    Cost: not measured.
    Command: torchrun --nproc-per-node 8 -m polymodal pretrain unilm-base --data DATA --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="unilm-base", system="unilm", size="base",
        data=DataSettings(global_batch=336, micro_batch=14, workers=8),
        optim=OptimSettings(lr=1e-4, eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=10_000),
        max_updates=770_000, log=LogSettings(every=102), evaluate=EvaluateSettings(every=10_000, limit=4096),
        checkpoint=CheckpointSettings(every=2000, keep_last=3, keep_every=100_000),
    )


def unilm_large() -> Recipe:
    """UniLM large, the paper's: 24 layers, width 1024, 340M parameters, sequences of 512 tokens, from the weights of BERT large.

    Paper: Dong et al. 2019, sections 2.3 and 2.4 (see `unilm-base`): begins with BERT large (cased), learning rate 3e-5, linear warmup over
    40,000 updates.
    Target: after fine-tuning, CNN/DM ROUGE 43.33 / 20.21 / 40.51, Gigaword 38.45 / 19.45 / 35.75, SQuAD 2.0 F1 83.4, GLUE 80.8.
    Deviates: a batch of 352 instead of 330, which 32 ranks do not divide.
    Unverified: never trained to the end; BookCorpus is no longer distributed, and BERT's weights were not available in the development
    environment. From random weights (without `--model`), take `unilm-base`'s rate and warmup.
    Cost: not measured.
    Command: torchrun --nproc-per-node 8 --nnodes 4 -m polymodal pretrain unilm-large --model BERT --data DATA --out RUN
    """
    return Recipe(
        name="unilm-large", system="unilm", size="large",
        data=DataSettings(global_batch=352, micro_batch=11, workers=8),
        optim=OptimSettings(lr=3e-5, eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=40_000),
        max_updates=770_000, log=LogSettings(every=102), evaluate=EvaluateSettings(every=10_000, limit=4096),
        checkpoint=CheckpointSettings(every=2000, keep_last=3, keep_every=100_000),
    )


def unilm_text2text() -> Recipe:
    """UniLM fine-tuned to write texts, such as headlines, with the settings of the published code for Gigaword.

    Paper: Dong et al. 2019, section 3.1; microsoft/unilm, unilm-v1: 192 tokens with up to 64 of the target, 70 % of it hidden, label
    smoothing 0.1, batch 128, learning rate 3e-5, warmup over a tenth (not looked up again: the batch and the warmup may be others).
    Target: Gigaword ROUGE 38.45 / 19.45 / 35.75 with 5 beams (large).
    Deviates: the length is given in updates, about 3 epochs of Gigaword's 3.8M pairs.
    Unverified: the published weights were not available in the development environment.
    Data: `pack --target-field COLUMN`.
    Cost: not measured.
    Command: polymodal finetune unilm-text2text --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="unilm-text2text", system="unilm", size="large", task="text2text",
        objective={"max_length": 192, "max_target_length": 64, "max_predictions": 64},
        data=DataSettings(global_batch=128, workers=4),
        optim=OptimSettings(lr=3e-5, eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=9000),
        max_updates=90_000, log=LogSettings(every=50), evaluate=EvaluateSettings(every=5000, limit=4096),
        checkpoint=CheckpointSettings(every=5000, keep_best=True),
    )


def unilm_text2text_tiny() -> Recipe:
    """UniLM fine-tuned to write texts of up to 32 tokens for texts of about 90: minutes on one core.

    Paper: Dong et al. 2019, section 3.1 (the method).
    Target: none in the paper.
    Deviates: size, batch, a higher learning rate, no dropout.
    Cost: not measured.
    Command: polymodal finetune unilm-text2text-tiny --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="unilm-text2text-tiny", system="unilm", size="tiny", task="text2text",
        model={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        objective={"max_target_length": 32},
        data=DataSettings(global_batch=32, window=1024),
        optim=OptimSettings(lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=50),
        max_updates=1800, log=LogSettings(every=20), evaluate=EvaluateSettings(every=300, limit=256),
        checkpoint=CheckpointSettings(every=300, keep_best=True),
    )


RECIPES = (unilm_tiny, unilm_base, unilm_large, unilm_text2text, unilm_text2text_tiny)
