"""torchrun with an ending that a scheduler can act on: `python -m polymodal.pipelines.launch.agent`, with torchrun's own words.

torchrun ends with 1 and a traceback when it is told to stop, whatever its ranks did. Here: the exit codes of `base/endings.py`. The code is
75 also where a signal came before there was anything to save, as the same command is what to do then, too.

Agents meet at a store that one of them keeps. Where that one ends first, the others lose it, and nobody can tell them how it ended. So an
agent goes by the signs of its own ranks then: 0 where all were done, 75 where they were stopped and saved, else 1.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from ..base.endings import FAILED, FOLDER, STOPPED


def main(arguments: Sequence[str] | None = None) -> int:
    """Start this machine's ranks and wait for them; the exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)  # until there are ranks; then torchrun's own handlers hand it on to them
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.run import determine_local_world_size, parse_args, run

    with tempfile.TemporaryDirectory(prefix="polymodal-endings-") as name:
        folder = Path(name)
        os.environ[FOLDER] = name
        given = parse_args(list(sys.argv[1:] if arguments is None else arguments))
        try:
            run(given)
            stopped = (folder / "stopped").exists()
        except SignalException:
            stopped = True
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            print(f"rank {rank} ended with code {failure.exitcode}, and its own lines say why", file=sys.stderr)
            return failure.exitcode if 0 < failure.exitcode < STOPPED else FAILED
        except RendezvousError as error:
            stopped = (folder / "stopped").exists()
            ended = len(list(folder.glob("done-*"))) == determine_local_world_size(given.nproc_per_node)
            what = ("were done" if ended else "were stopped" if stopped else
                    "had to end, and the same command goes on from the newest checkpoint")
            print(f"the other agents are lost ({type(error).__name__} at {given.rdzv_endpoint}): the one that keeps the meeting place "
                  f"ended first, and its own lines say why; the ranks of this machine {what}", file=sys.stderr)
            if not (ended or stopped):
                return FAILED
        if stopped and (folder / "failed").exists():
            return FAILED
        return STOPPED if stopped else 0


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(STOPPED)


if __name__ == "__main__":
    sys.exit(main())
