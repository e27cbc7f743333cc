"""How long a training loop is held by a checkpoint that is written before it goes on, and by one that is written beside it.

    python benchmarks/saving.py [--parameters 100e6] [--directory DIR] [--repetitions 3] [--json]

Weights and AdamW's two moments in fp32, as many as a GPT-2 of the size has; between two checkpoints the loop multiplies matrices for
half as long as a checkpoint takes to be written. The two ways take turns. `held` is the time from asking for a checkpoint until the
loop goes on; `work_beside` says by how much the loop's own work is longer while a checkpoint is written (they share cores and memory).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from polymodal.pipelines.run.saver import Saver


def state(parameters: float) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint: a vocabulary of 50257, and blocks of width 768, three times."""
    shapes = {"wte": (50257, 768), "wpe": (1024, 768)}
    block = 0
    while sum(a * b for a, b in shapes.values()) < parameters:
        parts = {"qkv": (768, 2304), "out": (768, 768), "up": (768, 3072), "down": (3072, 768)}
        shapes |= {f"h.{block}.{name}": shape for name, shape in parts.items()}
        block += 1
    return {f"{kind}/{name}": torch.randn(shape) for kind in ("model", "exp_avg", "exp_avg_sq") for name, shape in shapes.items()}


def work(seconds: float, a: torch.Tensor, b: torch.Tensor) -> tuple[int, float]:
    """Multiply matrices for a while; how many products, and the time of one."""
    since, count = time.perf_counter(), 0
    while time.perf_counter() - since < seconds:
        torch.mm(a, a, out=b)
        count += 1
    return count, (time.perf_counter() - since) / count


def measure(parameters: float, root: Path, repetitions: int) -> dict[str, object]:
    """Save a few checkpoints in both ways, in turns."""
    tensors = state(parameters)
    a, b = torch.randn(384, 384), torch.empty(384, 384)
    savers = {name: Saver(root / name, asynchronous=name == "asynchronous") for name in ("synchronous", "asynchronous")}
    held: dict[str, list[float]] = {name: [] for name in savers}
    stands: list[float] = []
    alone: list[float] = []
    beside: list[float] = []
    with savers["asynchronous"]:
        for number in range(repetitions + 1):  # the first one allocates the copy, and is told apart
            for name, saver in savers.items():
                since = time.perf_counter()
                saver.save(number + 1, tensors, {})
                held[name].append(time.perf_counter() - since)
                each = work(max(held["synchronous"][-1] / 2, 0.1), a, b)[1]  # shorter than the writing
                saver.wait()
                if name == "asynchronous":
                    stands.append(time.perf_counter() - since)
                    beside.append(each)
                else:
                    alone.append(each)
                shutil.rmtree(saver.directory / f"update-{number + 1:08d}")
    return {
        "parameters": sum(t.numel() for t in tensors.values()) // 3, "bytes": sum(t.nbytes for t in tensors.values()),
        "repetitions": repetitions, "threads": torch.get_num_threads(), "load": os.getloadavg()[0],
        **{f"{name}_held_s": [round(s, 4) for s in seconds[1:]] for name, seconds in held.items()},
        "asynchronous_first_held_s": round(held["asynchronous"][0], 4), "asynchronous_stands_after_s": [round(s, 4) for s in stands[1:]],
        "work_beside_takes_longer_by": round(statistics.median(beside[1:]) / statistics.median(alone[1:]), 3),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=100e6)
    parser.add_argument("--directory", type=Path, help="where to write; by default a temporary directory")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.directory) as root:
        result = measure(given.parameters, Path(root), given.repetitions)
    if given.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key}: {value}")


if __name__ == "__main__":
    main()
