"""The example that writes folders of handwritten digits for `pack`."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "handwritten_digits.py"


def test_digits_become_folders_of_pictures(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location("handwritten_digits", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    pixels, classes = example.digits()
    assert pixels.shape == (1797, 8, 8) and np.bincount(classes).min() > 170
    kept = [*range(5), *range(1795, 1797)]
    monkeypatch.setattr(example, "digits", lambda: (pixels[kept], classes[kept]))
    monkeypatch.setattr(example, "HELD", 2)
    monkeypatch.setattr(sys, "argv", ["digits", str(tmp_path), "--labelled", "2"])
    example.main()
    found = {part.name: sorted(p.relative_to(part).as_posix() for p in part.rglob("*.png")) for part in tmp_path.iterdir()}
    assert found == {"all": [f"{n}/{n:04d}.png" for n in range(5)], "labelled": ["0/0000.png", "4/0004.png"],
                     "held": sorted(f"{classes[n]}/{i:04d}.png" for i, n in ((5, 1795), (6, 1796)))}  # fmt: skip
    assert (np.asarray(Image.open(tmp_path / "all/3/0003.png")) == pixels[3]).all()
    monkeypatch.setattr(sys, "argv", ["digits", str(tmp_path), "--labelled", "9"])
    with pytest.raises(SystemExit, match="--labelled is 9, expected 1 to 5"):
        example.main()
