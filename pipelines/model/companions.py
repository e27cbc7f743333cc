"""The networks that a system reads and does not train (`Companion`): opened from where a recipe says they lie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ...shared.family import Context, Family
from ...shared.system import Companion
from ..run.recipe import Recipe
from .frontdoor import opened


def open_companions(recipe: Recipe, entry: Family) -> dict[str, Companion]:
    """The companions that a recipe of a family names."""
    return opened(recipe.companions, entry.task(recipe.task), recipe.system)


def with_companions(context: Context, recipe: Recipe, entry: Family) -> Context:
    """What the data tells, with the companions of a recipe; where nothing else has a tokenizer, theirs: a student reads as its teacher."""
    companions = open_companions(recipe, entry)
    found = context.tokenizer or next((c.tokenizer for c in companions.values() if c.tokenizer is not None), None)
    return replace(context, companions=companions, tokenizer=found)


def absolute(recipe: Recipe) -> dict[str, str]:
    """Where the companions of a recipe lie, so that its run can be continued from any directory; a hub id stays one."""
    return {name: str(Path(source).absolute()) if Path(source).exists() else source for name, source in recipe.companions.items()}
