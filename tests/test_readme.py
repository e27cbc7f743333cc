"""The README says what is true: its table comes from the registry, its commands run, its links exist."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import processes
import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def test_the_table_of_systems_is_generated() -> None:
    from polymodal.pipelines.model.listing import readme_table

    shown = re.search(r"<!-- systems:.*?-->\n(.*?)<!-- /systems -->", README, flags=re.S)
    assert shown is not None
    assert shown[1].strip() == readme_table().strip(), "run `polymodal systems --markdown` and put the table into README.md"


def test_links_and_named_files_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", README) + re.findall(r"`((?:shared|pipelines|text|docs|tests)/[\w/.]+)`", README):
        assert (ROOT / target).exists(), target


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(blocks("console")), flags=re.M):
        assert re.search(rf"^{target}:", makefile, flags=re.M), target


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tours_run(tmp_path: Path) -> None:
    """Every command and every line of Python of the README, in order, in an empty folder that holds the texts they name."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    for name in ("README.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    lines: list[str] = []
    tours = re.findall(r"```(sh|python)\n(.*?)```", README, flags=re.S)
    assert len(tours) == 3
    for language, text in tours:
        if language == "python":
            processes.python(text, cwd=tmp_path).check()
            continue
        for line in text.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["polymodal"] and lines:  # the first line is the console script itself
                processes.polymodal(*words[1:], cwd=tmp_path).check()
            elif words:
                done = subprocess.run(words, cwd=tmp_path, env=environment, timeout=300, capture_output=True, text=True)
                assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
            lines += [line] * bool(words)
    assert len(lines) > 8 and lines[0].startswith("polymodal")
    assert (tmp_path / "work/report.html").stat().st_size > 10_000
    assert (tmp_path / "work/ddp/metrics.jsonl").exists()
