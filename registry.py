"""Finds the families: every module of the family folders that ends with `FAMILIES`."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache
from types import MappingProxyType

from .shared.errors import UserError
from .shared.system import Family

FOLDERS = ("text", "vision", "seq2seq", "multimodal")


@cache
def families() -> MappingProxyType[str, Family]:
    """Every registered family by name, in the order of folder, year and name."""
    found: dict[str, Family] = {}
    for folder in FOLDERS:
        package = importlib.import_module(f".{folder}", __package__)
        entries: list[Family] = []
        for info in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{package.__name__}.{info.name}")
            entries.extend(getattr(module, "FAMILIES", ()))
        for entry in sorted(entries, key=lambda f: (f.year, f.name)):
            assert entry.name not in found, f"two families are called {entry.name}"
            found[entry.name] = entry
    return MappingProxyType(found)


def folder_of(entry: Family) -> str:
    """The folder a family lives in: text, vision, seq2seq or multimodal."""
    return entry.config.__module__.split(".")[-2]


def file_of(entry: Family) -> str:
    """The path of a family's file, from the root of the package."""
    return "/".join(entry.create.__module__.split(".")[1:]) + ".py"


def family(name: str) -> Family:
    """The family called `name`, or an error that suggests the nearest names."""
    known = families()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(known)}"
        raise UserError(f"there is no system {name!r}; {hint}")
    return known[name]
