"""Answer a question from the texts of a folder, with a network that was fine-tuned to answer by a span of a text.

    python examples/answer_folder.py RUN FOLDER "Who flew to Paris?"

RUN is a run of a recipe such as bert-span, an export, or a directory of transformers with a network for question answering. The texts
(*.txt) stand in the order of their answers, the surest first. What is sure is compared with no answer: the score of the best span less
that of none, which is the same scale for every text.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import polymodal


def main(source: str, folder: str, question: str) -> None:
    """Print the best answer of each text, and how sure it is."""
    paths = sorted(path for path in Path(folder).glob("*.txt") if path.read_text(encoding="utf-8").strip())
    # a threshold lets the score of no answer come with the others; this one never chooses it
    answers = polymodal.answer(polymodal.load(source), question, [path.read_text(encoding="utf-8") for path in paths],
                               no_answer_threshold=math.inf)
    found = [(row[0].score - next(one.score for one in row if not one.text), path.name, row[0]) for path, row in zip(paths, answers)]
    for margin, name, best in sorted(found, key=lambda row: -row[0]):
        print(f"{margin:+.2f}  {name}: {best.text} (character {best.start})")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: answer_folder.py RUN FOLDER QUESTION")
    main(*sys.argv[1:])
