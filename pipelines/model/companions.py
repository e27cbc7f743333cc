"""The networks that a system reads and does not train (`Companion`): opened from where a recipe says they lie."""

from __future__ import annotations

from pathlib import Path

from ...shared.family import Family
from ...shared.system import Companion
from ..run.recipe import Recipe
from .frontdoor import opened


def open_companions(recipe: Recipe, entry: Family) -> dict[str, Companion]:
    """The companions that a recipe of a family names."""
    return opened(recipe.companions, entry.task(recipe.task), recipe.system)


def absolute(recipe: Recipe) -> dict[str, str]:
    """Where the companions of a recipe lie, so that its run can be continued from any directory; a hub id stays one."""
    return {name: str(Path(source).absolute()) if Path(source).exists() else source for name, source in recipe.companions.items()}
