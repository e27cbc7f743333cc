"""XLNet. Yang, Dai, Yang, Carbonell, Salakhutdinov and Le, "XLNet: Generalized Autoregressive Pretraining for
Language Understanding", 2019. https://arxiv.org/abs/1906.08237

Each token is predicted from others in a random order of the tokens, not from those before it in the text. Two streams share their
weights: the content stream sees the tokens, the query stream knows where the token stands that it predicts and sees only what comes before
it in the order. The second has a row for each place that is predicted and none for the others, and reads the keys and values of the first.

    a sequence:  [memory | row of the text | A <sep> B <sep> <cls>]     segments 0, 0, 0 for A, 1 for B, 2 for <cls>
                           -- reused --      A goes on from the row; B goes on from A, or is from elsewhere
    a task:      A <sep> B <sep> <cls> or A <sep> <cls>                 <cls> -> linear, tanh -> classes
    generation:  [all before | the last token | place]                 the place in the query stream, which sees all tokens -> next token

Faithful: networks and outputs as in transformers' `XLNet*` classes, with their memory, order and target places; spans of 1 to 5 tokens
with probability proportional to 1 / n from the start of a word on, each in a stretch of 7 n tokens, single tokens until 1 of 6 is predicted
(85 of 512); a permutation for each half, of which the first does not see the second; separators and <cls> keep their place in the order
and are never predicted; the memory has the states of the reused half alone (section 2.5); <eod> ends a document, as in the published code.

Deviations, each with its reason:
* A row of the text is the reused half, as packed, and what follows it is read twice, as in the published code: in the second half, then as
  the next row. Where no row follows, there is no second half.
* A sentence end is not known in a row of tokens: A ends at the start of a random word.
* The single tokens that make up the number are never separators; in the published code they may be, and then fewer tokens are predicted.
* The published code means spans of n words and, by a slip, takes n tokens, which is what the paper says; so it is here, unless
  `objective.whole_words` or words in the data say otherwise. Then the stretch is counted in words, too: 7 n.
* No half of the batch is read backwards (`bi_data`): the paper does that for the memory's sake, and has 0.1 to 0.7 points less without it
  (table 6, row 7).
* Whether B follows A is not learnt, as in the paper (section 3.4, the last row of table 6).
* The content stream of the last layer is not computed where a query stream is: nobody reads it.
* Padding may stand on either side: the summary of a text is its last token that is not padding. transformers takes the last place.
* Memories are [B, M, D], rows first, with a mask of what is there; the references have time first, and begin with whatever is passed.
* All rows of a batch have the same dropout of distances.
* Answers to questions are read off a start and an end score of each token (`XLNetForQuestionAnsweringSimple`), as the task `span` does with
  every encoder. The paper's head (`XLNetForQuestionAnswering`) scores ends given a start, by a beam over starts, and has a class for
  questions without an answer: another loss and another search, which no other encoder here has.
* Generation is transformers', token for token: each new token is read again once, when the next one is there, and may then see that; tokens
  of the prompt see each other. Different are two things: padding on the left of shorter prompts is not seen, and all tokens of the text
  are remembered, while transformers forgets those beyond `mem_len` (and of the prompt those beyond `reuse_len`).
* Texts of a task are packed side by side, and each sees only itself; on a GPU they are computed as padded rows.
* A task's network keeps what the query stream begins with (`mask_emb`), as transformers' does, and does not train it: there is one stream.

Data: `polymodal pack --tokenize TOKENIZER --block N --in-order` writes the rows, N tokens each (256 in the paper); row g of every update
goes on from row g of the update before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..shared.attention.cache import KVCache
from ..shared.attention.mask import Mask
from ..shared.attention.plan import Shape
from ..shared.attention.position import sinusoids
from ..shared.block import FeedForward, LayerNorm
from ..shared.convert import affine
from ..shared.decoder import DecoderInfo
from ..shared.embed import normal_
from ..shared.encoder import EncoderOutput, last_tokens
from ..shared.errors import UserError
from ..shared.family import Card, Context, Family, Net, Task, Vocabulary, transformers
from ..shared.generation_config import defaults_files, read_defaults
from ..shared.heads import LMHead, Pooler
from ..shared.loss import IGNORE, accuracy_sum, cross_entropy_sum, perplexity
from ..shared.system import Preview, Step, System, Term
from ._relative import Memory, continued, remember
from ._two_streams import SegmentAttention, Stream, TwoStreamBlock, TwoStreams
from .encoder_tasks import encoder_tasks
from .permutation import UNSEEN, PermutationBatch, PermutationObjective, PermutationSettings, end_of_document, random_order
from .tasks import PooledChoice, QuestionAnswering, SequenceClassification, TokenClassification
from .xlnet_config import SIZES, XLNetConfig
from .xlnet_formats import head_rules, rules_below, trunk_rules

# ---------------------------------------------------------------------------------------------- networks


@dataclass
class XLNetOutput(EncoderOutput):
    """Outputs of the trunk.

    `last_hidden_state` is that of the query stream, [B, T, D], where places were to be predicted. `hidden_states` are the content stream's:
    the input of every block and, without a query stream, the last one's output.
    """

    mems: Memory | None = None
    """For the next segment."""


@dataclass
class XLNetLMOutput:
    """Outputs of the language model."""

    logits: Tensor
    """[B, S, V], or [B, T, V]"""
    mems: Memory | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class XLNetModel(nn.Module):
    """Word vectors and blocks that attend in both directions, by distance and segment, to their segment and to a memory.

    Args:
        config: the sizes.
        pooler: whether to read a summary off the last token.
    """

    no_decay: ClassVar[tuple[str, ...]] = ("mask",)

    def __init__(self, config: XLNetConfig, *, pooler: bool = False) -> None:
        super().__init__()
        self.config = config
        self.memory_length = config.mem_len or 0
        """States that are remembered from here on; may be set for evaluation."""
        width, head = config.d_model, config.d_model // config.n_head
        self.embed = nn.Embedding(config.vocab_size, width)
        self.mask = nn.Parameter(torch.empty(1, 1, width))
        """Where the query stream begins: what every place has in common that is to be predicted."""
        self.layers = nn.ModuleList(
            TwoStreamBlock(
                SegmentAttention(width, config.n_head, head, dropout=config.dropout),
                FeedForward(width, config.d_inner, config.ff_activation, dropout=config.dropout),
                norm=lambda: LayerNorm(width, eps=config.layer_norm_eps), order="post", dropout=config.dropout,
            )
            for _ in range(config.n_layer)
        )  # fmt: skip
        self.dropout = nn.Dropout(config.dropout)
        self.pooler = Pooler(width) if pooler else None
        normal_(self, config.initializer_range)
        for parameter in (self.mask, *(p for a in self.modules() if isinstance(a, SegmentAttention) for p in a.parameters(recurse=False))):
            nn.init.normal_(parameter, std=config.initializer_range)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        lengths: tuple[int, ...] | None = None,
        mems: Memory | None = None,
        perm_mask: Tensor | None = None,
        target_rows: Tensor | None = None,
        use_mems: bool = False,
        reuse: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> XLNetOutput:
        """Read one segment.

        Args:
            input_ids: [B, S].
            attention_mask: [B, S], nonzero where there is no padding; it stands on the right where states are remembered.
            token_type_ids: [B, S], segments; the memory has segment 0. By default all tokens have one.
            position_ids: not used, and given with `lengths` alone, which tell the same: the place of a token is its distance from others.
            lengths: N texts are packed in the one row; each sees only itself. Excludes padding, memory and order.
            mems: what the segments before left; None at the beginning of a text.
            perm_mask: [B, S, S], nonzero where the first token may not see the second. A token sees itself, and a place that is to be
                predicted sees itself only where this says so.
            target_rows: [B, T], places that are to be predicted. By default nothing is: there is one stream.
            use_mems: remember, for the next segment.
            reuse: [B], first tokens of each row that are remembered; by default the config's `reuse_len`.
            output_hidden_states: keep the states of the content stream.
        """
        length = input_ids.shape[1]
        if lengths is not None:
            assert attention_mask is None and mems is None and perm_mask is None and target_rows is None and not use_mems
            if input_ids.device.type != "cpu" or type(input_ids) is not Tensor:
                return self._padded(input_ids, token_type_ids, lengths, output_hidden_states)
        assert position_ids is None or lengths is not None, "there is no table of positions"
        mems = mems if mems is not None and mems.keep.shape[1] else None
        x = self._begin(input_ids, 0 if target_rows is None else target_rows.shape[1])
        if lengths is None:
            plan = self._plan(x, mems, length, attention_mask, token_type_ids, perm_mask, target_rows)
        else:
            plan = self._plan_of_texts(x, token_type_ids, lengths)
        states: list[Tensor] = []
        for number, layer in enumerate(self.layers):
            states.append(x[:, :length])
            # behind the last layer nobody reads the content stream
            last = number == len(self.layers) - 1
            x = layer(x, plan, None if mems is None else mems.states[number], only_queries=last and target_rows is not None)
        x = self.dropout(x)
        kept = (*states, *(() if target_rows is not None else (x,))) if output_hidden_states else None
        new = remember(states, mems, self._remembered(input_ids, attention_mask, reuse), self.memory_length) if use_mems else None
        return XLNetOutput(x, self._pooled(x, attention_mask, lengths), kept, new)

    def next_state(self, input_ids: Tensor, attention_mask: Tensor | None, cache: KVCache) -> Tensor:
        """What the query stream makes of the place behind `input_ids` [B, S], which stand behind what the cache holds: [B, D].

        Each of these tokens sees all others and all before. `attention_mask` [B, past + S] hides padding.
        """
        (batch, length), keys = input_ids.shape, cache.length + input_ids.shape[1]
        x = self._begin(input_ids, 1)
        hidden = None if attention_mask is None else ~attention_mask.bool()[:, None, None]
        content = Stream(Shape(batch, length, keys, x.device), keys - 1, hidden)
        query = Stream(Shape(batch, 1, keys, x.device), keys, hidden, places=input_ids.new_full((batch, 1), keys))
        plan = TwoStreams(self._positions(x, keys, length), keys, length, content, query)
        for number, layer in enumerate(self.layers):
            x = layer(x, plan, cache=cache.layer(number), only_queries=number == len(self.layers) - 1)
        cache.advance(length)
        return self.dropout(x)[:, -1]

    def _begin(self, input_ids: Tensor, places: int) -> Tensor:
        """Where the streams begin: the tokens, and behind them the places to be predicted, [B, S + T, D]."""
        x = self.embed(input_ids)
        if places:
            x = torch.cat([x, self.mask.to(x.dtype).expand(len(x), places, -1)], 1)
        return self.dropout(x)

    def _positions(self, x: Tensor, first: int, length: int) -> Tensor:
        """The vectors of the distances `first`, `first` - 1, ... 1 - `length`."""
        distances = torch.arange(first, -length, -1, device=x.device)
        if self.config.clamp_len > 0:
            distances = distances.clamp(-self.config.clamp_len, self.config.clamp_len)
        return self.dropout(sinusoids(distances, self.config.d_model, interleaved=False).to(x.dtype))

    def _pooled(self, x: Tensor, attention_mask: Tensor | None, lengths: tuple[int, ...] | None = None) -> Tensor | None:
        return None if self.pooler is None else self.pooler(last_tokens(x, attention_mask, lengths))

    def _plan(self, x: Tensor, mems: Memory | None, length: int, attention_mask: Tensor | None, types: Tensor | None,
              perm_mask: Tensor | None, target_rows: Tensor | None) -> TwoStreams:
        past, device = 0 if mems is None else mems.keep.shape[1], x.device
        keys, far = past + length, past + length - 1
        hidden = None if perm_mask is None else perm_mask.bool()
        if attention_mask is not None:
            padding = ~attention_mask.bool()[:, None]
            hidden = padding.expand(-1, length, -1) if hidden is None else hidden | padding
        segments = None if types is None else (types, nn.functional.pad(types, (past, 0)))
        if past and hidden is not None:
            hidden = nn.functional.pad(hidden, (past, 0))
        if mems is not None:
            unknown = ~mems.in_front(length)[:, None]
            hidden = unknown.expand(-1, length, -1) if hidden is None else hidden | unknown
        itself = torch.arange(length, device=device)
        seen = None if hidden is None else hidden.clone()
        if seen is not None:
            seen[:, itself, past + itself] = False
        content = Stream(Shape(len(x), length, keys, device), far, _by_head(seen), segments)
        query = None
        if target_rows is not None:
            hidden = None if hidden is None else hidden.take_along_dim(target_rows[:, :, None], 1)
            segments = None if segments is None else (segments[0].take_along_dim(target_rows, 1), segments[1])
            query = Stream(Shape(len(x), target_rows.shape[1], keys, device), far, _by_head(hidden), segments, past + target_rows)
        return TwoStreams(self._positions(x, far, length), far, length, content, query)

    def _plan_of_texts(self, x: Tensor, types: Tensor | None, lengths: tuple[int, ...]) -> TwoStreams:
        """Texts side by side in the one row, which are computed as they stand."""
        longest, total = max(lengths), x.shape[1]
        segments = None if types is None else (types, types)
        content = Stream(Shape(1, total, total, x.device), longest - 1, segments=segments, lengths=lengths)
        return TwoStreams(self._positions(x, longest - 1, longest), longest - 1, total, content)

    def _remembered(self, input_ids: Tensor, attention_mask: Tensor | None, reuse: Tensor | None) -> Tensor:
        """Which tokens of each row are remembered, bool [B, S]."""
        keep = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        place = torch.arange(input_ids.shape[1], device=input_ids.device)
        if reuse is not None:
            return keep & (place < reuse[:, None])
        return keep & (place < self.config.reuse_len) if self.config.reuse_len else keep

    def _padded(self, input_ids: Tensor, types: Tensor | None, lengths: tuple[int, ...], output_hidden_states: bool) -> XLNetOutput:
        """Texts of one row as padded rows, and back: distances make no difference between left and right padding."""
        def rows(values: Tensor) -> Tensor:
            return nn.utils.rnn.pad_sequence(list(values[0].split(list(lengths))), batch_first=True)

        keep = rows(torch.ones_like(input_ids)).bool()
        padding = None if len(set(lengths)) == 1 else keep
        out = self.forward(rows(input_ids), padding, None if types is None else rows(types), output_hidden_states=output_hidden_states)

        def row(states: Tensor) -> Tensor:
            return states[keep][None]

        states = None if out.hidden_states is None else tuple(map(row, out.hidden_states))
        x = row(out.last_hidden_state)
        return XLNetOutput(x, self._pooled(x, None, lengths), states)


def _by_head(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask[:, None]


class XLNetLMHeadModel(nn.Module):
    """The trunk and a head that shares its word table."""

    def __init__(self, config: XLNetConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = XLNetModel(config)
        table = cast("nn.Parameter", self.trunk.embed.weight) if config.tie_word_embeddings else None
        self.head = LMHead(config.d_model, config.vocab_size, weight=table, bias=True)
        if not config.tie_word_embeddings:
            nn.init.normal_(self.head.weight, std=config.initializer_range)

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
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        mems: Memory | None = None,
        perm_mask: Tensor | None = None,
        target_rows: Tensor | None = None,
        *,
        use_mems: bool = False,
        output_hidden_states: bool = False,
    ) -> XLNetLMOutput:
        """Logits of each token, [B, S, V], or of the places to be predicted, [B, T, V]; arguments as in `XLNetModel.forward`."""
        out = self.trunk(input_ids, attention_mask, token_type_ids, mems=mems, perm_mask=perm_mask, target_rows=target_rows,
                         use_mems=use_mems, output_hidden_states=output_hidden_states)
        return XLNetLMOutput(self.head(out.last_hidden_state), out.mems, out.hidden_states)

    # What `generate` asks of a decoder.

    @property
    def decoder_info(self) -> DecoderInfo:
        """Where generating starts and ends; there is no longest text."""
        c = self.config
        return DecoderInfo(max_positions=sys.maxsize, num_layers=c.n_layer, bos_token_id=c.bos_token_id, eos_token_id=c.eos_token_id,
                           pad_token_id=c.pad_token_id, reread=1)

    def next_logits(self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor, cache: KVCache) -> Tensor:
        """Read ids [B, S] after what the cache holds; logits [B, V] of the id that follows."""
        return self.head(self.trunk.next_state(input_ids, attention_mask, cache))


# ------------------------------------------------------------------------------------------ the loss side


class XLNetSystem(System[XLNetLMHeadModel, PermutationObjective]):
    """XLNet's pretraining: the tokens that are predicted, with the memory as the carry.

    The carry holds `ids` (the samples that were read) and the memory: `keep` bool [B, M] and `states`, [B, M, D] for each layer.
    """

    def read(self, batch: PermutationBatch, carry: Any = None) -> XLNetOutput:
        """What the trunk makes of a batch and what it goes on from."""
        found = continued(batch, carry)
        mems = None if found is None else Memory(tuple(found[0]["states"]), found[0]["keep"])
        return self.net.trunk(batch.ids, None, batch.token_type_ids, mems=mems, perm_mask=batch.hidden(), target_rows=batch.target_rows,
                              use_mems=True, reuse=batch.reuse)

    def forward(self, batch: PermutationBatch, carry: Any = None) -> Step:
        """Cross-entropy of the predicted tokens, summed."""
        out = self.read(batch, carry)
        rows, targets = out.last_hidden_state.flatten(0, 1), batch.targets.flatten()
        step = Step({})
        if self.training:
            total = self.net.head.loss(rows, targets)
        else:
            logits = self.net.head(rows)
            total = cross_entropy_sum(logits, targets)
            step.metrics["plm_accuracy"] = (accuracy_sum(logits, targets), batch.counts["targets"])
        step.terms["plm"] = Term(total, "targets", labels=targets)
        if len(batch.sample_ids) == len(batch.ids):  # a batch that knows its place in the text
            memory = out.mems or Memory((), torch.zeros_like(batch.ids[:, :0], dtype=torch.bool))
            step.carry = {"ids": list(batch.sample_ids), "keep": memory.keep, "states": memory.states}
        return step

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        return "plm", "plm_chance", "plm_accuracy", "plm_perplexity"

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """Perplexity of the predicted tokens."""
        return {"plm_perplexity": perplexity(means["plm"])} if "plm" in means else {}

    @torch.no_grad()
    def preview(self, batch: PermutationBatch, limit: int = 4) -> list[Preview]:
        """Held-out rows, read without a memory, and what was most probable at each place beside the truth."""
        tokenizer = self.objective.tokenizer
        guessed = self.net.head(self.read(batch).last_hidden_state[:limit]).argmax(-1)
        found: list[Preview] = []
        for ids, reach, places, truth, guess in zip(batch.ids, batch.reach, batch.target_rows, batch.targets, guessed):
            there = truth != IGNORE
            words = ", ".join(f"{p}: {tokenizer.show([g])} ({tokenizer.show([t])})"
                              for p, g, t in zip(*(x[there].tolist() for x in (places, guess, truth)), strict=True))
            found.append(Preview((("text", tokenizer.show(ids[reach < UNSEEN].tolist())), ("guess (truth)", words))))
        return found


# --------------------------------------------------------------------------------------------- the entry


def create(config: XLNetConfig, settings: PermutationSettings, context: Context) -> XLNetSystem:
    """Build XLNet with randomly initialized weights and its objective."""
    rows = config.reuse_len or 64
    objective = context.objective("xlnet", lambda tokenizer: PermutationObjective(tokenizer.fitting(config.vocab_size), settings, rows))
    return XLNetSystem(XLNetLMHeadModel(config), objective)


def adapt(config: XLNetConfig, context: Context) -> XLNetConfig:
    """Take vocabulary size and special ids from the tokenizer; documents end with what pretraining puts there."""
    tokenizer = context.tokenizer
    if tokenizer is None:
        return config
    end = end_of_document(tokenizer)
    return replace(config, vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id, bos_token_id=end, eos_token_id=end)


def _task(architecture: str, head: Callable[[XLNetModel, XLNetConfig], nn.Module], theirs: str, *, pooler: bool = False) -> Net:
    """A network with a task's head; `theirs` is what its last layer is called."""
    def build(config: XLNetConfig) -> nn.Module:
        trunk = XLNetModel(config, pooler=pooler)
        trunk.mask.requires_grad_(False)  # there is no query stream
        return head(trunk, config)

    summary = affine("sequence_summary.summary", "trunk.pooler.dense") if pooler else ()
    return Net(architecture, build, transformers(lambda c: (*rules_below(c), *summary, *affine(theirs, "classifier"))))


_TASKS = (
    _task("XLNetForSequenceClassification", SequenceClassification, "logits_proj", pooler=True),
    _task("XLNetForTokenClassification", partial(TokenClassification, dropout=0.0), "classifier"),
    _task("XLNetForQuestionAnsweringSimple", QuestionAnswering, "qa_outputs"),
    _task("XLNetForMultipleChoice", PooledChoice, "logits_proj", pooler=True),
)

NETS = (
    Net("XLNetLMHeadModel", XLNetLMHeadModel,
        transformers(lambda c: (*rules_below(c), *head_rules(c)), files=defaults_files, finish=read_defaults)),
    Net("XLNetModel", XLNetModel, transformers(trunk_rules)),
    *_TASKS,
)


def _order_drawn() -> Tensor:
    """An order of the 16 tokens of the documentation's masks: two halves, the second with its separators."""
    rng = np.random.default_rng(3)
    predicted, functional = (np.isin(np.arange(16), places) for places in ((2, 3, 11), (10, 14, 15)))
    ranks = np.concatenate([random_order(predicted[h], functional[h], n, rng) for h, n in ((slice(8), 0), (slice(8, 16), 9))])
    return torch.from_numpy(ranks[None] < (ranks + ~predicted)[:, None])


CARD = Card(
    title="XLNet",
    paper="Yang, Dai, Yang, Carbonell, Salakhutdinov, Le. XLNet: Generalized Autoregressive Pretraining for Language Understanding",
    year=2019,
    url="https://arxiv.org/abs/1906.08237",
    equation=r"\mathcal{L} = -\frac{1}{|T|} \sum_{t \in T} \log p_\theta(x_{z_t} \mid x_{z_{<t}}), \qquad "
             r"a_{ij} = \frac{(q_i + u)^\top k_j + (q_i + v)^\top W_R R_{i-j} + (q_i + s)^\top e_{ij}}{\sqrt{d}}",
    symbols="z is a random order of the tokens, T are the places in it that are predicted, one of 6, and behind all others. The score a of "
            "query i and key j has the query q, the key k, the sinusoid R of their distance, e by whether both are in one segment, and the "
            "learned u, v and s. The mean is over the whole global batch.",
    masks={"Query stream": Mask(extra=_order_drawn()[None, None]),
           "Content stream": Mask(extra=(_order_drawn() | torch.eye(16, dtype=torch.bool))[None, None])},
    reference="transformers.XLNetLMHeadModel",
)

FAMILIES = (
    Family(
        name="xlnet",
        card=CARD,
        config=XLNetConfig,
        sizes=SIZES,
        adapt=adapt,
        pretraining=Task("tokens in a random order, with a memory", PermutationSettings, create),
        tasks=encoder_tasks(_TASKS),
        nets=NETS,
        heads=("head", "trunk.pooler", "classifier"),
        model_type="xlnet",
        vocabulary=Vocabulary("unigram", "xlnet"),
    ),
)
