"""What becomes of the keys of other libraries' JSON files: tables that the readers obey and the documentation prints.

A key is honoured, has no effect on what is computed here, or is taken with some values only; with others, and where no table
has it, the file is refused. Nothing is dropped in silence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import UserError, raise_problems


@dataclass(frozen=True)
class Key:
    """What becomes of one key."""

    fate: str
    """"honoured", "no effect", or "only" some values."""
    note: str
    """In a few words, for the documentation: what it does here, or why it does nothing."""
    values: tuple[Any, ...] = ()
    """The values that are taken, of "only"."""


def honoured(note: str = "") -> Key:
    """The key's value counts."""
    return Key("honoured", note)


def no_effect(note: str) -> Key:
    """The key's value cannot change what is computed here, for the reason in `note`."""
    return Key("no effect", note)


def only(*values: Any, note: str = "") -> Key:
    """The key's value changes what is computed; only these are known here, others are refused."""
    return Key("only", note, values)


Keys = Mapping[str, Key]


def check_keys(record: Mapping[str, Any], known: Keys, what: str) -> None:
    """Refuse what no table has and values that are not taken, every problem at once."""
    raise_problems(key_problems(record, known), what)


def key_problems(record: Mapping[str, Any], known: Keys) -> Iterator[str]:
    """What is wrong with a record, by the table `known`; an unknown key that is null says nothing."""
    for name, value in record.items():
        key = known.get(name)
        if key is None and value is not None:
            yield f"key {name} = {shown(value)} is unknown and may change the results; remove it if it does not"
        elif key is not None and key.fate == "only" and not any(same(value, v) for v in key.values):
            yield f"{name} = {shown(value)} is not supported, only {' or '.join(map(repr, key.values))}"


def same(value: Any, other: Any) -> bool:
    """Equal, and true is no 1 (but 1.0 is)."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def shown(value: Any) -> str:
    """A value in a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        value = json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value
