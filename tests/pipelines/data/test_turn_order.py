"""Tasks that read different data sets: whose samples an update has, in which order, and what is told of it."""

from __future__ import annotations

import io
import itertools
import tarfile
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polymodal.pipelines.base.ramp import Ramp
from polymodal.pipelines.data.account import check_order, order_state, plan_lines
from polymodal.pipelines.data.dataset import DataSet
from polymodal.pipelines.data.index import build_index
from polymodal.pipelines.data.layout import BatchLayout
from polymodal.pipelines.data.order import CYCLE, Order, SourceOrder
from polymodal.pipelines.data.stream import Stream
from polymodal.pipelines.data.turns import TurnOrder
from polymodal.shared.errors import UserError
from polymodal.shared.system import Batch, Objective

SIZES = (50, 23, 31)
READS = [(0,), (0, 2), (1,), (0,), (0, 2)]
RAMPS = st.sampled_from([Ramp(8), Ramp(12), Ramp(16, 4, 100), Ramp(12, 2, 300), Ramp(8, 4, 7)])


def order(weights=(1.0, 1.0, 3.0), lanes=4, sizes=SIZES):
    return Order(tuple(SourceOrder((n,), 7, str(i), lanes, 16) for i, n in enumerate(sizes)), weights)


def positions(ramp, updates):
    return range(ramp.before(updates))


@settings(max_examples=40, deadline=None)
@given(ramp=RAMPS, cycle=st.lists(st.sampled_from([(0,), (1,), (2,), (0, 2), (0, 1, 2)]), min_size=1, max_size=7), lanes=st.integers(1, 9))
def test_updates_that_read_the_same_data_go_on_where_the_last_one_ended(ramp, cycle, lanes):
    """Beside a walk through all updates that counts as it goes."""
    made, plain = TurnOrder(order(lanes=lanes), cycle, ramp), order(lanes=lanes)
    parts = {chosen: Order(tuple(plain.sources[i] for i in chosen), tuple(plain.weights[i] for i in chosen)) for chosen in cycle}
    reached = Counter()
    for update in range(40):
        chosen = cycle[update % len(cycle)]
        for position in range(ramp.before(update), ramp.before(update + 1)):
            found = parts[chosen].locate(reached[chosen])
            assert made.locate(position) == found._replace(source=chosen[found.source])
            reached[chosen] += 1


@settings(max_examples=25, deadline=None)
@given(ramp=RAMPS, start=st.integers(0, 30))
def test_any_position_is_found_alone(ramp, start):
    made = TurnOrder(order(), READS, ramp)
    there = range(ramp.before(start), ramp.before(start + 3))
    assert [TurnOrder(order(), READS, ramp).locate(p) for p in there] == [made.locate(p) for p in there]


def test_shares_are_exact_and_every_data_set_has_whole_epochs():
    ramp, lanes = Ramp(8), 4
    made = TurnOrder(order(lanes=lanes), READS, ramp)
    updates = 5 * CYCLE  # two of five read a mixture of 1 : 3
    found = [made.locate(p) for p in positions(ramp, updates)]
    counts = Counter(ref.source for ref in found)
    mixed = 2 * CYCLE * 8
    assert counts[1] == CYCLE * 8 and counts[0] == 2 * CYCLE * 8 + mixed // 4 and counts[2] == 3 * mixed // 4
    for source, n in ((1, SIZES[1]), (2, SIZES[2])):
        own = [ref for ref in found if ref.source == source]
        assert sorted(ref.position for ref in own) == list(range(len(own)))
        assert sorted(ref.sample for ref in own if ref.epoch == 2) == list(range(n))


@settings(max_examples=25, deadline=None)
@given(ramp=RAMPS, begin=st.integers(0, 12))
def test_shards_that_come_are_told_before_they_are_read(ramp, begin):
    sizes, lanes = (40, 30, 20), 4
    shards = Order(tuple(SourceOrder((5,) * (n // 5), 7, str(i), lanes, 8) for i, n in enumerate(sizes)), (1.0, 1.0, 1.0))
    made = TurnOrder(shards, READS, ramp)
    start = ramp.before(begin)
    told = list(itertools.takewhile(lambda piece: piece[0] < start + 300, made.upcoming_shards(start, range(lanes))))
    places = [place for place, _, _ in told]
    assert places == sorted(places) and places[0] >= start
    first = {}
    for place, source, sample in told:
        first.setdefault((source, sample // 5), place)
    for position in range(start, start + 300):
        ref = made.locate(position)
        assert first[ref.source, ref.sample // 5] <= position


# ------------------------------------------------------------------------------------------------- the stream


class Of(Objective):
    """Reads data sets that have one field."""

    def __init__(self, field, partner=False):
        self.field, self.needs_partner = field, partner

    def reads(self, fields):
        return self.field in fields

    def example(self, sample, rng):
        assert self.field in sample.fields
        yield sample.index

    def collate(self, examples):
        return Batch(counts={"samples": len(examples)})


class Three(Of):
    turns = {"words": 2, "marks": 1}

    def __init__(self, **turns):
        super().__init__("")
        self.turns = turns or self.turns

    def by_turn(self):
        return {"words": Of("txt"), "marks": Of("cls", partner=True)}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Data sets of 20 samples with one field each."""
    root = tmp_path_factory.mktemp("sets")
    for name, field in {"a": "txt", "b": "txt", "c": "cls", "d": "png"}.items():
        (root / name).mkdir()
        with tarfile.open(root / name / "0.tar", "w") as tar:
            for n in range(20):
                member = tarfile.TarInfo(f"{n:02d}.{field}")
                member.size = 1
                tar.addfile(member, io.BytesIO(b"1"))
        build_index(root / name)
    return {path.name: DataSet.open(path) for path in root.iterdir()}


def stream(sets, names="abc", weights=(3.0, 1.0, 1.0), objective=None, layout=None):
    return Stream([(sets[name], weight) for name, weight in zip(names, weights)], objective or Three(), layout or BatchLayout(4), lanes=4,
                  window=8)


@pytest.mark.parametrize(("world", "micro"), [(1, None), (1, 2), (2, 2)])
def test_an_update_has_samples_for_its_task_alone_on_any_layout(sets, world, micro):
    whole = stream(sets)
    for update in (0, 1, 2, 3, 50):
        expected = set(whole[update].sample_ids)
        assert {whole.turns.task(update)} == {"marks" if update % 3 == 1 else "words"}
        assert all((i >= 40) == (update % 3 == 1) for i in expected), "the third data set begins with sample 40"
        found = []
        for rank in range(world):
            layout = BatchLayout(4, micro, rank, world)
            mine = stream(sets, layout=layout)
            for part in range(layout.parts(update)):
                found += mine[layout.number(update, part)].sample_ids
        assert sorted(found) == sorted(expected)


def test_partners_are_of_the_same_data_set(sets):
    made = stream(sets)
    (one,) = (found.sample for found in made.prepare([4]))  # the first sample of update 1
    assert one.index >= 40 and one.partner.index >= 40 and one.partner.index != one.index


def test_people_are_told_who_reads_what(sets):
    lines = plan_lines(stream(sets))
    shares = [line.rsplit("shards, ")[1] for line in lines if line.startswith("data: ")]
    assert shares == ["50.0% of the stream, for words", "16.7% of the stream, for words", "33.3% of the stream, for marks"]


def test_other_shares_are_another_order(sets):
    saved = order_state(stream(sets))
    assert saved["reads"] == {"words": [750, 250, 0], "marks": [0, 0, 1000]} and "quota" not in saved["data"][0]
    check_order(saved, order_state(stream(sets)))
    check_order(saved, order_state(stream(sets, weights=(3.0, 1.0, 9.0))))  # alone among those that its task reads
    with pytest.raises(UserError, match=r"words read 75\.0% of data set 0, 25\.0% of data set 1; marks read 100\.0% of data set 2"):
        check_order(saved, order_state(stream(sets, weights=(1.0, 1.0, 1.0))))
    plain = Stream([(sets["a"], 1.0), (sets["b"], 1.0)], Of("txt"), BatchLayout(4), lanes=4, window=8)
    assert "reads" not in order_state(plain) and order_state(plain)["data"][0]["quota"] == 500 and not plain.divided


@pytest.mark.parametrize(("names", "weights", "message"), [
    ("ab", (1.0, 1.0), r"the task marks can read none of the data sets .*: give it one of its own, or leave it out with objective.marks=0"),
    ("abcd", (1.0,) * 4, r"no task reads .*d \(png\): leave it out"),
    ("abc", (5000.0, 1.0, 1.0), "a weight of the mixture is below a thousandth"),
])
def test_data_that_does_not_fit_the_tasks_is_refused(sets, names, weights, message):
    with pytest.raises(UserError, match=message):
        stream(sets, names, weights)
    assert stream(sets, "abc", (1.0, 1.0, 5000.0))  # a task has its share of the updates, whatever its data sets weigh
