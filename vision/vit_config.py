"""The shape of a ViT."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from .tower import TowerConfig


@dataclass(frozen=True, kw_only=True)
class ViTConfig(TowerConfig):
    """The shape of a ViT, in transformers' terms (and with transformers' defaults)."""

    hidden_dropout_prob: float = 0.0
    """Dropout of the embeddings and before each residual sum."""
    attention_probs_dropout_prob: float = 0.0
    """Dropout of the attention weights."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights."""
    layer_norm_eps: float = 1e-12
    """Epsilon of every layer norm. This is transformers' default; the paper's code, timm and the named sizes use 1e-6."""
    qkv_bias: bool = True
    """Whether queries, keys and values have biases."""
    num_labels: int = 2
    """Classes."""
    labels: tuple[str, ...] | None = None
    """Class names in the order of their numbers (`id2label`)."""
    pooling: Literal["cls", "mean"] = "cls"
    """What the head reads: the class token, or the mean of the patch tokens (not known to transformers)."""
    fc_norm: bool = False
    """Whether the final norm stands behind the mean instead of before it (timm's name)."""
    representation_size: int | None = None
    """Width of a hidden layer with tanh before the head, the paper's `pre_logits` (not known to transformers); None: no such layer. It is
    for pretraining: fine-tuning (task classify) leaves it out."""
    head_norm: bool = False
    """Whether a batch norm without gain and bias stands before the head, as in MAE's linear probe. Where the network is saved, it goes into
    the head's weights."""
    drop_path_rate: float = 0.0
    """Stochastic depth: in training, the probability of leaving a part of the last block out for a picture; it rises evenly from 0."""

    AT_LEAST_ONE = (*TowerConfig.AT_LEAST_ONE, "num_labels", "representation_size")
    NOT_NEGATIVE = (*TowerConfig.NOT_NEGATIVE, "initializer_range")
    PROBABILITIES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate")
    IGNORED = MappingProxyType({
        "encoder_stride": "about masked-image pretraining", "pooler_act": "of the pooler, which a classifier has not",
        "pooler_output_size": "of the pooler, which a classifier has not",
    })

    def problems(self) -> list[str]:
        """What is wrong with the fields."""
        found = super().problems()
        if self.labels is not None and len(self.labels) != self.num_labels:
            found.append(f"{len(self.labels)} labels for num_labels {self.num_labels}: expected one name for each class")
        if self.fc_norm and self.pooling != "mean":
            found.append(f"fc_norm is a norm of the mean, and pooling is {self.pooling!r}: expected pooling 'mean', or fc_norm false")
        if self.drop_path_rate == 1:
            found.append("drop_path_rate is 1, expected less: the last block would never be there")
        return found

    def to_dict(self) -> dict[str, Any]:
        """The keys of config.json; those that transformers does not know only where they say something."""
        record = super().to_dict()
        for name, usual in (("pooling", "cls"), ("fc_norm", False), ("representation_size", None), ("head_norm", False),
                            ("drop_path_rate", 0.0)):  # fmt: skip
            if record[name] == usual:
                record.pop(name)
        return record
