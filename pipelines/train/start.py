"""Where a run's weights come from: fresh, or from a network that was trained before.

A run that starts from a model takes that model's config (the recipe's `model` may override what changes no shape, such
as dropout) and its tokenizer, and copies what fits by our parameter names. Heads (`Family.heads`) that the model does
not have, or has for other classes, are fresh; all else must be there. What happened is told in a few lines. A run that goes
on from another run of the same system (`Ancestor`) takes its config and tokenizer in the same way, and its whole state later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...shared.errors import UserError
from ...shared.family import Adopt, Family
from ...shared.heads import Pooler
from ...shared.system import System
from ...shared.tokenizer import NoTokenizer, Tokenizer
from ...text.tasks import SequenceClassifier
from ..model import frontdoor
from ..run import checkpoint
from ..run.directory import SYSTEM, open_run
from ..run.optim import layer_depths
from ..run.recipe import Recipe
from .ancestor import Ancestor, find_ancestor

TRUNK = "trunk"


@dataclass(frozen=True)
class Start:
    """Where a run's weights come from."""

    source: str = ""
    """The model's directory or hub id; empty for a run with randomly initialized weights."""
    config: Any = None
    """The model's config, with the recipe's overrides; None for a run with randomly initialized weights."""
    tokenizer: Tokenizer | None = None
    net: nn.Module | None = None
    """The model; None where the run goes on from a checkpoint of its own."""
    ancestor: Ancestor | None = None
    """The run whose state this one began with."""
    has_begun: bool = False
    """Whether the run goes on from a checkpoint of its own."""

    def fill(self, system: System, family: Family) -> list[str]:
        """Copy what fits into the system and say what was taken, what is fresh, and what was left over."""
        if self.net is None:
            return []
        lines: list[str] = []
        origin: frontdoor.Origin = self.net.origin  # type: ignore[assignment]
        adopt = family.starts.get(origin.family)
        for place, net in system.exports().items():
            found = self.net if not place else frontdoor.parts(self.source, place)
            name = f"{self.source}{f' ({place})' if place else ''}"
            lines += [f"weights of {name}: {place} is randomly initialized"] if found is None else copy_weights(
                net, found, family, name, adopt)
        return [*lines, *self._files(system.net)]

    def brought(self, net: nn.Module) -> Mapping[str, Mapping[str, Any]]:
        """What the model has beside config and weights that `net`, a fresh one, has not: JSON files by name."""
        if self.net is None:
            return {} if self.ancestor is None else open_run(self.ancestor.run).brought()
        entry: frontdoor.Origin = self.net.origin  # type: ignore[assignment]
        own = {name for format in entry.net.formats[:1] for name in format.files(net)}
        return {name: record for format in entry.net.formats[:1] for name, record in format.files(self.net).items() if name not in own}

    def _files(self, net: nn.Module) -> Iterable[str]:
        """What differs in the files beside the weights: how pictures are prepared is the recipe's to say."""
        entry: frontdoor.Origin = self.net.origin  # type: ignore[union-attr,assignment]
        for format in entry.net.formats[:1]:
            theirs, ours = format.files(self.net), format.files(net)
            for name, record in theirs.items():
                other = [f"{k} {v} (here {ours[name].get(k)})" for k, v in record.items() if name in ours and ours[name].get(k) != v]
                if other:
                    yield f"note: the model's {name} has {', '.join(other)}: set objective.* if that is not meant"


def find_start(recipe: Recipe, family: Family, model: str | Path | None, out: Path, resume: str | Path,
               continue_from: str | Path | None = None) -> Start:
    """Where the run's weights come from, before anything is built.

    A run that goes on needs no model again: its directory holds the config and the tokenizer. Every rank must call it.
    """
    if model is not None and continue_from is not None:
        raise UserError("--model and --continue-from both say where the run begins: --continue-from takes a run's optimizer state with "
                        "its weights, --model the weights alone")
    ancestor = find_ancestor(continue_from, out, resume)
    directory = out if resume in ("auto", "never") else Path(resume).absolute().parent.parent
    if resume != "never" and checkpoint.all_checkpoints(directory / "checkpoints"):
        run = open_run(directory)
        source = run.described().get("model", "")
        if model is not None and not source:
            began = "with randomly initialized weights" if ancestor is None else f"from {ancestor.run}"
            raise UserError(f"{directory} began {began} and cannot go on with those of {model}: use another --out, or leave --model out")
        if not source and ancestor is None:
            return Start(has_begun=True)
        return Start(source, run.config(), run.tokenizer(), ancestor=ancestor, has_begun=True)
    if ancestor is not None:
        ancestor.check_recipe(recipe)
        run = open_run(ancestor.run)
        return Start("", recipe.configure(family, run.config()), run.tokenizer(), ancestor=ancestor)
    if model is None and resume == "auto" and (out / SYSTEM).is_file():  # it ended before its first checkpoint
        model = open_run(out).described().get("model") or None
    if model is None:
        return Start()
    net = frontdoor.load(model, device=torch.get_default_device())
    origin: frontdoor.Origin = net.origin  # type: ignore[assignment]
    adopt = family.starts.get(origin.family)
    if adopt is None and origin.family != family.name and origin.net not in family.nets:  # MacBERT and SpanBERT have BERT's
        raise UserError(f"{model} holds a {origin.net.architecture} ({origin.family}), recipe {recipe.name} trains {family.name}: "
                        f"choose a recipe for {origin.family}, or another --model")
    try:
        tokenizer = frontdoor.tokenizer(model)
    except NoTokenizer:
        tokenizer = None  # a model of pictures, or a directory without one: whoever needs it says so
    return Start(str(model), recipe.configure(family, net.config if adopt is None else adopt.config(net.config)), tokenizer, net)


def untrained_summary(system: System, start: Start, frozen: Sequence[str]) -> Iterator[str]:
    """A note where all layers stay as they are and the token that classes are read off was never trained to sum up a text."""
    depths, net = layer_depths(system), system.net
    blocks = [name for name, depth in depths.items() if depth.layer]
    if (start.net is not None and blocks and set(blocks) <= set(frozen) and isinstance(net, SequenceClassifier)
            and net.config.summary_token == "first" and not any(isinstance(part, Pooler) for part in start.net.modules())):
        yield (f"note: all layers are frozen, and classes are read off the first token, of which {start.source} was not trained to make a "
               "summary (it has no pooler): expect little more than the most frequent class; freeze fewer layers, or read all "
               f"layers and tokens: recipe features-base with companions.features={start.source}")


def copy_weights(target: nn.Module, source: nn.Module, family: Family, name: str, adopt: Adopt | None = None) -> list[str]:
    """Copy the weights of `source` into `target`, a network of `family`, by their names here.

    A part (a child of the network, or of its trunk) is copied where both have a module of the same class there. `adopt` says what becomes
    of the tensors before that, where the two networks are not of one family and one shape.

    Returns:
        Lines for people.

    Raises:
        UserError: weights outside the family's heads are missing or have another shape.
    """
    ours, theirs = _with_trunk(target, source), _with_trunk(source, target)
    tensors, found = dict(_tensors(target, ours)), dict(_tensors(source, theirs))
    given = found if adopt is None else adopt.weights(found, target)
    taken: list[str] = []
    fresh: list[str] = []
    problems: list[str] = []
    for key, tensor in tensors.items():
        other = given.get(key)
        if other is not None and other.shape == tensor.shape and _same_kind(target, ours, source, theirs, key):
            taken.append(key)
        elif any(key == head or key.startswith(f"{head}.") for head in family.heads):
            fresh.append(key)
        else:
            problems.append(f"{key} is missing" if other is None else f"{key} is {list(other.shape)}, this run needs {list(tensor.shape)}")
    if problems:
        more = f"; and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise UserError(f"the weights of {name} do not fit this network: {'; '.join(problems[:6])}{more}: leave overrides of model.* "
                        "that change its shape out, or start from randomly initialized weights")
    with torch.no_grad():
        for key in taken:
            tensors[key].copy_(given[key])
    left = [key for key in given if key not in taken]
    size = sum(given[key].numel() for key in taken)
    lines = [f"weights of {name}: loaded {len(taken)} tensors ({size:,} parameters)"]
    fitted = [f"{key} {list(found[key].shape)} -> {list(given[key].shape)}" for key in taken if key in found
              and found[key].shape != given[key].shape]
    if fitted:
        lines.append(f"fitted to this network: {', '.join(fitted)}")
    if fresh:
        lines.append(f"randomly initialized: {_parts(fresh, family)}")
    if left:
        lines.append(f"not used: {_parts(left, family)}")
    return lines


def _with_trunk(net: nn.Module, other: nn.Module) -> str:
    """What comes before the names of `net`, so that they are those of a network around it: a bare trunk meets one."""
    return f"{TRUNK}." if hasattr(other, TRUNK) and not hasattr(net, TRUNK) else ""


def _tensors(net: nn.Module, before: str) -> Iterable[tuple[str, Tensor]]:
    """Parameters and saved buffers, a tied one under its first name."""
    seen: set[int] = set()
    for name, tensor in net.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield before + name, tensor.detach()


def _same_kind(target: nn.Module, ours: str, source: nn.Module, theirs: str, key: str) -> bool:
    """Whether the part that `key` lies in is of the same class in both: heads of the same name may mean different things."""
    def part(net: nn.Module, before: str) -> type | None:
        path = key.removeprefix(before).split(".")
        name = path[0] if path[0] != TRUNK or len(path) == 1 else f"{path[0]}.{path[1]}"
        try:
            return type(net.get_submodule(name))
        except AttributeError:
            return None  # a tensor of the network itself
    return part(target, ours) is part(source, theirs)


def _parts(keys: Iterable[str], family: Family) -> str:
    """The parts that `keys` lie in, for people: heads by their name, else the first two."""
    found: dict[str, int] = {}
    for key in keys:
        head = next((h for h in family.heads if key == h or key.startswith(f"{h}.")), None)
        name = head or ".".join(key.split(".")[: 2 if key.startswith(f"{TRUNK}.") else 1])
        found[name] = found.get(name, 0) + 1
    return ", ".join(f"{name} ({count} tensor{'s' if count > 1 else ''})" for name, count in found.items())

