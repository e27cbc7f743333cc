"""The house rules: where a file may stand, what it may import, what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CODE = ("shared", "text", "vision", "seq2seq", "multimodal", "pipelines")
ALLOWED = {
    "shared": {"shared"},
    "text": {"shared", "text"},
    "vision": {"shared", "vision"},
    "seq2seq": {"shared", "seq2seq"},
    "multimodal": {"shared", "text", "vision", "seq2seq", "multimodal"},
    "pipelines": {*CODE, "registry", "__version__"},
}
FILES = sorted(p for folder in CODE for p in (ROOT / folder).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The absolute dotted names, below `polymodal`, that a file imports anywhere."""
    package = path.relative_to(ROOT).parent.parts
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - (node.level - 1)]
            names = [".".join(base + tuple(node.module.split(".")))] if node.module else [".".join((*base, a.name)) for a in node.names]
            found.update(names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "polymodal":
            found.add((node.module or "").removeprefix("polymodal").strip(".") or "polymodal")
        elif isinstance(node, ast.Import):
            found.update(a.name for a in node.names if a.name.split(".")[0] == "polymodal")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_house_rule(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    for name in imported(path):
        assert not name.startswith("polymodal"), f"{path}: import {name} relatively, so that file path and import path are the same thing"
        assert name.split(".")[0] in ALLOWED[folder], f"{path}: {folder} must not import {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines/commands").glob("*.py")), ids=lambda p: p.name)
def test_commands_import_lightly(path: Path) -> None:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names = {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = {(node.module or "").split(".")[0]}
        elif isinstance(node, ast.ImportFrom):
            names = {node.module or "."}
        else:
            continue
        allowed = {"typer", "console", "errors", "_options", "shared.errors", "..console"}
        for name in names:
            assert name in sys.stdlib_module_names or name in allowed, f"{path.name}: import {name} inside the command; help must stay fast"


def test_packages_list_equals_the_tree() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {p.parent for folder in CODE for p in (ROOT / folder).rglob("*.py")}
    tree = {"polymodal", *(".".join(("polymodal", *f.relative_to(ROOT).parts)) for f in folders)}
    assert listed == tree
    assert all((f / "__init__.py").exists() for f in folders)


def test_nothing_executes_data() -> None:
    """No module imports pickle, and `torch.load` is only called with `weights_only=True`."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not {"pickle", "cloudpickle", "dill", "marshal", "shelve"} & {a.name for a in node.names}, path
            if isinstance(node, ast.ImportFrom):
                names = {a.name for a in node.names}
                refusal = node.module == "pickle" and names == {"UnpicklingError"}
                assert refusal or node.module not in {"pickle", "cloudpickle", "dill", "marshal", "shelve"}, path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
                owner = node.func.value
                if isinstance(owner, ast.Name) and owner.id == "torch":
                    assert any(k.arg == "weights_only" and getattr(k.value, "value", None) is True for k in node.keywords), path
                if isinstance(owner, ast.Name) and owner.id in {"np", "numpy"}:
                    assert any(k.arg == "allow_pickle" and getattr(k.value, "value", None) is False for k in node.keywords), path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec"}, path


def test_importing_polymodal_is_light() -> None:
    code = "import sys, polymodal; polymodal.__version__; heavy = {'torch', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_help_is_light() -> None:
    code = (
        "import sys; sys.argv = ['polymodal', '--help']\n"
        "from polymodal.pipelines import cli\n"
        "try: cli.main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "heavy = {'torch', 'numpy', 'transformers', 'PIL', 'tokenizers'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, stdout=subprocess.DEVNULL)
