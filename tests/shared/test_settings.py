from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from polymodal.shared.errors import UserError
from polymodal.shared.settings import build_settings


@dataclass(frozen=True)
class Inner:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass(frozen=True)
class Outer:
    name: str
    steps: int = 10
    clip: float | None = 1.0
    mode: Literal["a", "bee"] = "a"
    flag: bool = False
    inner: Inner = field(default_factory=Inner)
    other: Inner | None = None
    model: dict[str, Any] = field(default_factory=dict)
    sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps is {self.steps}, expected at least 1")


@dataclass(frozen=True)
class Own:
    inner: Inner = field(default_factory=lambda: Inner(lr=0.5, betas=(0.1, 0.2)))
    either: Inner | Outer | None = field(default_factory=lambda: Inner(lr=7.0))


def test_a_nested_mapping_changes_what_it_names():
    """The field's own default stays elsewhere, not the class's."""
    assert build_settings(Own, {"inner": {"lr": 1}}, "x").inner == Inner(1.0, (0.1, 0.2))
    assert build_settings(Own, {"inner": {"betas": [0, 1]}}, "x").inner == Inner(0.5, (0.0, 1.0))
    assert build_settings(Own, {"inner": {}}, "x").inner == Own().inner
    assert build_settings(Own, {"either": {"betas": [0, 1]}}, "x").either == Inner(7.0, (0.0, 1.0))
    assert build_settings(Own, {"either": {"name": "n"}}, "x").either == Outer("n")
    assert build_settings(Own, {"either": None}, "x").either is None
    with pytest.raises(UserError, match=r"unknown key inner\.lrr; did you mean inner\.lr"):
        build_settings(Own, {"inner": {"lrr": 1}}, "x")


def test_builds_nested_and_converts():
    value = build_settings(Outer, {"name": "x", "steps": 2.0, "clip": None, "inner": {"lr": "3e-4", "betas": [0.9, 1]},
                                   "other": {"lr": 1}, "model": {"a": [1]}, "sizes": [1, 2]}, "recipe x")
    assert value == Outer("x", 2, None, inner=Inner(3e-4, (0.9, 1.0)), other=Inner(1.0), model={"a": [1]}, sizes=(1, 2))
    assert type(value.steps) is int and type(value.inner.betas[1]) is float


def test_every_problem_at_once_with_suggestions():
    with pytest.raises(UserError) as error:
        build_settings(Outer, {"stepz": 1, "inner": {"lrr": 1, "betas": [1]}, "mode": "be", "flag": 1, "clip": "x",
                               "sizes": [1, "q"]}, "recipe x")
    text = str(error.value)
    assert text.startswith("recipe x: ")
    for part in ("unknown key stepz; did you mean steps?", "unknown key inner.lrr; did you mean inner.lr?",
                 "inner.betas has 1 entries, expected 2",
                 "mode is 'be', expected a | bee (did you mean bee?)", "flag is 1, expected bool", "clip is 'x', expected float | null",
                 "sizes[1] is 'q', expected int", "name is missing"):
        assert part in text, part


@pytest.mark.parametrize("bad", [{"steps": 1.5}, {"steps": True}, {"flag": "yes"}, {"name": 3},
                                 {"inner": 3}, {"model": []}, {"sizes": 3}, {"mode": 1}])
def test_wrong_types_are_refused(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        build_settings(Outer, {"name": "x", **bad}, "recipe x")


def test_checks_of_the_class_are_reported():
    with pytest.raises(UserError, match="recipe x: steps is 0, expected at least 1"):
        build_settings(Outer, {"name": "x", "steps": 0}, "recipe x")


@dataclass(frozen=True)
class Circle:
    radius: float = 1.0


@dataclass(frozen=True)
class Box:
    width: float = 1.0
    height: float = 1.0


@dataclass(frozen=True)
class Drawing:
    shape: Circle | Box


@pytest.mark.parametrize(("shape", "said"), [
    ({"radius": "wide"}, "shape.radius is 'wide'"), ({"width": 2, "height": "tall"}, "shape.height is 'tall'"),
])
def test_of_several_kinds_the_likeliest_one_is_reported(shape, said):
    with pytest.raises(UserError, match=said):
        build_settings(Drawing, {"shape": shape}, "drawing")
