"""Tutorials whose numbers are measured: the commands of a page are run, and what they print stands below them.

A page of `docs/tutorials/` has blocks of `sh` and `python`. Where a block of `text` follows one, it is what its commands print to stdout.
`make tutorials` runs the pages and writes these blocks; `tests/test_tutorials.py` runs them and compares:

- words, signs and whole numbers must be the same; a number with a point may be off by `TOLERANCE` of it and by 1 in its last digit;
- times (`3.2 s`) and speeds (`100 samples/s`) are not compared;
- after `<!-- output: within 5 % -->`, by that much instead, and whole numbers, too;
- after `<!-- output: differs -->` something must be printed: texts that a network writes, and the hashes of compressed pictures.

The lines of a page run in order in one folder, which holds `examples/`. `polymodal` and `python` begin in a process that has
imported torch already. A line that ends with `&` runs until the page's end.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import processes

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs/tutorials").glob("*.md"))
TOLERANCE = 0.02
"""Relative: what AVX2 and AVX-512 round differently, amplified by some hundred updates."""
LIMIT = 900.0
"""Seconds for one line."""

BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```\n(?:\n(?:<!-- output: (differs|within (\d+) %) -->\n)?```text\n(.*?)^```\n)?",
                   flags=re.S | re.M)
TIME = re.compile(r"\d+(?:\.\d+)?(?= s\b| [a-z]+/s\b)")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


@dataclass(frozen=True)
class Block:
    """Commands, and what the page says that they print."""

    language: str
    code: str
    said: str | None
    tolerance: float | None
    """None where the output may differ."""
    loose: bool
    """Whole numbers may be off, too."""
    span: tuple[int, int]
    """Where the output stands in the page."""


def blocks(page: str) -> list[Block]:
    """The blocks of a page, in order."""
    return [Block(m[1], m[2], m[5], None if m[3] == "differs" else int(m[4]) / 100 if m[4] else TOLERANCE, m[4] is not None, m.span(5))
            for m in BLOCK.finditer(page)]


def difference(block: Block, found: str) -> str | None:
    """What is wrong with an output, or None."""
    assert block.said is not None
    if block.tolerance is None:
        return None if found.strip() else "nothing was printed"
    for here, there in zip(*(TIME.sub("TIME", said).splitlines() for said in (block.said, found)), strict=False):
        if re.sub(r"\s+", " ", NUMBER.sub("#", here)).strip() != re.sub(r"\s+", " ", NUMBER.sub("#", there)).strip():
            return f"the page says {here!r}, the command {there!r}"
        for a, b in zip(NUMBER.findall(here), NUMBER.findall(there), strict=True):
            if not near(a, b, block.tolerance, block.loose):
                return f"{a} on the page is {b} now, more than {block.tolerance:.0%} away: {there!r}"
    count = len(block.said.splitlines()), len(found.splitlines())
    return None if count[0] == count[1] else f"the page has {count[0]} lines, the command printed {count[1]}"


def near(a: str, b: str, tolerance: float, loose: bool) -> bool:
    """Whether a number on the page is the one that was printed."""
    if not loose and not ({".", "e"} & set(a + b)):
        return a == b
    last = max(10.0 ** (int(exponent or 0) - len(digits.partition(".")[2])) for digits, _, exponent in (x.partition("e") for x in (a, b)))
    return abs(float(a) - float(b)) <= tolerance * max(abs(float(a)), abs(float(b))) + last * 1.001


def lines(block: Block) -> Iterator[str]:
    """The command lines of a block of `sh`."""
    for line in block.code.replace("\\\n", " ").splitlines():
        if line.strip() and not line.startswith("#"):
            yield line


class Walk:
    """A page that is run in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.children: list[processes.Child] = []
        shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))

    def __enter__(self) -> Walk:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.children:
            child.kill()

    def block(self, block: Block) -> str:
        """What a block prints to stdout."""
        if block.language == "python":
            return self._told(processes.python(block.code, cwd=self.folder))
        return "".join(self.line(line) for line in lines(block))

    def line(self, line: str) -> str:
        """What one line prints; of one that may fail, what it says on stderr, too."""
        wrong = re.fullmatch(r"(polymodal .*) 2>&1 \|\| true", line)
        if wrong is not None:
            child = processes.polymodal(*shlex.split(wrong[1])[1:], cwd=self.folder)
            assert child.wait(LIMIT) in (0, 2), child.err
            return child.out + child.err
        found = re.fullmatch(r"(.*?)(?: (\||>|&)(?: (.*))?)?", line)
        assert found is not None
        head, sign, rest = found.groups()
        child = self._child(shlex.split(head, comments=True))
        if child is None:
            return self._shell(line, "")
        if sign == "&":
            self.children.append(child)
            return ""
        said = self._told(child)
        return self._shell(f"cat > {rest}" if sign == ">" else rest, said) if sign else said

    def _child(self, words: list[str]) -> processes.Child | None:
        if words[0] == "polymodal":
            return processes.polymodal(*words[1:], cwd=self.folder)
        if words[0] == "python" and words[1] != "-m":
            return processes.python((self.folder / words[1]).read_text(), *words[2:], cwd=self.folder)
        return None

    def _told(self, child: processes.Child) -> str:
        return child.check(LIMIT).out

    def _shell(self, line: str, given: str) -> str:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(["bash", "-e", "-c", line], cwd=self.folder, env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
                              input=given, timeout=LIMIT, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def clean(text: str) -> str:
    """An output as it stands on a page."""
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def walk(page: Path, folder: Path) -> Iterator[tuple[Block, str]]:
    """The blocks of a page with what they print."""
    with Walk(folder) as going:
        for block in blocks(page.read_text(encoding="utf-8")):
            yield block, clean(going.block(block))


def record(page: Path) -> None:
    """Run a page and write what its commands print into it; prose may be written meanwhile."""
    made: list[tuple[Block, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        for block, said in walk(page, Path(folder)):
            made.append((block, said))
            print(f"--- {time.monotonic() - began:.0f} s  {block.code.strip()}\n{said}", end="", flush=True)
    text = page.read_text(encoding="utf-8")
    now = blocks(text)
    assert [b.code for b in now] == [b.code for b, _ in made], f"the commands of {page.name} were changed while they ran"
    for block, (_, said) in zip(reversed(now), reversed(made), strict=True):
        if block.said is not None and said != block.said:
            print(f"{page.name}: {difference(block, said) or 'within the tolerance'}")
            text = text[: block.span[0]] + said + text[block.span[1] :]
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    for path in [p for p in PAGES if not sys.argv[1:] or p.stem in sys.argv[1:]]:
        record(path)
    processes.stop()
