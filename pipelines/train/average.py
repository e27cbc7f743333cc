"""An average of the weights, kept beside them (`optim.ema_decay`): evaluations, the export and whoever loads the run use it.

Polyak, Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992 (https://doi.org/10.1137/0330046), in the exponential form
of today's practice: `average = decay * average + (1 - decay) * weights` after every step. The first step copies the weights, as in
`torch.optim.swa_utils` and timm's `ModelEmaV3`, whose warm-up is the one here. What is not trained has no average: frozen weights, and
buffers (the statistics of batch norm are averages already), which are those of the moment, as torch's default is.

Training does not read it: a run with an average makes the same updates as one without. Where weights are divided over the ranks, so is it.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ...shared.system import System
from ..run import checkpoint
from ..run.optim import OptimSettings


def decay_after(update: int, settings: OptimSettings) -> float:
    """The decay after update number `update`, counted from 0: nothing remains of the first weights; then it rises with the warm-up."""
    assert settings.ema_decay is not None
    if update == 0:
        return 0.0
    return min(settings.ema_decay, 1 - (1 + update) ** (-2 / 3)) if settings.ema_warmup else settings.ema_decay


class Average:
    """The average of a system's trained weights.

    Args:
        system: on its devices, divided if it is going to be.
        settings: of the optimizer, with an `ema_decay`.
    """

    def __init__(self, system: System, settings: OptimSettings) -> None:
        self._settings = settings
        self._weights: dict[str, Tensor] = {name: p for name, p in system.named_parameters() if p.requires_grad}
        self._kept = {name: p.detach().clone() for name, p in self._weights.items()}

    def update(self, update: int) -> None:
        """Take in the weights that update number `update`, counted from 0, has left."""
        kept, weights = self._pairs()
        # with half-precision weights the average would not move; the recipe refuses to train those
        get_ema_multi_avg_fn(decay_after(update, self._settings))(kept, weights, update)

    @contextmanager
    def in_use(self) -> Generator[None]:
        """Give the system the average for its weights, and then its own again. It takes the memory of the largest tensor."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def restart(self) -> None:
        """Begin anew, with the weights of this moment."""
        with torch.no_grad():
            for kept, weight in zip(*self._pairs(), strict=True):
                kept.copy_(weight)

    def tensors(self) -> dict[str, Tensor]:
        """Under their names in a checkpoint."""
        return {f"{checkpoint.AVERAGE}{name}": tensor for name, tensor in self._kept.items()}

    def restore(self, start: checkpoint.Checkpoint) -> bool:
        """Continue from a checkpoint; False where it holds no average: then it begins with the weights of this moment."""
        if not checkpoint.has_average(start.path):
            self.restart()
            return False
        checkpoint.load(start.path, self.tensors(), ignore=lambda name: not name.startswith(checkpoint.AVERAGE))
        return True

    def _exchange(self) -> None:
        with torch.no_grad():
            for kept, weight in zip(*self._pairs(), strict=True):
                before = weight.clone()
                weight.copy_(kept)
                kept.copy_(before)

    def _pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        """The averages and the weights, of each what this rank holds."""
        with torch.no_grad():  # then a rank's part is the memory itself
            return [_mine(t) for t in self._kept.values()], [_mine(t) for t in self._weights.values()]


def _mine(tensor: Tensor) -> Tensor:
    return cast("Any", tensor).to_local() if hasattr(tensor, "to_local") else tensor.detach()
