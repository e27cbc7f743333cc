"""Summarize a text of any length, and show what the summary was made of.

    python examples/summarize_text.py MODEL article.txt

MODEL is a T5 that was fine-tuned to summarize (a run, an export, or a directory of transformers), or a GPT-2.
"""

from __future__ import annotations

import sys
from pathlib import Path

import polymodal


def main(source: str, path: str) -> None:
    """Print the summary of each piece of the text, and the summary of the whole."""
    model, tokenizer = polymodal.load(source), polymodal.tokenizer(source)
    (found,) = polymodal.summaries(model, [Path(path).read_text(encoding="utf-8")], tokenizer)
    for number, pieces in enumerate(found.rounds, 1):
        for piece in pieces:
            print(f"round {number}, {len(piece.text.split())} words: {piece.summary}")
    print(found.text)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: summarize_text.py MODEL FILE")
    main(sys.argv[1], sys.argv[2])
