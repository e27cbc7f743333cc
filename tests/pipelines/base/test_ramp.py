"""How many samples each update has: against counting them one update after another."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polymodal.pipelines.base.ramp import Level, Ramp
from polymodal.pipelines.data.layout import BatchLayout
from polymodal.pipelines.run.recipe import DataSettings
from polymodal.shared.errors import UserError


def counted(ramp, updates):
    """(samples before, samples) of each update, by the formula of the module."""
    steps, read, found = ramp.full // ramp.start - 1, 0, []
    for _ in range(updates):
        found.append((read, ramp.start * (1 + min(steps, read * steps // ramp.samples))))
        read += found[-1][1]
    return found


ramps = st.builds(lambda start, steps, samples: Ramp(start * steps, start, samples), st.integers(1, 9), st.integers(1, 12),
                  st.integers(1, 900))


@settings(max_examples=200, deadline=None)
@given(ramps)
def test_every_update_is_as_large_as_counting_says(ramp):
    found = counted(ramp, ramp.levels[-1].update + 3)
    assert [(ramp.before(u), ramp.batch(u)) for u in range(len(found))] == found
    for update, (first, size) in enumerate(found):
        assert {ramp.update_at(first), ramp.update_at(first + size - 1)} == {update}
    sizes = [level.batch for level in ramp.levels]
    assert sizes[0] == ramp.start and sizes[-1] == ramp.full and sizes == sorted(set(sizes)) and not any(s % ramp.start for s in sizes)
    last = ramp.levels[-1]
    assert last.sample >= ramp.samples or len(ramp.levels) == 1, "full only behind them"
    assert last.sample - ramp.samples < ramp.full, "and with the first update that is"
    assert ramp.batch(10**9) == ramp.full and ramp.before(last.update + 10**9) == last.sample + ramp.full * 10**9
    assert ramp.before(-2) == -2 * ramp.start


def test_it_grows_linearly():
    """Megatron's words for it would be 16 16 1600, to 64: a quarter of the samples more each."""
    ramp = Ramp(64, 16, 1600)
    assert ramp.levels == (Level(0, 0, 16), Level(34, 544, 32), Level(51, 1088, 48), Level(62, 1616, 64))


def test_a_batch_that_does_not_grow():
    for ramp in (Ramp(12), Ramp(12, 12, 100)):
        assert ramp.levels == (Level(0, 0, 12),) and ramp.batch(7) == 12 and ramp.before(7) == 84 and ramp.update_at(83) == 6


@pytest.mark.parametrize(("full", "start", "samples", "message"), [
    (100, 16, 1000, r"ramp_start is 16, .* data.global_batch 100, which is no multiple of it: use 10 or 20"),
    (100, 0, 1000, r"ramp_start is 0, .*use 1 or 2"), (100, 200, 1000, "ramp_start is 200, .*use 50 or 100"),
    (100, 10, 0, r"ramp_samples is 0: say over how many samples the batch grows from 10 to 100"),
    (100, 10, -5, "ramp_samples is -5"), (100, None, 50, r"ramp_samples is 50 without data.ramp_start"),
])
def test_what_cannot_grow_is_refused_with_what_can(full, start, samples, message):
    with pytest.raises(UserError, match=message):
        Ramp(full, start, samples)
    with pytest.raises(UserError, match=message):
        DataSettings(global_batch=full, ramp_start=start, ramp_samples=samples)


@st.composite
def layouts(draw):
    """(ramp, micro-batch, ranks) that fit together."""
    world = draw(st.integers(1, 4))
    start, steps = world * draw(st.integers(1, 5)), draw(st.integers(1, 8))
    share = start * steps // world
    micro = draw(st.none() | st.sampled_from([n for n in range(1, share + 1) if share % n == 0]))
    return Ramp(start * steps, start, draw(st.integers(1, 400))), micro, world


@settings(max_examples=150, deadline=None)
@given(layouts())
def test_ranks_share_every_update_in_equally_many_passes(given):
    ramp, micro, world = given
    ranks = [BatchLayout(ramp.full, micro, rank, world, ramp=ramp) for rank in range(world)]
    alone = BatchLayout(ramp.full, micro, replays=world, ramp=ramp)
    number = itertools.count()
    for update in range(ramp.levels[-1].update + 2):
        parts = ranks[0].parts(update)
        assert parts == -(-ramp.batch(update) // world // (micro or ramp.full)) and alone.parts(update) == parts * world
        read = {(rank, part): ranks[rank].positions(update, part) for rank in range(world) for part in range(parts)}
        assert sorted(itertools.chain(*read.values())) == list(range(ramp.before(update), ramp.before(update + 1)))
        assert max(map(len, read.values())) <= (micro or ramp.full) and max(map(len, read.values())) - min(map(len, read.values())) <= 1
        for (rank, part), positions in read.items():
            assert {ranks[0].place(position) for position in positions} == {(update, rank, part)}
        assert [ranks[0].number(update, part) for part in range(parts)] == list(itertools.islice(number, parts))
        assert all(ranks[0].update_and_part(ranks[0].number(update, part)) == (update, part) for part in range(parts))
        assert {alone.rank_and_part(update, part): alone.positions(update, part) for part in range(parts * world)} == read


@pytest.mark.parametrize(("world", "message"), [
    (64, "data.ramp_start 16 is not a multiple of the 64 ranks, which share every batch: use 64, or 16 ranks"),
    (12, "data.ramp_start 16 is not a multiple of the 12 ranks, which share every batch: use 24, or 8 ranks"),
])
def test_ranks_that_cannot_share_the_first_batch(world, message):
    with pytest.raises(UserError, match=message):
        BatchLayout(192, None, 0, world, ramp=Ramp(192, 16, 1000))
