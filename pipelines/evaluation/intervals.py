"""95 % confidence intervals for what an evaluation measures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Z = 1.959963984540054
"""The normal distribution's quantile of 97.5 %."""
RESAMPLES = 1000


@dataclass(frozen=True)
class Interval:
    """Where the true value lies with a confidence of 95 %, and how that was found."""

    low: float
    high: float
    method: str


def wilson(hits: int, count: int) -> Interval:
    """Wilson's interval of a share (Wilson, 1927): also right for few samples and for shares near 0 and 1."""
    assert 0 <= hits <= count and count
    share, z = hits / count, Z * Z / count
    middle, half = (share + z / 2) / (1 + z), Z * math.sqrt(share * (1 - share) / count + z / (4 * count)) / (1 + z)
    return Interval(max(0.0, middle - half), min(1.0, middle + half), "Wilson")


def of_ratio(totals: Sequence[float], counts: Sequence[float], unit: str) -> Interval | None:
    """The interval of sum(totals) / sum(counts), where units (documents, batches) were drawn and not single targets.

    Normal approximation of a ratio estimator (Cochran, Sampling Techniques, 1977, section 6.3); None for fewer than two units.
    """
    y, n = np.asarray(totals, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if len(y) < 2 or not n.sum():
        return None
    ratio = y.sum() / n.sum()
    error = math.sqrt(float(((y - ratio * n) ** 2).sum()) * len(y) / (len(y) - 1)) / float(n.sum())
    return Interval(float(ratio) - Z * error, float(ratio) + Z * error, f"normal approximation over {len(y)} {unit}")


def transformed(interval: Interval | None, function: Callable[[float], float]) -> Interval | None:
    """The interval of an increasing function of the value."""
    return None if interval is None else Interval(function(interval.low), function(interval.high), interval.method)


def bootstrap(measure: Callable[[np.ndarray], float], count: int, seed: int = 0) -> Interval | None:
    """The percentile bootstrap (Efron, 1979): `measure` of 1000 draws of sample numbers, with replacement; None for fewer than two."""
    return bootstraps(lambda chosen: {"": measure(chosen)}, count, seed).get("")


def bootstraps(measures: Callable[[np.ndarray], Mapping[str, float]], count: int, seed: int = 0) -> dict[str, Interval]:
    """`bootstrap` of several measures by name; one that is nan or not there in some draw has no interval."""
    if count < 2:
        return {}
    rng = np.random.Generator(np.random.Philox(key=seed))
    found = [measures(rng.integers(count, size=count)) for _ in range(RESAMPLES)]
    drawn = {name: [values.get(name, math.nan) for values in found] for name in dict.fromkeys(n for values in found for n in values)}
    limits = {name: np.percentile(values, (2.5, 97.5)) for name, values in drawn.items() if not np.isnan(values).any()}
    method = f"bootstrap of {count} samples, {RESAMPLES} times"
    return {name: Interval(float(low), float(high), method) for name, (low, high) in limits.items()}
