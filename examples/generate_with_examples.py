"""Let a language model go on as examples show (few-shot), and see what it reads.

    python examples/generate_with_examples.py MODEL english_french.csv "mint =>"

The table has the columns prompt and answer, such as "sea otter =>" and "loutre de mer". MODEL is a run of GPT, GPT-2 or GPT-3, an export,
or a directory of transformers.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import polymodal


def main(source: str, table: Path, prompt: str) -> None:
    """Print the continuation without examples, with one, and with all."""
    model, tokenizer = polymodal.load(source), polymodal.tokenizer(source)
    with table.open(encoding="utf-8", newline="") as file:
        examples = [(row["prompt"], row["answer"]) for row in csv.DictReader(file)]
    for shots in sorted({0, 1, len(examples)}):
        text = polymodal.generate(model, prompt, tokenizer=tokenizer, max_new_tokens=12, examples=examples[:shots])
        print(f"{shots} examples: {text!r}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit('usage: generate_with_examples.py MODEL TABLE.csv "PROMPT"')
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
