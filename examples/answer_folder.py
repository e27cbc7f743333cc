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
from polymodal.text.span import AnswerSettings, Found, Reader
from polymodal.text.tasks import QuestionAnswering


def main(source: str, folder: str, question: str, together: int = 8) -> None:
    """Print the best answer of each text, and how sure it is."""
    model = polymodal.load(source)
    if not isinstance(model, QuestionAnswering):
        raise SystemExit(f"{source} was not fine-tuned to answer questions")
    # a threshold lets the score of no answer come with the others; this one never chooses it
    reader = Reader(model, polymodal.tokenizer(source), AnswerSettings(no_answer_threshold=math.inf))
    paths = sorted(path for path in Path(folder).glob("*.txt") if path.read_text(encoding="utf-8").strip())
    found: list[tuple[float, str, Found]] = []
    for begin in range(0, len(paths), together):
        part = paths[begin:begin + together]
        for path, answers in zip(part, reader.answer([(question, path.read_text(encoding="utf-8")) for path in part])):
            none = next(answer.score for answer in answers if not answer.text)
            found.append((answers[0].score - none, path.name, answers[0]))
    for margin, name, best in sorted(found, key=lambda row: -row[0]):
        print(f"{margin:+.2f}  {name}: {best.text} (character {best.start})")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: answer_folder.py RUN FOLDER QUESTION")
    main(*sys.argv[1:])
