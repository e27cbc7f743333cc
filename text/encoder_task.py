"""What the tasks of an encoder have in common: framed texts side by side in one row, a network with a head, and its use.

A task is one file (`classify`, `score` ...), which ends with an `EncoderTask`. `encoder_tasks` gives a family all tasks that its
networks have a head for. The loop, the evaluation and the commands know these classes and no task by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..shared.errors import UserError
from ..shared.family import Context, Net, Task
from ..shared.packed import PackedBatch, joined, side_by_side
from ..shared.sample import Sample
from ..shared.system import Objective, Step, System, Term
from ..shared.tokenizer import Tokenizer
from .framing import Frame, SummaryToken, longest

ExampleT = TypeVar("ExampleT")
InputT = TypeVar("InputT")
TruthT = TypeVar("TruthT")
AnswerT = TypeVar("AnswerT")
NetT = TypeVar("NetT", bound=nn.Module, covariant=True)
ObjectiveT = TypeVar("ObjectiveT", bound=Objective[Any], covariant=True)


# ------------------------------------------------------------------------------------------ the data side


@dataclass(frozen=True)
class TaskSettings:
    """What of a task's objective can be set."""

    max_length: int | None = None
    """Tokens of a text or pair, special ones included; None takes the model's positions (XLNet, which has none, reads texts of any length).
    What happens to longer ones, the task says."""

    def __post_init__(self) -> None:
        """Check the range."""
        if self.max_length is not None and self.max_length < 8:
            raise UserError(f"max_length is {self.max_length}, expected at least 8 tokens")


@dataclass(frozen=True, slots=True)
class FramedExample:
    """A framed text or pair."""

    input_ids: np.ndarray
    """int64 [S]"""
    token_type_ids: np.ndarray
    """int64 [S]"""


@dataclass(kw_only=True)
class FramedBatch(PackedBatch):
    """Packed texts. T tokens, N texts."""

    token_type_ids: Tensor
    """[1, T]"""


class FramedObjective(Objective[ExampleT]):
    """Texts and pairs, framed by special tokens and cut to a length.

    Args:
        tokenizer: the vocabulary.
        what: what reads the texts, for messages ("classification").
        max_length: tokens of a text, special ones included.
        token_types: rows of the trunk's table of token types; 0 for none.
        summary: where the network reads its summary of a text.
    """

    def __init__(self, tokenizer: Tokenizer, what: str, max_length: int, token_types: int = 2, summary: SummaryToken = "first") -> None:
        self.framed = Frame(tokenizer, what, summary)
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.token_types = token_types

    def frame(self, text: str, pair: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Ids and token types, int64 [S] each, of a text or pair, cut to `max_length`."""
        a, b = ([] if t is None else self.tokenizer.encode(t, add_special_tokens=False) for t in (text, pair))
        a, b = shortened(a, b, self.framed.room(self.max_length, pair is not None))
        return self.around(a, None if pair is None else b)

    def around(self, a: Sequence[int], b: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Ids and token types, int64 [S] each, of token ids that fit."""
        ids, types = self.framed(a, b)
        return ids, types.clip(max=max(self.token_types, 1) - 1)

    def tokens_of(self, example: Any) -> int:
        """The text's."""
        return len(example.input_ids)


def packed(texts: Sequence[FramedExample]) -> dict[str, Any]:
    """The fields of a `FramedBatch` without its counts: texts side by side."""
    row = side_by_side([e.input_ids for e in texts])
    return {"tokens": sum(row.lengths), "input_ids": row.input_ids, "position_ids": row.position_ids, "lengths": row.lengths,
            "token_type_ids": joined([e.token_type_ids for e in texts])}


def shortened(a: Sequence[int], b: Sequence[int], room: int) -> tuple[Sequence[int], Sequence[int]]:
    """Cut the ends of two texts until both fit into `room` together; each time the longer one loses a token, else the second."""
    first, second = len(a), len(b)
    if first + second > room:
        # the shorter one keeps all it has up to half of the room; the larger half is the first one's
        second = min(second, max(room // 2, room - first))
        first = room - second
    return a[:first], b[:second]


def fitting(tokenizer: Tokenizer, config: Any, max_length: int | None = None) -> tuple[Tokenizer, int]:
    """The tokenizer of a network with this config, checked, and the longest text in tokens."""
    return tokenizer.fitting(config.vocab_size), longest(config, max_length)


# ------------------------------------------------------------------------------------------ the loss side


def read(net: nn.Module, batch: FramedBatch) -> Any:
    """What a network makes of packed texts."""
    return net(batch.input_ids, None, batch.token_type_ids, batch.position_ids, lengths=batch.lengths)


class Beside(ABC):
    """A loss beside a task's own, which a family has for all its tasks."""

    names: ClassVar[tuple[str, ...]]
    """Of its terms."""

    @abstractmethod
    def terms(self, net: Any, out: Any, batch: Any, count: str) -> dict[str, Term]:
        """The terms of what `net` made of a batch; `count` is the name of the number of its samples."""


class TaskSystem(System[NetT, ObjectiveT]):
    """A network with a head, and the loss of what it makes of packed texts."""

    samples: ClassVar[str] = "texts"
    """The count of a batch that is the number of its samples."""
    beside: Beside | None = None

    @abstractmethod
    def judged(self, logits: Tensor, batch: Any) -> Step:
        """The loss and metrics of the network's logits."""

    def forward(self, batch: Any, carry: Any = None) -> Step:
        """What is made of the logits (`judged`), and the loss beside it."""
        out = read(self.net, batch)
        step = self.judged(out.logits, batch)
        if self.beside is not None:
            step.terms |= self.beside.terms(self.net, out, batch, self.samples)
        return step

    def beside_names(self) -> tuple[str, ...]:
        """What the loss beside it adds to `System.measured`."""
        return () if self.beside is None else self.beside.names


# ------------------------------------------------------------------------------------------------- in use


class Use(ABC, Generic[InputT, TruthT, AnswerT]):
    """A fine-tuned network in use: what it answers, and how good that is.

    A measure is computed from numbers of each sample (`tally`), so that an evaluation can add them up over ranks and draw from them.

    Args:
        model: in eval mode, with the task's head.
        tokenizer: the model's; None where that reads text without one.
        max_length: tokens of a text, such as those that it was fine-tuned with; None takes the model's positions.
    """

    task: ClassVar[str]
    """The task's name."""
    needs: ClassVar[tuple[str, ...]]
    """What a labelled sample must hold, in the words of the evaluations."""
    head: ClassVar[type[nn.Module]]
    """The class of the networks."""
    method: str
    """How it is measured, in a few words."""

    def __init__(self, model: nn.Module, tokenizer: Tokenizer | None, max_length: int | None = None) -> None:
        self.model = model

    @classmethod
    def fits(cls, model: Any) -> bool:
        """Whether a network has the task's head."""
        return isinstance(model, cls.head)

    @classmethod
    def check(cls, model: nn.Module, source: str) -> None:
        """Refuse a network that was not fine-tuned for the task; `source` is where it is from."""
        if not cls.fits(model):
            raise UserError(f"{source} holds a {type(model).__name__}, expected a network that was fine-tuned for the task {cls.task}: "
                            f"train one with `polymodal finetune RECIPE --set task={cls.task}`")

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device

    @abstractmethod
    def labelled(self, sample: Sample) -> tuple[InputT, TruthT]:
        """The input of a sample and its true answer."""

    @abstractmethod
    def answer(self, inputs: Sequence[InputT]) -> list[AnswerT]:
        """The answers to inputs that are read together."""

    @abstractmethod
    def tally(self, truth: TruthT, answer: AnswerT) -> tuple[float, ...]:
        """The numbers of one sample from which `measures` are computed."""

    @abstractmethod
    def measures(self, tallies: np.ndarray) -> dict[str, float]:
        """How good the answers to N samples are; float64 [N, numbers]. A measure that is not defined for them is nan."""

    @abstractmethod
    def shown(self, truth: TruthT, answer: AnswerT) -> dict[str, Any]:
        """A line of the file of predictions."""


# ------------------------------------------------------------------------------------------------ the entry


@dataclass(frozen=True)
class EncoderTask:
    """A task of any encoder that has a network with its head.

    Args:
        name: what recipes call it.
        objective: in a few words.
        head: the end of the architectures that have it ("TokenClassification").
        settings: of the objective.
        adapt: fits the config of a network to the data.
        create: (network, settings, context) -> system.
        use: the network in use; None where the commands have another way to it.
    """

    name: str
    objective: str
    head: str
    settings: type
    adapt: Callable[[Any, Context], Any]
    create: Callable[[Any, Any, Context], System]
    use: type[Use[Any, Any, Any]] | None = None

    def of(self, net: Net) -> Task:
        """The task of a family whose network for it is `net`."""
        return Task(self.objective, self.settings, lambda config, settings, context: self.create(net.build(config), settings, context),
                    self.name, self.adapt, net.architecture)


def with_labels(config: Any, labels: tuple[str, ...], problem_type: str | None = None) -> Any:
    """The config with these classes, without what it said of the classes before."""
    aside = {k: v for k, v in config.extra.items() if k != "problem_type"}
    return replace(config, num_labels=len(labels), labels=labels, extra=aside | ({"problem_type": problem_type} if problem_type else {}))


def class_names(config: Any) -> tuple[str, ...]:
    """The names of a config's classes; LABEL_0, LABEL_1 ... where it has none, as in transformers."""
    return config.labels or tuple(f"LABEL_{i}" for i in range(config.num_labels))


def with_classes(config: Any, context: Context) -> Any:
    """The config with the classes of the data, where that is labelled."""
    return config if context.classes is None else with_labels(config, context.classes)


def need_classes(config: Any, context: Context, what: str, fix: str) -> None:
    """Refuse to train classes that nobody names."""
    if context.classes is None and config.labels is None and not context.net_only:
        raise UserError(f"{what} needs classes and the data set names none: {fix}")
