"""polymodal: pretrain, evaluate, convert and use every classic text, vision and vision-language system.

The front door. Everything is imported on first use, so `import polymodal` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .pipelines.data.own_loop.stream import stream
    from .pipelines.inference.embed import embed
    from .pipelines.inference.search import search
    from .pipelines.inference.summarize import summarize
    from .pipelines.inference.translate import translate
    from .pipelines.model.frontdoor import load, save, system, tokenizer
    from .pipelines.model.listing import systems
    from .pipelines.regions.captions import caption
    from .seq2seq.generation.generate import generate

_WHERE = {
    "caption": ".pipelines.regions.captions", "embed": ".pipelines.inference.embed",
    "generate": ".seq2seq.generation.generate", "load": ".pipelines.model.frontdoor", "save": ".pipelines.model.frontdoor",
    "search": ".pipelines.inference.search", "stream": ".pipelines.data.own_loop.stream",
    "summarize": ".pipelines.inference.summarize", "system": ".pipelines.model.frontdoor", "systems": ".pipelines.model.listing",
    "tokenizer": ".pipelines.model.frontdoor", "translate": ".pipelines.inference.translate",
}
__all__ = ["__version__", "caption", "embed", "generate", "load", "save", "search", "stream", "summarize", "system", "systems", "tokenizer",
           "translate"]


def __getattr__(name: str) -> Any:
    """Import what the front door offers when it is first used."""
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
