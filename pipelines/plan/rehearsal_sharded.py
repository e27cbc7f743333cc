"""What FSDP2 adds to a rehearsal: weights that come and go, and gradients that are given away as soon as a layer is done.

The rehearsed network is whole. What a rank would hold of it is booked beside its real allocations: the rows that it keeps, a layer's
gathered weights from its forward pass on (or until its backward pass), the buffers that they travel in, and those of the gradients. The
order is that of torch's `fully_shard`: the layer before is fetched while one computes backwards, and a buffer is given up when
the next one is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ...shared.system import System
from ..train.sharding import undivided, units


class Book(Protocol):
    """Where bytes are booked."""

    counting: bool
    """Whether new tensors count."""

    def add(self, size: int) -> None:
        """Book bytes that no tensor stands for."""
        ...


class Division:
    """A system that is rehearsed as one of several ranks under fsdp.

    Args:
        book: where bytes are booked.
        system: with fake parameters.
        shards: ranks that share one copy.
        reshard: whether a layer's weights are given up until its backward pass.
    """

    def __init__(self, book: Book, system: System, shards: int, reshard: bool) -> None:
        self._book, self._shards, self._reshard = book, shards, reshard
        self._root: nn.Module = system
        kept = {id(p) for p in undivided(system)}
        blocks = units(system)
        inside = {id(p) for block in blocks for p in block.parameters()}
        self._parameters: dict[nn.Module, list[nn.Parameter]] = {block: list(block.parameters()) for block in blocks}
        self._parameters[system] = [p for p in system.parameters() if id(p) not in inside and id(p) not in kept]
        self.divided = [p for parameters in self._parameters.values() for p in parameters]
        self._whole: set[nn.Module] = set()
        self._coming: set[nn.Module] = set()
        self._order: list[nn.Module] = []
        self._reduced: set[nn.Module] = set()
        self._buffer = self._sent = 0
        self._backward = False
        self.last = True
        """Whether gradients travel after this micro-batch."""
        for module in self._parameters:
            module.register_forward_pre_hook(self._before, with_kwargs=True)
            module.register_forward_hook(self._after)
        book.add(self.rows(self.divided) - _bytes(self.divided))

    def rows(self, tensors: list[Any]) -> int:
        """Bytes of this rank's part of tensors."""
        return -(-_bytes(tensors) // self._shards)

    def travelling(self) -> int:
        """Bytes that are gathered, of gradients that are not divided yet, and on their way."""
        gathered = sum(_bytes(self._parameters[module]) for module in (*self._whole, *self._coming))
        waiting = sum(p.grad.nbytes for p in self.divided if p.grad is not None)
        return gathered + waiting + self._buffer + self._sent

    def _before(self, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self._gather(module)
        if module is self._root or self._backward:
            return args, named
        inputs = [t for t in tree_leaves((args, named)) if isinstance(t, Tensor) and t.requires_grad]
        if not inputs or not torch.is_grad_enabled():
            return args, named
        out: Any = _Behind.apply(lambda: self._reduce(module), *inputs)
        changed = {id(old): new for old, new in zip(inputs, out)}
        return tree_map(lambda t: changed.get(id(t), t) if isinstance(t, Tensor) else t, (args, named))

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._backward:
            return
        if module is self._root:
            self._book.add(-self._buffer)
            self._buffer = 0
            return
        if self._reshard:
            self._give_up(module)
        self._order.append(module)
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(lambda _: self._again(module))

    def _gather(self, module: nn.Module) -> None:
        if module in self._whole:
            return
        size = _bytes(self._parameters[module])
        if module in self._coming:
            self._coming.remove(module)
        else:
            self._book.add(size)
        if self._backward:
            self._book.add(size)
            self._book.add(-size)
        else:  # the buffer of the layer before is given up now, this one's later
            self._book.add(-self._buffer)
            self._book.add(size)
            self._buffer = size
        self._whole.add(module)

    def _again(self, module: nn.Module) -> None:
        """The backward pass of a layer begins."""
        self._gather(module)
        if module in self._order:
            at = len(self._order) - 1 - self._order[::-1].index(module)
            del self._order[at]
            if at and (before := self._order[at - 1]) not in self._whole | self._coming:
                self._coming.add(before)
                self._book.add(_bytes(self._parameters[before]))

    def _give_up(self, module: nn.Module) -> None:
        if module in self._whole:
            self._whole.remove(module)
            self._book.add(-_bytes(self._parameters[module]))

    def _reduce(self, module: nn.Module) -> None:
        """A layer's gradients are there: they are sent, and this rank's rows of their sums remain."""
        self._give_up(module)
        if not self.last:
            return
        gradients = [p.grad for p in self._parameters[module] if p.grad is not None]
        self._book.add(-self._sent)
        self._sent = _bytes(gradients)
        self._book.add(self._sent)
        if module not in self._reduced and gradients:
            self._reduced.add(module)
            self._book.add(self.rows(gradients))
        gradients.clear()
        for parameter in self._parameters[module]:
            parameter.grad = None

    def backward(self, loss: Tensor) -> None:
        """The backward pass, with what follows it."""
        self._backward = True
        loss.backward()
        for module in [*self._whole - {self._root}, self._root]:
            self._reduce(module)
        self._book.add(-self._sent - sum(_bytes(self._parameters[module]) for module in self._coming))
        self._sent = 0
        self._coming.clear()
        self._order.clear()
        self._backward = False

    def step(self, step: Callable[[], None]) -> None:
        """An optimizer's step, which needs gradients of whole parameters here; they do not count."""
        self._book.counting = False
        trained = [p for module in self._reduced for p in self._parameters[module] if p.requires_grad]
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        step()
        self._book.counting = True
        for module in self._reduced:
            self._book.add(-self.rows([p for p in self._parameters[module] if p.requires_grad]))
        self._reduced.clear()


class _Behind(torch.autograd.Function):
    """Tensors as they are; calls back once the gradients of all of them are there."""

    @staticmethod
    def forward(ctx: Any, done: Callable[[], None], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.done = done
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        ctx.done()
        return (None, *gradients)


def _bytes(tensors: list[Any]) -> int:
    return sum(t.nbytes for t in tensors)
