"""One layer that is timed alone: what races between kinds of attention share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass
class LayerRun:
    """A layer, its input, and how it is run."""

    module: nn.Module
    x: Tensor
    forward: Callable[[], Tensor]


def step(run: LayerRun) -> Tensor:
    """Forward and backward; the output's gradient is the output's sign-free square, halved."""
    run.module.zero_grad(set_to_none=True)
    run.x.grad = None
    out = run.forward()
    (0.5 * out.square().mean()).backward()
    return out.detach()
