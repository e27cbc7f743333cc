"""Recipes for the feature-based route: small networks on the layers of a trained one."""

from __future__ import annotations

from dataclasses import replace

from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings


def features_tiny() -> Recipe:
    """A BiLSTM of width 64 and a CRF on the layers of any trained network of texts: tags of words, in a minute or two on a laptop.

    Paper: Peters et al. 2018, ELMo, section 3.3 (the mix) and section 4 (the tagger).
    Target: none in the paper; this compares networks on the same data. `objective.tuned` trains the network, too.
    Measured: 2026-11-28, three seeds (docs/words.md): F1 of names on 600 held-out sentences 0.447, 0.493 and 0.430 on the layers of an
    `elmo-tiny` of 600 updates, 0.405, 0.434 and 0.409 on the vectors of a `word2vec-tiny` of the same text.
    Deviates: size, no words and characters of the tagger's own.
    Data: `pack --kind tag`.
    Cost: 107 s of processor time on ELMo's layers, 43 s on word vectors, one thread (2 cores Intel Xeon, AVX-512 with AMX, 24 GiB).
    Command: polymodal pretrain features-tiny --set companions.features=MODEL --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="features-tiny", system="features", size="tiny",
        data=DataSettings(global_batch=32),
        optim=OptimSettings(lr=2e-3, weight_decay=0.01, clip=5.0),
        schedule=ScheduleSettings("cosine", warmup=20, final=0.1),
        max_updates=300, log=LogSettings(every=10), evaluate=EvaluateSettings(every=100),
        checkpoint=CheckpointSettings(every=100),
    )


def features_base() -> Recipe:
    """The tagger for named entities on the layers of any trained network: a BiLSTM of width 200 and a CRF.

    Paper: Peters et al. 2018, ELMo, section 4 and appendix A.4: Adam at 1e-3, batches of 64 in AllenNLP's settings, dropout 0.5, gradients
    clipped at 5, the best epoch on the development set.
    Target: with the published ELMo and the tagger's own words and characters, CoNLL-2003 F1 92.22 (table 1); without them none.
    Deviates: no words and characters of the tagger's own; the length is given in updates: 20 epochs of 14k sentences.
    Data: `pack --kind tag`.
    Unverified: the published weights were not available in the development environment.
    Cost: not measured.
    Command: polymodal pretrain features-base --set companions.features=MODEL --data DATA --eval-data HELD --out RUN
    """
    return replace(
        features_tiny(), name="features-base", size="base", data=DataSettings(global_batch=64, workers=2),
        optim=OptimSettings(lr=1e-3, weight_decay=0.0, clip=5.0), schedule=ScheduleSettings("constant"), max_updates=4400,
        evaluate=EvaluateSettings(every=220, monitor="entity_f1"), checkpoint=CheckpointSettings(every=220, keep_best=True),
    )


RECIPES = (features_tiny, features_base)
