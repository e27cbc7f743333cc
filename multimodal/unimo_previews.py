"""What UNIMO makes of held-out batches, for people."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared.loss import at_least_fp32
from ..shared.packed import starts
from ..shared.system import Preview
from ..shared.tokenizer import Tokenizer
from .unimo_data import UnimoBatch


def shown_candidates(batch: UnimoBatch, scores: Tensor, tokenizer: Tokenizer, limit: int) -> list[Preview]:
    """The texts that the first examples compare, with their scores [J + A]."""
    ids = batch.input_ids[0].split(list(batch.lengths))
    texts = [number for number, length in enumerate(batch.lengths) if length]
    row_of = dict(zip(starts([batch.lengths[n] for n in texts]), texts))
    places = torch.cat([batch.together, batch.apart])[:, 0].tolist()
    rows: list[list[tuple[str, str]]] = [[] for _ in batch.own]
    for j, (place, example, positive) in enumerate(zip(places, batch.owners.tolist(), batch.positive.tolist())):
        how = "together" if j < len(batch.together) else "apart"
        text = tokenizer.show(ids[row_of[place]].tolist())
        rows[example].append((f"{'fits' if positive else 'does not fit'} ({how})", f"{float(scores[j]):.2f} {text}"))
    return [Preview(tuple(mine)) for mine in rows[:limit]]


def shown_rows(batch: UnimoBatch, told: Tensor, features: Tensor, tokenizer: Tokenizer, limit: int) -> list[Preview]:
    """The first rows, with the words that are told [M] and the truth in brackets, and how far the told features [K, D] are off."""
    show, ids, previews = tokenizer.show, batch.input_ids[0].split(list(batch.lengths)), list[Preview]()
    features = at_least_fp32(features)
    errors = (features - batch.region_features.to(features.dtype)).square().mean(-1).tolist()
    words, regions = (list(zip(places.tolist(), values)) for places, values in (
        (batch.target_rows, zip(told.tolist(), batch.targets.tolist())), (batch.region_rows, errors)))
    for number, (begin, first) in list(enumerate(zip(starts(batch.lengths), starts(batch.counts_of_regions))))[:limit]:
        length, count = batch.lengths[number], batch.counts_of_regions[number]
        rows = [("text", show(ids[number].tolist()))] if length else []
        mine = [f"{show([guess])} ({show([true])})" for at, (guess, true) in words if begin <= at < begin + length]
        rows += [("told (truth)", ", ".join(mine))] if mine else []
        hidden = [f"{at - first}: {error:.3f}" for at, error in regions if first <= at < first + count]
        rows += [("masked regions: squared error", ", ".join(hidden))] if hidden else []
        previews.append(Preview(tuple(rows)))
    return previews
