"""A piece of work that other processes can import."""

from __future__ import annotations

import os
import time
from pathlib import Path

from polymodal.shared.errors import UserError


def piece(folder, number, bad=()):
    """Write a file of the number, or fail; the first bad one is the slowest."""
    if number in bad:
        time.sleep(0.3 if number == min(bad) else 0)
        raise UserError(f"piece {number} is bad")
    Path(folder, str(number)).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
