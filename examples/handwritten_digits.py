"""Handwritten digits as folders of pictures for `pack`: the 1797 of scikit-learn's package, 8 x 8 pixels each.

    python examples/handwritten_digits.py DIGITS --labelled 100

writes DIGITS/all (1500 pictures), DIGITS/labelled (100 of them) and DIGITS/held (the last 297), each with a folder for each class. They are
the test part of UCI's "Optical Recognition of Handwritten Digits" (Alpaydin, Kaynak 1998). The package's file is read, nothing of it is
imported.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import sys
from pathlib import Path

import numpy as np
from PIL import Image

HELD = 297


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels, uint8 [N, 8, 8], and classes [N]."""
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        sys.exit("error: these pictures lie in scikit-learn, which is not installed: pip install scikit-learn")
    with gzip.open(Path(found.origin).parent / "datasets/data/digits.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",")
    return np.clip(table[:, :64] * 16, 0, 255).astype(np.uint8).reshape(-1, 8, 8), table[:, 64].astype(int)


def main() -> None:
    """Write the folders."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--labelled", type=int, default=100, help="pictures in `labelled`")
    given = arguments.parse_args()
    pixels, classes = digits()
    train = len(classes) - HELD
    if not 1 <= given.labelled <= train:
        sys.exit(f"error: --labelled is {given.labelled}, expected 1 to {train}")
    chosen = np.linspace(0, train - 1, given.labelled).round().astype(int)
    for part, numbers in (("all", range(train)), ("labelled", chosen), ("held", range(train, len(classes)))):
        for number in numbers:
            path = given.out / part / str(classes[number]) / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[number]).save(path)


if __name__ == "__main__":
    main()
