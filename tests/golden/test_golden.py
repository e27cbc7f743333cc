"""The recorded loss curves stand: what a change of the code does to any system's training is seen here."""

from __future__ import annotations

import pytest
from contract.cases import watched
from golden import record


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("golden")


@pytest.mark.parametrize("case", watched(), ids=lambda c: c.name)
def test_a_loss_curve_has_not_moved(case, data, tmp_path):
    expected = record.recorded().get(case.name)
    assert expected is not None, "it has no recorded curve: `make golden` records it"
    found = record.curve(case, data / "data", tmp_path / "run")
    assert record.distance(found, expected) < record.TOLERANCE, f"`make golden` records the new curve if it is meant: {found}"


def test_every_recorded_curve_has_its_case():
    assert set(record.recorded()) == {case.name for case in watched()}


def test_a_small_change_is_seen():
    """A learning rate that is a hundredth higher moves the curve by more than the tolerance."""
    expected = {"loss": [4.0, 3.5, 3.0]}
    assert record.distance({"loss": [4.0, 3.5, 3.01]}, expected) > record.TOLERANCE
    assert record.distance({"loss": [4.0, 3.5, 3.0005]}, expected) < record.TOLERANCE
    assert record.distance({"loss": [4.0]}, expected) == float("inf")
    assert record.distance({"grad_norm": [2.02]}, {"grad_norm": [2.0]}) > record.TOLERANCE
