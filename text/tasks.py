"""Task heads over a trunk: a class for a text or pair, for each token, an answer span, a choice.

The heads are BERT's (https://arxiv.org/abs/1810.04805, section 4), and for a class the one that RoBERTa and ELECTRA have instead. A trunk
is called as an `Encoder` is, and gives an `EncoderOutput`. Each network takes what its trunk takes (`more`: what only a family's own trunk
does) and returns logits; losses belong to fine-tuning.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor, nn

from ..shared.block import activation as activation_called
from ..shared.convert import Rule, affine
from ..shared.embed import normal_
from ..shared.encoder import Encoder, EncoderOutput, first_tokens
from ..shared.errors import UserError
from ..shared.family import Net, transformers
from ..shared.tokenizer import Tokenizer


class TaskConfig(Protocol):
    """What the heads read from a family's config."""

    @property
    def hidden_size(self) -> int:
        """Width of the trunk."""
        ...

    @property
    def num_labels(self) -> int:
        """Classes."""
        ...

    @property
    def hidden_dropout_prob(self) -> float:
        """Dropout of the trunk."""
        ...

    @property
    def classifier_dropout(self) -> float | None:
        """Dropout before the head; None takes the trunk's."""
        ...

    @property
    def initializer_range(self) -> float:
        """Standard deviation of the initial weights."""
        ...


@dataclass
class ClassifierOutput:
    """Outputs of the classification and choice heads."""

    logits: Tensor
    """[B, classes], [B, S, classes] for tokens, [B, choices] for a choice; of packed choices [M]."""
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class QuestionAnsweringOutput:
    """Outputs of the span head."""

    start_logits: Tensor
    """[B, S]"""
    end_logits: Tensor
    """[B, S]"""
    hidden_states: tuple[Tensor, ...] | None = None


def init_head(module: nn.Linear, std: float) -> None:
    """Fresh weights of an output layer: normal, bias zero."""
    nn.init.normal_(module.weight, std=std)
    nn.init.zeros_(module.bias)


class _Task(nn.Module):
    """A trunk, dropout and one linear map."""

    def __init__(self, trunk: nn.Module, config: TaskConfig, classes: int, dropout: float, width: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.trunk = trunk
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width or config.hidden_size, classes)
        init_head(self.classifier, config.initializer_range)


def _dropout(config: TaskConfig) -> float:
    return config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout


class SequenceClassifier(nn.Module):
    """A network whose forward maps texts to logits [B, classes]; `config` names the classes."""

    config: Any


@dataclass
class EarlyExitOutput(ClassifierOutput):
    """Outputs of an `EarlyExit`."""

    exit_layers: Tensor | None = None
    """int64 [B]: how many layers each text went through."""


class EarlyExit(SequenceClassifier, ABC):
    """A classifier of texts that can answer before its last layer, where it is certain enough; its forward gives an `EarlyExitOutput`."""

    speed: float | None = None
    """The uncertainty, from 0 to 1, at which a text leaves; None: all go through all layers."""

    def hurry(self, speed: float) -> None:
        """Let texts leave early.

        Raises:
            UserError: `speed` is not between 0 and 1.
        """
        if not 0 <= speed <= 1:
            raise UserError(f"speed is {speed}, expected a number from 0 (hardly any text leaves early) to 1 (each leaves behind layer 1)")
        self.speed = speed

    @abstractmethod
    def operations(self, length: int, depth: int) -> float:
        """Floating-point operations for a text of `length` tokens that goes through `depth` layers, without its embedding."""


class TokenClassifier(nn.Module):
    """A network whose forward maps texts to logits [B, S, classes]; `config` names the classes."""

    config: Any


class WordTagger(TokenClassifier):
    """A network that tags words as they are, and brings what it reads them with, but a vocabulary of its own where it has one."""

    needs_tokenizer: bool = False
    """Whether it has a vocabulary of its own."""

    @abstractmethod
    def tag(self, sentences: Sequence[Sequence[str]], tokenizer: Tokenizer | None = None) -> list[list[int]]:
        """The numbers of the most probable tags of each sentence's words."""


class TextReader(SequenceClassifier):
    """A network that classifies texts as they are, and brings what it reads them with."""

    @abstractmethod
    def logits(self, texts: Sequence[tuple[str, str | None]]) -> Tensor:
        """[N, classes] of texts, each with the second text of its pair or None."""


def reads_alone(model: nn.Module) -> bool:
    """Whether a network reads texts without a tokenizer."""
    return isinstance(model, TextReader) or (isinstance(model, WordTagger) and not model.needs_tokenizer)


class SequenceClassification(_Task, SequenceClassifier):
    """A class for a text or a pair of texts, from the pooled token that the trunk reads its summary off."""

    def __init__(self, trunk: nn.Module, config: TaskConfig) -> None:
        super().__init__(trunk, config, config.num_labels, _dropout(config))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        lengths: tuple[int, ...] | None = None,
        output_hidden_states: bool = False,
        **more: Any,
    ) -> ClassifierOutput:
        """Map ids [B, S] to logits [B, classes], or N texts packed in one row to [N, classes]; see `Encoder.forward`."""
        out: EncoderOutput = self.trunk(input_ids, attention_mask, token_type_ids, position_ids,
                                        lengths=lengths, output_hidden_states=output_hidden_states, **more)
        return ClassifierOutput(self.classifier(self.dropout(out.pooled)), out.hidden_states)


class DenseHead(nn.Module):
    """Classes from one token [D]: a dense layer and an activation where BERT has its pooler, then the classes.

    Args:
        config: the trunk's.
        activation: behind the dense layer.
        drops_first: whether there is dropout before the dense layer, too (DistilBERT has none).
        width: of the states; by default the config's D.
    """

    def __init__(self, config: TaskConfig, activation: str, *, drops_first: bool = True, width: int | None = None) -> None:
        super().__init__()
        self.dropout = nn.Dropout(_dropout(config))
        self.drops_first = drops_first
        self.dense = nn.Linear(width or config.hidden_size, config.hidden_size)
        self.activation = activation_called(activation)
        self.out = nn.Linear(config.hidden_size, config.num_labels)
        normal_(self, config.initializer_range)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, D] to [B, classes]."""
        return self.out(self.dropout(self.activation(self.dense(self.dropout(x) if self.drops_first else x))))


class DenseClassification(SequenceClassifier):
    """A class for a text or a pair of texts, from one token through a dense layer: the first (RoBERTa, ELECTRA), or what the trunk pools.

    Args:
        trunk: without pooler, or one that hands on a token's state (BART: the last one's).
        config: the trunk's.
        activation: of the head.
        drops_first: see `DenseHead`.
        width: see there.
    """

    def __init__(self, trunk: nn.Module, config: TaskConfig, activation: str, *, drops_first: bool = True,
                 width: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.trunk = trunk
        self.head = DenseHead(config, activation, drops_first=drops_first, width=width)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        lengths: tuple[int, ...] | None = None,
        output_hidden_states: bool = False,
        **more: Any,
    ) -> ClassifierOutput:
        """Map ids [B, S] to logits [B, classes], or N texts packed in one row to [N, classes]; see `Encoder.forward`."""
        out: EncoderOutput = self.trunk(input_ids, attention_mask, token_type_ids, position_ids,
                                        lengths=lengths, output_hidden_states=output_hidden_states, **more)
        token = first_tokens(out.last_hidden_state, lengths) if out.pooler_output is None else out.pooler_output
        return ClassifierOutput(self.head(token), out.hidden_states)


class TokenClassification(_Task, TokenClassifier):
    """A class for each token: tagging, named entities.

    Args:
        trunk: any.
        config: the trunk's.
        dropout: before the head; by default the config's.
    """

    def __init__(self, trunk: nn.Module, config: TaskConfig, dropout: float | None = None) -> None:
        super().__init__(trunk, config, config.num_labels, _dropout(config) if dropout is None else dropout)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        lengths: tuple[int, ...] | None = None,
        output_hidden_states: bool = False,
        **more: Any,
    ) -> ClassifierOutput:
        """Map ids [B, S] to logits [B, S, classes]; see `Encoder.forward`."""
        out: EncoderOutput = self.trunk(input_ids, attention_mask, token_type_ids, position_ids,
                                        lengths=lengths, output_hidden_states=output_hidden_states, **more)
        return ClassifierOutput(self.classifier(self.dropout(out.last_hidden_state)), out.hidden_states)


class QuestionAnswering(_Task):
    """Start and end of the answer within the input. By default no dropout before the head, and states of width D (`width`)."""

    def __init__(self, trunk: nn.Module, config: TaskConfig, dropout: float = 0.0, width: int | None = None) -> None:
        super().__init__(trunk, config, 2, dropout, width)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        lengths: tuple[int, ...] | None = None,
        output_hidden_states: bool = False,
        **more: Any,
    ) -> QuestionAnsweringOutput:
        """Map ids [B, S] to start and end logits [B, S]; see `Encoder.forward`."""
        out: EncoderOutput = self.trunk(input_ids, attention_mask, token_type_ids, position_ids,
                                        lengths=lengths, output_hidden_states=output_hidden_states, **more)
        start, end = self.classifier(self.dropout(out.last_hidden_state)).unbind(-1)
        return QuestionAnsweringOutput(start, end, out.hidden_states)


class MultipleChoice(nn.Module, ABC):
    """One of several texts, each scored by one number; `config` is the trunk's."""

    config: Any

    @abstractmethod
    def scored(self, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None, position_ids: Tensor | None,
               lengths: tuple[int, ...] | None, output_hidden_states: bool) -> ClassifierOutput:
        """Map ids [M, S], or M texts packed in one row, to logits [M, 1]; arguments as in `Encoder.forward`."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        lengths: tuple[int, ...] | None = None,
        output_hidden_states: bool = False,
    ) -> ClassifierOutput:
        """Map ids [B, choices, S] to logits [B, choices], or M texts packed in one row to [M]; see `Encoder.forward`."""
        if lengths is not None:
            out = self.scored(input_ids, attention_mask, token_type_ids, position_ids, lengths, output_hidden_states)
            return replace(out, logits=out.logits[:, 0])
        batch, choices, _ = input_ids.shape

        def flat(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.flatten(0, 1)

        out = self.scored(input_ids.flatten(0, 1), flat(attention_mask), flat(token_type_ids), flat(position_ids), None,
                          output_hidden_states)
        return replace(out, logits=out.logits.view(batch, choices))


class DenseChoice(MultipleChoice):
    """Each text scored from its first token, by a dense layer, an activation and one number.

    Args:
        trunk: without a pooler.
        config: its own.
        activation: behind the dense layer.
        dropout: before the number.
    """

    def __init__(self, trunk: Encoder, config: Any, activation: Callable[[Tensor], Tensor], dropout: float) -> None:
        super().__init__()
        self.config = config
        self.trunk = trunk
        self.summary = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation, self.dropout = activation, nn.Dropout(dropout)
        self.classifier = nn.Linear(config.hidden_size, 1)
        for layer in (self.summary, self.classifier):
            normal_(layer, config.initializer_range)

    def scored(self, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None, position_ids: Tensor | None,
               lengths: tuple[int, ...] | None, output_hidden_states: bool) -> ClassifierOutput:
        """See `MultipleChoice.scored`."""
        out = self.trunk(input_ids, attention_mask, token_type_ids, position_ids,
                         lengths=lengths, output_hidden_states=output_hidden_states)
        summary = self.activation(self.summary(first_tokens(out.last_hidden_state, lengths)))
        return ClassifierOutput(self.classifier(self.dropout(summary)), out.hidden_states)


class PooledChoice(_Task, MultipleChoice):
    """Each text scored from the pooled token that the trunk reads its summary off."""

    def __init__(self, trunk: nn.Module, config: TaskConfig) -> None:
        super().__init__(trunk, config, 1, _dropout(config))

    def scored(self, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None, position_ids: Tensor | None,
               lengths: tuple[int, ...] | None, output_hidden_states: bool) -> ClassifierOutput:
        """See `MultipleChoice.scored`."""
        out: EncoderOutput = self.trunk(input_ids, attention_mask, token_type_ids, position_ids,
                                        lengths=lengths, output_hidden_states=output_hidden_states)
        return ClassifierOutput(self.classifier(self.dropout(out.pooled)), out.hidden_states)


class Trunk(Protocol):
    """Builds a family's trunk, such as the class `Encoder`."""

    def __call__(self, config: Any, *, pooler: bool) -> Encoder:
        """With randomly initialized weights."""
        ...


def task_nets(
    prefix: str, trunk: Trunk, rules: Callable[[Any, bool], tuple[Rule, ...]], *, first_token: str | None = None, choice: bool = True
) -> tuple[Net, ...]:
    """The networks of a family that have a task head, under transformers' names; the one for classes is the first.

    Args:
        prefix: what the architectures begin with: "Bert" of "BertForSequenceClassification".
        trunk: builds the family's trunk.
        rules: (config, whether there is a pooler) -> the table of the trunk, as it lies below a head.
        first_token: activation of a `DenseClassification`; by default the classes are read off the pooler.
        choice: whether the reference's head for multiple choice is BERT's.
    """

    def net(task: str, head: Callable[[Encoder, Any], nn.Module], theirs: str, pooler: bool) -> Net:
        return Net(f"{prefix}For{task}", lambda c: head(trunk(c, pooler=pooler), c),
                   transformers(lambda c: (*rules(c, pooler), *affine(theirs, "classifier"))))

    if first_token is None:
        classes = net("SequenceClassification", SequenceClassification, "classifier", pooler=True)
    else:
        classes = Net(f"{prefix}ForSequenceClassification",
                      lambda c: DenseClassification(trunk(c, pooler=False), c, first_token),
                      transformers(lambda c: (*rules(c, False), *affine("classifier.dense", "head.dense"),
                                              *affine("classifier.out_proj", "head.out"))))  # fmt: skip
    return (
        classes,
        net("TokenClassification", TokenClassification, "classifier", pooler=False),
        net("QuestionAnswering", QuestionAnswering, "qa_outputs", pooler=False),
        *((net("MultipleChoice", PooledChoice, "classifier", pooler=True),) if choice else ()),
    )
