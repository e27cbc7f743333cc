"""Where the time of a run goes."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager


class Clock:
    """Measures training and waiting for data. Evaluations and checkpoints are left out of every rate."""

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
