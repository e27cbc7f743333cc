"""Updates that go wrong: found by their gradient norm, and what is done about them.

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
import shutil
import statistics
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ...shared import dist
from ...shared.errors import UserError
from ..base.console import finite
from ..run import checkpoint
from ..run.directory import Run
from ..run.logbook import Logbook
from ..run.recipe import HealthSettings

if TYPE_CHECKING:
    from .job import Job

_SAMPLES = 4096
"""Samples that an event lists one by one; of more, only their positions."""


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
    def story(self) -> str:
        """What is wrong, for people."""
        if self.limit is None:
            return f"the gradient of update {self.update + 1} is not finite ({self.norm})"
        return f"the gradient norm of update {self.update + 1} is {self.norm:.4g}, more than {self.limit:.4g}"


class Health:
    """Watches the gradient norms of a run, and knows which updates it leaves out. Its state travels in the checkpoints."""

    def __init__(self, settings: HealthSettings, device: torch.device) -> None:
        """Nothing has been seen yet."""
        self.settings = settings
        self.decided: list[range] = []
        """What rewinds of this run have decided to leave out (`decisions`)."""
        self.wrong: Trouble | None = None
        """What ends the run or sends it back: known to all ranks."""
        self.skipped: list[Trouble] = []
        """What was left out by `skip` since someone looked."""
        self._at_once = settings.policy == "skip" or device.type != "cuda"
        self._found: Trouble | None = None
        self._pending: deque[tuple[int, Tensor, Any]] = deque()
        self._norms: deque[float] = deque(maxlen=settings.window)
        self._in_a_row = 0
        self._left_out: list[range] = []

    # --- judging ---

    def sound(self, update: int, norm: Tensor) -> bool:
        """Take an update's gradient norm; False where it is known to be wrong, and the update must not make its step."""
        there, event = norm, None
        if norm.device.type == "cuda":
            there = torch.empty((), dtype=norm.dtype, pin_memory=True)
            there.copy_(norm, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._pending.append((update, there, event))
        if not self._at_once:
            return True
        self._look(wait=True)
        return self._found is None

    def suspects(self) -> bool:
        """Whether a norm that has arrived on this rank is wrong; the other ranks may not know yet. Never waits."""
        self._look(wait=False)
        return self._found is not None

    def settle(self) -> None:
        """Wait for every norm that is under way: what is wrong is then known to all ranks."""
        self._look(wait=True)
        self.wrong = self.wrong or self._found

    def _look(self, wait: bool) -> None:
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
        self._in_a_row = 0
        return None

    def explain(self, loss: float | None) -> None:
        """Add its loss to what `sound` has just found wrong."""
        assert self._found is not None
        found = replace(self._found, loss=loss)
        if self.settings.policy != "skip":
            self.wrong = self._found = found
            return
        self._found = None
        self.skipped.append(found)
        self._in_a_row += 1
        if self._in_a_row > self.settings.max_skips:
            self.wrong = found

    # --- what is left out ---

    def leaves_out(self, update: int) -> bool:
        """Whether update number `update` is to be counted only: by the recipe, or by a rewind."""
        return any(update in part for part in (*planned(self.settings), *self.decided))

    def left_out(self, update: int) -> None:
        """Remember that an update made no step."""
        self._left_out = merged([*self._left_out, range(update, update + 1)])

    def state(self) -> dict[str, Any]:
        """For a checkpoint: [first, end) of the updates that made no step, counted from 0, and the norms that spikes are compared with."""
        assert not self._pending, "a checkpoint holds updates that nobody has judged"
        return {"left_out": [[part.start, part.stop] for part in self._left_out], "norms": list(self._norms), "in_a_row": self._in_a_row}

    def restore(self, state: Mapping[str, Any], update: int) -> None:
        """Continue from a checkpoint's state after `update` updates."""
        self.wrong = self._found = None
        self._pending.clear()
        self.skipped.clear()
        self._left_out = [range(first, end) for first, end in state.get("left_out", [])]
        self._norms = deque(state.get("norms", []), maxlen=self.settings.window)
        self._in_a_row = state.get("in_a_row", 0)
        for part in planned(self.settings):
            if missed(part, update, self._left_out):
                raise UserError(f"health.leave_out names update {part.start + 1}, which this run has made: "
                                "continue from a checkpoint before it, or take it out")


def planned(settings: HealthSettings) -> list[range]:
    """What the recipe says to leave out, counted from 0."""
    return [range(first - 1, last) for first, last in settings.leave_out]


def merged(parts: Iterable[range]) -> list[range]:
    """The same numbers in as few ranges as possible."""
    whole: list[range] = []
    for part in sorted((p for p in parts if p), key=lambda p: p.start):
        if whole and part.start <= whole[-1].stop:
            whole[-1] = range(whole[-1].start, max(whole[-1].stop, part.stop))
        else:
            whole.append(part)
    return whole


def missed(part: range, update: int, left_out: Sequence[range]) -> bool:
    """Whether a run after `update` updates has made some update of `part`."""
    return any(all(u not in done for done in left_out) for u in range(part.start, min(part.stop, update)))


# --- what was decided, on the disk -----------------------------------------------------------------------------------


def decisions(run: Run) -> list[list[int]]:
    """[first, end) of the updates that rewinds of a run have decided to leave out, counted from 0."""
    return [[first - 1, last] for event in run.events() if event["event"] == "rewind" for first, last in [event["left_out"]]]


def drop_outdated(run: Run) -> list[str]:
    """Remove checkpoints that learnt from what a rewind has decided to leave out since; a kill may have left them. Returns their names."""
    decided = [range(*pair) for pair in decisions(run)]
    gone: list[str] = []
    for found in checkpoint.all_checkpoints(run.checkpoints) if decided else []:
        if checkpoint.damage(found.path) is None:
            left_out = [range(*pair) for pair in found.state().get("health", {}).get("left_out", [])]
            if any(missed(part, found.update, left_out) for part in decided):
                hidden = found.path.with_name(f".tmp-outdated-{found.path.name}")
                found.path.rename(hidden)
                shutil.rmtree(hidden, ignore_errors=True)
                gone.append(found.path.name)
    return gone


# --- acting ----------------------------------------------------------------------------------------------------------


class Restarts(Protocol):
    """What makes updates, and can begin again where the job stands."""

    def restart(self) -> None:
        """Go on from where the job stands now."""
        ...


def act(job: Job, loop: Restarts, logbook: Logbook | None) -> None:
    """Do what the policy says about what went wrong; every rank calls it. Does nothing where all is well."""
    health, settings = job.health, job.recipe.health
    for trouble in health.skipped:
        _record(job, logbook, trouble, "skip", range(trouble.update, trouble.update + 1))
    health.skipped.clear()
    trouble = health.wrong
    if trouble is None:
        return
    if settings.policy == "rewind" and len(health.decided) < settings.max_rewinds:
        _rewind(job, loop, logbook, trouble)
        return
    _record(job, logbook, trouble, "raise", range(trouble.update, trouble.update))
    if settings.policy == "skip":
        raise UserError(f"{trouble.story}, and so were the {settings.max_skips} updates before it, as many as health.max_skips allows: the "
                        "cause is not a sample; lower optim.lr or raise health.spike, and continue from the newest checkpoint")
    if settings.policy == "rewind":
        raise UserError(f"{trouble.story}, after {len(health.decided)} rewinds, and health.max_rewinds allows no more: the cause is not "
                        "a sample; lower optim.lr, or leave out more with health.skip_updates")
    raise UserError(f"{trouble.story}: lower optim.lr or optim.clip, or lengthen schedule.warmup, and continue from the newest checkpoint; "
                    f"or leave the update out with health.leave_out=[[{trouble.update + 1},{trouble.update + 1}]]; or let the run do so "
                    "with health.policy=rewind")


def _rewind(job: Job, loop: Restarts, logbook: Logbook | None, trouble: Trouble) -> None:
    """Go back to the last checkpoint before the trouble, and leave out what led there."""
    first = max(0, trouble.update + 1 - job.recipe.health.skip_updates)

    def decide() -> str:
        there = [c for c in checkpoint.all_checkpoints(job.run.checkpoints) if c.update <= trouble.update]
        before = [c for c in there if c.update <= first]
        # the newest one that no left-out update has touched; where none is kept, the oldest, and less is left out
        for found in (*reversed(before), *(c for c in there if c.update > first)):
            if checkpoint.damage(found.path) is None:
                left_out = range(max(first, found.update), trouble.update + 1)
                # on the disk before anything is removed: whoever continues after a kill must decide the same
                _record(job, logbook, trouble, "rewind", left_out, found.update)
                drop_outdated(job.run)
                return str(found.path)
        raise UserError(f"{trouble.story}, and there is no whole checkpoint before it to go back to")

    job.at("rewinding")
    job.saver.wait()
    path = dist.on_rank_0(decide)
    job.saver.forget()
    job.restore(checkpoint.verified_checkpoint(Path(path)))
    job.bad_records = [record for record in job.bad_records if record["update"] <= job.update]
    loop.restart()
    if logbook is not None:
        logbook.go_back(job.update)


def _record(job: Job, logbook: Logbook | None, trouble: Trouble, event: str, left_out: range, to: int | None = None) -> None:
    """Write down what happened, and say it; rank 0 has the logbook."""
    if logbook is None:
        return
    batch = job.recipe.data.global_batch
    positions = range(left_out.start * batch, left_out.stop * batch)
    record: dict[str, Any] = {
        "event": event, "update": trouble.update + 1, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "norm": trouble.norm,
        "limit": trouble.limit, "loss": trouble.loss,
    }
    if left_out:
        record |= {"left_out": [left_out.start + 1, left_out.stop], "positions": [positions.start, positions.stop]}
        if len(positions) <= _SAMPLES:
            record["samples"] = [job.stream.index(job.stream.order.locate(p)) for p in positions]
    if to is not None:
        record["to"] = to
    record = finite(record)
    logbook.add_event(record)
    job.console.warn(describe(record))


def describe(record: Mapping[str, Any]) -> str:
    """An event in one line for people."""
    norm, limit, loss = record.get("norm"), record.get("limit"), record.get("loss")
    size = "not finite" if limit is None else f"{norm:.4g}, more than {limit:.4g}"
    line = f"update {record['update']}: gradient norm {size}" + ("" if loss is None else f", loss {loss:.4g}")
    if record["event"] == "raise":
        return f"{line}: the run ended"
    first, last = record["left_out"]
    begin, end = record["positions"]
    what = f"update {last} made no step" if first == last else f"updates {first} to {last} make no step"
    back = f"back to update {record['to']}; " if record["event"] == "rewind" else ""
    return f"{line}: {back}{what}, samples at positions {begin} to {end - 1} are left out"
