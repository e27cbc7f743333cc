"""What the contract's own values do: batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from polymodal.shared.system import BadRecord, Batch, map_tensors
from torch import Tensor


class Pair(NamedTuple):
    ids: Tensor
    name: str


@dataclass(kw_only=True)
class Nested(Batch):
    ids: Tensor
    inside: Any


def test_every_tensor_of_a_batch_moves_wherever_it_hangs():
    x = torch.ones(2)
    inner = Batch(counts={"n": 1}, sample_ids=[3])
    inside = {"list": [x, 1], "tuple": (x, ("deep", [x])), "named": Pair(x, "p"), "batch": Nested(counts={}, ids=x, inside=None),
              "none": None}
    batch = Nested(counts={"n": 2}, ids=x, inside=inside, sample_ids=[1, 2], bad=[BadRecord(1, "k", "s", "why")])
    moved = batch.to("meta")
    found = moved.inside
    for tensor in (moved.ids, found["list"][0], found["tuple"][0], found["tuple"][1][1][0], found["named"].ids, found["batch"].ids):
        assert tensor.is_meta and tensor.shape == (2,)
    assert isinstance(found["named"], Pair) and found["named"].name == "p" and found["tuple"][1][0] == "deep"
    assert (found["list"][1], found["none"], moved.counts, moved.sample_ids, moved.bad) == (1, None, batch.counts, [1, 2], batch.bad)
    assert not batch.ids.is_meta and not inside["list"][0].is_meta, "the batch itself stays where it was"
    assert inner.to("meta") == inner


def test_what_holds_no_tensor_is_left_as_it_is():
    for value in (None, "text", 3, [1, (2, "x")], {"a": [None]}):
        assert map_tensors(value, lambda tensor: tensor + 1) == value
