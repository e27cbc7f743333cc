"""What reads a stack's output: a language model's head, a pooler."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .block import activation as activation_called
from .config import MULTI_LABEL, Config
from .embed import normal_
from .loss import SoftmaxGradient, linear_cross_entropy_sum, softmax_gradient_


class Transform(nn.Module):
    """The dense layer, activation and normalisation before BERT's vocabulary projection.

    Args:
        hidden_size: D.
        activation: a name in `shared.block.ACTIVATIONS`.
        norm: makes the normalisation.
        output_size: E, where the word table is narrower than D (ELECTRA, ALBERT); by default D.
    """

    def __init__(self, hidden_size: int, activation: str, norm: Callable[[], nn.Module], *, output_size: int | None = None) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, output_size or hidden_size)
        self.activation = activation_called(activation)
        self.norm = norm()
        normal_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., D] to [..., E]."""
        return self.norm(self.activation(self.dense(x)))


class LMHead(nn.Module):
    """Scores over the vocabulary, computed only for the rows it is given.

    A masked language model has targets at 15 % of its positions: select those rows (`rows`) before the head.

    Args:
        hidden_size: D.
        vocab_size: V.
        transform: what comes before the projection, such as `Transform` (BERT).
        weight: the word table [V, D] to share (`embedding.word.weight`); by default a weight of its own.
        bias: whether the projection has a bias.
    """

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        *,
        transform: nn.Module | None = None,
        weight: nn.Parameter | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.transform = transform
        if weight is None:
            weight = nn.Parameter(torch.empty(vocab_size, hidden_size))
            nn.init.normal_(weight, std=0.02)
        if weight.shape != (vocab_size, hidden_size):
            raise ValueError(f"the shared weight must be [{vocab_size}, {hidden_size}], got {list(weight.shape)}")
        self.weight = weight
        self.bias = nn.Parameter(torch.zeros(vocab_size)) if bias else None
        self.soften: SoftmaxGradient = softmax_gradient_

    def hidden(self, x: Tensor) -> Tensor:
        """What the projection reads, [..., D]."""
        return x if self.transform is None else self.transform(x)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of rows [..., D], as [..., V]."""
        return nn.functional.linear(self.hidden(x), self.weight, self.bias)

    def loss(self, x: Tensor, targets: Tensor, chunk: int | None = None) -> Tensor:
        """The summed cross-entropy of rows [N, D] against targets [N], without holding all logits."""
        return linear_cross_entropy_sum(self.hidden(x), self.weight, self.bias, targets, chunk, self.soften)


def rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows [N, D] of a batch [B, S, D]; `index` [N] counts through the flattened batch."""
    return x.flatten(0, 1).index_select(0, index)


class Pooler(nn.Module):
    """A dense layer and tanh on the first token (BERT).

    Args:
        hidden_size: D.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        normal_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Pool sequences [B, S, D] by their first token, or rows [N, D] that were already selected."""
        return torch.tanh(self.dense(x[:, 0] if x.dim() == 3 else x))


def class_scores(logits: Tensor, config: Config) -> Tensor:
    """What a classifier says of its classes: logits [..., C] as transformers' pipelines show them.

    Numbers as they are for a regression, a sigmoid for each class where a sample may have several (or where there is one
    class), else the softmax.
    """
    if config.problem_type == "regression":
        return logits
    several = config.problem_type == MULTI_LABEL or logits.shape[-1] == 1
    return logits.sigmoid() if several else logits.softmax(-1)
