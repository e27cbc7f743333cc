"""Summarize every document of a folder, one line of JSON each.

    python examples/summarize_folder.py MODEL FOLDER summaries.jsonl

MODEL is a T5, BART or MASS that was fine-tuned to summarize (a run, an export, or a directory of transformers), or a GPT-2. Documents are
the files of texts in FOLDER, of any length. The output file must not exist: nothing is overwritten.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import polymodal


def main(source: str, folder: str, out: str) -> None:
    """Write a line {"source", "text", "summary"} for each document."""
    if Path(out).exists():
        raise polymodal.UserError(f"{out} exists: give a new file")
    found = polymodal.documents([folder], warn=lambda line: print(line, file=sys.stderr))
    model, tokenizer = polymodal.load(source), polymodal.tokenizer(source)
    summaries = polymodal.summarize(model, [d.text for d in found], tokenizer=tokenizer)
    with Path(out).open("x", encoding="utf-8") as file:
        for document, summary in zip(found, summaries):
            file.write(json.dumps({"source": document.source, "text": document.text, "summary": summary}, ensure_ascii=False) + "\n")
    print(f"{len(found)} summaries: {out}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: summarize_folder.py MODEL FOLDER OUT.jsonl")
    try:
        main(*sys.argv[1:])
    except polymodal.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
