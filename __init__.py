"""polymodal: pretrain, evaluate, convert and use every classic text, vision and vision-language system.

The front door. Everything is imported on first use, so `import polymodal` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .pipelines.frontdoor import generate, load, save, system, systems, tokenizer
    from .pipelines.summarize import summarize

__all__ = ["__version__", "generate", "load", "save", "summarize", "system", "systems", "tokenizer"]


def __getattr__(name: str) -> Any:
    """Import `load`, `save`, `tokenizer`, `generate`, `summarize`, `system` and `systems` when they are first used."""
    if name in __all__:
        where = ".pipelines.summarize" if name == "summarize" else ".pipelines.frontdoor"
        return getattr(importlib.import_module(where, __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
