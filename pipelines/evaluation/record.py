"""Records of evaluations, for people: one as a table, several side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...shared.errors import UserError
from .intervals import Interval

FORMAT = "polymodal evaluation"


def table(record: Mapping[str, Any]) -> str:
    """The numbers of a record, each with its interval."""
    shown = record["metrics"]
    width = max(map(len, shown), default=0)
    lines = [f"{name.ljust(width)}  {_number(value)}{_range(record['intervals'].get(name))}" for name, value in shown.items()]
    data = record["data"]
    return "\n".join([f"{record['task']} ({record['method']}), {data['measured']} samples of {data['source']}", *lines])


def compare(paths: Sequence[str | Path]) -> tuple[list[dict[str, Any]], str]:
    """The records in these files, and their numbers side by side; what differs in their settings is told."""
    records = [_read(Path(p)) for p in paths]
    tasks = sorted({r["task"] for r in records})
    if len(tasks) > 1:
        raise UserError(f"the files hold different tasks ({', '.join(tasks)}): compare those of one task")
    names = list(dict.fromkeys(name for r in records for name in r["metrics"]))
    heads = ["", *(Path(p).stem for p in paths)]
    rows = [[name, *(_number(r["metrics"].get(name)) + _range(r["intervals"].get(name)) for r in records)] for name in names]
    notes = [f"note: {what} differs: {', '.join(str(v) for v in values)}" for what, values in {
        "data": [r["data"]["fingerprint"][:12] for r in records], "samples": [r["data"]["measured"] for r in records],
        "method": [r["method"] for r in records],
        **{f"setting {k}": [r["settings"].get(k) for r in records] for k in records[0]["settings"]},
    }.items() if len({json.dumps(v) for v in values}) > 1]
    widths = [max(len(line[i]) for line in (heads, *rows)) for i in range(len(heads))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip() for line in (heads, *rows)]
    return records, "\n".join([f"task: {tasks[0]}", *lines, *notes])


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT or record["version"] != 1:
            raise KeyError("format")
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not a result of `polymodal evaluate`") from None
    return record


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}" if abs(value) < 1e5 else f"{value:.4g}"


def _range(interval: Mapping[str, Any] | Interval | None) -> str:
    if interval is None:
        return ""
    found = interval if isinstance(interval, Mapping) else asdict(interval)
    return f"  [{_number(found['low'])}, {_number(found['high'])}]"
