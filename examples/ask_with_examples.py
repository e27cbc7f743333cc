"""Ask a language model questions with choices, behind 0, 1 and 4 solved ones (few-shot), and see what it chose.

    polymodal pack questions.jsonl --kind choice --out QUESTIONS
    python examples/ask_with_examples.py MODEL QUESTIONS

MODEL is a run of GPT, GPT-2 or GPT-3, an export, or a directory of transformers; nothing is trained. The same numbers as
`polymodal evaluate fewshot` gives, with the questions on which more examples changed the answer.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import polymodal

SHOTS = (0, 1, 4)


def main(model: str, questions: str) -> None:
    """Print the accuracy for each number of examples, and what the last number of them changed."""
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "asked.jsonl"
        record = polymodal.evaluate("fewshot", model, questions, shots=SHOTS, predictions=lines)
        asked = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    metrics = record["metrics"]
    for shots in SHOTS:
        right, chance = (metrics[f"{shots}-shot/{name}"] for name in ("accuracy_per_token", "chance"))
        print(f"{shots} examples: {right:.3f} right, guessing reaches {chance:.3f}")
    before, after = ({line["index"]: line for line in asked if line["asked_shots"] == n} for n in (SHOTS[0], SHOTS[-1]))
    for index, line in after.items():
        old, new = before[index]["predictions"]["per_token"], line["predictions"]["per_token"]
        if old != new:
            print(f"question {index}: choice {old} became {new}, right is {line['label']}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: ask_with_examples.py MODEL QUESTIONS")
    main(sys.argv[1], sys.argv[2])
