"""The contract between a pretraining system and what drives it (stream, loop, command line).

A system is two halves. The **objective** is the data side: it turns samples into batches in the
loader's workers, deterministically for a given generator, and holds no weights. The **system** is the
loss side: a network whose `forward` maps a batch to sums with counts. The loop knows only these
types, so a new family is a new file and nothing else.

Losses are sums over targets, and the number of targets is known before the forward pass
(`Batch.counts`). The loop adds the counts up over micro-batches and ranks first and scales each
micro-batch's sum by the global count: the gradient is that of the whole global batch, whatever the
micro-batch size, accumulation, rank count, padding or packing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from .attention.mask import Mask
from .errors import UserError
from .sample import Sample

if TYPE_CHECKING:
    from .tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class BadRecord:
    """One quarantined sample: where it is and why it was not used."""

    index: int
    key: str
    source: str
    reason: str


@dataclass(kw_only=True)
class Batch:
    """A micro-batch on its way to a system. Families subclass it with their tensors.

    `counts` are the denominators of the loss terms, known before the forward pass.
    """

    counts: dict[str, int]
    samples: int = 0
    """Samples of the stream that are in the batch (set by the stream)."""
    tokens: int = 0
    """Useful tokens (not padding), for throughput; 0 where the family has none."""
    task: str = ""
    """The task of this update, where a family draws one (UNITER, UniLM); else empty."""
    sample_ids: list[int] = field(default_factory=list)
    """`Sample.index` of each sample (set by the stream); identity for logs and feature memoisation."""
    follows: list[int] = field(default_factory=list)
    """Where the objective reads in sequence: the sample that each one continues, -1 for none (set by the stream). Lanes that meet where an
    epoch begins do not continue each other. Empty: each continues the sample numbered before it."""
    bad: list[BadRecord] = field(default_factory=list)
    """Samples that were skipped while this batch was made (set by the stream)."""
    reads: dict[str, float] = field(default_factory=dict)
    """What reading it cost, where the data is remote: sums by name, added up for the log (set by the stream)."""

    def to(self, device: torch.device | str) -> Self:
        """This batch with every tensor field on `device`; Fabric's own copy of a dataclass waits for a GPU, this does not."""
        ahead = torch.device(device).type == "cuda"
        return self.map_tensors(lambda t: t.to(device, non_blocking=ahead))

    def pin_memory(self) -> Self:
        """This batch with every tensor field in pinned memory (called by the DataLoader)."""
        return self.map_tensors(lambda t: t.pin_memory())

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> Self:
        """This batch with `function` applied to every tensor field."""
        assert is_dataclass(self)
        changed = {f.name: _map_tensors(getattr(self, f.name), function) for f in fields(self)}
        return replace(self, **changed)


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Batch):
        return value.map_tensors(function)
    if isinstance(value, dict):
        return {k: _map_tensors(v, function) for k, v in value.items()}
    return value


@dataclass(slots=True)
class Term:
    """One term of a loss: a SUM over targets, the name of its denominator in `Batch.counts`, a weight.

    `labels` are the classes that were to be predicted, integers or bools of any shape (-100 counts for nothing), where the term is a
    cross-entropy. Their entropy is what a predictor reaches that never looks at its input; evaluation reports it beside the term.
    """

    total: Tensor
    count: str
    weight: float = 1.0
    labels: Tensor | None = None


@dataclass(slots=True)
class Step:
    """What one forward pass returns.

    `metrics` maps a name to (sum, count), both added up over micro-batches and ranks before dividing.
    `carry` is a detached state for the next micro-batch of the same lanes (Transformer-XL), else None: nested dicts, lists and tuples
    of tensors with the batch's rows on dimension 0, lists with one number or text for each row, and values that all micro-batches
    share. When a run goes on with other ranks or micro-batches, each gets the rows of all of them.
    """

    terms: dict[str, Term]
    metrics: dict[str, tuple[Tensor, Tensor | int]] = field(default_factory=dict)
    carry: Any = None


@dataclass(frozen=True, slots=True)
class Preview:
    """One example of what the model does, shown at evaluations, in reports and by `inspect`.

    `rows` are (caption, text) pairs in reading order; `image` is uint8 [H, W, 3] or None.
    """

    rows: tuple[tuple[str, str], ...]
    image: np.ndarray | None = None


ExampleT = TypeVar("ExampleT")


class Objective(ABC, Generic[ExampleT]):
    """The data side of a system. Picklable, no weights, deterministic for a given generator.

    An implementation is a plain class that keeps its settings and a tokenizer as attributes.
    """

    needs_partner: bool = False
    """Whether `Sample.partner` must be filled (a random other sample: next sentence, image-text matching)."""
    sequential: bool = False
    """Whether consecutive samples of the data set must follow each other in each row of the batch (segments of one long text, with
    a memory). The stream then shuffles nothing: row g of every update is the next sample of lane g. Each sample makes one row, and
    the system knows by `Batch.sample_ids` which row goes on from which (`Step.carry`): where the sample before was sample id - 1."""
    row_length: int | None = None
    """Tokens of a row where it reads rows of tokens alone (`polymodal pack --tokenize`); None where it reads what `Sample` holds as it is.
    A run that is planned without data has rows of this length."""

    @abstractmethod
    def example(self, sample: Sample, rng: np.random.Generator) -> Iterable[ExampleT]:
        """Make the training examples of one sample (usually one; a long document gives several).

        `rng` is keyed by (seed, epoch, sample): the same draws on any rank, worker or resume.
        Raises `BadSample` where the sample cannot be used.
        """

    @abstractmethod
    def collate(self, examples: list[ExampleT]) -> Batch:
        """Put examples (at least one) together, with `counts` and `tokens` set."""

    def evaluation(self) -> Objective[ExampleT]:
        """The variant for held-out data: no augmentation. By default the objective itself."""
        return self

    def describe(self, example: ExampleT) -> Preview:
        """What the objective made of a sample (tokens, masks, labels), for `polymodal inspect`."""
        return Preview(rows=(("example", repr(example)),))


class System(nn.Module, ABC):
    """A network and its pretraining (or fine-tuning, or distillation) loss."""

    coupled: ClassVar[bool] = False
    """True where the loss couples all samples of the batch (contrastive): the loop then never
    splits the global batch by accumulation; the system keeps its memory down by itself."""

    net: nn.Module
    """The network that pretraining is for: what `polymodal.load` gives of a run."""
    objective: Objective[Any]

    @abstractmethod
    def forward(self, batch: Any, carry: Any = None) -> Step:
        """Compute the loss terms of one micro-batch."""

    def undivided(self) -> Iterable[nn.Module]:
        """Parts that a rank may run without the others, such as a frozen tower that reads only what it has not read before.

        A strategy that divides weights over the ranks leaves theirs whole on each: to gather weights, all ranks must come together.
        """
        return ()

    def after_update(self, update: int) -> None:
        """Run after optimizer update number `update` (counted from 0): clamp, moving average ..."""

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """Numbers computed from the reduced means of terms and metrics, such as a perplexity."""
        return {}

    def exports(self) -> Mapping[str, nn.Module]:
        """The networks of an export by subdirectory; "" is the export itself. By default `net` alone."""
        return {"": self.net}

    def preview(self, batch: Any, limit: int = 4) -> list[Preview]:
        """What the model makes of up to `limit` examples of a held-out batch (no gradient, eval mode)."""
        return []


class NoData(Objective[Any]):
    """The objective of a system that was built for its network alone; every use says what is lacking."""

    def __init__(self, system: str) -> None:
        """Remember which system asks."""
        self.system = system

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterable[Any]:
        """Refuse."""
        raise UserError(f"this {self.system} was built without a tokenizer and cannot read data: pass tokenizer=")

    def collate(self, examples: list[Any]) -> Batch:
        """Refuse."""
        raise UserError(f"this {self.system} was built without a tokenizer and cannot read data: pass tokenizer=")


@dataclass(frozen=True)
class Context:
    """What the data tells a system that is being built."""

    tokenizer: Tokenizer | None = None
    classes: tuple[str, ...] | None = None
    """Class names in the order of their numbers, where the data set is labelled."""
    net_only: bool = False
    """The system is built for its network: a tokenizer that is lacking is no mistake, and the objective is `NoData`."""

    def objective(self, system: str, make: Callable[[Tokenizer], Objective[Any]]) -> Objective[Any]:
        """The objective that `make` builds with the tokenizer, or `NoData` under `net_only`."""
        return NoData(system) if self.net_only and self.tokenizer is None else make(self.need_tokenizer(system))

    def need_tokenizer(self, system: str) -> Tokenizer:
        """The tokenizer, or a clear error."""
        if self.tokenizer is None:
            raise UserError(f"{system} reads text and got no tokenizer: pass --tokenizer DIR (see `polymodal tokenizer train`)")
        return self.tokenizer


@dataclass(frozen=True)
class Layout:
    """Another library's directory layout of a net (open_clip, timm), beside transformers' own.

    Args:
        name: what `--format` calls it: "open_clip", "timm".
        config_file: the JSON file that describes the net.
        weights_file: the safetensors file.
        recognises: whether the contents of a JSON file of that name describe this kind of net.
        read: (those contents, the directory) -> config.
        write: net -> those contents; raises `UserError` where the library has no such net.
        rules: the state-dict rule table for a config.
        finish: (net, contents, directory): take over what is no config, such as the preprocessing of pictures.
        files: net -> further JSON files, by name relative to the directory.
    """

    name: str
    config_file: str
    weights_file: str
    recognises: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Mapping[str, Any], Path], Any]
    write: Callable[[Any], Mapping[str, Any]]
    rules: Callable[[Any], Sequence[Any]]
    finish: Callable[[Any, Mapping[str, Any], Path], None] = lambda net, record, directory: None
    files: Callable[[Any], Mapping[str, Mapping[str, Any]]] = lambda net: {}


@dataclass(frozen=True)
class Net:
    """A network that can be loaded from and saved to the reference library's layout.

    Args:
        build: config -> module with fresh weights.
        rules: the state-dict rule table (`shared.convert`) for a config; one table, both directions.
        architecture: the class name in config.json's `architectures` ("BertForMaskedLM").
        layouts: other libraries' layouts of the same net.
        default_layout: config -> the layout that is written when none is asked for: "transformers", or a name in `layouts`.
        files: net -> further JSON files of transformers' layout (`preprocessor_config.json`), by name.
        finish: (net, directory): read those files, where they are there.
    """

    architecture: str
    build: Callable[[Any], nn.Module]
    rules: Callable[[Any], Sequence[Any]]
    layouts: tuple[Layout, ...] = ()
    default_layout: Callable[[Any], str] = lambda config: "transformers"
    files: Callable[[Any], Mapping[str, Mapping[str, Any]]] = lambda net: {}
    finish: Callable[[Any, Path], None] = lambda net, directory: None


@dataclass(frozen=True)
class Task:
    """What a family's network is trained for: pretraining, or something that it is fine-tuned for.

    Its system is one like any other, with an objective and a loss of its own: the same loop trains it.

    Args:
        name: what recipes and `--set task=` call it: "classify", "text2text"; pretraining has the empty name.
        objective: in a few words.
        settings: the frozen dataclass of the objective's settings.
        create: (config, objective settings, context) -> a system with fresh weights.
        adapt: fit the config of a network that was loaded to the data: the number and names of classes. The vocabulary
            stays that of the network.
        architecture: `Net.architecture` of the network that is trained; empty where the settings decide.
    """

    name: str
    objective: str
    settings: type
    create: Callable[[Any, Mapping[str, Any], Context], System]
    adapt: Callable[[Any, Context], Any] = lambda config, context: config
    architecture: str = ""


@dataclass(frozen=True)
class Family:
    """The registry entry of one system: everything that `polymodal` needs to know about a family file.

    A family file ends with `FAMILIES = (Family(...), ...)`; the registry finds it by looking, so
    adding a system touches no other file.
    """

    name: str
    """The name in recipes and on the command line, such as `bert`."""
    title: str
    paper: str
    """Authors, title and year as they would stand in a reference list."""
    year: int
    url: str
    objective: str
    """The pretraining objective in a few words."""
    equation: str
    """What is minimised, in TeX, and in `symbols` what its letters mean."""
    symbols: str
    masks: Mapping[str, Mask]
    """The attention masks of training, over 16 keys, by what they are for; drawn in the documentation."""
    config: type
    """The frozen dataclass with transformers' field names."""
    sizes: Mapping[str, Mapping[str, Any]]
    """Named sizes: overrides of the config's defaults. Every family has `tiny`."""
    create: Callable[[Any, Mapping[str, Any], Context], System]
    """(config, objective settings, context) -> a system with fresh weights."""
    settings: type
    """The frozen dataclass of the objective's settings (`mask_prob`, `max_length` ...)."""
    adapt: Callable[[Any, Context], Any] = lambda config, context: config
    """Fit the config to the data: vocabulary size and special ids, number of labels."""
    nets: tuple[Net, ...] = ()
    tasks: tuple[Task, ...] = ()
    """What its networks are fine-tuned for."""
    heads: tuple[str, ...] = ()
    """Parts of its networks that get fresh weights where a run starts from a network without them, or with others.
    All else must be there: a network that is the trunk alone, or has it as `trunk`, fits every other."""
    model_type: str = ""
    """config.json's `model_type` in the reference library's layout; empty where there is none."""
    reference: str = ""
    """The library and class that parity is measured against."""
    default_size: str = "base"
    notes: Mapping[str, str] = field(default_factory=dict)

    def task(self, name: str) -> Task:
        """The task called `name`; pretraining has the empty name."""
        known = {"": Task("", self.objective, self.settings, self.create), **{t.name: t for t in self.tasks}}
        if name not in known:
            offered = f"its tasks are {', '.join(t.name for t in self.tasks)}" if self.tasks else "it has no tasks"
            raise UserError(f"task is {name!r}; {self.name} is pretrained with an empty task, and {offered}")
        return known[name]
