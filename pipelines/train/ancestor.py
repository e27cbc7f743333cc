"""A run that goes on from another one: its weights and its optimizer's state, under a recipe of its own.

BERT's second phase is such a run: longer sequences, another data set, another schedule, and Adam's averages go on. What the checkpoint
must fit is the system and its optimizer; objective settings, data, batch, schedule, seed and layout are the new run's. The new run counts
its updates and its samples from 0 and keeps in system.json where it came from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...shared import dist
from ...shared.errors import UserError, raise_problems
from ...shared.family import Context
from ...shared.system import System
from ..run import checkpoint
from ..run.directory import SYSTEM, Run, open_run, open_run_or_checkpoint
from ..run.recipe import Recipe

_KEPT = ("system", "task", "optim.name")
"""What the recipe of the new run must have in common with the old one's: the state is of these."""


@dataclass(frozen=True)
class Ancestor:
    """A checkpoint of the run that another one goes on from, as that one records it in system.json."""

    run: str
    """The directory of the old run."""
    checkpoint: str
    """The checkpoint's directory."""
    update: int
    """Updates that the old run had made."""
    fingerprint: str
    """sha256 of its manifest, which holds the sha256 of every other file."""

    @property
    def place(self) -> checkpoint.Checkpoint:
        """The checkpoint."""
        return checkpoint.Checkpoint(Path(self.checkpoint), self.update)

    def to_dict(self) -> dict[str, object]:
        """For system.json."""
        return asdict(self)

    def verify(self, run: Path) -> None:
        """Refuse if it is no longer what the run in `run` began with."""
        if not (self.place.path / checkpoint.MANIFEST).is_file() or _fingerprint(self.place.path) != self.fingerprint:
            raise UserError(f"{run} began from {self.checkpoint} (sha256 {self.fingerprint[:12]}), which is missing or has changed: put "
                            "it back, or start a new run in another --out")
        checkpoint.open_checkpoint(self.place.path)

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuse a recipe that trains something else."""
        raise_problems(_differences(self.place.state()["recipe"], recipe.to_dict()), f"{self.checkpoint} cannot be continued by this run")

    def check(self, system: System, context: Context) -> list[str]:
        """Refuse a system or a tokenizer that the checkpoint does not fit; lines for people."""
        tokenizer = open_run(self.run).tokenizer()
        if tokenizer is not None and context.tokenizer is not None and tokenizer.fingerprint != context.tokenizer.fingerprint:
            raise UserError(f"the tokenizer differs from that of {self.run}: leave --tokenizer out, and use data that is packed as "
                            "text or with that run's tokenizer")
        place = self.place.path
        checkpoint.check_tensors(place, checkpoint.model_tensors(system), ignore=lambda name: not name.startswith("model/"))
        trained = {name for name, parameter in system.named_parameters() if parameter.requires_grad}
        kept = {name.split("/")[1] for name in checkpoint.stored(place) if name.startswith("optim/")}
        frozen = sorted(name for name in kept - trained if not name.startswith("group-"))
        if frozen:
            raise UserError(f"{self.checkpoint} has optimizer state for {', '.join(frozen[:3])}{' ...' if len(frozen) > 3 else ''}, which "
                            "this run freezes: set optim.freeze as it was, or give the run as --model to begin with a fresh optimizer")
        return [f"going on from {self.checkpoint} (update {self.update}, sha256 {self.fingerprint[:12]}): its weights and the state of its "
                "optimizer; updates, data and schedule begin anew"]


def find_ancestor(source: str | Path | None, out: Path, resume: str | Path) -> Ancestor | None:
    """What a run goes on from: what `source` (a run or one of its checkpoints) means, or what its directory says that it began with.

    The same on every rank; every rank must call it.

    Raises:
        UserError: `source` is not where the run in `out` began, or what it began with has changed or is gone.
    """
    return None if (found := dist.on_rank_0(lambda: _find(source, out, resume))) is None else Ancestor(**found)


def _find(source: str | Path | None, out: Path, resume: str | Path) -> dict[str, object] | None:
    directory = out if resume in ("auto", "never") else Path(resume).absolute().parent.parent
    if resume != "never" and (directory / SYSTEM).is_file():
        began = recorded_ancestor(open_run(directory))
        if source is not None and (began is None or _run_of(source) != Path(began.run).resolve()):
            place = "with randomly initialized weights or those of a model" if began is None else f"from {began.run}"
            raise UserError(f"{directory} began {place} and cannot go on from {source}: use another --out, or leave --continue-from out")
        if began is not None and not checkpoint.all_checkpoints(directory / "checkpoints"):
            began.verify(directory)  # it ended before its first checkpoint
        return None if began is None else began.to_dict()
    if source is None:
        return None
    run, at = open_run_or_checkpoint(source)
    if at is None:
        at = checkpoint.newest_here(run.checkpoints)
    if at is None:
        raise UserError(f"{source} holds no checkpoint that verifies: let the run reach its first one")
    return Ancestor(str(run.directory), str(at.path), at.update, _fingerprint(at.path)).to_dict()


def recorded_ancestor(run: Run) -> Ancestor | None:
    """What a run says that it went on from."""
    found = run.described().get("ancestor")
    return None if found is None else Ancestor(**found)


def _run_of(source: str | Path) -> Path:
    """The directory of a run that is named by itself or by one of its checkpoints, which need not be there any more."""
    path = Path(source).resolve()
    return path.parent.parent if path.parent.name == "checkpoints" else path


def _fingerprint(place: Path) -> str:
    return hashlib.sha256((place / checkpoint.MANIFEST).read_bytes()).hexdigest()


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for key in _KEPT:
        was, is_ = before, now
        for part in key.split("."):
            was, is_ = was.get(part, ""), is_[part]
        if was != is_:
            yield f"{key} was {was!r} and is {is_!r}: set it back, or give the run as --model, whose weights alone are taken"
