"""Evaluations have one name each: in their records, for the command line and in Python."""

from __future__ import annotations

from dataclasses import is_dataclass

import polymodal
import pytest
import typer
from polymodal.pipelines.commands.evaluate import register
from polymodal.pipelines.evaluation.kinds import KINDS, kind


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_is_an_evaluation_of_that_name(name):
    assert kind(name).name == name and is_dataclass(kind(name))


def test_every_evaluation_is_a_command_and_is_named_in_python():
    app = typer.Typer()
    register(app)
    (group,) = app.registered_groups
    assert group.typer_instance is not None
    commands = {one.name: one.callback for one in group.typer_instance.registered_commands}
    assert set(commands) - set(KINDS) == {"words", "compare"} and set(KINDS) <= set(commands)
    assert all(commands[name].__name__ == name.replace("-", "_") for name in KINDS)
    assert f"{', '.join(list(KINDS)[:-1])} or {list(KINDS)[-1]}" in " ".join(polymodal.evaluate.__doc__.split())
