"""Learning-rate schedules: pure functions of the update number, so a resumed run needs no state.

Every schedule is a factor of the peak learning rate. Update numbers count from 0; during warmup update u
has factor (u + 1) / warmup, so that the first update moves.

Where the batch grows, what counts is how many samples an update stands behind, as GPT-3's schedule goes by tokens: the numbers of updates
in the settings say where something begins or ends, and between two of them the rate moves with the samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ...shared.errors import UserError
from ..base.ramp import Ramp

Name = Literal["constant", "linear", "cosine", "inverse_sqrt", "wsd", "polynomial"]
_FALLING: tuple[Name, ...] = ("cosine", "linear", "polynomial")


@dataclass(frozen=True)
class ScheduleSettings:
    """What the recipe says about the learning rate over time."""

    name: Name = "cosine"
    warmup: int = 0
    """Updates of linear warmup."""
    final: float = 0.0
    """Factor at the last update: 0.1 ends at a tenth of the peak (cosine, linear, polynomial, wsd)."""
    until: int | None = None
    """cosine, linear, polynomial: the update at which `final` is reached, and kept from there; null: the end of the run."""
    decay: int = 0
    """wsd: updates of the decay at the end."""
    power: float = 1.0
    """polynomial: the exponent."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        wrong = [f"{name} is {value}, expected {rule}" for name, value, rule, fine in (
            ("warmup", self.warmup, "0 or more updates", self.warmup >= 0),
            ("final", self.final, "a factor from 0 to 1", 0 <= self.final <= 1),
            ("decay", self.decay, "0 or more updates", self.decay >= 0),
            ("until", self.until, "null or an update after the warmup", self.until is None or self.until > self.warmup),
            ("power", self.power, "a positive number", self.power > 0),
        ) if not fine]
        if self.name == "wsd" and self.decay == 0:
            wrong.append("wsd needs decay: the number of updates at the end over which it falls")
        if self.until is not None and self.name not in _FALLING:
            wrong.append(f"until is {self.until}, and {self.name} does not fall to `final` at an update: it is for {', '.join(_FALLING)}")
        if wrong:
            raise UserError("; ".join(wrong))


EVEN = Ramp(1)
"""All updates count the same."""


def factor(settings: ScheduleSettings, update: int, total: int, batches: Ramp = EVEN) -> float:
    """The factor of the peak learning rate for `update` (from 0) of `total` updates, which have `batches`."""
    samples = batches.before
    if update < settings.warmup:
        return samples(update + 1) / samples(settings.warmup)
    return _SHAPES[settings.name](settings, update, max(settings.until or total, settings.warmup + 1), samples)


Samples = Callable[[int], int]
"""The samples before an update."""


def _progress(s: ScheduleSettings, update: int, total: int, samples: Samples) -> float:
    """How much of the time after warmup is over: 0 at its first update, 1 from update `total` on."""
    begin = samples(s.warmup)
    return min(1.0, (samples(update) - begin) / (samples(total) - begin))


def _constant(s: ScheduleSettings, update: int, total: int, samples: Samples) -> float:
    return 1.0


def _polynomial(s: ScheduleSettings, update: int, total: int, samples: Samples) -> float:
    return s.final + (1 - s.final) * (1 - _progress(s, update, total, samples)) ** s.power


def _linear(s: ScheduleSettings, update: int, total: int, samples: Samples) -> float:
    return s.final + (1 - s.final) * (1 - _progress(s, update, total, samples))


def _cosine(s: ScheduleSettings, update: int, total: int, samples: Samples) -> float:
    return s.final + (1 - s.final) * 0.5 * (1 + math.cos(math.pi * _progress(s, update, total, samples)))


def _inverse_sqrt(s: ScheduleSettings, update: int, total: int, samples: Samples) -> float:
    return math.sqrt(samples(max(s.warmup, 1)) / samples(update + 1))


def _wsd(s: ScheduleSettings, update: int, total: int, samples: Samples) -> float:
    """Warmup, stable, decay: constant until the last `decay` updates, then linear to `final`."""
    decay = samples(total) - samples(total - s.decay)
    left = min(samples(total) - samples(update), decay)
    return s.final + (1 - s.final) * max(left, 0) / decay


_SHAPES: dict[Name, Callable[[ScheduleSettings, int, int, Samples], float]] = {
    "constant": _constant, "linear": _linear, "cosine": _cosine, "inverse_sqrt": _inverse_sqrt, "wsd": _wsd, "polynomial": _polynomial,
}
