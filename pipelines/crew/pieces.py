"""A piece of work, where pieces are done, and what comes back: plain values that may cross a network.

A piece is a function of plain values that writes its own files. The same pieces write the same bytes wherever and in whatever order
they are done.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ...shared.errors import UserError

KINDS = ("local", "ray")


class Lost(UserError):
    """Workers died. What they had finished is kept, and the same command goes on from there."""


@dataclass(frozen=True)
class Workers:
    """Who does pieces: how many workers, and where they run."""

    count: int | None = None
    """Processes here, or workers on the cluster; by default one for each core or GPU."""
    on: str = "local"
    """`local` or `ray`."""
    ray_address: str | None = None
    """HOST:PORT of a running cluster; by default the one that this machine belongs to."""

    def __post_init__(self) -> None:
        """Check what was given."""
        if self.on not in KINDS:
            raise UserError(f"--on is {self.on!r}, expected {' or '.join(KINDS)}")
        if self.ray_address is not None and self.on != "ray":
            raise UserError("--ray-address says where a Ray cluster is: give --on ray with it, or leave it out")
        if self.count is not None and self.count < 1:
            raise UserError(f"--workers is {self.count}, expected at least 1")


@dataclass(frozen=True)
class Piece:
    """A piece of work."""

    do: Callable[[], None]
    size: float
    """For the progress bar."""
    name: str
    """For messages."""


@dataclass(frozen=True)
class Failure:
    """What went wrong with a piece, as values that may cross a network."""

    user: str | None = None
    """The message of a `UserError`."""
    system: tuple[int, str, str | None] | None = None
    """Number, words and path of an `OSError`."""
    defect: str = ""
    """Any other exception in one line."""
    trace: str = ""

    def error(self) -> Exception:
        """The exception again."""
        if self.user is not None:
            return UserError(self.user)
        error = RuntimeError(f"in a worker: {self.defect}") if self.system is None else OSError(*self.system)
        error.add_note(self.trace)
        return error


def attempt(do: Callable[[], None]) -> Failure | None:
    """Do a piece where it is to be done."""
    try:
        do()
    except UserError as error:
        return Failure(user=str(error))
    except OSError as error:
        if error.errno is None:
            return Failure(defect=f"{type(error).__name__}: {error}", trace=traceback.format_exc())
        path = None if error.filename is None else os.fsdecode(error.filename)
        return Failure(system=(error.errno, error.strerror or "", path), trace=traceback.format_exc())
    except Exception as error:
        return Failure(defect=f"{type(error).__name__}: {error}", trace=traceback.format_exc())
    return None


class Crew(Protocol):
    """Those who do pieces, side by side."""

    @property
    def room(self) -> bool:
        """Whether another piece may be started."""
        ...

    @property
    def busy(self) -> bool:
        """Whether pieces are being done."""
        ...

    def start(self, number: int, piece: Piece) -> None:
        """Take a piece; `number` is its place in the order of all."""
        ...

    def finished(self) -> list[tuple[int, Failure | None]]:
        """Wait for at least one piece; the numbers of those that have ended, and what went wrong."""
        ...


def alone() -> None:
    """A worker has one core to itself; other workers have the others."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
