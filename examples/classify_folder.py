"""Name the pictures of a folder by classes of your choice, without training: zero-shot classification with CLIP.

    python examples/classify_folder.py MODEL FOLDER cat dog "fire engine"

MODEL is a run of CLIP, an export, or a directory of transformers or open_clip.
"""

from __future__ import annotations

import sys
from pathlib import Path

import polymodal

PROMPTS = ("a photo of a {}.", "a drawing of a {}.")
"""The text features of the prompts are averaged; more of them help."""
ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


def main(source: str, folder: str, labels: list[str]) -> None:
    """Print the best label of each picture that can be read."""
    pictures = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in ENDINGS)
    found = polymodal.classify(polymodal.load(source), pictures, labels=labels, templates=PROMPTS, top=1, on_bad="skip")
    for path, best in zip(pictures, found):
        if best:
            print(f"{path.name}: {best[0][0]} ({best[0][1]:.2f})")
        else:
            print(f"{path.name}: cannot be read", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit("usage: classify_folder.py MODEL FOLDER LABEL LABEL...")
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
