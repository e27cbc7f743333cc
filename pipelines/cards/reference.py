"""Pages of the documentation that are read off the code: the commands and the keys of a recipe."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import pkgutil
import textwrap
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

import typer

from .. import commands as groups
from ..base.markdown import table
from ..run.recipe import Recipe

NOTE = "\n<!-- Written by `make docs` from {sources}; change those. -->\n"
"""Stands at the end of a page: mkdocs takes the title from a heading at the beginning."""




# ---- settings


def settings_table(cls: type, prefix: str = "") -> str:
    """The fields of a settings dataclass: key, what it may be, its default, its meaning."""
    return table(_HEADS, _rows(cls, prefix))


_HEADS = ("key", "value", "default", "meaning")


def _rows(cls: type, prefix: str, own: object = None) -> Iterator[tuple[str, ...]]:
    """Rows of a dataclass; `own` is the default of the field that it stands in, which may differ from the class's."""
    for f, hint, told in described(cls):
        if is_dataclass(hint):
            inner = f.default_factory() if f.default_factory is not MISSING else None if f.default is MISSING else f.default
            yield from _rows(typing.cast("type", hint), f"{prefix}{f.name}.", inner)
        else:
            default = _default(f) if own is None else _told(getattr(own, f.name))
            yield f"`{prefix}{f.name}`", f"`{spell(hint, f)}`", f"`{default}`", told


def described(cls: type) -> Iterator[tuple[Field[Any], Any, str]]:
    """Each field of a dataclass with its type and the docstring below it."""
    assert is_dataclass(cls)
    hints = typing.get_type_hints(cls)
    told = _field_docstrings(cls)
    for f in fields(cls):
        if f.init and f.repr:  # others are not settings, such as what a config.json holds besides
            yield f, hints[f.name], told.get(f.name, "")


def _field_docstrings(cls: type) -> dict[str, str]:
    """What stands below the fields of a class and of the classes it inherits from."""
    told: dict[str, str] = {}
    for part in reversed(cls.__mro__):
        if not is_dataclass(part):
            continue
        body = typing.cast("ast.ClassDef", ast.parse(textwrap.dedent(inspect.getsource(part))).body[0]).body
        for first, second in itertools.pairwise(body):
            if isinstance(first, ast.AnnAssign) and isinstance(first.target, ast.Name) and isinstance(second, ast.Expr) \
                    and isinstance(second.value, ast.Constant) and isinstance(second.value.value, str):
                told[first.target.id] = " ".join(second.value.value.split())
    return told


def spell(hint: Any, of: Field[Any]) -> str:
    """A type as a reader writes its values."""
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(str(value) for value in typing.get_args(hint))
    parts = typing.get_args(hint)
    if any(typing.get_origin(part) is typing.Literal for part in parts):
        return " | ".join(spell(part, of) if typing.get_origin(part) else part.__name__ for part in parts)
    return str(of.type).replace("None", "null")


def _default(f: Field[Any]) -> str:
    if f.default is not MISSING:
        return _told(f.default)
    return "required" if f.default_factory is MISSING else str(f.default_factory())


def _told(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def recipe_keys_page() -> str:
    """Every key of a recipe, from the docstrings of its dataclasses."""
    parts = [f for f, hint, _ in described(Recipe) if is_dataclass(hint)]
    hints = typing.get_type_hints(Recipe)
    own = [row for row in described(Recipe) if not is_dataclass(row[1])]
    lines = ["# Recipe keys\n\n",
             "All keys of a recipe: in a YAML file as nested keys, on the command line as `--set KEY=VALUE`. Values are read as YAML. "
             "`model.*` are the fields of the system's config and `objective.*` those of its objective; the [cards](systems/index.md) "
             "list them. What a key is set to depends on the recipe: `polymodal pretrain RECIPE ... --dry-run --json` shows the "
             "resolved recipe, and the run's `recipe.yaml` keeps it.\n\n",
             "## The run\n\n",
             table(_HEADS,
                   [(f"`{f.name}`", f"`{spell(hint, f)}`", f"`{_default(f)}`", told) for f, hint, told in own])]
    for f in parts:
        cls = hints[f.name]
        lines += [f"\n## {f.name}\n\n", f"{inspect.getdoc(cls) or ''}\n\n", settings_table(cls, f"{f.name}.")]
    return "".join([*lines, NOTE.format(sources="pipelines/run/recipe.py, pipelines/run/optim.py and pipelines/run/schedule.py")])


# ---- commands


def commands() -> Mapping[str, Any]:
    """Every command of the command line by its full name, such as `tokenizer train`, in the order of the help."""
    app = typer.Typer()
    modules = [importlib.import_module(f"{groups.__name__}.{m.name}") for m in pkgutil.iter_modules(groups.__path__)]
    for module in sorted(modules, key=lambda m: m.ORDER):
        module.register(app)
    found: dict[str, Any] = {}

    def walk(command: Any, name: str) -> None:
        inner: Mapping[str, Any] | None = getattr(command, "commands", None)
        if inner is None:
            found[name] = command
            return
        for key, value in inner.items():
            walk(value, f"{name} {key}".strip())

    walk(typer.main.get_command(app), "")
    return found


def commands_page() -> str:
    """The reference of the command line, from the commands themselves."""
    lines = ["# Commands\n\n",
             "`python -m polymodal` is the same as `polymodal`. Every command has `--help`, and `--json`, with which the last line on "
             "stdout is one JSON object and everything for people goes to stderr. `--debug` anywhere shows tracebacks.\n\n",
             "Exit code 0: done. 2: a mistake in the input, told in one line. 1: a defect of the library. 130: interrupted.\n"]
    for name, command in commands().items():
        hints = typing.get_type_hints(inspect.unwrap(command.callback))
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option"]
        needed = [f"{p.opts[0]} {_value(p, hints)}" for p in options if p.required]
        usage = " ".join(["polymodal", name, *(_value(p, hints) for p in arguments), *needed, "[OPTIONS]"])
        told, _, examples = (command.help or "").partition("\b")  # what follows keeps its lines: see click
        lines += [f"\n## {name}\n\n", f"{' '.join(told.split())}\n\n", f"```text\n{usage}\n```\n\n"]
        if examples:
            lines.append(f"```sh\n{inspect.cleandoc(examples)}\n```\n\n")
        rows = [(f"`{_value(p, hints)}`", _help(p), "") for p in arguments]
        rows += [(_names(p, hints), _help(p), "required" if p.required else _shown(p)) for p in options]
        lines.append(table(("argument or option", "meaning", "default"), rows))
    return "".join([*lines, NOTE.format(sources="pipelines/commands/")])


def _value(parameter: Any, hints: Mapping[str, Any]) -> str:
    """What stands for the value of an argument or option."""
    if parameter.metavar:
        return str(parameter.metavar)
    name = str(parameter.name).rstrip("_").upper()
    if parameter.param_type_name == "argument":
        return f"{name.removesuffix('S')}..." if parameter.nargs == -1 else name
    kind = hints[parameter.name]
    kinds = {kind, *typing.get_args(kind)}
    kinds |= {inner for part in kinds for inner in typing.get_args(part)}
    return next((letter for cls, letter in ((int, "N"), (float, "X"), (Path, "PATH")) if cls in kinds), "TEXT")


def _names(option: Any, hints: Mapping[str, Any]) -> str:
    names = "/".join([*option.opts, *option.secondary_opts])
    return f"`{names}`" if option.is_flag else f"`{names} {_value(option, hints)}`"


def _help(parameter: Any) -> str:
    text = " ".join((parameter.help or "").split())
    return f"{text} Repeatable." if parameter.multiple and "repeat" not in text else text


def _shown(option: Any) -> str:
    default = option.default
    return "" if option.is_flag or default is None or str(default) in ("", "()") else f"`{default}`"
