"""Retrieval: find the picture of a caption and the captions of a picture among those of the whole data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...multimodal.pairs import captions
from ...multimodal.region_pairs import PairScorer, PairSettings, RegionBatch, RegionReader, batch_of_pairs
from ...multimodal.zero_shot import ImageTextModel
from ...shared import dist
from ...shared.errors import UserError
from ...shared.regions import Regions
from ...shared.sample import Sample
from ...shared.system import Batch, Objective
from ...shared.tokenizer import Tokenizer
from ...vision.transforms import Normalize, Preprocessing
from ..inference.pictures import clip_tokenizer
from .intervals import wilson
from .measure import Measure, Numbers
from .subject import Subject

CUTS = (1, 5, 10)
QUERIES_AT_A_TIME = 512
PAIRS_AT_A_TIME = 256


@dataclass(frozen=True)
class Retrieval:
    """Recall among all pairs of the data set. A sample may have several captions (a list in its json)."""

    max_captions: int | None = None
    """Use at most this many captions of each picture, the first ones; all by default."""

    name: ClassVar[str] = "retrieval"
    needs: ClassVar[tuple[str, ...]] = ("pictures or regions", "text")
    batch_size: ClassVar[int] = 64

    def __post_init__(self) -> None:
        """Check the range."""
        if self.max_captions is not None and self.max_captions < 1:
            raise UserError(f"max_captions is {self.max_captions}, expected at least 1")

    def measures(self, subject: Subject) -> Mapping[str, Measure]:
        """One pass."""
        model = subject.model
        if isinstance(model, PairScorer):
            return {"": JointRecall(model, subject.tokenizer, self.max_captions, subject.device)}
        if not isinstance(model, ImageTextModel):
            raise UserError(f"{subject.source} holds a {type(model).__name__}; retrieval compares pictures with texts: give a CLIP, "
                            "or a network that scores pairs (UNITER)")
        tokenizer = subject.tokenizer if subject.tokenizer_source is not None else clip_tokenizer(model, subject.source)
        subject.facts["tokenizer"] = tokenizer.fingerprint
        subject.picture_facts(model.preprocessing)
        return {"": Recall(model, tokenizer, self.max_captions)}


@dataclass(kw_only=True)
class _Captioned(Batch):
    images: Tensor
    """uint8 [B, 3, H, W]"""
    captions: list[list[str]] = field(default_factory=list)


class _PicturesWithCaptions(Objective[tuple[Tensor, list[str]]]):
    """Pictures as an evaluation sees them, with their captions."""

    def __init__(self, preprocessing: Preprocessing, limit: int | None) -> None:
        self.preprocessing, self.limit = preprocessing, limit

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterable[tuple[Tensor, list[str]]]:
        return [(self.preprocessing.pixels(sample.image()), captions(sample)[:self.limit])]

    def collate(self, examples: list[tuple[Tensor, list[str]]]) -> _Captioned:
        return _Captioned(counts={}, images=torch.stack([p for p, _ in examples]), captions=[c for _, c in examples])


class Recall(Measure):
    """Recall at 1, 5 and 10, and the median rank, both ways.

    A picture has found a caption where any of its own is among the k best. Scores that are equal to the right one's (equal captions;
    a network that makes everything alike) count half: the rank is the mean over the orders they could have.
    """

    method = "recall among all pairs"

    def __init__(self, model: ImageTextModel, tokenizer: Any, limit: int | None) -> None:
        self.model, self.tokenizer = model, tokenizer.fitting_model(model)
        self.objective = _PicturesWithCaptions(model.preprocessing, limit)
        self.device = model.logit_scale.device
        self.normalize = Normalize(model.preprocessing).to(self.device)
        self.length = min(model.config.text_config.max_position_embeddings, 77)
        self.images: list[Tensor] = []
        self.texts: list[Tensor] = []
        self.ids: list[int] = []
        self.owners: list[int] = []

    def add(self, batch: _Captioned) -> None:
        """Keep the vectors of a batch."""
        features = self.model.get_image_features(self.normalize(batch.images))
        self.images.append(F.normalize(features.float(), dim=-1).cpu())
        texts = [text for found in batch.captions for text in found]
        for start in range(0, len(texts), QUERIES_AT_A_TIME):
            tokens = self.tokenizer(texts[start:start + QUERIES_AT_A_TIME], max_length=self.length)
            found = self.model.get_text_features(tokens["input_ids"].to(self.device), tokens["attention_mask"].to(self.device))
            self.texts.append(F.normalize(found.float(), dim=-1).cpu())
        self.ids += batch.sample_ids
        self.owners += [index for index, found in zip(batch.sample_ids, batch.captions) for _ in found]

    def result(self) -> Numbers:
        """The numbers; each rank ranks a part of the queries."""
        images, ids = self._everyone(self.images, self.ids)
        texts, owners = self._everyone(self.texts, self.owners)
        owners = torch.searchsorted(ids, owners)  # sample numbers -> rows of `images`
        return recalls(ranks(images, texts, owners, self.device), ranks(texts, images, owners, self.device, own=True))

    def _everyone(self, parts: list[Tensor], numbers: list[int]) -> tuple[Tensor, Tensor]:
        """The vectors and sample numbers of all ranks, in the order of the samples."""
        width = self.model.config.projection_dim
        rows = dist.all_gather_with_grad(torch.cat(parts) if parts else torch.zeros(0, width))
        order = dist.all_gather_with_grad(torch.tensor(numbers, dtype=torch.long))
        places = order.argsort(stable=True)
        return rows[places], order[places]


def ranks(queries: Tensor, candidates: Tensor, owners: Tensor, device: torch.device, own: bool = False) -> Tensor:
    """The rank of the right candidate for each query, from 1, over all ranks' parts.

    Args:
        queries: [Q, D].
        candidates: [C, D].
        owners: int64, for each text the row of its picture; texts are the candidates, or with `own` the queries.
        device: where to compare.
        own: each query has one right candidate, number `owners[query]`; else candidate c is right for query `owners[c]`.

    Returns:
        fp32 [Q]; of several right candidates the best one counts, and only wrong ones stand before it.
    """
    there, owned = candidates.to(device), owners.to(device)
    starts = list(range(0, len(queries), QUERIES_AT_A_TIME))
    found = torch.zeros(len(queries))
    for start in starts[dist.rank()::dist.world_size()]:
        rows = torch.arange(start, min(start + QUERIES_AT_A_TIME, len(queries)), device=device)
        scores = queries[start:start + QUERIES_AT_A_TIME].to(device) @ there.T
        right = owned[rows][:, None] == torch.arange(len(there), device=device) if own else owned[None] == rows[:, None]
        found[start:start + QUERIES_AT_A_TIME] = place_of(scores, right).cpu()
    return dist.all_reduce_sum(found)


def place_of(scores: Tensor, right: Tensor) -> Tensor:
    """The rank of the best right candidate of each query, from 1: fp32 [Q], of scores [Q, C] and bool [Q, C]."""
    best = scores.masked_fill(~right, float("-inf")).amax(1, keepdim=True)
    others = scores.masked_fill(right, float("-inf"))
    return (1 + (others > best).sum(1) + (others == best).sum(1) / 2).float()


def recalls(captions_found: Tensor, pictures_found: Tensor) -> Numbers:
    """The numbers of an evaluation.

    Args:
        captions_found: for each picture, the rank of the best of its captions.
        pictures_found: for each caption, the rank of its picture.
    """
    found = Numbers({})
    for name, places in {"image_to_text": captions_found, "text_to_image": pictures_found}.items():
        for k in CUTS:
            hits = int((places <= k).sum())
            found.put(f"{name}_recall@{k}", hits / len(places), wilson(hits, len(places)))
        found.put(f"{name}_median_rank", float(places.double().quantile(0.5)))
    found.put("chance_recall@1", 1 / len(captions_found))
    found.details["counts"] = {"pictures": len(captions_found), "captions": len(pictures_found)}
    return found


# ------------------------------------------------------------------------------- networks that score pairs


@dataclass(kw_only=True)
class _RegionsWithCaptions(Batch):
    pictures: list[Regions] = field(default_factory=list)
    captions: list[list[np.ndarray]] = field(default_factory=list)


class _Regions(Objective[tuple[Regions, list[np.ndarray]]]):
    """Regions of pictures, with all captions as ids."""

    def __init__(self, reader: RegionReader, limit: int | None) -> None:
        self.reader, self.limit = reader, limit

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterable[tuple[Regions, list[np.ndarray]]]:
        return [(self.reader.regions(sample), [self.reader.framed(text) for text in captions(sample)[:self.limit]])]

    def collate(self, examples: list[tuple[Regions, list[np.ndarray]]]) -> _RegionsWithCaptions:
        return _RegionsWithCaptions(counts={}, pictures=[r for r, _ in examples], captions=[c for _, c in examples])


class JointRecall(Measure):
    """`Recall` of a network that reads a picture and a caption together: it is run on every picture with every caption.

    Each rank holds the pictures that it has read.
    """

    method = "recall among all pairs, each scored"

    def __init__(self, model: PairScorer, tokenizer: Tokenizer, limit: int | None, device: torch.device) -> None:
        settings = PairSettings(max_length=min(PairSettings.max_length, model.config.longest_input))
        self.model, self.device = model, device
        self.objective = _Regions(RegionReader(tokenizer, settings, model.config.visual_feat_dim, 0, training=False), limit)
        self.pictures: dict[int, Regions] = {}
        self.captions: dict[int, list[np.ndarray]] = {}

    def add(self, batch: _RegionsWithCaptions) -> None:
        """Keep a batch; what is measured needs all of them."""
        self.pictures |= zip(batch.sample_ids, batch.pictures, strict=True)
        self.captions |= zip(batch.sample_ids, batch.captions, strict=True)

    @torch.no_grad()
    def result(self) -> Numbers:
        """The numbers; each rank scores its own pictures with everyone's captions."""
        everyone = sorted((int(n), found) for part in dist.gather_json(
            [(n, [ids.tolist() for ids in found]) for n, found in self.captions.items()]) for n, found in part)
        rows = {n: row for row, (n, _) in enumerate(everyone)}
        texts = [np.array(ids) for _, found in everyone for ids in found]
        owners = torch.tensor([row for row, (_, found) in enumerate(everyone) for _ in found])
        scores = torch.zeros(len(rows), len(texts))
        for n, regions in self.pictures.items():
            for start in range(0, len(texts), PAIRS_AT_A_TIME):
                some = texts[start:start + PAIRS_AT_A_TIME]
                fields = batch_of_pairs(some, [regions] * len(some))
                scores[rows[n], start:start + len(some)] = self.model.score_pairs(RegionBatch(counts={}, **fields).to(self.device)).cpu()
        scores = dist.all_reduce_sum(scores)
        right = owners[None] == torch.arange(len(rows))[:, None]
        return recalls(place_of(scores, right), place_of(scores.T, right.T))
