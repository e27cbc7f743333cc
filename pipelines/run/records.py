"""The records of the library's recipes: what their docstrings say, entry by entry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ...shared.errors import UserError
from .recipe import recipes, record


@dataclass(frozen=True)
class RecipeInfo:
    """One recipe of `polymodal recipes`."""

    name: str
    system: str
    task: str | None
    """What it fine-tunes for; None where it pretrains."""
    size: str
    about: str
    """The first line of its record."""
    record: dict[str, str]
    """The entries of its record by their names (paper, target, measured, cost, command ...)."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def paragraphs(text: str) -> list[str]:
    """The first line of a record, then one line for each `Key: value` entry."""
    found: list[str] = []
    for line in text.splitlines():
        key = line.partition(":")[0]
        if found and line.strip() and not (key.isalpha() and key[0].isupper() and line.startswith(f"{key}: ")):
            found[-1] += f" {line.strip()}"
        elif line.strip():
            found.append(line.strip())
    return found


def known_recipes(system: str | None = None, task: str | None = None) -> list[RecipeInfo]:
    """Every recipe of the library, by system.

    Args:
        system: only those of this one.
        task: only those that fine-tune for this one; `pretrain` for those that pretrain.

    Raises:
        UserError: no recipe is of that system or task.
    """
    found = list(_all())
    for name, value, of in (("--system", system, [r.system for r in found]), ("--task", task, [r.task or "pretrain" for r in found])):
        if value is not None and value not in of:
            raise UserError(f"{name} is {value!r}, of which there is no recipe: expected one of {', '.join(dict.fromkeys(of))}")
    return [r for r in found if system in (None, r.system) and task in (None, r.task or "pretrain")]


def _all() -> Iterator[RecipeInfo]:
    made = {name: function() for name, function in recipes().items()}
    order = list(dict.fromkeys(r.system for r in made.values()))
    for name, settings in sorted(made.items(), key=lambda item: order.index(item[1].system)):
        about, *rest = paragraphs(record(name))
        entries = {key.lower(): value for key, value in (line.split(": ", 1) for line in rest)}
        yield RecipeInfo(name, settings.system, settings.task or None, settings.size, about, entries)
