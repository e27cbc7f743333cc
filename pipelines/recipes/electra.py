"""Recipes for ELECTRA."""

from __future__ import annotations

from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings


def electra_tiny() -> Recipe:
    """ELECTRA with 2 layers of width 128, 128 positions and a generator of width 32: ten minutes on a laptop.

    Paper: Clark et al. 2020, ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators (the objective).
    Target: none in the paper; this is a tutorial and a smoke test. The AUC on replaced tokens should be clearly above 0.5 and above any
    detector that ignores the context; the generator's loss should be below the unigram entropy.
    Measured: 2026-11-21, seed 0, on all 277 held-out rows (35,193 tokens, 13.4 % replaced), by
    `python examples/replaced_tokens.py RUN HELD`. AUC: discriminator 0.701; word rarity as the score 0.557; the best detector
    without context, fitted to these same rows, 0.667. Generator: 5.116 nats per masked word, unigram 5.733. AUC within sequences, on
    256 rows: 0.582 after 250 updates, while the generator still produces nonsense; 0.560 after 500, 0.609 after 1500, 0.673 after 2500,
    0.699 at the end. Accuracy is not informative: 0.867, and 0.866 for calling every token original.
    Deviates: size, learning rate, no dropout; initial weights with a standard deviation of 0.08, about 1 / sqrt(128). With the paper's
    0.02, or a learning rate of 2e-3, the discriminator learned nothing in 1000 updates (AUC 0.51 to 0.54).
    Data: documents of Python's standard library (1.9 MB), made with
    `python -c "import pathlib, polymodal.pipelines.demo.data as d; d.write_text(pathlib.Path('python.jsonl'))"`;
    `polymodal tokenizer train python.jsonl --kind wordpiece --size 1024 --lowercase --out TOKENIZER`;
    `polymodal pack python.jsonl --tokenize TOKENIZER --block 128 --holdout 0.1 --out DATA --holdout-out HELD`.
    Cost: 779 s on one thread of 2 cores (AMD EPYC, AVX-512, no GPU, fp32), shared with other work.
    Command: polymodal pretrain electra-tiny --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="electra-tiny", system="electra", size="tiny",
        model={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.08},
        data=DataSettings(global_batch=16, window=1024),
        optim=OptimSettings(lr=5e-4, eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=200),
        max_updates=4000, log=LogSettings(every=10), evaluate=EvaluateSettings(every=250, limit=256),
        checkpoint=CheckpointSettings(every=250),
    )


def electra_small() -> Recipe:
    """ELECTRA-Small: 12 layers of width 256, 14M parameters, sequences of 128 tokens: days on one GPU.

    Paper: Clark et al. 2020, table 6: batch 128, Adam 5e-4 (0.9, 0.999, eps 1e-6), weight decay 0.01, clip 1, warmup 10k, linear decay
    over 1M updates, a generator of a quarter of the width, discriminator weight 50.
    Target: none that is comparable: the published results (GLUE development set: CoLA 57.0, SST-2 91.2, MNLI 81.3, QNLI 88.4) are those
    of ELECTRA-Small++, trained longer, on longer sequences and on more text.
    Deviates: AdamW with bias correction (the reference's Adam has none).
    Unverified: never trained to the end; the paper's corpus is no longer distributed.
    Cost: not measured here; 4 days on one V100 according to the reference.
    Command: polymodal pretrain electra-small --data DATA --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="electra-small", system="electra", size="small", objective={"max_length": 128},
        data=DataSettings(global_batch=128, workers=4),
        optim=OptimSettings(lr=5e-4, eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=10_000),
        max_updates=1_000_000, log=LogSettings(every=50), evaluate=EvaluateSettings(every=5000, limit=2048),
        checkpoint=CheckpointSettings(every=1000, keep_last=3, keep_every=100_000),
    )


def electra_base() -> Recipe:
    """ELECTRA-Base: 12 layers of width 768, 110M parameters, a generator of a third of the width, sequences of 512 tokens.

    Paper: Clark et al. 2020, table 6: batch 256, Adam 2e-4 (0.9, 0.999, eps 1e-6), weight decay 0.01, clip 1, warmup 10k, linear decay
    over 766k updates, discriminator weight 50.
    Target: none that is comparable: the published results (GLUE development set: CoLA 67.7, SST-2 95.1, MNLI 88.8, QNLI 93.2) are those
    of ELECTRA-Base++, trained longer and on more text.
    Deviates: AdamW with bias correction (the reference's Adam has none).
    Unverified: never trained to the end; the paper's corpus is no longer distributed.
    Cost: not measured.
    Command: torchrun --nproc-per-node 8 -m polymodal pretrain electra-base --data DATA --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="electra-base", system="electra", size="base", objective={"generator_hidden_size": 1 / 3},
        data=DataSettings(global_batch=256, workers=8),
        optim=OptimSettings(lr=2e-4, eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=10_000),
        max_updates=766_000, log=LogSettings(every=100), evaluate=EvaluateSettings(every=10_000, limit=4096),
        checkpoint=CheckpointSettings(every=2000, keep_last=3, keep_every=100_000),
    )


def electra_classify() -> Recipe:
    """ELECTRA's discriminator fine-tuned to classify texts or pairs of texts, with the paper's settings for GLUE and the small size.

    Paper: Clark et al. 2020, appendix B: Adam (eps 1e-6), learning rate 3e-4 for small (1e-4 base, 5e-5 large), layer-wise decay 0.8
    (0.9 large), warmup over 10 % and linear decay, batch 32, 3 epochs (10 for RTE and STS), dropout 0.1, no weight decay.
    Target: from the published small weights, GLUE 79.9 on the development sets (paper, table 1).
    Deviates: the length is given in updates: 3 epochs of 67k samples (SST-2). For your data, set `max_updates` to 3 x samples / 32 and
    `schedule.warmup` to a tenth of it. The highest block's learning rate is the head's times the decay; in the reference, times decay^2.
    Unverified: the published weights were not available in the development environment.
    Cost: not measured.
    Command: polymodal finetune electra-classify --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="electra-classify", system="electra", size="small", task="classify", objective={"max_length": 128},
        data=DataSettings(global_batch=32, workers=2),
        optim=OptimSettings(lr=3e-4, eps=1e-6, weight_decay=0.0, layer_decay=0.8),
        schedule=ScheduleSettings("linear", warmup=630),
        max_updates=6300, log=LogSettings(every=50), evaluate=EvaluateSettings(every=500, monitor="accuracy"),
        checkpoint=CheckpointSettings(every=500, keep_best=True),
    )


def electra_classify_tiny() -> Recipe:
    """ELECTRA fine-tuned to classify texts, from a run of electra-tiny: about a minute on a laptop.

    Paper: Clark et al. 2020, appendix B (the method).
    Target: none in the paper.
    Deviates: 300 updates of 16 texts of 64 tokens; a higher learning rate; early stopping after 4 evaluations without a better accuracy.
    Cost: not measured.
    Command: polymodal finetune electra-classify-tiny --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="electra-classify-tiny", system="electra", size="tiny", task="classify", objective={"max_length": 64},
        data=DataSettings(global_batch=16, window=1024),
        optim=OptimSettings(lr=1e-3, eps=1e-6, weight_decay=0.0, layer_decay=0.8),
        schedule=ScheduleSettings("linear", warmup=30),
        max_updates=300, log=LogSettings(every=10), evaluate=EvaluateSettings(every=50, limit=512, monitor="accuracy", patience=4),
        checkpoint=CheckpointSettings(every=50, keep_best=True),
    )


RECIPES = (electra_tiny, electra_small, electra_base, electra_classify, electra_classify_tiny)
