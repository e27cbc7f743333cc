"""What a run measures: sums and counts, kept on the device until they are asked for, and time."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...shared import dist
from ...shared.system import Step


class Meter:
    """Means over updates, micro-batches and ranks: every sum is divided once, by the whole count.

    Adding never waits for the device. The state is exact, so a resumed run logs what an uninterrupted one does.
    """

    def __init__(self, device: torch.device, chance: bool = False) -> None:
        """Measure on `device`; `chance`: also how often each label occurs (`Term.labels`)."""
        self.device = device
        self._labels: dict[str, Tensor] | None = {} if chance else None
        self._type = torch.float32 if device.type == "mps" else torch.float64
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    def __bool__(self) -> bool:
        """Whether anything was added since the start."""
        return bool(self._sums)

    def put(self, name: str, total: Tensor | float, count: Tensor | float) -> None:
        """Add to the sum and the count of `name`."""
        pair = torch.stack([torch.as_tensor(v).detach().to(self.device, self._type, non_blocking=True) for v in (total, count)])
        old = self._sums.get(name)
        self._sums[name] = pair if old is None else old + pair

    def add(self, step: Step, counts: Mapping[str, int]) -> None:
        """Add what one forward pass returned."""
        for name, term in step.terms.items():
            self._weights[name] = term.weight
            self.put(name, term.total, counts[term.count])
            if self._labels is not None and term.labels is not None:
                found = torch.bincount(term.labels.detach().flatten()[term.labels.flatten() >= 0].long())
                old = self._labels.get(name)
                self._labels[name] = found if old is None else _add(old, found)
        for name, (total, count) in step.metrics.items():
            self.put(name, total, count)

    def merge(self, other: Meter) -> None:
        """Add what another meter has added up (without its labels)."""
        self._weights |= other._weights
        for name, pair in other._sums.items():
            old = self._sums.get(name)
            self._sums[name] = pair if old is None else old + pair

    def means(self) -> dict[str, float]:
        """The mean of everything over all ranks, and `loss`, the weighted sum of the terms. Every rank must call it."""
        names = sorted(self._sums)
        if not names:
            return {}
        totals = dist.all_reduce_sum(torch.stack([self._sums[name] for name in names])).tolist()
        means = {name: total / count if count else 0.0 for name, (total, count) in zip(names, totals)}
        if not self._weights:
            return means
        return {"loss": sum(weight * means[name] for name, weight in self._weights.items())} | means

    def chances(self) -> dict[str, float]:
        """For each term with labels, `{term}_chance`: their entropy in nats over all ranks. Every rank must call it."""
        found: dict[str, float] = {}
        for name in sorted(self._labels or {}):
            mine = (self._labels or {})[name]
            counts = dist.all_reduce_sum(_add(mine, mine.new_zeros(max(dist.first_dims(mine)))))
            share = counts[counts > 0].double().cpu() / float(counts.sum())
            found[f"{name}_chance"] = float(-(share * share.log()).sum())
        return found

    def reset(self) -> None:
        """Start again from nothing."""
        self._sums, self._weights = {}, {}

    def state(self) -> dict[str, Any]:
        """The sums over all ranks as JSON. Every rank must call it."""
        names = sorted(self._sums)
        totals = dist.all_reduce_sum(torch.stack([self._sums[n] for n in names])).tolist() if names else []
        return {"sums": dict(zip(names, totals)), "weights": self._weights}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`: rank 0 takes the sums, the others start from zero."""
        share = 1.0 if dist.rank() == 0 else 0.0
        self._sums = {n: torch.tensor(v, device=self.device, dtype=self._type) * share for n, v in state["sums"].items()}
        self._weights = dict(state["weights"])


def _add(a: Tensor, b: Tensor) -> Tensor:
    """The sum of two counts of different lengths."""
    size = max(len(a), len(b))
    return torch.nn.functional.pad(a, (0, size - len(a))) + torch.nn.functional.pad(b, (0, size - len(b)))


class Clock:
    """Where the time goes. Evaluations and checkpoints are left out of every rate."""

    def __init__(self) -> None:
        self.elapsed = 0.0
        """Seconds of training, over all starts of the run."""
        self._window = self._wait = self._save = 0.0
        self._updates = self._samples = self._tokens = 0
        self._since = 0.0

    def start(self) -> None:
        """Begin to count."""
        self._since = time.perf_counter()

    def _stop(self) -> None:
        passed = time.perf_counter() - self._since
        self._window += passed
        self.elapsed += passed

    @contextmanager
    def paused(self) -> Generator[None]:
        """A block whose time does not count."""
        self._stop()
        yield
        self.start()

    @contextmanager
    def saving(self) -> Generator[None]:
        """A block that saves: its time counts as that only."""
        since = time.perf_counter()
        with self.paused():
            yield
        self._save += time.perf_counter() - since

    @contextmanager
    def waiting(self) -> Generator[None]:
        """A block that waits for data."""
        since = time.perf_counter()
        yield
        self._wait += time.perf_counter() - since

    def update(self, samples: int, tokens: int) -> None:
        """Count one update."""
        self._updates += 1
        self._samples += samples
        self._tokens += tokens

    def rates(self) -> dict[str, float]:
        """Throughput since the last call."""
        with self.paused():
            seconds, updates = max(self._window, 1e-9), max(self._updates, 1)
            rates = {"samples_per_s": self._samples / seconds, "tokens_per_s": self._tokens / seconds, "step_s": seconds / updates,
                     "data_wait_s": self._wait / updates, "save_s": self._save, "elapsed_s": self.elapsed}
            self._window = self._wait = self._save = 0.0
            self._updates = self._samples = self._tokens = 0
        return rates
