import itertools
import pickle
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from polymodal.pipelines.data.account import check_order, describe_update, order_state, plan_lines
from polymodal.pipelines.data.dataset import DataSet
from polymodal.pipelines.data.held_out import chosen_samples, evaluation_batches, even_batches, lane_batches, shared_batches
from polymodal.pipelines.data.layout import BatchLayout
from polymodal.pipelines.data.order import SourceOrder
from polymodal.pipelines.data.stream import Stream
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings
from polymodal.shared.errors import BadSample, UserError
from polymodal.shared.system import Batch, Objective
from torch import Tensor


@dataclass(kw_only=True)
class Numbers(Batch):
    values: Tensor
    draws: Tensor
    partners: list[int] = field(default_factory=list)


class Letters(Objective):
    """The number that a text holds, and a draw."""

    def __init__(self, needs_partner=False, refuse=(), sequential=False):
        self.needs_partner = needs_partner
        self.sequential = sequential
        self.refuse = refuse

    def example(self, sample, rng):
        number = int(sample.text().split()[1])
        if number in self.refuse:
            raise BadSample(f"sample {sample.key!r} of {sample.source}: refused")
        return [(number, int(rng.integers(2**62)), sample.partner.index if sample.partner else -1)]

    def collate(self, examples):
        values, draws, partners = zip(*examples, strict=True)
        return Numbers(counts={"n": len(examples)}, values=torch.tensor(values), draws=torch.tensor(draws), partners=list(partners))


def texts(path, count, start=0, out="data"):
    path.mkdir(exist_ok=True)
    (path / "a.txt").write_text("\n\n".join(f"text {start + i}" for i in range(count)))
    pack(path / "a.txt", path / out, PackSettings(shard_bytes=24000))
    return DataSet.open(path / out)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return texts(tmp_path_factory.mktemp("stream"), 211)


def make(data, batch=12, micro=None, rank=0, world=1, objective=None, **options):
    return Stream(data, objective or Letters(), BatchLayout(batch, micro, rank, world), **({"lanes": 8, "window": 16} | options))


class Words(Letters):
    """As many examples of 10 tokens as the number says."""

    def example(self, sample, rng):
        return [(int(sample.text().split()[1]), k, -1) for k in range(int(sample.text().split()[1]))] or [(0, 0, -1)]

    def tokens_of(self, example):
        return 10


@pytest.mark.parametrize(("max_tokens", "limit"), [(None, 240), (35, 30), (3, 10)])
def test_a_micro_batch_with_too_many_tokens_comes_in_several_passes(data, max_tokens, limit):
    """Of 12 samples of up to 210 examples of 10 tokens; by default a pass has at most twice 12 such examples."""
    whole, parts = make(data, objective=Words(), max_tokens=10**9)[3], make(data, objective=Words(), max_tokens=max_tokens)[3]
    first, *rest = parts.passes()
    assert len(whole.passes()) == 1 and rest and not first.rest
    assert all(10 * len(p.values) <= limit for p in (first, *rest)) and len(rest) + 1 == -(-10 * len(whole.values) // limit)
    assert torch.equal(torch.cat([p.values for p in (first, *rest)]), whole.values)
    assert sum(p.counts["n"] for p in (first, *rest)) == whole.counts["n"]
    assert first.sample_ids == whole.sample_ids and not any(p.sample_ids or p.samples or p.bad for p in rest)
    held = list(evaluation_batches(data, Words(), [range(12)], seed=0, max_tokens=max_tokens))
    (together,) = evaluation_batches(data, Words(), [range(12)], seed=0, max_tokens=10**9)
    assert torch.equal(torch.cat([p.values for p in held]), together.values) and max(len(p.values) for p in held) == limit // 10


def test_tokens_of_a_pass_are_refused_where_samples_have_none(data):
    with pytest.raises(UserError, match=r"data\.max_tokens is 9.*set data\.micro_batch"):
        make(data, max_tokens=9)


def take(iterator, count):
    found = [next(iterator) for _ in range(count)]
    iterator.close()
    return found


@pytest.mark.parametrize(("world", "micro"), [(1, 4), (2, 3), (3, 2), (4, None), (12, 1)])
def test_what_a_sample_continues_stood_in_the_same_micro_batch(data, world, micro):
    """On any layout, also where epochs end and lanes of another length begin: there, nothing is continued."""
    fresh = []
    for rank in range(world):
        stream = make(data, 12, micro, rank, world, Letters(sequential=True))
        each = stream.layout.accumulate
        for number in range(each, 60 * each):
            batch, before = stream[number], stream[number - each].sample_ids
            assert [f for f in batch.follows if f >= 0] == [b for b, f in zip(before, batch.follows, strict=True) if f >= 0]
            assert all(f in (-1, s - 1) for f, s in zip(batch.follows, batch.sample_ids, strict=True))
            fresh += [(number // each, s) for f, s in zip(batch.follows, batch.sample_ids, strict=True) if f < 0]
    # 211 samples are 17 updates and 7 samples: each epoch begins 12 lanes anew
    assert sorted(u for u, _ in fresh) == [17] * 5 + [18] * 7 + [35] * 10 + [36] * 2 + [52] * 3 + [53] * 9
    assert not make(data)[0].follows


@pytest.mark.parametrize(("world", "micro"), [(1, 4), (2, 3), (3, 2), (4, None), (12, 1)])
def test_an_update_is_the_same_samples_and_draws_on_any_layout(data, world, micro):
    for update in (0, 5, 400):
        whole = make(data)[update]
        expected = dict(zip(whole.sample_ids, zip(whole.values.tolist(), whole.draws.tolist(), strict=True), strict=True))
        got = {}
        for rank in range(world):
            stream = make(data, micro=micro, rank=rank, world=world)
            for part in range(stream.layout.accumulate):
                batch = stream[update * stream.layout.accumulate + part]
                got |= dict(zip(batch.sample_ids, zip(batch.values.tolist(), batch.draws.tolist(), strict=True), strict=True))
                assert batch.samples == stream.layout.size
        assert got == expected


def test_one_epoch_is_every_sample_once(data):
    stream = make(data, batch=1)
    seen = [stream[i].values.item() for i in range(len(data))]
    assert sorted(seen) == list(range(211))
    second = [stream[i].values.item() for i in range(211, 422)]
    assert sorted(second) == list(range(211)) and second != seen


@pytest.mark.parametrize("workers", [1, 3])
def test_the_order_does_not_depend_on_workers_or_on_where_it_starts(data, workers):
    expected = [make(data, micro=4)[i].sample_ids for i in range(6 * 3)]
    assert [b.sample_ids for b in take(make(data, micro=4).loader(2, workers=workers), 12)] == expected[6:]


def test_a_stream_can_go_to_a_spawned_worker(data):
    stream = make(data, micro=4)
    expected = stream[5].sample_ids
    assert pickle.loads(pickle.dumps(stream))[5].sample_ids == expected


def test_a_damaged_sample_is_skipped_and_named(tmp_path):
    data = texts(tmp_path, 30)
    path = tmp_path / "data" / data.read(11).source
    key = data.read(11).key
    content = bytearray(path.read_bytes())
    content[content.index(data.read(11).fields["txt"] + b"\0")] ^= 1
    path.write_bytes(content)
    batches = [make(data, batch=10, on_bad="skip")[u] for u in range(3)]
    assert [b.key for batch in batches for b in batch.bad] == [key] and sum(b.samples for b in batches) == 29
    assert "changed after indexing" in next(b for batch in batches for b in batch.bad).reason
    with pytest.raises(UserError, match="changed after indexing"):
        take(make(data, batch=10).loader(), 3)


def test_starting_a_loader_leaves_the_random_state_alone(data):
    before = torch.get_rng_state()
    take(make(data).loader(), 2)
    assert torch.equal(before, torch.get_rng_state())


def test_draws_differ_between_epochs_and_samples(data):
    stream = make(data, batch=1)
    draws = [stream[i].draws.item() for i in range(422)]
    assert len(set(draws)) == 422


def test_draws_may_take_turns_from_epoch_to_epoch(data):
    objective = Letters()
    objective.draws = 2
    stream = make(data, batch=1, objective=objective)
    epochs = [{b.values.item(): b.draws.item() for b in (stream[e * 211 + i] for i in range(211))} for e in range(4)]
    assert epochs[0] == epochs[2] and epochs[1] == epochs[3]
    assert not {*epochs[0].values()} & {*epochs[1].values()} and len({*epochs[0].values()}) == 211
    plain = make(data, batch=1)
    assert epochs[0] == {b.values.item(): b.draws.item() for b in (plain[i] for i in range(211))}, "the first epoch is as it was"


def test_partners_are_others_near_by_and_the_same_on_every_layout(data):
    objective = Letters(needs_partner=True)
    whole = make(data, objective=objective)[3]
    assert all(p != i and p >= 0 for p, i in zip(whole.partners, whole.sample_ids, strict=True))
    half = make(data, objective=objective, rank=1, world=2)[3]
    pairs = set(zip(whole.sample_ids, whole.partners, strict=True))
    assert set(zip(half.sample_ids, half.partners, strict=True)) <= pairs
    partners = [p for i in range(40) for p in make(data, objective=objective)[i].partners]
    assert len(set(partners)) > 150


def test_a_damaged_partner_does_not_throw_away_the_good_sample(tmp_path):
    """It is counted when its own turn comes, and nowhere else."""
    data = texts(tmp_path, 30)
    path = tmp_path / "data" / data.read(11).source
    content = bytearray(path.read_bytes())
    content[content.index(data.read(11).fields["txt"] + b"\0")] ^= 1
    path.write_bytes(content)
    stream = make(data, batch=30, objective=Letters(needs_partner=True), on_bad="skip")
    batches = [stream[epoch] for epoch in range(40)]
    assert all([b.index for b in batch.bad] == [11] and batch.samples == 29 for batch in batches)
    alone = [p for batch in batches for p in batch.partners if p == -1]
    assert alone and 11 not in {p for batch in batches for p in batch.partners}


def test_partners_are_read_when_they_are_asked_for(data, monkeypatch):
    class Every(Letters):
        """Looks at the partner of every third sample."""

        def example(self, sample, rng):
            number = int(sample.text().split()[1])
            return [(number, 0, sample.partner.index if number % 3 == 0 else -2)]

    read = []
    kept = DataSet.read
    monkeypatch.setattr(DataSet, "read", lambda self, i: read.append(i) or kept(self, i))
    batch = make(data, objective=Every(needs_partner=True), batch=60)[0]
    assert len(read) == 60 + sum(v % 3 == 0 for v in batch.values.tolist()) < 100
    read.clear()
    full = make(data, objective=Letters(needs_partner=True), batch=60)[0]
    assert len(read) == 120
    partners = dict(zip(full.sample_ids, full.partners, strict=True))
    assert all(p in (-2, partners[i]) for i, p in zip(batch.sample_ids, batch.partners, strict=True))


def test_mixture_has_exact_shares_and_distinct_ids(tmp_path, data):
    other = texts(tmp_path, 40, start=1000)
    stream = make([(data, 3), (other, 1)], batch=100)
    ids = [i for u in range(80) for i in stream[u].sample_ids]
    assert sum(i >= 211 for i in ids) == 2000
    values = [v for u in range(80) for v in stream[u].values.tolist()]
    assert all((v >= 1000) == (i >= 211) for v, i in zip(values, ids, strict=True))


def test_bad_samples_stop_the_run_or_are_recorded(data):
    strict = make(data, objective=Letters(refuse=(5, 6)), batch=211)
    with pytest.raises(UserError, match=r"refused.*on_bad=skip"):
        strict[0]
    with pytest.raises(UserError, match="refused") as caught:
        next(strict.loader(workers=1))
    assert "Traceback" not in str(caught.value)
    batch = make(data, objective=Letters(refuse=(5, 6)), batch=211, on_bad="skip")[0]
    assert batch.samples == len(batch.values) == len(batch.sample_ids) == 209
    assert len(batch.bad) == 2 and all("refused" in b.reason and b.key and b.source.endswith(".tar") for b in batch.bad)
    assert not {b.index for b in batch.bad} & set(batch.sample_ids)


def test_a_neighbour_stands_in_where_a_whole_batch_is_bad(data):
    refuse = tuple(make(data, batch=2)[7].values.tolist())
    batch = make(data, batch=2, objective=Letters(refuse=refuse), on_bad="skip")[7]
    assert len(batch.bad) >= 2 and batch.samples == 1 and batch.sample_ids[0] not in {b.index for b in batch.bad}
    with pytest.raises(UserError, match="no usable sample"):
        make(data, batch=2, objective=Letters(refuse=range(211)), on_bad="skip")[0]


def test_too_many_bad_samples_end_the_run(data):
    stream = make(data, batch=10, objective=Letters(refuse=range(0, 211, 4)), on_bad="skip", max_bad=0.01)
    with pytest.raises(UserError, match=r"more than data\.max_bad"):
        take(stream.loader(), 200)
    take(make(data, batch=10, objective=Letters(refuse=range(0, 211, 4)), on_bad="skip", max_bad=0.5).loader(), 200)


@pytest.mark.parametrize(("arguments", "message"), [
    ((10, None, 0, 3), "use 9 or 12"), ((12, 5, 0, 1), "use 4 or 6"), ((0, None, 0, 1), "positive"), ((4, None, 4, 4), "rank is 4"),
])
def test_impossible_layouts_name_the_fix(arguments, message):
    with pytest.raises(UserError, match=message):
        BatchLayout(*arguments)


def test_impossible_streams_are_refused(data):
    for options in ({"lanes": 0}, {"window": 0}, {"on_bad": "ignore"}, {"max_bad": 2}):
        with pytest.raises(UserError, match=next(iter(options))):
            Stream(data, Letters(), BatchLayout(4), **options)
    with pytest.raises(UserError, match="thousandth"):
        Stream([(data, 1), (data, 0.0001)], Letters(), BatchLayout(4))


def test_the_order_state_round_trips_and_names_what_changed(tmp_path, data):
    import json

    state = json.loads(json.dumps(order_state(make(data))))
    check_order(state, order_state(make(data, rank=1, world=2)))
    check_order(state, order_state(make(data, batch=24)))  # how samples are dealt to updates is no part of it
    for other, message in ((make(data, seed=1), "seed was 0 and is 1"),
                           (make([(data, 1), (data, 2)]), "1 data sets and now 2"), (make(texts(tmp_path, 30)), "had 211 samples")):
        with pytest.raises(UserError, match=message):
            check_order(state, order_state(other))


def test_the_plan_tells_what_will_be_read(data):
    lines = "\n".join(plan_lines(make(data, micro=2, world=2)))
    assert "211 samples" in lines and "17 updates and 7 samples" in lines and "none is dropped" in lines and "keeps to 4" in lines
    assert "data.lanes=9" in "\n".join(plan_lines(make(data, world=3)))
    assert "more than once" in "\n".join(plan_lines(make(data, batch=500)))


def test_an_update_can_be_described_before_it_runs(data):
    reads = describe_update(make(data, micro=3, world=2), 9)
    for rank in range(2):
        stream = make(data, micro=3, rank=rank, world=2)
        for part in range(2):
            assert stream[9 * 2 + part].sample_ids == [r.sample_id for r in reads if r.rank == rank and r.part == part]
    assert all(data.read(r.sample_id).key == r.key for r in reads)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_reads_every_sample_once_with_the_same_draws(data, world):
    chosen = chosen_samples(211, 4)
    batches = [b for rank in range(world) for b in evaluation_batches(data, Letters(), shared_batches(chosen, 16, rank, world), seed=4)]
    draws = {v: d for b in batches for v, d in zip(b.values.tolist(), b.draws.tolist(), strict=True)}
    assert sorted(v for b in batches for v in b.values.tolist()) == list(range(211))
    again = next(evaluation_batches(data, Letters(), even_batches(chosen, 211), seed=4))
    assert draws == dict(zip(again.values.tolist(), again.draws.tolist(), strict=True))
    assert max(b.samples for b in batches) <= 16


@settings(max_examples=100, deadline=None)
@given(count=st.integers(1, 60), size=st.integers(1, 20), world=st.integers(1, 5), lanes=st.integers(1, 30))
def test_evaluation_data_is_dealt_exactly_once(count, size, world, lanes):
    chosen = chosen_samples(count, 3)
    assert sorted(chosen) == list(range(count))
    whole = even_batches(chosen, size)
    assert [i for part in whole for i in part] == chosen and max(map(len, whole)) <= size
    assert max(map(len, whole)) - min(map(len, whole)) <= 1 and len(whole) == -(-count // size)
    for deal in (lambda rank: shared_batches(chosen, size, rank, world), lambda rank: lane_batches(count, lanes, size, rank, world)):
        parts = [part for rank in range(world) for part in deal(rank)]
        assert sorted(i for part in parts for i in part) == list(range(count)) and all(0 < len(part) <= size for part in parts)
    if count < world:
        with pytest.raises(UserError, match="cannot be evaluated"):
            shared_batches(chosen, size, 0, world, equal=True)
        return
    equal = [shared_batches(chosen, size, rank, world, equal=True) for rank in range(world)]
    assert len({tuple(map(len, parts)) for parts in equal}) == 1
    assert {i for parts in equal for part in parts for i in part} == set(chosen[: count // world * world])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_coupled_evaluation_gives_all_ranks_equal_batches(data, world):
    chosen = chosen_samples(211, 4)
    parts = [shared_batches(chosen, 16, rank, world, equal=True) for rank in range(world)]
    sizes = [[b.samples for b in evaluation_batches(data, Letters(), part, seed=4)] for part in parts]
    assert all(s == sizes[0] for s in sizes) and sum(map(sum, sizes)) == 211 // world * world
    assert max(sizes[0]) - min(sizes[0]) <= 1


def test_evaluation_limit_partners_and_bad_samples(data):
    few, every = even_batches(chosen_samples(211, 0, 20), 8), even_batches(chosen_samples(211, 0), 8)
    batches = list(evaluation_batches(data, Letters(needs_partner=True), few, seed=0, workers=1))
    assert sum(b.samples for b in batches) == 20
    assert all(p != i for b in batches for p, i in zip(b.partners, b.sample_ids, strict=True))
    with pytest.raises(UserError, match="refused"):
        list(evaluation_batches(data, Letters(refuse=(7,)), every, seed=0))
    skipped = list(evaluation_batches(data, Letters(refuse=(7,)), every, seed=0, on_bad="skip"))
    assert sum(b.samples for b in skipped) == 210 and sum(len(b.bad) for b in skipped) == 1


# ---- lanes of consecutive samples


@settings(max_examples=80, deadline=None)
@given(shards=st.lists(st.integers(1, 30), min_size=1, max_size=6), micro=st.integers(1, 5), accumulate=st.integers(1, 4),
       world=st.integers(1, 4))
def test_any_layout_reads_lanes_exactly_once(shards, micro, accumulate, world):
    """For any N, G, ranks and micro-batches: every sample once an epoch, and each row of each micro-batch keeps to one lane."""
    n, batch = sum(shards), micro * accumulate * world
    order = SourceOrder(tuple(shards), 0, "a", batch, 7, sequential=True)
    epochs, before = {0: [], 1: []}, {}
    for update in range(-(-2 * n // batch)):
        for rank in range(world):
            layout = BatchLayout(batch, micro, rank, world)
            assert layout.accumulate == accumulate
            for part in range(accumulate):
                for row, position in enumerate(layout.positions(update, part)):
                    epoch, sample = order.locate(position)
                    last = before.get((rank, part, row))
                    if last is not None and last[0] == epoch:
                        assert sample == last[1] + 1
                    before[rank, part, row] = epoch, sample
                    epochs.setdefault(epoch, []).append(sample)
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(n))


@pytest.mark.parametrize(("batch", "micro", "world"), [(12, 3, 2), (12, None, 1), (5, 1, 5), (7, None, 1), (211, None, 1)])
def test_a_sequential_objective_gets_lanes_of_consecutive_samples(data, batch, micro, world):
    streams = [make(data, batch, micro, rank, world, Letters(sequential=True)) for rank in range(world)]
    seen, before = [], {}
    updates = -(-2 * 211 // batch)
    for update in range(updates):
        for rank, stream in enumerate(streams):
            for part in range(stream.layout.accumulate):
                for row, sample in enumerate(stream[update * stream.layout.accumulate + part].sample_ids):
                    place = (rank, part, row)
                    position = update * batch + (part * stream.layout.size + row) * world + rank
                    if place in before and position // 211 == (position - batch) // 211:  # within an epoch
                        assert sample == before[place] + 1
                    before[place] = sample
                    seen.append((position, sample))
    for epoch in range(2):
        assert sorted(s for p, s in seen if p // 211 == epoch) == list(range(211))


def test_a_sequential_stream_tells_what_it_does_and_cannot_be_continued_as_another(tmp_path, data):
    stream = make(data, batch=10, objective=Letters(sequential=True), world=2)
    lines = "\n".join(plan_lines(stream))
    assert "10 lanes of 21 or 22 consecutive samples" in lines and "each rank keeps to 5 lanes" in lines and "--in-order" in lines
    assert "nothing is shuffled" not in "\n".join(plan_lines(make(data)))
    state = order_state(stream)
    check_order(state, order_state(make(data, batch=10, objective=Letters(sequential=True), window=9, lanes=7)))
    with pytest.raises(UserError, match="were read in sequence and now shuffled"):
        check_order(state, order_state(make(data, batch=10)))
    with pytest.raises(UserError, match="were read shuffled and now in sequence"):
        check_order(order_state(make(data, batch=10)), state)
    with pytest.raises(UserError, match="global_batch was 10 and is 5"):
        check_order(state, order_state(make(data, batch=5, objective=Letters(sequential=True))))
    with pytest.raises(UserError, match="got a mixture of 2 data sets"):
        make([(data, 1), (texts(tmp_path, 30), 1)], objective=Letters(sequential=True))
    reads = describe_update(stream, 3)
    assert [r.sample_id for r in reads] == [first.sample_id + 3 for first in describe_update(stream, 0)]


@pytest.mark.parametrize(("batch", "world", "limit"), [(4, 1, None), (4, 3, None), (1, 1, 50), (64, 2, 100), (300, 1, None), (16, 2, 9)])
def test_sequential_evaluation_reads_every_sample_once_in_lanes(data, batch, world, limit):
    seen = []
    for rank in range(world):
        parts = lane_batches(limit or 211, batch * world, batch, rank, world)
        found = [b.sample_ids for b in evaluation_batches(data, Letters(sequential=True), parts, seed=0)]
        seen += [i for ids in found for i in ids]
        for before, after in itertools.pairwise(found):
            assert len(before) <= batch and {i - 1 for i in after} <= set(before)  # every row goes on from one of the batch before
    assert sorted(seen) == list(range(limit or 211))


def test_the_lanes_of_an_evaluation_need_not_depend_on_its_batches(data):
    """Which samples follow each other is the same for any rows and ranks, so a memory begins at the same places."""
    def continued(batch, world):
        pairs = set()
        for rank in range(world):
            found = [b.sample_ids for b in evaluation_batches(data, Letters(sequential=True), lane_batches(211, 12, batch, rank, world),
                                                              seed=0)]
            assert max(map(len, found), default=0) <= batch
            pairs |= {(i - 1, i) for before, after in itertools.pairwise(found) for i in after if i - 1 in before}
        return pairs

    wanted = continued(12, 1)
    assert len(wanted) == 211 - 12
    assert all(continued(batch, world) == wanted for batch, world in ((5, 1), (1, 1), (3, 2), (2, 3), (4, 20)))


def test_a_bad_segment_leaves_a_gap_in_its_lane_only(data):
    objective = Letters(refuse=(int(data.read(60).text().split()[1]),), sequential=True)
    stream = make(data, batch=4, objective=objective, on_bad="skip")
    row = next(i for i, r in enumerate(describe_update(stream, 0)) if r.sample_id <= 60 < r.sample_id + 52)
    update = 60 - describe_update(stream, 0)[row].sample_id
    assert len(stream[update].sample_ids) == 3 and [b.index for b in stream[update].bad] == [60]
    assert len(stream[update + 1].sample_ids) == 4
    alone = make(data, batch=4, micro=1, objective=objective, on_bad="skip")
    assert len(alone[update * 4 + row].sample_ids) == 1  # a neighbour stands in where the whole micro-batch is bad
