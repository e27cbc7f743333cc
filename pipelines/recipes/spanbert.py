"""Recipes for SpanBERT."""

from __future__ import annotations

from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings


def spanbert_tiny() -> Recipe:
    """SpanBERT with 2 layers of width 128 and 128 positions: minutes on a laptop.

    Paper: Joshi et al. 2019, SpanBERT: Improving Pre-training by Representing and Predicting Spans (the objective).
    Target: none in the paper; this is a tutorial and a smoke test. The loss of the words should be below their unigram entropy.
    Measured: 2026-11-28, seed 0: after 600 updates 5.919 nats per masked token on all 252 held-out rows, where the tokens' unigram entropy
    is 6.034 (perplexity 372 and 418); after 300 updates it was 6.056. From the boundaries alone the same tokens cost 6.121 nats, still
    above their unigram entropy of 6.018: that head learns more slowly, and 600 updates do not bring it there. It is no defect of the loss:
    of 1,111 fixed targets in 64 texts, 54 updates bring the boundary loss from 8.00 to 2.25 nats (Adam at 1e-3; the words: 1.17).
    On more text both are below it: on the docstrings of six packages (29 MB, below), after 400 updates of a longer run that was stopped,
    256 held-out rows: words 5.717 nats and 0.137 right (entropy 5.868), from the boundaries alone 5.736 and 0.139 (entropy 5.852).
    Deviates: size, learning rate, batch, no dropout; initial weights with a standard deviation of 0.08, about 1 / sqrt(128).
    Data: documents of Python's standard library (1.9 MB), made with
    `python -c "import pathlib, polymodal.pipelines.demo.data as d; d.write_text(pathlib.Path('python.jsonl'))"`;
    `polymodal tokenizer train python.jsonl --kind wordpiece --size 2048 --out TOKENIZER`;
    `polymodal pack python.jsonl --tokenize TOKENIZER --block 128 --holdout 0.1 --out DATA --holdout-out HELD`. Docstrings:
    `python examples/docstring_summaries.py --texts torch transformers scipy sklearn matplotlib sympy > texts.jsonl`;
    `polymodal tokenizer train texts.jsonl --kind wordpiece --size 4096 --out TOKENIZER`;
    `polymodal pack texts.jsonl --tokenize TOKENIZER --block 128 --holdout 0.02 --out DATA --holdout-out HELD`;
    `--max-updates 2000 --set precision=32`.
    Cost: not measured alone; 17 minutes of wall time on one thread of 2 cores that ran seven times as much other work (Intel Xeon, fp32).
    The run on docstrings: not measured.
    Command: polymodal pretrain spanbert-tiny --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="spanbert-tiny", system="spanbert", size="tiny",
        model={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.08},
        data=DataSettings(global_batch=32, window=1024),
        optim=OptimSettings(lr=2e-3, eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=60),
        max_updates=600, log=LogSettings(every=10), evaluate=EvaluateSettings(every=100, limit=256),
        checkpoint=CheckpointSettings(every=100),
    )


def spanbert_base() -> Recipe:
    """SpanBERT base: 12 layers of width 768, single sequences of 512 tokens.

    Paper: Joshi et al. 2019, section 4.2: batch 256, Adam 1e-4 (eps 1e-8), weight decay 0.1, clip 1, warmup 10k, linear decay over 2.4M
    updates, dropout 0.1, a cased vocabulary.
    Target: after fine-tuning, SQuAD 1.1 F1 92.4 and SQuAD 2.0 F1 83.6 (facebookresearch/SpanBERT, base).
    Deviates: weight decay 0.01, as in the released command (`pretraining/README.md`); AdamW.
    Unverified: never trained to the end; the paper's corpus is no longer distributed.
    Cost: not measured.
    Command: torchrun --nproc-per-node 8 -m polymodal pretrain spanbert-base --data DATA --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="spanbert-base", system="spanbert", size="base", objective={"max_length": 512},
        data=DataSettings(global_batch=256, workers=8),
        optim=OptimSettings(lr=1e-4, eps=1e-8, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=10_000),
        max_updates=2_400_000, log=LogSettings(every=100), evaluate=EvaluateSettings(every=10_000, limit=4096),
        checkpoint=CheckpointSettings(every=2000, keep_last=3, keep_every=100_000),
    )


RECIPES = (spanbert_tiny, spanbert_base)
