"""The user's mistakes, told in one line: what was wrong, what was expected, how to fix it."""

from __future__ import annotations

from collections.abc import Iterable


class UserError(ValueError):
    """A mistake that the user can mend. The command line prints it as one line and exits with 2.

    Everything else that is raised is a defect of polymodal (exit code 1).
    """


class BadSample(ValueError):
    """One sample that cannot be used (undecodable image, invalid UTF-8, missing field, wrong checksum).

    The stream counts and records it under `on_bad: skip`, and stops the run under `on_bad: raise`.
    """


def raise_problems(problems: Iterable[str], what: str = "") -> None:
    """Raise one `UserError` that lists every problem; do nothing where there is none.

    Args:
        problems: one sentence each, complete with its fix.
        what: what was being checked, such as ``recipe bert-tiny``; empty where the caller's caller says it.
    """
    found = list(problems)
    if found:
        raise UserError((f"{what}: " if what else "") + "; ".join(found))
