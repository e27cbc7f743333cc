"""What events.jsonl says of updates that went wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..run.directory import Run


def rewind_decisions(run: Run) -> list[list[int]]:
    """[first, end) of the updates that rewinds of a run have decided to leave out, counted from 0."""
    return [[first - 1, last] for event in run.events() if event["event"] == "rewind" for first, last in [event["left_out"]]]


def describe_event(event: Mapping[str, Any]) -> str:
    """An event in one line for people."""
    norm, limit, loss = event.get("norm"), event.get("limit"), event.get("loss")
    size = "not finite" if limit is None else f"{norm:.4g}, more than {limit:.4g}"
    line = f"update {event['update']}: gradient norm {size}" + ("" if loss is None else f", loss {loss:.4g}")
    if event["event"] == "raise":
        return f"{line}: the run ended"
    first, last = event["left_out"]
    begin, end = event["positions"]
    what = f"update {last} made no step" if first == last else f"updates {first} to {last} make no step"
    back = f"back to update {event['to']}; " if event["event"] == "rewind" else ""
    return f"{line}: {back}{what}, samples at positions {begin} to {end - 1} are left out"
