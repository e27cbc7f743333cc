"""Reformer. Kitaev, Kaiser and Levskaya, "Reformer: The Efficient Transformer", 2020. https://arxiv.org/abs/2001.04451

A language model for very long texts: a token sees those whose keys hash like its query, and of the layers nothing is kept for the backward
pass. One vector of a token is its query and, made a unit vector, its key. Random rotations R hash it to argmax [x R; -x R]; the tokens are
sorted by this bucket and cut into chunks, and each sees its chunk and the one before, in several rounds with rotations of their own:

    place    0 1 2 3 4 5 6 7               sorted   0 3 5 | 1 6 | 2 4 7
    bucket   a b c a c a b c               chunks   0 3 5 1 | 6 2 4 7       4 sees 6 2 7, and 0 3 5 1; if causal, 2, and 0 3 1

    two streams, both begun with the embedding:    y1 = x1 + attention(x2)      y2 = x2 + feed-forward(y1)      backwards: x2, then x1

Faithful: networks and outputs as in transformers' `Reformer*` classes: shared query-key attention that sees itself only where it sees
nobody else, local layers between (queries and keys of their own), rounds weighted by their sums of exponentials, the circle in which the
first chunk sees the last, axial positions (rows and columns of a table, appendix D), reversible residuals with both streams side by side
before the last norm and the head. Memory does not grow with the layers; the feed-forward net and the loss are computed in chunks
(`chunk_size_feed_forward`, `chunk_size_lm_head`). The number of buckets is a product of factors where it is large: O(n log n). A token
sees none that stands later, but how many of those hash to buckets before its own moves the chunks' borders, and with them what it sees of
the tokens before it; so it is in the paper's code and in transformers.

Deviations, each with its reason:
* Rotations are drawn by generators of their own, from a number that an example brings along, in each epoch another one; transformers
  draws them from the global generator in each forward pass. Without such a number (`seeds`) they are always the same. With `hash_seed`
  they are transformers' with that `hash_seed`: the same in all layers.
* A text is padded to whole chunks inside, in training, too, and does not depend on what stands beside it: texts of a batch are grouped by
  their padded lengths. In transformers, padding of one text to the length of another changes the chunks.
* Training texts may be shorter than the axial shape: they have its first positions.
* Generating, a token sees all tokens before it in the layers that hash: what the hashes approximate, and for one token no more than a line
  of scores. transformers looks up the chunk into which the token falls.
* The released head has a bias (`lm_head.bias`), which transformers before version 5 adds and version 5 reads and leaves out: here it is
  added.
* Where a token sees itself alone in several rounds, transformers' sum over them is off by some thousandths in fp32; here it is not. Such a
  token has no dropout of its weight.
* Dropout of the feed-forward net stands behind its activation; for ReLU that is the same.
* Under FSDP, the layers' weights are gathered together, as their halves run one by one.
* A network is fine-tuned in both directions (`is_decoder` false), where transformers warns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..shared.attention.cache import KVCache
from ..shared.attention.mask import Mask
from ..shared.attention.plan import Plan
from ..shared.attention.tiled import attend
from ..shared.block import FeedForward, LayerNorm
from ..shared.convert import affine
from ..shared.decoder import DecoderInfo
from ..shared.embed import normal_
from ..shared.encoder import EncoderOutput
from ..shared.errors import UserError
from ..shared.family import Card, Context, Family, Net, Task, Vocabulary, transformers
from ..shared.generation_config import defaults_files, read_defaults
from ..shared.heads import LMHead
from ..shared.packed import starts
from ..shared.sample import Sample
from ..shared.system import Preview
from ..shared.tokenizer import Tokenizer
from ._axial import AxialEmbedding
from ._hashing import LONELY, rotation
from ._reversible import reversible
from ._sorted import HashedAttention, NearbyAttention, ReversibleBlock, Rows
from .encoder_tasks import encoder_tasks
from .framing import longest
from .masking import MaskedLMOutput
from .next_token import CausalBatch, CausalExample, CausalObjective, CausalSettings, NextTokenSystem
from .reformer_config import SIZES, ReformerConfig
from .reformer_formats import BUFFERS, HEAD, rules_below, trunk_rules
from .tasks import DenseClassification, QuestionAnswering

# ---------------------------------------------------------------------------------------------- networks


class ReformerModel(nn.Module):
    """Words, positions, and reversible layers that hash or see the tokens nearby."""

    def __init__(self, config: ReformerConfig) -> None:
        super().__init__()
        self.config = c = config
        self.num_hashes = c.num_hashes
        """Rounds of hashing; may be set for evaluation."""
        width, heads = c.hidden_size, (c.num_attention_heads, c.attention_head_size)

        def attention(kind: str) -> NearbyAttention:
            if kind == "lsh":
                return HashedAttention(width, *heads, c.near(kind), dropout=c.lsh_attention_probs_dropout_prob)
            return NearbyAttention(width, *heads, c.near(kind), dropout=c.local_attention_probs_dropout_prob)

        self.embed = AxialEmbedding(c.vocab_size, width, c.max_position_embeddings, c.axial_pos_shape if c.axial_pos_embds else None,
                                    c.axial_pos_embds_dim, std=c.axial_norm_std, dropout=c.hidden_dropout_prob)
        self.layers = nn.ModuleList(
            ReversibleBlock(attention(kind), FeedForward(width, c.feed_forward_size, c.hidden_act, dropout=c.hidden_dropout_prob),
                            norm=lambda: LayerNorm(width, eps=c.layer_norm_eps), order="pre", dropout=c.hidden_dropout_prob)
            for kind in c.attn_layers)
        self.norm = LayerNorm(2 * width, eps=c.layer_norm_eps)
        self.dropout = nn.Dropout(c.hidden_dropout_prob)
        normal_(self, c.initializer_range)

    @property
    def blocks(self) -> list[ReversibleBlock]:
        """The layers."""
        return cast("list[ReversibleBlock]", list(self.layers))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None,
                position_ids: Tensor | None = None, *, lengths: tuple[int, ...] | None = None, seeds: Sequence[int] | None = None,
                output_hidden_states: bool = False) -> EncoderOutput:
        """Read texts: [B, S], or N of them packed in one row.

        Args:
            input_ids: [B, S].
            attention_mask: [B, S], nonzero where there is no padding, which may stand anywhere.
            token_type_ids: not used: there are none.
            position_ids: [B, S]; by default 0, 1, ... in each text.
            lengths: of N packed texts, of which each sees itself alone (then B is 1); excludes `attention_mask`.
            seeds: a number for each text, which makes its rotations; by default 0. `hash_seed` comes before it.
            output_hidden_states: keep the second stream before each layer and behind the last, without a gradient.

        Returns:
            Both streams, `last_hidden_state` [B, S, 2 D]; where there is padding 0.
        """
        batch, length = input_ids.shape
        keep = None
        if attention_mask is not None:
            assert lengths is None, "packed texts need no padding mask"
            keep = attention_mask.bool()
            lengths = tuple(cast("list[int]", keep.sum(1).tolist()))
            input_ids, position_ids = input_ids[keep][None], None if position_ids is None else position_ids[keep][None]
        elif lengths is None:
            lengths = (length,) * batch
        parts = list(self._groups(input_ids.flatten(), None if position_ids is None else position_ids.flatten(), lengths, seeds,
                                  output_hidden_states))
        places = torch.cat([place for place, _ in parts]) if len(parts) > 1 else None
        found: list[Tensor] = []
        for of_groups in zip(*(states for _, states in parts), strict=True):
            x = torch.cat(of_groups)
            if places is not None:
                x = torch.empty_like(x).index_copy(0, places, x)
            if keep is not None:
                x = x.new_zeros(batch * length, x.shape[1]).masked_scatter(keep.flatten()[:, None], x)
            found.append(x.view(batch, length, -1))
        last, *states = found
        return EncoderOutput(last, None, tuple(states) if output_hidden_states else None)

    def _groups(self, ids: Tensor, positions: Tensor | None, lengths: tuple[int, ...], seeds: Sequence[int] | None, states: bool
                ) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Texts of one padded length at a time: their places in the row [T], and states of these tokens, the last first: [T, .] each."""
        if max(lengths) > self.config.longest_input:
            raise UserError(f"a text has {max(lengths)} tokens, and the model has positions for {self.config.longest_input}: shorten it")
        begins, groups = starts(lengths), dict[int, list[int]]()
        for number, length in enumerate(lengths):
            if length:
                groups.setdefault(self.config.padded(length), []).append(number)
        for padded, numbers in groups.items():
            sizes = torch.tensor([lengths[n] for n in numbers])[:, None]
            place = torch.arange(padded)
            keep = place < sizes
            rows = torch.tensor([begins[n] for n in numbers])[:, None] + torch.minimum(place, sizes - 1)
            whole = all(lengths[n] == padded for n in numbers)
            kept = torch.cat([torch.arange(i * padded, i * padded + lengths[n]) for i, n in enumerate(numbers)])
            rows, keep, place, kept = (t.to(ids.device, non_blocking=True) for t in (rows, keep, place, kept))
            where = place.expand_as(rows) if positions is None else positions[rows]
            own = None if seeds is None else [seeds[n] for n in numbers]
            of_rows = Rows(None if whole else keep, *self._rotations(padded, own, ids.device))
            x = self.embed(ids[rows], where.clamp(max=self.config.longest_input - 1))
            seen: list[Tensor] | None = [] if states else None
            halves = [half for block in self.blocks for half in block.halves(of_rows, self.config.chunk_size_feed_forward)]
            found = [self.dropout(self.norm(reversible(x, halves, seen))), *(seen or ())]
            yield rows.flatten()[kept], [t.flatten(0, 1)[kept] for t in found]

    def next_state(self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor, cache: KVCache) -> Tensor:
        """What is made of the last of `input_ids` [B, S], which stand behind what the cache holds: [B, 2 D].

        Layers that hash see all tokens before. `attention_mask` [B, past + S] hides padding; chunks are those of the places in the text.
        """
        keys = cache.length + input_ids.shape[1]
        keep = input_ids.new_ones(1, keys) if attention_mask is None else attention_mask.long()
        key, query = (keep.cumsum(1) - 1).clamp(min=0)[:, None, None], position_ids[:, None, :, None]
        seen = (key <= query) & keep.bool()[:, None, None]
        local = self.config.near("local")
        near = seen & (key // local.chunk >= query // local.chunk - local.before)
        a = b = self.embed(input_ids, position_ids)
        alone = torch.zeros(seen.shape, dtype=b.dtype, device=b.device)
        alone = alone.masked_fill_(~seen, -torch.inf).masked_fill_((key == query) & seen, -LONELY)
        for number, block in enumerate(self.blocks):
            plan = partial(_attend, alone if isinstance(block.attention, HashedAttention) else near)
            a, b = block.generate(a, b, cast("Plan", plan), cache.layer(number))
        cache.advance(input_ids.shape[1])
        return self.norm(torch.cat([a, b], -1)[:, -1])

    def _rotations(self, length: int, seeds: Sequence[int] | None, device: torch.device
                   ) -> tuple[tuple[int, ...], Mapping[nn.Module, Tensor]]:
        """Factors of the number of buckets, and rotations [B or 1, H, d, rounds, ...] of each layer that hashes."""
        c = self.config
        factors = c.factors(length)
        shape = (c.num_attention_heads, c.attention_head_size, self.num_hashes, factors)
        made: dict[nn.Module, Tensor] = {}
        for number, block in enumerate(self.blocks):
            if isinstance(block.attention, HashedAttention) and length > c.lsh_attn_chunk_length:
                own = [c.hash_seed] if c.hash_seed is not None else [_mixed(seed, number) for seed in seeds or (0,)]
                made[block.attention] = torch.stack([rotation(seed, *shape) for seed in own]).to(device, non_blocking=True)
        return factors, made


def _attend(mask: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, dropout: float = 0.0) -> Tensor:
    """A plan with a mask, as `shared.attention.tiled.attend` takes it."""
    return attend(q, k, v, mask, scale=scale, dropout=dropout)


def _mixed(seed: int, layer: int) -> int:
    """The seed of a layer of a text; torch's generator takes its lower half."""
    return (seed * 6364136223846793005 + layer * 1442695040888963407 + 1) % (1 << 63)


class _LM(nn.Module):
    """The trunk and a head with a weight of its own, as the streams together are twice as wide as the words."""

    decodes: ClassVar[bool]
    """Whether a token sees none that stands later, whatever a config says that was made for another network."""

    def __init__(self, config: ReformerConfig) -> None:
        super().__init__()
        if config.is_decoder is not self.decodes:
            after = {"lsh_num_chunks_after": 0, "local_num_chunks_after": 0} if self.decodes else {}
            config = replace(config, is_decoder=self.decodes, **after)
        self.config = config
        self.trunk = ReformerModel(config)
        self.head = LMHead(2 * config.hidden_size, config.vocab_size, bias=True)
        nn.init.normal_(self.head.weight, std=config.initializer_range)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None,
                position_ids: Tensor | None = None, *, lengths: tuple[int, ...] | None = None, seeds: Sequence[int] | None = None,
                output_hidden_states: bool = False) -> MaskedLMOutput:
        """Map ids [B, S] to logits over the vocabulary; arguments as in `ReformerModel.forward`."""
        out = self.trunk(input_ids, attention_mask, token_type_ids, position_ids, lengths=lengths, seeds=seeds,
                         output_hidden_states=output_hidden_states)
        return MaskedLMOutput(self.head(out.last_hidden_state), out.hidden_states)


class ReformerForMaskedLM(_LM):
    """Predicts masked words."""

    decodes = False


class ReformerModelWithLMHead(_LM):
    """Predicts the next token."""

    decodes = True

    # What `generate` asks of a decoder.

    @property
    def decoder_info(self) -> DecoderInfo:
        """Where generating starts and ends, and how long it may run."""
        c = self.config
        ends = c.eos_token_id if isinstance(c.eos_token_id, tuple) else (c.eos_token_id,)
        return DecoderInfo(max_positions=c.longest_input, num_layers=len(c.attn_layers), bos_token_id=c.bos_token_id,
                           eos_token_id=c.eos_token_id, pad_token_id=ends[0] if c.pad_token_id is None else c.pad_token_id)

    def next_logits(self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor, cache: KVCache) -> Tensor:
        """Read new ids [B, S] after what the cache holds; logits [B, V] of the id that follows."""
        return self.head(self.trunk.next_state(input_ids, attention_mask, position_ids, cache))


# ------------------------------------------------------------------------------------------ the data side


@dataclass(frozen=True, slots=True)
class HashedExample(CausalExample):
    """One block of a document, and the number that makes its rotations."""

    seed: int


@dataclass(kw_only=True)
class HashedBatch(CausalBatch):
    """Packed blocks."""

    seeds: tuple[int, ...]
    """A number for each block, which makes its rotations."""


class HashedObjective(CausalObjective):
    """Every token from those before it in its document, hashed anew in each epoch."""

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterator[HashedExample]:
        """Yield the blocks of a document, or of each document of a row."""
        for made in super().example(sample, rng):
            yield HashedExample(made.ids, int(rng.integers(1 << 62)))

    def collate(self, examples: list[CausalExample]) -> HashedBatch:
        """Pack blocks side by side."""
        return HashedBatch(**vars(super().collate(examples)), seeds=tuple(cast("HashedExample", e).seed for e in examples))


# ------------------------------------------------------------------------------------------ the loss side


class ReformerSystem(NextTokenSystem[ReformerModelWithLMHead, HashedObjective]):
    """Reformer's pretraining: the next token of long texts."""

    compiles = False

    def read(self, batch: HashedBatch) -> Tensor:
        """See `NextTokenSystem.read`."""
        out = self.net.trunk(batch.input_ids, None, None, batch.position_ids, lengths=batch.lengths, seeds=batch.seeds)
        return out.last_hidden_state[0]

    @property
    def chunk(self) -> int | None:
        """See `NextTokenSystem.chunk`."""
        return self.net.config.chunk_size_lm_head or None

    @torch.no_grad()
    def preview(self, batch: HashedBatch, limit: int = 4) -> list[Preview]:
        """Held-out texts, and the token that was most probable at each place."""
        tokenizer, previews = self.objective.tokenizer, list[Preview]()
        guessed = self.net.head(self.read(batch)).argmax(-1)
        for start, length in list(zip(starts(batch.lengths), batch.lengths, strict=True))[:limit]:
            shown = slice(start, start + min(length, 48))
            previews.append(Preview((("text", tokenizer.decode(batch.input_ids[0, shown])),
                                     ("guessed, token by token", tokenizer.decode(guessed[shown])))))
        return previews


# --------------------------------------------------------------------------------------------- the entry


def create(config: ReformerConfig, settings: CausalSettings, context: Context) -> ReformerSystem:
    """Build Reformer with randomly initialized weights and its objective."""
    length = longest(config, settings.max_length)

    def objective(tokenizer: Tokenizer) -> HashedObjective:
        tokenizer.need("Reformer", "eos")
        return HashedObjective(tokenizer.fitting(config.vocab_size), length)

    return ReformerSystem(ReformerModelWithLMHead(config), context.objective("reformer", objective))


def adapt(config: ReformerConfig, context: Context) -> ReformerConfig:
    """Take vocabulary size and special ids from the tokenizer."""
    t = context.tokenizer
    if t is None:
        return config
    return replace(config, vocab_size=t.vocab_size, bos_token_id=t.bos_id, eos_token_id=t.eos_id, pad_token_id=t.pad_id)


def _agreeing(net: _LM, record: Mapping[str, Any], directory: Path) -> None:
    """Refuse a file whose config belongs to another network, as transformers does."""
    if record.get("is_decoder", False) is not net.decodes:
        raise UserError(f"{directory}/config.json names {type(net).__name__} with is_decoder {record.get('is_decoder', False)}: expected "
                        f"{net.decodes}")
    if net.decodes:
        read_defaults(net, record, directory)


def _classifier(config: ReformerConfig) -> nn.Module:
    return DenseClassification(ReformerModel(config), config, "tanh", width=2 * config.hidden_size)


def _answering(config: ReformerConfig) -> nn.Module:
    return QuestionAnswering(ReformerModel(config), config, width=2 * config.hidden_size)


_TASKS = (
    Net("ReformerForSequenceClassification", _classifier, transformers(lambda c: (
        *rules_below(c), *affine("classifier.dense", "head.dense"), *affine("classifier.out_proj", "head.out")))),
    Net("ReformerForQuestionAnswering", _answering, transformers(lambda c: (*rules_below(c), *affine("qa_outputs", "classifier")))),
)

NETS = (
    Net("ReformerModelWithLMHead", ReformerModelWithLMHead,
        transformers(lambda c: (*rules_below(c), *HEAD), files=defaults_files, finish=_agreeing)),
    Net("ReformerForMaskedLM", ReformerForMaskedLM, transformers(lambda c: (*rules_below(c), *HEAD), finish=_agreeing)),
    Net("ReformerModel", ReformerModel, transformers(lambda c: (*trunk_rules(c), BUFFERS))),
    *_TASKS,
)


def _both_ways(task: Task) -> Task:
    """A task whose network sees what stands later, too."""
    return replace(task, adapt=lambda config, context: replace(task.adapt(config, context), is_decoder=False))


def _drawn() -> Tensor:
    """What 16 tokens see of each other in a local layer with chunks of 4: [1, 1, 16, 16]."""
    place = torch.arange(16)
    return (place[:, None] // 4 - place // 4 <= 1)[None, None]


def _hashed() -> Tensor:
    """What 16 tokens see of each other, one round of hashing with chunks of 4."""
    generator = torch.Generator().manual_seed(1)
    at = torch.empty(16, dtype=torch.long)
    at[torch.randint(4, (16,), generator=generator).mul_(16).add_(torch.arange(16)).argsort()] = torch.arange(16) // 4
    return (((at[:, None] - at) % 4 <= 1) & ~torch.eye(16, dtype=torch.bool))[None, None]


CARD = Card(
    title="Reformer",
    paper="Kitaev, Kaiser, Levskaya. Reformer: The Efficient Transformer",
    year=2020,
    url="https://arxiv.org/abs/2001.04451",
    equation=r"\mathcal{L} = -\frac{1}{T} \sum_{t=1}^{T} \log p_\theta(x_t \mid x_{<t}), \qquad "
             r"o_i = \sum_{r} \sum_{j \in \mathcal{P}_i^{(r)}} \exp(q_i \cdot \bar q_j / \sqrt{d} - z_i) \, v_j",
    symbols="The tokens before t are those of the same document; T counts the targets of the whole global batch. P are the tokens that "
            "stand near token i in round r, sorted by the bucket of their query q; the key of a token is its query divided by its root "
            "mean square; z makes the weights of all rounds a distribution.",
    masks={"Local layers": Mask(causal=True, extra=_drawn()), "Layers that hash": Mask(causal=True, extra=_hashed())},
    reference="transformers.ReformerModelWithLMHead",
)

FAMILIES = (
    Family(
        name="reformer",
        card=CARD,
        config=ReformerConfig,
        sizes=SIZES,
        adapt=adapt,
        pretraining=Task("next token of long texts", CausalSettings, create),
        tasks=tuple(_both_ways(task) for task in encoder_tasks(_TASKS)),
        nets=NETS,
        heads=("head", "classifier"),
        model_type="reformer",
        vocabulary=Vocabulary("byte-bpe", "gpt2"),
    ),
)
