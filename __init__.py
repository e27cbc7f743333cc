"""polymodal: pretrain, evaluate, convert and use every classic text, vision and vision-language system.

The front door. Everything is imported on first use, so `import polymodal` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .pipelines.base.inputs import documents
    from .pipelines.cards.mask_figure import draw_mask
    from .pipelines.data.dataset import DataSet
    from .pipelines.data.held_out import batches
    from .pipelines.data.own_loop.stream import stream
    from .pipelines.evaluation.frontdoor import evaluate
    from .pipelines.evaluation.scores import text_scores
    from .pipelines.inference.ask import answer, classify, tag
    from .pipelines.inference.embed import embed
    from .pipelines.inference.generated import generate_file
    from .pipelines.inference.search import search
    from .pipelines.inference.summarize import summaries, summarize
    from .pipelines.inference.translate import translate
    from .pipelines.inference.vectors import open_vectors
    from .pipelines.model.frontdoor import load, save, system, tokenizer
    from .pipelines.model.listing import systems
    from .pipelines.regions.captions import caption
    from .pipelines.run.directory import open_run
    from .seq2seq.generation.generate import generate
    from .shared.errors import UserError

_WHERE = {
    "DataSet": ".pipelines.data.dataset", "UserError": ".shared.errors", "answer": ".pipelines.inference.ask",
    "batches": ".pipelines.data.held_out", "caption": ".pipelines.regions.captions", "classify": ".pipelines.inference.ask",
    "documents": ".pipelines.base.inputs", "draw_mask": ".pipelines.cards.mask_figure", "embed": ".pipelines.inference.embed",
    "evaluate": ".pipelines.evaluation.frontdoor", "generate": ".seq2seq.generation.generate",
    "generate_file": ".pipelines.inference.generated", "load": ".pipelines.model.frontdoor", "open_run": ".pipelines.run.directory",
    "open_vectors": ".pipelines.inference.vectors", "save": ".pipelines.model.frontdoor", "search": ".pipelines.inference.search",
    "stream": ".pipelines.data.own_loop.stream", "summaries": ".pipelines.inference.summarize",
    "summarize": ".pipelines.inference.summarize", "system": ".pipelines.model.frontdoor", "systems": ".pipelines.model.listing",
    "tag": ".pipelines.inference.ask", "text_scores": ".pipelines.evaluation.scores", "tokenizer": ".pipelines.model.frontdoor",
    "translate": ".pipelines.inference.translate",
}
__all__ = [
    "DataSet", "UserError", "__version__", "answer", "batches", "caption", "classify", "documents", "draw_mask", "embed", "evaluate",
    "generate", "generate_file", "load", "open_run", "open_vectors", "save", "search", "stream", "summaries", "summarize", "system",
    "systems", "tag", "text_scores", "tokenizer", "translate",
]


def __getattr__(name: str) -> Any:
    """Import what the front door offers when it is first used."""
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
