from __future__ import annotations

import itertools
import math

import pytest
from polymodal.pipelines.run.schedule import ScheduleSettings, factor
from polymodal.shared.errors import UserError

NAMES = ("constant", "linear", "cosine", "inverse_sqrt", "wsd", "polynomial")


def settings(name, **more):
    return ScheduleSettings(name, **({"decay": 20} if name == "wsd" else {}) | more)


@pytest.mark.parametrize("name", NAMES)
def test_warmup_rises_to_the_peak_and_nothing_exceeds_it(name):
    values = [factor(settings(name, warmup=10), u, 100) for u in range(120)]
    assert values[:10] == pytest.approx([(u + 1) / 10 for u in range(10)])
    assert values[10] == pytest.approx(1.0, abs=0.05)
    assert max(values) <= 1.0 and min(values) >= 0.0
    assert all(a >= b for a, b in itertools.pairwise(values[9:]))


def test_values_from_the_formulas():
    assert factor(settings("cosine", final=0.1), 50, 100) == pytest.approx(0.55)
    assert factor(settings("cosine", final=0.1), 100, 100) == pytest.approx(0.1)
    assert factor(settings("linear", warmup=20), 60, 100) == pytest.approx(0.5)
    assert factor(settings("polynomial", power=2.0), 50, 100) == pytest.approx(0.25)
    assert factor(settings("inverse_sqrt", warmup=100), 399, 1000) == pytest.approx(0.5)
    assert factor(settings("inverse_sqrt", warmup=100), 100, 1000) == pytest.approx(math.sqrt(100 / 101))
    wsd = [factor(settings("wsd", final=0.2), u, 100) for u in (0, 79, 80, 90, 99, 100)]
    assert wsd == pytest.approx([1, 1, 1, 0.6, 0.24, 0.2])
    assert factor(settings("constant"), 10**9, 1) == 1.0


@pytest.mark.parametrize("name", ["cosine", "linear", "polynomial"])
def test_a_rate_that_ends_to_fall_before_the_run_does(name):
    """GPT-3: to a tenth at 260 of 300 billion tokens, then flat."""
    early, whole = settings(name, warmup=10, final=0.1, until=60), settings(name, warmup=10, final=0.1)
    assert [factor(early, u, 100) for u in range(60)] == [factor(whole, u, 60) for u in range(60)]
    assert [factor(early, u, 100) for u in range(60, 120)] == pytest.approx([0.1] * 60)


@pytest.mark.parametrize("name", NAMES)
def test_runs_shorter_than_the_warmup_and_longer_than_planned(name):
    for update, total in ((0, 0), (0, 1), (5, 3), (50, 20), (10**6, 20)):
        assert 0 <= factor(settings(name, warmup=10), update, total) <= 1


@pytest.mark.parametrize(("bad", "message"), [({"name": "wsd"}, "decay"), ({"warmup": -1}, "warmup"),
                                              ({"until": 0}, "until"), ({"warmup": 9, "until": 9}, "until"),
                                              ({"name": "constant", "until": 9}, "until is 9, and constant does not fall"),
                                              ({"final": 2.0}, "final"), ({"power": 0.0}, "power")])
def test_bad_settings(bad, message):
    with pytest.raises(UserError, match=message):
        ScheduleSettings(**bad)
