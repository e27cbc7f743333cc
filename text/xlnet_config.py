"""XLNet's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from ..shared.config import Config


@dataclass(frozen=True, kw_only=True)
class XLNetConfig(Config):
    """transformers' `XLNetConfig`, whose defaults are the large model."""

    vocab_size: int = 32000
    """Rows of the word table."""
    d_model: int = 1024
    """Width D."""
    n_layer: int = 24
    """Blocks."""
    n_head: int = 16
    """Attention heads."""
    d_inner: int = 4096
    """Width of the feed-forward layer."""
    d_head: int | None = None
    """Width of a head: D / n_head, and nothing else."""
    ff_activation: str = "gelu"
    """Activation of the feed-forward layer."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights."""
    layer_norm_eps: float = 1e-12
    """Epsilon of every layer norm."""
    dropout: float = 0.1
    """Dropout of embeddings, distances, attention weights, parts of the blocks and output."""
    mem_len: int | None = 512
    """States of earlier tokens that every layer remembers; None or 0 for no memory."""
    reuse_len: int | None = None
    """First tokens of a segment that are remembered; None or 0: all of them. Pretraining sets it by its rows."""
    clamp_len: int = -1
    """Longer distances count as this one; 0 or less: none is clamped."""
    summary_last_dropout: float = 0.1
    """Dropout between the summary of a text and the layer for its class."""
    num_labels: int = 2
    """Classes of a task head."""
    labels: tuple[str, ...] | None = None
    """Names of the classes."""
    tie_word_embeddings: bool = True
    """Share the word table with the head."""
    pad_token_id: int | None = 5
    """Id of padding, which is masked."""
    bos_token_id: int | None = 1
    """Where a text that is generated without a prompt starts; of a network that is trained here `<eod>`, which stands between documents."""
    eos_token_id: int | None = 2
    """Ends a text that is generated; of a network that is trained here `<eod>`."""

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = MappingProxyType({
        "attn_type": ("bi",), "bi_data": (False,), "untie_r": (True,), "summary_type": ("last",), "summary_use_proj": (True,),
        "summary_activation": ("tanh",),
    })
    IGNORED: ClassVar[Mapping[str, str]] = MappingProxyType({
        "same_length": "about attention in one direction, which no XLNet has", "use_mems_eval": "an argument of the network here",
        "use_mems_train": "an argument of the network here", "start_n_top": "about a head that is not read here",
        "end_n_top": "about a head that is not read here",
    })
    SYNONYMS: ClassVar[Mapping[str, str]] = MappingProxyType({
        "hidden_size": "d_model", "n_token": "vocab_size", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer",
    })

    type_vocab_size: ClassVar[int] = 3
    """Segments of a text or pair of a task: two texts and <cls>. No table has them: only whether two tokens share one counts."""
    longest_input: ClassVar[None] = None
    """There is no table of positions that limits a text."""
    summary_token: ClassVar[Literal["last"]] = "last"
    """Which token of a text holds what the network makes of the whole."""
    question_first: ClassVar[bool] = False
    """The text that answers a question stands before it: in pretraining, the first segment is the longer one."""

    AT_LEAST_ONE = ("vocab_size", "d_model", "d_inner", "n_head", "n_layer", "num_labels")
    PROBABILITIES = ("dropout", "summary_last_dropout")
    NOT_NEGATIVE = ("initializer_range", "layer_norm_eps", "mem_len", "reuse_len")
    ACTIVATION = "ff_activation"

    def problems(self) -> list[str]:
        """What is wrong with the fields, alone and together."""
        found = super().problems()
        if self.d_model % 2:
            found.append(f"d_model is {self.d_model}, expected an even number: sinusoids come in pairs")
        if self.n_head > 0 and self.d_model % self.n_head:
            found.append(f"d_model {self.d_model} is not a multiple of n_head {self.n_head}")
        elif self.n_head > 0 and self.d_head not in (None, self.d_model // self.n_head):
            found.append(f"d_head is {self.d_head}, expected d_model / n_head, which is {self.d_model // self.n_head}")
        return found

    # the names that the heads of tasks read

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.d_model

    @property
    def hidden_dropout_prob(self) -> float:
        """Dropout of the trunk."""
        return self.dropout

    @property
    def classifier_dropout(self) -> float:
        """Dropout between the summary of a text and the layer for its class."""
        return self.summary_last_dropout


SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"d_model": 128, "n_layer": 2, "n_head": 2, "d_inner": 512, "mem_len": 96},
    "base": {"d_model": 768, "n_layer": 12, "n_head": 12, "d_inner": 3072, "mem_len": 384},
    "large": {"mem_len": 384},
}
"""`base` and `large` are the paper's, with the memory of its published pretraining script."""
