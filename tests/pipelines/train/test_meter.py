"""What a run measures beside its loss: the entropy of the labels."""

import math

import pytest
import torch
from polymodal.pipelines.train.meter import Meter
from polymodal.shared.system import Step, Term


def step(labels, name="lm"):
    return Step({name: Term(torch.tensor(1.0), "n", labels=labels)})


def test_chance_is_the_entropy_of_all_labels():
    """Of 3 x 1, 2 x 4 and 1 x 0, over two batches of different shapes; -100 counts for nothing."""
    meter = Meter(torch.device("cpu"), chance=True)
    meter.add(step(torch.tensor([[1, 1, -100], [0, -100, 4]])), {"n": 4})
    meter.add(step(torch.tensor([1, 4])), {"n": 2})
    meter.add(step(torch.tensor([True, False, False]), "rtd"), {"n": 3})
    expected = -(3 / 6 * math.log(3 / 6) + 2 / 6 * math.log(2 / 6) + 1 / 6 * math.log(1 / 6))
    assert meter.chances() == pytest.approx({"lm_chance": expected, "rtd_chance": -(math.log(1 / 3) + 2 * math.log(2 / 3)) / 3})


def test_no_labels_no_chance():
    meter = Meter(torch.device("cpu"), chance=True)
    meter.add(step(None), {"n": 1})
    assert meter.chances() == {}
    plain = Meter(torch.device("cpu"))
    plain.add(step(torch.tensor([1])), {"n": 1})
    assert plain.chances() == {} and plain.means() == {"loss": 1.0, "lm": 1.0}
