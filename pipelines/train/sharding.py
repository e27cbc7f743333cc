"""Weights, gradients and optimizer state divided over the ranks (FSDP2).

Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel" (https://arxiv.org/abs/2304.11277). No family is known
here: the unit is the `Block`. Whatever lies outside of blocks (embeddings, heads, tied weights, position biases) is one unit of its own,
the root. Parameters that have no rows (CLIP's logit scale), and the parts that a system keeps to itself (`System.undivided`), stay whole
on every rank, as under DDP.

A network is built with weights on rank 0 alone. The other ranks build it on torch's meta device and are sent one unit after the other,
of which each keeps its rows before the next one comes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed
from torch import Tensor, nn

from ...shared import dist
from ...shared.block import Block
from ...shared.meta import without_weights
from ...shared.rows import sparse_tables
from ...shared.stack import Stack
from ...shared.system import System

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from ..run.recipe import Recipe

OPTIMIZERS = ("adamw", "sgd", "adagrad")
"""Those that work on each number of a tensor for itself, so that a rank can step with its rows alone."""

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def sharded(recipe: Recipe, world: int) -> bool:
    """Whether a run on `world` ranks divides its weights: on one there is nothing to divide, and the run is a plain one."""
    return recipe.strategy == "fsdp" and world > 1


def layout_problems(recipe: Recipe, world: int, accelerator: str) -> Iterator[str]:
    """What keeps the recipe from being sharded over `world` ranks, as far as no network is needed to know."""
    if not sharded(recipe, world):
        return
    if recipe.shard_size is not None and world % recipe.shard_size:
        fitting = [n for n in range(2, world + 1) if world % n == 0]
        yield (f"shard_size is {recipe.shard_size} and {world} ranks are no multiple of it: use {', '.join(map(str, fitting))}, "
               "or leave it out")
    if recipe.optim.name not in OPTIMIZERS:
        yield (f"optim.name is {recipe.optim.name}, which needs whole matrices, and strategy fsdp leaves each rank some rows of them: "
               f"use {', '.join(OPTIMIZERS)}, or strategy=ddp")
    if accelerator == "mps":
        yield "strategy is fsdp and accelerator is mps, which has one device: use cuda or cpu"


def system_problems(recipe: Recipe, system: System, world: int, accelerator: str = "cpu") -> Iterator[str]:
    """What keeps this system from being trained by several ranks as the recipe says."""
    if world > 1 and (sharded(recipe, world) or accelerator == "cuda") and sparse_tables(system):
        how = "strategy fsdp" if sharded(recipe, world) else "NCCL"
        yield f"{recipe.system} has sparse gradients, which {how} does not exchange: use whole ones (objective.sparse=false) or one rank"
    if not sharded(recipe, world):
        return
    norms = [name for name, m in system.named_modules() if isinstance(m, _BATCH_NORMS)]
    if norms:
        yield f"{recipe.system} has norms over the batch ({norms[0]} ...), whose averages strategy fsdp does not share: use strategy=ddp"


# --- building and dividing -------------------------------------------------------------------------------------------


def building(recipe: Recipe, rank: int, world: int) -> AbstractContextManager[Any]:
    """Where a rank builds the system: without weights where rank 0 will send them."""
    return without_weights() if sharded(recipe, world) and rank else nullcontext()


def parallelize(recipe: Recipe) -> Callable[[nn.Module, DeviceMesh], nn.Module]:
    """What divides a module over a mesh of (copies, shards): every block, and the rest together."""

    def divide(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        from torch.distributed.fsdp import fully_shard

        # one axis says that there are no copies to keep equal
        used = mesh if mesh.size(0) > 1 else mesh["tensor_parallel"]
        device = torch.device(mesh.device_type, torch.cuda.current_device()) if mesh.device_type == "cuda" else torch.device("cpu")
        arrivals = _Arrivals(module)
        for block in units(module):
            arrivals.fill(block)
            fully_shard(block, mesh=used, reshard_after_forward=recipe.reshard_after_forward)
        arrivals.fill(module)
        whole = set(undivided(module))
        for parameter in whole:
            parameter.data = parameter.data.to(device)
        # the root's weights are needed first in the backward pass: giving them up in between would only cost
        fully_shard(module, mesh=used, reshard_after_forward=False, ignored_params=whole)
        return module

    return divide


class _Arrivals:
    """Gives every rank rank 0's weights and buffers, a part of the network at a time."""

    def __init__(self, module: nn.Module) -> None:
        self._here: dict[int, Tensor] = {}
        self._kept = {id(p) for p in undivided(module)}
        self._room = torch.empty(0, dtype=torch.uint8)

    def fill(self, module: nn.Module) -> None:
        """Send what is not divided yet; every rank must call it. The weights lie where those of the call before lay."""
        coming = [p for p in module.parameters() if p.is_meta and id(p) not in self._kept]
        needed = sum(_room_for(p) for p in coming)
        if needed > len(self._room):
            self._room = torch.empty(0)
            self._room = torch.empty(needed, dtype=torch.uint8)
        self._used = 0
        for part in module.modules():
            parameters = part.named_parameters(recurse=False, remove_duplicate=False)  # a tied one at each of its places
            for name, tensor in [*parameters, *part.named_buffers(recurse=False, remove_duplicate=False)]:
                if not hasattr(tensor, "to_local"):
                    setattr(part, name, self._received(tensor))
        self._here.clear()

    def _received(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._here:
            new = tensor
            if tensor.is_meta:
                empty = self._empty(tensor)
                new = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
            _broadcast(new)
            self._here |= {id(tensor): new, id(new): new}
        return self._here[id(tensor)]

    def _empty(self, tensor: Tensor) -> Tensor:
        if id(tensor) in self._kept or not isinstance(tensor, nn.Parameter):
            return torch.empty_like(tensor, device="cpu")
        place = self._room[self._used : self._used + tensor.nbytes]
        self._used += _room_for(tensor)
        return place.view(tensor.dtype).view(tensor.shape)


def _room_for(tensor: Tensor) -> int:
    """Bytes of a tensor that another may follow in the same memory."""
    return -(-tensor.nbytes // 64) * 64


def _broadcast(tensor: Tensor) -> None:
    """Overwrite a tensor on the host with rank 0's."""
    flat = tensor.detach().contiguous()
    torch.distributed.broadcast(flat.view(-1).view(torch.uint8), src=0)  # as bytes: not every type can be sent
    if flat.data_ptr() != tensor.data_ptr():
        tensor.detach().copy_(flat)


def units(module: nn.Module) -> list[nn.Module]:
    """The blocks that run once, as one, and share no weights with the rest: those may come and go on their own."""
    owners: dict[int, set[int]] = {}
    for each in module.modules():
        for parameter in each.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(id(each))

    def own(block: nn.Module) -> bool:
        inside = {id(m) for m in block.modules()}
        return all(owners[id(p)] <= inside for p in block.parameters())

    apart = {id(b) for m in module.modules() if isinstance(m, Stack) and m.num_layers > len(m.blocks) for b in m.blocks}
    apart |= {id(b) for m in _kept(module) for b in m.modules()}
    return [m for m in module.modules() if isinstance(m, Block) and m.runs_whole and id(m) not in apart and own(m)]


def _kept(module: nn.Module) -> Iterator[nn.Module]:
    """What the systems in a module keep to themselves."""
    return (part for system in module.modules() if isinstance(system, System) for part in system.undivided())


def undivided(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that stay whole on every rank: those without rows, and those of parts that ranks run on their own."""
    kept = {id(p) for part in _kept(module) for p in part.parameters()}
    return [p for p in module.parameters() if p.dim() == 0 or id(p) in kept]


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average the gradients of parameters that every rank has whole; one that no rank has a gradient of keeps none."""
    trained = [p for p in parameters if p.requires_grad]
    if not trained:
        return
    there = torch.tensor([float(p.grad is not None) for p in trained], device=trained[0].device)
    flat = torch.cat([*((torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1).float() for p in trained), there])
    flat = dist.all_reduce_sum(flat) / dist.world_size()
    *gradients, there = flat.split([*(p.numel() for p in trained), len(trained)])
    for parameter, gradient, ranks in zip(trained, gradients, there.tolist()):
        if ranks:
            parameter.grad = gradient.to(parameter.dtype).view_as(parameter)


class Whole:
    """A system that is going to be sharded, to be had in one piece again on every rank: for evaluation and export.

    Sharded modules gather their weights in every forward pass, which all ranks must make together. Evaluation, previews and export
    do not: a rank may have fewer batches, and text is generated on one. They get a plain copy of the system with all weights.

    Args:
        system: before it is sharded. What is kept of it has no weights.
    """

    def __init__(self, system: System) -> None:
        self.system = system
        memo: dict[int, Any] = {id(system.objective): system.objective}
        memo |= {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in system.parameters()}
        self._empty = copy.deepcopy(system, memo)

    def gather(self) -> System:
        """The plain copy, with this moment's weights; every rank must call it. It takes the memory of all weights while it lives."""
        memo: dict[int, Any] = {id(self._empty.objective): self._empty.objective}
        theirs, buffers = dict(self.system.named_parameters()), dict(self.system.named_buffers())
        for name, empty in self._empty.named_parameters():
            memo[id(empty)] = nn.Parameter(full(theirs[name].detach()), empty.requires_grad)
        for name, buffer in self._empty.named_buffers():
            memo[id(buffer)] = buffers[name].clone()
        return copy.deepcopy(self._empty, memo)


def full(tensor: Tensor) -> Tensor:
    """A tensor in one piece; every rank must call it where it is sharded."""
    return cast("Any", tensor).full_tensor() if hasattr(tensor, "full_tensor") else tensor
