"""Recipes for TagLM."""

from __future__ import annotations

from dataclasses import replace

from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, Recipe
from ..run.schedule import ScheduleSettings
from .features import features_tiny


def taglm_tiny() -> Recipe:
    """TagLM with BiLSTMs of width 64 beside two language models: tags of words, in minutes on a laptop.

    Paper: Peters et al. 2017, TagLM, section 3.
    Target: none in the paper; with `--set model.language_models=[]` and without companions it is the same tagger without language models.
    Measured: 2026-11-28, three seeds, `examples/tag_beside_language_models.py` (200 updates on 1,000 sentences of the People's Daily, names
    of persons, places and organisations, 600 sentences held out): F1 of names 0.503, 0.588 and 0.513 beside an `elmo-tiny` of 600 updates,
    and 0.000, 0.053 and 0.019 alone; accuracy of tags 0.955, 0.961, 0.956 and 0.923, 0.925, 0.924 (docs/tasks.md).
    Deviates: size, batch, rate.
    Data: `pack --kind tag`; the language models are runs of `elmo-tiny` on texts without tags, one or two.
    Cost: about 60 s of processor time for 200 updates, one thread (2 cores Intel Xeon, AVX-512 with AMX, 24 GiB).
    Command: polymodal pretrain taglm-tiny --set companions.forward=ELMO --set companions.backward=OTHER --data DATA --eval-data HELD
    --out RUN
    """
    return replace(features_tiny(), name="taglm-tiny", system="taglm")


def taglm_base() -> Recipe:
    """The paper's tagger for chunks and, with LSTMs, for names: BiLSTMs of width 200 beside two language models.

    Paper: Peters et al. 2017, section 3: Adam at 1e-3 at a constant rate, gradients clipped at 5, dropout of a quarter on what LSTMs read,
    the best epoch on the development set.
    Target: CoNLL-2000 F1 96.37 (chunks); CoNLL-2003 91.93 (names, where the paper has GRUs of width 300), 90.87 without language models.
    Deviates: word vectors begin at random; no restarts with a tenth of the rate; the length is given in updates: 20 epochs of 14k
    sentences in batches of 64.
    Data: `pack --kind tag`, with tags of the BIOES scheme.
    Unverified: the paper's language models and data were not available in the development environment.
    Cost: not measured.
    Command: polymodal pretrain taglm-base --set companions.forward=ELMO --set companions.backward=OTHER --data DATA --eval-data HELD
    --out RUN
    """
    return replace(
        taglm_tiny(), name="taglm-base", size="base", data=DataSettings(global_batch=64, workers=2),
        optim=OptimSettings(lr=1e-3, weight_decay=0.0, clip=5.0), schedule=ScheduleSettings("constant"), max_updates=4400,
        evaluate=EvaluateSettings(every=220, monitor="entity_f1"), checkpoint=CheckpointSettings(every=220, keep_best=True),
    )


RECIPES = (taglm_tiny, taglm_base)
