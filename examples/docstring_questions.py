"""Questions about real texts: what a docstring in numpydoc's form says of a parameter, as lines of JSON for `pack --kind span`.

    python examples/docstring_questions.py scipy sklearn pandas > questions.jsonl
    python examples/docstring_questions.py --baseline numpy     # how often a question is about the first parameter

The context is the section "Parameters" of a docstring, with its line breaks taken out. Two questions are asked about each parameter:

    What is axis?               the first sentence of its description
    Which type does axis have?  what stands behind its colon

Sections with three parameters or more and at most 350 characters are used, each once. Sources are parsed, never imported.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

from docstring_summaries import FIRST, docstrings, folder

SECTION = re.compile(r"^Parameters\n-{3,}\n(.*?)(?=\n\S[^\n]*\n-{3,}(?:\n|$)|\Z)", re.MULTILINE | re.DOTALL)
ITEM = re.compile(r"^([A-Za-z_]\w*) : (\S[^\n]*)\n((?:(?:[ \t]+[^\n]*)?\n?)+)", re.MULTILINE)
LEAST, LONGEST, ANSWER = 3, 350, 25
"""Parameters of a section, its characters, words of an answer."""


def items(text: str) -> list[tuple[str, str, str]]:
    """(name, type, description) of the parameters of a docstring."""
    found = SECTION.search(text)
    return [] if found is None else [(name, of.strip(), " ".join(about.split())) for name, of, about in ITEM.findall(found[1] + "\n")]


def questions(text: str) -> Iterator[dict[str, Any]]:
    """The questions about a docstring."""
    parameters = items(text)
    context = " ".join(f"{name} : {of} {about}" for name, of, about in parameters)
    if len(parameters) < LEAST or len(context) > LONGEST or len({name for name, _, _ in parameters}) < len(parameters):
        return
    at = 0
    for number, (name, of, about) in enumerate(parameters):
        of_at = at + len(f"{name} : ")
        about_at = of_at + len(of) + 1
        sentence = FIRST.match(about)
        asked = [(f"Which type does {name} have?", of, of_at)]
        if sentence is not None:
            asked.append((f"What is {name}?", sentence[1], about_at))
        for question, answer, start in asked:
            if len(answer.split()) <= ANSWER:
                answers = {"text": [answer], "answer_start": [start]}
                yield {"question": question, "context": context, "answers": answers, "parameter": number}
        at = about_at + len(about) + 1


def rows(packages: list[str]) -> Iterator[dict[str, Any]]:
    """The questions about packages, each context once."""
    seen: set[str] = set()
    for package in packages:
        for text in docstrings(folder(package)):
            found = list(questions(text))
            if found and found[0]["context"] not in seen:
                seen.add(found[0]["context"])
                yield from found


def main() -> None:
    """Print the lines, or how often who always answers about the first parameter would be right."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("packages", nargs="+", help="installed packages")
    arguments.add_argument("--baseline", action="store_true", help="the share of questions about the first parameter")
    given = arguments.parse_args()
    if given.baseline:
        found = [row["parameter"] == 0 for row in rows(given.packages)]
        sys.stdout.write(json.dumps({"questions": len(found), "about the first parameter": sum(found) / len(found)}) + "\n")
        return
    for row in rows(given.packages):
        sys.stdout.write(json.dumps({key: row[key] for key in ("question", "context", "answers")}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
