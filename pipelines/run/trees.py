"""What a system carries from one update to the next, in a checkpoint: nested lists, tuples and dicts, split into JSON and tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor


def flatten(value: Any, name: str) -> tuple[Any, dict[str, Tensor]]:
    """Split nested lists, tuples and dicts into a JSON skeleton and the tensors that hang in it."""
    tensors: dict[str, Tensor] = {}
    names: dict[int, str] = {}

    def walk(node: Any, place: str) -> Any:
        if isinstance(node, Tensor):
            place = names.setdefault(id(node), place)  # a tensor that hangs in several places is stored once
            tensors[place] = node
            return {"tensor": place, "shape": list(node.shape), "dtype": str(node.dtype).removeprefix("torch.")}
        if isinstance(node, (list, tuple)):
            entries = cast("list[Any]", node)
            return {"tuple" if isinstance(node, tuple) else "list": [walk(v, f"{place}/{i}") for i, v in enumerate(entries)]}
        if isinstance(node, dict):
            return {"dict": {k: walk(v, f"{place}/{k}") for k, v in cast("dict[str, Any]", node).items()}}
        assert node is None or isinstance(node, (bool, int, float, str)), f"a {type(node).__name__} cannot be stored"
        return {"value": node}

    return walk(value, name), tensors


def unflatten(skeleton: Any) -> tuple[Any, dict[str, Tensor]]:
    """The inverse of `flatten`: the value with empty tensors, and those tensors by name, to be loaded."""
    tensors: dict[str, Tensor] = {}

    def build(node: Any) -> Any:
        if "tensor" in node:
            return tensors.setdefault(node["tensor"], torch.zeros(node["shape"], dtype=getattr(torch, node["dtype"])))
        if "tuple" in node:
            return tuple(build(v) for v in node["tuple"])
        if "list" in node:
            return [build(v) for v in node["list"]]
        if "dict" in node:
            return {k: build(v) for k, v in node["dict"].items()}
        return node["value"]

    return build(skeleton), tensors


def join_rows(values: Sequence[Any]) -> Any:
    """One tree of the rows of several trees of the same form, in their order; None among them is left out.

    Tensors are joined on dimension 0, lists with one number or text for each row end to end; lists, tuples and dicts that hold
    tensors are joined entry by entry. Any other value must be the same in all.
    """
    there = [value for value in values if value is not None]
    if len(there) < 2:
        return there[0] if there else None
    first = there[0]
    assert all(type(value) is type(first) for value in there), f"trees of different forms: {[type(v).__name__ for v in there]}"
    if isinstance(first, Tensor):
        return torch.cat(cast("list[Tensor]", there))
    if isinstance(first, dict):
        return {key: join_rows([value[key] for value in there]) for key in cast("dict[str, Any]", first)}
    if isinstance(first, (list, tuple)):
        if all(isinstance(entry, (bool, int, float, str)) for value in there for entry in value):
            return type(first)(entry for value in there for entry in value)
        joined = [join_rows(entries) for entries in zip(*there, strict=True)]
        return tuple(joined) if isinstance(first, tuple) else joined
    assert all(value == first for value in there), f"{there} belong to no row and differ"
    return first
