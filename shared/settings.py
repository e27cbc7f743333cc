"""Settings: frozen dataclasses built from plain mappings (YAML, JSON, `--set`), every problem at once.

A settings class states its fields, types and defaults; checks that need several fields go in its
`__post_init__` as `UserError`. Nothing is evaluated or imported by name.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, TypeVar, cast

from .errors import UserError, raise_problems

T = TypeVar("T")


def build_settings(cls: type[T], mapping: Mapping[str, Any], what: str) -> T:
    """Build the dataclass `cls` from `mapping`, or raise one `UserError` that lists every problem.

    Values are checked against the annotations and converted where nothing is lost: 1 -> 1.0, 2.0 -> 2,
    "1e-4" -> 0.0001 (YAML reads 1e-4 as a string), a list -> a tuple, a mapping -> a nested dataclass.

    Args:
        cls: a dataclass; fields may be bool, int, float, str, Literal, unions, lists, tuples, mappings or dataclasses.
        mapping: field name -> value; fields left out keep their defaults. Of a field that is a dataclass, a mapping changes what it names
            and leaves the rest of the field's default as it is.
        what: what is being read, such as ``recipe bert-tiny``; it starts the message.
    """
    instance, problems = check_settings(cls, mapping)
    raise_problems(problems, what)
    assert instance is not None
    return instance


def check_settings(cls: type[T], mapping: Mapping[str, Any], path: str = "") -> tuple[T | None, list[str]]:
    """Build `cls` from `mapping` if that is possible, and list what is wrong with it.

    Args:
        cls: a dataclass.
        mapping: field name -> value.
        path: dotted place of `mapping` in the whole, for the messages.

    Returns:
        The instance (None where there are problems) and the problems.
    """
    assert is_dataclass(cls)
    known = {f.name: f for f in fields(cls) if f.init}
    hints = typing.get_type_hints(cls)
    problems: list[str] = []
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        place = f"{path}{key}"
        if key not in known:
            problems.append(unknown_key(key, known, path))
            continue
        if isinstance(value, Mapping):
            value = _over_default(known[key], cast("Mapping[str, Any]", value))
        try:
            values[key] = _convert(value, hints[key], place)
        except _Problems as found:
            problems.extend(found.problems)
    missing = [name for name, f in known.items() if name not in mapping and not _has_default(f)]
    problems.extend(f"{path}{name} is missing (expected {_spell(hints[name])})" for name in missing)
    if problems:
        return None, problems
    try:
        return cast("T", cls(**values)), []
    except UserError as error:
        return None, [f"{path.rstrip('.')}: {error}" if path else str(error)]


def unknown_key(key: object, known: Mapping[str, Any] | Sequence[str], path: str = "") -> str:
    """The sentence that refuses `key` and suggests the nearest of the `known` ones."""
    names = list(known)
    near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)
    hint = f"did you mean {path}{near[0]}?" if near else f"known here: {', '.join(names) or 'nothing'}"
    return f"unknown key {path}{key}; {hint}"


class _Problems(Exception):
    """Findings on their way up; never reaches the user."""

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems


def _has_default(f: Field[Any]) -> bool:
    return f.default is not MISSING or f.default_factory is not MISSING


def _over_default(f: Field[Any], value: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a mapping says over the field's own default, where that is a dataclass: what it does not name stays as it is."""
    default = f.default_factory() if f.default_factory is not MISSING else f.default
    if not is_dataclass(default) or isinstance(default, type):
        return value
    own = {g.name: g for g in fields(default) if g.init}
    if not set(value) <= set(own):  # of another alternative of a union, or misspelt, which is told elsewhere
        return value
    return {**{name: getattr(default, name) for name in own}, **value}


def _spell(hint: Any) -> str:
    """How a type is called in a message."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " | ".join(str(a) for a in arguments)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_spell(a) for a in arguments)
    if hint is type(None):
        return "null"
    if isinstance(origin, type) and issubclass(origin, (list, tuple, Sequence)):
        return "a list of " + ", ".join(_spell(a) for a in arguments if a is not Ellipsis)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a mapping"
    if is_dataclass(hint):
        return f"a mapping ({', '.join(f.name for f in fields(hint))})"
    return getattr(hint, "__name__", str(hint))


def _wrong(value: Any, hint: Any, place: str) -> _Problems:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return _Problems(f"{place} is {shown}, expected {_spell(hint)}")


def _convert(value: Any, hint: Any, place: str) -> Any:
    """`value` as the annotation `hint` wants it; raises `_Problems`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is typing.Literal:
        # `==` alone would take True for 1
        if any(value == a and type(value) is type(a) for a in arguments):
            return value
        if type(value) is int and str(value) in arguments:  # YAML reads `precision: 32` as a number
            return str(value)
        near = difflib.get_close_matches(str(value), [str(a) for a in arguments], n=1)
        raise _Problems(*(p + (f" (did you mean {near[0]}?)" if near else "") for p in _wrong(value, hint, place).problems))
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, hint, arguments, place)
    if hint is type(None):
        if value is None:
            return None
        raise _wrong(value, hint, place)
    if is_dataclass(hint):
        if isinstance(value, cast("type[Any]", hint)):
            return value
        if not isinstance(value, Mapping):
            raise _wrong(value, hint, place)
        instance, problems = check_settings(cast("type[Any]", hint), cast("Mapping[str, Any]", value), f"{place}.")
        if problems:
            raise _Problems(*problems)
        return instance
    if isinstance(origin, type):
        return _convert_container(value, hint, origin, arguments, place)
    return _convert_scalar(value, hint, place)


def _convert_union(value: Any, hint: Any, arguments: tuple[Any, ...], place: str) -> Any:
    for argument in arguments:  # an exact type first, so that int | float keeps 3 an int
        if isinstance(argument, type) and type(value) is argument:
            return value
    nested, most = tuple[str, ...](), -1
    for argument in arguments:
        try:
            return _convert(value, argument, place)
        except _Problems as found:
            if is_dataclass(argument) and isinstance(value, Mapping):
                fitting = len(set(cast("Mapping[str, Any]", value)) & {f.name for f in fields(argument)})
                if fitting > most:  # the alternative that the value is most likely meant for
                    nested, most = found.problems, fitting
    raise _Problems(*nested) if nested else _wrong(value, hint, place)


def _convert_container(value: Any, hint: Any, origin: type, arguments: tuple[Any, ...], place: str) -> Any:
    if issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong(value, hint, place)
        items = cast("Mapping[str, Any]", value)
        inner = arguments[1] if len(arguments) == 2 else Any
        return {str(k): _convert(v, inner, f"{place}.{k}") for k, v in items.items()}
    if not isinstance(value, (list, tuple)):
        raise _wrong(value, hint, place)
    entries = cast("Sequence[Any]", value)
    if issubclass(origin, tuple) and arguments and arguments[-1] is not Ellipsis:
        if len(entries) != len(arguments):
            raise _Problems(f"{place} has {len(entries)} entries, expected {len(arguments)} ({_spell(hint)})")
        return tuple(_convert(v, a, f"{place}[{i}]") for i, (v, a) in enumerate(zip(entries, arguments)))
    inner = arguments[0] if arguments else Any
    converted = [_convert(v, inner, f"{place}[{i}]") for i, v in enumerate(entries)]
    return tuple(converted) if issubclass(origin, tuple) or not issubclass(origin, list) else converted


def _convert_scalar(value: Any, hint: Any, place: str) -> Any:
    if hint is bool or isinstance(value, bool):
        if hint is bool and isinstance(value, bool):
            return value
        raise _wrong(value, hint, place)
    if hint is int or hint is float:
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                raise _wrong(value, hint, place) from None
        if isinstance(value, (int, float)) and (hint is float or float(value).is_integer()):
            return hint(value)
        raise _wrong(value, hint, place)
    if isinstance(hint, type) and isinstance(value, hint):
        return value
    raise _wrong(value, hint, place)
