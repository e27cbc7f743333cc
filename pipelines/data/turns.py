"""Tasks that take turns: which task an update has (`Objective.turns`).

A cycle of updates has each task as often as the objective says, spread evenly, and cycles follow each other. So the task follows from the
number of the update alone: it is the same on all ranks, however many there are, and after any resume; shares are exact in every cycle; and
as many updates in a row as a cycle has, wherever they begin, have all tasks.

Tasks may use different data sets (`Objective.reads`). Those that use the same ones share an order over these, which their updates read one
after the other (`TurnOrder`). With the cycle "words words pairs" and G samples in an update:

    update                 0       1       2       3       4       5
    task               words   words   pairs   words   words   pairs
    order of words      0 ..    G ..           2G ..   3G ..
    order of pairs                      0 ..                    G ..

How far an order is before an update is the number of its updates in the whole cycles and in the part of one before that, so any position is
found at the same cost, and the state of the data stays the number of updates.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import Any

from ...shared.system import Objective
from ..base.ramp import Ramp
from .order import Order, SampleRef


def dealt(turns: Mapping[str, int]) -> tuple[str, ...]:
    """The tasks of a cycle in order: of n turns, the k-th stands at (k + 1/2) / n of the cycle; where several do, as they are given."""
    assert all(isinstance(count, int) and count > 0 for count in turns.values()), f"turns are positive whole numbers, not {turns}"
    places = [(Fraction(2 * k + 1, 2 * count), number, task)
              for number, (task, count) in enumerate(turns.items()) for k in range(count)]
    return tuple(task for _, _, task in sorted(places))


class Turns:
    """The tasks of an objective, dealt to updates.

    Args:
        objective: with turns, or without: then every update has the task with the empty name, and the objective itself.
    """

    def __init__(self, objective: Objective[Any]) -> None:
        self.objectives = objective.by_turn()
        self.cycle = dealt(objective.turns) or ("",)
        assert not objective.turns or not any(o.sequential for o in self.objectives.values()), "what is read in sequence has one task"

    def task(self, update: int) -> str:
        """The task of an update, counted from 0."""
        return self.cycle[update % len(self.cycle)]

    def objective(self, update: int) -> Objective[Any]:
        """Who makes the batches of an update."""
        return self.objectives[self.task(update)]

    def reads(self, sets: Sequence[Collection[str]]) -> dict[str, tuple[int, ...]]:
        """The numbers of the data sets that each task uses, by the fields of their samples."""
        return {task: tuple(i for i, fields in enumerate(sets) if o.reads(fields)) for task, o in self.objectives.items()}

    @property
    def needs_partner(self) -> bool:
        """Whether any task needs `Sample.partner`, which is read only where it is asked for."""
        return any(o.needs_partner for o in self.objectives.values())

    @property
    def needs_next(self) -> bool:
        """Whether any task needs `Sample.next`, likewise."""
        return any(o.needs_next for o in self.objectives.values())


class TurnOrder:
    """The endless order of tasks that use different data sets; what `Order` is where all of them use all.

    Args:
        order: of all data sets.
        reads: for each update of a cycle, the numbers of the data sets that it reads.
        batches: the samples of each update.
    """

    def __init__(self, order: Order, reads: Sequence[tuple[int, ...]], batches: Ramp) -> None:
        self.sources, self.weights, self._batches = order.sources, order.weights, batches
        self._parts = {chosen: _Part(order, chosen, [i for i, other in enumerate(reads) if other == chosen], len(reads), batches)
                       for chosen in dict.fromkeys(reads)}
        self._cycle = tuple(self._parts[chosen] for chosen in reads)

    def locate(self, position: int) -> SampleRef:
        """What stands at `position` of the stream."""
        update = self._batches.update_at(position)
        part = self._cycle[update % len(self._cycle)]
        found = part.order.locate(part.before(update) + position - self._batches.before(update))
        return found._replace(source=part.chosen[found.source])

    def upcoming_shards(self, position: int, lanes: Iterable[int]) -> Iterator[tuple[int, int, int]]:
        """See `Order.upcoming_shards`."""
        mine, update = list(lanes), self._batches.update_at(position)

        def one(part: _Part) -> Iterator[tuple[int, int, int]]:
            inside = position - self._batches.before(update) if part is self._cycle[update % len(self._cycle)] else 0
            for own, source, sample in part.order.upcoming_shards(part.before(update) + inside, mine):
                yield part.position(own), part.chosen[source], sample

        return heapq.merge(*map(one, self._parts.values()))


class _Part:
    """Some of the data sets, and the updates that read them.

    Args:
        order: of all data sets.
        chosen: their numbers.
        turns: which updates of a cycle read them, ascending.
        cycle: updates of a cycle.
        batches: the samples of each update.
    """

    def __init__(self, order: Order, chosen: tuple[int, ...], turns: Sequence[int], cycle: int, batches: Ramp) -> None:
        self.chosen, self._turns, self._cycle, self._batches = chosen, turns, cycle, batches
        self.order = Order(tuple(order.sources[i] for i in chosen), tuple(order.weights[i] for i in chosen))
        self._levels = tuple(accumulate(((self._updates(b.update) - self._updates(a.update)) * a.batch
                                         for a, b in pairwise(batches.levels)), initial=0))
        """Samples that were read before each level of the batch."""

    def _updates(self, update: int) -> int:
        """How many updates before this one read them."""
        cycles, place = divmod(update, self._cycle)
        return cycles * len(self._turns) + bisect_left(self._turns, place)

    def before(self, update: int) -> int:
        """How many samples of them the updates before this one read."""
        number = self._batches.number(update)
        first = self._batches.levels[number]
        return self._levels[number] + (self._updates(update) - self._updates(first.update)) * first.batch

    def position(self, own: int) -> int:
        """The position of the stream at which their own position `own` is read."""
        number = bisect_right(self._levels, own) - 1
        first = self._batches.levels[number]
        updates, place = divmod(own - self._levels[number], first.batch)
        cycles, turn = divmod(self._updates(first.update) + updates, len(self._turns))
        return self._batches.before(cycles * self._cycle + self._turns[turn]) + place
