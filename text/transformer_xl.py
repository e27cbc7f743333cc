"""Transformer-XL. Dai, Yang, Yang, Carbonell, Le and Salakhutdinov, "Transformer-XL: Attentive Language
Models beyond a Fixed-Length Context", 2019. https://arxiv.org/abs/1901.02860

A language model that reads a text segment by segment and keeps the states of the segments before as a memory, which every layer
attends to and no gradient enters. Positions are distances, so that a state means the same wherever it is seen from.

Faithful: the four terms of the score (section 3.3: content, content by distance, and the global biases u and v of both), sinusoids of
distances (sines first, then cosines), word vectors times sqrt(D), post-norm blocks (pre-norm by `pre_lnorm`), ReLU, dropout on
words, distances and output, adaptive input and softmax with tied tables and projections (section 4.1), the initialisation; a
memory that holds the last `mem_len` states of every layer's input (section 3.2) and starts empty; parameters and their names as in
transformers' `TransfoXLLMHeadModel`, which left the library after version 4.35: no current release loads an export, this one does.
Compared once with the classes of that version themselves, in nine configurations (docs/decisions.md).

Deviations, each with its reason:
* The first token of a segment is a target, too: the last token of the segment before is read again in front of it, the end-of-text
  token where a text begins. So each token of a row is a target exactly once, and all of the data counts.
* The reference of the paper numbers the softmax entries of the clusters backwards; here they are in order, as transformers had them.
* transformers begins with a memory of zeros that is attended to; here, as in the paper's code, there is nothing to attend to.
* Memories are [B, M, D], rows first; the references have time first. A row that is shorter than the batch is padded, and its
  padding never enters its memory.
* The adaptive softmax wants ids sorted by frequency. Tokenizers of words (`--kind word`) are sorted; merges and pieces are so roughly.
* `mem_len` 0 with `same_length` hides every key in the references; here the segment is attended to.
* No text is generated: `polymodal generate` keeps the keys and values of everything it reads, which is not a memory of `mem_len` states.

Data: `polymodal pack --tokenize TOKENIZER --block N --in-order` writes the rows, N tokens of a segment each; row g of every update goes on
from row g of the update before, whatever the micro-batch and the ranks.

Evaluation: `system.net.memory_length = N` sets another memory than that of training, such as 640 for a model trained with 150.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from ..shared.attention.mask import Mask
from ..shared.attention.plan import Shape
from ..shared.attention.position import sinusoids
from ..shared.block import FeedForward, LayerNorm
from ..shared.config import Config
from ..shared.convert import Alias, Ignore, Rename, Rule, Tied, affine, layers, prefixed
from ..shared.errors import UserError
from ..shared.family import Card, Context, Family, Net, Task, Vocabulary, transformers
from ..shared.loss import IGNORE, perplexity
from ..shared.sample import Sample
from ..shared.system import Batch, Objective, Preview, Step, System, Term
from ..shared.tokenizer import Tokenizer
from ._adaptive import AdaptiveEmbedding, AdaptiveSoftmax
from ._relative import Memory, RecurrentBlock, Relative, RelativeAttention, continued, remember


@dataclass(frozen=True, kw_only=True)
class TransfoXLConfig(Config):
    """transformers' `TransfoXLConfig` (version 4.35), whose defaults are the large WikiText-103 model as it is evaluated."""

    vocab_size: int = 267735
    """Words."""
    cutoffs: tuple[int, ...] = (20000, 40000, 200000)
    """Ids at which the clusters of the adaptive softmax begin."""
    d_model: int = 1024
    """Width D."""
    d_embed: int = 1024
    """Width of the word table."""
    n_head: int = 16
    """Attention heads."""
    d_head: int = 64
    """Width of a head; the heads together need not have width D."""
    d_inner: int = 4096
    """Width of the feed-forward layer."""
    div_val: int = 4
    """Factor by which each cluster's word vectors are narrower than those of the cluster before; 1: one table for all."""
    pre_lnorm: bool = False
    """Normalise before each part instead of after it."""
    n_layer: int = 18
    """Blocks."""
    mem_len: int = 1600
    """States of earlier tokens that every layer remembers."""
    clamp_len: int = 1000
    """Longer distances count as this one; 0 or less: none is clamped."""
    same_length: bool = True
    """Every token sees `mem_len` keys, itself included; else also all of its segment before it."""
    proj_share_all_but_first: bool = True
    """Share the projections of input and softmax for all clusters but the shortlist."""
    adaptive: bool = True
    """False: one softmax over all words; `cutoffs` must be empty then."""
    dropout: float = 0.1
    """Dropout of embeddings, distances, parts of the blocks and output."""
    dropatt: float = 0.0
    """Dropout of the attention weights."""
    untie_r: bool = True
    """Each layer has its own u and v; False: all share them, as in the paper."""
    init: Literal["normal", "uniform"] = "normal"
    """Distribution of the initial weights."""
    init_range: float = 0.01
    """uniform: weights lie between - and + this."""
    proj_init_std: float = 0.01
    """Standard deviation of fresh projections of words."""
    init_std: float = 0.02
    """normal: standard deviation of the initial weights; of layer norms around 1 in any case."""
    layer_norm_epsilon: float = 1e-5
    """Epsilon of every layer norm."""
    tie_word_embeddings: bool = True
    """Share the word table with the softmax."""
    eos_token_id: int | None = 0
    """Id that ends a text, and stands before one."""
    pad_token_id: int | None = None
    """Not used: padding is masked."""

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = MappingProxyType({
        "attn_type": (0,), "sample_softmax": (-1, 0), "ext_len": (0,), "is_encoder_decoder": (False,), "add_cross_attention": (False,),
    })
    IGNORED: ClassVar[Mapping[str, str]] = MappingProxyType({
        "trainer_compatible": "about the form of the reference's outputs", "tgt_len": "about the reference's training",
        "bos_token_id": "no text starts with it",
    })
    SYNONYMS: ClassVar[Mapping[str, str]] = MappingProxyType({
        "hidden_size": "d_model", "n_token": "vocab_size", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer",
        "tie_weight": "tie_word_embeddings",
    })

    AT_LEAST_ONE = ("vocab_size", "d_model", "d_embed", "n_head", "d_head", "d_inner", "div_val", "n_layer")
    PROBABILITIES = ("dropout", "dropatt")
    NOT_NEGATIVE = ("init_range", "proj_init_std", "init_std", "layer_norm_epsilon")

    def problems(self) -> list[str]:
        """What is wrong with the fields, alone and together."""
        problems = super().problems()
        if self.mem_len < 0:
            problems.append(f"mem_len is {self.mem_len}, expected 0 or more states")
        if self.d_model % 2:
            problems.append(f"d_model is {self.d_model}, expected an even number: sinusoids come in pairs")
        if list(self.cutoffs) != sorted({c for c in self.cutoffs if 0 < c < self.vocab_size}):
            problems.append(f"cutoffs are {list(self.cutoffs)}, expected ascending ids above 0 and below vocab_size {self.vocab_size}")
        if not self.adaptive and self.cutoffs:
            problems.append(f"adaptive is off and cutoffs are {list(self.cutoffs)}: expected none")
        if not problems and self.d_embed // self.div_val ** len(self.cutoffs) < 1:
            problems.append(f"d_embed {self.d_embed} leaves nothing for the last of {len(self.cutoffs) + 1} clusters "
                            f"at div_val {self.div_val}")
        return problems

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], what: str = "config.json") -> Self:
        """Read a config.json; transformers writes `proj_share_all_but_first` as the list `tie_projs`."""
        record = dict(record)
        tied = record.pop("tie_projs", None)
        if tied is not None and len(tied) > 1:
            shares = bool(tied[-1])
            said = record.setdefault("proj_share_all_but_first", shares)
            if list(tied) != [False] + [shares] * (len(tied) - 1) or said != shares:
                raise UserError(f"{what}: tie_projs {list(tied)} with proj_share_all_but_first {said} is not supported: expected the first "
                                "false and the others all true or all false, and the two to agree")
        return super().from_dict(record, what)

    def to_dict(self) -> dict[str, Any]:
        """The keys of config.json, `tie_projs` among them."""
        shares = self.proj_share_all_but_first
        return {**super().to_dict(), "tie_projs": [False] + [shares] * len(self.cutoffs), "attn_type": 0, "sample_softmax": -1}


_TRAINED: dict[str, Any] = {"clamp_len": -1, "same_length": False}
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"d_model": 128, "d_embed": 128, "n_head": 4, "d_head": 32, "d_inner": 512, "n_layer": 3, "mem_len": 128, "untie_r": False,
             "adaptive": False, "cutoffs": (), "div_val": 1, **_TRAINED},
    "base": {"d_model": 410, "d_embed": 410, "n_head": 10, "d_head": 41, "d_inner": 2100, "n_layer": 16, "mem_len": 150, "untie_r": False,
             "div_val": 1, **_TRAINED},
    "large": {"mem_len": 384, "dropout": 0.2, "dropatt": 0.2, **_TRAINED},
}
"""`base` and `large` are the paper's WikiText-103 models as they are trained."""


# ---------------------------------------------------------------------------------------------- networks


@dataclass
class TransfoXLOutput:
    """Outputs of the trunk."""

    last_hidden_state: Tensor
    """[B, S, D]"""
    mems: Memory | None = None
    """For the next segment."""
    hidden_states: tuple[Tensor, ...] | None = None
    """The input of every block and the last one's output, where asked for."""


@dataclass
class TransfoXLLMOutput:
    """Outputs of the language model."""

    logits: Tensor
    """[B, S, V], normalised: log-probabilities, as the reference gives them."""
    mems: Memory | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class TransfoXLModel(nn.Module):
    """Adaptive word vectors and causal blocks that attend by distance to their segment and to a memory."""

    def __init__(self, config: TransfoXLConfig) -> None:
        super().__init__()
        self.config = config
        self.memory_length = config.mem_len
        """States that are remembered from here on; may be set for evaluation."""
        self.embed = AdaptiveEmbedding(config.vocab_size, config.d_embed, config.d_model, config.cutoffs, config.div_val)
        shape = config.n_head, config.d_head
        self.content_bias, self.position_bias = (None if config.untie_r else nn.Parameter(torch.empty(shape)) for _ in range(2))
        biases = None if self.content_bias is None or self.position_bias is None else (self.content_bias, self.position_bias)
        self.layers = nn.ModuleList(
            RecurrentBlock(
                RelativeAttention(config.d_model, *shape, dropout=config.dropatt, biases=biases),
                FeedForward(config.d_model, config.d_inner, "relu", dropout=config.dropout),
                norm=lambda: LayerNorm(config.d_model, eps=config.layer_norm_epsilon),
                order="pre" if config.pre_lnorm else "post", dropout=config.dropout,
            )
            for _ in range(config.n_layer)
        )  # fmt: skip
        self.dropout = nn.Dropout(config.dropout)
        initialise(self, config)

    def forward(
        self, input_ids: Tensor, mems: Memory | None = None, attention_mask: Tensor | None = None, *, output_hidden_states: bool = False
    ) -> TransfoXLOutput:
        """Read one segment.

        Args:
            input_ids: [B, S].
            mems: what the segments before left; None at the beginning of a text.
            attention_mask: [B, S], nonzero where there is not padding, which stands on the right.
            output_hidden_states: keep the input of every block.
        """
        length = input_ids.shape[1]
        past = 0 if mems is None else mems.keep.shape[1]
        mems = mems if past else None
        x = self.dropout(self.embed(input_ids))
        plan = self._plan(x, mems, past, length)
        states: list[Tensor] = []
        for number, layer in enumerate(self.layers):
            states.append(x)
            x = layer(x, plan, None if mems is None else mems.states[number])
        x = self.dropout(x)
        kept = (*states, x) if output_hidden_states else None
        keep = x.new_ones(x.shape[:2], dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        return TransfoXLOutput(x, remember(states, mems, keep, self.memory_length), kept)

    def _plan(self, x: Tensor, mems: Memory | None, past: int, length: int) -> Relative:
        keep = None if mems is None else mems.in_front(length)  # padding on the right is hidden by the order
        window = (self.memory_length - 1, 0) if self.config.same_length and self.memory_length else None
        mask = Mask(causal=True, window=window, keep=keep, offset=past)
        distances = torch.arange(past + length - 1, -1, -1, device=x.device)
        if self.config.clamp_len > 0:
            distances = distances.clamp(max=self.config.clamp_len)
        positions = self.dropout(sinusoids(distances, self.config.d_model, interleaved=False).to(x.dtype))
        return Relative(mask, Shape(x.shape[0], length, past + length, x.device), positions=positions)


class TransfoXLLMHeadModel(nn.Module):
    """The trunk and an adaptive softmax that shares its word table."""

    def __init__(self, config: TransfoXLConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = TransfoXLModel(config)
        self.head = AdaptiveSoftmax(self.trunk.embed, tie_words=config.tie_word_embeddings, tie_projections=config.proj_share_all_but_first)
        initialise(self.head, config)

    @property
    def memory_length(self) -> int:
        """States that every layer remembers. Set it to evaluate with another memory than the one of training; 0 for none."""
        return self.trunk.memory_length

    @memory_length.setter
    def memory_length(self, length: int) -> None:
        if length < 0:
            raise UserError(f"memory_length is {length}, expected 0 or more states")
        self.trunk.memory_length = length

    def forward(
        self, input_ids: Tensor, mems: Memory | None = None, attention_mask: Tensor | None = None, *, output_hidden_states: bool = False
    ) -> TransfoXLLMOutput:
        """Log-probabilities [B, S, V] of the next token; arguments as in `TransfoXLModel.forward`."""
        out = self.trunk(input_ids, mems, attention_mask, output_hidden_states=output_hidden_states)
        return TransfoXLLMOutput(self.head.log_prob(out.last_hidden_state), out.mems, out.hidden_states)


def initialise(module: nn.Module, config: TransfoXLConfig) -> None:
    """Draw the initial weights as the reference does: projections of words, norms around 1, biases 0, all else by `init`."""
    norms = {id(part.weight) for part in module.modules() if isinstance(part, nn.LayerNorm)}
    for name, parameter in module.named_parameters():
        if id(parameter) in norms:
            nn.init.normal_(parameter, 1.0, config.init_std)
        elif "projections." in name:
            nn.init.normal_(parameter, std=config.proj_init_std)
        elif name.endswith(".bias") or name.startswith("biases.") or name == "cluster_bias":
            nn.init.zeros_(parameter)
        elif config.init == "uniform":
            nn.init.uniform_(parameter, -config.init_range, config.init_range)
        else:
            nn.init.normal_(parameter, std=config.init_std)


# ------------------------------------------------------------------------------------------ the data side


@dataclass(frozen=True)
class SegmentSettings:
    """What of the objective can be set."""

    max_length: int | None = None
    """The longest row of tokens that is taken; None takes the rows as they were packed."""

    def __post_init__(self) -> None:
        """Check the range."""
        if self.max_length is not None and self.max_length < 1:
            raise UserError(f"max_length is {self.max_length}, expected at least 1 token")


@dataclass(frozen=True, slots=True)
class SegmentExample:
    """One segment: ids int64 [S], each of which is predicted."""

    ids: np.ndarray


@dataclass(kw_only=True)
class SegmentBatch(Batch):
    """One segment of each lane."""

    ids: Tensor
    """[B, S]: what is predicted; what is read is the same one token later. Padded on the right."""
    keep: Tensor
    """bool [B, S]: no padding."""
    full: bool
    """Whether there is not padding."""


class SegmentObjective(Objective[SegmentExample]):
    """Every token of a text from those before it, a segment at a time."""

    sequential = True

    def __init__(self, tokenizer: Tokenizer, settings: SegmentSettings, row_length: int = 64) -> None:
        """Make the data side; rows that are not there yet are taken to have `row_length` tokens."""
        if tokenizer.eos_id is None and tokenizer.sep_id is None:
            raise UserError("Transformer-XL needs a token that stands before a text; this tokenizer has none in the role eos")
        self.tokenizer = tokenizer
        self.max_length = settings.max_length
        self.row_length = settings.max_length or row_length

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterator[SegmentExample]:
        """The row as it is: documents follow each other, and the memory goes on across their ends."""
        if not sample.tokenized:
            raise UserError(f"Transformer-XL reads rows of tokens in the order of the text, and {sample.key!r} of "
                            f"{sample.source or 'the data'} is raw text: use "
                            "`polymodal pack --tokenize TOKENIZER --block 64 --in-order`")
        ids, _ = sample.tokens()
        if self.max_length is not None and len(ids) > self.max_length:
            raise UserError(f"{sample.key!r} of {sample.source or 'the data'} has {len(ids)} tokens and objective.max_length is "
                            f"{self.max_length}: pack with --block {self.max_length}, or raise it")
        yield SegmentExample(ids)

    def collate(self, examples: list[SegmentExample]) -> SegmentBatch:
        """Put rows below each other, padded on the right."""
        lengths = np.array([len(e.ids) for e in examples])
        ids = np.zeros((len(examples), int(lengths.max())), dtype=np.int64)
        for row, example in zip(ids, examples, strict=True):
            row[: len(example.ids)] = example.ids
        keep = np.arange(ids.shape[1]) < lengths[:, None]
        total = int(lengths.sum())
        return SegmentBatch(counts={"targets": total}, tokens=total, ids=torch.from_numpy(ids), keep=torch.from_numpy(keep),
                            full=bool(keep.all()))

    def describe(self, example: SegmentExample) -> Preview:
        """The segment's tokens."""
        return Preview((("segment", self.tokenizer.show(example.ids)),
                        ("predict", f"each of the {len(example.ids)} tokens, from all before it and the memory")))


# ------------------------------------------------------------------------------------------ the loss side


class TransformerXLSystem(System[TransfoXLLMHeadModel, SegmentObjective]):
    """Transformer-XL's pretraining: the next token, with the memory as the carry.

    The carry holds `ids` (the samples that were read), `last` int64 [B] (their last tokens), and the memory: `keep` bool [B, M] and
    `states`, [B, M, D] for each layer. A row goes on from the row of the sample before it in its lane, wherever that stood.
    """

    def forward(self, batch: SegmentBatch, carry: Any = None) -> Step:
        """Cross-entropy of every token, summed."""
        first, mems = self._continued(batch, carry)
        out = self.net.trunk(self._inputs(batch, first), mems, None if batch.full else batch.keep)
        targets = batch.ids.masked_fill(~batch.keep, IGNORE)
        total = self.net.head.loss(out.last_hidden_state.flatten(0, 1), targets.flatten())
        step = Step({"lm": Term(total, "targets", labels=targets)})
        if len(batch.sample_ids) == len(batch.ids):  # a batch that knows its place in the text
            last = batch.ids.gather(1, batch.keep.sum(1, keepdim=True) - 1)[:, 0]
            memory = out.mems or Memory((), batch.keep[:, :0])
            step.carry = {"ids": list(batch.sample_ids), "last": last, "keep": memory.keep, "states": memory.states}
        return step

    def _inputs(self, batch: SegmentBatch, first: Tensor) -> Tensor:
        return torch.cat([first[:, None], batch.ids[:, :-1]], 1)

    def _continued(self, batch: SegmentBatch, carry: Any) -> tuple[Tensor, Memory | None]:
        """The token before each row [B], and the rows' memory."""
        eos = self.net.config.eos_token_id or 0
        found = continued(batch, carry)
        if found is None:
            return torch.full_like(batch.ids[:, 0], eos), None
        there, new = found
        last = there["last"] if new is None else there["last"].masked_fill(new, eos)
        return last, Memory(tuple(there["states"]), there["keep"])

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        return "lm", "lm_chance", "perplexity"

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """Perplexity."""
        return {"perplexity": perplexity(means["lm"])} if "lm" in means else {}

    @torch.no_grad()
    def preview(self, batch: SegmentBatch, limit: int = 4) -> list[Preview]:
        """Held-out segments, read without a memory, and the token that was most probable at each place."""
        tokenizer = self.objective.tokenizer
        first, _ = self._continued(batch, None)
        guessed = self.net(self._inputs(batch, first)[:limit, :48]).logits.argmax(-1)
        return [Preview((("text", tokenizer.decode(ids[keep])), ("guessed, token by token", tokenizer.decode(guess[keep]))))
                for ids, keep, guess in zip(batch.ids[:limit, :48], batch.keep[:limit, :48], guessed, strict=True)]


# --------------------------------------------------------------------------------------------- the entry


def create(config: TransfoXLConfig, settings: SegmentSettings, context: Context) -> TransformerXLSystem:
    """Build Transformer-XL with randomly initialized weights and its objective."""
    rows = max(1, config.mem_len)  # the paper trains with memory and segments of one length
    objective = context.objective("transformer_xl",
                                  lambda tokenizer: SegmentObjective(tokenizer.fitting(config.vocab_size), settings, rows))
    return TransformerXLSystem(TransfoXLLMHeadModel(config), objective)


def adapt(config: TransfoXLConfig, context: Context) -> TransfoXLConfig:
    """Take vocabulary size and special ids from the tokenizer; cutoffs beyond the vocabulary are left out."""
    t = context.tokenizer
    if t is None:
        return config
    return replace(config, vocab_size=t.vocab_size, cutoffs=tuple(c for c in config.cutoffs if c < t.vocab_size),
                   eos_token_id=t.sep_id if t.eos_id is None else t.eos_id, pad_token_id=t.pad_id)


def _trunk(config: TransfoXLConfig) -> tuple[Rule, ...]:
    """The keys of `TransfoXLModel`."""
    their, our = "layers.{i}.dec_attn", "layers.{i}.attention"
    tables = 1 if config.div_val == 1 else len(config.cutoffs) + 1
    projections = 0 if config.div_val == 1 and config.d_embed == config.d_model else tables
    names = (("r_w_bias", "content_bias"), ("r_r_bias", "position_bias"))
    if config.untie_r:
        shared: tuple[Rule, ...] = ()
        biases: tuple[Rule, ...] = tuple(Rename(f"{their}.{t}", f"{our}.{o}") for t, o in names)
    else:
        shared = tuple(Rename(t, o) for t, o in names)
        biases = tuple(r for t, o in names for r in (Alias(f"{their}.{t}", t, written=True), Tied(f"{our}.{o}", o)))
    layer = (
        Rename(f"{their}.qkv_net.weight", f"{our}.qkv.weight"),
        Rename(f"{their}.r_net.weight", f"{our}.r.weight"),
        Rename(f"{their}.o_net.weight", f"{our}.out.weight"),
        *biases,
        *affine(f"{their}.layer_norm", "layers.{i}.attention_residual.norm"),
        *affine("layers.{i}.pos_ff.CoreNet.0", "layers.{i}.feed_forward.up"),
        *affine("layers.{i}.pos_ff.CoreNet.3", "layers.{i}.feed_forward.down"),
        *affine("layers.{i}.pos_ff.layer_norm", "layers.{i}.feed_forward_residual.norm"),
    )
    return (
        *layers(tables, (Rename("word_emb.emb_layers.{i}.weight", "embed.tables.{i}.weight"),)),
        *layers(projections, (Rename("word_emb.emb_projs.{i}", "embed.projections.{i}"),)),
        *shared, *layers(config.n_layer, layer),
    )  # fmt: skip


def _head(config: TransfoXLConfig) -> tuple[Rule, ...]:
    """The keys of the softmax; `{i}` is a cluster."""
    clusters = len(config.cutoffs)
    one = config.div_val == 1
    rules: list[Rule] = [Rename(f"crit.{n}", f"head.{n}") for n in ("cluster_weight", "cluster_bias") if clusters]
    for i in range(1 if one else clusters + 1):
        rules.append(Rename(f"crit.out_layers.{i}.bias", f"head.biases.{i}"))
        theirs, ours = f"crit.out_layers.{i}.weight", f"head.weights.{i}"
        if config.tie_word_embeddings:
            rules += [Alias(theirs, f"transformer.word_emb.emb_layers.{i}.weight"), Tied(ours, f"trunk.embed.tables.{i}.weight")]
        else:
            rules.append(Rename(theirs, ours))
    for i in range(0 if one and config.d_embed == config.d_model else clusters + 1):
        theirs, ours, of = f"crit.out_projs.{i}", f"head.projections.{i}", 0 if one else i
        if i and config.proj_share_all_but_first:
            rules += [Alias(theirs, f"transformer.word_emb.emb_projs.{of}"), Tied(ours, f"trunk.embed.projections.{of}")]
        else:
            rules.append(Rename(theirs, ours))
    return tuple(rules)


_BUFFER = Ignore(r"(transformer\.)?pos_emb\.inv_freq")

NETS = (
    Net("TransfoXLLMHeadModel", TransfoXLLMHeadModel,
        transformers(lambda c: (*prefixed(_trunk(c), "transformer.", "trunk."), *_head(c), _BUFFER))),
    Net("TransfoXLModel", TransfoXLModel, transformers(lambda c: (*_trunk(c), _BUFFER))),
)

CARD = Card(
    title="Transformer-XL",
    paper="Dai, Yang, Yang, Carbonell, Le, Salakhutdinov. Transformer-XL: Attentive Language Models beyond a Fixed-Length Context",
    year=2019,
    url="https://arxiv.org/abs/1901.02860",
    equation=r"\mathcal{L} = -\frac{1}{T} \sum_{t=1}^{T} \log p_\theta(x_t \mid x_{<t}), \qquad "
             r"a_{ij} = \frac{(q_i + u)^\top k_j + (q_i + v)^\top W_R R_{i-j}}{\sqrt{d}}",
    symbols="The tokens before t are those of the segment and, as states that no gradient enters, those of the segments before. The "
            "score a of query i and key j has the query q, the key k, the sinusoid R of their distance, and the learned u and v.",
    masks={"Memory and segment": Mask(causal=True, offset=8),
           "Evaluation with same length": Mask(causal=True, offset=8, window=(7, 0))},
    reference="the paper's formula (no current library has it)",
)

FAMILIES = (
    Family(
        name="transformer_xl",
        card=CARD,
        config=TransfoXLConfig,
        sizes=SIZES,
        adapt=adapt,
        pretraining=Task("next token, with a memory", SegmentSettings, create),
        nets=NETS,
        model_type="transfo-xl",
        vocabulary=Vocabulary("word", "plain"),
    ),
)
