"""What `bulk` can make of a data set's samples: vectors of texts or pictures, classes of pictures or texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from ...shared.errors import UserError
from ...shared.sample import IMAGE_FIELDS, TEXT_FIELDS, Sample
from ...shared.tokenizer import NoTokenizer, Tokenizer
from ...text.classify import TextClassifier
from ..model.frontdoor import load
from ..model.frontdoor import tokenizer as find_tokenizer
from ..model.open import fingerprint
from .bulk import Runner
from .embed import PictureFeatures, embed_pictures, embed_texts, length_of
from .embedded import Maker
from .pictures import Classifier, classifier
from .texts import text_classifier

_SORTED = 32
"""Batches of texts that are read together, so that texts of similar length share one."""
VECTOR = "embedding"


@dataclass(frozen=True)
class Embed:
    """Vectors, as `embed` makes them."""

    model: str
    of: str
    """`text` or `image`."""
    tokenizer: str | None = None
    max_length: int | None = None
    normalize: bool = True
    batch_size: int = 32

    def open(self, device: str) -> Runner:
        """Load the model."""
        net = load(self.model, device=device)
        return _PictureVectors(net, self) if self.of == "image" else _TextVectors(net, find_tokenizer(self.tokenizer or self.model), self)


class _Vectors:
    """What vectors of any kind have in common."""

    facts: Mapping[str, Any]

    def record(self, results: Mapping[str, np.ndarray], row: int) -> dict[str, Any]:
        return {VECTOR: results[VECTOR][row].tolist()}


class _TextVectors(_Vectors):
    def __init__(self, net: nn.Module, vocabulary: Tokenizer, work: Embed) -> None:
        self._net, self._vocabulary, self._work = net, vocabulary, work
        self._limit = work.max_length or length_of(net)
        self.together = _SORTED * work.batch_size
        self.fingerprint = fingerprint(net, vocabulary.fingerprint, str(self._limit))
        self.facts = asdict(Maker.found(net, work.model, vocabulary.fitting_model(net), self._limit))
        embed_texts(net, ["a"], vocabulary, max_length=self._limit)  # a model without text vectors is refused before anything is made

    def prepare(self, sample: Sample) -> str:
        return sample.text()

    def run(self, items: list[str]) -> dict[str, np.ndarray]:
        return {VECTOR: embed_texts(self._net, items, self._vocabulary, max_length=self._limit, batch_size=self._work.batch_size,
                              normalize=self._work.normalize).numpy()}


class _PictureVectors(_Vectors):
    def __init__(self, net: nn.Module, work: Embed) -> None:
        self._net, self._work = net, work
        self.together = work.batch_size
        self.fingerprint = fingerprint(net)
        self.facts = asdict(Maker.found(net, work.model))
        embed_pictures(net, [])

    def prepare(self, sample: Sample) -> Image.Image:
        return sample.image()

    def run(self, items: list[Image.Image]) -> dict[str, np.ndarray]:
        return {VECTOR: embed_pictures(self._net, items, batch_size=self._work.batch_size, normalize=self._work.normalize).numpy()}


def chosen_field(fields: Sequence[str], model: str, of: str | None) -> str:
    """Whether texts or pictures of a data set become vectors."""
    if of not in (None, "text", "image"):
        raise UserError(f"--of is {of!r}, expected text or image")
    pictures, texts = (any(name in fields for name in names) for names in (IMAGE_FIELDS, (*TEXT_FIELDS, "json")))
    if of is not None:
        return of
    if pictures and texts and isinstance(load(model), PictureFeatures):
        raise UserError("the data set has pictures and texts, and this model has vectors of both: choose with --of image or --of text")
    return "image" if pictures and not texts else "text"


@dataclass(frozen=True)
class Classify:
    """Classes with their probabilities, best first, as `classify` gives them."""

    model: str
    labels: tuple[str, ...] | None = None
    templates: tuple[str, ...] = ()
    top: int = 5
    batch_size: int = 32
    speed: float | None = None

    def open(self, device: str) -> Runner:
        """Load the model."""
        net = load(self.model, device=device)
        by = text_classifier(net, self.model, self.labels, self.templates, self.speed)
        if by is not None:
            return _TextClasses(net, by, self, _vocabulary(self.model))
        return _PictureClasses(net, classifier(net, self.model, self.labels, self.templates), self, _vocabulary(self.model))


def _vocabulary(model: str) -> str:
    """What tells a model's tokenizer from others, where it has one."""
    try:
        return find_tokenizer(model).fingerprint
    except NoTokenizer:
        return ""


class _Classes:
    """What classes of any kind have in common."""

    facts: Mapping[str, Any] = {}

    def __init__(self, labels: Sequence[str], work: Classify) -> None:
        self.labels = labels
        self._top = min(work.top, len(labels))
        self._batch = work.batch_size

    def record(self, results: Mapping[str, np.ndarray], row: int) -> dict[str, Any]:
        pairs = zip(results["class"][row].tolist(), results["score"][row].tolist(), strict=True)
        return {"predictions": [{"label": self.labels[c], "score": s} for c, s in pairs]}


class _TextClasses(_Classes):
    def __init__(self, net: nn.Module, by: TextClassifier, work: Classify, vocabulary: str) -> None:
        super().__init__(by.labels, work)
        self._by = by
        self.together = _SORTED * work.batch_size
        self.fingerprint = fingerprint(net, vocabulary, *by.labels, *(() if work.speed is None else (f"speed {work.speed}",)))

    def prepare(self, sample: Sample) -> tuple[str, str | None]:
        return sample.text(), sample.pair()

    def run(self, items: list[tuple[str, str | None]]) -> dict[str, np.ndarray]:
        order = sorted(range(len(items)), key=lambda i: -len(items[i][0]) - len(items[i][1] or ""))
        classes, scores = np.zeros((len(items), self._top), dtype=np.int64), np.zeros((len(items), self._top), dtype=np.float32)
        for begin in range(0, len(order), self._batch):
            places = order[begin:begin + self._batch]
            best = self._by.probabilities([items[i] for i in places]).topk(self._top)
            classes[places], scores[places] = best.indices.numpy(), best.values.numpy()
        return {"class": classes, "score": scores}


class _PictureClasses(_Classes):
    def __init__(self, net: nn.Module, by: Classifier, work: Classify, vocabulary: str) -> None:
        super().__init__(by.labels, work)
        self._by = by
        self.together = work.batch_size
        self.fingerprint = fingerprint(net, vocabulary, *by.labels)

    def prepare(self, sample: Sample) -> Image.Image:
        return sample.image()

    def run(self, items: list[Image.Image]) -> dict[str, np.ndarray]:
        best = self._by.probabilities(items).topk(self._top)
        return {"class": best.indices.numpy(), "score": best.values.numpy()}
