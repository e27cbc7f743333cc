"""Noise functions: what pretraining objectives do to their inputs.

Each takes a numpy generator and works on one example, so that the stream can key the draws by sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Masked:
    """A corrupted sequence and what must be predicted.

    `ids` int64 [S] is the input; `positions` int64 [M], ascending, are the places to predict and
    `targets` int64 [M] the original ids there.
    """

    ids: np.ndarray
    positions: np.ndarray
    targets: np.ndarray


def prediction_count(length: int, mask_prob: float, max_predictions: int | None) -> int:
    """How many places BERT predicts in a sequence of `length` ids, [CLS] and [SEP] counted.

    `round` rounds halves to even, as the reference's Python does: 0.15 of 10 is 2, of 30 is 4.
    """
    wanted = max(1, round(length * mask_prob))
    return wanted if max_predictions is None else min(max_predictions, wanted)


def mask_tokens(
    ids: np.ndarray,
    maskable: np.ndarray,
    rng: np.random.Generator,
    *,
    mask_id: int,
    vocab_size: int,
    mask_prob: float = 0.15,
    max_predictions: int | None = None,
    replaced_by_mask: float = 0.8,
    replaced_at_random: float = 0.1,
) -> Masked:
    """BERT's masking, as google-research/bert does it.

    Places are drawn without replacement among the maskable ones. Of the drawn places 80% become
    [MASK], 10% a random id of the whole vocabulary (the original and special ids are possible) and 10%
    stay; all are predicted.

    Args:
        ids: int64 [S], special tokens included: their number enters the 15%.
        maskable: bool [S], False at [CLS] and [SEP].
        rng: the sample's generator.
        mask_id: id of [MASK].
        vocab_size: number of ids to draw replacements from.
        mask_prob: fraction of the sequence that is predicted.
        max_predictions: at most so many places (20 at length 128, 80 at 512 in the paper); None for no limit.
        replaced_by_mask: fraction of the drawn places that become [MASK].
        replaced_at_random: fraction of the drawn places that become a random id; the rest stays.
    """
    candidates = np.flatnonzero(maskable)
    count = min(len(candidates), prediction_count(len(ids), mask_prob, max_predictions))
    positions = np.sort(candidates[rng.permutation(len(candidates))[:count]])
    targets = ids[positions]
    kind = rng.random(count)
    random_ids = rng.integers(vocab_size, size=count)
    noisy = ids.copy()
    drawn = np.where(kind < replaced_by_mask + replaced_at_random, random_ids, targets)
    noisy[positions] = np.where(kind < replaced_by_mask, mask_id, drawn)
    return Masked(noisy, positions, targets)


def truncate_pair(
    a: np.ndarray, b: np.ndarray, max_length: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Shorten the longer of two segments, id by id, at a random end each time, until both fit.

    At equal lengths the second one is shortened. The result is the middle of each segment.
    """
    start, stop = [0, 0], [len(a), len(b)]
    for _ in range(max(0, len(a) + len(b) - max_length)):
        which = 0 if stop[0] - start[0] > stop[1] - start[1] else 1
        if rng.random() < 0.5:
            start[which] += 1
        else:
            stop[which] -= 1
    return a[start[0]:stop[0]], b[start[1]:stop[1]]
