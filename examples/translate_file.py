"""Translate a file line by line.

    python examples/translate_file.py MODEL old.txt new.txt kjv web    # a MASS with these languages
    python examples/translate_file.py MODEL old.txt new.txt            # a T5 or BART that was fine-tuned on pairs

MODEL is a run, an export, or a directory of transformers. The output has one line for each line of the input; it must not exist.
"""

from __future__ import annotations

import sys
from pathlib import Path

import polymodal


def main(source: str, path: str, out: str, source_language: str = "", target_language: str = "") -> None:
    """Write the translation of each line."""
    if Path(out).exists():
        raise polymodal.UserError(f"{out} exists: give a new file")
    lines = [d.text for d in polymodal.documents([path], lines=True)]
    model, tokenizer = polymodal.load(source), polymodal.tokenizer(source)
    found = polymodal.translate(model, lines, tokenizer=tokenizer, source_language=source_language, target_language=target_language)
    with Path(out).open("x", encoding="utf-8") as file:
        file.writelines(" ".join(text.split()) + "\n" for text in found)
    print(f"{len(found)} lines: {out}")


if __name__ == "__main__":
    if len(sys.argv) not in (4, 6):
        sys.exit("usage: translate_file.py MODEL FILE OUT [SOURCE_LANGUAGE TARGET_LANGUAGE]")
    try:
        main(*sys.argv[1:])
    except polymodal.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
