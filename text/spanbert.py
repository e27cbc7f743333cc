"""SpanBERT. Joshi, Chen, Liu, Weld, Zettlemoyer and Levy, "SpanBERT: Improving Pre-training by Representing and Predicting Spans",
2019. https://arxiv.org/abs/1907.10529

BERT's trunk, trained to predict spans of words: each token from its own state, and once more from the states beside its span.

    [CLS] the team won the [MASK] [MASK] [MASK] in the end [SEP]
                        ^    1      2      3    ^
    masked words:       each [MASK] tells its token
    span boundary:      "the", "in" and the number within the span tell it, too

Faithful, by facebookresearch/SpanBERT: lengths of spans from a geometric distribution with p = 0.2, in words, at most 10 (mean 3.8;
section 3.1); a span begins with the word of a random token; 15 % of the tokens, rounded up, are chosen, and the last span is cut there;
spans that touch are one; one draw for a span says whether all of it is masked (80 %), replaced (10 %) or kept (10 %). The boundary
objective (section 3.2) has two layers with GELU and layer norm, 200 numbers for each place within a span, the word table and a bias of
its own; the first 15 tokens of a span are predicted, none where the span touches an end of the text. Single sequences of one document
(section 3.3), no short ones. Both losses have weight 1.

Deviations, each with its reason:
* Random tokens are drawn evenly from the vocabulary without special tokens, as RoBERTa's; the reference draws them from the corpus, whose
  counts an objective does not know.
* A document is cut where a sequence is full; the reference cuts at the end of a sentence and leaves out longer sentences.
* Sequences are packed side by side without padding; each sees only itself, so nothing changes but speed.
* The boundary head belongs to pretraining: it is in the run's checkpoints, not in exports, which are transformers' `BertForMaskedLM`.
  A finished run is fine-tuned with BERT's recipes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..shared.attention.mask import Mask
from ..shared.block import LayerNorm
from ..shared.corrupt import Masked, replace_places
from ..shared.embed import normal_
from ..shared.errors import UserError
from ..shared.family import Card, Context, Family, Task, Vocabulary
from ..shared.heads import LMHead, Transform
from ..shared.loss import accuracy_sum, cross_entropy_sum
from ..shared.packed import joined, starts
from ..shared.system import Step, Term
from ..shared.tokenizer import Tokenizer
from . import bert
from .bert import BertConfig, BertForMaskedLM, adapt
from .framing import longest
from .masking import MaskedBatch, MaskedExample, MaskedLMSystem, MaskingSettings, SingleTexts
from .words import choose_spans, geometric_shares, spans_of

SIZES: dict[str, dict[str, Any]] = {size: bert.SIZES[size] for size in ("tiny", "base", "large")}
"""BERT's; `base` and `large` are the paper's, with a cased vocabulary of 28,996 words."""


# ------------------------------------------------------------------------------------------ the data side


@dataclass(frozen=True)
class SpanBertSettings(MaskingSettings):
    """What of the objective can be set."""

    whole_words: bool = True
    """Always: spans are made of whole words."""
    geometric_p: float = 0.2
    """The parameter of the distribution of lengths."""
    max_span_length: int = 10
    """Words of the longest span."""
    max_boundary_targets: int = 15
    """Tokens at the beginning of a span that are predicted from its boundary."""
    boundary_position_size: int = 200
    """Width of the table of places within a span."""
    boundary_weight: float = 1.0
    """Weight of the span-boundary loss; 0 leaves it out."""

    PROBABILITIES: ClassVar[tuple[str, ...]] = (*MaskingSettings.PROBABILITIES, "geometric_p")

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if not self.whole_words:
            raise UserError("whole_words is False, and SpanBERT's spans are made of whole words: leave it out, or train bert")
        for name in ("max_span_length", "max_boundary_targets", "boundary_position_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.boundary_weight < 0:
            raise UserError(f"boundary_weight is {self.boundary_weight}, expected at least 0")


@dataclass(kw_only=True)
class SpanBatch(MaskedBatch):
    """Packed sequences. T tokens, N sequences, M predictions, K of them from boundaries, too."""

    bounded: Tensor
    """[K]: which of the M predictions."""
    left: Tensor
    """[K]: the place before the span, counted over the T tokens."""
    right: Tensor
    """[K]: the place behind it."""
    offsets: Tensor
    """[K]: the place within the span, from 0."""


def boundaries(positions: np.ndarray, length: int, limit: int) -> np.ndarray:
    """Which places have a boundary, int64 [K, 4]: number among the M places, place before the span, place behind it, place within it.

    Args:
        positions: int64 [M], ascending, of a sequence that begins and ends with a special token.
        length: of the sequence.
        limit: places of a span that are taken.
    """
    span = spans_of(positions)
    firsts = np.flatnonzero(np.diff(span, prepend=-1))
    begin, end = positions[firsts][span], positions[np.flatnonzero(np.diff(span, append=-1))][span]
    inside = positions - begin
    taken = (begin > 1) & (end < length - 2) & (inside < limit)
    return np.stack([np.arange(len(span)), begin - 1, end + 1, inside], axis=1)[taken]


class SpanBertObjective(SingleTexts):
    """Masked spans in single sequences."""

    def __init__(self, tokenizer: Tokenizer, settings: SpanBertSettings, max_length: int) -> None:
        """Make the data side for sequences of at most `max_length` tokens."""
        super().__init__(tokenizer, settings, max_length)
        self.words = np.setdiff1d(np.arange(tokenizer.vocab_size), sorted(tokenizer.special_ids))
        self.lengths = geometric_shares(settings.geometric_p, settings.max_span_length)
        self.limit = settings.max_boundary_targets

    def choose(self, ids: np.ndarray, bounds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The places of a framed sequence [S], int64 [M], ascending: spans of words; [CLS] and [SEP] do not count."""
        count = math.ceil(int(self.maskable(ids).sum()) * self.settings.mask_prob)
        if self.settings.max_predictions is not None:
            count = min(count, self.settings.max_predictions)
        return choose_spans(bounds, count, rng, self.lengths)

    def replace(self, ids: np.ndarray, positions: np.ndarray, bounds: np.ndarray, rng: np.random.Generator) -> Masked:
        """Corrupt the chosen spans, each as a whole."""
        return replace_places(ids, positions, rng, mask_id=self.mask_id, words=self.words, units=spans_of(positions))

    def collate(self, examples: list[MaskedExample]) -> SpanBatch:
        """Pack sequences side by side; the boundary loss is counted in the tokens that have a boundary."""
        packed = super().collate(examples)
        rows = [boundaries(e.positions, len(e.input_ids), self.limit) for e in examples]
        first = starts([len(e.positions) for e in examples])
        moved = [found + np.array([m, t, t, 0]) for found, m, t in zip(rows, first, starts(packed.lengths))]
        bounded, left, right, offsets = (joined([found[:, column] for found in moved])[0] for column in range(4))
        known: dict[str, Any] = {**vars(packed), "counts": {**packed.counts, "bounded": len(bounded)}}
        return SpanBatch(**known, bounded=bounded, left=left, right=right, offsets=offsets)


# ------------------------------------------------------------------------------------------ the loss side


class SpanBertSystem(MaskedLMSystem[BertForMaskedLM, SpanBertObjective]):
    """SpanBERT's pretraining: masked spans, and the same tokens from the boundaries of their spans."""

    def __init__(self, net: BertForMaskedLM, objective: SpanBertObjective, settings: SpanBertSettings) -> None:
        super().__init__(net, objective)
        config, size = net.config, settings.boundary_position_size
        self.boundary_weight = settings.boundary_weight
        if not self.boundary_weight:
            return

        def norm() -> nn.Module:
            return LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

        self.offsets = nn.Embedding(settings.max_boundary_targets, size)
        layers = nn.Sequential(
            Transform(2 * config.hidden_size + size, config.hidden_act, norm, output_size=config.hidden_size),
            Transform(config.hidden_size, config.hidden_act, norm),
        )
        for part in (self.offsets, layers):
            normal_(part, config.initializer_range)
        self.boundary = LMHead(config.hidden_size, config.vocab_size, transform=layers,
                               weight=cast("nn.Parameter", net.trunk.embed.word.weight), bias=True)

    def forward(self, batch: SpanBatch, carry: Any = None) -> Step:
        """Both losses as sums over their targets."""
        out = self.read(batch)
        step = self.predict(out, batch)
        if self.boundary_weight:
            states = out.last_hidden_state[0]  # [T, D]
            rows = torch.cat([states[batch.left], states[batch.right], self.offsets(batch.offsets)], dim=-1)  # [K, 2 D + P]
            targets = batch.targets[batch.bounded]
            if self.training:
                total = self.boundary.loss(rows, targets)
            else:
                logits = self.boundary(rows)
                total = cross_entropy_sum(logits, targets)
                step.metrics["sbo_accuracy"] = (accuracy_sum(logits, targets), len(targets))
            step.terms["sbo"] = Term(total, "bounded", self.boundary_weight, targets)
        return step

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        return (*super().measured(), *(("sbo", "sbo_chance", "sbo_accuracy") if self.boundary_weight else ()))


# --------------------------------------------------------------------------------------------- the entry


def create(config: BertConfig, settings: SpanBertSettings, context: Context) -> SpanBertSystem:
    """Build SpanBERT with randomly initialized weights and its objective."""
    length = longest(config, settings.max_length)
    objective = context.objective("spanbert", lambda tokenizer: SpanBertObjective(tokenizer.fitting(config.vocab_size), settings, length))
    return SpanBertSystem(BertForMaskedLM(config), objective, settings)


CARD = Card(
    title="SpanBERT",
    paper="Joshi, Chen, Liu, Weld, Zettlemoyer, Levy. SpanBERT: Improving Pre-training by Representing and Predicting Spans",
    year=2019,
    url="https://arxiv.org/abs/1907.10529",
    equation=r"\mathcal{L} = -\frac{1}{|M|} \sum_{i \in M} \log p_\theta(x_i \mid \tilde{x}_i) "
             r"- \frac{1}{|K|} \sum_{i \in K} \log p_\theta(x_i \mid \tilde{x}_{s-1}, \tilde{x}_{e+1}, i - s)",
    symbols="M are the 15 % of the tokens that are to be predicted, in spans of whole words; x with a tilde are the states of the masked "
            "text. s and e are the first and the last token of the span of i. K are those tokens of M whose span touches no end of the "
            "text, at most 15 of a span. Both means are over the whole global batch.",
    masks={"Packed texts": Mask(lengths=(5, 7, 4))},
    reference="transformers.BertForMaskedLM",
)

FAMILIES = (
    Family(
        name="spanbert",
        card=CARD,
        config=BertConfig,
        sizes=SIZES,
        adapt=adapt,
        pretraining=Task("masked spans and their boundaries", SpanBertSettings, create),
        nets=tuple(net for net in bert.NETS if net.architecture in ("BertForMaskedLM", "BertModel")),
        heads=("head", "trunk.pooler"),
        model_type="bert",
        vocabulary=Vocabulary("wordpiece", "bert"),
    ),
)
