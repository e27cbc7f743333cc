"""Checkpoints that survive a crash at any moment, sharded, reshardable and free of pickles.

A checkpoint is one directory:

    update-00001000/
        shard-00001-model-00001-of-00001.safetensors   what rank 0 wrote (torch's distributed checkpoint)
        state.json                                      everything that is not a tensor
        manifest.json                                   size and sha256 of every other file

It is written under a temporary name, flushed to the disk and renamed into place, so a directory called
`update-*` is complete or damaged by something else; the manifest tells which. Names are never used twice:
until the new checkpoint stands, the old one is untouched. torch's distributed checkpoint (DCP) says which
rank has which part of a tensor and reassembles them, so a run may continue on another number of ranks; its
storage here is safetensors, because DCP's own metadata file is a pickle and loading a pickle executes it.
`pipelines/run/saver.py` writes checkpoints beside the training.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import uuid
import warnings
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...shared import dist
from ...shared.errors import UserError
from ..base.files import sync_directory, write_durably
from .chunks import Chunk, Shares, chunks_of, is_sharded, write

if TYPE_CHECKING:
    import torch.distributed.checkpoint as dcp  # takes seconds to import: the functions that need it do so

FORMAT = 1
AVERAGE = "ema/"
"""What the averages of the weights (`optim.ema_decay`) begin with, where the weights themselves begin with `model/`."""
MANIFEST = "manifest.json"
STATE = "state.json"
_NAME = re.compile(r"update-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk."""

    path: Path
    update: int
    """How many updates had been made."""

    def state(self) -> dict[str, Any]:
        """Everything in it that is not a tensor."""
        try:
            state = json.loads((self.path / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"checkpoint {self.path}: {STATE} cannot be read ({type(error).__name__}: {error}); "
                            "use an earlier one") from None
        if not isinstance(state, dict):
            raise UserError(f"checkpoint {self.path}: {STATE} holds no JSON object; use an earlier one")
        return cast("dict[str, Any]", state)


def name_of(update: int) -> str:
    """The directory name of the checkpoint after `update` updates."""
    return f"update-{update:08d}"


# --- writing ---------------------------------------------------------------------------------------------------------


def save(directory: Path, update: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Checkpoint:
    """Write a checkpoint; every rank calls it with its own tensors, and returns when it stands (`Saver` does not wait).

    Args:
        directory: the run's `checkpoints/`; made if it is missing.
        update: updates made so far.
        tensors: names to tensors; tensors that every rank has are written once, DTensors in their shards.
            Names may differ between ranks.
        state: JSON values; rank 0's are written.

    Raises:
        UserError: where the disk is full or not writable; earlier checkpoints are as they were.
    """
    chunks = Shares().mine(chunks_of(without_aliases(tensors)))
    return write_together(directory, update, chunks, json.dumps(state, ensure_ascii=False))


def write_together(directory: Path, update: int, chunks: Sequence[Chunk], state: str, after: Callable[[], None] | None = None,
                   group: Any = None) -> Checkpoint:
    """Write a checkpoint whose chunks the ranks have shared out (`Shares`); every rank calls it.

    Args:
        directory: the run's `checkpoints/`.
        update: updates made so far.
        chunks: what this rank writes.
        state: JSON; rank 0's is written.
        after: what rank 0 does once the checkpoint stands.
        group: the ranks' process group; None for the one they train with.
    """
    final = directory / name_of(update)

    def together(work: Callable[[], Any]) -> list[Any]:
        return _together(work, directory, group)

    def on_rank_0(work: Callable[[], Any]) -> Any:
        return together(work if dist.rank() == 0 else lambda: None)[0]

    name = on_rank_0(lambda: None if final.exists() and damage(final) is None else _start(directory, update))
    if name is not None:
        temporary = directory / str(name)
        shard = f"shard-{dist.rank() + 1:05d}-model-00001-of-00001.safetensors"
        try:
            parts = together(lambda: {shard: write(temporary / shard, chunks)} if chunks else {})
            files = {name: entry for part in parts for name, entry in part.items()}
            on_rank_0(lambda: _publish(temporary, final, update, files, state))
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    if after is not None:
        on_rank_0(after)
    return Checkpoint(final, update)


def _start(directory: Path, update: int) -> str:
    directory.mkdir(parents=True, exist_ok=True)
    name = f".tmp-{name_of(update)}-{uuid.uuid4().hex}"
    (directory / name).mkdir()
    return name


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _publish(temporary: Path, final: Path, update: int, files: dict[str, Any], state: str) -> None:
    write_durably(temporary / STATE, state)
    files[STATE] = _entry(temporary / STATE)
    manifest = {"format": FORMAT, "update": update, "files": files}
    write_durably(temporary / MANIFEST, json.dumps(manifest, indent=1))
    sync_directory(temporary)
    damaged = final.with_name(f".tmp-damaged-{final.name}-{uuid.uuid4().hex}")
    if final.exists():  # it did not verify
        final.rename(damaged)
    temporary.rename(final)
    sync_directory(final.parent)
    shutil.rmtree(damaged, ignore_errors=True)


def _together(work: Callable[[], Any], directory: Path, group: Any) -> list[Any]:
    """Do `work` on every rank and give all results (JSON); where it fails on one, raise on all, so that no rank waits for another."""
    result: Any = None
    caught: Exception | None = None
    try:
        result = work()
    except Exception as error:
        caught = error
    outcomes = dist.gather_json([result, None if caught is None else _story(caught)], group)
    if caught is not None and not isinstance(caught, OSError):
        raise caught
    stories = [story for _, story in outcomes]
    failed = next((f"{story} (rank {r})" if len(stories) > 1 else story for r, story in enumerate(stories) if story is not None), None)
    if failed is not None:
        raise UserError(
            f"cannot write a checkpoint to {directory}: {failed}; earlier checkpoints are intact: "
            "make room or set the permissions, and run the same command again to resume"
        ) from caught
    return [result for result, _ in outcomes]


def _story(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"


def without_aliases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out names of tensors that are listed already (tied weights): loading fills both."""
    seen: set[tuple[int, ...]] = set()
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        local: Tensor = cast("Any", tensor).to_local() if is_sharded(tensor) else tensor
        # a shard without rows has no address, yet tied weights share its storage
        place = (local.data_ptr() or cast("Any", local.untyped_storage())._cdata, *local.shape, *local.stride())  # noqa: SLF001
        if place not in seen:
            seen.add(place)
            kept[name] = tensor.detach()
    return kept


# --- finding ---------------------------------------------------------------------------------------------------------


def damage(path: Path) -> str | None:
    """What is wrong with the checkpoint at `path`; None where every byte is as it was written."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return f"format {manifest['format']}, this version reads {FORMAT}"
        files: dict[str, Any] = manifest["files"]
        for name, entry in files.items():
            file = path / name
            if file.parent != path:
                return f"{MANIFEST} names {name!r}, which is outside"
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != entry["bytes"]:
                return f"{name} has {file.stat().st_size} bytes, expected {entry['bytes']}"
        for name, entry in files.items():
            if _entry(path / name)["sha256"] != entry["sha256"]:
                return f"{name} does not have the sha256 it was written with"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__}: {error})"
    return None


def all_checkpoints(directory: Path) -> list[Checkpoint]:
    """Every checkpoint in `directory`, oldest first, whether it verifies or not."""
    if not directory.is_dir():
        return []
    found = [(int(match[1]), path) for path in directory.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [Checkpoint(path, update) for update, path in sorted(found)]


def newest(directory: Path, warn: Callable[[str], None] = warnings.warn) -> Checkpoint | None:
    """The newest checkpoint that verifies; each newer, damaged one is told to `warn`. The same on every rank."""
    found = newest_here(directory, warn) if dist.rank() == 0 else None
    update = dist.gather_json(None if found is None else found.update)[0]
    return None if update is None else Checkpoint(directory / name_of(update), update)


def newest_here(directory: Path, warn: Callable[[str], None] = warnings.warn) -> Checkpoint | None:
    """As `newest`, for one rank alone."""
    for checkpoint in reversed(all_checkpoints(directory)):
        reason = damage(checkpoint.path)
        if reason is None:
            return checkpoint
        warn(f"checkpoint {checkpoint.path.name} is damaged ({reason}); trying the one before")
    return None


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`, verified, or a `UserError`."""
    match = _NAME.fullmatch(path.name)
    if match is None or not path.is_dir():
        raise UserError(f"{path} is not a checkpoint: expected a directory called {name_of(1000)}, for example")
    reason = damage(path)
    if reason is not None:
        raise UserError(f"checkpoint {path} is damaged: {reason}; use an earlier one")
    return Checkpoint(path, int(match[1]))


def verified_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`, which another rank has verified: reading every byte of it once is enough."""
    match = _NAME.fullmatch(path.name)
    assert match is not None, path
    return Checkpoint(path, int(match[1]))


def clean(directory: Path) -> None:
    """Remove what interrupted writes left behind. Only for the process that owns the run."""
    if directory.is_dir():
        for path in (*directory.glob(".tmp-*"), *directory.glob(".damaged-*")):  # the latter by version 0.1
            shutil.rmtree(path, ignore_errors=True)


def prune(directory: Path, keep_last: int, keep_every: int = 0, keep: Collection[int] = ()) -> None:
    """Remove old checkpoints: all but the newest `keep_last`, every update divisible by `keep_every`, and the updates `keep`."""
    assert keep_last >= 1
    for checkpoint in all_checkpoints(directory)[:-keep_last]:
        if (keep_every == 0 or checkpoint.update % keep_every) and checkpoint.update not in keep:
            # out of sight first: a removal that is interrupted must not look like a checkpoint
            hidden = checkpoint.path.with_name(f".tmp-old-{checkpoint.path.name}-{uuid.uuid4().hex}")
            checkpoint.path.rename(hidden)
            shutil.rmtree(hidden, ignore_errors=True)


# --- reading ---------------------------------------------------------------------------------------------------------


@contextmanager
def _reading(path: Path) -> Generator[None]:
    """Turn what the readers of torch and safetensors raise on damaged files, which is nearly anything, into a clear error."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise UserError(f"checkpoint {path} cannot be read ({type(error).__name__}{f': {reason[-1][:300]}' if reason else ''}): "
                        "use an earlier one") from error


def stored(path: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and type of every tensor in a checkpoint."""
    import torch.distributed.checkpoint as dcp

    with _reading(path):
        metadata = dcp.HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
        entries = cast("Mapping[str, dcp.TensorStorageMetadata]", metadata)
        return {name: (entry.size, entry.properties.dtype) for name, entry in entries.items()}


def load(path: Path, tensors: Mapping[str, Tensor], ignore: Callable[[str], bool] = lambda _: False) -> None:
    """Fill `tensors` in place from the checkpoint at `path`, resharding where the ranks differ.

    Args:
        path: a checkpoint directory.
        tensors: names to tensors of the right shape; those on the meta device are only checked.
        ignore: names of stored tensors that are not wanted.

    Raises:
        UserError: where names or shapes do not agree; it lists them.
    """
    import torch.distributed.checkpoint as dcp

    wanted = check_tensors(path, tensors, ignore)
    with _reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        here = {name: tensor for name, tensor in wanted.items() if not tensor.is_meta}  # all ranks must come, even for nothing
        dcp.load(here, storage_reader=dcp.HuggingFaceStorageReader(str(path)), no_dist=not dist.active())


def check_tensors(path: Path, tensors: Mapping[str, Tensor], ignore: Callable[[str], bool] = lambda _: False) -> dict[str, Tensor]:
    """Refuse a checkpoint whose names or shapes are not those of `tensors` (see `load`); gives what is to be read, each tensor once."""
    wanted = without_aliases(tensors)
    there = {name: entry for name, entry in stored(path).items() if not ignore(name)}
    problems = [f"missing {name}" for name in wanted if name not in there]
    problems += [f"unexpected {name}" for name in there if name not in wanted]
    problems += [
        f"{name} is {tuple(there[name][0])}, the model has {tuple(tensor.shape)}"
        for name, tensor in wanted.items() if name in there and there[name][0] != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise UserError(f"checkpoint {path} does not fit the model: {'; '.join(problems[:8])}{more}; use the recipe it was made with")
    return wanted


def model_tensors(system: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer of a system under its name in a checkpoint."""
    return {f"model/{name}": tensor for name, tensor in system.state_dict().items()}


def has_average(path: Path) -> bool:
    """Whether a checkpoint holds averages of the weights."""
    return any(name.startswith(AVERAGE) for name in stored(path))


def load_model(path: Path, system: nn.Module, *, to_train: bool = False) -> None:
    """Give a system the weights that the checkpoint at `path` holds: the averages where it has some, unless it is going `to_train` on."""
    there = () if to_train else [name for name in stored(path) if name.startswith(AVERAGE)]
    averaged = {name.replace(AVERAGE, "model/", 1): name for name in there}
    tensors = {averaged.get(name, name): tensor for name, tensor in model_tensors(system).items()}
    load(path, tensors, ignore=lambda name: name in averaged or not name.startswith("model/" if to_train else ("model/", AVERAGE)))


# --- optimizers ------------------------------------------------------------------------------------------------------


def optimizer_state(module: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of `optimizer` by parameter name: its tensors, and the rest as JSON.

    Hyper-parameters are left out: the recipe and the schedule give them.
    """
    names = {id(p): name for name, p in module.named_parameters()}
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}

    def put(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            tensors[name] = value
        else:
            scalars[name] = value

    for number, group in enumerate(optimizer.param_groups):
        for key in _running_keys(optimizer, group):
            put(f"optim/group-{number}/{key}", group[key])
        for parameter in group["params"]:
            for key, value in optimizer.state.get(parameter, {}).items():
                put(f"optim/{names[id(parameter)]}/{key}", value)
    return tensors, scalars


def _running_keys(optimizer: Optimizer, group: Mapping[str, Any]) -> list[str]:
    """What the optimizer itself keeps in a group (timm's LAMB counts its steps there)."""
    given = {"params", "use_fallback", "lr_scale", *optimizer.defaults}
    return [key for key in group if key not in given]


def load_optimizer_state(path: Path, module: nn.Module, optimizer: Optimizer, scalars: Mapping[str, Any]) -> None:
    """Give `optimizer` the state that `optimizer_state` named, from the checkpoint at `path`; what it has done so far is forgotten."""
    parameters = dict(module.named_parameters())
    tensors: dict[str, Tensor] = {}
    for name, (shape, dtype) in stored(path).items():
        if name.startswith("optim/"):
            parameter = parameters.get(name.split("/")[1])
            if parameter is not None and parameter.shape == shape:
                tensors[name] = torch.zeros_like(parameter, dtype=dtype)  # sharded where the parameter is
            else:
                tensors[name] = torch.zeros(shape, dtype=dtype)
    load(path, tensors, ignore=lambda name: not name.startswith("optim/"))
    per_place: dict[str, dict[str, Any]] = {}
    for name, value in [*tensors.items(), *scalars.items()]:
        _, place, key = name.split("/")
        per_place.setdefault(place, {})[key] = value
    fresh = optimizer.state_dict()
    names = {id(p): name for name, p in parameters.items()}
    state: dict[int, dict[str, Any]] = {}
    for number, (group, stated) in enumerate(zip(optimizer.param_groups, fresh["param_groups"])):
        for key in _running_keys(optimizer, group):
            stated.pop(key)
        stated.update(per_place.pop(f"group-{number}", {}))
        for parameter, index in zip(group["params"], stated["params"]):
            values = per_place.pop(names[id(parameter)], None)
            if values is not None:
                state[index] = values
    if per_place:
        raise UserError(f"checkpoint {path} has optimizer state for {_some(per_place)}, which this run does not train; "
                        "use the recipe it was made with")
    # torch's own loader knows which state belongs on which device
    optimizer.load_state_dict({"state": state, "param_groups": fresh["param_groups"]})


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
