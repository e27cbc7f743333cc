"""One forward pass of an update: what goes into it, the one number that is differentiated, and what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from torch import Tensor, nn

from ...shared.system import Batch, Step, System

if TYPE_CHECKING:
    from .fabric import Fabric


class Pass(NamedTuple):
    """One forward pass of an update: a micro-batch, or a part of one that has too many tokens."""

    part: int
    """The number of the micro-batch."""
    number: int
    """Of the pass within it."""
    batch: Batch


class MicroBatch:
    """One micro-batch on its way through the wrappers of Fabric and DDP.

    They walk through every dataclass they are handed, copy it and cast its tensors (float targets to bf16, too); an
    object that is not a collection passes untouched.
    """

    __slots__ = ("batch", "carry", "scale", "step")

    def __init__(self, batch: Batch, carry: Any, scale: Mapping[str, float]) -> None:
        """The batch on its device, what the system carried to it, and for each count by what its terms are multiplied."""
        self.batch, self.carry, self.scale = batch, carry, scale
        self.step: Step | None = None

    def result(self) -> Step:
        """What the system returned."""
        assert self.step is not None
        return self.step


class ScaledLoss(nn.Module):
    """A system as a module that returns the one number to differentiate."""

    def __init__(self, system: System) -> None:
        """Keep the system."""
        super().__init__()
        self.system = system

    def forward(self, micro: MicroBatch | None) -> Tensor:
        """The micro-batch's share of the loss of the global batch; without one a loss whose gradient is zero everywhere."""
        if micro is None:
            return cast("Tensor", sum((p * 0).sum() for p in self.system.parameters() if p.requires_grad))
        micro.step = step = cast("Step", self.system(micro.batch, micro.carry))
        parts = [term.total * (term.weight * micro.scale[term.count]) for term in step.terms.values()]
        return cast("Tensor", sum(parts))


def settle_buckets(fabric: Fabric, module: Any) -> None:
    """Let DDP find its final order of gradients before the first update, on a loss without numbers.

    It puts the gradients into buckets anew after the first backward pass of a process, in the order in which they came. Where three or
    more ranks add up, the order of additions depends on a number's place in its bucket, so a run that is continued would round otherwise
    than one that was never stopped. The engine walks backwards through a sum, which is about the order of a real backward pass.
    """
    fabric.backward(module(None))
    module.zero_grad(set_to_none=True)
