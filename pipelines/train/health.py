"""Updates that go wrong, found by their gradient norm. `rewind.py` does something about them.

A gradient that is not finite, or far larger than those before it, comes from data that the run should not learn from, from a rate that is
too high, or from a broken machine. Chowdhery et al., "PaLM" (https://arxiv.org/abs/2204.02311, section 5.1) go back to a checkpoint before
a spike and leave out the data around it; OLMo 2 (https://arxiv.org/abs/2501.00656) leaves out single steps. Both are policies here.

The norm is that of the whole batch, the same number on every rank, so the ranks agree without talking. On a GPU it is copied to the host in
the background and judged when it arrives; a rank that finds something says so with the counts of its next update, and all of them then
wait for what is still under way. Only `skip`, which must know before the step, waits for every norm.

An update that is left out is counted (its samples are read, the schedule goes on) and makes no step. So the order of the data stays what
it is, and one integer stays the state of it. What has been left out is in the checkpoint's state; what a rewind has decided to leave out is
in events.jsonl before anything else happens, and holds for the rest of the run's life.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...shared.errors import UserError
from ..run.recipe import HealthSettings


@dataclass(frozen=True)
class Trouble:
    """An update that went wrong."""

    update: int
    """Its number, counted from 0."""
    norm: float
    limit: float | None
    """What the norm was allowed to be; None where it is not finite."""
    loss: float | None = None
    """Of the update, where it is known in time."""

    @property
    def message(self) -> str:
        """What is wrong, for people."""
        if self.limit is None:
            return f"the gradient of update {self.update + 1} is not finite ({self.norm})"
        return f"the gradient norm of update {self.update + 1} is {self.norm:.4g}, more than {self.limit:.4g}"


class Health:
    """Watches the gradient norms of a run, and knows which updates it leaves out. Its state travels in the checkpoints."""

    def __init__(self, settings: HealthSettings, device: torch.device) -> None:
        """Nothing has been seen yet."""
        self.settings = settings
        self.rewound: list[range] = []
        """What rewinds of this run have decided to leave out (`rewind_decisions`)."""
        self.trouble: Trouble | None = None
        """What ends the run or sends it back: known to all ranks."""
        self.skipped: list[Trouble] = []
        """What was left out by `skip` since `apply_policy` looked."""
        self._is_judged_at_once = settings.policy == "skip" or device.type != "cuda"
        self._found: Trouble | None = None
        """What this rank has found wrong; the others may not know yet."""
        self._pending: deque[tuple[int, Tensor, Any]] = deque()
        """Update, norm and CUDA event of the norms that are on their way to the host."""
        self._norms: deque[float] = deque(maxlen=settings.window)
        self._skips_in_a_row = 0
        self._left_out: list[range] = []

    # --- judging ---

    def observe(self, update: int, norm: Tensor) -> bool:
        """Take an update's gradient norm; False where it is known to be wrong, and the update must not make its step."""
        there, event = norm, None
        if norm.device.type == "cuda":
            there = torch.empty((), dtype=norm.dtype, pin_memory=True)
            there.copy_(norm, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._pending.append((update, there, event))
        if not self._is_judged_at_once:
            return True
        self._judge_arrived(wait=True)
        return self._found is None

    def has_found_trouble(self) -> bool:
        """Whether a norm that has arrived on this rank is wrong; the other ranks may not know yet. Never waits."""
        self._judge_arrived(wait=False)
        return self._found is not None

    def wait_for_norms(self) -> None:
        """Wait for every norm that is under way: what is wrong is then known to all ranks, in `trouble`."""
        self._judge_arrived(wait=True)
        self.trouble = self.trouble or self._found

    def _judge_arrived(self, wait: bool) -> None:
        """Judge the norms that have arrived; `wait` for all of them."""
        while self._pending:
            update, norm, event = self._pending[0]
            if event is not None:
                if not wait and not event.query():
                    return
                event.synchronize()
            self._pending.popleft()
            value = float(norm)
            if self._found is None:  # what follows was computed with spoilt weights
                self._found = self._judge(update, value)

    def _judge(self, update: int, norm: float) -> Trouble | None:
        spike, limit = self.settings.spike, math.inf
        if spike is not None and len(self._norms) == self.settings.window:
            limit = spike * statistics.median(self._norms)
        if not math.isfinite(norm) or norm > limit:
            return Trouble(update, norm, limit if math.isfinite(norm) else None)
        self._norms.append(norm)
        self._skips_in_a_row = 0
        return None

    def attach_loss(self, loss: float | None) -> None:
        """Add the update's loss to what `observe` has just found wrong, on every rank alike, and note whether it ends the run."""
        assert self._found is not None
        found = replace(self._found, loss=loss)
        if self.settings.policy != "skip":
            self.trouble = self._found = found
            return
        self._found = None
        self.skipped.append(found)
        self._skips_in_a_row += 1
        if self._skips_in_a_row > self.settings.max_skips:
            self.trouble = found

    # --- what is left out ---

    def is_left_out(self, update: int) -> bool:
        """Whether update number `update` is to be counted only: by the recipe, or by a rewind."""
        return any(update in part for part in (*left_out_by_recipe(self.settings), *self.rewound))

    def mark_left_out(self, update: int) -> None:
        """Remember that an update made no step."""
        self._left_out = merge_ranges([*self._left_out, range(update, update + 1)])

    def state(self) -> dict[str, Any]:
        """For a checkpoint: [first, end) of the updates that made no step, counted from 0, and the norms that spikes are compared with."""
        assert not self._pending, "a checkpoint holds updates that nobody has judged"
        return {"left_out": [[part.start, part.stop] for part in self._left_out], "norms": list(self._norms),
                "in_a_row": self._skips_in_a_row}

    def restore(self, state: Mapping[str, Any], update: int) -> None:
        """Continue from a checkpoint's state after `update` updates."""
        self.trouble = self._found = None
        self._pending.clear()
        self.skipped.clear()
        self._left_out = [range(first, end) for first, end in state.get("left_out", [])]
        self._norms = deque(state.get("norms", []), maxlen=self.settings.window)
        self._skips_in_a_row = state.get("in_a_row", 0)
        for part in left_out_by_recipe(self.settings):
            if has_made_any(part, update, self._left_out):
                raise UserError(f"health.leave_out names update {part.start + 1}, which this run has made: "
                                "continue from a checkpoint before it, or take it out")


def left_out_by_recipe(settings: HealthSettings) -> list[range]:
    """`health.leave_out`, counted from 0."""
    return [range(first - 1, last) for first, last in settings.leave_out]


def merge_ranges(parts: Iterable[range]) -> list[range]:
    """The same numbers in as few ranges as possible."""
    whole: list[range] = []
    for part in sorted((p for p in parts if p), key=lambda p: p.start):
        if whole and part.start <= whole[-1].stop:
            whole[-1] = range(whole[-1].start, max(whole[-1].stop, part.stop))
        else:
            whole.append(part)
    return whole


def has_made_any(part: range, update: int, left_out: Sequence[range]) -> bool:
    """Whether a run after `update` updates has made some update of `part`."""
    return any(all(u not in done for done in left_out) for u in range(part.start, min(part.stop, update)))
