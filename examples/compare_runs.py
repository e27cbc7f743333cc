"""Are two runs the same run? The largest difference of their training losses, update by update.

    python examples/compare_runs.py RUN OTHER

Both must have been logged after every update (`log.every=1`). `polymodal compare` shows how runs differ that are not meant to be the same.
"""

from __future__ import annotations

import sys

import polymodal


def losses(directory: str) -> list[tuple[int, float]]:
    """(update, loss) of every line of a run's metrics."""
    return [(row["update"], row["loss"]) for row in polymodal.open_run(directory).metrics("train")]


def main(one: str, other: str) -> float:
    """Print the largest relative difference and give it back."""
    try:
        a, b = losses(one), losses(other)
    except polymodal.UserError as error:
        sys.exit(f"error: {error}")
    updates = list(range(1, len(a) + 1))
    if [u for u, _ in a] != updates or [u for u, _ in b] != updates:
        sys.exit("the runs do not hold the same updates, each once: wait until both are complete, and log after every update")
    difference = max(abs(x - y) / abs(x) for (_, x), (_, y) in zip(a, b, strict=True))
    print(f"{len(a)} updates in both runs, none missing, none twice")
    print(f"largest relative difference of the training loss: {difference:.1g}")
    return difference


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/compare_runs.py RUN OTHER")
    main(*sys.argv[1:])
