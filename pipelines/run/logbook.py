"""What a run writes while it goes on: metrics, samples, bad records and events, as JSON lines, in TensorBoard and in Weights & Biases.

Rank 0 writes. A line is complete, or it is left out when the file is read (`base/files.py`).
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ...shared.errors import UserError
from ...shared.system import Preview
from ..base.console import finite
from ..base.files import json_lines, read_json_lines, replace_durably, sync_directory
from ..base.install import install_line
from .directory import BAD, EVENTS, METRICS, SAMPLES, WANDB, Run
from .recipe import Recipe


class Logbook:
    """Writes metrics, samples and bad records of a run: JSON lines, TensorBoard and Weights & Biases."""

    def __init__(self, run: Run, resolved: Recipe, update: int) -> None:
        """Continue after `update` updates: lines of later ones, written before a crash, are removed."""
        self._run, self._recipe = run, resolved
        self._wandb = _wandb(run.directory, resolved)
        self._open(update)

    def _open(self, update: int) -> None:
        for name in (METRICS, SAMPLES, BAD):
            _keep(self._run.directory / name, lambda row: row["update"] <= update)
        # a skipped update is found again; how a run ended, and what a rewind has decided, stays true
        _keep(self._run.directory / EVENTS, lambda row: row["update"] <= update or row["event"] != "skip")
        self._metrics = (self._run.directory / METRICS).open("a", encoding="utf-8")
        self._board = _tensorboard(self._run.directory, self._recipe.log.tensorboard, update)

    def go_back(self, update: int) -> None:
        """Continue after `update` updates once more: lines of later ones are removed."""
        self._close()
        self._open(update)

    def add_row(self, row: Mapping[str, Any]) -> None:
        """Add one line of metrics."""
        self._metrics.write(json.dumps(finite(row)) + "\n")
        self._metrics.flush()
        numbers = {k: v for k, v in row.items() if isinstance(v, (int, float)) and k != "update"}
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(f"{row['split']}/{name}", value, row["update"])
            self._board.flush()
        if self._wandb is not None:
            self._wandb.log({f"{row['split']}/{name}": value for name, value in numbers.items()}, step=row["update"])

    def add_previews(self, update: int, previews: Iterable[Preview]) -> None:
        """Add what the model made of held-out examples."""
        lines: list[dict[str, Any]] = []
        for number, preview in enumerate(previews):
            line: dict[str, Any] = {"update": update, "rows": [list(r) for r in preview.rows]}
            if preview.image is not None:
                from PIL import Image

                line["image"] = f"previews/update-{update:08d}-{number}.png"
                (self._run.directory / "previews").mkdir(exist_ok=True)
                Image.fromarray(preview.image).save(self._run.directory / line["image"])
            lines.append(line)
        self._append(SAMPLES, lines)

    def add_bad(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add skipped samples."""
        self._append(BAD, records)

    def _append(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        text = json_lines(records)
        if text:
            with (self._run.directory / name).open("a", encoding="utf-8") as file:
                file.write(text)

    def add_event(self, record: Mapping[str, Any]) -> None:
        """Add what happened to an update, and wait until it is on the disk."""
        path = self._run.directory / EVENTS
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(record)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        sync_directory(path.parent)

    def sync(self) -> None:
        """Wait until the metrics are on the disk."""
        os.fsync(self._metrics.fileno())

    def close(self) -> None:
        """Finish writing."""
        self._close()
        if self._wandb is not None:
            self._wandb.finish()

    def _close(self) -> None:
        self._metrics.close()
        if self._board is not None:
            self._board.close()


def _keep(path: Path, wanted: Callable[[Mapping[str, Any]], bool]) -> None:
    """Leave only complete lines that are wanted."""
    if path.exists():
        replace_durably(path, json_lines(record for record in read_json_lines(path) if wanted(record)))


def _tensorboard(directory: Path, wanted: bool | None, update: int) -> Any:
    if wanted is False:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        if wanted:
            raise UserError(f"log.tensorboard is true and tensorboard is not installed: {install_line('tensorboard')}") from None
        return None
    return SummaryWriter(str(directory / "tensorboard"), purge_step=update + 1)


def _wandb(directory: Path, resolved: Recipe) -> Any:
    if resolved.log.wandb is None:
        return None
    try:
        import wandb  # type: ignore[import-not-found]
    except ImportError:
        raise UserError(f"log.wandb is set and wandb is not installed: {install_line('wandb')}") from None
    return wandb.init(project=resolved.log.wandb, name=directory.absolute().name, id=_wandb_id(directory), dir=str(directory),
                      resume="allow", config=resolved.to_dict())


def _wandb_id(directory: Path) -> str:
    """The run's id there: drawn at its first start, since two runs of a project may lie in directories of the same name."""
    path = directory / WANDB
    if not path.is_file():
        replace_durably(path, json.dumps({"id": secrets.token_hex(8)}))
    return str(json.loads(path.read_text(encoding="utf-8"))["id"])
