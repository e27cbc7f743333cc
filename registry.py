"""Finds the families: every module of the family folders that ends with `FAMILIES`."""

from __future__ import annotations

import difflib
import importlib
from functools import cache
from types import MappingProxyType, ModuleType

from .shared.errors import UserError
from .shared.family import Family, families_in

FOLDERS = ("text", "vision", "seq2seq", "multimodal")


@cache
def families() -> MappingProxyType[str, Family]:
    """Every registered family by name, in the order of folder, year and name."""
    return MappingProxyType({name: entry for name, (entry, _) in _found().items()})


@cache
def _found() -> dict[str, tuple[Family, ModuleType]]:
    """The families with the modules that hold them."""
    found: dict[str, tuple[Family, ModuleType]] = {}
    for folder in FOLDERS:
        package = importlib.import_module(f".{folder}", __package__)
        for entry, module in sorted(families_in(package), key=lambda pair: (pair[0].card.year, pair[0].name)):
            assert entry.name not in found, f"two families are called {entry.name}"
            found[entry.name] = entry, module
    return found


def module_of(entry: Family) -> ModuleType:
    """The module of a registered family."""
    return _found()[entry.name][1]


def folder_of(entry: Family) -> str:
    """The folder a family lives in: text, vision, seq2seq or multimodal."""
    return module_of(entry).__name__.split(".")[-2]


def file_of(entry: Family) -> str:
    """The path of a family's file, from the root of the package."""
    return "/".join(module_of(entry).__name__.split(".")[1:]) + ".py"


def family(name: str) -> Family:
    """The family called `name`, or an error that suggests the nearest names."""
    known = families()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(known)}"
        raise UserError(f"there is no system {name!r}; {hint}")
    return known[name]
