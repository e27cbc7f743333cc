"""Recipes for the dVAE."""

from __future__ import annotations

from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings


def dvae_tiny() -> Recipe:
    """A dVAE with 256 codes on pictures of 32 x 32, an 8 x 8 grid of them: what `beit-tiny` takes its visual tokens from.

    Paper: Ramesh et al. 2021, Zero-Shot Text-to-Image Generation, appendix A (the objective).
    Target: none in the paper; this is a tutorial and a smoke test. The squared error of pixels from 0 to 1 should be far below that of
    always drawing the same grey (`squared_error_chance`).
    Measured: 2026-11-28, seed 0: squared error 0.0046 on the 297 held-out digits, where one grey has 0.1265; KL divergence 4.70 of ln 256 =
    5.55 nats. The codes' entropy at the patches that `beit-tiny` masks there is 1.60 nats: few of the 256 are used often.
    Deviates: size, batch, learning rate, little augmentation; the temperature falls from 1/4 and the KL weight rises to 0.2, for so short a
    run.
    Data: `python examples/handwritten_digits.py DIGITS`; `polymodal pack DIGITS/all --out DATA`; `polymodal pack DIGITS/held --out HELD`.
    Cost: not measured alone; 215 s of one thread's time on 2 cores (Intel Xeon at 2.8 GHz, AVX-512, fp32), beside other work.
    Command: polymodal pretrain dvae-tiny --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="dvae-tiny", system="dvae", size="tiny",
        objective={"temperature": [0.25, 0.0625], "temperature_updates": 300, "kl_updates": 100, "kl_weight": 0.2,
                   "augmentation": {"crop_scale": [0.6, 1.0], "crop_ratio": [0.75, 4 / 3], "flip": 0.0}},
        data=DataSettings(global_batch=64, window=1024),
        optim=OptimSettings(lr=3e-3, weight_decay=1e-4),
        schedule=ScheduleSettings("cosine", warmup=50),
        max_updates=400, log=LogSettings(every=10), evaluate=EvaluateSettings(every=100, limit=512),
        checkpoint=CheckpointSettings(every=100),
    )  # fmt: skip


def dvae_base() -> Recipe:
    """DALL-E's dVAE with 8192 codes, pictures of 256 x 256, as in the paper.

    Paper: Ramesh et al. 2021, appendix A.2: AdamW (0.9, 0.999), weight decay 1e-4, batch 512, rate from 1e-4 to 1.25e-6 in 1,200,000 of
    3,000,000 updates, temperature from 1 to 1/16 in 150,000, KL weight from 0 to 6.6 in 5000, mixed precision.
    Target: none in the paper.
    Deviates: no average of the iterates.
    Unverified: never trained to the end.
    Cost: not measured.
    Command: torchrun --nproc-per-node 64 -m polymodal pretrain dvae-base --data DATA --out RUN
    """
    return Recipe(
        name="dvae-base", system="dvae", size="base",
        data=DataSettings(global_batch=512, micro_batch=8, workers=8),
        optim=OptimSettings(lr=1e-4, weight_decay=1e-4, clip=None),
        schedule=ScheduleSettings("cosine", final=0.0125, until=1_200_000),
        max_updates=3_000_000, log=LogSettings(every=50), evaluate=EvaluateSettings(every=5000, limit=4096),
        checkpoint=CheckpointSettings(every=1000, keep_last=3, keep_every=100_000),
    )


RECIPES = (dvae_tiny, dvae_base)
