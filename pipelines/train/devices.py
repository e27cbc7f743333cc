"""Which devices and number formats a run uses: Fabric, set up from a recipe.

Fabric takes seconds to import, so what needs it does so; a dry run on one rank does without.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import shlex
import shutil
import sys
import warnings
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

import torch

from ...shared.cpu import cpu_features, keep_freed_memory
from ...shared.errors import UserError, raise_problems
from ..data.order import draw_seed
from ..run.recipe import Precision, Recipe
from .sharding import layout_problems, parallelize, sharded

if TYPE_CHECKING:
    from .fabric import DDPStrategy, Fabric, ModelParallelStrategy

TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others before it gives up: longer than any checkpoint, shorter than a night."""


@dataclass(frozen=True)
class Alone:
    """The only rank of a run that is planned: what there is to know of its Fabric."""

    device: torch.device
    world_size: int = 1
    global_rank: int = 0
    is_global_zero: bool = True


def planned(recipe: Recipe) -> Alone | Fabric:
    """The recipe's devices for a dry run."""
    accelerator, devices, nodes = _devices(recipe)
    return Alone(torch.device(accelerator)) if devices * nodes == 1 else build_fabric(recipe)


def _devices(recipe: Recipe) -> tuple[str, int, int]:
    """The accelerator, the devices of each node, and the nodes; refuses what cannot be."""
    accelerator = recipe.accelerator if recipe.accelerator != "auto" else _best_accelerator()
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise UserError("accelerator is cuda and this machine has no CUDA device: set accelerator=cpu or auto")
    nodes = recipe.num_nodes
    devices = (torch.cuda.device_count() if accelerator == "cuda" else 1) if recipe.devices == "auto" else recipe.devices
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun has decided
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    raise_problems(layout_problems(recipe, devices * nodes, accelerator), "the ranks")
    if recipe.compile:
        _find_compiler(accelerator)
    return accelerator, devices, nodes


def build_fabric(recipe: Recipe) -> Fabric:
    """Fabric for the recipe's devices, launched: from here on every rank runs this program."""
    from .fabric import Fabric

    accelerator, devices, nodes = _devices(recipe)
    world = devices * nodes
    precision = choose_precision(recipe.precision, accelerator)
    with warnings.catch_warnings():  # where Slurm is installed, Fabric advises every run to use srun
        warnings.filterwarnings("ignore", "The `srun` command is available", UserWarning)
        fabric = Fabric(accelerator=accelerator, devices=devices, num_nodes=nodes, strategy=_strategy(recipe, world, accelerator),
                        precision="32-true" if precision == "32" else precision)
    fabric.launch()
    if accelerator == "cpu":
        keep_freed_memory()
    if fabric.world_size != world:
        raise UserError(f"the launcher started {fabric.world_size} ranks, the recipe says {devices} devices on {nodes} nodes: "
                        "set devices and num_nodes to what was started")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        atexit.register(_leave)
    return fabric


def _find_compiler(accelerator: str) -> None:
    """Raise where torch.compile would only fail in the first update, in pages."""
    if accelerator == "cuda" and importlib.util.find_spec("triton") is None:
        raise UserError("compile: true needs triton, which torch's CUDA builds bring along: install it, or set compile=false")
    wanted = os.environ.get("CXX", "").strip() or ("clang++" if sys.platform == "darwin" else "g++")  # as torch looks for it
    if accelerator == "cpu" and shutil.which(shlex.split(wanted)[0]) is None:
        raise UserError(f"compile: true needs a C++ compiler, and {wanted!r} was not found: install it, name another in the environment "
                        "variable CXX, or set compile=false")


def _strategy(recipe: Recipe, world: int, accelerator: str) -> Literal["auto"] | DDPStrategy | ModelParallelStrategy:
    """How the ranks work together."""
    from .fabric import DDPStrategy, ModelParallelStrategy

    if world == 1 and recipe.strategy in ("auto", "fsdp"):
        return "auto"
    # host integers (counts, stop flags) go through gloo, so that they never wait for a GPU
    backend = "cpu:gloo,cuda:nccl" if accelerator == "cuda" else "gloo"
    if sharded(recipe, world):
        shards = recipe.shard_size or world
        # Fabric's names for the two axes; here they are (copies, shards)
        return ModelParallelStrategy(parallelize(recipe), data_parallel_size=world // shards, tensor_parallel_size=shards,
                                     process_group_backend=backend, timeout=TIMEOUT)
    return DDPStrategy(process_group_backend=backend, timeout=TIMEOUT, find_unused_parameters=recipe.strategy == "ddp_find_unused",
                       gradient_as_bucket_view=True)


def seed_draws(*key: object) -> None:
    """Seed torch's generators (dropout) from the place in a run: nothing needs saving, nothing depends on the past."""
    torch.manual_seed(draw_seed(*key))


def _leave() -> None:
    """Take the process group down before the process ends: threads of gloo that still run then abort it now and again."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _best_accelerator() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def choose_precision(precision: Precision, accelerator: str) -> Literal["32", "bf16-mixed", "bf16-true"]:
    """`auto` is bf16-mixed where the hardware multiplies bf16 fast, else 32 (emulated bf16 is hundreds of times slower)."""
    if precision != "auto":
        return precision
    fast = False
    if accelerator == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif accelerator == "cpu":
        fast = any(cpu_features().get(name) for name in ("amx_bf16", "avx512_bf16"))
    return "bf16-mixed" if fast else "32"
