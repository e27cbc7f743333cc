import numpy as np
import pytest
from polymodal.shared.corrupt import choose_places, prediction_count, replace_places

MASK, VOCAB = 3, 1000


def masked(length: int, seed: int, max_predictions: int | None = None, words: int | np.ndarray = VOCAB):
    ids = np.random.default_rng(1).integers(10, VOCAB, size=length)
    maskable = np.ones(length, bool)
    maskable[[0, -1]] = False
    rng = np.random.default_rng(seed)
    places = choose_places(maskable, prediction_count(length, 0.15, max_predictions), rng)
    return ids, replace_places(ids, places, rng, mask_id=MASK, words=words)


@pytest.mark.parametrize(("length", "limit", "expected"), [
    (3, None, 1), (10, None, 2), (30, None, 4), (50, None, 8), (128, 20, 19), (512, 80, 77), (512, 20, 20),
])
def test_the_count_rounds_as_the_reference(length, limit, expected):
    assert prediction_count(length, 0.15, limit) == expected
    assert len(masked(length, 0, max_predictions=limit)[1].positions) == min(expected, length - 2)


def test_positions_are_distinct_maskable_and_sorted_and_the_rest_is_untouched():
    for seed in range(50):
        ids, out = masked(60, seed)
        assert (np.diff(out.positions) > 0).all()
        assert out.positions.min() > 0 and out.positions.max() < 59
        assert (out.targets == ids[out.positions]).all()
        rest = np.setdiff1d(np.arange(60), out.positions)
        assert (out.ids[rest] == ids[rest]).all()


def test_eighty_ten_ten_and_uniform_places():
    kinds = np.zeros(3)
    places = np.zeros(102)
    rounds = 3000
    drawn = []
    for seed in range(rounds):
        _, out = masked(102, seed)
        now = out.ids[out.positions]
        is_mask, same = now == MASK, now == out.targets
        kinds += [is_mask.sum(), (~is_mask & ~same).sum(), same.sum()]
        drawn.extend(now[~is_mask & ~same])
        places[out.positions] += 1
    n = kinds.sum()
    assert n == rounds * 15
    for got, expected in zip(kinds / n, (0.8, 0.1, 0.1)):
        assert abs(got - expected) < 4 * np.sqrt(expected * (1 - expected) / n)
    assert places[[0, -1]].sum() == 0
    p = 15 / 100
    assert (np.abs(places[1:-1] / rounds - p) < 5 * np.sqrt(p * (1 - p) / rounds)).all()
    # random ids come from the whole vocabulary, special ids included
    counts = np.histogram(drawn, bins=10, range=(0, VOCAB))[0] / len(drawn)
    assert (np.abs(counts - 0.1) < 5 * np.sqrt(0.09 / len(drawn))).all()


def test_random_ids_come_from_the_words_that_are_given():
    words = np.array([11, 500, 501])
    drawn = set()
    for seed in range(60):
        _, out = masked(102, seed, words=words)
        now = out.ids[out.positions]
        drawn |= set(now[(now != MASK) & (now != out.targets)].tolist())
    assert drawn == set(words.tolist())


def test_fewer_places_than_are_wanted_are_all_taken():
    assert choose_places(np.array([False, True, True, False]), 3, np.random.default_rng(0)).tolist() == [1, 2]


def test_the_same_generator_state_gives_the_same_noise():
    first, second, other = masked(80, 7)[1], masked(80, 7)[1], masked(80, 8)[1]
    assert (first.ids == second.ids).all() and not np.array_equal(first.ids, other.ids)
