"""What all tests share."""

from __future__ import annotations

import processes


def pytest_sessionfinish() -> None:
    """Nothing that a test has started outlives them."""
    processes.stop()
