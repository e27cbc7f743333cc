"""Data for the benchmarks that read files: real text that every Python brings along, and drawn pictures."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def documents(count: int) -> list[str]:
    """English documents: Python's own help texts, cut at their blank lines into pieces of a few paragraphs.

    They repeat where more are asked for, each time joined differently.
    """
    from pydoc_data.topics import topics

    paragraphs = [p.strip() for text in topics.values() for p in text.split("\n\n") if len(p.strip()) > 40]
    rng = np.random.default_rng(0)
    found: list[str] = []
    while len(found) < count:
        start = int(rng.integers(len(paragraphs)))
        found.append("\n\n".join(paragraphs[start : start + int(rng.integers(1, 9))]))
    return found


def pictures(count: int, size: int) -> list[bytes]:
    """JPEG files, `size` pixels square: smooth coloured noise, about as large as photographs are."""
    rng = np.random.default_rng(0)
    found: list[bytes] = []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (max(2, size // 8), max(2, size // 8), 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


def write_shards(directory: Path, field: str, items: list[bytes], samples: int, per_shard: int) -> None:
    """WebDataset shards of `samples` samples with one field each, the items over and over."""
    from webdataset.writer import TarWriter

    directory.mkdir(parents=True)
    for shard, first in enumerate(range(0, samples, per_shard)):
        with TarWriter(str(directory / f"{shard:06d}.tar"), encoder=False, mtime=0) as writer:
            for i in range(first, min(first + per_shard, samples)):
                writer.write({"__key__": f"{i:09d}", field: items[i % len(items)]})
