"""Tasks that take turns: which task an update has (`Objective.turns`).

A cycle of updates has each task as often as the objective says, spread evenly, and cycles follow each other. So the task follows from the
number of the update alone: it is the same on all ranks, however many there are, and after any resume; shares are exact in every cycle; and
as many updates in a row as a cycle has, wherever they begin, have all tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from ...shared.system import Objective


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

    @property
    def needs_partner(self) -> bool:
        """Whether any task needs `Sample.partner`, which is read only where it is asked for."""
        return any(o.needs_partner for o in self.objectives.values())

    @property
    def needs_next(self) -> bool:
        """Whether any task needs `Sample.next`, likewise."""
        return any(o.needs_next for o in self.objectives.values())
