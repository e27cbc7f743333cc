"""Recipes for GPT-3."""

from __future__ import annotations

from collections.abc import Callable

from ..run.optim import OptimSettings
from ..run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe
from ..run.schedule import ScheduleSettings


def gpt3_tiny() -> Recipe:
    """GPT-3 with 2 blocks of width 128, 128 positions and a band of 32 tokens in the second block: minutes on a laptop.

    Paper: Brown et al. 2020, Language Models are Few-Shot Learners (the architecture).
    Target: none in the paper; this is a tutorial and a smoke test. Perplexity should be well below the unigram baseline.
    Measured: 2026-11-28, seed 0: after 500 updates 5.063 nats per token on 256 of the 281 held-out rows, where the tokens' unigram entropy
    is 6.128 (perplexity 158 and 458). After 200 updates it was 5.423.
    Deviates: size, learning rate, a batch that does not grow; the rate reaches a tenth at 87 % of the run, as 260 of 300 billion tokens
    are.
    Data: documents of Python's standard library (1.9 MB), made with
    `python -c "import pathlib, polymodal.pipelines.demo.data as d; d.write_text(pathlib.Path('python.jsonl'))"`;
    `polymodal tokenizer train python.jsonl --for gpt3 --size 2048 --out TOKENIZER`;
    `polymodal pack python.jsonl --tokenize TOKENIZER --block 128 --holdout 0.1 --out DATA --holdout-out HELD`.
    Cost: not measured alone; 486 s of wall time on one thread of 2 cores beside much other work (Intel Xeon at 2.8 GHz, AVX-512, fp32).
    Command: polymodal pretrain gpt3-tiny --data DATA --eval-data HELD --out RUN
    """
    return Recipe(
        name="gpt3-tiny", system="gpt3", size="tiny",
        data=DataSettings(global_batch=16, window=1024),
        optim=OptimSettings(lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1),
        schedule=ScheduleSettings("cosine", warmup=20, final=0.1, until=435),
        max_updates=500, log=LogSettings(every=10), evaluate=EvaluateSettings(every=100, limit=256),
        checkpoint=CheckpointSettings(every=100),
    )


ROW = 2048
"""Tokens of a sequence; data is packed with `pack --tokenize TOKENIZER --block 2048`, so a sample is a row."""
RAMP_START = 16
"""Rows of the first update: 32k tokens."""
TABLE = (
    ("125m", "base", "0.5M", 256, 4, 6.0e-4), ("350m", "350m", "0.5M", 256, 4, 3.0e-4), ("760m", "760m", "0.5M", 256, 4, 2.5e-4),
    ("1.3b", "1.3b", "1M", 512, 6, 2.0e-4), ("2.7b", "2.7b", "1M", 512, 6, 1.6e-4), ("6.7b", "6.7b", "2M", 1024, 9, 1.2e-4),
    ("13b", "13b", "2M", 1024, 9, 1.0e-4), ("175b", "175b", "3.2M", 1600, 12, 0.6e-4),
)
"""Table 2.1: the model's name and size, its batch in tokens and in rows of 2048, over how many billions of tokens that grows (the paper
says 4 to 12 depending on the size, and not which size has which), its learning rate."""


def _published(name: str, size: str, tokens: str, rows: int, ramp: int, lr: float) -> Callable[[], Recipe]:
    data = DataSettings(global_batch=rows, ramp_start=RAMP_START, ramp_samples=round(ramp * 1e9 / ROW), micro_batch=8, workers=8)

    def updates(billions: float) -> int:
        return data.ramp.update_at(round(billions * 1e9 / ROW))

    def recipe() -> Recipe:
        return Recipe(
            name=f"gpt3-{name}", system="gpt3", size=size,
            data=data,
            optim=OptimSettings(lr=lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1),
            schedule=ScheduleSettings("cosine", warmup=updates(0.375), final=0.1, until=updates(260)),
            max_updates=updates(300), log=LogSettings(every=100), evaluate=EvaluateSettings(every=5000, limit=4096),
            checkpoint=CheckpointSettings(every=2000, keep_last=3, keep_every=50_000),
        )

    recipe.__name__ = f"gpt3-{name}"
    recipe.__doc__ = f"""GPT-3 {name.upper()}: batches of up to {tokens} tokens ({rows} rows of {ROW}), learning rate {lr:g}, 300B tokens.

    Paper: Brown et al. 2020, Language Models are Few-Shot Learners, table 2.1 and appendix B: Adam (0.9, 0.95, eps 1e-8), clip 1, weight
    decay 0.1, a batch that grows from 32k tokens over {ramp} billion, warmup over 375M tokens, cosine to a tenth at 260B tokens, then flat.
    Target: few-shot results of the paper's appendix H; its data is not published.
    Deviates: packed documents do not see each other; bands of 256 tokens (see the system's page). The batch grows in steps of its first
    {RAMP_START} rows, so at most {RAMP_START} ranks share it: for more, set data.ramp_start to their number or a multiple of it.
    Unverified: never trained.
    Cost: not measured.
    Command: torchrun --nproc-per-node 8 -m polymodal pretrain gpt3-{name} --data DATA --tokenizer TOKENIZER --out RUN
    """
    return recipe


RECIPES = (gpt3_tiny, *(_published(*row) for row in TABLE))
