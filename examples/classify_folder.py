"""Sort the pictures of a folder by class names of your choice, with no training: zero-shot classification with CLIP.

    python examples/classify_folder.py MODEL FOLDER cat dog "fire engine"

MODEL is a run of CLIP, an export, or a directory of transformers or open_clip.
"""

from __future__ import annotations

import sys
from pathlib import Path

import polymodal
from PIL import Image
from polymodal.multimodal.zero_shot import ZeroShotClassifier, templates
from polymodal.shared.sample import to_rgb


def main(source: str, folder: str, labels: list[str]) -> None:
    """Print the best label of each picture."""
    model = polymodal.load(source)
    prompts = templates(["a photo of a {}.", "a drawing of a {}."])  # the text features of several prompts are averaged
    classifier = ZeroShotClassifier(model, polymodal.tokenizer(source), labels, prompts)
    paths = sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
    for path in paths:
        with Image.open(path) as picture:
            scores = classifier.probabilities([to_rgb(picture)])[0]
        print(f"{path.name}: {labels[int(scores.argmax())]} ({float(scores.max()):.2f})")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit("usage: classify_folder.py MODEL FOLDER LABEL LABEL...")
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
