"""What tests of packing share: sources to pack, and what a packed folder holds."""

import csv
import hashlib
import json
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
from PIL import Image
from polymodal.pipelines.data.dataset import DataSet
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.shared.errors import UserError


def picture(path, size=(20, 16), seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def contents(folder):
    """Every file of a folder with its hash, side files and index included."""
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def texts(folder):
    data = DataSet.open(folder)
    return [data.read(i).text() for i in range(len(data))]


def settings_of(**options):
    """Settings from the names of their fields, those of reading among them."""
    reading = {f.name: options.pop(f.name) for f in fields(Reading) if f.name in options}
    return PackSettings(Reading(**reading), **options)


def refused(sources, out, message, **options):
    with pytest.raises(UserError, match=message) as caught:
        pack(sources, out, settings_of(**options))
    assert "\n" not in str(caught.value)
    assert not out.exists() or not any(out.iterdir())


def rows_of(folder):
    data = DataSet.open(folder)
    return [data.read(i) for i in range(len(data))], data.index.schema.get("classes")


def write_table(path, rows):
    """The same rows as jsonl, csv, tsv or parquet."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    elif path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def polymodal(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "polymodal", *map(str, arguments)], capture_output=True, text=True, check=False, **options)
