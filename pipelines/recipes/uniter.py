"""Recipes for UNITER."""

from __future__ import annotations

from dataclasses import replace

from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings


def uniter_tiny() -> Recipe:
    """UNITER with 2 layers of width 128, all tasks in turns: minutes on a laptop.

    Paper: Chen et al. 2019, UNITER: UNiversal Image-TExt Representation Learning (the objective).
    Target: none in the paper; this is a tutorial and a smoke test. Matching should be right in more than half of the held-out pairs, and
    the loss of masked words below their unigram entropy (`mlm_chance`).
    Measured: 2026-11-28, seed 0, 1200 updates (200 to 400 of each task), on the 150 concepts that were held out: 0.680 of the pairs matched
    (150 pairs, half of them replaced; 95 %: 0.602 to 0.750). Masked words 5.03 nats, where the frequencies of the training captions
    have 6.02 and those of the held-out ones themselves 5.36 (`mlm_chance`, of the few words that were masked, is 4.55); 0.133 of them
    right. Masked classes 0.475 right. Features of masked regions are not told better than by the mean of the picture's other regions:
    0.360 (0.311). Every pair scored, without tuning: recall at 10 of 150 is 0.167 (captions) and 0.200 (pictures), chance 0.067; the
    CLIP whose patches are the regions has 0.360 and 0.340 by itself.
    Deviates: size, learning rate, batch, no dropout; initial weights with a standard deviation of 0.08, about 1 / sqrt(128), as in
    `roberta-tiny`.
    Data: OpenMoji drawings of 64 pixels and their names (1,506; 150 more concepts held out), as `polymodal demo` draws them
    (`pipelines.demo.data`), packed as pairs; `polymodal tokenizer train NAMES --for uniter --size 900`; a CLIP: `polymodal pretrain
    clip-tiny --max-updates 150`; `polymodal regions PAIRS --detector grid --tower CLIP --out DATA`, and the same with `--codebook DATA`
    for the held-out ones.
    Cost: not measured alone: 20 minutes of one thread on 2 cores (Intel Xeon, AVX-512 with AMX, 24 GiB, fp32) at a load of 5.
    Command: polymodal pretrain uniter-tiny --data DATA --eval-data HELD --tokenizer TOKENIZER --out RUN
    """
    return Recipe(
        name="uniter-tiny", system="uniter", size="tiny",
        model={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.08},
        data=DataSettings(global_batch=64, window=1024),
        optim=OptimSettings(lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01),
        schedule=ScheduleSettings("linear", warmup=60),
        max_updates=1200, log=LogSettings(every=12), evaluate=EvaluateSettings(every=120, limit=256),
        checkpoint=CheckpointSettings(every=120),
    )


def uniter_base() -> Recipe:
    """UNITER base on the in-domain pairs (COCO, Visual Genome): 12 layers, width 768, from BERT's weights.

    Paper: Chen et al. 2019, section 4; ChenRocks/UNITER, config/pretrain-indomain-base-8gpu.json: AdamW (0.9, 0.98), learning rate 5e-5,
    weight decay 0.01, clip 5, warmup over 10,000 updates and linear decay, 200,000 updates of 163,840 tokens and regions (10,240 for each
    of 8 GPUs, twice), captions of up to 60 tokens, itm : mlm : mrfr : mrc_kl = 2 : 2 : 1 : 1.
    Target: with all four data sets (`uniter-large` has them): VQA test-dev 72.70, NLVR2 dev 77.18, SNLI-VE val 78.59, Flickr30k image
    retrieval R@1 72.52.
    Deviates: a batch has 3,072 pairs, about as many as 163,840 tokens and regions.
    Unverified: never trained to the end; the released features and weights were not available in the development environment.
    Data: `pack --kind regions` of the released features, or `polymodal regions`.
    Cost: not measured.
    Command: torchrun --nproc-per-node 8 -m polymodal pretrain uniter-base --model BERT --data DATA --out RUN
    """
    return Recipe(
        name="uniter-base", system="uniter", size="base",
        data=DataSettings(global_batch=3072, micro_batch=192, workers=8),
        optim=OptimSettings(lr=5e-5, betas=(0.9, 0.98), weight_decay=0.01, clip=5.0),
        schedule=ScheduleSettings("linear", warmup=10_000),
        max_updates=200_000, log=LogSettings(every=60), evaluate=EvaluateSettings(every=5000, limit=4096),
        checkpoint=CheckpointSettings(every=2000, keep_last=3, keep_every=50_000),
    )


def uniter_large() -> Recipe:
    """UNITER large on all pairs (COCO, Visual Genome, Conceptual Captions, SBU): 24 layers, width 1024, from BERT's weights.

    Paper: Chen et al. 2019, section 4; optimiser and lengths of `uniter-base`. The published configuration of all data has
    itm : mlm : mrfr : mrc_kl = 6 : 8 : 4 : 4 for COCO and SBU, and 9 : 12 : 6 : 6 for Visual Genome and Conceptual Captions.
    Target: VQA test-dev 73.82, NLVR2 dev 79.12, SNLI-VE val 79.39, Flickr30k image retrieval R@1 75.56 (paper, table 3; not looked up
    again).
    Deviates: one mixture of tasks for all data sets; the data sets' shares are those of `--data DIR=WEIGHT`.
    Unverified: never trained to the end; the released features and weights were not available in the development environment.
    Cost: not measured.
    Command: torchrun --nproc-per-node 8 --nnodes 2 -m polymodal pretrain uniter-large --model BERT --data COCO=7 --data VG=10 --out RUN
    """
    return Recipe(
        name="uniter-large", system="uniter", size="large",
        objective={"itm": 3, "mlm": 4, "mrfr": 2, "mrc_kl": 2},
        data=DataSettings(global_batch=3072, micro_batch=64, workers=8),
        optim=OptimSettings(lr=5e-5, betas=(0.9, 0.98), weight_decay=0.01, clip=5.0),
        schedule=ScheduleSettings("linear", warmup=10_000),
        max_updates=200_000, log=LogSettings(every=60), evaluate=EvaluateSettings(every=5000, limit=4096),
        checkpoint=CheckpointSettings(every=2000, keep_last=3, keep_every=50_000),
    )


def uniter_classify() -> Recipe:
    """UNITER base fine-tuned to answer questions about pictures (VQA), or to classify statements about them (visual entailment).

    Paper: Chen et al. 2019, section 4.1; ChenRocks/UNITER, config/train-vqa-base-4gpu.json: AdamW (0.9, 0.98), learning rate 8e-5, weight
    decay 0.01, clip 2, warmup over 600 of 6,000 updates and linear decay, 102,400 tokens and regions of each update over 4 GPUs.
    Target: VQA test-dev 72.70 (paper, table 3). SNLI-VE val 78.59 with `--set max_updates=4000 --set schedule.warmup=400 --set
    data.global_batch=512` (config/train-ve-base-2gpu.json).
    Deviates: a batch has 2,048 questions, about as many as 102,400 tokens and regions; the head has the trunk's learning rate, not ten
    times that (VQA).
    Unverified: the released features and weights were not available in the development environment.
    Cost: not measured.
    Command: polymodal finetune uniter-classify --model UNITER --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="uniter-classify", system="uniter", size="base", task="classify",
        data=DataSettings(global_batch=2048, micro_batch=128, workers=8),
        optim=OptimSettings(lr=8e-5, betas=(0.9, 0.98), weight_decay=0.01, clip=2.0),
        schedule=ScheduleSettings("linear", warmup=600),
        max_updates=6000, log=LogSettings(every=20), evaluate=EvaluateSettings(every=500, monitor="accuracy"),
        checkpoint=CheckpointSettings(every=500, keep_best=True),
    )


def uniter_compare() -> Recipe:
    """UNITER base fine-tuned to tell whether a statement is true of two pictures (NLVR2).

    Paper: Chen et al. 2019, section 4.1; ChenRocks/UNITER, config/train-nlvr2-base-1gpu.json: AdamW (0.9, 0.98), learning rate 3e-5, weight
    decay 0.01, clip 2, warmup over 800 of 8,000 updates and linear decay, 10,240 tokens and regions in each update.
    Target: NLVR2 dev 77.18, test-P 77.85 (paper, table 3).
    Deviates: a batch has 80 statements, about as many as 10,240 tokens and regions.
    Unverified: the released features and weights were not available in the development environment.
    Cost: not measured.
    Command: polymodal finetune uniter-compare --model UNITER --data DATA --eval-data HELD --out RUN
    """
    return replace(
        uniter_classify(), name="uniter-compare", task="compare", data=DataSettings(global_batch=80, workers=8),
        optim=OptimSettings(lr=3e-5, betas=(0.9, 0.98), weight_decay=0.01, clip=2.0), schedule=ScheduleSettings("linear", warmup=800),
        max_updates=8000,
    )


def uniter_ground() -> Recipe:
    """UNITER base fine-tuned to find the region that a phrase means (RefCOCO).

    Paper: Chen et al. 2019, section 4.1; ChenRocks/UNITER, config/train-refcoco-base-1gpu.json: AdamW (0.9, 0.98), learning rate 1e-4,
    weight decay 0.01, clip 2, batch 128, warmup over 1,500 of 24,000 updates and linear decay. Trained on the regions that people drew,
    measured on those of a detector.
    Target: RefCOCO val / testA / testB with detected regions 81.24 / 86.48 / 73.94 (paper, table 3).
    Deviates: the published overlap counts pixels on both ends of a box.
    Unverified: the released features and weights were not available in the development environment.
    Cost: not measured.
    Command: polymodal finetune uniter-ground --model UNITER --data DATA --eval-data HELD --out RUN
    """
    return replace(
        uniter_classify(), name="uniter-ground", task="ground", data=DataSettings(global_batch=128, workers=8),
        optim=OptimSettings(lr=1e-4, betas=(0.9, 0.98), weight_decay=0.01, clip=2.0), schedule=ScheduleSettings("linear", warmup=1500),
        max_updates=24_000,
    )


RECIPES = (uniter_tiny, uniter_base, uniter_large, uniter_classify, uniter_compare, uniter_ground)
