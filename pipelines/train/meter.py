"""What a run measures: sums and counts, kept on the device until they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ...shared import dist
from ...shared.system import Step, named


class Meter:
    """Means over updates, micro-batches and ranks: every sum is divided once, by the whole count.

    Adding never waits for the device. The state is exact, so a resumed run logs what an uninterrupted one does.

    Args:
        device: where to measure.
        chance: also how often each label occurs (`Term.labels`).
        turns: tasks that take turns, with their shares (`Objective.turns`); their numbers are kept apart.
    """

    def __init__(self, device: torch.device, chance: bool = False, turns: Mapping[str, float] = MappingProxyType({})) -> None:
        self.device, self._turns = device, turns
        self._labels: dict[str, Tensor] | None = {} if chance else None
        self._type = torch.float32 if device.type == "mps" else torch.float64
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    def __bool__(self) -> bool:
        """Whether anything was added since the start."""
        return bool(self._sums)

    def put(self, name: str, total: Tensor | float, count: Tensor | float) -> None:
        """Add to the sum and the count of `name`."""
        pair = torch.stack([torch.as_tensor(v).detach().to(self.device, self._type, non_blocking=True) for v in (total, count)])
        old = self._sums.get(name)
        self._sums[name] = pair if old is None else old + pair

    def add(self, step: Step, counts: Mapping[str, int], task: str = "") -> None:
        """Add what one forward pass of a task returned."""
        for term_name, term in step.terms.items():
            name = named(task, term_name)
            self._weights[name] = term.weight
            self.put(name, term.total, counts[term.count])
            if self._labels is not None and term.labels is not None:
                found = torch.bincount(term.labels.detach().flatten()[term.labels.flatten() >= 0].long())
                old = self._labels.get(name)
                self._labels[name] = found if old is None else _add(old, found)
        for name, (total, count) in step.metrics.items():
            self.put(named(task, name), total, count)

    def merge(self, other: Meter) -> None:
        """Add what another meter has added up (without its labels)."""
        self._weights |= other._weights
        for name, pair in other._sums.items():
            old = self._sums.get(name)
            self._sums[name] = pair if old is None else old + pair

    def means(self) -> dict[str, float]:
        """The mean of everything over all ranks, and the losses (`losses`); empty where no rank has anything. Every rank must call it."""
        totals, weights = self._totals()
        means = {name: total / count if count else 0.0 for name, (total, count) in totals.items()}
        return losses(means, weights, self._turns) | means

    def _totals(self) -> tuple[dict[str, list[float]], dict[str, float]]:
        """[sum, count] of every name that any rank has, over all of them, and the weights of the terms among these names."""
        # held-out data may have fewer batches than there are ranks, and a term may have been on one rank only
        parts = dist.gather_json({"names": list(self._sums), "weights": self._weights})
        names = sorted({name for part in parts for name in part["names"]})
        if not names:
            return {}, {}
        nothing = torch.zeros(2, device=self.device, dtype=self._type)
        totals = dist.all_reduce_sum(torch.stack([self._sums.get(name, nothing) for name in names])).tolist()
        return dict(zip(names, totals)), {name: weight for part in parts for name, weight in part["weights"].items()}

    def chances(self) -> dict[str, float]:
        """For each term with labels on some rank, `{term}_chance`: their entropy in nats over all ranks. Every rank must call it."""
        labels = self._labels or {}
        nothing = torch.zeros(0, device=self.device, dtype=torch.long)
        found: dict[str, float] = {}
        for name in sorted({name for names in dist.gather_json(list(labels)) for name in names}):
            mine = labels.get(name, nothing)
            counts = dist.all_reduce_sum(_add(mine, mine.new_zeros(max(dist.first_dims(mine)))))
            share = counts[counts > 0].double().cpu() / float(counts.sum())
            found[f"{name}_chance"] = float(-(share * share.log()).sum())
        return found

    def reset(self) -> None:
        """Start again from nothing."""
        self._sums, self._weights = {}, {}

    def state(self) -> dict[str, Any]:
        """The sums over all ranks as JSON. Every rank must call it."""
        totals, weights = self._totals()
        return {"sums": totals, "weights": weights}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`: rank 0 takes the sums, the others start from zero."""
        share = 1.0 if dist.rank() == 0 else 0.0
        self._sums = {n: torch.tensor(v, device=self.device, dtype=self._type) * share for n, v in state["sums"].items()}
        self._weights = dict(state["weights"])


def losses(means: Mapping[str, float], weights: Mapping[str, float], turns: Mapping[str, float]) -> dict[str, float]:
    """`loss`, the weighted sum of the means of the terms; where tasks take turns, that of each which has terms, and their mean by shares.

    Then `loss` does not depend on how many updates a task had, or targets in them: only on which tasks there were at all.
    """
    if not weights:
        return {}
    if not turns:
        return {"loss": sum(weight * means[name] for name, weight in weights.items())}
    each = {task: sum(weight * means[name] for name, weight in mine.items())
            for task in turns if (mine := {name: weight for name, weight in weights.items() if name.startswith(named(task, ""))})}
    whole = sum(turns[task] * loss for task, loss in each.items()) / sum(turns[task] for task in each)
    return {"loss": whole, **{named(task, "loss"): loss for task, loss in each.items()}}


def _add(a: Tensor, b: Tensor) -> Tensor:
    """The sum of two counts of different lengths."""
    size = max(len(a), len(b))
    return torch.nn.functional.pad(a, (0, size - len(a))) + torch.nn.functional.pad(b, (0, size - len(b)))
