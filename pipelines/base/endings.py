"""How a training run tells its ending to whoever started it.

    0     done
    1     a defect, or a rank that failed
    2     the user's mistake, told in one line
    75    stopped by a signal and saved: the same command goes on (EX_TEMPFAIL of sysexits.h)
    130   interrupted at once

A rank under torchrun ends with 0 where another process ends with 75, because torchrun takes any other code for a failure and starts all
ranks again. It leaves a sign in the folder that the environment variable `FOLDER` names, and the agent that made the folder
(`launch/agent.py`) ends with 75 for it. A rank that is done leaves one, too: an agent that loses the others may not live to see it end.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

FAILED, STOPPED = 1, 75
FOLDER = "POLYMODAL_ENDINGS"


def code_of_a_stop() -> int:
    """The exit code of a process whose run was stopped by a signal and saved."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return STOPPED
    leave_sign("stopped")
    return 0


def leave_sign(name: str) -> None:
    """Tell the agent, where there is one, that this rank has `stopped` or `failed`, or is `done()`."""
    if folder := os.environ.get(FOLDER):
        with suppress(OSError):  # a sign is worth no error
            (Path(folder) / name).touch()


def done() -> str:
    """The sign of a rank that is done: one for each rank of the machine."""
    return f"done-{os.environ.get('LOCAL_RANK', 0)}"


def withdraw_sign(name: str) -> None:
    """Take a sign back, where there is one: a rank was started again."""
    if folder := os.environ.get(FOLDER):
        with suppress(OSError):
            (Path(folder) / name).unlink(missing_ok=True)
