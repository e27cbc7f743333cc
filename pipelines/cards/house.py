"""The picture of the house in CONTRIBUTING: folders and rooms by floors, read off the docstrings at their doors."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- house: written by `make docs` -->\n", "<!-- end of house -->\n"


def doors() -> dict[str, str]:
    """Docstring of each room's `__init__`: room -> text in one line."""
    found = sorted((ROOT / "pipelines").glob("*/__init__.py"))
    return {p.parent.name: " ".join((ast.get_docstring(ast.parse(p.read_text(encoding="utf-8"))) or "").split()) for p in found}


def allowed(door: str) -> set[str]:
    """The rooms that a room may import, as its docstring says; `tests/test_layout.py` proves that it says so."""
    told = re.search(r"May import: ([a-z, ]+)\.", door)
    return set(told[1].split(", ")) if told else set()


def floors(rooms: dict[str, set[str]]) -> list[list[str]]:
    """Rooms by floors, the lowest first: a room stands one floor above the highest that it imports."""
    built: list[list[str]] = []
    while left := sorted(set(rooms) - {room for floor in built for room in floor}):
        below = {room for floor in built for room in floor}
        floor = [room for room in left if rooms[room] <= below]
        assert floor, f"rooms import each other in a circle: {', '.join(left)}"
        built.append(floor)
    return built


def picture() -> str:
    """The diagram as a Markdown block: the top floor first, each room with the first sentence of its docstring."""
    told = doors()
    built = floors({room: allowed(door) for room, door in told.items()})
    width = max(map(len, told))
    lines: list[str] = []
    for number, floor in reversed([*enumerate(built)]):
        for room in floor:
            sentence = re.split(r"(?<=\.) (?=[A-Z`])", told[room])[0]
            start = f"{number:>5}  {room:<{width}}  " if room == floor[0] else f"       {room:<{width}}  "
            lines += textwrap.wrap(sentence, 120, initial_indent=start, subsequent_indent=" " * len(start))
    return "```text\nfloor  room of pipelines/\n" + "\n".join(lines) + "\n```\n"


def with_picture(text: str) -> str:
    """The text of CONTRIBUTING with today's picture between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{picture()}{END}{after}"
