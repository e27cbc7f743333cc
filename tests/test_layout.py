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
FAMILIES = {"text", "vision", "seq2seq", "multimodal"}
ALLOWED = {
    "shared": {"shared"},
    "text": {"shared", "text"},
    "vision": {"shared", "vision"},
    "seq2seq": {"shared", "text", "seq2seq"},
    "multimodal": {"shared", *FAMILIES},
    "pipelines": {*CODE, "registry", "_version"},
}
ROOMS = {
    "base": "",
    "data": "base",
    "crew": "base",
    "run": "base",
    "pack": "base data crew",
    "model": "base run",
    "recipes": "run",
    "train": "base data run model",
    "inference": "base data crew run model",
    "evaluation": "base data run model train inference",
    "serving": "base model inference",
    "plan": "base data run model train",
    "inspection": "base data run model train",
    "launch": "base data run",
    "regions": "base data crew pack model",
    "bench": "base data crew pack run model train",
    "commands": "base data crew run pack model recipes train inference regions evaluation plan inspection launch bench demo serving",
    "demo": "base data run inspection",
    "cards": "base run model commands recipes",
}
"""Who may import whom inside `pipelines/`; all may import `shared` and the families, and `cli.py` may import `base` and `commands`."""
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


def modules(path: Path) -> set[str]:
    """The files, as dotted names, that a file imports anywhere; what a package hands on counts as its files."""
    package = path.relative_to(ROOT).parent.parts
    known = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in FILES}
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join([*package[: len(package) - (node.level - 1)], *(node.module or "").split(".")]).strip(".")
            for name in (base, *(f"{base}.{a.name}".strip(".") for a in node.names)):
                if name in known:
                    found.add(name)
                elif f"{name}.__init__" in known and path.name != "__init__.py" and known[f"{name}.__init__"].parent != path.parent:
                    found.add(f"{name}.__init__")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_house_rule(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    for name in imported(path):
        assert not name.startswith("polymodal"), f"{path}: import {name} relatively, so that file path and import path are the same thing"
        assert name.split(".")[0] in ALLOWED[folder], f"{path}: {folder} must not import {name}"


def room(path: Path) -> str:
    """The room of a file in `pipelines/`; empty for the files that lie flat."""
    parts = path.relative_to(ROOT / "pipelines").parts
    return parts[0] if len(parts) > 1 else ""


def test_every_room_is_in_the_table() -> None:
    rooms = {p.name for p in (ROOT / "pipelines").iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert rooms == set(ROOMS)
    assert len(list((ROOT / "pipelines").glob("*.py"))) <= 6


@pytest.mark.parametrize("name", ROOMS)
def test_rooms_import_what_the_table_allows(name: str) -> None:
    allowed = {name, *ROOMS[name].split()}
    for path in (p for p in FILES if p.is_relative_to(ROOT / "pipelines" / name)):
        for found in imported(path):
            parts = found.split(".")
            if parts[0] == "pipelines" and len(parts) > 1:
                assert parts[1] in allowed, f"{path.relative_to(ROOT)} imports {found}; {name} may import {ROOMS[name] or 'no other room'}"


def test_a_room_says_at_its_door_what_it_may_import() -> None:
    for name, allowed in ROOMS.items():
        text = " ".join((ast.get_docstring(ast.parse((ROOT / "pipelines" / name / "__init__.py").read_text())) or "").split())
        wanted = ", ".join(allowed.split()) or "nothing of `pipelines`"
        assert f"May import: {wanted}." in text, f"the docstring of pipelines/{name} must end with 'May import: {wanted}.'"


def test_the_picture_of_the_house_is_true() -> None:
    """CONTRIBUTING shows every room once, on a floor above all that the table lets it import."""
    from polymodal.pipelines.cards import house

    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert text == house.with_picture(text), "run `make docs`: the picture of the house in CONTRIBUTING.md is old"
    assert house.picture() in text
    rooms = {room: set(names.split()) for room, names in ROOMS.items()}
    assert {room: house.allowed(door) for room, door in house.doors().items()} == rooms
    floors = house.floors(rooms)
    height = {room: number for number, floor in enumerate(floors) for room in floor}
    assert sorted(room for floor in floors for room in floor) == sorted(ROOMS)
    assert all(height[other] < height[room] for room, names in ROOMS.items() for other in names.split())
    with pytest.raises(AssertionError, match="circle: a, b"):
        house.floors({"a": {"b"}, "b": {"a"}})


def test_no_file_repeats_the_name_of_its_folder() -> None:
    for path in FILES:
        assert not path.stem.strip("_").startswith(f"{path.parent.name}_"), f"{path}: the folder says {path.parent.name} already"


def test_no_import_circle() -> None:
    """Files do not import each other in a loop, not even inside functions."""
    graph = {".".join(p.relative_to(ROOT).with_suffix("").parts): modules(p) for p in FILES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, "import circle: " + " -> ".join([*path[path.index(name):], name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


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
        allowed = {"typer", "base.console", "base.options", "evaluation.kinds", "shared.errors"}
        for name in names:
            assert name in sys.stdlib_module_names or name in allowed, f"{path.name}: import {name} inside the command; help must stay fast"


def test_packages_list_equals_the_tree() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {p.parent for folder in CODE for p in (ROOT / folder).rglob("*.py")}
    tree = {"polymodal", *(".".join(("polymodal", *f.relative_to(ROOT).parts)) for f in folders)}
    assert listed == tree
    assert all((f / "__init__.py").exists() for f in folders)


INSIDE = {"align_words", "bag_of_characters", "copied_tokens", "draw_masks", "four_masks", "nearest_uses", "rank_rewrites",
          "replaced_tokens"}
"""Examples that look inside a network, or write one: they import what systems are built from, too."""


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_examples_import_nothing_internal(path: Path) -> None:
    """All that is done with data, runs and networks is offered by `polymodal` itself."""
    import polymodal

    used = {node.attr for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "polymodal"}
    assert used <= set(polymodal.__all__), f"{path.name} uses {sorted(used - set(polymodal.__all__))}, which polymodal does not offer"
    inner = {name.split(".")[0] for name in imported(path)} - {"polymodal"}
    allowed = {"shared", *FAMILIES} if path.stem in INSIDE else set[str]()
    assert inner <= allowed, f"{path.name} imports {sorted(inner - allowed)}: offer what it needs in polymodal's __init__.py"


def test_what_is_offered_is_there() -> None:
    import polymodal

    assert all(getattr(polymodal, name) for name in polymodal.__all__)
    assert set(dir(polymodal)) == set(polymodal.__all__)


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
