"""What is done about an update that went wrong (`health.policy`): the run ends, goes on without it, or goes back to a checkpoint."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from ...shared import dist
from ...shared.errors import UserError
from ..base.console import finite
from ..run import checkpoint
from ..run.directory import Run
from ..run.logbook import Logbook
from .events import describe_event, rewind_decisions
from .health import Trouble, has_made_any
from .state import TrainState

_SAMPLES = 4096
"""Samples that an event lists one by one; of more, only their positions."""


def apply_policy(state: TrainState, logbook: Logbook | None) -> bool:
    """Do what the policy says about what went wrong, if anything did; every rank calls it.

    Returns:
        Whether the run went back to a checkpoint.

    Raises:
        UserError: the run ends.
    """
    health, settings = state.health, state.recipe.health
    for trouble in health.skipped:
        _record(state, logbook, trouble, "skip", range(trouble.update, trouble.update + 1))
    health.skipped.clear()
    trouble = health.trouble
    if trouble is None:
        return False
    if settings.policy == "rewind" and len(health.rewound) < settings.max_rewinds:
        _rewind(state, logbook, trouble)
        return True
    _record(state, logbook, trouble, "raise", range(trouble.update, trouble.update))
    if settings.policy == "skip":
        raise UserError(f"{trouble.message}, and so were the {settings.max_skips} updates before it, as many as health.max_skips allows: "
                        "the cause is not a sample; lower optim.lr or raise health.spike, and continue from the newest checkpoint")
    if settings.policy == "rewind":
        raise UserError(f"{trouble.message}, after {len(health.rewound)} rewinds, and health.max_rewinds allows no more: the cause is not "
                        "a sample; lower optim.lr, or leave out more with health.skip_updates")
    raise UserError(f"{trouble.message}: lower optim.lr or optim.clip, or lengthen schedule.warmup, and continue from the newest "
                    f"checkpoint; or leave the update out with health.leave_out=[[{trouble.update + 1},{trouble.update + 1}]]; or let the "
                    "run do so with health.policy=rewind")


def _rewind(state: TrainState, logbook: Logbook | None, trouble: Trouble) -> None:
    """Go back to the last checkpoint before the trouble, and leave out what led there."""
    first = max(0, trouble.update + 1 - state.recipe.health.skip_updates)

    def decide() -> str:
        there = [c for c in checkpoint.all_checkpoints(state.run.checkpoints) if c.update <= trouble.update]
        before = [c for c in there if c.update <= first]
        # the newest one that no left-out update has touched; where none is kept, the oldest, and less is left out
        for found in (*reversed(before), *(c for c in there if c.update > first)):
            if checkpoint.damage(found.path) is None:
                left_out = range(max(first, found.update), trouble.update + 1)
                # on the disk before anything is removed: whoever continues after a kill must decide the same
                _record(state, logbook, trouble, "rewind", left_out, found.update)
                drop_outdated(state.run)
                return str(found.path)
        raise UserError(f"{trouble.message}, and there is no intact checkpoint before it to go back to")

    state.mark("rewinding")
    state.saver.wait()
    path = dist.on_rank_0(decide)
    state.saver.forget()
    state.restore(checkpoint.verified_checkpoint(Path(path)))
    state.bad_records = [record for record in state.bad_records if record["update"] <= state.update]
    state.start_reading()
    if logbook is not None:
        logbook.go_back(state.update)


def drop_outdated(run: Run) -> list[str]:
    """Remove the `outdated` checkpoints. Returns their names."""
    gone: list[str] = []
    for found in outdated(run):
        hidden = found.path.with_name(f".tmp-outdated-{found.path.name}")
        found.path.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)
        gone.append(found.path.name)
    return gone


def outdated(run: Run) -> list[checkpoint.Checkpoint]:
    """Checkpoints that learnt from what a rewind has decided to leave out since; a kill may have left them."""
    decided = [range(*pair) for pair in rewind_decisions(run)]
    found: list[checkpoint.Checkpoint] = []
    for there in checkpoint.all_checkpoints(run.checkpoints) if decided else []:
        if checkpoint.damage(there.path) is None:
            left_out = [range(*pair) for pair in there.state().get("health", {}).get("left_out", [])]
            if any(has_made_any(part, there.update, left_out) for part in decided):
                found.append(there)
    return found


def _record(state: TrainState, logbook: Logbook | None, trouble: Trouble, event: str, left_out: range, to: int | None = None) -> None:
    """Write down what happened, and say it; rank 0 has the logbook."""
    if logbook is None:
        return
    batches = state.stream.layout.batches
    positions = range(batches.before(left_out.start), batches.before(left_out.stop))
    record: dict[str, Any] = {
        "event": event, "update": trouble.update + 1, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "norm": trouble.norm,
        "limit": trouble.limit, "loss": trouble.loss,
    }
    if left_out:
        record |= {"left_out": [left_out.start + 1, left_out.stop], "positions": [positions.start, positions.stop]}
        if len(positions) <= _SAMPLES:
            record["samples"] = [state.stream.index(state.stream.order.locate(p)) for p in positions]
    if to is not None:
        record["to"] = to
    record = finite(record)
    logbook.add_event(record)
    state.console.warn(describe_event(record))
