"""Recipes for XLNet."""

from __future__ import annotations

from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings


def xlnet_tiny() -> Recipe:
    """XLNet with 2 blocks of width 128, sequences of 128 tokens and a memory of 96: minutes on a laptop.

    Paper: Yang et al. 2019, XLNet: Generalized Autoregressive Pretraining for Language Understanding (the objective).
    Target: none in the paper; this is a tutorial and a smoke test. The loss should be clearly below the unigram entropy (`plm_chance`).
    Measured: 2026-11-27, seed 0: after 800 updates 4.837 nats per predicted token on 256 of the 490 held-out rows, where the tokens'
    unigram entropy is 5.890 (perplexity 126 and 361).
    Deviates: size, learning rate, batch, no dropout; initial weights with a standard deviation of 0.08, about 1 / sqrt(128).
    Data: documents of Python's standard library (1.9 MB), made with
    `python -c "import pathlib, polymodal.pipelines.demo.data as d; d.write_text(pathlib.Path('python.jsonl'))"`;
    `polymodal tokenizer train python.jsonl --kind unigram --style xlnet --size 2048 --out TOKENIZER`;
    `polymodal pack python.jsonl --tokenize TOKENIZER --block 64 --in-order --holdout 0.1 --out DATA --holdout-out HELD`.
    Cost: 178 s of one thread's time on 2 cores (Intel Xeon at 2.8 GHz, AVX-512, no GPU, fp32), shared with other work.
    Command: polymodal pretrain xlnet-tiny --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="xlnet-tiny", system="xlnet", size="tiny", model={"dropout": 0.0, "initializer_range": 0.08},
        data=DataSettings(global_batch=16),
        optim=OptimSettings(lr=2e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=60),
        max_updates=800, log=LogSettings(every=10), evaluate=EvaluateSettings(every=100, limit=256),
        checkpoint=CheckpointSettings(every=100),
    )


def xlnet_base() -> Recipe:
    """XLNet base: 12 blocks of width 768, 117M parameters, sequences of 512 tokens in batches of 256, memory of 384.

    Paper: Yang et al. 2019, section 3.4: XLNet-Base on Wikipedia and BooksCorpus; section 3.1: with all pretraining settings of BERT, which
    are batch 256, Adam 1e-4 with linear decay, warmup 10k, weight decay 0.01, dropout 0.1, 1M updates (Devlin et al. 2018, appendix A.2).
    For the large model on all data: batch 8192, 4e-4, warmup 40k, 500k updates, eps 1e-6 (table 7).
    Target: after fine-tuning, MNLI 85.63 / 85.12, SST-2 93.35, SQuAD 2.0 80.98 / 78.18 (F1 / EM), RACE 66.66 (table 6, K = 6).
    Deviates: no half of the batch is read backwards; without it, the paper has MNLI 85.31 / 84.99 and RACE 66.34 (table 6, row 7).
    Data: `pack --tokenize TOKENIZER --block 256 --in-order`, with a unigram tokenizer of 32000 pieces (`--style xlnet`).
    Unverified: never trained to the end; the memory is that of the published configs.
    Cost: not measured.
    Command: torchrun --nproc-per-node 8 -m polymodal pretrain xlnet-base --data DATA --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="xlnet-base", system="xlnet", size="base",
        data=DataSettings(global_batch=256, workers=4),
        optim=OptimSettings(lr=1e-4, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=10_000),
        max_updates=1_000_000, log=LogSettings(every=50), evaluate=EvaluateSettings(every=5000, limit=4096),
        checkpoint=CheckpointSettings(every=1000, keep_last=3, keep_every=50_000),
    )


def xlnet_classify() -> Recipe:
    """XLNet fine-tuned to classify texts or pairs of texts, with the paper's settings for MNLI.

    Paper: Yang et al. 2019, table 8, the column of MNLI (large model): batch 128, Adam 2e-5 with linear decay and eps 1e-6, 10k updates,
    128 tokens, weight decay 0.01, dropout 0.1, one learning rate for all layers.
    Target: from the published base weights, MNLI 85.63 / 85.12, SST-2 93.35 (table 6, K = 6).
    Deviates: warmup over a tenth of the updates, as in the published example for STS-B (zihangdai/xlnet, README).
    Unverified: the published weights were not available in the development environment.
    Cost: not measured.
    Command: polymodal finetune xlnet-classify --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="xlnet-classify", system="xlnet", size="base", task="classify", objective={"max_length": 128},
        data=DataSettings(global_batch=128, workers=2),
        optim=OptimSettings(lr=2e-5, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=1000),
        max_updates=10_000, log=LogSettings(every=50), evaluate=EvaluateSettings(every=500, monitor="accuracy"),
        checkpoint=CheckpointSettings(every=500, keep_best=True),
    )


def xlnet_span() -> Recipe:
    """XLNet fine-tuned to answer questions by spans of texts, with the paper's settings for SQuAD.

    Paper: Yang et al. 2019, table 8, the column of SQuAD (large model): batch 48, Adam 3e-5 with linear decay and eps 1e-6, 8k updates,
    512 tokens, weight decay 0.01, dropout 0.1, each layer's learning rate 0.75 of the one above; warmup 1000 (zihangdai/xlnet,
    scripts/tpu_squad_large.sh).
    Target: from the published base weights, SQuAD 2.0 80.98 / 78.18 (F1 / EM; table 6, K = 6), with another head.
    Deviates: the head (see `text/xlnet.py`); a batch has 48 questions with all their windows, where the paper has 48 windows.
    Unverified: the published weights were not available in the development environment.
    Cost: not measured.
    Command: polymodal finetune xlnet-span --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="xlnet-span", system="xlnet", size="base", task="span", objective={"max_length": 512},
        data=DataSettings(global_batch=48, workers=2),
        optim=OptimSettings(lr=3e-5, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01, layer_decay=0.75),
        schedule=ScheduleSettings("linear", warmup=1000),
        max_updates=8_000, log=LogSettings(every=50), evaluate=EvaluateSettings(every=500, monitor="exact_windows"),
        checkpoint=CheckpointSettings(every=500, keep_best=True),
    )


RECIPES = (xlnet_tiny, xlnet_base, xlnet_classify, xlnet_span)
