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


def choose_places(maskable: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of the maskable places, or all where there are fewer, drawn without replacement: int64 [M], ascending.

    Args:
        maskable: bool [S], False at special tokens.
        count: how many, such as `prediction_count`.
        rng: the sample's generator.
    """
    candidates = np.flatnonzero(maskable)
    return np.sort(candidates[rng.permutation(len(candidates))[:min(len(candidates), count)]])


def replace_places(
    ids: np.ndarray,
    positions: np.ndarray,
    rng: np.random.Generator,
    *,
    mask_id: int,
    words: int | np.ndarray,
    replaced_by_mask: float = 0.8,
    replaced_at_random: float = 0.1,
    units: np.ndarray | None = None,
) -> Masked:
    """Corrupt the chosen places, each on its own, as google-research/bert does it: 80% become [MASK], 10% a random id, 10% stay.

    All of them are predicted. A random id may be the original one.

    Args:
        ids: int64 [S].
        positions: int64 [M], ascending.
        rng: the sample's generator.
        mask_id: id of [MASK].
        words: the ids to draw random ones from, int64, or how many ids there are (BERT's whole vocabulary, special ids included).
        replaced_by_mask: fraction of the places that become [MASK].
        replaced_at_random: fraction of the places that become a random id; the rest stays.
        units: int64 [M], from 0, the unit that a place belongs to: of a unit, all places become [MASK], a random id each, or stay.
    """
    targets, count = ids[positions], len(positions)
    kind = rng.random(count) if units is None else rng.random(units.max(initial=-1) + 1)[units]
    drawn = rng.integers(words if isinstance(words, int) else len(words), size=count)
    random_ids = drawn if isinstance(words, int) else words[drawn]
    noisy = ids.copy()
    changed = np.where(kind < replaced_by_mask + replaced_at_random, random_ids, targets)
    noisy[positions] = np.where(kind < replaced_by_mask, mask_id, changed)
    return Masked(noisy, positions, targets)


def random_composition(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """`total` as an ordered sum of `parts` positive integers, int64 [parts], uniformly among all such sums."""
    cuts = np.sort(rng.permutation(total - 1)[:parts - 1]) + 1
    return np.diff(cuts, prepend=0, append=total)


def span_count(length: int, noise_density: float, mean_span_length: float) -> tuple[int, int]:
    """How many of `length` ids T5 corrupts, and in how many spans; at least one of each.

    The product is taken in single precision, as the reference's TensorFlow does: of 190 ids it makes 29, not 28.
    """
    noisy = min(max(round(float(np.float32(length) * np.float32(noise_density))), 1), length - 1)
    return noisy, min(max(round(noisy / mean_span_length), 1), length - noisy)


def noise_spans(length: int, rng: np.random.Generator, *, noise_density: float = 0.15, mean_span_length: float = 3.0) -> np.ndarray:
    """Which of `length` >= 2 ids T5 corrupts (`random_spans_noise_mask`), bool [length].

    The numbers of corrupted ids and of spans are exact; the lengths of the spans, and of the stretches
    between them, are random compositions. Kept and corrupted stretches take turns and a kept one comes
    first: the first id is never corrupted, the last one always.
    """
    noisy, spans = span_count(length, noise_density, mean_span_length)
    corrupted = random_composition(noisy, spans, rng)
    kept = random_composition(length - noisy, spans, rng)
    return np.repeat(np.tile([False, True], spans), np.stack([kept, corrupted], axis=1).reshape(-1))


def cut_spans(ids: np.ndarray, noise: np.ndarray, sentinels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """T5's input and target: each stretch that the other side keeps is one sentinel on this side.

    Args:
        ids: int64 [S].
        noise: bool [S], which ids are corrupted.
        sentinels: int64, in the order of use; at least one for each span.

    Returns:
        The ids without the corrupted spans, and the corrupted spans alone (no end-of-text token on either).
    """
    return _with_sentinels(ids, noise, sentinels), _with_sentinels(ids, ~noise, sentinels)


def _with_sentinels(ids: np.ndarray, hidden: np.ndarray, sentinels: np.ndarray) -> np.ndarray:
    first = hidden & ~np.concatenate([[False], hidden[:-1]])
    out = ids.copy()
    out[first] = sentinels[:first.sum()]
    return out[first | ~hidden]


def span_lengths(max_length: int, noise_density: float = 0.15, mean_span_length: float = 3.0) -> tuple[int, int]:
    """How long T5's texts may be so that their corrupted form fits (`compute_input_and_target_lengths`).

    Args:
        max_length: of the input, its sentinels and its end-of-text token counted.
        noise_density: fraction of the ids that is corrupted.
        mean_span_length: corrupted ids in a span, on average.

    Returns:
        Ids of a text before corruption, and of its target with sentinels and end-of-text token: (568, 114) for 512.
    """

    def lengths(raw: int) -> tuple[int, int]:
        noisy = round(raw * noise_density)
        spans = round(noisy / mean_span_length)
        return raw - noisy + spans + 1, noisy + spans + 1

    raw = max_length - 1
    while lengths(raw + 1)[0] <= max_length:
        raw += 1
    target = lengths(raw)[1]
    if noise_density == 0.5 and target > max_length:  # the reference's adjustment: keep both at the round number
        return raw - 1, target - 1
    return raw, target
