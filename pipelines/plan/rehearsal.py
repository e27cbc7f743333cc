"""An update of a run, rehearsed without weights and without arithmetic: what it keeps in memory, how much it multiplies.

The network, its gradients and the optimizer's state are torch's fake tensors: they have shapes and no numbers. Integers and bools
(token ids, masks, labels) are real, because what a system allocates depends on them: how many places are predicted, which
keys are padding. The system then runs as it does in training, forward, backward, clipping and optimizer step, and every storage is
counted from its birth to its death, so the peak is that of the allocator, without its rounding and without the scratch space
inside of kernels. Operations are those that torch chooses on a CPU; on a GPU attention saves the same tensors.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ...shared.rows import whole_gradients
from ...shared.system import Batch, Step, System
from ..run.optim import OptimSettings, build_optimizer
from .rehearsal_sharded import Division

_aten = torch.ops.aten
_ITEM, *_INDEXED = (getattr(_aten, name) for name in ("_local_scalar_dense", "index", "index_put", "index_put_", "_index_put_impl_"))
_DEVICE = torch.ops.prim.device.default
_LARGE = 1 << 16
"""Float tensors that are made from nothing and have more elements than this are not filled with numbers."""
_MOST_UPDATES = 64
"""A memory of earlier text that has not filled up by then grows on unseen."""


@dataclass(frozen=True)
class Rehearsal:
    """What one rank keeps and does, in bytes and floating-point operations (a multiplication and an addition are two)."""

    weights: int
    """Parameters, tied ones once, and buffers."""
    gradients: int
    optimizer: int
    """What the optimizer keeps between updates."""
    activations: int
    """What a micro-batch keeps for its backward pass, and what is there at the peak besides: intermediate results, the batch."""
    peak: int
    """The most that is there at once. Gradients come while activations go, so it may be less than the sum of the parts."""
    steady: int
    """The most that is there at once without counting gradients, for strategies that keep those all the time, or in parts."""
    flops: int
    """Of one update on this rank."""
    gathered: int = 0
    """With shards: what of the peak are gathered weights, gradients before they are divided, and what is on its way between ranks."""
    whole: int = 0
    """With shards: weights that are not divided."""
    average: int = 0
    """The average of the weights (`optim.ema_decay`)."""
    companions: int = 0
    """The weights of networks that are read and not trained, which each rank has whole."""

    @property
    def saved(self) -> int:
        """What a checkpoint holds."""
        return self.weights + self.optimizer + self.average


def rehearse(system: System, updates: Sequence[Sequence[Batch]], optim: OptimSettings, *, passes: int, precision: str, shards: int = 1,
             reshard: bool = True) -> Rehearsal:
    """Rehearse an update of a system that lies on torch's meta device.

    Args:
        system: built under `torch.device("meta")`; its parameters are replaced by fake ones.
        updates: the forward passes of some updates, in their order, on the CPU; not all passes need to be there.
        optim: the recipe's optimizer.
        passes: of an update on a rank: its micro-batches, or more where long documents divide them. The batches of all of them lie in
            memory; no more than two are run: the largest first one, and the largest of those that find gradients of earlier ones.
        precision: ``32`` or ``bf16-mixed``.
        shards: ranks that share one copy of the weights, as one of which the system is rehearsed.
        reshard: with shards, whether a layer's weights are given up until its backward pass.
    """
    fake = _FakeMode(allow_non_fake_inputs=True, allow_fallback_kernels=False)  # a fallback would compute, with zeros
    whole_gradients(system)  # fake tensors are never sparse: what is planned is more than sparse gradients take
    parameters = _materialise(system, fake)
    batches = [batch for update in updates for batch in update]
    later = [batch for update in updates for batch in update[1:]] or batches
    run = [max((update[0] for update in updates), key=_bytes_of), max(later, key=_bytes_of)][:passes]
    waiting = sum(_bytes_of(batch) for batch in batches) * passes // len(batches) - sum(map(_bytes_of, run))
    run = [batch.map_tensors(lambda t: _fake_numbers(t, fake)) for batch in run]
    ledger = _Ledger(fake, max(0, waiting))
    ledger.own([*system.parameters(), *system.buffers(), *(t for batch in run for t in _tensors_of(batch))])
    companions = sum(_bytes([*c.net.parameters(), *c.net.buffers()]) for c in system.companions.values())
    ledger.add(companions)
    for parameter in parameters:
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(ledger.gradient)
    totals = {name: sum(b.counts[name] for b in run) for name in run[0].counts}
    autocast = torch.autocast("cpu", torch.bfloat16) if precision == "bf16-mixed" else nullcontext()
    system.train()
    with ledger:
        division = Division(ledger, system, shards, reshard) if shards > 1 else None
        if division is not None:
            ledger.travelling = division.travelling
        optimizer = build_optimizer(system, optim)
        average = _bytes(p for p in parameters if p.requires_grad) if optim.ema_decay is not None else 0
        mine = average
        if division is not None and average:
            divided = {id(p) for p in division.divided}
            parts = [p for p in parameters if p.requires_grad and id(p) in divided]
            mine += division.rows(parts) - _bytes(parts)
        ledger.add(mine)
        flops = gradients = update = kept = 0
        carries: list[Any] = [None] * len(run)
        # the second update has the optimizer's state from the start, as all that follow; a memory of earlier text fills up first
        while update < 2 or (update < _MOST_UPDATES and _bytes(tree_leaves(carries)) > kept):
            kept = _bytes(tree_leaves(carries))
            ledger.flops = 0
            ledger.restart()
            for part, batch in enumerate(run):
                if update:
                    batch.follows = list(batch.sample_ids)  # each row goes on from itself
                with autocast:
                    step = cast("Step", system(batch, carries[part]))
                    loss = cast("Tensor", sum(t.total * (t.weight / max(1, totals[t.count])) for t in step.terms.values()))
                if division is None:
                    loss.backward()
                else:
                    division.last = part == len(run) - 1
                    division.backward(loss)
                carries[part] = step.carry
                del step, loss
            flops = ledger.flops * passes // len(run)
            gradients = sum(ledger.gradients.values())

            def learn() -> None:
                torch.nn.utils.clip_grad_norm_(parameters, optim.clip or float("inf"))
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            if division is None:
                learn()
            else:
                division.step(learn)
                if not update:
                    ledger.add(division.rows(_states(optimizer, division.divided)))
            ledger.gradients.clear()
            system.after_update(update)
            update += 1
    weights = _bytes([*system.parameters(), *system.buffers()])
    state = _bytes(tree_leaves([*optimizer.state.values()]))
    if division is None:
        return Rehearsal(weights, gradients, state, ledger.steady - weights - state - average - companions, ledger.peak, ledger.steady,
                         flops, average=average, companions=companions)
    divided = _bytes(division.divided)
    mine += weights - divided + division.rows(division.divided) + division.rows(_states(optimizer, division.divided))
    return Rehearsal(weights, gradients, state, ledger.peak - mine - ledger.beside - companions, ledger.peak, ledger.peak, flops,
                     ledger.beside, weights - divided, average, companions)


def _states(optimizer: Optimizer, parameters: Iterable[Tensor]) -> list[Tensor]:
    return [t for p in parameters for t in tree_leaves(optimizer.state.get(p, {})) if isinstance(t, Tensor)]


def _materialise(system: System, fake: FakeTensorMode) -> list[Tensor]:
    """Give a system on the meta device fake parameters and buffers, tied ones once; returns the parameters that are trained."""
    made: dict[int, Any] = {}

    def replace(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            with fake:
                new = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
            made[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
        return made[id(tensor)]

    held = list(system.parameters())  # keeps the old ones alive: their ids must stay their own
    for module in system.modules():
        # what Module.to_empty() does, without losing the ties
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if tensor.is_meta:
                setattr(module, name, replace(tensor))
    del held
    return list(system.parameters())


class _FakeMode(FakeTensorMode):
    """Fake tensors that look for a GPU once, where torch's look in each operation."""

    @cached_property
    def avoid_device_init(self) -> bool:  # type: ignore[override]
        """See `FakeTensorMode`."""
        return FakeTensorMode.avoid_device_init.fget(self)  # type: ignore[attr-defined]


class _Ledger(TorchDispatchMode):
    """Counts the bytes of every storage that an operation makes, while it lives."""

    def __init__(self, fake: FakeTensorMode, before: int) -> None:
        super().__init__()
        self.fake = fake
        self.now = before
        self.peak = self.steady = before
        self.gradients: dict[int, int] = {}
        self.flops = 0
        self.counting = True
        self.travelling: Callable[[], int] = lambda: 0
        """What of `now` is gathered or on its way, for a system that is divided."""
        self.beside = 0
        self._known: dict[int, Any] = {}

    def own(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that are there from the start."""
        for tensor in tensors:
            self._count(tensor)

    def add(self, size: int) -> None:
        """Count bytes that no tensor stands for."""
        self.now += size
        self._look()

    def restart(self) -> None:
        """Forget the peak; what is there now stays."""
        self.peak = self.steady = 0
        self._look()

    def _look(self) -> None:
        if self.now > self.peak:
            self.peak, self.beside = self.now, self.travelling()
        self.steady = max(self.steady, self.now - sum(self.gradients.values()))

    def gradient(self, parameter: Tensor) -> None:
        """Remember how large a parameter's gradient is (a hook of autograd)."""
        assert parameter.grad is not None
        self.gradients[id(parameter)] = parameter.grad.nbytes

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is _DEVICE:  # a fake tensor is asked where it is; that makes nothing, and comes twice as often as all else together
            return func(*args)
        out = self._run(func, args, kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        if (formula := flop_registry.get(func.overloadpacket)) is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        return out

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
        if any(isinstance(a, FakeTensor) for a in given):
            return _known_shapes(func, args, kwargs)
        if not given and _elements(args) > _LARGE:
            dtype = kwargs.get("dtype") or torch.get_default_dtype()
            if dtype.is_floating_point:
                with self.fake:
                    return func(*args, **kwargs)
        return func(*args, **kwargs)

    def _count(self, tensor: Tensor) -> None:
        if not self.counting:
            return
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known and self._known[key]() is storage:
            return
        size = storage.nbytes()
        self._known[key] = weakref.ref(storage, lambda _: self._free(key, size))
        self.now += size
        self._look()

    def _free(self, key: int, size: int) -> None:
        self._known.pop(key, None)
        self.now -= size


# --- shapes that depend on numbers -----------------------------------------------------------------------------------


def _known_shapes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation on fake tensors; where its result's shape depends on a real mask, that mask says it."""
    packet = func.overloadpacket
    if not func._schema.returns:  # noqa: SLF001  (an optimizer's fused step: it changes numbers and makes nothing)
        return None
    if packet is _ITEM:  # a number that steers nothing but numbers, such as an optimizer's step
        return 1.0 if args[0].is_floating_point() else 1
    kwargs = {key: value for key, value in kwargs.items() if not isinstance(value, torch.Generator)}  # nothing is drawn
    if packet in _INDEXED:
        indices = [part for index in args[1] for part in _positions(index)]
        return func(args[0], indices, *args[2:], **kwargs)
    if packet is _aten.masked_select and not isinstance(args[1], FakeTensor):
        mask = args[1].expand(torch.broadcast_shapes(args[0].shape, args[1].shape))
        return args[0].new_empty(int(mask.sum()))
    return func(*args, **kwargs)


def _positions(index: Tensor | None) -> Sequence[Tensor | None]:
    """The index tensors that a real mask stands for."""
    if index is None or isinstance(index, FakeTensor) or index.dtype not in (torch.bool, torch.uint8):
        return (index,)
    return index.nonzero().unbind(1)


def _elements(args: tuple[Any, ...]) -> int:
    """How many elements a factory such as `zeros(size)` makes; 0 where that is not what its first argument says."""
    size: Any = args[0] if args else None
    return math.prod(size) if isinstance(size, (list, tuple)) and all(isinstance(n, int) for n in cast("Any", size)) else 0


# --- bytes -----------------------------------------------------------------------------------------------------------


def _fake_numbers(tensor: Tensor, fake: FakeTensorMode) -> Tensor:
    """Floats and pixels become fake; other integers and bools decide about shapes and stay."""
    return fake.from_tensor(tensor) if tensor.is_floating_point() or tensor.dtype == torch.uint8 else tensor


def _tensors_of(batch: Batch) -> list[Tensor]:
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    batch.map_tensors(note)
    return found


def _bytes_of(batch: Batch) -> int:
    return _bytes(_tensors_of(batch))


def _bytes(values: Iterable[Any]) -> int:
    """Bytes of the storages behind the tensors among `values`, each counted once."""
    storages = [v.untyped_storage() for v in values if isinstance(v, Tensor)]
    return sum({id(s): s.nbytes() for s in storages}.values())
