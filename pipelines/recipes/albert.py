"""Recipes for ALBERT."""

from __future__ import annotations

from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings


def albert_tiny() -> Recipe:
    """ALBERT with 2 layers of width 128 that share one block, and 128 positions: minutes on a laptop.

    Paper: Lan et al. 2019, ALBERT: A Lite BERT for Self-supervised Learning of Language Representations (the objective).
    Target: none in the paper; this is a tutorial and a smoke test. The loss of the words should be below their unigram entropy.
    Measured: 2026-11-27, seed 0: after 1000 updates 5.650 nats per masked token on all 230 held-out rows, where the tokens' unigram entropy
    is 5.792 (perplexity 284 and 328); after 400 updates it was 5.782. The order of segments was not learnt: accuracy 0.49 to 0.51, loss
    0.694, chance 0.693. That was with pairs of which half were two tokens (the scraps of rows). With today's pairs, of sentences of whole
    texts, the order is learnt a little: 2026-11-28, seed 0, 600 updates of 8 docstrings in pairs of 64 tokens (0.42 epochs, so no text was
    seen twice): 0.569 of 569 held-out pairs are right (95 %: 0.529 to 0.610; 0.519 and 0.525 after 200 and 400 updates), the loss is 0.672,
    chance 0.693; words 5.440 nats, their unigram entropy is 5.666.
    Deviates: size, learning rate, batch; AdamW for LAMB; initial weights with a standard deviation of 0.08, about 1 / sqrt(128).
    Data: documents of Python's standard library (1.9 MB), made with
    `python -c "import pathlib, polymodal.pipelines.demo.data as d; d.write_text(pathlib.Path('python.jsonl'))"`;
    `polymodal tokenizer train python.jsonl --kind unigram --style albert --size 2048 --lowercase --out TOKENIZER`;
    `polymodal pack python.jsonl --tokenize TOKENIZER --block 128 --holdout 0.1 --out DATA --holdout-out HELD`. For the order:
    a quarter of the docstrings of torch, transformers, scipy, sklearn, numpy, matplotlib, sympy and networkx
    (`python examples/docstring_summaries.py --texts PACKAGES | awk 'NR % 4 == 1' > docs.jsonl`);
    `polymodal tokenizer train docs.jsonl --for unilm --size 4096 --out TOKENIZER` (wordpiece);
    `polymodal pack docs.jsonl --out DATA --holdout 0.05 --holdout-out HELD`; `--tokenizer TOKENIZER --max-updates 600
    --set precision=32 --set data.global_batch=8 --set objective.max_length=64`.
    Cost: not measured alone; 30 minutes of wall time on one thread of 2 cores that ran seven times as much other work (Intel Xeon, fp32).
    The second run: 95 s of CPU time on 2 cores Intel Xeon, AVX-512 with AMX, 24 GiB (fp32, one thread, beside other work).
    Command: polymodal pretrain albert-tiny --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="albert-tiny", system="albert", size="tiny",
        model={"initializer_range": 0.08},
        data=DataSettings(global_batch=32, window=1024),
        optim=OptimSettings(lr=2e-3, eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=60),
        max_updates=1000, log=LogSettings(every=10), evaluate=EvaluateSettings(every=100, limit=256),
        checkpoint=CheckpointSettings(every=100),
    )


def albert_base() -> Recipe:
    """ALBERT base, version 2: 12 layers of width 768 that share one block, 12M parameters, sequences of 512 tokens in batches of 4096.

    Paper: Lan et al. 2019, section 4.1 and appendix A.2: batch 4096, LAMB at 0.00176, warmup 3125 and 125k updates, weight decay 0.01,
    masked n-grams of at most 3 words. Version 2 (google-research/albert): no dropout, more text, 10M updates for this size.
    Target: after fine-tuning, SQuAD 1.1 F1 90.2, SQuAD 2.0 F1 82.1, MNLI 84.6, SST-2 92.9, RACE 66.8 (google-research/albert).
    Deviates: the 125k updates of version 1, with version 2's dropout; `--size` is base, `base-v1` has version 1's dropout.
    Unverified: never trained to the end; the paper's corpus is no longer distributed.
    Cost: not measured.
    Command: torchrun --nproc-per-node 8 -m polymodal pretrain albert-base --data DATA --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="albert-base", system="albert", size="base", objective={"max_length": 512, "max_predictions": 20},
        data=DataSettings(global_batch=4096, micro_batch=32, workers=8),
        optim=OptimSettings(name="lamb", lr=1.76e-3, eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=3125),
        max_updates=125_000, log=LogSettings(every=50), evaluate=EvaluateSettings(every=2500, limit=4096),
        checkpoint=CheckpointSettings(every=1000, keep_last=3, keep_every=25_000),
    )


def albert_classify() -> Recipe:
    """ALBERT fine-tuned to classify texts or pairs of texts, with the paper's settings for GLUE.

    Paper: Lan et al. 2019, appendix A.4 (the row of SST-2): batch 32, learning rate 1e-5, warmup 1256, 20,935 updates, 512 tokens, dropout
    0 in the trunk and 0.1 before the classifier.
    Target: from the published base weights of version 2, MNLI 84.6, SST-2 92.9 (google-research/albert).
    Deviates: sequences of at most 128 tokens.
    Unverified: neither the published weights nor the appendix were available in the development environment.
    Cost: not measured.
    Command: polymodal finetune albert-classify --model MODEL --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="albert-classify", system="albert", size="base", task="classify", objective={"max_length": 128},
        data=DataSettings(global_batch=32, workers=2),
        optim=OptimSettings(lr=1e-5, eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=1256),
        max_updates=20_935, log=LogSettings(every=50), evaluate=EvaluateSettings(every=500, monitor="accuracy"),
        checkpoint=CheckpointSettings(every=500, keep_best=True),
    )


RECIPES = (albert_tiny, albert_base, albert_classify)
