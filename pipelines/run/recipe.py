"""Recipes: everything that determines a run, as one frozen value.

A recipe is a function in `pipelines/recipes/` that returns a complete `Recipe`; its docstring is the
scientific record (paper, what is reproduced, what it cost, the command). A YAML file is a recipe too: it
may name another with `base: NAME` and state only what differs. `--set a.b=c` overrides single values.
Every problem is reported at once.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from ...registry import families
from ...shared.errors import UserError, raise_problems
from ...shared.family import Context, Family
from ...shared.settings import check_settings, unknown_key
from ...shared.system import System
from ..base.ramp import Ramp
from .optim import OptimSettings
from .schedule import ScheduleSettings

Precision = Literal["auto", "32", "bf16-mixed", "bf16-true"]


@dataclass(frozen=True)
class EarlierBatch:
    """What updates of a run had, before it went on with another batch."""

    until: int
    """The last of these updates, numbered as in the log."""
    global_batch: int
    ramp_start: int | None = None
    ramp_samples: int = 0

    def ramp(self, since: int, earlier: Ramp | None) -> Ramp:
        """The samples of each update, after `since` updates with those of `earlier`."""
        return Ramp(self.global_batch, self.ramp_start, self.ramp_samples, since, earlier)


@dataclass(frozen=True)
class DataSettings:
    """How the stream feeds the run."""

    global_batch: int = 32
    """Samples of one update, over all ranks."""
    micro_batch: int | None = None
    """Samples of one forward pass of one rank, at most; null: the rank's whole share. The gradient does not depend on it."""
    ramp_start: int | None = None
    """Samples of the first update, where the batch grows to `global_batch`; it grows in steps of as many, so ranks must divide it. null: it
    does not grow. The schedule goes by the samples read."""
    ramp_samples: int = 0
    """Over how many samples the batch grows linearly from `ramp_start` to `global_batch`."""
    earlier: tuple[EarlierBatch, ...] = ()
    """The batches (`until`, `global_batch`, `ramp_start`, `ramp_samples`) of a run's first updates, where it went on with another one: a
    run that resumes with another `global_batch` adds to this by itself."""
    max_tokens: int | None = None
    """Tokens of one forward pass: a micro-batch with more, as a long document makes it, is computed in several, with the same gradient.
    null: twice what `micro_batch` sequences as long as its longest one hold."""
    workers: int = 0
    """Processes of each rank that read and prepare batches; 0 does it in the training process."""
    prefetch: int = 2
    """Micro-batches that each worker prepares ahead."""
    lanes: int = 240
    """Lanes the data is dealt to; best a multiple of any rank count the run may ever have. A system that reads in sequence has one for
    each sample of an update instead, and no window."""
    window: int = 4096
    """Samples of a lane that are shuffled together."""
    on_bad: Literal["raise", "skip"] = "raise"
    """What to do with a sample that cannot be used: stop, or count it, list it and use a neighbour."""
    max_bad: float = 0.01
    """skip: the fraction of bad samples that stops the run all the same."""

    def __post_init__(self) -> None:
        """Refuse impossible layouts."""
        wrong = [f"{name} is {value}, expected at least {least}" for name, value, least in (
            ("global_batch", self.global_batch, 1), ("micro_batch", self.micro_batch or 1, 1), ("workers", self.workers, 0),
            ("prefetch", self.prefetch, 1), ("lanes", self.lanes, 1), ("window", self.window, 1),
            ("max_tokens", 1 if self.max_tokens is None else self.max_tokens, 1),
        ) if value < least]
        ends = [0, *(part.until for part in self.earlier)]
        if any(a >= b for a, b in pairwise(ends)):
            wrong.append(f"earlier ends with the updates {ends[1:]}, expected each to be later than the one before")
        wrong += [f"earlier has a global_batch of {part.global_batch}, expected at least 1"
                  for part in self.earlier if part.global_batch < 1]
        if not wrong:
            _ = self.ramp  # refuses what cannot grow
        if self.micro_batch is not None and self.micro_batch > self.global_batch:
            wrong.append(f"micro_batch is {self.micro_batch}, more than global_batch {self.global_batch}")
        if not 0 <= self.max_bad <= 1:
            wrong.append(f"max_bad is {self.max_bad}, expected a fraction from 0 to 1")
        if wrong:
            raise UserError("; ".join(wrong))

    @property
    def ramp(self) -> Ramp:
        """The samples of each update."""
        since, ramp = 0, None
        for part in (*self.earlier, EarlierBatch(0, self.global_batch, self.ramp_start, self.ramp_samples)):
            since, ramp = part.until, part.ramp(since, ramp)
        return cast("Ramp", ramp)


@dataclass(frozen=True)
class LogSettings:
    """What is written while the run goes on."""

    every: int = 10
    """Updates between two lines of metrics; each is the mean over those updates."""
    tensorboard: bool | None = None
    """TensorBoard events in the run directory; null: where tensorboard is installed."""
    wandb: str | None = None
    """A Weights & Biases project to log to."""


@dataclass(frozen=True)
class EvaluateSettings:
    """Evaluation on held-out data, where `--eval-data` is given."""

    every: int = 0
    """Updates between two evaluations; 0: only at the end."""
    batch: int | None = None
    """Samples of one evaluation batch over all ranks; null: as in training. For a system that reads in sequence: its lanes (null:
    one for each sample of an update); each begins without a memory, so fewer lanes suit a small data set."""
    limit: int | None = None
    """Upper limit of samples; null: all."""
    zero_shot: str | None = None
    """A data set of labelled pictures (its directory or URL) that every evaluation also names by their classes, which need not occur in the
    training data: `zero_shot_top1` and `zero_shot_top5`. For systems that compare pictures with texts (CLIP). `limit` holds for it, too."""
    templates: tuple[str, ...] = ()
    """zero_shot: prompts with {} for the class name, names of sets of them (openai, simple), or files with one a line; none: "a photo of
    a {}."."""
    previews: int = 4
    """Examples of what the model does, written to samples.jsonl at every evaluation."""
    monitor: str = "loss"
    """The number of an evaluation that `patience` and `checkpoint.keep_best` go by, such as `loss` or `accuracy`."""
    mode: Literal["auto", "min", "max"] = "auto"
    """Whether a lower or a higher number is better; auto: higher for accuracy, F1, AUC, recall, ROUGE ..., else lower."""
    patience: int = 0
    """Evaluations in a row without a better one after which the run ends; 0: it never ends for this reason."""
    min_delta: float = 0.0
    """By how much an evaluation must be better to count."""


@dataclass(frozen=True)
class CheckpointSettings:
    """When the state is saved. A run also saves at its end and when it is asked to stop."""

    every: int = 500
    """Updates between two checkpoints; 0: only at the end."""
    keep_last: int = 2
    """How many of the newest are kept."""
    keep_every: int = 0
    """Checkpoints of updates divisible by this are never removed; 0: none."""
    keep_best: bool = False
    """Save at every evaluation that is better than all before, keep that checkpoint, and export it at the end."""
    asynchronous: bool = True
    """Write checkpoints beside the training, which is held only until the state is copied; the copy takes as much host memory as the
    rank writes of a checkpoint."""


@dataclass(frozen=True)
class HealthSettings:
    """What happens to an update that goes wrong, and how ranks show that they live. See docs/health.md."""

    policy: Literal["raise", "skip", "rewind"] = "raise"
    """raise ends the run. skip leaves the weights as they are and goes on. rewind goes back to the last checkpoint before it and leaves
    out the updates that led there."""
    spike: float | None = None
    """An update is also bad if its gradient norm exceeds this factor times the median of the last `window` norms; null: no such check."""
    window: int = 100
    """Gradient norms that a spike is compared with; before there are as many, nothing is a spike."""
    skip_updates: int = 1
    """rewind: updates to leave out; the last of them is the one that went wrong."""
    max_rewinds: int = 10
    """rewind: rewinds allowed in a run; one more ends the run."""
    max_skips: int = 10
    """skip: skipped updates allowed in a row; one more ends the run."""
    leave_out: tuple[tuple[int, int], ...] = ()
    """Updates that make no step, as [first, last] pairs of numbers as the log has them: their samples are read and counted only."""
    heartbeat: float = 10.0
    """Seconds between two signs of life of each rank, RUN/heartbeats; 0: none."""

    def __post_init__(self) -> None:
        """Refuse numbers without meaning."""
        wrong = [f"{name} is {value}, expected at least {least}" for name, value, least in (
            ("window", self.window, 1), ("skip_updates", self.skip_updates, 1), ("max_rewinds", self.max_rewinds, 0),
            ("max_skips", self.max_skips, 0), ("heartbeat", self.heartbeat, 0),
        ) if value < least]
        if self.spike is not None and not self.spike > 1:
            wrong.append(f"spike is {self.spike}, expected a factor above 1, such as 10, or null")
        wrong += [f"leave_out has {list(pair)}, expected the first and the last update to leave out, counted from 1"
                  for pair in self.leave_out if not 1 <= pair[0] <= pair[1]]
        if wrong:
            raise UserError("; ".join(wrong))


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a run except the data and the tokenizer."""

    name: str
    system: str
    """The family, see `polymodal systems`."""
    size: str = "base"
    """A named size of the family; a run that starts from a model takes its size from there."""
    task: str = ""
    """What the network is fine-tuned for (`polymodal systems` lists the tasks); empty: pretraining."""
    model: dict[str, Any] = field(default_factory=dict)
    """Overrides of the family's config, by the names of the reference library."""
    objective: dict[str, Any] = field(default_factory=dict)
    """Overrides of the family's objective settings."""
    companions: dict[str, str] = field(default_factory=dict)
    """Trained networks that the system reads and does not train, such as BEiT's `tokenizer`: runs, model directories or hub ids."""
    data: DataSettings = field(default_factory=DataSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    max_updates: int = 1000
    """Length of the run; the schedule ends there."""
    max_time: float | None = None
    """Length of the run in seconds of training: a few updates that do not count say how many fit, and `max_updates` becomes their number.
    null: `max_updates` says it."""
    seed: int = 0
    """Determines the initial weights, the order of the data, and every draw."""
    precision: Precision = "auto"
    """auto: bf16-mixed where the hardware multiplies bf16 fast, else 32. bf16-true is for evaluation: it does not train."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int | Literal["auto"] = "auto"
    """Processes on each node; auto: one for each GPU, or one. Under torchrun the launcher decides."""
    num_nodes: int = 1
    strategy: Literal["auto", "ddp", "ddp_find_unused", "fsdp"] = "auto"
    """How ranks work together: ddp gives each all weights (auto, on several ranks), fsdp divides weights, gradients and optimizer
    state among them; ddp_find_unused for systems that leave parameters out of some updates."""
    shard_size: int | None = None
    """fsdp: ranks that share one copy of the weights, the GPUs of a node for example; null: all ranks share one."""
    reshard_after_forward: bool = True
    """fsdp: give up a layer's gathered weights until its backward pass; false keeps them, for more memory and less traffic."""
    sync_batchnorm: bool = False
    """On several ranks, batch norm takes the statistics of all of them (of each micro-batch), not of each rank's part."""
    activation_checkpointing: bool = False
    """Keep only the input of every layer for the backward pass and compute the rest again: less memory, about a third more work."""
    compile: bool = False
    """Compile every layer, and what the head does to its logits, with torch.compile; the first updates take longer."""
    log: LogSettings = field(default_factory=LogSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    health: HealthSettings = field(default_factory=HealthSettings)

    def __post_init__(self) -> None:
        """Refuse numbers without meaning."""
        wrong = [f"{name} is {value}, expected at least {least}" for name, value, least in (
            ("max_updates", self.max_updates, 1), ("num_nodes", self.num_nodes, 1), ("log.every", self.log.every, 1),
            ("seed", self.seed, 0), ("evaluate.every", self.evaluate.every, 0), ("evaluate.batch", self.evaluate.batch or 1, 1),
            ("evaluate.limit", 1 if self.evaluate.limit is None else self.evaluate.limit, 1),
            ("evaluate.previews", self.evaluate.previews, 0), ("evaluate.patience", self.evaluate.patience, 0),
            ("evaluate.min_delta", self.evaluate.min_delta, 0), ("checkpoint.every", self.checkpoint.every, 0),
            ("checkpoint.keep_last", self.checkpoint.keep_last, 1), ("checkpoint.keep_every", self.checkpoint.keep_every, 0),
            ("max_time", 1 if self.max_time is None else self.max_time, 1),
            ("devices", 1 if self.devices == "auto" else self.devices, 1), ("shard_size", self.shard_size or 2, 2),
        ) if value < least]
        if self.shard_size is not None and self.strategy != "fsdp":
            wrong.append(f"shard_size is {self.shard_size} and strategy is {self.strategy}: only fsdp divides the weights")
        if wrong:
            raise UserError("; ".join(wrong))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for YAML."""
        return cast("dict[str, Any]", _plain(asdict(self)))

    def to_yaml(self) -> str:
        """The recipe as a YAML file that `polymodal pretrain` accepts."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def resolved(self) -> Recipe:
        """The same with every setting of the objective, so that a run stays what it is where a default of the library changes."""
        return replace(self, objective=resolved_objective(self.system, self.task, self.objective))

    def build(self, family: Family, context: Context, config: Any = None) -> System:
        """The system with randomly initialized weights, drawn from `seed`.

        Args:
            family: the registry entry of `system`.
            context: what the data tells.
            config: of a network that is there already; by default `size` and `model` say it, and the vocabulary follows the tokenizer.
        """
        import torch

        torch.manual_seed(self.seed)
        if config is None:
            config = family.adapt(family.config(**_config_values(self, family)), context)
        task = family.task(self.task)
        return task.build(task.adapt(config, context), self.objective, context)

    def configure(self, family: Family, config: Any) -> Any:
        """`config` of a network that was loaded, with the overrides of `model`."""
        if not self.model:
            return config
        values = {f.name: getattr(config, f.name) for f in fields(family.config) if f.init}
        changed, problems = check_settings(family.config, {**values, **self.model}, "model.")
        raise_problems(problems, f"recipe {self.name}")
        return changed


def recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Resolve a recipe by name or from a YAML file.

    Args:
        source: a name such as `gpt2-tiny` (see `recipes`), or the path of a YAML file.
        overrides: `a.b=c` each; values are read as YAML.

    Raises:
        UserError: naming every problem: unknown keys with the nearest known one, wrong types, impossible values.
    """
    mapping = _read(str(source), ())
    problems: list[str] = []
    for text in overrides:
        problems.extend(_override(mapping, text))
    resolved, found = check_settings(Recipe, mapping)
    problems.extend(found)
    # the family's own fields are checked even where something else is wrong: all problems at once
    problems.extend(_family_problems(mapping))
    raise_problems(dict.fromkeys(problems), f"recipe {source}")
    assert resolved is not None
    return resolved


def resolved_objective(system: str, task: str, objective: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting of an objective as plain values: what it says, over the task's defaults."""
    settings, problems = check_settings(families()[system].task(task).settings, objective, "objective.")
    raise_problems(problems, f"{system} {task}".strip())
    return cast("dict[str, Any]", _plain(asdict(cast("Any", settings))))


def as_resolved(saved: Mapping[str, Any]) -> Any:
    """The objective of a recipe that a run has saved, with every setting: older runs have only those that their recipe named."""
    try:
        return resolved_objective(saved["system"], saved.get("task", ""), saved.get("objective", {}))
    except (UserError, KeyError):  # of a system, or with settings, that there are no more
        return saved.get("objective", {})


@cache
def recipes() -> Mapping[str, Callable[[], Recipe]]:
    """Every recipe of the library by name; the functions' docstrings are the record."""
    package = importlib.import_module("..recipes", __package__)
    found: dict[str, Callable[[], Recipe]] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for function in getattr(module, "RECIPES", ()):
            found[function.__name__.replace("_", "-")] = function
    return found


def record(name: str) -> str:
    """The scientific record of a recipe: its docstring; empty for a YAML file."""
    return inspect.getdoc(recipes()[name]) or "" if name in recipes() else ""


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def _read(source: str, seen: tuple[str, ...]) -> dict[str, Any]:
    """The mapping of a recipe, with its `base` merged in."""
    if source in recipes():
        return recipes()[source]().to_dict()
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        near = difflib.get_close_matches(source, recipes(), n=3)
        meant = f": did you mean {' or '.join(near)}?" if near else ";"
        raise UserError(f"there is no recipe {source!r}{meant} `polymodal recipes` lists all {len(recipes())} (or give a .yaml file)")
    if not path.is_file():
        raise UserError(f"recipe file {source} does not exist; give a YAML file or one of: {', '.join(recipes())}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:  # ValueError: a date that is none
        raise UserError(f"recipe {source} is not YAML: {' '.join(str(error).split())[:1000]}") from None
    except RecursionError:
        raise UserError(f"recipe {source} nests its values too deeply: write it flat") from None
    if _parts(content, _MAX_PARTS) > _MAX_PARTS:
        raise UserError(f"recipe {source} has more than {_MAX_PARTS} parts once its aliases are filled in: write it without them")
    if not isinstance(content, dict):
        raise UserError(f"recipe {source} holds {type(content).__name__}, expected a mapping such as `base: gpt2-tiny`")
    mapping = cast("dict[str, Any]", content)
    base = mapping.pop("base", None)
    if base is None:
        return {"name": path.stem} | mapping
    if not isinstance(base, str):
        raise UserError(f"recipe {source}: base is {base!r}, expected the name of a recipe or a YAML file")
    # a file named in a file is relative to that file
    target = base if base in recipes() else str(path.parent / base)
    if target in seen:
        raise UserError(f"recipe {source}: base leads back to {target}")
    return _merge({**_read(target if base.endswith((".yaml", ".yml")) else base, (*seen, target)), "name": path.stem}, mapping)


_MAX_PARTS = 10_000


def _parts(value: Any, most: int) -> int:
    """Values in a nested value, aliases counted each time they stand there; the count ends a little above `most`."""
    count = 1
    for inner in (cast("dict[str, Any]", value).values() if isinstance(value, dict) else cast("list[Any]", value)
                  if isinstance(value, (list, set, tuple)) else ()):
        if count > most:
            break
        count += _parts(inner, most - count)
    return count


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = _merge(cast("Mapping[str, Any]", old), cast("Mapping[str, Any]", value)) if both else value
    return merged


def _override(mapping: dict[str, Any], text: str) -> list[str]:
    """Put `a.b=c` into `mapping`; returns what is wrong with it."""
    key, equals, value = text.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        return [f"--set {text}: expected KEY=VALUE, such as data.global_batch=64"]
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        parsed = value
    place = mapping
    for part in path[:-1]:
        inner = place.setdefault(part, {})
        if not isinstance(inner, dict):
            return [f"--set {text}: {part} is {inner!r}, it has no parts"]
        place = cast("dict[str, Any]", inner)
    place[path[-1]] = parsed
    return []


def _family_problems(mapping: Mapping[str, Any]) -> list[str]:
    """What is wrong with `system`, `size`, `model` and `objective`."""
    name = mapping.get("system")
    known = families()
    if not isinstance(name, str):
        return []
    if name not in known:
        return [f"system is {name!r}; {unknown_key(name, list(known)).split('; ', 1)[1]} (see `polymodal systems`)"]
    family = known[name]
    problems: list[str] = []
    size = mapping.get("size", "base")
    if not isinstance(size, str) or size not in family.sizes:
        problems.append(f"size is {size!r}, {name} has {', '.join(family.sizes)}")
    task = family.pretraining
    try:
        task = family.task(str(mapping.get("task", "")))
    except UserError as error:
        problems.append(str(error))
    settings, companions = task.settings, mapping.get("companions") or {}
    if isinstance(companions, Mapping):
        problems.extend(task.unknown_companions(cast("Mapping[str, Any]", companions), name))
    for part, cls in (("model", family.config), ("objective", settings)):
        given = mapping.get(part) or {}
        if isinstance(given, Mapping):
            values = cast("Mapping[str, Any]", given)
            values = _merge(family.sizes.get(str(size), {}), values) if part == "model" else values
            problems.extend(check_settings(cls, values, f"{part}.")[1])
    return problems


def _config_values(recipe: Recipe, family: Family) -> dict[str, Any]:
    """Constructor arguments of the family's config: the named size, overridden by `model`."""
    config, problems = check_settings(family.config, _merge(family.sizes[recipe.size], recipe.model), "model.")
    raise_problems(problems, f"recipe {recipe.name}")
    return {f.name: getattr(config, f.name) for f in fields(family.config) if f.init}
