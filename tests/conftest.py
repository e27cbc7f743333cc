"""What all tests share."""

from __future__ import annotations

import os

import processes


def pytest_configure() -> None:
    """Tests kill processes and never the machine, so nothing needs to reach the disk: a sync costs as much as a tiny run's update."""
    os.fsync = lambda fd: None


def pytest_sessionfinish() -> None:
    """Nothing that a test has started outlives them."""
    processes.stop()
