"""How the demo keeps its time: the first updates of a part are timed, and the rest is planned to end when the part's time is up.

The first updates lie within the warmup of every recipe here, which does not depend on the length of the run. So the run that goes on from
them is what it would be if its length had been known from the start, and no update is thrown away.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

from ..run.directory import Run
from .story import Story

_SLACK = 0.05
"""Share of a part's time that is not planned: a machine is not equally fast all the time."""
_EVALUATIONS = 6
"""Of a part, about: at its end and every fifth of it, for the held-out curve."""


@dataclass(frozen=True)
class Part:
    """A part of the demo that trains."""

    most: int
    """Updates if there is time for them."""
    ends: float
    """Seconds after the start of the demo by which it is over; infinity for no limit."""
    first: int = 20
    """Updates that are timed, at most the recipe's warmup, and fewer where they take a quarter of the part's time."""

    @property
    def least(self) -> int:
        """Updates that are planned on any machine, however slow: the result of fewer says nothing."""
        return min(self.most, 3 * self.first)


@dataclass(frozen=True)
class Pace:
    """What the first updates of a part took, in seconds."""

    update: float
    evaluation: float
    start: float
    """A start and an end of the run: what was neither update nor evaluation."""
    made: int
    """How many there were: fewer than `Part.first` where they took too long."""


@dataclass(frozen=True)
class Length:
    """How long a part trains."""

    updates: int
    seconds: float | None
    """After this time a run ends early and cleanly (`--max-seconds`); None for no limit."""

    @property
    def every(self) -> int:
        """Updates between two evaluations."""
        return max(1, self.updates // (_EVALUATIONS - 1))

    def length(self) -> list[object]:
        """Of the command: how many updates, and how often they are evaluated."""
        return ["--max-updates", self.updates, "--set", f"evaluate.every={self.every}"]

    def limit(self, spent: float = 0.0) -> list[object]:
        """Of the command: when to end; `spent` seconds of the time are gone."""
        return [] if self.seconds is None else ["--max-seconds", f"{max(1.0, self.seconds - spent):.0f}"]


def first_updates(story: Story, name: str, part: Part, *command: object) -> Pace:
    """Make the first updates of a run and time them.

    Args:
        story: of the demo.
        name: of the run.
        part: its length.
        command: trains it, without its length.
    """
    began = time.monotonic()
    limit = [] if math.isinf(part.ends) else ["--max-seconds", f"{max(1.0, (part.ends - story.elapsed) / 4):.0f}"]
    made = story.command(*command, "--max-updates", part.first, *limit, "--set", f"log.every={max(1, part.first // 2)}")["updates"]
    seconds = time.monotonic() - began
    run = Run(story.out / "runs" / name)
    # the last line: the first updates also warm up, and read every caption once
    update, evaluation = run.metrics("train")[-1]["step_s"], run.metrics("eval")[-1]["seconds"]
    return Pace(update, evaluation, max(0.0, seconds - made * update - evaluation), made)


def plan(part: Part, pace: Pace, now: float, starts: float) -> Length:
    """The number of updates that ends a part in its time.

    Args:
        part: its first updates are made.
        pace: what they took.
        now: seconds since the start of the demo.
        starts: seconds that are still spent on starts of the run.
    """
    if math.isinf(part.ends):
        return Length(part.most, None)
    seconds = part.ends - now - starts
    updates = pace.made + int(((1 - _SLACK) * seconds - _EVALUATIONS * pace.evaluation) / max(pace.update, 1e-6))
    return Length(min(part.most, max(part.least, updates)), max(1.0, seconds))


def keep_time(story: Story, part: Part, pace: Pace, starts: float) -> Length:
    """Plan the rest of a part and say so."""
    found = plan(part, pace, story.elapsed, starts)
    if found.seconds is None:
        return found
    reason = "all that are wanted" if found.updates == part.most else \
        f"fewer than {part.most}, to end in time" if found.updates > part.least else "the fewest that say something"
    story.console.say(f"         {pace.update:.2f} s for an update, {found.seconds:.0f} s left for this part: {found.updates} updates "
                      f"({reason})")  # fmt: skip
    return found


def record(story: Story, name: str, part: Part, pace: Pace, planned: Length, result: dict[str, Any], began: float) -> None:
    """Keep how long a part took, for the page and for `--json`, and say it if its time was up."""
    story.parts[name] = {
        "updates": result["updates"], "planned": planned.updates, "most": part.most, "update_s": pace.update,
        "seconds": story.elapsed - began, "ends": None if math.isinf(part.ends) else part.ends, "ended": story.elapsed,
        "ending": result["ending"],
    }  # fmt: skip
    if result["ending"] != "complete":
        story.console.say(f"         {result['ending']}: ended cleanly after update {result['updates']} of {planned.updates}, before its "
                          "learning rate was down: the machine became slower than it was in the first updates")
