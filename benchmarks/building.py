"""How much memory the ranks take to build a network and divide it among them (strategy fsdp), and to start from a model.

    torchrun --nproc-per-node 2 benchmarks/building.py [--size medium] [--model DIR] [--whole]

A GPT-2 in fp32 on the CPU. `peak` is the most resident memory of each rank above that of the process before (`VmHWM`), in MiB. With
`--whole` every rank builds the network with all its weights, as under ddp.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path

import torch
from polymodal.pipelines.run.recipe import recipe
from polymodal.pipelines.train.devices import build_fabric
from polymodal.pipelines.train.sharding import building
from polymodal.pipelines.train.start import find_start
from polymodal.registry import family
from polymodal.shared import dist
from polymodal.shared.family import Context
from torch.distributed.fsdp import fully_shard  # noqa: F401  (its import is not what is measured)


def memory(name: str) -> float:
    """A line of this process's status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def main() -> None:
    """Build, divide, and say what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="medium")
    parser.add_argument("--model", help="a directory to start from")
    parser.add_argument("--whole", action="store_true")
    given = parser.parse_args()
    made = recipe("gpt2-base", [f"size={given.size}", "strategy=fsdp", "accelerator=cpu", "precision=32"])
    fabric, entry = build_fabric(made), family("gpt2")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = memory("VmRSS")
    with nullcontext() if given.whole else building(made, fabric.global_rank, fabric.world_size):
        start = find_start(made, entry, given.model, Path("nowhere"), "never")
        system = made.build(entry, Context(net_only=True), start.config)
        start.fill(system, entry)
    size = sum(p.nbytes for p in system.parameters()) / 2**20
    del start
    fabric.setup_module(system)
    found = dist.gather_json([memory("VmHWM") - before, memory("VmRSS") - before])
    if fabric.is_global_zero:
        print(f"weights {size:.0f} MiB, torch {torch.__version__}")
        for rank, (peak, end) in enumerate(found):
            print(f"rank {rank}: peak {peak:.0f} MiB, at the end {end:.0f} MiB")


if __name__ == "__main__":
    main()
