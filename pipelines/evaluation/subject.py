"""What is evaluated: a model with its tokenizer, on a data set, on some device."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from ...registry import family
from ...shared.errors import UserError
from ...shared.family import Context
from ...shared.system import System
from ...shared.tokenizer import Tokenizer
from ..data.dataset import DataSet
from ..inference.trained import Trained, trained
from ..model import frontdoor
from ..model.frontdoor import companions_of
from ..run import checkpoint
from ..run.directory import is_run, open_run_or_checkpoint

if TYPE_CHECKING:
    from ..train.fabric import Fabric


@dataclass
class Subject:
    """What an evaluation is given: the model, the data, and where it runs."""

    source: str
    data: DataSet
    fabric: Fabric
    tokenizer_source: str | None = None
    seed: int | None = None
    quantize: str | None = None
    described: dict[str, Any] = field(default_factory=dict)
    """What the record says about the model, filled when it is loaded."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What else the record says: tokenizer, preprocessing, templates."""

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.fabric.device

    @cached_property
    def model(self) -> nn.Module:
        """The network; of a run that has ended the exported one."""
        net = frontdoor.load(self.source, device=self.device, quantize=cast("Any", self.quantize))
        origin = cast("frontdoor.Origin | None", getattr(net, "origin", None))
        path = Path(self.source)
        if (path / checkpoint.MANIFEST).is_file():
            self._describe_checkpoint(checkpoint.open_checkpoint(path.absolute()))
        elif is_run(path) and not (path / "export").is_dir():
            newest = checkpoint.newest(path / "checkpoints")
            assert newest is not None  # it was loaded
            self._describe_checkpoint(newest)
        else:
            directory = path / "export" if (path / "export").is_dir() else path if path.is_dir() else origin and origin.directory
            self.described |= {"kind": "directory", "files": _hashes(directory) if directory else {}}
        if origin is not None:
            self.described |= {"family": origin.family, "architecture": origin.net.architecture}
        return net

    @cached_property
    def trained(self) -> Trained:
        """What the model was fine-tuned with, as far as its directory tells; the record says what."""
        found = trained(self.model)
        self.facts["trained_with"] = {name: value for name, value in asdict(found).items() if value}
        return found

    def system(self, overrides: Mapping[str, Any]) -> System:
        """The system with its objective: a run's own, or that of the model's family with `overrides` of its objective settings."""
        if self.quantize is not None:
            raise UserError("quantize is for inference, and the system's own objective computes its loss on whole weights: give a window")
        if is_run(Path(self.source)) or (Path(self.source) / checkpoint.MANIFEST).is_file():
            if overrides:
                raise UserError(f"{self.source} is a run and brings its own objective: leave the settings of the objective out, or give "
                                "its export")
            run, at = open_run_or_checkpoint(self.source)
            at = at or checkpoint.newest(run.checkpoints)
            system = run.system(at, companions_of(run))
            assert at is not None
            self._describe_checkpoint(at)
            described = run.described()
            self.described |= {"family": described["system"], "task": described.get("task", ""), "objective": described["objective"]}
            if self.seed is None:
                self.seed = run.recipe().seed
            tokenizer = getattr(system.objective, "tokenizer", None)
            if isinstance(tokenizer, Tokenizer):
                self._check_tokenizer(tokenizer)
            return system.to(self.device).eval()
        origin = cast("frontdoor.Origin", self.model.origin)
        entry, task = family(origin.family), family(origin.family).task("")
        classes = self.data.index.schema.get("classes")
        system = task.build(cast("Any", self.model).config, overrides,
                            Context(self.tokenizer, None if classes is None else tuple(classes)))
        for place, net in system.exports().items():
            found = frontdoor.parts(self.source, place) if place else self.model
            if found is None:
                raise UserError(f"{self.source} lacks the part {place!r}, which {entry.name} needs beside its network")
            theirs, ours = ({k: v.shape for k, v in m.state_dict().items()} for m in (found, net))
            if theirs != ours:
                raise UserError(
                    f"{self.source} holds a {type(found).__name__} and the objective of {entry.name} trains a {type(net).__name__}: "
                    "give the model of a pretraining, or change the objective (--set NAME=VALUE; for a BERT without next sentence "
                    "--set nsp=false)")
            net.load_state_dict(found.state_dict())
        self.described["objective"] = dict(overrides)
        return system.to(self.device).eval()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, or a clear error."""
        try:
            found = frontdoor.tokenizer(self.tokenizer_source or self.source)
        except UserError as error:
            raise UserError(f"{error}; this evaluation reads text: pass --tokenizer DIR") from None
        self._check_tokenizer(found)
        return found.fitting_model(self.model)

    def _check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Take note of the tokenizer; refuse rows that another one made."""
        packed = self.data.index.schema.get("tokenizer")
        if packed is not None and packed != tokenizer.fingerprint:
            raise UserError(f"{self.data.directory} was packed with another tokenizer than the model's: pack the texts again with "
                            "`polymodal pack --tokenize`, or give the texts themselves")
        self.facts["tokenizer"] = tokenizer.fingerprint

    def picture_facts(self, preprocessing: Any) -> None:
        """Take note of how pictures become pixels."""
        self.facts["preprocessing"] = asdict(preprocessing)

    def classes(self, given: Sequence[str] = ()) -> tuple[str, ...]:
        """The names of the data's classes, or `given` ones in their place."""
        known = self.data.index.schema.get("classes")
        if given and known and len(given) != len(known):
            raise UserError(f"{len(given)} class names are given and {self.data.directory} has {len(known)} classes: give one for each, in "
                            "the order of their numbers")
        names = tuple(given or known or ())
        if not names:
            raise UserError(f"{self.data.directory} names no classes (its index has none): pack labelled data with --label-field or as "
                            "folders of one class each, or pass --labels")
        return names

    def _describe_checkpoint(self, at: checkpoint.Checkpoint) -> None:
        digest = hashlib.sha256((at.path / checkpoint.MANIFEST).read_bytes()).hexdigest()
        self.described |= {"kind": "checkpoint", "checkpoint": at.path.name, "update": at.update, "manifest_sha256": digest}


def _hashes(directory: Path) -> dict[str, str]:
    """The sha256 of every file of weights below a directory."""
    files = sorted(p for p in directory.rglob("*") if p.suffix in (".safetensors", ".bin") and p.is_file())
    found: dict[str, str] = {}
    for path in files:
        with path.open("rb") as file:
            found[str(path.relative_to(directory))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
