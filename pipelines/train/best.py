"""The best evaluation of a run: which checkpoint to keep, and when to stop waiting for a better one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...shared.errors import UserError
from ..run import checkpoint
from ..run.recipe import EvaluateSettings

HIGHER = ("accuracy", "f1", "auc", "precision", "recall", "rouge", "bleu", "top", "pearson", "exact")
"""What is in the names of numbers that are better when they are higher."""


def best_updates(directory: Path, newest: int) -> set[int]:
    """The best evaluations that the newest checkpoints know of: whichever of them a run goes on from, its best one must be there."""
    found = (c.state().get("best", {}).get("update") for c in checkpoint.all_checkpoints(directory)[-newest:])
    return {update for update in found if update is not None}


class Best:
    """Watches one number of the evaluations (`evaluate.monitor`); its state travels in the checkpoints."""

    def __init__(self, settings: EvaluateSettings) -> None:
        """Nothing has been seen yet."""
        self._settings = settings
        self.update: int | None = None
        """The update of the best evaluation."""
        self.value = math.nan
        """The number there."""
        self.waited = 0
        """Evaluations since then."""

    @property
    def is_higher_better(self) -> bool:
        """Whether a higher number is the better one."""
        mode = self._settings.mode
        return mode == "max" or (mode == "auto" and any(part in self._settings.monitor for part in HIGHER))

    @property
    def is_over(self) -> bool:
        """Whether the run has waited long enough for a better evaluation."""
        return 0 < self._settings.patience <= self.waited

    def see(self, row: Mapping[str, Any]) -> None:
        """Take an evaluation."""
        name = self._settings.monitor
        if not isinstance(row.get(name), (int, float)):
            known = ", ".join(k for k, v in row.items() if isinstance(v, float))
            raise UserError(f"evaluate.monitor is {name!r}, which the evaluations do not measure; they have {known}")
        value = float(row[name])
        gain = (value - self.value) * (1 if self.is_higher_better else -1)
        if self.update is None or gain > self._settings.min_delta or (math.isnan(self.value) and not math.isnan(value)):
            self.update, self.value, self.waited = int(row["update"]), value, 0
        else:
            self.waited += 1

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"update": self.update, "value": None if math.isnan(self.value) else self.value, "waited": self.waited}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's state."""
        self.update, self.waited = state["update"], state["waited"]
        self.value = math.nan if state["value"] is None else state["value"]
