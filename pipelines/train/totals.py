"""Sums of named counts over the ranks, which need not have the same names."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ...shared import dist


class Totals:
    """Adds up counts over the ranks once an update: one collective, as long as no rank comes with a new name."""

    def __init__(self) -> None:
        """No name is known yet."""
        self._names: list[str] = []
        """What all ranks have agreed on; the same list on each of them."""

    def add_up(self, mine: Mapping[str, int]) -> dict[str, int]:
        """The sum of each name over all ranks; every rank must call it, with whatever names it has.

        A name that no rank has now and one had in an earlier call has the sum 0.
        """
        if dist.world_size() == 1:
            return dict(mine)
        *sums, unknown = self._sums(mine)
        if unknown:  # everyone sees that, so everyone takes part in what follows
            self._names = sorted({*self._names, *(name for names in dist.gather_json(list(mine)) for name in names)})
            *sums, unknown = self._sums(mine)
            assert unknown == 0
        return dict(zip(self._names, sums, strict=True))

    def _sums(self, mine: Mapping[str, int]) -> list[int]:
        """The sums of the known names, and the number of names that are not among them."""
        numbers = [*(mine.get(name, 0) for name in self._names), len(mine.keys() - set(self._names))]
        return dist.all_reduce_sum(torch.tensor(numbers, dtype=torch.int64)).tolist()
