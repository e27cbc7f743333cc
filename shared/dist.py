"""The few collectives that systems and the loop need. Without a process group each is the identity."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import UserError


def active() -> bool:
    """Whether a process group is running."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number among all ranks; 0 without a process group."""
    return dist.get_rank() if active() else 0


def world_size() -> int:
    """The number of ranks; 1 without a process group."""
    return dist.get_world_size() if active() else 1


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        dist.barrier()


def _device(device: torch.device) -> torch.device:
    """The device on which the backend works: NCCL cannot send host memory."""
    if device.type == "cpu" and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return device


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all ranks (no gradient); the argument is left as it is."""
    if world_size() == 1:
        return tensor
    total = tensor.detach().to(_device(tensor.device), copy=True)
    dist.all_reduce(total)
    return total.to(tensor.device)


def first_dims(tensor: Tensor) -> list[int]:
    """The size of `tensor`'s first dimension on every rank."""
    if world_size() == 1:
        return [len(tensor)]
    sizes = torch.zeros(world_size(), dtype=torch.int64, device=_device(tensor.device))
    sizes[rank()] = len(tensor)
    dist.all_reduce(sizes)
    return [int(n) for n in sizes.tolist()]


class _Gather(torch.autograd.Function):
    """All ranks' rows, one below the other; the gradient of a row is the SUM over the ranks that used it."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        device = _device(tensor.device)
        longest = max(sizes)
        padded = torch.zeros((longest, *tensor.shape[1:]), dtype=tensor.dtype, device=device)
        padded[: len(tensor)] = tensor
        everyone = torch.empty((len(sizes) * longest, *tensor.shape[1:]), dtype=tensor.dtype, device=device)
        dist.all_gather_into_tensor(everyone, padded)
        rows = everyone.view(len(sizes), longest, *tensor.shape[1:])
        return torch.cat([rows[r, :n] for r, n in enumerate(sizes)]).to(tensor.device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = all_reduce_sum(gradients[0].contiguous())
        start = sum(ctx.sizes[: rank()])
        return total[start : start + ctx.sizes[rank()]], None


def all_gather_with_grad(tensor: Tensor, sizes: list[int] | None = None) -> Tensor:
    """All ranks' rows in the order of the ranks; differentiable.

    Every rank sums the loss of its own rows. A row that other ranks compared theirs with gets the sum of
    all ranks' gradients, so the gradients of the ranks add up to that of one process with the whole batch.

    Args:
        tensor: [N, ...]; N may differ between ranks.
        sizes: N of every rank (`first_dims`), where the caller has it already: saves one collective.

    Returns:
        [sum of N, ...].
    """
    if world_size() == 1:
        return tensor
    return cast("Tensor", _Gather.apply(tensor, sizes if sizes is not None else first_dims(tensor)))


def pass_on(tensor: Tensor) -> Tensor:
    """Give `tensor` to the next rank and return that of the rank before, of the same shape and type (no gradient). All ranks call it."""
    if world_size() == 1:
        return tensor
    leaving = tensor.detach().to(_device(tensor.device)).contiguous()
    coming = torch.empty_like(leaving)
    ahead, behind = (rank() + 1) % world_size(), (rank() - 1) % world_size()
    requests = dist.batch_isend_irecv([dist.P2POp(dist.isend, leaving, ahead), dist.P2POp(dist.irecv, coming, behind)])
    for request in requests:
        request.wait()
    return coming.to(tensor.device)


def gather_json(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Every rank's `value` (anything JSON can hold), in the order of the ranks; nothing is pickled.

    Args:
        value: this rank's.
        group: all ranks in a process group of its own (`background_group`), for a thread beside the one that trains.
    """
    if world_size() == 1:
        return [value]
    device = _device(torch.device("cpu")) if group is None else torch.device("cpu")
    data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = torch.zeros(world_size(), dtype=torch.int64, device=device)
    sizes[rank()] = len(data)
    dist.all_reduce(sizes, group=group)
    longest = int(sizes.max())
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: len(data)] = data
    everyone = torch.empty(world_size() * longest, dtype=torch.uint8, device=device)
    dist.all_gather_into_tensor(everyone, padded, group=group)
    rows = everyone.view(-1, longest).cpu().numpy()
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes.tolist())]


def background_group(timeout: timedelta) -> dist.ProcessGroup | None:
    """All ranks in a process group of their own, on the host, so that a second thread's collectives never mix with the loop's.

    Every rank must call it. None without other ranks.
    """
    if world_size() == 1:
        return None
    return cast("dist.ProcessGroup", dist.new_group(backend="gloo", timeout=timeout))


def on_rank_0(work: Callable[[], Any]) -> Any:
    """Do `work` on rank 0 and give its result (anything JSON can hold) to all; where it fails, every rank raises."""
    outcome: tuple[Any, str | None] = (None, None)
    caught: Exception | None = None
    if rank() == 0:
        try:
            outcome = (work(), None)
        except Exception as error:
            caught = error
            outcome = (None, str(error))
    result, problem = gather_json(outcome)[0]
    if caught is not None:
        raise caught
    if problem is not None:
        raise UserError(problem)
    return result
