"""Learning-rate schedules: pure functions of the update number, so a resumed run needs no state.

Every schedule is a factor of the peak learning rate. Update numbers count from 0; during warmup update u
has factor (u + 1) / warmup, so that the first update moves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ...shared.errors import UserError

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


def factor(settings: ScheduleSettings, update: int, total: int) -> float:
    """The factor of the peak learning rate for `update` (from 0) of `total` updates."""
    if update < settings.warmup:
        return (update + 1) / settings.warmup
    return _SHAPES[settings.name](settings, update, max(settings.until or total, settings.warmup + 1))


def _progress(s: ScheduleSettings, update: int, total: int) -> float:
    """How much of the time after warmup is over: 0 at its first update, 1 from update `total` on."""
    return min(1.0, (update - s.warmup) / (total - s.warmup))


def _constant(s: ScheduleSettings, update: int, total: int) -> float:
    return 1.0


def _polynomial(s: ScheduleSettings, update: int, total: int) -> float:
    return s.final + (1 - s.final) * (1 - _progress(s, update, total)) ** s.power


def _linear(s: ScheduleSettings, update: int, total: int) -> float:
    return s.final + (1 - s.final) * (1 - _progress(s, update, total))


def _cosine(s: ScheduleSettings, update: int, total: int) -> float:
    return s.final + (1 - s.final) * 0.5 * (1 + math.cos(math.pi * _progress(s, update, total)))


def _inverse_sqrt(s: ScheduleSettings, update: int, total: int) -> float:
    return math.sqrt(max(s.warmup, 1) / (update + 1))


def _wsd(s: ScheduleSettings, update: int, total: int) -> float:
    """Warmup, stable, decay: constant until the last `decay` updates, then linear to `final`."""
    left = min(total - update, s.decay)
    return s.final + (1 - s.final) * max(left, 0) / s.decay


_SHAPES: dict[Name, Callable[[ScheduleSettings, int, int], float]] = {
    "constant": _constant, "linear": _linear, "cosine": _cosine, "inverse_sqrt": _inverse_sqrt, "wsd": _wsd, "polynomial": _polynomial,
}
