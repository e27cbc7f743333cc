"""Pictures whose one half has a colour, for tests of networks that read pictures with words; and a tower that reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polymodal
import torch
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 230), "yellow": (230, 220, 40)}
PLACES = {"left": np.s_[:, :16], "right": np.s_[:, 16:], "top": np.s_[:16], "bottom": np.s_[16:]}


def draw_halves(folder: Path, count: int = 48) -> list[tuple[str, str, str]]:
    """Pictures of 32 x 32 in a new folder: the file, the colour and the place of each."""
    rng, told = np.random.default_rng(0), []
    folder.mkdir()
    for n in range(count):
        colour, place = list(COLOURS)[n % 4], list(PLACES)[n // 4 % 4]
        pixels = rng.integers(0, 40, (32, 32, 3))
        pixels[PLACES[place]] = COLOURS[colour]
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{n}.png")
        told.append((f"{n}.png", colour, place))
    return told


def save_tower(folder: Path) -> None:
    """A MAE with random weights whose patches are regions."""
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32,
             "patch_size": 8}
    polymodal.save(polymodal.system("mae", size="tiny", **small).net, folder)
