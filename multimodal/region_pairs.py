"""The data side of UNITER: regions of a picture with a caption, of which a task masks or replaces something.

    task    what is masked or replaced                                 what is to be told
    mlm     words, each with probability 0.15, at least one            the words
    mrfr    regions, each with probability 0.15, at least one          their features
    mrc     regions, likewise                                          the most probable class that is not the background
    mrc_kl  regions, likewise                                          the class probabilities
    itm     half of the pictures, by another one                       whether picture and caption belong together

Chen et al. 2020, section 3.2: of a pair, words or regions are masked, never both (conditional masking). An update has one task.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ..shared.corrupt import replace_places
from ..shared.errors import BadSample, UserError, raise_problems
from ..shared.packed import PackedBatch, joined, side_by_side, starts
from ..shared.regions import Regions
from ..shared.sample import Sample
from ..shared.system import Objective, Preview
from ..shared.tokenizer import Tokenizer
from ..text.framing import Frame
from .pairs import captions

MLM, MRFR, MRC, MRC_KL, ITM = "mlm", "mrfr", "mrc", "mrc_kl", "itm"
TASKS = (ITM, MLM, MRFR, MRC_KL, MRC)
MATCHES = 1
"""The label of a picture with its own caption."""


@dataclass(frozen=True)
class PairSettings:
    """What every objective over regions and captions lets one set."""

    max_length: int = 60
    """Longest caption in tokens, special ones included; the rest is cut off."""
    max_regions: int = 100
    """Regions of a picture at most, the first ones."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        raise_problems(self.problems())

    def problems(self) -> list[str]:
        """What is wrong with the fields."""
        found = [] if self.max_length >= 3 else [f"max_length is {self.max_length}, expected at least 3 tokens"]
        return found + ([] if self.max_regions >= 1 else [f"max_regions is {self.max_regions}, expected at least 1"])


@dataclass(frozen=True)
class UniterSettings(PairSettings):
    """What of pretraining can be set."""

    itm: int = 2
    """Updates of a cycle that have this task, matching and alignment; 0 leaves it out."""
    mlm: int = 2
    """Updates of a cycle that have this task, masked words."""
    mrfr: int = 1
    """Updates of a cycle that have this task, features of masked regions."""
    mrc_kl: int = 1
    """Updates of a cycle that have this task, class probabilities of masked regions."""
    mrc: int = 0
    """Updates of a cycle that have this task, classes of masked regions."""
    mask_prob: float = 0.15
    """Probability that a word is predicted."""
    region_mask_prob: float = 0.15
    """Probability that a region is masked."""
    negative_prob: float = 0.5
    """Probability that a picture is replaced."""
    wra: float = 0.1
    """Weight of the word-region alignment in the updates of `itm`; 0 leaves it out."""

    def problems(self) -> list[str]:
        """What is wrong with the fields."""
        found = super().problems()
        found += [f"{name} is {getattr(self, name)}, expected 0 or more updates of a cycle" for name in TASKS if getattr(self, name) < 0]
        chances = ("mask_prob", "region_mask_prob", "negative_prob")
        found += [f"{name} is {value}, expected a probability between 0 and 1" for name in chances
                  if not 0 <= (value := getattr(self, name)) <= 1]
        if not any(getattr(self, name) for name in TASKS):
            found.append(f"{', '.join(TASKS)} are all 0: at least one task must have an update in a cycle")
        return found + ([] if self.wra >= 0 else [f"wra is {self.wra}, expected 0 or more"])

    @property
    def turns(self) -> dict[str, int]:
        """The tasks with their updates in a cycle."""
        return {name: count for name in TASKS if (count := getattr(self, name))}


@dataclass(frozen=True, slots=True)
class RegionPair:
    """A caption with the regions of a picture."""

    input_ids: np.ndarray
    """int64 [S], with special tokens."""
    regions: Regions


@dataclass(kw_only=True)
class RegionBatch(PackedBatch):
    """N captions with the regions of N pictures: T tokens, V regions. In the network each caption stands before its regions, in one row."""

    features: Tensor
    """fp32 [V, D]; zeros where a region is masked."""
    locations: Tensor
    """fp32 [V, 7]"""
    masked: Tensor
    """bool [V]"""
    counts_of_regions: tuple[int, ...]
    """N numbers, their sum V."""
    order: Tensor
    """int64 [T + V]: which of the tokens and then the regions stands where in the row."""
    types: Tensor | None = None
    """int64 [V], the token type of each region; None where all have the first picture's."""

    @property
    def row_lengths(self) -> tuple[int, ...]:
        """Tokens and regions of each pair, N numbers."""
        return tuple(a + b for a, b in zip(self.lengths, self.counts_of_regions, strict=True))

    def word_places(self) -> tuple[Tensor, Tensor]:
        """Where the tokens of each pair stand in the row, int64 [N, S] (0 at padding), and bool [N, S], where there is one."""
        return _places(starts(self.row_lengths), self.lengths, self.order.device)

    def region_places(self) -> tuple[Tensor, Tensor]:
        """Where the regions of each pair stand, as in `word_places`."""
        begins = [begin + length for begin, length in zip(starts(self.row_lengths), self.lengths, strict=True)]
        return _places(begins, self.counts_of_regions, self.order.device)


def _places(begins: list[int], counts: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    steps = torch.arange(max(counts))
    keep = steps < torch.tensor(counts)[:, None]
    places = (torch.tensor(begins)[:, None] + steps).masked_fill(~keep, 0)
    return places.to(device, non_blocking=True), keep.to(device, non_blocking=True)


def batch_of_pairs(texts: list[np.ndarray], pictures: list[Regions], masked: list[np.ndarray] | None = None) -> dict[str, Any]:
    """The fields of a `RegionBatch`, all but its counts.

    Args:
        texts: N captions, int64 [S] each.
        pictures: N pictures.
        masked: bool [R] each, the regions that are masked; by default none.
    """
    packed = side_by_side(texts)
    counts = tuple(len(picture.features) for picture in pictures)
    hidden = np.concatenate(masked) if masked is not None else np.zeros(sum(counts), dtype=bool)
    features = np.concatenate([picture.features for picture in pictures])
    features[hidden] = 0
    tokens = sum(packed.lengths)
    order = [part for a, n, b, m in zip(starts(packed.lengths), packed.lengths, starts(counts), counts, strict=True)
             for part in (np.arange(a, a + n), np.arange(tokens + b, tokens + b + m))]
    return {
        "tokens": tokens + sum(counts), "input_ids": packed.input_ids, "position_ids": packed.position_ids, "lengths": packed.lengths,
        "features": torch.from_numpy(features), "masked": torch.from_numpy(hidden), "counts_of_regions": counts,
        "locations": torch.from_numpy(np.concatenate([picture.locations for picture in pictures])),
        "order": torch.from_numpy(np.concatenate(order)),
    }  # fmt: skip


@runtime_checkable
class PairScorer(Protocol):
    """A network that reads a caption and a picture together, and scores them."""

    config: Any

    def score_pairs(self, batch: RegionBatch) -> Tensor:
        """How well each caption fits its picture, fp32 [N]; any scale."""
        ...


class RegionReader:
    """Reads captions and regions of samples.

    Args:
        tokenizer: with tokens for classification and separation.
        settings: limits of length.
        width: of the features.
        classes: of the regions; 0 where none are needed.
        training: whether a random caption of several is taken; else the first.
    """

    def __init__(self, tokenizer: Tokenizer, settings: PairSettings, width: int, classes: int, training: bool) -> None:
        self.tokenizer, self.settings, self.width, self.classes, self.training = tokenizer, settings, width, classes, training
        self.frame = Frame(tokenizer, "a caption")
        self.room = self.frame.room(settings.max_length, pair=False)

    def caption(self, sample: Sample, rng: np.random.Generator) -> np.ndarray:
        """One of the captions, with special tokens: int64 [S]."""
        texts = captions(sample)
        text = texts[int(rng.integers(len(texts)))] if self.training else texts[0]
        return self.framed(text)

    def framed(self, text: str) -> np.ndarray:
        """A text with special tokens: int64 [S]."""
        return self.frame(self.tokenizer.encode(text, add_special_tokens=False)[:self.room])[0]

    def regions(self, sample: Sample) -> Regions:
        """The regions, which must fit the network."""
        found = sample.regions().first(self.settings.max_regions)
        if found.features.shape[1] != self.width:
            raise sample.bad(f"its regions have features of width {found.features.shape[1]}, the model reads {self.width}")
        if self.classes and (found.classes is None or found.classes.shape[1] != self.classes):
            there = "no class probabilities" if found.classes is None else f"{found.classes.shape[1]} classes"
            raise sample.bad(f"its regions have {there}, the model tells {self.classes} classes")
        return found

    def others(self, sample: Sample) -> Sample | None:
        """The partner, where there is one whose regions and caption can be used (else it is counted when its own turn comes)."""
        other = sample.partner
        if other is None:
            return None
        try:
            self.regions(other)
            captions(other)
        except BadSample:
            return None
        return other


# -------------------------------------------------------------------------------------------- pretraining


@dataclass(frozen=True, slots=True)
class UniterExample(RegionPair):
    """A pair of which something is masked, or whose picture may be another one."""

    positions: np.ndarray
    """int64 [M], the places of words that are to be predicted."""
    targets: np.ndarray
    """int64 [M], the original ids there."""
    masked: np.ndarray
    """bool [R], the regions that are masked."""
    match: int | None = None
    """1 for the picture's own caption, else 0; None where that is not asked."""


@dataclass(kw_only=True)
class UniterBatch(RegionBatch):
    """Pairs of one task."""

    kind: str
    """The task."""
    target_rows: Tensor
    """int64 [M], places in the row of words that are to be predicted."""
    targets: Tensor
    """int64 [M]"""
    region_rows: Tensor
    """int64 [K], places in the row of masked regions."""
    region_targets: Tensor
    """fp32 [K, D], their features, or [K, C], their class probabilities, as the task wants them; else [0, 0]."""
    match: Tensor
    """int64 [N], or [0] where it is not asked."""


class UniterObjective(Objective[UniterExample]):
    """The tasks in turns, or one of them.

    Args:
        tokenizer: with tokens for classification, separation and masking.
        settings: what can be set.
        width: of the features of regions.
        classes: of regions.
        task: one of `TASKS`; empty for all that the settings have, which take turns.
        training: whether a random caption of several is taken; else the first.
    """

    def __init__(self, tokenizer: Tokenizer, settings: UniterSettings, width: int, classes: int, task: str = "", training: bool = True
                 ) -> None:
        self.tokenizer, self.settings, self.width, self.classes, self.training = tokenizer, settings, width, classes, training
        self.turns = {} if task else settings.turns
        self.task = task or next(iter(self.turns))
        self.needs_partner = self.task == ITM
        self.reader = RegionReader(tokenizer, settings, width, classes if self.task in (MRC, MRC_KL) else 0, training)
        self.cls_id, self.sep_id, self.mask_id = tokenizer.need("masking", "cls", "sep", "mask")
        self.words = np.setdiff1d(np.arange(tokenizer.vocab_size), np.array(sorted(tokenizer.special_ids), dtype=np.int64))

    def by_turn(self) -> Mapping[str, UniterObjective]:
        """See `Objective.by_turn`."""
        return {name: self._with(name, self.training) for name in self.turns} or {"": self}

    def evaluation(self) -> UniterObjective:
        """With the first caption of each picture."""
        return self._with("" if self.turns else self.task, False)

    def _with(self, task: str, training: bool) -> UniterObjective:
        return UniterObjective(self.tokenizer, self.settings, self.width, self.classes, task, training)

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterable[UniterExample]:
        """The pair of a sample, changed as the task has it."""
        ids, regions = self.reader.caption(sample, rng), self.reader.regions(sample)
        if len(ids) == self.settings.max_length - self.reader.room:
            raise sample.bad("its caption has no tokens")
        positions = targets = np.zeros(0, dtype=np.int64)
        masked, match = np.zeros(len(regions.features), dtype=bool), None
        if self.task == MLM:
            ids, positions, targets = self.hide(ids, rng)
        elif self.task == ITM:
            other = self.reader.others(sample) if rng.random() < self.settings.negative_prob else None
            match = MATCHES if other is None else 1 - MATCHES
            regions = regions if other is None else self.reader.regions(other)
            masked = np.zeros(len(regions.features), dtype=bool)
        else:
            masked = rng.random(len(masked)) < self.settings.region_mask_prob
            masked[rng.integers(len(masked))] |= not masked.any()
        yield UniterExample(ids, regions, positions, targets, masked, match)

    def hide(self, ids: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mask words of a framed caption [S]: ids, places and targets. Each on its own; where none is drawn, the first becomes [MASK]."""
        inside = np.flatnonzero((ids != self.cls_id) & (ids != self.sep_id))
        places = inside[rng.random(len(inside)) < self.settings.mask_prob]
        if not len(places):
            noisy = ids.copy()
            noisy[inside[0]] = self.mask_id
            return noisy, inside[:1], ids[inside[:1]]
        hidden = replace_places(ids, places, rng, mask_id=self.mask_id, words=self.words)
        return hidden.ids, hidden.positions, hidden.targets

    def tokens_of(self, example: UniterExample) -> int:
        """Tokens and regions."""
        return len(example.input_ids) + len(example.regions.features)

    def collate(self, examples: list[UniterExample]) -> UniterBatch:
        """Pack pairs side by side; losses are counted in words, in regions, or in pairs."""
        fields = batch_of_pairs([e.input_ids for e in examples], [e.regions for e in examples], [e.masked for e in examples])
        begins = starts([self.tokens_of(e) for e in examples])
        places = joined([e.positions + begin for e, begin in zip(examples, begins)])[0]
        regions = joined([np.flatnonzero(e.masked) + len(e.input_ids) + begin for e, begin in zip(examples, begins)])[0]
        wanted = torch.zeros(0, 0)
        if self.task in (MRFR, MRC, MRC_KL):
            parts = [(e.regions.features if self.task == MRFR else e.regions.classes)[e.masked] for e in examples]  # type: ignore[index]
            wanted = torch.from_numpy(np.concatenate(parts))
        labels = [e.match for e in examples if e.match is not None]
        counts = {"words": len(places)} if self.task == MLM else {"pairs": len(labels)} if self.task == ITM else {"regions": len(regions)}
        return UniterBatch(
            kind=self.task, counts=counts, **fields, target_rows=places, targets=joined([e.targets for e in examples])[0],
            region_rows=regions, region_targets=wanted, match=torch.tensor(labels, dtype=torch.long),
        )  # fmt: skip

    def describe(self, example: UniterExample) -> Preview:
        """The caption, what is to be predicted, the regions and whether they belong to it."""
        words = ", ".join(f"{p}: {self.tokenizer.show([t])}" for p, t in zip(example.positions, example.targets))
        masked = np.flatnonzero(example.masked).tolist()
        rows = [("caption", self.tokenizer.show(example.input_ids)), ("regions", str(len(example.masked)))]
        rows += [("predict", words)] if words else []
        rows += [("masked regions", ", ".join(map(str, masked)))] if masked else []
        rows += [("picture", self.told(example.match))] if example.match is not None else []
        return Preview(tuple(rows))

    @staticmethod
    def told(match: int) -> str:
        """A label of matching in words."""
        return "its own" if match == MATCHES else "another one"


def check_length(settings: PairSettings, positions: int) -> None:
    """Refuse captions that are longer than a network has positions for."""
    if settings.max_length > positions:
        raise UserError(f"objective.max_length is {settings.max_length}, the model has {positions} positions: lower it, or raise "
                        "model.max_position_embeddings")
