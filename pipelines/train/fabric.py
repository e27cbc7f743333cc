"""Lightning Fabric, imported without what it does not need here.

To compare one version number, Fabric imports the whole of torchmetrics, and that imports transformers: seconds of
every start. While Fabric is imported, torchmetrics is therefore a module that only knows its version.
"""

from __future__ import annotations

import importlib.metadata
import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def _only_version(package: str) -> Generator[None]:
    if package in sys.modules:
        yield
        return
    stand_in = ModuleType(package)
    try:
        stand_in.__version__ = importlib.metadata.version(package)  # type: ignore[attr-defined]
    except importlib.metadata.PackageNotFoundError:
        yield
        return
    sys.modules[package] = stand_in
    try:
        yield
    finally:
        del sys.modules[package]


with _only_version("torchmetrics"):
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy

# the preflight says the precision; Fabric would say it again, on its own
logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)

__all__ = ["DDPStrategy", "Fabric", "ModelParallelStrategy"]
