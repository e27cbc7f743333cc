"""Span corruption against the numbers of the T5 paper and against every outcome it may have."""

import itertools
from collections import Counter
from math import comb

import numpy as np
import pytest
from polymodal.shared.corrupt import cut_spans, noise_spans, random_composition, span_count, span_lengths


def runs(noise: np.ndarray) -> tuple[list[int], list[int]]:
    """Lengths of the kept and of the corrupted stretches."""
    stretches = [(value, len(list(group))) for value, group in itertools.groupby(noise.tolist())]
    return [n for v, n in stretches if not v], [n for v, n in stretches if v]


def chi_square(counts: Counter, expected: dict, total: int) -> float:
    assert set(counts) <= set(expected)
    return sum((counts[k] - total * p) ** 2 / (total * p) for k, p in expected.items())


@pytest.mark.parametrize(("max_length", "expected"), [(512, (568, 114)), (1024, (1137, 229)), (256, (284, 58)), (128, (141, 29))])
def test_lengths_are_those_of_the_reference(max_length, expected):
    """(568, 114) for 512 is the paper's setting; the others are what its function gives."""
    assert span_lengths(max_length) == expected


def test_no_longer_text_fits():
    for max_length in range(16, 700):
        raw, target = span_lengths(max_length)
        noisy = [round(n * 0.15) for n in (raw, raw + 1)]
        inputs = [n - k + round(k / 3) + 1 for n, k in zip((raw, raw + 1), noisy)]
        assert inputs[0] <= max_length < inputs[1]
        assert target == noisy[0] + round(noisy[0] / 3) + 1


@pytest.mark.parametrize(("length", "expected"), [
    (2, (1, 1)), (3, (1, 1)), (10, (2, 1)), (190, (29, 10)), (568, (85, 28)), (1000, (150, 50)),
])
def test_the_budget_is_exact(length, expected):
    """190 is where single precision, which the reference computes in, rounds up."""
    assert span_count(length, 0.15, 3.0) == expected
    for seed in range(30):
        kept, corrupted = runs(noise_spans(length, np.random.default_rng(seed)))
        assert (sum(corrupted), len(corrupted)) == expected
        assert len(kept) == len(corrupted) and sum(kept) == length - expected[0]


def test_fifteen_percent_in_spans_of_three_on_average():
    rng = np.random.default_rng(0)
    masks = np.stack([noise_spans(568, rng) for _ in range(2000)])
    assert masks.mean() == pytest.approx(0.15, abs=0.0005)
    spans = np.concatenate([runs(m)[1] for m in masks])
    assert spans.mean() == pytest.approx(3.0, abs=0.05)
    assert not masks[:, 0].any() and masks[:, -1].all()
    inner = masks[:, 20:-20].mean(axis=0)  # away from the ends every place is as likely: 2000 draws of 0.15, 5 deviations
    assert abs(inner - 0.15).max() < 5 * np.sqrt(0.15 * 0.85 / 2000)


def test_span_lengths_follow_the_law_of_random_compositions():
    """P(k) = C(84 - k, 26) / C(84, 27) for a part of a uniform composition of 85 into 28."""
    rng = np.random.default_rng(1)
    rounds = 1500
    firsts = Counter(min(int(runs(noise_spans(568, rng))[1][0]), 10) for _ in range(rounds))
    law = {k: comb(84 - k, 26) / comb(84, 27) for k in range(1, 59)}
    assert sum(law.values()) == pytest.approx(1.0)
    law = {k: p for k, p in law.items() if k < 10} | {10: sum(p for k, p in law.items() if k >= 10)}
    assert chi_square(firsts, law, rounds) < 27.9  # 9 degrees of freedom, p = 0.001


def test_every_outcome_is_as_likely():
    """Length 12 at density 0.4 and mean 2: 5 corrupted in 2 spans, C(4,1) * C(6,1) outcomes."""
    rng = np.random.default_rng(2)
    counts = Counter(tuple(noise_spans(12, rng, noise_density=0.4, mean_span_length=2.0).tolist()) for _ in range(4800))
    assert len(counts) == 24
    assert chi_square(counts, dict.fromkeys(counts, 1 / 24), 4800) < 49.7  # 23 degrees of freedom, p = 0.001


def test_compositions_are_positive_and_complete():
    rng = np.random.default_rng(3)
    seen = {tuple(random_composition(6, 3, rng).tolist()) for _ in range(500)}
    assert seen == {c for c in itertools.product(range(1, 5), repeat=3) if sum(c) == 6}
    assert random_composition(4, 4, rng).tolist() == [1, 1, 1, 1]
    assert random_composition(4, 1, rng).tolist() == [4]


def test_a_dense_corruption_never_runs_out_of_kept_tokens():
    for length in range(2, 40):
        noise = noise_spans(length, np.random.default_rng(length), noise_density=0.9, mean_span_length=1.0)
        assert 0 < noise.sum() < length and not noise[0] and noise[-1]


def test_each_stretch_becomes_one_sentinel_of_the_other_side():
    ids = np.array([10, 11, 12, 13, 14, 15, 16, 17, 18])
    noise = np.array([0, 0, 1, 1, 0, 1, 0, 0, 1], dtype=bool)
    text, target = cut_spans(ids, noise, np.array([99, 98, 97, 96]))
    assert text.tolist() == [10, 11, 99, 14, 98, 16, 17, 97]
    assert target.tolist() == [99, 12, 13, 98, 15, 97, 18]
    assert ids.tolist() == list(range(10, 19)), "the original is untouched"
