"""Task heads over a BERT-shaped trunk: a class for a text or pair, for each token, an answer span, a choice.

The heads are BERT's (https://arxiv.org/abs/1810.04805, section 4); a family whose head differs builds
its own. Each network takes what its trunk takes and returns logits; losses belong to fine-tuning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from ..shared.encoder import Encoder, EncoderOutput


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
        """Standard deviation of fresh weights."""
        ...


@dataclass
class ClassifierOutput:
    """Outputs of the classification and choice heads."""

    logits: Tensor
    """[B, classes], [B, S, classes] for tokens, [B, choices] for a choice."""
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

    def __init__(self, trunk: Encoder, config: TaskConfig, classes: int, dropout: float) -> None:
        super().__init__()
        self.config = config
        self.trunk = trunk
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(config.hidden_size, classes)
        init_head(self.classifier, config.initializer_range)


def _dropout(config: TaskConfig) -> float:
    return config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout


class SequenceClassifier(nn.Module):
    """A network whose forward maps texts to logits [B, classes]; `config` names the classes."""

    config: Any


class SequenceClassification(_Task, SequenceClassifier):
    """A class for a text or a pair of texts, from the pooled first token."""

    def __init__(self, trunk: Encoder, config: TaskConfig) -> None:
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
    ) -> ClassifierOutput:
        """Map ids [B, S] to logits [B, classes], or N texts packed in one row to [N, classes]; see `Encoder.forward`."""
        out: EncoderOutput = self.trunk(input_ids, attention_mask, token_type_ids, position_ids,
                                        lengths=lengths, output_hidden_states=output_hidden_states)
        return ClassifierOutput(self.classifier(self.dropout(out.pooled)), out.hidden_states)


class TokenClassification(_Task):
    """A class for each token: tagging, named entities."""

    def __init__(self, trunk: Encoder, config: TaskConfig) -> None:
        super().__init__(trunk, config, config.num_labels, _dropout(config))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        output_hidden_states: bool = False,
    ) -> ClassifierOutput:
        """Map ids [B, S] to logits [B, S, classes]."""
        out: EncoderOutput = self.trunk(input_ids, attention_mask, token_type_ids, position_ids, output_hidden_states=output_hidden_states)
        return ClassifierOutput(self.classifier(self.dropout(out.last_hidden_state)), out.hidden_states)


class QuestionAnswering(_Task):
    """Start and end of the answer within the input. No dropout before the head."""

    def __init__(self, trunk: Encoder, config: TaskConfig) -> None:
        super().__init__(trunk, config, 2, 0.0)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        output_hidden_states: bool = False,
    ) -> QuestionAnsweringOutput:
        """Map ids [B, S] to start and end logits [B, S]."""
        out: EncoderOutput = self.trunk(input_ids, attention_mask, token_type_ids, position_ids, output_hidden_states=output_hidden_states)
        start, end = self.classifier(self.dropout(out.last_hidden_state)).unbind(-1)
        return QuestionAnsweringOutput(start, end, out.hidden_states)


class MultipleChoice(_Task):
    """One of several texts, each scored by one number from its pooled first token."""

    def __init__(self, trunk: Encoder, config: TaskConfig) -> None:
        super().__init__(trunk, config, 1, _dropout(config))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        output_hidden_states: bool = False,
    ) -> ClassifierOutput:
        """Map ids [B, choices, S] to logits [B, choices]."""
        batch, choices, _ = input_ids.shape

        def flat(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.flatten(0, 1)

        out: EncoderOutput = self.trunk(input_ids.flatten(0, 1), flat(attention_mask), flat(token_type_ids), flat(position_ids),
                                        output_hidden_states=output_hidden_states)
        return ClassifierOutput(self.classifier(self.dropout(out.pooled)).view(batch, choices), out.hidden_states)
