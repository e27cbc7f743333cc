"""All tasks of encoders; a new one is a file, and a line here."""

from __future__ import annotations

from collections.abc import Iterable

from ..shared.family import Net, Task
from . import choice, classify, score, span, tag

TASKS = (classify.TASK, score.TASK, tag.TASK, choice.TASK, span.TASK)
USES = {task.name: task.use for task in TASKS if task.use is not None}
"""The networks in use, by the names of their tasks."""


def encoder_tasks(nets: Iterable[Net]) -> tuple[Task, ...]:
    """The tasks that a family's networks have heads for.

    Where a family has two heads for a task, transformers calls BERT's "Simple".
    """
    heads = [(net.architecture.partition("For")[2].removesuffix("Simple"), net) for net in nets]
    return tuple(task.of(net) for task in TASKS for head, net in heads if head == task.head)
