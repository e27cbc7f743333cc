"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import processes
import pytest


def pytest_configure() -> None:
    """Tests kill processes and never the machine, so nothing needs to reach the disk: a sync costs as much as a tiny run's update."""
    os.fsync = lambda fd: None


def pytest_sessionfinish() -> None:
    """Nothing that a test has started outlives them."""
    processes.stop()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Sums are added in one order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
