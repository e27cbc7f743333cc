"""A machine with a GPU that is not there: torch's fake tensors, which have a device and a shape and no numbers.

An operation on tensors of two devices fails, as it would on a GPU. So does everything that needs a number on the host (`item`, `nonzero`,
a bool mask as an index): a real GPU would be waited for there. Copies that wait are recorded.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Generator, Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten


class Gpu(TorchDispatchMode):
    """Records where tensors travel between host and device in a way that the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is _aten.exponential_.default:
            kwargs.pop("generator", None)  # which torch's imitation of it does not take
        out = func(*args, **kwargs)
        if func in (_aten._to_copy.default, _aten.copy_.default):
            source = args[1] if func is _aten.copy_.default else args[0]
            free = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
            if source.device.type != out.device.type and not (free and out.device.type == "cuda"):
                self.waits.append(_place())
        return out


def _place() -> str:
    """The innermost line of this package's code that is being run."""
    frames = [f for f in traceback.extract_stack() if "site-packages" not in f.filename and "/tests/contract/cuda" not in f.filename]
    return f"{frames[-1].filename}:{frames[-1].lineno} {frames[-1].line}"


@contextlib.contextmanager
def gpu() -> Generator[Gpu]:
    """Inside, tensors are fake, "cuda" is a device, and its autocast is bf16."""
    from torch.cuda.amp import common
    from torch.nn.attention import varlen

    before, generator = (torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")), torch.Generator

    def without_driver(device: Any = "cpu") -> torch.Generator:
        return generator()

    there = torch.cuda.is_available()  # torch asks at every operation, and each time opens the driver's library
    with (FakeTensorMode(), patch.object(torch, "Generator", without_driver), patch.object(torch.cuda, "is_available", lambda: there),
          patch.object(varlen, "_should_use_cudnn", lambda device: False),
          patch.object(varlen, "_cudnn_version_and_major_capability", lambda device: (None, 9)),
          # what recomputes puts autocast back, and that looks for a driver
          patch.object(common, "amp_definitely_not_available", lambda: False), patch.object(torch.cuda, "is_bf16_supported", lambda: True),
          patch.object(torch.autograd, "grad", _grad),
          # torch would swap tensors that something points at
          patch.object(nn.Module, "to", _to), Gpu() as machine):
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        try:
            yield machine
        finally:
            torch.set_autocast_enabled("cuda", before[0])
            torch.set_autocast_dtype("cuda", before[1])
            torch.clear_autocast_cache()


def _to(module: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> nn.Module:
    assert torch.device(device).type == "cuda"
    to_gpu(module, dtype)
    return module


def _grad(out: Tensor, inputs: Sequence[Tensor], given: Tensor) -> tuple[Tensor, ...]:
    found = backward(out, given)
    return tuple(found[x] for x in inputs)


def to_gpu(module: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Put parameters and buffers on the GPU that is not there, tied ones once; call it inside `gpu`."""
    made: dict[int, Tensor] = {}
    held = list(module.parameters())  # keeps the old ones alive: their ids must stay their own
    for part in module.modules():
        for name, tensor in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            if id(tensor) not in made:
                kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
                new = torch.empty_strided(tensor.shape, tensor.stride(), dtype=kind, device="cuda")
                made[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
            setattr(part, name, made[id(tensor)])
    del held


def backward(loss: Tensor, given: Tensor | None = None) -> dict[Tensor, Tensor]:
    """The gradient of every leaf, from that of the loss, by default 1.

    Autograd's engine asks the driver for a stream; this walks its graph without one.
    """
    order: list[Any] = []
    seen: set[Any] = set()
    todo: list[tuple[Any, bool]] = [(loss.grad_fn, False)]
    while todo:
        node, done = todo.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            todo.append((node, True))
            todo += [(after, False) for after, _ in node.next_functions if after is not None]
    arrived: dict[Any, dict[int, Tensor]] = {loss.grad_fn: {0: torch.ones_like(loss) if given is None else given}}
    found: dict[Tensor, Tensor] = {}
    for node in reversed(order):
        gradients = arrived.pop(node, None)
        if gradients is None:
            continue
        if hasattr(node, "variable"):
            found[node.variable] = gradients[0]
            continue
        out = [gradients.get(i) for i in range(len(node._input_metadata))]
        made = node.apply(*out) if isinstance(node, torch.autograd.function.BackwardCFunction) else node(*out)
        edges, made = node.next_functions, made if isinstance(made, tuple) else (made,)
        spare = len(made) - len(edges)  # arguments of a Function that are no tensors have no edge, and no gradient
        pairs = iter(edges)
        for gradient in made:
            if gradient is None and spare > 0:
                spare -= 1
                continue
            after, place = next(pairs)
            if after is not None and gradient is not None:
                expected = after._input_metadata[place]  # the engine, too, sums what was broadcast and rounds to the input's type
                assert gradient.device == expected.device, f"{after.name()} gets a gradient on {gradient.device}"
                gradient = gradient.sum_to_size(expected.shape).to(expected.dtype)
                there = arrived.setdefault(after, {})
                there[place] = there[place] + gradient if place in there else gradient
    return found
