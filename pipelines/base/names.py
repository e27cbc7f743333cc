"""Class names as the command line takes them."""

from __future__ import annotations

from pathlib import Path

from ...shared.errors import UserError


def read_names(text: str, option: str = "--labels") -> list[str]:
    """`cat,dog`, or the lines of a file of that name; `option` says in messages where `text` comes from."""
    path = Path(text)
    if path.is_file():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
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
