"""Real texts that are always at hand: the docstrings of installed packages, as lines of JSON.

    python examples/docstring_summaries.py numpy scipy > pairs.jsonl            # body -> first sentence
    python examples/docstring_summaries.py --texts numpy scipy > texts.jsonl    # whole docstrings, for pretraining
    python examples/docstring_summaries.py --modules 800 numpy scipy > modules.jsonl    # all of a module, of 800 words or more
    python examples/docstring_summaries.py --baseline stdlib                    # ROUGE of copying the body's first sentence
    python examples/docstring_summaries.py --baseline stdlib --blind numpy      # ROUGE of one summary for all, made without reading

A pair is {"text": BODY, "summary": FIRST SENTENCE, "package": NAME}: the first sentence of a docstring sums it up, by
convention (PEP 257), and is taken out of the body. `stdlib` stands for Python's own library. Sources are parsed, never
imported; tests and vendored copies are left out, and so is a pair whose body or summary was printed already. In the text of a whole
module the names of the packages that were asked for are `it`, so that a model that tells them apart has to read.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import re
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

STDLIB = "stdlib"
LEFT_OUT = {"test", "tests", "testing", "idlelib", "lib2to3", "site-packages", "dist-packages", "_vendor", "externals", "pydoc_data"}
FIRST = re.compile(r"(?s)^(.*?[.!?])(?:\s|$)")
WORDS, BODY_WORDS = (4, 40), 20
"""Words of a summary (minimum, maximum), and the minimum of a body."""


def folder(package: str) -> Path:
    """Where the sources of a package are, found without importing it."""
    if package == STDLIB:
        return Path(sysconfig.get_path("stdlib"))
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"there is no installed package called {package!r}")
    return Path(next(iter(spec.submodule_search_locations)))


def modules(root: Path) -> Iterator[list[str]]:
    """The docstrings of each module below a folder: its own, and those of its classes and functions."""
    for path in sorted(root.rglob("*.py")):
        if LEFT_OUT & set(path.relative_to(root).parts):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # other people's escapes
                tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        nodes = (node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)))
        yield [text.strip() for text in map(ast.get_docstring, nodes) if text and text.strip()]


def docstrings(root: Path) -> Iterator[str]:
    """The docstrings of all modules, classes and functions below a folder."""
    for module in modules(root):
        yield from module


def pair(text: str) -> tuple[str, str] | None:
    """(body, first sentence) of a docstring, or None where it has no sentence or too little else."""
    head, _, rest = text.partition("\n\n")
    found = FIRST.match(head)
    if found is None:
        return None
    summary, body = " ".join(found[1].split()), f"{head[found.end():].strip()}\n\n{rest.strip()}".strip()
    return (body, summary) if WORDS[0] <= len(summary.split()) <= WORDS[1] and len(body.split()) >= BODY_WORDS else None


def rows(packages: list[str], texts: bool) -> Iterator[dict[str, str]]:
    """The lines, each text once."""
    seen: set[str] = set()
    for package in packages:
        for text in docstrings(folder(package)):
            found = (text, "") if texts else pair(text)
            if found is None or len(text.split()) < WORDS[0] or seen & {found[0], found[1] or found[0]}:
                continue
            seen |= {found[0], found[1] or found[0]}
            yield {"text": found[0], **({} if texts else {"summary": found[1]}), "package": package}


def long_rows(packages: list[str], words: int) -> Iterator[dict[str, str]]:
    """Whole modules of at least so many words, each once."""
    names = re.compile(rf"(?i)\b({'|'.join(map(re.escape, packages))})\b")
    seen: set[str] = set()
    for package in packages:
        for module in modules(folder(package)):
            text = names.sub("it", "\n\n".join(module))
            if len(text.split()) >= words and text not in seen:
                seen.add(text)
                yield {"text": text, "package": package}


def pairs_of(sources: list[str]) -> list[tuple[str, str]]:
    """Pairs of packages, or of data sets that `polymodal pack --target-field summary` made."""
    import polymodal

    packed = [polymodal.DataSet.open(s) for s in sources if (Path(s) / "index.json").is_file()]
    found = [(d.read(i).text(), d.read(i).target()) for d in packed for i in range(len(d))]
    packages = [s for s in sources if not (Path(s) / "index.json").is_file()]
    return found + [(row["text"], row["summary"]) for row in rows(packages, texts=False)]


def baseline(sources: list[str], blind: str | None = None) -> dict[str, float | str]:
    """The scores of summaries that nobody thought about.

    A summary is the first sentence of the body, or its first paragraph where it has none. With `blind` it is the same for all: that of
    the source `blind` which resembles its others most.
    """
    import polymodal

    found = pairs_of(sources)
    heads = [body.partition("\n\n")[0] for body, _ in found]
    copied = [" ".join((FIRST.match(head) or [head])[0].split()) for head in heads]
    said = {} if blind is None else {"blind": typical([summary for _, summary in pairs_of([blind])])}
    written = [said["blind"]] * len(found) if said else copied
    return {"pairs": len(found), **said, **polymodal.text_scores(written, [summary for _, summary in found])}


def typical(summaries: list[str], most: int = 1000) -> str:
    """The summary whose words have the best F1 with those of the others, on average; of `most` that are evenly spread."""
    some = summaries[::max(1, -(-len(summaries) // most))]
    words = [Counter(re.findall(r"[a-z0-9]+", summary.lower())) for summary in some]
    f1 = [sum(2 * (a & b).total() / max(1, a.total() + b.total()) for b in words) for a in words]
    return some[f1.index(max(f1))]


def main() -> None:
    """Print the lines, or the scores of the baseline."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("packages", nargs="+", help=f"installed packages, {STDLIB}; with --baseline also packed pairs")
    arguments.add_argument("--texts", action="store_true", help="whole docstrings instead of pairs")
    arguments.add_argument("--modules", type=int, metavar="WORDS", help="whole modules of at least this many words instead of pairs")
    arguments.add_argument("--baseline", action="store_true", help="the scores of copying the body's first sentence")
    arguments.add_argument("--blind", metavar="SOURCE", help="with --baseline: of the one summary that is most like the others of a source")
    given = arguments.parse_args()
    if given.baseline:
        sys.stdout.write(json.dumps(baseline(given.packages, given.blind)) + "\n")
        return
    lines = rows(given.packages, given.texts) if given.modules is None else long_rows(given.packages, given.modules)
    for row in lines:
        sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
