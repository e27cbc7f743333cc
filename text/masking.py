"""Masked words: the settings, the data side, the head and the loss that BERT and its descendants share.

What an objective may have otherwise is a method of `MaskingObjective`: what is chosen together (`bounds`), how places are chosen
(`choose`) and what becomes of them (`replace`); what a sequence is, its `example` says. Whole-word masking is a setting of all of them:
google-research/bert, README, "Whole Word Masking".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from ..shared.block import LayerNorm
from ..shared.convert import Alias, Rename, Rule, Tied, affine
from ..shared.corrupt import Masked, choose_places, prediction_count, replace_places
from ..shared.documents import apart, documents
from ..shared.embed import normal_
from ..shared.encoder import Encoder, EncoderOutput, EncoderShape
from ..shared.errors import UserError
from ..shared.heads import LMHead, Transform
from ..shared.loss import accuracy_sum, cross_entropy_sum, perplexity
from ..shared.packed import PackedBatch, joined, side_by_side, starts
from ..shared.sample import WORD, Sample
from ..shared.system import Objective, Preview, Step, System, Term
from ..shared.tokenizer import Tokenizer
from .framing import Frame
from .words import choose_words, unit_starts, word_bounds

# ---------------------------------------------------------------------------------------------- networks


@dataclass
class MaskedLMOutput:
    """Outputs of a `MaskedLM`."""

    logits: Tensor
    """[B, S, V]"""
    hidden_states: tuple[Tensor, ...] | None = None


class MaskedWords(nn.Module):
    """A trunk with the masked-language-model head: dense layer, activation, norm, then the word table and a bias.

    Args:
        trunk: the trunk; the head shares its word table.
        config: the trunk's.
        activation: of the head; by default the config's.
    """

    def __init__(self, trunk: Encoder, config: EncoderShape, activation: str | None = None) -> None:
        super().__init__()
        self.config = config
        self.trunk = trunk
        width = config.table_size
        transform = Transform(config.hidden_size, activation or config.hidden_act, lambda: LayerNorm(width, eps=config.layer_norm_eps),
                              output_size=width)
        normal_(transform, config.initializer_range)
        self.head = LMHead(width, config.vocab_size, transform=transform, weight=cast("nn.Parameter", trunk.embed.word.weight), bias=True)


class MaskedLM(MaskedWords):
    """The network that predicts masked words and nothing else; its trunk has no pooler."""

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
    ) -> MaskedLMOutput:
        """Map ids [B, S] to logits over the vocabulary; see `Encoder.forward` for the arguments, and the family's trunk for `more`."""
        out = self.trunk(input_ids, attention_mask, token_type_ids, position_ids,
                         lengths=lengths, output_hidden_states=output_hidden_states, **more)
        return MaskedLMOutput(self.head(out.last_hidden_state), out.hidden_states)


def head_rules(dense: str, norm: str, bias: str, decoder: str, table: str) -> tuple[Rule, ...]:
    """The reference's names of the head's parts, of the decoder that repeats the word `table`, and of that table.

    The decoder may have a bias of its own, which repeats `bias`.
    """
    return (
        *affine(dense, "head.transform.dense"),
        *affine(norm, "head.transform.norm"),
        Rename(bias, "head.bias"),
        Tied("head.weight", "trunk.embed.word.weight"),
        Alias(f"{decoder}.weight", table),
        *((Alias(f"{decoder}.bias", bias),) if bias != f"{decoder}.bias" else ()),
    )


# ------------------------------------------------------------------------------------------ the data side


@dataclass(frozen=True)
class MaskingSettings:
    """What every masked-language objective lets one set."""

    mask_prob: float = 0.15
    """Fraction of a sequence that is predicted."""
    max_length: int | None = None
    """Tokens of a sequence, special ones included; None takes the model's positions."""
    max_predictions: int | None = None
    """Upper limit of predictions in a sequence; None for no limit (the paper's 20 at length 128 and 80 at 512 never bind at 15%)."""
    whole_words: bool = False
    """Whether the tokens of a word are predicted together. A word with more tokens than are still to be predicted is skipped. What words
    are, the data says (`pack --kind words`, `--segment`), else the vocabulary, to which every Chinese character is a word."""

    PROBABILITIES: ClassVar[tuple[str, ...]] = ("mask_prob",)

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in self.PROBABILITIES:
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected a probability between 0 and 1")
        if self.max_length is not None and self.max_length < 8:
            raise UserError(f"max_length is {self.max_length}, expected at least 8 tokens")
        if self.max_predictions is not None and self.max_predictions < 1:
            raise UserError(f"max_predictions is {self.max_predictions}, expected at least 1 or null")


@dataclass(frozen=True, slots=True)
class MaskedExample:
    """One corrupted sequence, with its special tokens."""

    input_ids: np.ndarray
    """int64 [S]"""
    token_type_ids: np.ndarray
    """int64 [S]"""
    positions: np.ndarray
    """int64 [M]: the places to predict."""
    targets: np.ndarray
    """int64 [M]: the original ids there."""


@dataclass(kw_only=True)
class MaskedBatch(PackedBatch):
    """Packed sequences. T tokens, N sequences, M predictions."""

    token_type_ids: Tensor
    """[1, T]"""
    target_rows: Tensor
    """[M]: places to predict, counted over the T tokens."""
    targets: Tensor
    """[M]: the original ids there."""


ExampleT = TypeVar("ExampleT", bound=MaskedExample)


class MaskingObjective(Objective[ExampleT]):
    """What objectives over masked sequences share: framing, masking, packing.

    Args:
        tokenizer: with tokens for classification, separation and masking.
        settings: what can be set.
        max_length: tokens of a sequence at most, special ones included.
    """

    replaced_by_mask: ClassVar[float] = 0.8
    """Share of the drawn places that become [MASK]."""
    replaced_at_random: ClassVar[float] = 0.1
    """Share of the drawn places that become a random token; the rest stay."""
    ngrams: tuple[float, ...] = (1.0,)
    """With whole words: the shares of n-grams of 1, 2, ... words that are predicted together."""
    level: int = WORD
    """With whole words: what the data calls a word, `WORD` or `ENTITY`."""

    def __init__(self, tokenizer: Tokenizer, settings: MaskingSettings, max_length: int) -> None:
        self.cls_id, self.sep_id, self.mask_id = tokenizer.need("masking", "cls", "sep", "mask")
        self.frame = Frame(tokenizer, "masking")
        self.tokenizer = tokenizer
        self.settings = settings
        self.max_length = max_length
        self.words: int | np.ndarray = tokenizer.vocab_size
        """The ids that random tokens are drawn from, or their number."""

    def documents(self, sample: Sample) -> list[np.ndarray]:
        """The documents of a sample as ids int64 [T], with their words, where whole words are predicted and the data knows them."""
        return documents(sample, self.tokenizer, units=self.settings.whole_words)

    def maskable(self, ids: np.ndarray) -> np.ndarray:
        """Which places of a framed sequence [S] may be predicted, bool [S]: never [CLS] or [SEP]."""
        return (ids != self.cls_id) & (ids != self.sep_id)

    def bounds(self, ids: np.ndarray, units: np.ndarray) -> np.ndarray:
        """Where words begin and end in a framed sequence [S], int64 [W, 2]: what may be predicted together; else each token is one.

        Args:
            ids: int64 [S].
            units: uint8 [S], what the data says of it (`apart`).
        """
        maskable = self.maskable(ids)
        if not self.settings.whole_words:
            return word_bounds(np.ones(len(ids), dtype=bool), maskable)
        return word_bounds(unit_starts(units, self.level, self.tokenizer.whole_words(ids), maskable), maskable)

    def choose(self, ids: np.ndarray, bounds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The places of a framed sequence [S] that are to be predicted, int64 [M], ascending: never [CLS] or [SEP], which count, though."""
        count = prediction_count(len(ids), self.settings.mask_prob, self.settings.max_predictions)
        if self.settings.whole_words:
            return choose_words(bounds, count, rng, self.ngrams)
        return choose_places(self.maskable(ids), count, rng)

    def replace(self, ids: np.ndarray, positions: np.ndarray, bounds: np.ndarray, rng: np.random.Generator) -> Masked:
        """Corrupt the chosen places."""
        return replace_places(ids, positions, rng, mask_id=self.mask_id, words=self.words,
                              replaced_by_mask=self.replaced_by_mask, replaced_at_random=self.replaced_at_random)

    def masked(
        self, a: np.ndarray, b: np.ndarray | None, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """A text, or both segments of a pair, framed and masked: the four fields of a `MaskedExample`."""
        framed, types = self.frame(a, b)
        ids, units = apart(framed)
        bounds = self.bounds(ids, units)
        noisy = self.replace(ids, self.choose(ids, bounds, rng), bounds, rng)
        return noisy.ids, types, noisy.positions, noisy.targets

    def tokens_of(self, example: ExampleT) -> int:
        """The sequence's."""
        return len(example.input_ids)

    def collate(self, examples: list[ExampleT]) -> MaskedBatch:
        """Pack sequences side by side."""
        packed = side_by_side([e.input_ids for e in examples])
        rows = joined([e.positions + start for e, start in zip(examples, starts(packed.lengths))])[0]
        return MaskedBatch(
            counts={"masked": len(rows)},
            tokens=sum(packed.lengths),
            input_ids=packed.input_ids,
            position_ids=packed.position_ids,
            lengths=packed.lengths,
            token_type_ids=joined([e.token_type_ids for e in examples]),
            target_rows=rows,
            targets=joined([e.targets for e in examples])[0],
        )

    def describe(self, example: ExampleT) -> Preview:
        """The corrupted sequence and what must be predicted."""
        words = ", ".join(f"{p}: {self.tokenizer.show([t])}" for p, t in zip(example.positions, example.targets))
        return Preview((("input", self.tokenizer.show(example.input_ids)), ("predict", words)))


class SingleTexts(MaskingObjective[MaskedExample]):
    """What objectives over single texts of one document share (SpanBERT, ERNIE)."""

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterator[MaskedExample]:
        """Yield the sequences of each document."""
        room = self.frame.room(self.max_length, pair=False)
        for document in self.documents(sample):
            for start in range(0, len(document), room):
                yield MaskedExample(*self.masked(document[start:start + room], None, rng))


# ------------------------------------------------------------------------------------------ the loss side

NetT = TypeVar("NetT", bound=MaskedWords, default=MaskedLM, covariant=True)
ObjectiveT = TypeVar("ObjectiveT", bound=MaskingObjective[Any], default=MaskingObjective[Any], covariant=True)


class MaskedLMSystem(System[NetT, ObjectiveT]):
    """Pretraining by masked words; descendants add terms."""

    def read(self, batch: MaskedBatch) -> EncoderOutput:
        """What the trunk makes of a batch."""
        return self.net.trunk(batch.input_ids, None, batch.token_type_ids, batch.position_ids, lengths=batch.lengths)

    def predict(self, out: EncoderOutput, batch: MaskedBatch) -> Step:
        """The loss of the masked words as a sum; the vocabulary is scored only where something is predicted."""
        rows = out.last_hidden_state[0, batch.target_rows]  # [M, D]
        step = Step({})
        if self.training:
            total = self.net.head.loss(rows, batch.targets)
        else:
            logits = self.net.head(rows)
            total = cross_entropy_sum(logits, batch.targets)
            step.metrics["mlm_accuracy"] = (accuracy_sum(logits, batch.targets), len(batch.targets))
        step.terms["mlm"] = Term(total, "masked", labels=batch.targets)
        return step

    def forward(self, batch: Any, carry: Any = None) -> Step:
        """Cross-entropy of the masked words of a `MaskedBatch`."""
        return self.predict(self.read(batch), batch)

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        return "mlm", "mlm_chance", "mlm_accuracy", "mlm_perplexity"

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """Perplexity of the masked words."""
        return {"mlm_perplexity": perplexity(means["mlm"])} if "mlm" in means else {}

    @torch.no_grad()
    def preview(self, batch: MaskedBatch, limit: int = 4) -> list[Preview]:
        """Sequences with their masks, and the model's fillings with the true words beside them."""
        tokenizer = self.objective.tokenizer
        fillings = self.net.head(self.read(batch).last_hidden_state[0, batch.target_rows]).argmax(-1).cpu().numpy()
        rows, targets = batch.target_rows.cpu().numpy(), batch.targets.cpu().numpy()
        ids = batch.input_ids[0].cpu().numpy()
        previews: list[Preview] = []
        for start, length in zip(starts(batch.lengths), batch.lengths[:limit]):
            inside = (rows >= start) & (rows < start + length)
            filled = ids[start:start + length].copy()
            filled[rows[inside] - start] = fillings[inside]
            words = ", ".join(f"{tokenizer.show([f])} ({tokenizer.show([t])})" for f, t in zip(fillings[inside], targets[inside]))
            previews.append(Preview((
                ("masked", tokenizer.show(ids[start:start + length])),
                ("filled", tokenizer.decode(filled.tolist(), skip_special_tokens=True)),
                ("filling (truth)", words),
            )))
        return previews
