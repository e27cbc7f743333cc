"""Pictures with captions: how a sample becomes a training pair, and pairs become a batch.

Captions travel packed in one row without padding; every caption keeps its ids as a key, so that a frozen text
tower need not read the same caption twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..shared.packed import PackedBatch, side_by_side
from ..shared.sample import TEXT_FIELDS, Sample
from ..shared.system import Objective, Preview
from ..shared.tokenizer import Tokenizer
from ..vision.transforms import Augmentation, Preprocessing

LISTS = ("captions", "caption", "text", "texts")


def captions(sample: Sample) -> list[str]:
    """All captions of a sample: its text field, or the string or list of strings in its json (`captions`, `caption`, `text`)."""
    if any(name in sample.fields for name in TEXT_FIELDS) or "json" not in sample.fields:
        return [sample.text()]
    record = sample.json()
    for name in LISTS:
        found = record.get(name)
        if isinstance(found, list):
            texts = [t for t in found if isinstance(t, str) and t.strip()]
            if texts:
                return texts
            raise sample.bad(f"json {name!r} holds no caption")
    return [sample.text()]


@dataclass(frozen=True)
class Pair:
    """One example."""

    pixels: Tensor
    """uint8 [3, H, W]."""
    ids: tuple[int, ...]
    """The caption's token ids, special tokens included."""


@dataclass(kw_only=True)
class PairBatch(PackedBatch):
    """B pictures and their captions, packed in the same order."""

    images: Tensor
    """uint8 [B, 3, H, W]."""
    keys: tuple[bytes, ...]
    """What tells equal captions: their token ids as bytes."""


class ImageTextPairs(Objective[Pair]):
    """A picture, augmented in training, and one of its captions."""

    def __init__(self, tokenizer: Tokenizer, preprocessing: Preprocessing, augmentation: Augmentation | None, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.preprocessing = preprocessing
        self.augmentation = augmentation
        self.max_length = max_length

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterable[Pair]:
        """One pair; of several captions a random one (in evaluation the first)."""
        texts = captions(sample)
        if self.augmentation is None:
            text, pixels = texts[0], self.preprocessing.pixels(sample.image())
        else:
            text = texts[int(rng.integers(len(texts)))]
            pixels = self.augmentation.pixels(sample.pixels(), self.preprocessing, rng)
        return [Pair(pixels, tuple(self.tokenizer.encode(text, max_length=self.max_length)))]

    def collate(self, examples: list[Pair]) -> PairBatch:
        """Stack the pictures and pack the captions; the loss is counted in pairs."""
        texts = side_by_side([e.ids for e in examples])
        return PairBatch(
            counts={"pairs": len(examples)}, tokens=sum(texts.lengths), images=torch.stack([e.pixels for e in examples]),
            input_ids=texts.input_ids, position_ids=texts.position_ids, lengths=texts.lengths,
            keys=tuple(np.array(e.ids, dtype="<i4").tobytes() for e in examples),
        )  # fmt: skip

    def evaluation(self) -> ImageTextPairs:
        """Without augmentation."""
        return ImageTextPairs(self.tokenizer, self.preprocessing, None, self.max_length)

    def describe(self, example: Pair) -> Preview:
        """The picture as the network gets it, and the caption as the tokenizer cut it."""
        rows = (("caption", self.tokenizer.decode(list(example.ids))), ("tokens", self.tokenizer.show(example.ids)))
        return Preview(rows, example.pixels.permute(1, 2, 0).numpy())


class Memo:
    """Features of a frozen tower by what went in; beyond `limit` the ones that went unused longest are dropped."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: dict[bytes, Tensor] = {}

    def __len__(self) -> int:
        """How many features are kept."""
        return len(self._kept)

    def __call__(self, keys: Sequence[bytes], compute: Callable[[list[int]], Tensor]) -> Tensor:
        """The features of `keys` [N, D]; `compute` is called once, with the rows of the distinct ones not known yet."""
        known = {key: self._kept.pop(key) for key in dict.fromkeys(keys) if key in self._kept}
        missing: dict[bytes, int] = {}
        for row, key in enumerate(keys):
            if key not in known:
                missing.setdefault(key, row)
        if missing:
            # copies: a row that is kept must not keep the features of its whole batch
            known.update((key, row.clone()) for key, row in zip(missing, compute(list(missing.values())).detach(), strict=True))
        self._kept.update(known)  # at the end: the order of a dict is that of insertion
        while len(self._kept) > self.limit:
            del self._kept[next(iter(self._kept))]
        return torch.stack([known[key] for key in keys])


