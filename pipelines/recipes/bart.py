"""Recipes for BART."""

from __future__ import annotations

from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings


def bart_tiny() -> Recipe:
    """BART with 2 + 2 blocks of width 128 on texts of 128 tokens: minutes on a laptop.

    Paper: Lewis et al. 2019, BART: Denoising Sequence-to-Sequence Pre-training (the objective).
    Target: none in the paper; this is a tutorial and a smoke test. Most tokens can be copied, so the loss should be far below the unigram
    entropy (`lm_chance`).
    Measured: 2026-11-28, seed 0, with `--max-updates 600`: 3.893 nats per token on 256 of the 284 held-out rows, where the tokens' unigram
    entropy is 6.118 (perplexity 49 and 454); 0.301 of the tokens right. Copying is not learned to the end: the loss still falls.
    Deviates: size, learning rate, batch, no dropout; initial weights with a standard deviation of 0.08, about 1 / sqrt(128), as in
    `roberta-tiny`.
    Data: documents of Python's standard library (1.9 MB), made with
    `python -c "import pathlib, polymodal.pipelines.demo.data as d; d.write_text(pathlib.Path('python.jsonl'))"`;
    `polymodal tokenizer train python.jsonl --for bart --size 2048 --out TOKENIZER`;
    `polymodal pack python.jsonl --tokenize TOKENIZER --block 128 --holdout 0.1 --out DATA --holdout-out HELD`.
    Cost: not measured alone; 407 s of one thread's time for 600 updates on 2 cores (Intel Xeon at 2.8 GHz, AVX-512, fp32), beside tests.
    Command: polymodal pretrain bart-tiny --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="bart-tiny", system="bart", size="tiny", model={"dropout": 0.0, "init_std": 0.08},
        data=DataSettings(global_batch=32, window=1024),
        optim=OptimSettings(lr=2e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=100),
        max_updates=1000, log=LogSettings(every=10), evaluate=EvaluateSettings(every=100, limit=256),
        checkpoint=CheckpointSettings(every=100),
    )


def bart_base() -> Recipe:
    """BART base: 6 + 6 blocks of width 768, 139M parameters: the paper's comparison of objectives.

    Paper: Lewis et al. 2019, section 4 (books and Wikipedia, 1M updates; the best of the compared noises: spans and sentences).
    Target: after fine-tuning, SQuAD 1.1 F1 90.8, MNLI 83.8, XSum perplexity 6.62, CNN/DM perplexity 5.41 (table 1).
    Deviates: the paper gives neither batch nor learning rate of these runs; they are those of RoBERTa base's ablations (256 texts, 1e-4).
    Unverified: never trained to the end.
    Cost: not measured.
    Command: torchrun --nproc-per-node 8 -m polymodal pretrain bart-base --data DATA --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="bart-base", system="bart", size="base", objective={"max_length": 512},
        data=DataSettings(global_batch=256, micro_batch=16, workers=8),
        optim=OptimSettings(lr=1e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=10_000),
        max_updates=1_000_000, log=LogSettings(every=100), evaluate=EvaluateSettings(every=5000, limit=4096),
        checkpoint=CheckpointSettings(every=2000, keep_last=3, keep_every=50_000),
    )


def bart_large() -> Recipe:
    """BART large: 12 + 12 blocks of width 1024, 406M parameters, batches of 8000 texts.

    Paper: Lewis et al. 2019, section 5 (500,000 updates of 8000 texts of RoBERTa's 160 GB; dropout is off in the last tenth, which is a
    second phase here: `--continue-from RUN --set model.dropout=0.0 --max-updates 50000`).
    Target: MNLI 89.9, SQuAD 2.0 F1 89.2, CNN/DM ROUGE 44.16 / 21.28 / 40.90, XSum 45.14 / 22.27 / 37.25 (tables 2 to 4).
    Deviates: the paper gives no learning rate; it is RoBERTa large's.
    Unverified: never trained to the end.
    Cost: not measured.
    Command: torchrun --nproc-per-node 8 --nnodes 32 -m polymodal pretrain bart-large --data DATA --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="bart-large", system="bart", size="large", model={"attention_dropout": 0.1}, objective={"max_length": 512},
        data=DataSettings(global_batch=8000, micro_batch=8, workers=8),
        optim=OptimSettings(lr=4e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=30_000),
        max_updates=500_000, log=LogSettings(every=100), evaluate=EvaluateSettings(every=5000, limit=4096),
        checkpoint=CheckpointSettings(every=2000, keep_last=3, keep_every=50_000),
    )


def bart_text2text() -> Recipe:
    """BART fine-tuned to write texts, such as summaries, with the settings of the published CNN/DM models.

    Paper: Lewis et al. 2019, section 5.3; facebookresearch/fairseq, examples/bart/README.summarization.md: 20,000 updates, learning rate
    3e-5, warmup 500, label smoothing 0.1, Adam (0.9, 0.999), eps 1e-8, decay 0.01, clipping 0.1.
    Target: CNN/DM ROUGE 44.16 / 21.28 / 40.90 with 4 beams, length penalty 2.0, 55 to 140 tokens, no trigram twice (large).
    Data: `pack --target-field COLUMN`.
    Unverified: the published weights were not available in the development environment.
    Cost: not measured.
    Command: polymodal finetune bart-text2text --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="bart-text2text", system="bart", size="large", task="text2text", model={"attention_dropout": 0.1},
        objective={"max_length": 1024, "max_target_length": 142, "label_smoothing": 0.1},
        data=DataSettings(global_batch=128, workers=4),
        optim=OptimSettings(lr=3e-5, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, clip=0.1),
        schedule=ScheduleSettings("linear", warmup=500),
        max_updates=20_000, log=LogSettings(every=50), evaluate=EvaluateSettings(every=1000, limit=2048),
        checkpoint=CheckpointSettings(every=1000, keep_best=True),
    )


def bart_text2text_tiny() -> Recipe:
    """BART fine-tuned to write texts of up to 32 tokens for texts of 128: minutes on one core.

    Paper: Lewis et al. 2019, section 5.3 (the method).
    Target: none in the paper.
    Deviates: size, batch, a higher learning rate, no dropout.
    Cost: not measured.
    Command: polymodal finetune bart-text2text-tiny --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="bart-text2text-tiny", system="bart", size="tiny", task="text2text", model={"dropout": 0.0},
        objective={"max_length": 128, "max_target_length": 32, "label_smoothing": 0.1},
        data=DataSettings(global_batch=32, window=1024),
        optim=OptimSettings(lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=50),
        max_updates=1800, log=LogSettings(every=20), evaluate=EvaluateSettings(every=300, limit=256),
        checkpoint=CheckpointSettings(every=300, keep_best=True),
    )


FIRST_PHASE = ("net.trunk.embed.word.*", "net.trunk.embed.norm.*", "net.trunk.decoder.*", "net.trunk.decoder_embed.norm.*",
               "net.trunk.encoder.blocks.0.attention.out.*", "net.trunk.encoder.blocks.0.attention_residual.*",
               "net.trunk.encoder.blocks.0.feed_forward*", "net.trunk.encoder.blocks.[1-9]*")
"""All of BART but its positions and the input projection of the encoder's first attention."""


def bart_translate() -> Recipe:
    """BART translates into its language, first phase: a fresh encoder of another language learns to speak to it.

    Paper: Lewis et al. 2019, sections 3.4 and 5.4: the fresh encoder, BART's positions and the input projection of the encoder's first
    attention are trained, all else is frozen.
    Target: WMT16 Romanian-English BLEU 36.29 (large, with back-translated data and 5 beams; table 6, "Fixed BART").
    Deviates: the paper gives neither batch nor learning rate nor updates; they are those of `bart-text2text` with ten times its learning
    rate, as the encoder is fresh.
    Data: `pack --target-field COLUMN`.
    Unverified: the published weights were not available in the development environment.
    Cost: not measured.
    Command: polymodal finetune bart-translate --model MODEL --data DATA --eval-data HELD --out FIRST
    """
    return Recipe(
        name="bart-translate", system="bart", size="large", task="translate", model={"attention_dropout": 0.1},
        objective={"max_length": 512, "max_target_length": 512, "label_smoothing": 0.1},
        data=DataSettings(global_batch=128, workers=4),
        optim=OptimSettings(lr=3e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01, freeze=FIRST_PHASE),
        schedule=ScheduleSettings("inverse_sqrt", warmup=4000),
        max_updates=40_000, log=LogSettings(every=50), evaluate=EvaluateSettings(every=1000, limit=2048),
        checkpoint=CheckpointSettings(every=1000, keep_best=True),
    )


def bart_translate_all() -> Recipe:
    """BART translates into its language, second phase: everything is trained "for a small number of iterations".

    Paper: Lewis et al. 2019, sections 3.4 and 5.4.
    Target: WMT16 Romanian-English BLEU 37.96 (large; table 6, "Tuned BART").
    Deviates: the paper gives neither batch nor learning rate nor updates; they are those of `bart-text2text`.
    Unverified: the published weights were not available in the development environment.
    Cost: not measured.
    Command: polymodal finetune bart-translate-all --model FIRST --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="bart-translate-all", system="bart", size="large", task="translate", model={"attention_dropout": 0.1},
        objective={"max_length": 512, "max_target_length": 512, "label_smoothing": 0.1},
        data=DataSettings(global_batch=128, workers=4),
        optim=OptimSettings(lr=3e-5, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=500),
        max_updates=10_000, log=LogSettings(every=50), evaluate=EvaluateSettings(every=1000, limit=2048),
        checkpoint=CheckpointSettings(every=1000, keep_best=True),
    )


RECIPES = (bart_tiny, bart_base, bart_large, bart_text2text, bart_text2text_tiny, bart_translate, bart_translate_all)
