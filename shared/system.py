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

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import TypeVar  # with defaults: typing's has them from Python 3.13 on

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
    """The task of this update, where several take turns (`Objective.turns`; set by the stream); else empty."""
    update: int = 0
    """The number of its update, counted from 0, for what changes during a run, such as a temperature (set by the stream); held-out batches
    have 0."""
    sample_ids: list[int] = field(default_factory=list)
    """`Sample.index` of each sample (set by the stream); identity for logs and feature memoisation."""
    follows: list[int] = field(default_factory=list)
    """Where the objective reads in sequence: the sample that each one continues, -1 for none (set by the stream). Lanes that meet where an
    epoch begins do not continue each other. Empty: each continues the sample numbered before it."""
    bad: list[BadRecord] = field(default_factory=list)
    """Samples that were skipped while this batch was made (set by the stream)."""
    reads: dict[str, float] = field(default_factory=dict)
    """What reading it cost, where the data is remote: sums by name, added up for the log (set by the stream)."""
    rest: list[Batch] = field(default_factory=list)
    """The rest of the micro-batch, where its examples have more tokens than one forward pass may have (set by the stream)."""

    def passes(self) -> list[Batch]:
        """The micro-batch as what is computed one after the other: this batch, and what is in `rest`."""
        return [replace(self, rest=[]), *self.rest] if self.rest else [self]

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
        changed = {f.name: map_tensors(getattr(self, f.name), function) for f in fields(self)}
        return replace(self, **changed)


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """`value` with `function` applied to every tensor in it: in nested dicts, lists, tuples (also named ones) and batches."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Batch):
        return value.map_tensors(function)
    if isinstance(value, dict):
        return {k: map_tensors(v, function) for k, v in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list):
        return [map_tensors(v, function) for v in cast("list[Any]", value)]
    if isinstance(value, tuple):
        entries = (map_tensors(v, function) for v in cast("tuple[Any, ...]", value))
        return type(value)(*entries) if hasattr(value, "_fields") else tuple(entries)
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


def named(task: str, name: str) -> str:
    """What the log calls a number of a task; without turns its own name."""
    return f"{task}/{name}" if task else name


class Companion:
    """A trained network that a system reads and does not train: a tokenizer of pictures, a teacher.

    It is no module of the system. So it has no gradient, is in no checkpoint, export or optimizer, and no strategy wraps or divides it:
    each rank has it whole. It is read at its first use: who needs the system's own network alone needs no companion. A recipe names it
    (`companions`), a task says which it needs (`Task.companions`), and a run keeps its fingerprint.

    Args:
        source: where it lies, for messages.
        load: reads it.
        fingerprint: that it must have; empty for any.
        tokenizer: reads its tokenizer, where it has one.
    """

    def __init__(self, source: str, load: Callable[[], nn.Module], fingerprint: str = "",
                 tokenizer: Callable[[], Tokenizer | None] = lambda: None) -> None:
        self.source = source
        self._load, self._expected, self._load_tokenizer = load, fingerprint, tokenizer
        self._tokenizer: tuple[Tokenizer | None] | None = None
        self._net: nn.Module | None = None
        self._fingerprint = ""

    def __deepcopy__(self, memo: dict[int, Any]) -> Companion:
        """One network serves every copy of a system."""
        return self

    @property
    def net(self) -> nn.Module:
        """The network, in eval mode and frozen, where it was used last.

        Raises:
            UserError: it cannot be read, or is another one than was expected.
        """
        if self._net is None:
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):  # also where a system is built without weights
                net = self._load().eval().requires_grad_(False)
            self._fingerprint = fingerprint_of(net)
            if self._expected and self._fingerprint != self._expected:
                raise UserError(f"{self.source} holds other weights (sha256 {self._fingerprint[:12]}) than the run began with "
                                f"({self._expected[:12]}): put those back, or start a new run in another --out")
            self._net = net
        return self._net

    @property
    def fingerprint(self) -> str:
        """sha256 of its config and weights; the same in any file format."""
        return self._fingerprint if self.net else ""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that lies with it; None where it has none."""
        self._tokenizer = self._tokenizer or (self._load_tokenizer(),)
        return self._tokenizer[0]

    def on(self, device: torch.device, dtype: torch.dtype | None = None) -> Any:
        """The network on a device, with weights of a type; by default of the type that they have."""
        first = next(self.net.parameters())
        if dtype is not None and dtype.itemsize > first.dtype.itemsize:  # half of the digits may be lost: read them again
            self._net = None
        if first.device != device or dtype not in (None, first.dtype):
            self._net = self.net.to(device, dtype)
        return self.net


def fingerprint_of(net: nn.Module) -> str:
    """sha256 of a network's weights and of what its config says beside the defaults."""
    config: Any = getattr(net, "config", None)
    told = {f.name: value for f in fields(config) if f.compare and (value := getattr(config, f.name)) != f.default} if config else {}
    found = hashlib.sha256(repr(sorted(told.items())).encode())
    for name, tensor in sorted(net.state_dict().items()):
        flat = tensor.detach().cpu().contiguous().view(-1)
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(memoryview(flat.view(torch.uint8).numpy()))
    return found.hexdigest()


ExampleT = TypeVar("ExampleT")


class Objective(ABC, Generic[ExampleT]):
    """The data side of a system. Picklable, no weights, deterministic for a given generator.

    An implementation is a plain class that keeps its settings and a tokenizer as attributes.
    """

    needs_partner: bool = False
    """Whether `Sample.partner` must be filled (a random other sample: next sentence, image-text matching)."""
    needs_next: bool = False
    """Whether `Sample.next` must be filled (where rows of tokens overlap: each example has the beginning of the next row, too)."""
    sequential: bool = False
    """Whether consecutive samples of the data set must follow each other in each row of the batch (segments of one long text, with
    a memory). The stream then shuffles nothing: row g of every update is the next sample of lane g. Each sample makes one row, and
    the system knows by `Batch.sample_ids` which row goes on from which (`Step.carry`): where the sample before was sample id - 1."""
    draws: int | None = None
    """In how many ways a sample is drawn (masked, cropped), which take turns from epoch to epoch; None draws anew in each epoch."""
    row_length: int | None = None
    """Tokens of a row where it reads rows of tokens alone (`polymodal pack --tokenize`); None where it reads what `Sample` holds as it is.
    A run that is planned without data has rows of this length."""
    turns: Mapping[str, int] = MappingProxyType({})
    """Tasks that take turns, each with the number of updates that it has in a cycle; empty where all updates have one task. An update has
    one task, on all ranks and in all its micro-batches, dealt by its number (`polymodal.pipelines.data.turns`). `by_turn` gives the
    objectives that make their batches; nothing is trained on what the objective itself makes. In the log, the numbers of a task have its
    name before them ("seq2seq/mlm"), and held-out data is read once for each. What a task does not use of the network has to run on no
    rows all the same: then it has a gradient, of zeros, and strategies that wait for the gradient of each parameter do not hang."""
    inputs: Mapping[str, str] = MappingProxyType({})
    """What it reads beside the data: by the setting that names a file, the file's sha256. All ranks must read the same, and so must a run
    that goes on, or that is loaded again."""
    notes: Sequence[str] = ()
    """Lines for people about these files, told before a run begins."""

    @abstractmethod
    def example(self, sample: Sample, rng: np.random.Generator) -> Iterable[ExampleT]:
        """Make the training examples of one sample (usually one; a long document gives several).

        `rng` is keyed by (seed, epoch, sample): the same draws on any rank, worker or resume; with `draws`, by the epoch modulo these.
        Raises `BadSample` where the sample cannot be used.
        """

    def reads(self, fields: Collection[str]) -> bool:
        """Whether it can use a data set whose samples have these fields (names as in `Sample.fields`); by default it uses any.

        Where tasks take turns, each is asked: of several data sets, an update reads those alone that its task uses, in the shares that they
        have among themselves, and so does an evaluation of the task. So tasks may need different data: texts, pictures, and both together.
        """
        return True

    def tokens_of(self, example: ExampleT) -> int:
        """Tokens of an example in a forward pass, by which one is kept small; 0 where its size is given and a batch cannot be divided."""
        return 0

    @abstractmethod
    def collate(self, examples: list[ExampleT]) -> Batch:
        """Put examples (at least one) together, with `counts` and `tokens` set."""

    def by_turn(self) -> Mapping[str, Objective[Any]]:
        """The objectives of the tasks of `turns` by name; without turns the objective itself, under the empty name."""
        return {"": self}

    def evaluation(self) -> Objective[ExampleT]:
        """The variant for held-out data: no augmentation. By default the objective itself. Of tasks that take turns, each has its own."""
        return self

    def describe(self, example: ExampleT) -> Preview:
        """What the objective made of a sample (tokens, masks, labels), for `polymodal inspect`."""
        return Preview(rows=(("example", repr(example)),))


NetT = TypeVar("NetT", bound=nn.Module, default=nn.Module, covariant=True)
ObjectiveT = TypeVar("ObjectiveT", bound=Objective[Any], default=Objective[Any], covariant=True)


class System(nn.Module, ABC, Generic[NetT, ObjectiveT]):
    """A network and its pretraining (or fine-tuning, or distillation) loss.

    Args:
        net: the network that pretraining is for: what `polymodal.load` gives of a run.
        objective: makes the batches that `forward` reads.
    """

    coupled: ClassVar[bool] = False
    """True where the loss couples all samples of the batch (contrastive): the loop then never
    splits the global batch by accumulation; the system keeps its memory down by itself."""

    compiles: ClassVar[bool] = True
    """False where a compiler would unroll loops over words, anew for each length: `compile: true` is refused then."""

    companions: Mapping[str, Companion] = MappingProxyType({})
    """Networks that it reads and does not train, by the names of `Task.companions`; moved to the device by who uses them
    (`Companion.on`). In half-precision training they compute in half precision, too, unless their use turns autocast off."""

    net: NetT
    objective: ObjectiveT

    def __init__(self, net: NetT, objective: ObjectiveT) -> None:
        super().__init__()
        self.net = net
        self.objective = objective

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

    def measured(self) -> Collection[str] | None:
        """The names of the numbers of an evaluation beside `loss`, known before the run.

        Terms, metrics, what `derive` makes of them, and `{term}_chance` of terms with labels. Where tasks take turns, each name has its
        task before it ("seq2seq/mlm"), and each task has a `loss`. None (by default) where they are not known.
        """
        return None

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """Numbers computed from the reduced means of terms and metrics, such as a perplexity. Where tasks take turns: from those of one."""
        return {}

    def derived(self, means: Mapping[str, float]) -> dict[str, float]:
        """What `derive` makes of the means of each task, under the names that the log has."""
        found: dict[str, float] = {}
        for task in self.objective.turns or ("",):
            before = named(task, "")
            own = {name.removeprefix(before): mean for name, mean in means.items() if name.startswith(before)}
            found |= {named(task, name): value for name, value in self.derive(own).items()}
        return found

    def zero_shot(self, classes: Sequence[str], templates: Sequence[str]) -> System | None:
        """A system that measures how often samples are told by the names of classes, with the network of this one as it is then.

        Its objective reads labelled samples, its steps have metrics and no terms; nothing trains it. None (by default) where the network
        compares nothing with names.

        Args:
            classes: the names in the order of their numbers.
            templates: texts with {} for a name, or names of sets of them; none for the system's own.

        Raises:
            UserError: classes or templates make no sense.
        """
        return None

    def exports(self) -> Mapping[str, nn.Module]:
        """The networks of an export by subdirectory; "" is the export itself. By default `net` alone."""
        return {"": self.net}

    def preview(self, batch: Any, limit: int = 4) -> list[Preview]:
        """What the model makes of up to `limit` examples of a held-out batch (no gradient, eval mode)."""
        return []
