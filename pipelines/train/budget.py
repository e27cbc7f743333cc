"""A length in time (`max_time`): how many updates fit into it is found by a few updates that do not count.

The run saves itself before its first update, makes updates for a fiftieth of the time, goes back as a rewind does, and begins. What was
found becomes `max_updates` of its recipe, which its checkpoints and the record of this start hold: from then on it is a number like any
other, so the schedule, resumes and replays are exact.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace

from ...shared import dist
from ..base.values import duration
from ..run import checkpoint
from ..run.directory import record_recipe
from ..run.recipe import Recipe
from .batches import Made
from .clock import Clock
from .state import TrainState

_WARM, _ROUND, _MOST = 3, 5, 50
"""Updates before the clock starts; updates between two looks at it; updates at most."""
_SHARE = 0.02
"""Of the time, for measuring."""


def with_length(recipe: Recipe, made: Made | None) -> tuple[Recipe, list[str]]:
    """The recipe of a start with the length that was found for its `max_time`, and lines for people.

    Args:
        recipe: what is asked for; without `max_time` it is given back.
        made: what the run has made so far, None for nothing. With another `max_time` than it had, its speed so far says the length.
    """
    if recipe.max_time is None:
        return recipe, []
    if not is_found(recipe, made):
        return recipe, [f"length: as many updates as fit into {duration(recipe.max_time)} of training, found by a few updates that do not "
                        "count; evaluations and checkpoints take time of their own"]
    assert made is not None
    if made.max_time == recipe.max_time:
        return replace(recipe, max_updates=made.max_updates), []
    samples = made.data.ramp.before(made.update)
    updates = max(made.update, recipe.data.ramp.update_at(int(samples / made.elapsed * recipe.max_time)), 1)
    return replace(recipe, max_updates=updates), [f"length: {updates:,} updates fit into {duration(recipe.max_time)} at the speed so far"]


def is_found(recipe: Recipe, made: Made | None) -> bool:
    """Whether the number of updates is known before the run starts."""
    return recipe.max_time is None or (made is not None and made.update > 0)


def find_length(state: TrainState, make_update: Callable[[], object], save: Callable[[], None]) -> None:
    """Find out how many updates fit into the time of a run that has made none, and put that into its recipe; every rank calls it.

    Args:
        state: the run before its first update. It is the same afterwards, but for `recipe.max_updates`.
        make_update: makes its next update.
        save: saves it, and returns when that stands.
    """
    assert state.recipe.max_time is not None and state.update == 0
    save()
    state.start_reading()
    seconds, samples = _measure(state, make_update)
    place = state.run.checkpoints / checkpoint.name_of(0)
    state.clock = Clock()
    state.restore(checkpoint.verified_checkpoint(place))
    state.bad_records, state.reads = [], {}
    state.saver.forget()
    # another one, with the length, may be saved under this name
    dist.on_rank_0(lambda: shutil.rmtree(place.rename(place.with_name(f".tmp-measured-{place.name}")), ignore_errors=True))
    if not samples:
        return  # asked to stop, or an update went wrong: the run itself will say so
    batches, time_ = state.stream.layout.batches, state.recipe.max_time
    updates: int = dist.on_rank_0(lambda: max(1, batches.update_at(int(samples / seconds * time_))))
    state.recipe = replace(state.recipe, max_updates=updates)
    dist.on_rank_0(lambda: record_recipe(state.run, state.recipe))
    state.console.say(f"length: {updates:,} updates fit into {duration(time_)} of training, at {samples / seconds:.4g} samples/s over "
                      f"{samples} samples")
    if state.recipe.schedule.warmup >= updates:
        state.console.say(f"note: the run ends within the warmup of {state.recipe.schedule.warmup} updates (schedule.warmup)")


def _measure(state: TrainState, make_update: Callable[[], object]) -> tuple[float, int]:
    """Seconds of some updates after the first ones, and their samples; none where the run stands still."""
    def advance(updates: int) -> bool:
        """Make so many; whether that went well."""
        end = state.update + updates
        while state.update < end:
            before = state.update
            make_update()
            if state.update == before:
                return False
        state.health.wait_for_norms()  # which are there once the devices are done
        return state.health.trouble is None

    assert state.recipe.max_time is not None
    cycle = len(state.stream.turns.cycle)
    if not advance(_WARM):
        return 0.0, 0
    first, began = state.update, time.perf_counter()
    while advance(-(-_ROUND // cycle) * cycle):
        seconds = time.perf_counter() - began
        batches, share = state.stream.layout.batches, seconds / state.recipe.max_time
        if dist.on_rank_0(lambda share=share: share >= _SHARE) or state.update - first >= max(_MOST, cycle):
            return seconds, batches.before(state.update) - batches.before(first)
    return 0.0, 0
