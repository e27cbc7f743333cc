"""Reformer's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import lcm, prod
from types import MappingProxyType
from typing import Any, ClassVar, Self

from ..shared.config import Config
from ..shared.errors import UserError
from ._hashing import Nearby, bucket_factors


@dataclass(frozen=True, kw_only=True)
class ReformerConfig(Config):
    """transformers' `ReformerConfig`, with its defaults."""

    vocab_size: int = 320
    """Rows of the word table."""
    hidden_size: int = 256
    """Width D of each of the two streams."""
    attn_layers: tuple[str, ...] = ("local", "lsh", "local", "lsh", "local", "lsh")
    """Whether each layer hashes (`lsh`) or sees the tokens nearby (`local`)."""
    num_attention_heads: int = 12
    """Attention heads."""
    attention_head_size: int = 64
    """Width of a head; the heads together need not have width D."""
    feed_forward_size: int = 512
    """Width of the feed-forward layer."""
    hidden_act: str = "relu"
    """Activation of the feed-forward layer."""
    is_decoder: bool = False
    """Whether a token sees none that stands later."""
    axial_pos_embds: bool = True
    """Whether positions are sums of parts for their row and their column; else each has a vector."""
    axial_pos_shape: tuple[int, ...] = (64, 64)
    """Rows and columns: their product is the longest text."""
    axial_pos_embds_dim: tuple[int, ...] = (64, 192)
    """Widths of both parts, together D."""
    max_position_embeddings: int = 4096
    """The longest text; without axial positions also the rows of the position table."""
    lsh_attn_chunk_length: int = 64
    """Tokens of a chunk of sorted tokens."""
    lsh_num_chunks_before: int = 1
    """Chunks before its own that a token sees there."""
    lsh_num_chunks_after: int = 0
    """Chunks after its own that it sees there."""
    local_attn_chunk_length: int = 64
    """Tokens of a chunk of a local layer."""
    local_num_chunks_before: int = 1
    """Chunks before its own that a token sees there."""
    local_num_chunks_after: int = 0
    """Chunks after its own that it sees there."""
    num_hashes: int = 1
    """Rounds of hashing."""
    num_buckets: int | tuple[int, ...] | None = None
    """Buckets, or factors of their number; None: about two for each chunk of a text."""
    hash_seed: int | None = None
    """Makes all rotations, the same in all layers and for all texts; None: see the module."""
    hidden_dropout_prob: float = 0.05
    """Dropout of embeddings, parts of the blocks and output."""
    local_attention_probs_dropout_prob: float = 0.05
    """Dropout of the attention weights of local layers."""
    lsh_attention_probs_dropout_prob: float = 0.0
    """Dropout of the attention weights of layers that hash."""
    chunk_size_feed_forward: int = 0
    """Tokens that the feed-forward net computes at a time; 0: all."""
    chunk_size_lm_head: int = 0
    """Tokens that are scored over the vocabulary at a time; 0: as many as have room in a core's memory."""
    axial_norm_std: float = 1.0
    """Standard deviation of the initial axial positions."""
    initializer_range: float = 0.02
    """Standard deviation of the other initial weights."""
    layer_norm_eps: float = 1e-12
    """Epsilon of every layer norm."""
    classifier_dropout: float | None = None
    """Dropout of a task's head; None takes `hidden_dropout_prob`."""
    num_labels: int = 2
    """Classes of a task's head."""
    labels: tuple[str, ...] | None = None
    """Names of the classes."""
    bos_token_id: int | None = None
    """Id a text starts from where there is no prompt."""
    eos_token_id: int | tuple[int, ...] | None = 2
    """Id that ends a text, or several that do."""
    pad_token_id: int | None = 0
    """Id of padding."""

    type_vocab_size: ClassVar[int] = 1
    """There are no token types."""
    question_first: ClassVar[bool] = True
    """Whether a question stands before the text that answers it."""
    summary_token: ClassVar[str] = "first"
    """Which token of a text holds what the network makes of the whole."""

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = MappingProxyType({"tie_word_embeddings": (False,)})
    AT_LEAST_ONE = ("vocab_size", "hidden_size", "num_attention_heads", "attention_head_size", "feed_forward_size",
                    "max_position_embeddings", "lsh_attn_chunk_length", "local_attn_chunk_length", "num_hashes", "num_labels")
    PROBABILITIES = ("hidden_dropout_prob", "local_attention_probs_dropout_prob", "lsh_attention_probs_dropout_prob", "classifier_dropout")
    NOT_NEGATIVE = ("lsh_num_chunks_before", "lsh_num_chunks_after", "local_num_chunks_before", "local_num_chunks_after",
                    "chunk_size_feed_forward", "chunk_size_lm_head", "axial_norm_std", "initializer_range", "layer_norm_eps", "hash_seed")
    ACTIVATION = "hidden_act"

    def problems(self) -> list[str]:
        """What is wrong with the fields, alone and together."""
        found = super().problems()
        if not self.attn_layers or set(self.attn_layers) - {"lsh", "local"}:
            found.append(f"attn_layers is {list(self.attn_layers)}, expected lsh or local for each of one or more layers")
        if self.axial_pos_embds:
            for name in ("axial_pos_shape", "axial_pos_embds_dim"):
                if len(getattr(self, name)) != 2 or min(getattr(self, name)) < 1:
                    found.append(f"{name} is {list(getattr(self, name))}, expected two numbers of at least 1")
            if sum(self.axial_pos_embds_dim) != self.hidden_size:
                found.append(f"axial_pos_embds_dim is {list(self.axial_pos_embds_dim)}, expected a sum of hidden_size, {self.hidden_size}")
        factors = self.num_buckets if isinstance(self.num_buckets, tuple) else (self.num_buckets or 2,)
        if not factors or any(n < 2 or n % 2 for n in factors) or self.num_buckets == 0:
            found.append(f"num_buckets is {self.num_buckets}, expected an even number of at least 2, several of them, or null")
        if self.is_decoder:
            found += [f"{kind}_num_chunks_after is {after}, and with is_decoder a token sees none that stands later: expected 0"
                      for kind in ("lsh", "local") if kind in self.attn_layers and (after := getattr(self, f"{kind}_num_chunks_after")) > 0]
        return found

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], what: str = "config.json") -> Self:
        """Read a config.json, which says the number of layers twice."""
        record = dict(record)
        count, kinds = record.pop("num_hidden_layers", None), record.get("attn_layers", cls.attn_layers)
        if count not in (None, len(kinds)):
            raise UserError(f"{what}: num_hidden_layers is {count} and attn_layers has {len(kinds)} entries: expected one for each layer")
        return super().from_dict(record, what)

    def to_dict(self) -> dict[str, Any]:
        """The keys of config.json."""
        record = {**super().to_dict(), "num_hidden_layers": len(self.attn_layers), "tie_word_embeddings": False}
        return record if self.chunk_size_feed_forward else {k: v for k, v in record.items() if k != "chunk_size_feed_forward"}

    @property
    def longest_input(self) -> int:
        """Tokens of the longest text that there are positions for."""
        return min(self.max_position_embeddings, prod(self.axial_pos_shape)) if self.axial_pos_embds else self.max_position_embeddings

    def near(self, kind: str) -> Nearby:
        """Who sees whom in a layer of that kind."""
        before, after, chunk = (getattr(self, f"{kind}_{name}") for name in ("num_chunks_before", "num_chunks_after", "attn_chunk_length"))
        return Nearby(chunk, before, after, causal=self.is_decoder, alone=kind == "lsh")

    @property
    def chunks(self) -> tuple[int, ...]:
        """Tokens of a chunk, of each kind of layer that there is."""
        return tuple(self.near(kind).chunk for kind in ("lsh", "local") if kind in self.attn_layers)

    def padded(self, length: int) -> int:
        """Tokens of a text with its padding: whole chunks, or the shortest one."""
        shortest, whole = min(self.chunks), lcm(*self.chunks)
        return shortest if length <= shortest else -(-length // whole) * whole

    def factors(self, length: int) -> tuple[int, ...]:
        """Factors of the number of buckets, for texts of this padded length."""
        if self.num_buckets is None:
            return bucket_factors(length, self.lsh_attn_chunk_length)
        return self.num_buckets if isinstance(self.num_buckets, tuple) else (self.num_buckets,)


_ENWIK8: dict[str, Any] = {
    "vocab_size": 258, "hidden_size": 1024, "num_attention_heads": 8, "attention_head_size": 128, "feed_forward_size": 4096,
    "attn_layers": ("local", "local", "lsh", "local") * 3, "axial_pos_shape": (128, 512), "axial_pos_embds_dim": (256, 768),
    "max_position_embeddings": 65536, "lsh_attn_chunk_length": 256, "local_attn_chunk_length": 128, "num_hashes": 4,
    "num_buckets": 512, "hidden_dropout_prob": 0.2, "local_attention_probs_dropout_prob": 0.2, "lsh_attention_probs_dropout_prob": 0.1,
}
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 128, "num_attention_heads": 2, "feed_forward_size": 512, "attn_layers": ("local", "lsh"),
             "axial_pos_shape": (16, 32), "axial_pos_embds_dim": (32, 96), "max_position_embeddings": 512, "lsh_attn_chunk_length": 16,
             "local_attn_chunk_length": 16, "num_hashes": 2, "axial_norm_std": 0.1, "is_decoder": True},
    "base": {**_ENWIK8, "is_decoder": True},
}
"""`base` is the published enwik8 model: 12 layers, bytes, texts of 65,536."""
