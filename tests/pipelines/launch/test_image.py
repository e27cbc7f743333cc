"""The Dockerfile, without Docker: what it copies is there and enough, and what it installs exists. `make lint` has its linter."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from itertools import pairwise
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def instructions() -> list[tuple[str, list[str]]]:
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    return [(name, rest.split() if name == "ENTRYPOINT" else shlex.split(rest))
            for name, _, rest in (line.partition(" ") for line in text.splitlines() if line.strip())]


def copied() -> list[str]:
    """What comes from the clone."""
    return [source for name, words in instructions() if name == "COPY" and not words[0].startswith("--") for source in words[:-1]]


def context() -> list[Path]:
    """The tracked files that `docker build` sees: `*` in .dockerignore, then exceptions, then what no exception brings back."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    let, kept_out = ([r.removeprefix("!") for r in rules[1:] if r.startswith("!") == wanted] for wanted in (True, False))
    assert all(rule.startswith("**/") for rule in kept_out), "the order of rules does not matter"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, text=True, capture_output=True, check=True).stdout.splitlines()
    kept_out = [rule.removeprefix("**/") for rule in kept_out]
    return [path for path in map(Path, tracked) if path.parts[0] in let and not any(path.match(rule) for rule in kept_out)]


def test_what_is_copied_is_there_and_nothing_else_is_sent():
    files = context()
    sources = copied()
    assert len(sources) == len(set(sources))
    for source in sources:
        assert any(path.parts[0] == source for path in files), f"{source} is not in the clone, or .dockerignore keeps it out"
    assert {path.parts[0] for path in files} == set(sources), "what is sent is copied"


def test_what_is_installed_exists():
    found = instructions()
    (base,) = [words[0].partition("=")[2] for name, words in found if name == "ARG" and words[0].startswith("PYTHON=")]
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(base)
    assert [words[0] for name, words in found if name == "FROM"] == ["python:${PYTHON}-slim"] * 2
    (line,) = [words for name, words in found if name == "RUN" and "--torch-backend" in words]
    extras = [after for before, after in pairwise(line) if before == "--extra"]
    known = PROJECT["project"]["optional-dependencies"]
    assert extras and set(extras) <= set(known)
    # the versions: the line's own sed, run on the lock
    sed = line[: line.index(">")]
    assert sed[0] == "sed" and line[line.index(">") + 1] == "constraints.txt"
    lines = subprocess.run(sed, cwd=ROOT, text=True, capture_output=True, check=True).stdout.splitlines()
    pins = {canonicalize_name(r.name): r for r in map(Requirement, (text for text in lines if not text.startswith("#")))}
    assert not [name for name in pins if name.startswith(("nvidia", "cuda"))]
    for text in PROJECT["project"]["dependencies"] + [text for extra in extras for text in known[extra]]:
        wanted = Requirement(text)
        if (pin := pins.get(canonicalize_name(wanted.name))) is None:
            assert wanted.name == "wandb", f"the lock has no {wanted.name}"
            continue
        (version,) = [s.version for s in pin.specifier]
        assert wanted.specifier.contains(version), f"{pin} is not {wanted}"


def test_the_image_runs_polymodal_and_not_as_root():
    found = instructions()
    last = found[max(i for i, (name, _) in enumerate(found) if name == "FROM"):]
    assert [words for name, words in last if name == "ENTRYPOINT"] == [['["polymodal"]']] and "polymodal" in PROJECT["project"]["scripts"]
    (user,) = [words[0] for name, words in last if name == "USER"]
    assert int(user) > 0
    (place,) = [word for name, words in last if name == "ENV" for word in words if word.startswith("PATH=")]
    assert place == "PATH=/opt/polymodal/bin:$PATH", "torchrun is found, which the manifests call"
    assert not re.search(r"(?i)token|password|secret", (ROOT / "Dockerfile").read_text())


@pytest.mark.slow
def test_what_is_copied_is_the_whole_package(tmp_path):
    """A wheel of the copied files has every module of the library."""
    for path in context():
        (tmp_path / "src" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / "src" / path)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=tmp_path / "src", check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = {PurePosixPath(name) for name in zipfile.ZipFile(wheel).namelist()}
    for path in context():
        if path.suffix in (".py", ".css", ".typed"):
            assert PurePosixPath("polymodal", path) in inside, path
    assert any(name.name == "entry_points.txt" for name in inside)
