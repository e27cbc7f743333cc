"""Values as the command line takes them: class names, sizes, mixtures of data sets, settings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...shared.errors import UserError
from .files import lines_of


def read_names(text: str, option: str = "--labels") -> list[str]:
    """`cat,dog`, or the lines of a file of that name; `option` says in messages where `text` comes from."""
    path = Path(text)
    if path.is_file():
        try:
            lines = lines_of(path.read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError:
            raise UserError(f"{option} {text}: the file is not UTF-8 text; expected one class name a line") from None
    elif path.suffix == ".txt" or "/" in text:
        raise UserError(f"{option} {text}: there is no such file; expected a file with one name a line, or names such as cat,dog")
    else:
        lines = text.split(",")
    names = [name.strip() for name in lines if name.strip()]
    if not names:
        raise UserError(f"{option} {text!r} names no class; expected cat,dog or a file with one name a line")
    return names


def parse_size(text: str, option: str) -> int:
    """Bytes of a size such as 256M, 80G or 1.5GiB: binary units, no unit means bytes; `option` says in messages where `text` comes from."""
    number, unit = text.upper().removesuffix("IB").removesuffix("B"), 1
    if number[-1:] in ("K", "M", "G", "T"):
        number, unit = number[:-1], 1024 ** ("KMGT".index(number[-1]) + 1)
    try:
        return int(float(number) * unit)
    except (ValueError, OverflowError):
        raise UserError(f"{option} {text!r} is not a size: expected bytes, or a number such as 256M or 80G") from None


def parse_duration(text: str, option: str) -> float:
    """Seconds of a time such as 90, 30m, 2h, 1h30m or 1.5d; `option` says in messages where `text` comes from."""
    found = re.fullmatch(r"(?:(?P<d>[\d.]+)d)?(?:(?P<h>[\d.]+)h)?(?:(?P<m>[\d.]+)m)?(?:(?P<s>[\d.]+)s?)?", text.strip().lower())
    parts = {unit: number for unit, number in found.groupdict().items() if number} if found else {}
    if not parts or not all(_is_number(number) for number in parts.values()):
        raise UserError(f"{option} {text!r} is not a time: expected seconds, or a number such as 30m, 2h or 1h30m")
    return sum(float(number) * {"d": 86400, "h": 3600, "m": 60, "s": 1}[unit] for unit, number in parts.items())


def duration(seconds: float) -> str:
    """Seconds for people: in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def parse_speeds(text: str | None) -> tuple[float, ...]:
    """Numbers from 0 to 1, such as `0.1,0.5,0.8`, each once; none of None."""
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(_is_number(part) and 0 <= float(part) <= 1 for part in parts):
        raise UserError(f"--speed {text!r}: expected numbers from 0 to 1, such as 0.1,0.5,0.8")
    return tuple(dict.fromkeys(float(part) for part in parts))


def parse_mixture(data: Sequence[str]) -> str | list[tuple[str, float]]:
    """One data set, or a mixture of DIR=WEIGHT (weight 1 where none is given)."""
    parts: list[tuple[str, float]] = []
    for text in data:
        name, equals, weight = text.rpartition("=")
        if not equals or Path(text).exists() or ("://" in text and not _is_number(weight)):  # a query string has equal signs, too
            name, weight = text, "1"
        try:
            parts.append((name, float(weight)))
        except ValueError:
            raise UserError(f"--data {text}: expected DIR or DIR=WEIGHT with a number") from None
    return parts[0][0] if len(parts) == 1 else parts


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def parse_settings(texts: Sequence[str], option: str = "--set") -> dict[str, Any]:
    """NAME=VALUE each, values read as YAML."""
    import yaml

    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UserError(f"{option} {text}: expected NAME=VALUE")
        found[name] = yaml.safe_load(value)
    return found
