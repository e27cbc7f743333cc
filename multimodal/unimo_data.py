"""The data side of UNIMO: texts, pictures and pairs, each with tasks of their own.

    task      reads     a row                                     what is to be told
    words     texts     [CLS] A [SEP]                             15 % of the words, in spans
    seq2seq   texts     [CLS] A without some fragments [SEP]      the fragments, behind [CLS], word by word
    regions   pictures  [IMG] regions                             features and class probabilities of 15 % of the regions, and of those
                                                                  that overlap them
    pairs     pairs     [IMG] regions [CLS] caption [SEP]         both, masked together
    caption   pairs     [IMG] regions                             the caption, behind [CLS], word by word
    contrast  pairs     the pair; rewritten captions, another     which belong together
                        picture, another caption; what was
                        retrieved, alone

Li et al. 2021, sections 2.1 to 2.3. A data set is for the tasks of texts where its samples have no regions, for `regions` where they have
no text, and for the others where they have both (`Objective.reads`). An update has one task.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..shared.documents import documents
from ..shared.errors import UserError
from ..shared.packed import joined, starts
from ..shared.regions import FEATURES_FIELD, Regions
from ..shared.sample import TEXT_FIELDS, Sample
from ..shared.system import Objective, Preview
from ..shared.tokenizer import Tokenizer
from ..text.spanbert import SpanBertObjective, SpanBertSettings
from .region_pairs import PairSettings, RegionBatch, RegionReader, batch_of_pairs

WORDS, SEQ2SEQ, REGIONS, PAIRS, CAPTION, CONTRAST = "words", "seq2seq", "regions", "pairs", "caption", "contrast"
TASKS = (WORDS, PAIRS, SEQ2SEQ, CAPTION, REGIONS, CONTRAST)
TEXTS, PICTURES = (WORDS, SEQ2SEQ), (REGIONS,)
NEAR = "near{}."
"""Before the fields of a retrieved picture's regions, with its number."""


@dataclass(frozen=True)
class UnimoSettings(PairSettings):
    """What of pretraining can be set."""

    words: int = 2
    """Updates of a cycle that have this task: masked words of texts; 0 leaves it out."""
    seq2seq: int = 1
    """Updates of a cycle that have this task: removed fragments of texts."""
    regions: int = 1
    """Updates of a cycle that have this task: masked regions of pictures."""
    pairs: int = 2
    """Updates of a cycle that have this task: masked words and regions of pairs."""
    caption: int = 1
    """Updates of a cycle that have this task: captions of pictures."""
    contrast: int = 2
    """Updates of a cycle that have this task: which picture and text belong together."""
    max_text_length: int | None = None
    """Tokens of a text without a picture, special ones included; None takes the model's positions."""
    mask_prob: float = 0.15
    """Fraction of the words that is predicted."""
    geometric_p: float = 0.2
    """The parameter of the distribution of the spans' lengths, in words."""
    max_span_length: int = 10
    """Words of the longest span."""
    region_mask_prob: float = 0.15
    """Probability that a region is masked, before those that overlap it."""
    overlap: float = 0.4
    """Regions that overlap a masked one by more than this (intersection over union) are masked, too; 1 leaves that out."""
    removed: float = 0.25
    """Fraction of a text that `seq2seq` removes, at most."""
    max_fragment_length: int = 32
    """Tokens of the longest fragment of `seq2seq`."""
    rewrites: int = 2
    """Rewritten captions of each kind, those that mean the same and those that do not, in an example of `contrast`, at most."""
    related: int = 1
    """Retrieved texts, and retrieved pictures, in an example of `contrast`, at most."""
    temperature: float = 0.1
    """What the scores of `contrast` are divided by."""

    def problems(self) -> list[str]:
        """What is wrong with the fields."""
        found = super().problems()
        numbers = (*TASKS, "rewrites", "related")
        found += [f"{name} is {value}, expected 0 or more" for name in numbers if (value := getattr(self, name)) < 0]
        found += [f"{name} is {value}, expected a probability between 0 and 1" for name in
                  ("mask_prob", "region_mask_prob", "overlap", "geometric_p", "removed") if not 0 <= (value := getattr(self, name)) <= 1]
        found += [f"{name} is {value}, expected at least 1" for name in ("max_span_length", "max_fragment_length")
                  if (value := getattr(self, name)) < 1]
        if self.max_text_length is not None and self.max_text_length < 8:
            found.append(f"max_text_length is {self.max_text_length}, expected at least 8 tokens")
        if not any(getattr(self, name) for name in TASKS):
            found.append(f"{', '.join(TASKS)} are all 0: at least one task must have an update in a cycle")
        return found + ([] if self.temperature > 0 else [f"temperature is {self.temperature}, expected more than 0"])

    @property
    def turns(self) -> dict[str, int]:
        """The tasks with their updates in a cycle."""
        return {name: count for name in TASKS if (count := getattr(self, name))}


@dataclass(frozen=True, slots=True)
class Row:
    """What stands in one row of the network: a picture's regions, a text, or a text behind the regions."""

    input_ids: np.ndarray
    """int64 [S], with special tokens; empty for a picture alone."""
    regions: Regions | None = None
    masked: np.ndarray | None = None
    """bool [R], the regions that are masked; None for none."""
    positions: np.ndarray | None = None
    """int64 [M], the words whose states tell something; None for none."""
    targets: np.ndarray | None = None
    """int64 [M], the ids that they tell."""
    source: int | None = None
    """Of a row that is written word by word: how many of its words are seen whole. None: every word sees every other one."""

    @property
    def size(self) -> int:
        """Tokens and regions, the one for the whole picture among them."""
        return len(self.input_ids) + (0 if self.regions is None else 1 + len(self.regions.features))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A picture and a text that may belong together: in one row, or each in its own."""

    picture: int
    """The row of the picture."""
    text: int
    """The row of the text: the same one where they are read together."""
    positive: bool


@dataclass(frozen=True, slots=True)
class UnimoExample:
    """One row, or the rows of `contrast` with what is compared."""

    rows: tuple[Row, ...]
    candidates: tuple[Candidate, ...] = ()
    """The first one is the pair itself."""


@dataclass(kw_only=True)
class UnimoBatch(RegionBatch):
    """N rows of one task: T tokens, V regions, P pictures."""

    kind: str
    """The task."""
    target_rows: Tensor
    """int64 [M], places among the T tokens whose states tell something."""
    targets: Tensor
    """int64 [M]"""
    region_rows: Tensor
    """int64 [K], masked ones among the V regions."""
    region_features: Tensor
    """fp32 [K, D]"""
    region_classes: Tensor
    """fp32 [K, C], or [K, 0] where the data has none."""
    prefixes: tuple[int, ...] | None
    """Of rows that are written word by word: how many tokens and regions at the beginning of each are seen whole."""
    together: Tensor
    """int64 [J, 2]: the first token among T, and the picture among P, of candidates that are read together."""
    apart: Tensor
    """int64 [A, 2]: the same of candidates that are read apart."""
    owners: Tensor
    """int64 [J + A]: the example of each candidate."""
    positive: Tensor
    """bool [J + A]"""
    own: Tensor
    """int64 [E]: which of the J candidates is the pair itself."""


def overlaps(boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes [R, 4], each with each: [R, R]."""
    low, high = (side(boxes[:, None, part], boxes[None, :, part]) for side, part in ((np.maximum, slice(0, 2)), (np.minimum, slice(2, 4))))
    inside = np.clip(high - low, 0, None).prod(-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    return inside / np.maximum(areas[:, None] + areas[None] - inside, 1e-12)


def hide_regions(boxes: np.ndarray, prob: float, overlap: float, rng: np.random.Generator) -> np.ndarray:
    """Which regions are masked, bool [R]: each with a probability, at least one, and all that overlap these by more than `overlap`."""
    chosen = rng.random(len(boxes)) < prob
    chosen[rng.integers(len(chosen))] |= not chosen.any()
    return chosen | (overlaps(boxes)[:, chosen] > overlap).any(1)


def fragments(length: int, removed: float, longest: int, rng: np.random.Generator) -> np.ndarray:
    """Which of `length` >= 2 tokens are removed, bool [length]: fragments of random lengths that do not touch, together `removed` of them.

    At least one token is.
    """
    left = max(1, int(length * removed))
    chosen = np.zeros(length, dtype=bool)
    while left:
        size = min(left, int(rng.integers(1, longest + 1)))
        free = [begin for begin in range(length - size + 1) if not chosen[max(0, begin - 1):begin + size + 1].any()]
        if not free:
            if size == 1:
                break
            longest = size - 1
            continue
        begin = free[int(rng.integers(len(free)))]
        chosen[begin:begin + size] = True
        left -= size
    return chosen


class UnimoObjective(Objective[UnimoExample]):
    """The tasks in turns, or one of them.

    Args:
        tokenizer: with tokens for classification, separation and masking.
        settings: what can be set.
        width: of the features of regions.
        classes: of regions; 0 where the data has none: then features alone are told.
        longest: tokens of a text without a picture.
        task: one of `TASKS`; empty for all that the settings have, which take turns.
        training: whether a random caption of several, and random rewrites, are taken; else the first.
    """

    def __init__(self, tokenizer: Tokenizer, settings: UnimoSettings, width: int, classes: int, longest: int, task: str = "",
                 training: bool = True) -> None:
        self.tokenizer, self.settings, self.width, self.classes, self.longest = tokenizer, settings, width, classes, longest
        self.training = training
        self.turns = {} if task else settings.turns
        self.task = task or next(iter(self.turns))
        self.needs_partner = self.task == CONTRAST
        self.reader = RegionReader(tokenizer, settings, width, classes if self.task in (REGIONS, PAIRS) else 0, training)
        self.spans = SpanBertObjective(tokenizer, SpanBertSettings(
            mask_prob=settings.mask_prob, geometric_p=settings.geometric_p, max_span_length=settings.max_span_length), longest)
        self.cls_id, self.sep_id = self.spans.cls_id, self.spans.sep_id

    def by_turn(self) -> Mapping[str, UnimoObjective]:
        """See `Objective.by_turn`."""
        return {name: self._with(name, self.training) for name in self.turns} or {"": self}

    def evaluation(self) -> UnimoObjective:
        """With the first caption of each picture, and the first of its rewrites."""
        return self._with("" if self.turns else self.task, False)

    def _with(self, task: str, training: bool) -> UnimoObjective:
        return UnimoObjective(self.tokenizer, self.settings, self.width, self.classes, self.longest, task, training)

    def reads(self, fields: Collection[str]) -> bool:
        """Texts, pictures, or pairs, as the task has it."""
        if self.turns:
            return True
        seen, told = FEATURES_FIELD in fields, bool({*TEXT_FIELDS, "json", "tokens.u16", "tokens.u32"} & set(fields))
        return told and not seen if self.task in TEXTS else seen and not told if self.task in PICTURES else seen and told

    # --- examples

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterable[UnimoExample]:
        """The rows of a sample, as the task has them."""
        makers = {WORDS: self._words, SEQ2SEQ: self._fragments, REGIONS: self._regions, PAIRS: self._pairs, CAPTION: self._caption}
        if self.task == CONTRAST:
            return [self._contrast(sample, rng)]
        return [UnimoExample((row,)) for row in makers[self.task](sample, rng)]

    def _words(self, sample: Sample, rng: np.random.Generator) -> Iterator[Row]:
        for made in self.spans.example(sample, rng):
            yield Row(made.input_ids, positions=made.positions, targets=made.targets)

    def _fragments(self, sample: Sample, rng: np.random.Generator) -> Iterator[Row]:
        room = self.longest - 3  # two [CLS] and a [SEP]; another [SEP] is told, and not read
        for document in documents(sample, self.tokenizer):
            for begin in range(0, len(document), room):
                ids = document[begin:begin + room]
                if len(ids) < 2:  # the rest of a document may be one token: nothing is left to tell it by
                    if len(document) < 2:
                        raise sample.bad("a text of two tokens or more is needed")
                    continue
                gone = fragments(len(ids), self.settings.removed, self.settings.max_fragment_length, rng)
                yield self.written(np.concatenate([[self.cls_id], ids[~gone], [self.sep_id]]), ids[gone])

    def written(self, source: np.ndarray, target: np.ndarray, regions: Regions | None = None) -> Row:
        """A row whose `target` [T] is written word by word behind regions, and words that are seen whole."""
        ids = np.concatenate([source, [self.cls_id], target]).astype(np.int64)
        return Row(ids, regions, positions=np.arange(len(source), len(ids)), targets=np.append(target, self.sep_id).astype(np.int64),
                   source=len(source))

    def _regions(self, sample: Sample, rng: np.random.Generator) -> Iterator[Row]:
        regions = self.reader.regions(sample)
        yield Row(np.zeros(0, dtype=np.int64), regions, self.hide(regions, rng))

    def hide(self, regions: Regions, rng: np.random.Generator) -> np.ndarray:
        """Which regions are masked, bool [R]."""
        return hide_regions(regions.boxes, self.settings.region_mask_prob, self.settings.overlap, rng)

    def caption(self, sample: Sample, rng: np.random.Generator) -> np.ndarray:
        """One of the captions, without special tokens: int64 [S], S >= 1."""
        ids = self.reader.caption(sample, rng)
        ids = ids[(ids != self.cls_id) & (ids != self.sep_id)]
        if not len(ids):
            raise sample.bad("its caption has no tokens")
        return ids

    def _pairs(self, sample: Sample, rng: np.random.Generator) -> Iterator[Row]:
        regions = self.reader.regions(sample)
        ids, _, positions, targets = self.spans.masked(self.caption(sample, rng), None, rng)
        yield Row(ids, regions, self.hide(regions, rng), positions, targets)

    def _caption(self, sample: Sample, rng: np.random.Generator) -> Iterator[Row]:
        yield self.written(np.zeros(0, dtype=np.int64), self.caption(sample, rng), self.reader.regions(sample))

    def _contrast(self, sample: Sample, rng: np.random.Generator) -> UnimoExample:
        """The pair, what is like it and what is not."""
        text, regions, other = self.reader.caption(sample, rng), self.reader.regions(sample), self.reader.others(sample)
        record = sample.json() if "json" in sample.fields else {}
        rows = [Row(text, regions)]
        found = [Candidate(0, 0, True)]

        def add(candidate: Row, positive: bool) -> None:
            found.append(Candidate(len(rows), len(rows), positive))
            rows.append(candidate)

        rewrites = record.get("rewrites", {})
        if not isinstance(rewrites, dict):
            raise sample.bad("'rewrites' of field 'json' is no mapping of 'same' and 'other' to lists of texts (`polymodal relate` writes "
                             "it)")
        for name, positive in (("same", True), ("other", False)):
            for words in self._some(sample, rewrites.get(name, []), self.settings.rewrites, rng, name):
                add(Row(self.reader.framed(words), regions), positive)
        if other is not None:
            add(Row(text, self.reader.regions(other)), False)
            add(Row(self.reader.caption(other, rng), regions), False)
        texts = self._some(sample, record.get("related", []), self.settings.related, rng, "related")
        pictures = [self.reader.regions(near) for near in near_pictures(sample)][:self.settings.related]
        alone: dict[str, int] = {}

        def apart(picture: Row, words: Row, names: tuple[str, str], positive: bool) -> None:
            """Both in rows of their own; what has a name is read once."""
            for name, row in zip(names, (picture, words)):
                if not name or name not in alone:
                    alone[name] = len(rows)
                    rows.append(row)
            found.append(Candidate(alone[names[0]], alone[names[1]], positive))

        nothing = np.zeros(0, dtype=np.int64)
        for n, words in enumerate(texts):
            apart(Row(nothing, regions), Row(self.reader.framed(words)), ("picture", f"text {n}"), True)
        for n, picture in enumerate(pictures):
            apart(Row(nothing, picture), Row(text), (f"picture {n}", "text"), True)
        if other is not None and texts:
            apart(Row(nothing, regions), Row(self.reader.caption(other, rng)), ("picture", "other text"), False)
        if other is not None and pictures:
            apart(Row(nothing, self.reader.regions(other)), Row(text), ("other picture", "text"), False)
        return UnimoExample(tuple(rows), tuple(found))

    def _some(self, sample: Sample, texts: Any, count: int, rng: np.random.Generator, name: str) -> list[str]:
        """At most `count` of the texts, random ones in training."""
        if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
            raise sample.bad(f"{name!r} in field 'json' is no list of texts, none of them blank (`polymodal relate` writes it)")
        order = rng.permutation(len(texts))[:count] if self.training else range(min(count, len(texts)))
        return [texts[i] for i in order]

    # --- batches

    def tokens_of(self, example: UnimoExample) -> int:
        """Tokens and regions of all rows."""
        return sum(row.size for row in example.rows)

    def collate(self, examples: list[UnimoExample]) -> UnimoBatch:
        """Pack rows side by side; losses are counted in words, in regions, or in examples."""
        return batch_of_rows(examples, self.task, self.width, self.classes)

    def describe(self, example: UnimoExample) -> Preview:
        """What is read, and what is to be told."""
        show, rows = self.tokenizer.show, list[tuple[str, str]]()
        if example.candidates:
            for c in example.candidates:
                picture, text = example.rows[c.picture], example.rows[c.text]
                assert picture.regions is not None
                how = "together" if c.picture == c.text else "apart"
                rows.append((f"{'fits' if c.positive else 'does not fit'} ({how})",
                             f"{len(picture.regions.features)} regions | {show(text.input_ids)}"))
            return Preview(tuple(rows))
        (row,) = example.rows
        rows += [("text", show(row.input_ids))] if len(row.input_ids) else []
        rows += [("regions", str(len(row.regions.features)))] if row.regions is not None else []
        if row.masked is not None:
            rows.append(("masked regions", ", ".join(map(str, np.flatnonzero(row.masked).tolist()))))
        if row.positions is not None and row.targets is not None:
            rows.append(("predict", ", ".join(f"{p}: {show([t])}" for p, t in zip(row.positions, row.targets))))
        return Preview(tuple(rows))


def batch_of_rows(examples: Sequence[UnimoExample], task: str, width: int, classes: int) -> UnimoBatch:
    """The rows of a task side by side.

    Args:
        examples: at least one.
        task: one of `TASKS`.
        width: of the features of regions.
        classes: of regions; 0 where they are not told.
    """
    rows = [row for e in examples for row in e.rows]
    fields = fields_of(rows, width)
    begins, pictures = starts(fields["lengths"]), np.cumsum([row.regions is not None for row in rows]) - 1
    told = [row.positions + begin for row, begin in zip(rows, begins) if row.positions is not None]
    hidden = fields["masked"].nonzero()[:, 0]
    wanted = [row for row in rows if row.masked is not None and row.regions is not None]
    features, chances = torch.zeros(0, width), torch.zeros(len(hidden), 0)
    if wanted:
        features = torch.from_numpy(np.concatenate([row.regions.features[row.masked] for row in wanted]))  # type: ignore[union-attr]
    if wanted and classes:
        chances = torch.from_numpy(np.concatenate([row.regions.classes[row.masked] for row in wanted]))  # type: ignore[union-attr,index]
    first = starts([len(e.rows) for e in examples])
    compared = [(number, begins[c.text + a], int(pictures[c.picture + a]), c) for number, (e, a) in enumerate(zip(examples, first))
                for c in e.candidates]
    joint, alone = ([entry for entry in compared if (entry[3].picture == entry[3].text) == same] for same in (True, False))
    places = [torch.tensor([[text, picture] for _, text, picture, _ in part], dtype=torch.long).view(-1, 2) for part in (joint, alone)]
    counts = {"words": sum(map(len, told))} if told else {}
    counts |= {"regions": len(hidden)} if wanted else {}
    counts |= {"examples": len(examples)} if task == CONTRAST else {}
    prefixes = None
    if any(row.source is not None for row in rows):
        prefixes = tuple(row.size - len(row.input_ids) + (row.source or 0) for row in rows)
    return UnimoBatch(
        kind=task, counts=counts, **fields, target_rows=joined(told)[0] if told else torch.zeros(0, dtype=torch.long),
        targets=joined([row.targets for row in rows if row.targets is not None])[0] if told else torch.zeros(0, dtype=torch.long),
        region_rows=hidden, region_features=features, region_classes=chances, prefixes=prefixes, together=places[0], apart=places[1],
        owners=torch.tensor([number for number, *_ in (*joint, *alone)], dtype=torch.long),
        positive=torch.tensor([entry[3].positive for entry in (*joint, *alone)], dtype=torch.bool),
        own=torch.tensor([place for place, entry in enumerate(joint) if entry[3].picture == 0], dtype=torch.long),
    )  # fmt: skip


def near_pictures(sample: Sample) -> Iterator[Sample]:
    """The pictures that were retrieved for a sample, as samples of their own."""
    number = 0
    while (before := NEAR.format(number)) + FEATURES_FIELD in sample.fields:
        yield Sample(sample.key, {name.removeprefix(before): data for name, data in sample.fields.items() if name.startswith(before)},
                     sample.index, sample.source)
        number += 1


def fields_of(rows: list[Row], width: int) -> dict[str, Any]:
    """The fields of a `RegionBatch` of rows that may have no text, or no regions; words that are written begin at position 0 again."""
    none = Regions(np.zeros((0, width), dtype=np.float32), np.zeros((0, 4), dtype=np.float32))
    pictures = [none if row.regions is None else row.regions._replace(classes=None) for row in rows]
    masked = [np.zeros(len(p.features), dtype=bool) if row.masked is None else row.masked for row, p in zip(rows, pictures)]
    found = batch_of_pairs([row.input_ids for row in rows], pictures, masked)
    positions = [np.arange(len(row.input_ids)) - (np.arange(len(row.input_ids)) >= (row.source or 0)) * (row.source or 0) for row in rows]
    found["tokens"] += sum(row.regions is not None for row in rows)
    return {**found, "position_ids": joined(positions)}


def check_text_length(settings: UnimoSettings, positions: int) -> int:
    """Tokens of a text without a picture."""
    length = settings.max_text_length or positions
    if length > positions:
        raise UserError(f"objective.max_text_length is {length}, the model has {positions} positions: lower it, or raise "
                        "model.max_position_embeddings")
    return length


def row_order(lengths: tuple[int, ...], counts: tuple[int, ...]) -> np.ndarray:
    """Which of T tokens, then P pictures, then V regions stands where, int64 [T + P + V]: of each row [IMG], its regions, its words."""
    words, pictures = sum(lengths), sum(count > 0 for count in counts)
    parts: list[np.ndarray] = []
    picture = words
    for begin, length, first, count in zip(starts(lengths), lengths, starts(counts), counts, strict=True):
        if count:
            parts += [np.array([picture]), np.arange(count) + words + pictures + first]
            picture += 1
        parts.append(np.arange(begin, begin + length))
    return np.concatenate(parts)


def kept(attention_mask: Tensor | None, like: Tensor) -> Tensor:
    """Where there is not padding, bool [B, S]."""
    return torch.ones_like(like, dtype=torch.bool) if attention_mask is None else attention_mask.bool()


def batch_of_padded(input_ids: Tensor, words: Tensor, features: Tensor, locations: Tensor, there: Tensor) -> RegionBatch:
    """Padded pairs side by side."""
    positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    count = int(there.sum())
    return RegionBatch(counts={}, input_ids=input_ids[words][None], position_ids=positions[words][None],
                       lengths=tuple(words.sum(1).tolist()), features=features[there], locations=locations[there],
                       masked=torch.zeros(count, dtype=torch.bool, device=features.device),
                       counts_of_regions=tuple(there.sum(1).tolist()), order=torch.zeros(0, dtype=torch.long))
