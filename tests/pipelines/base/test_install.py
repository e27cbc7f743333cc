"""What to type where a package is missing: the package by its own name, since polymodal itself is in no registry."""

from __future__ import annotations

from pathlib import Path

import pytest
from polymodal.pipelines.base import install

ROOT = Path(__file__).resolve().parents[3]


def test_the_packages_of_an_extra(monkeypatch):
    said = ["torch>=2", 'h5py>=3.11; extra == "elmo"', "ray[train] ; extra == 'ray'", 'polymodal[elmo]; extra == "dev"']
    monkeypatch.setattr(install, "requires", lambda name: said)
    assert install.install_line("elmo") == "pip install 'h5py>=3.11'" and install.install_line("ray") == "pip install 'ray[train]'"
    assert install.install_line("new") == "pip install -e '.[new]' in the clone of polymodal"

    def nothing(name):
        raise install.PackageNotFoundError(name)

    monkeypatch.setattr(install, "requires", nothing)
    assert install.install_line("elmo") == "pip install -e '.[elmo]' in the clone of polymodal"


@pytest.mark.parametrize("folder", ["pipelines", "docs"])
def test_nobody_is_told_to_install_what_no_registry_has(folder):
    files = [path for path in (ROOT / folder).rglob("*.*") if path.suffix in (".py", ".md") and path.name != "install.py"]
    assert files and not [path for path in files if "pip install 'polymodal" in path.read_text(encoding="utf-8")]
