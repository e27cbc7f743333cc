"""The stream over http: the one from disk, read ahead, in a cache of limited size."""

import threading
import time

import pytest
from over_http import EACH, SHARDS, Raw, content, first_batches, kept, read_all
from polymodal.pipelines.data.account import plan_lines
from polymodal.pipelines.data.dataset import DataSet
from polymodal.pipelines.data.held_out import chosen_samples, evaluation_batches, even_batches
from polymodal.pipelines.data.layout import BatchLayout
from polymodal.pipelines.data.remote.fetch import ReadCosts
from polymodal.pipelines.data.stream import Stream


@pytest.mark.parametrize("workers", [0, 2])
def test_the_stream_is_the_same_as_from_disk_and_tells_what_it_cost(server, folder, cache, workers):
    server.fault = lambda path, number, start: "cut 0.5" if path.endswith(".tar") and number == 1 else ""
    local, remote = first_batches(folder, None, 12), first_batches(server.url, cache, 12, workers)
    assert [(b.task, b.sample_ids) for b in local] == [(b.task, b.sample_ids) for b in remote]
    assert not any(b.reads for b in local) and all(set(b.reads) == set(ReadCosts.NAMES) for b in remote)
    assert sum(b.reads["fetch_retries"] for b in remote) >= 1 and len({asked[0] for asked in server.tars()}) == SHARDS


def test_shards_are_fetched_before_they_are_needed(server, cache):
    """One lane: the first batch needs the first shard, and the next one comes while nobody asks for it."""
    stream = Stream(DataSet.open(server.url, cache=cache), Raw(), BatchLayout(20), lanes=1, window=20)
    loader = stream.loader()
    next(loader)
    order = [stream.sets[0].shard_of(sample)[0] for _, sample in (stream.order.sources[0].locate(p) for p in range(0, 200, EACH))]
    deadline = time.monotonic() + 20
    while len(kept(cache)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    there = {i for i, s in enumerate(stream.sets[0].index.shards) if (cache / f"{s.sha256}.tar").exists()}
    assert there == set(order[:2])  # and no more than one shard for each lane
    waits = [next(loader).reads["fetch_wait_s"] for _ in range(4)]
    assert waits[0] == 0 and len(server.tars()) <= 4
    loader.close()
    assert not [t for t in threading.enumerate() if t.name == "read-ahead"]


def test_reading_ahead_keeps_to_a_ranks_own_lanes(server, cache):
    stream = Stream(DataSet.open(server.url, cache=cache), Raw(), BatchLayout(20, rank=1, world=2), lanes=2, window=200)
    loader = stream.loader()
    mine = {stream.sets[0].shard_of(stream.order.locate(p).sample)[0] for p in range(1, 200, 2)}
    for _ in range(9):
        next(loader)
    loader.close()
    assert {int(asked[0][2]) for asked in server.tars()} == mine and len(mine) < SHARDS


def test_the_order_of_need_is_the_order_of_reading(folder):
    """`upcoming_shards` names every shard not later than it is read, and each rank's lanes only."""
    sets = [(DataSet.open(folder), 0.7), (DataSet.open(folder), 0.3)]
    for data, lanes, window in ((sets[0][0], 3, 16), (sets[0][0], 7, 1000), (sets, 4, 30)):
        stream = Stream(data, Raw(), BatchLayout(20), lanes=lanes, window=window)
        for start in (0, 60, 1000):
            told = {}
            for position, source, sample in stream.order.upcoming_shards(start, range(lanes)):
                if position >= start + 4000:
                    break
                told.setdefault((source, stream.sets[source].shard_of(sample)[0]), position)
            for p in range(start, start + 500):
                place = stream.order.locate(p)
                assert told[place.source, stream.sets[place.source].shard_of(place.sample)[0]] <= p, (lanes, window, start, p)


def test_a_small_cache_is_kept_small_and_evictions_are_counted(server, folder, cache, monkeypatch):
    size = max(p.stat().st_size for p in folder.glob("*.tar"))
    monkeypatch.setenv("POLYMODAL_CACHE_BYTES", str(int(size * 2.5)))
    data = DataSet.open(server.url, cache=cache)
    evictions = 0
    for _ in range(2):
        for i in range(0, len(data), 7):
            assert data.read(i).fields["bin"] == content(i)
            assert sum(p.stat().st_size for p in cache.glob("*.tar")) <= size * 2.5
        evictions += data.read_costs()["cache_evictions"]
    assert evictions >= SHARDS


def test_a_cache_that_is_too_small_for_what_is_in_use_grows(server, cache, monkeypatch):
    monkeypatch.setenv("POLYMODAL_CACHE_BYTES", "1K")
    data = DataSet.open(server.url, cache=cache)
    read_all(data)
    assert len(kept(cache)) == 2  # the one that is read, and the one that was in use when it came
    batches = first_batches(server.url, cache, 4)
    assert [b.samples for b in batches] == [20] * 4


def test_an_evaluation_reads_remote_data(server, folder, cache):
    parts = even_batches(chosen_samples(EACH * SHARDS, 1), 16)
    found = [[b.task for b in evaluation_batches(DataSet.open(source, cache=cache), Raw(), parts, seed=1, workers=workers)]
             for source, workers in ((folder, 0), (server.url, 2))]
    assert found[0] == found[1] and len(found[0]) == 13


def test_the_plan_says_what_the_cache_must_hold(server, cache, monkeypatch):
    def told():
        lines = plan_lines(Stream(DataSet.open(server.url, cache=cache), Raw(), BatchLayout(20), lanes=1, window=20))
        return [line for line in lines if "remote" in line or "POLYMODAL_CACHE_BYTES" in line]

    assert told() == ["remote: 1 shards (0 MiB) are read side by side by all ranks; what was read is kept while the disk has room"]
    monkeypatch.setenv("POLYMODAL_CACHE_BYTES", "3K")
    assert len(told()) == 2 and "at most 0 MiB" in told()[0]
