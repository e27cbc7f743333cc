import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polymodal.pipelines.data.order import CYCLE, Draws, Order, SourceOrder, _sorted_by, generator, permutation, quotas, random_bits

FROZEN = [0, 7, 13, 18, 2, 8, 11, 17, 1, 9, 12, 16, 5, 6, 14, 20, 4, 10, 15, 19, 3]
FROZEN_MIXTURE = [(1, 2), (1, 3), (1, 7), (0, 18), (0, 0), (0, 7), (0, 13), (1, 9), (0, 2), (0, 8), (0, 11), (1, 8)]
FROZEN_BITS = [14246809587552184695, 18062069750495150057]
SHARDS = st.lists(st.integers(1, 40), min_size=1, max_size=12).map(tuple)


@settings(max_examples=60, deadline=None)
@given(shards=SHARDS, seed=st.integers(0, 9), lanes=st.integers(1, 70), window=st.integers(1, 200), epoch=st.integers(0, 5))
def test_each_epoch_holds_every_sample_exactly_once(shards, seed, lanes, window, epoch):
    order = SourceOrder(shards, seed, "a", lanes, window)
    n = sum(shards)
    found = [order.locate(p) for p in range(epoch * n, (epoch + 1) * n)]
    assert sorted(s for _, s in found) == list(range(n))
    assert {e for e, _ in found} == {epoch}


@settings(max_examples=25, deadline=None)
@given(shards=SHARDS, lanes=st.integers(1, 70), window=st.integers(1, 90), data=st.data())
def test_random_access_equals_sequential_reading(shards, lanes, window, data):
    n = sum(shards)
    sequential = [SourceOrder(shards, 3, "a", lanes, window)]
    expected = [sequential[0].locate(p) for p in range(3 * n)]
    for position in data.draw(st.lists(st.integers(0, 3 * n - 1), max_size=20)):
        assert SourceOrder(shards, 3, "a", lanes, window).locate(position) == expected[position]


@settings(max_examples=60, deadline=None)
@given(shards=SHARDS, lanes=st.integers(1, 70), window=st.integers(1, 90), epoch=st.integers(0, 4))
def test_a_sequential_order_reads_every_sample_once_and_each_lane_without_a_gap(shards, lanes, window, epoch):
    order = SourceOrder(shards, 0, "a", lanes, window, sequential=True)
    n = sum(shards)
    positions = range(epoch * n, (epoch + 1) * n)
    assert sorted(order.locate(p)[1] for p in positions) == list(range(n))
    for lane in range(lanes):
        read = [order.locate(p)[1] for p in positions if p % lanes == lane]
        assert read == list(range(read[0], read[0] + len(read))) if read else n < lanes
    begins = [order.locate(p)[1] for p in positions][: min(lanes, n)]
    assert len(set(begins)) == len(begins)  # no two lanes read the same piece of text


def test_a_sequential_order_depends_on_no_seed_and_no_window():
    a, b = SourceOrder((7, 5, 9), 0, "a", 4, 3, True), SourceOrder((7, 5, 9), 1, "b", 4, 90, True)
    assert [a.locate(p) for p in range(100)] == [b.locate(p) for p in range(100)]


def test_lanes_keep_to_their_shards_over_epochs_so_ranks_do_too():
    shards, lanes = (100,) * 32, 8
    order = SourceOrder(shards, 0, "a", lanes, 50)
    n = order.samples
    for world in (2, 4, 8):
        read = [{order.locate(p)[1] // 100 for p in range(e * n + (-e * n) % world, (e + 1) * n, world)} for e in range(3)]
        assert read[0] == read[1] == read[2] and len(read[0]) == 32 // world


def test_lane_borders_move_by_less_than_the_number_of_lanes():
    order = SourceOrder((17, 90, 50, 46), 0, "a", 24, 8)
    for lane in range(24):
        begins = [order._lane(e, lane)[1] for e in range(40)]
        assert max(begins) - min(begins) < 24


def test_order_depends_on_seed_and_differs_between_epochs():
    a, b = SourceOrder((50, 50), 0, "a", 4, 20), SourceOrder((50, 50), 1, "a", 4, 20)
    first = [a.locate(p)[1] for p in range(100)]
    assert first != [b.locate(p)[1] for p in range(100)]
    assert first != [a.locate(p)[1] for p in range(100, 200)]


def test_samples_are_mixed_over_the_whole_lane_when_the_window_is_large():
    order = SourceOrder((1000,), 0, "a", 1, 10**9)
    drawn = np.array([order.locate(p)[1] for p in range(1000)])
    assert abs(np.corrcoef(drawn, np.arange(1000))[0, 1]) < 0.1


def test_order_is_frozen():
    """A change of these numbers breaks the resume of every existing run."""
    order = SourceOrder((7, 5, 9), 42, "a", 4, 3)
    assert [order.locate(p)[1] for p in range(21)] == FROZEN
    mixture = Order((order, SourceOrder((4, 6), 42, "b", 4, 3)), (0.7, 0.3))
    assert [(mixture.locate(p).source, mixture.locate(p).sample) for p in range(12)] == FROZEN_MIXTURE
    assert generator(1, 2, 3, "example").bit_generator.random_raw(2).tolist() == FROZEN_BITS


def test_mixture_shares_are_exact_and_each_source_has_whole_epochs():
    lanes = 8
    sources = tuple(SourceOrder(s, 5, n, lanes, 30) for s, n in (((300, 200), "a"), ((77, 60), "b"), ((31,), "c")))
    order = Order(sources, (0.5, 0.3, 0.2))
    places = [order.locate(p) for p in range(CYCLE * lanes)]
    assert [sum(p.source == s for p in places) for s in range(3)] == [c * lanes for c in (500, 300, 200)]
    seen = [(p.source, p.epoch, p.sample) for p in places]
    assert len(set(seen)) == len(seen)
    for s, source in enumerate(sources):
        got = sorted(p.position for p in places if p.source == s)
        assert got == list(range(len(got)))  # so every epoch is complete before the next is
        assert sorted(p.sample for p in places if p.source == s and p.epoch == 0) == list(range(source.samples))


@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=8))
def test_quotas_add_up(weights):
    counts = quotas(weights)
    assert sum(counts) == CYCLE
    assert all(abs(c - w / sum(weights) * CYCLE) < 1 for c, w in zip(counts, weights, strict=True))


def test_generators_are_independent_by_key():
    draws = {tuple(generator(*key).integers(0, 2**62, 2)) for key in
             [(0, 0, 0, "example"), (1, 0, 0, "example"), (0, 1, 0, "example"), (0, 0, 1, "example"), (0, 0, 0, "partner")]}
    assert len(draws) == 5


def test_one_generator_set_anew_draws_what_a_new_one_draws():
    draws = Draws(7, "example")
    for epoch, index in [(0, 0), (0, 1), (3, 123_456_789_012), (0, 0)]:
        expected, got = generator(7, epoch, index, "example"), draws.of(epoch, index)
        for one in (expected, got):  # an odd number of 32-bit draws leaves half a word behind, which the next sample must not see
            one.integers(0, 9, 3, dtype=np.uint32)
        assert got.random(9).tolist() == expected.random(9).tolist()
        assert got.permutation(20).tolist() == expected.permutation(20).tolist()
        got.integers(0, 9, 1, dtype=np.uint32)
    assert draws.of(1, 5).random() == generator(7, 1, 5, "example").random() != Draws(8, "example").of(1, 5).random()


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_permutation_is_a_permutation(count):
    assert sorted(permutation(count, "x", 1)) == list(range(count))


@pytest.mark.parametrize("shift", [0, 16, 24, 40, 60, 63])
@pytest.mark.parametrize("high", [True, False])
def test_counting_sorts_as_comparing_does(shift, high):
    """Also where the highest 48 bits leave the order open, and where numbers are equal."""
    bits = random_bits(20_000, "a test", shift)
    bits = bits >> np.uint64(shift) << np.uint64(shift) if high else bits >> np.uint64(shift)
    assert np.array_equal(_sorted_by(bits), np.argsort(bits, kind="stable"))
