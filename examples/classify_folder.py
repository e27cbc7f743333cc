"""Name the pictures of a folder by classes of your choice, without training: zero-shot classification with CLIP.

    python examples/classify_folder.py MODEL FOLDER cat dog "fire engine"

MODEL is a run of CLIP, an export, or a directory of transformers or open_clip.
"""

from __future__ import annotations

import sys
from pathlib import Path

import polymodal
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.inference.pictures import classifier, classify, pictures

PROMPTS = ("a photo of a {}.", "a drawing of a {}.")
"""The text features of the prompts are averaged; more of them help."""


def main(source: str, folder: str, labels: list[str]) -> None:
    """Print the best label of each picture; one that cannot be read gets a warning."""
    names = classifier(polymodal.load(source), source, labels, PROMPTS)
    for found in classify(names, pictures([folder]), top=1, batch_size=32, console=Console()).found:
        label, score = found.predictions[0]
        print(f"{Path(found.image).name}: {label} ({score:.2f})")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit("usage: classify_folder.py MODEL FOLDER LABEL LABEL...")
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
