"""The page: one file, nothing executable, every colour from the theme; the report of a run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from polymodal.pipelines.inspection import page
from polymodal.pipelines.inspection.report import report
from polymodal.pipelines.run.recipe import recipe
from polymodal.shared.errors import UserError


def make_run(directory: Path, losses: list[float]) -> Path:
    directory.mkdir()
    (directory / "recipe.yaml").write_text(recipe("gpt2-tiny").to_yaml())
    (directory / "system.json").write_text("{}")
    common = {"samples": 1, "epoch": 0.1, "bad": 0, "lm": 1.0, "seconds": 1.0}
    with (directory / "metrics.jsonl").open("w") as file:
        for i, loss in enumerate(losses):
            row = {"split": "train", "update": 10 * (i + 1), "loss": loss, "perplexity": 2.0**loss, "lr": 1e-3, "tokens_per_s": 1000.0 + i}
            file.write(json.dumps(common | row | {"samples_per_s": 5.0, "grad_norm": 1.0}) + "\n")
        file.write(json.dumps(common | {"split": "eval", "update": 10 * len(losses), "loss": losses[-1] + 0.5, "accuracy": 0.25}) + "\n")
        file.write('{"split": "train", "update": 99')  # a line cut short by a crash
    sample = {"update": 10 * len(losses), "rows": [["prompt", "<script>alert(1)</script> & more"], ["continuation", "world"]]}
    (directory / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    return directory


def test_a_report_shows_the_runs_numbers_and_escapes_their_text(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", [5.0, 4.0, 3.25]), make_run(tmp_path / "b", [5.0, 4.5])]
    result = report(runs, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert result["runs"] == {str(runs[0]): 30, str(runs[1]): 20}
    assert "3.250" in text and "held-out accuracy" in text and "0.250" in text
    assert "&lt;script&gt;alert(1)" in text and "<script" not in text
    assert "Radford" in text, "the recipe's record belongs to the report"


def test_a_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    report([make_run(tmp_path / "a", [5.0, 4.0])], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    addresses = re.findall(r"""(?:src|href)=["']([^"']*)""", text)
    assert addresses and all(a.startswith(("#", "data:")) for a in addresses), addresses
    assert "@import" not in text and not re.search(r"url\((?!#)", text)


def test_curves_take_the_themes_colours_and_keep_their_ids_apart() -> None:
    first = page.curves("Loss", {"a": ([1, 2], [3.0, 2.0])}, levels={"chance": 2.5})
    second = page.curves("Rate", {"a": ([1, 2], [3.0, 2.0])})
    assert "var(--c0)" in first and "#0a0b0" not in first
    ids = re.findall(r'\bid="([^"]+)"', first)
    assert ids and not set(ids) & set(re.findall(r'\bid="([^"]+)"', second))
    used = re.findall(r"url\(#([^)]+)\)", first) + re.findall(r'href="#([^"]+)"', first)
    assert used and set(used) <= set(ids)


def test_pictures_are_embedded_as_they_are() -> None:
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    source = page.picture_source(image)
    import base64
    import io

    from PIL import Image

    back = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,")))))
    assert (back == image).all()


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        report([tmp_path], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
