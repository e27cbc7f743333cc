"""The public front door: `load`, `save`, `tokenizer`, `system`.

Everything here works on registry data (`Family`, `Net`, `Format`); no family is named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from ...registry import families, family
from ...shared.convert import to_ours, to_theirs
from ...shared.errors import UserError, raise_problems
from ...shared.family import Context, Family, Format, Net, Task, named_net
from ...shared.keys import read_json
from ...shared.meta import UndrawnWeights, without_weights
from ...shared.settings import build_settings
from ...shared.system import Companion, System
from ...shared.tokenizer import NoTokenizer, Tokenizer
from .weights import read_weights, write_directory, write_files

if TYPE_CHECKING:
    from ..run.directory import Run
    from .quantize import Quantization

__all__ = ["load", "save", "system", "tokenizer"]

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json",
                   "merges.txt", "spiece.model", "sentencepiece.bpe.model")
HUB_FILES = ("*.json", "*.safetensors", "pytorch_model*.bin", *TOKENIZER_FILES)
CONFIG = "config.json"


@runtime_checkable
class Reads(Protocol):
    """A network that reads others in use, too: they lie in directories beside its own files, by their names."""

    reads: tuple[str, ...]
    companions: dict[str, Companion]


@dataclass(frozen=True)
class Origin:
    """Where a network came from; kept as `net.origin` by `load`, so that `save` can carry files along."""

    family: str
    net: Net
    directory: Path | None = None


def system(
    name: str,
    *,
    size: str | None = None,
    task: str = "",
    tokenizer: Tokenizer | str | Path | None = None,
    classes: Sequence[str] | None = None,
    objective: Mapping[str, Any] | None = None,
    companions: Mapping[str, str | Path] | None = None,
    **config_overrides: Any,
) -> System:
    """Build a system with randomly initialized weights: `.net`, `.objective`, and `system(batch)` -> `Step`.

    Args:
        name: one of `systems()`.
        size: a named size; by default the paper's base.
        task: what it is fine-tuned for, such as "classify"; pretraining by default.
        tokenizer: the vocabulary, or where it lies; vocabulary size and special ids follow it. Without one, a system
            that reads text has its network but cannot read data.
        classes: class names of labelled data.
        objective: settings of the objective, such as ``{"mask_prob": 0.4}``.
        companions: where the trained networks lie that it reads and does not train, such as ``{"tokenizer": "runs/dvae"}`` of beit; without
            them it has its network, and reads only batches that bring what they would make.
        **config_overrides: fields of the family's config, such as ``hidden_size=256``.
    """
    entry = family(name)
    size = size or "base"
    if size not in entry.sizes:
        raise UserError(f"{name} has no size {size!r}; known: {', '.join(entry.sizes)}")
    vocabulary = Tokenizer.load(tokenizer) if isinstance(tokenizer, (str, Path)) else tokenizer
    chosen = entry.task(task)
    context = Context(vocabulary, None if classes is None else tuple(classes), companions=opened(companions or {}, chosen, name),
                      net_only=True)
    config = build_settings(entry.config, {**entry.sizes[size], **config_overrides}, f"{name} config")
    built = chosen.build(chosen.adapt(entry.adapt(config, context), context), objective or {}, context)
    _remember(built.net, entry, net_of(built.net, entry), None)
    return built


def opened(sources: Mapping[str, str | Path], task: Task, system: str,
           fingerprints: Mapping[str, str] | None = None) -> dict[str, Companion]:
    """Companions of a task by name; none is read before its first use.

    Args:
        sources: where they lie.
        task: of which family they may be.
        system: the family whose task it is.
        fingerprints: that they must have.
    """
    raise_problems(task.unknown_companions(sources, system))
    known = fingerprints or {}
    return {name: Companion(str(source), partial(_load_companion, name, str(source), task.companions[name], system), known.get(name, ""),
                            partial(_tokenizer_beside, str(source))) for name, source in sources.items()}


def companions_of(run: Run) -> dict[str, Companion]:
    """The companions of a run, as it began with them."""
    recipe, began = run.recipe(), run.companions()
    return opened(recipe.companions, family(recipe.system).task(recipe.task), recipe.system,
                  {name: each["fingerprint"] for name, each in began.items()})


def _tokenizer_beside(source: str) -> Tokenizer | None:
    try:
        return tokenizer(source)
    except NoTokenizer:
        return None


def _load_companion(name: str, source: str, families: tuple[str, ...], system: str) -> nn.Module:
    try:
        net = load(source)
    except UserError as error:
        raise UserError(f"companions.{name} of {system} cannot be read: {error}") from None
    origin = cast("Origin", net.origin)
    if families and origin.family not in families:
        raise UserError(f"companions.{name} is {source}, which holds a {origin.net.architecture} ({origin.family}); {system} needs a "
                        f"network of {' or '.join(families)} there")
    return net


def tokenizer(source: str | Path) -> Tokenizer:
    """The tokenizer of a model directory, run directory, file or hub id: encode, encode_batch, decode; special ids by role."""
    path = Path(source)
    if path.is_dir() and not any((path / f).is_file() for f in TOKENIZER_FILES):
        for inner in ("export", "tokenizer", "../../tokenizer"):  # of a run, and of a checkpoint of a run
            if any((path / inner / f).is_file() for f in TOKENIZER_FILES):
                return Tokenizer.load(path / inner)
    return Tokenizer.load(source)


# ------------------------------------------------------------------------------------------------- load


def load(source: str | Path, *, device: str | torch.device = "cpu", dtype: str | torch.dtype | None = None,
         quantize: Quantization | None = None, prepack: bool = False) -> nn.Module:
    """Load a network with its weights, in eval mode.

    Args:
        source: a directory in the layout of transformers, open_clip or timm, a run directory, or a hub id.
        device: where to put it.
        dtype: such as "bfloat16"; float32 by default.
        quantize: "int8" for matrices of a quarter of the size, on a CPU (`polymodal.pipelines.model.quantize`); such a network only infers.
        prepack: lay the matrices out for this CPU, which multiplies them faster then (`polymodal.pipelines.model.prepack`); such a network
            only infers, too. Nothing changes where it would not pay.

    Returns:
        The family's network with the head that the directory describes. It has `.config` and `.architecture`;
        its forward takes and names what the reference library does.

    Raises:
        UserError: nothing here can read the directory, or keys are missing or unexpected (they are listed).
    """
    target = _dtype(dtype)
    system = _from_run(Path(source))
    model = system.net if system is not None else _from_directory(_directory(source))
    return for_inference(model.eval().to(device=device, dtype=target), quantize, prepack)


def for_inference(model: nn.Module, quantize: Quantization | None = None, prepack: bool = False, rows: int | None = None) -> nn.Module:
    """The network in the form that `load` was asked for, changed in place; `rows` as in `polymodal.pipelines.model.prepack`."""
    if quantize is not None:
        from .quantize import quantize as fewer_bits

        model = fewer_bits(model, quantize)
    if prepack:
        from .prepack import prepack as laid_out

        model = laid_out(model, rows)
    return model


def parts(source: str | Path, place: str) -> nn.Module | None:
    """The network at `place` of an export ("" is what `load` gives; ELECTRA has its generator beside it), where it is there."""
    system = _from_run(Path(source))
    if system is not None:
        return system.exports().get(place)
    directory = _directory(source) / place
    return _from_directory(directory).eval() if (directory / CONFIG).is_file() else None


def _from_directory(directory: Path) -> nn.Module:
    entry, net, format, record = _recognise(directory)
    what = str(directory / format.config_file)
    config = entry.config.from_dict(record, what) if format.read is None else format.read(record, directory)
    theirs, path = read_weights(directory, format.weights_file)
    try:
        with UndrawnWeights():  # `_fill` wants a number for each
            model = net.build(config)
    except UserError:
        raise
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:  # a number that no layer takes
        reason = str(error).partition("\n")[0] or repr(error)
        raise UserError(f"{what} describes a network that cannot be built: {reason}") from error
    _fill(model, to_ours(format.rules(config), theirs, str(path)), str(path))
    format.finish(model, record, directory)
    _remember(model, entry, net, directory)
    if isinstance(model, Reads):
        places = {name: directory / name for name in model.reads if (directory / name).is_dir()}
        model.companions = {name: Companion(str(place), partial(load, place), tokenizer=partial(tokenizer, place))
                            for name, place in places.items()}
    return model


def _from_run(path: Path) -> System | None:
    """The system of a checkpoint, or of a run that has not ended (then from its newest checkpoint that verifies)."""
    from ..run.checkpoint import MANIFEST
    from ..run.directory import is_run, open_run_or_checkpoint

    if not (path / MANIFEST).is_file() and ((path / "export").is_dir() or not is_run(path)):
        return None
    run, at = open_run_or_checkpoint(path)
    entry = family(run.recipe().system)
    system = run.system(at, companions_of(run) if _reads_others(run, entry) else None)
    take_over(system.net, entry, run)
    _remember(system.net, entry, net_of(system.net, entry), run.directory / "tokenizer")
    return system


def _reads_others(run: Run, entry: Family) -> bool:
    """Whether the network of a run reads its companions in use, too."""
    if not run.companions():
        return False
    described = run.described()
    with without_weights():
        net = entry.task(described.get("task", "")).build(run.config(), described["objective"], run.context()).net
    return isinstance(net, Reads)


def take_over(net: nn.Module, entry: Family, run: Run) -> None:
    """Give a run's network what the model that the run began with had beside config and weights (`Run.brought`)."""
    from ..run.directory import START

    if run.brought() and (found := net_of(net, entry)) is not None:
        for format in found.formats[:1]:
            format.finish(net, {}, run.directory / START)


def _remember(model: nn.Module, entry: Family, net: Net | None, directory: Path | None) -> None:
    if net is not None:
        model.architecture = net.architecture  # type: ignore[assignment]  (a plain attribute)
        model.origin = Origin(entry.name, net, directory)  # type: ignore[assignment]


def _fill(model: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Copy `state` into the model, with every wrong shape reported at once."""
    shapes = {k: list(v.shape) for k, v in model.state_dict().items()}
    problems = [f"{k} is {list(v.shape)}, the config makes it {shapes[k]}"
                for k, v in state.items() if k in shapes and list(v.shape) != shapes[k]]
    raise_problems(problems[:12], what)
    lacking = [k for k in shapes if k not in state]
    assert not lacking, f"the rules do not make {lacking}"
    model.load_state_dict(dict(state))


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    if dtype is None:
        return torch.float32
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UserError(f"dtype is {dtype!r}, expected float32, bfloat16, float16 or float64")
    return found


def _directory(source: str | Path) -> Path:
    """The model directory that `source` means."""
    path = Path(source)
    if path.is_dir():
        if not (path / CONFIG).is_file() and (path / "export").is_dir():
            return path / "export"
        return path
    name = str(source)
    if path.exists() or not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name):
        raise UserError(f"there is no model directory at {name!r}: expected a directory or a hub id such as bert-base-uncased")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # the hub's client raises many kinds: bad name, no such repository, no network
        raise UserError(f"there is no model directory at {name!r}, and the hub says: {type(error).__name__}; "
                        "check the path, or the id and the network") from None


def _recognise(directory: Path) -> tuple[Family, Net, Format, dict[str, Any]]:
    """Which family, network and format a directory holds, and its main JSON file."""
    records = {path.name: read_json(path) for path in _json_files(directory)}
    if not records:
        raise UserError(f"{directory} is not a model directory: expected {CONFIG} (transformers, timm) or open_clip_config.json")
    for entry in families().values():
        for net in entry.nets:
            for format in net.formats:
                record = records.get(format.config_file)
                if record is not None and format.recognises is not None and format.recognises(record):
                    return entry, net, format, record
    if CONFIG not in records:
        raise UserError(f"{directory} holds {', '.join(records)}, and no system here reads it; see `polymodal systems`")
    record = records[CONFIG]
    entry, net = named_net(record, families().values(), str(directory / CONFIG))
    return entry, net, net.format("transformers"), record


def _json_files(directory: Path) -> Iterator[Path]:
    names = {CONFIG} | {x.config_file for f in families().values() for n in f.nets for x in n.formats}
    return (directory / n for n in sorted(names) if (directory / n).is_file())


# ------------------------------------------------------------------------------------------------- save


def save(model: nn.Module, directory: str | Path, *, tokenizer: Tokenizer | None = None, format: str | None = None) -> None:
    """Write a network in the reference library's layout: config, model.safetensors, tokenizer files.

    Args:
        model: from `load`, or `system(...).net`.
        directory: where to; files of the same names are replaced.
        tokenizer: written beside the weights, with the longest input of the network as its `model_max_length`; by default the files that
            lay beside the loaded ones.
        format: "transformers", "open_clip", "timm" or "polymodal", where the network has that layout; "gensim" or "glove" for the files of
            word vectors; by default its own.
    """
    directory = Path(directory)
    origin: Origin | None = getattr(model, "origin", None)
    if origin is None:
        entry, net = _known(model)
        origin = Origin(entry.name, net)
    entry, net = family(origin.family), origin.net
    if format is not None and (write := net.written.get(format)) is not None:
        if tokenizer is None and origin.directory is None:
            raise UserError(f"the format {format} names words, and this {net.architecture} came without its vocabulary: pass tokenizer=")
        words = Tokenizer.load(cast("Path", origin.directory)) if tokenizer is None else tokenizer
        write_files(directory, lambda work: write(model, words, work))
        return
    chosen = net.format(format) if format else net.default_format(model.config)
    model = chosen.fold(model)
    config: Any = model.config
    described = _described(model, entry, net) if chosen.write is None else chosen.write(model)
    files = {chosen.config_file: described, **chosen.files(model)}
    weights = to_theirs(chosen.rules(config), {k: v.cpu() for k, v in model.state_dict().items()}, net.architecture)
    beside = origin.directory
    copies = {f: beside / f for f in TOKENIZER_FILES if tokenizer is None and beside is not None and (beside / f).is_file()}
    if beside is not None and directory.exists() and directory.resolve() == beside.resolve():
        copies = {}
    write_directory(directory, files, weights, chosen.weights_file, copies)
    if tokenizer is not None:
        tokenizer.with_max_length(longest_input(model)).save(directory)
    for name, companion in model.companions.items() if isinstance(model, Reads) else ():
        save(companion.net, directory / name)


def longest_input(model: nn.Module) -> int | None:
    """Tokens of the longest text that a network has positions for; None where it reads no text, or any length."""
    config: Any = getattr(model, "config", None)
    config = getattr(config, "text_config", config)
    names = ("longest_input", "max_position_embeddings", "n_positions")
    return next((v for name in names if isinstance(v := getattr(config, name, None), int)), None)


def _described(model: nn.Module, entry: Family, net: Net) -> dict[str, Any]:
    """Transformers' config.json."""
    config: Any = model.config
    return {**config.to_dict(), "model_type": entry.model_type, "architectures": [net.architecture],
            "dtype": str(next(model.parameters()).dtype).removeprefix("torch.")}


def net_of(model: nn.Module, entry: Family) -> Net | None:
    """The entry of `entry.nets` that describes `model`, found by its class and its keys; None where there is none."""
    keys = {k: v.shape for k, v in model.state_dict().items()}
    for net in entry.nets:
        with without_weights():
            other = net.build(model.config)
        if type(other) is type(model) and {k: v.shape for k, v in other.state_dict().items()} == keys:
            return net
    return None


def _known(model: nn.Module) -> tuple[Family, Net]:
    config = getattr(model, "config", None)
    for entry in families().values():
        if type(config) is entry.config and (net := net_of(model, entry)) is not None:
            return entry, net
    raise UserError(f"{type(model).__name__} is not a network of a known system; pass one from polymodal.load or polymodal.system(...).net")
