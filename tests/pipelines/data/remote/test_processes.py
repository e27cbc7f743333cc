"""Many processes, and processes that die, on one cache."""

import hashlib
import signal
import time

import processes
from over_http import EACH, SHARDS, content, partial, read_all
from polymodal.pipelines.data.dataset import DataSet


def test_a_shard_that_rots_in_the_cache_is_fetched_again(server, cache):
    data = DataSet.open(server.url, cache=cache)
    read_all(data)
    name = cache / f"{data.index.shards[0].sha256}.tar"
    rotten = bytearray(name.read_bytes())
    rotten[600] ^= 1
    name.write_bytes(rotten)
    (cache / f"{data.index.shards[1].sha256}.tar").write_bytes(b"short")
    read_all(DataSet.open(server.url, cache=cache))
    assert hashlib.sha256(name.read_bytes()).hexdigest() == data.index.shards[0].sha256


def read(url, cache):
    data = DataSet.open(url, cache=cache)
    print(len(b"".join(data.read(i).fields["bin"] for i in range(len(data)))), int(data.read_costs()["fetch_bytes"]), flush=True)


def reader(server, cache):
    return processes.call(read, server.url, str(cache), env={"POLYMODAL_READ_TIMEOUT": "10"})


def test_two_processes_fetch_every_shard_once(server, cache):
    def slow(path, number, start):
        time.sleep(0.1 if path.endswith(".tar") else 0)
        return ""

    server.fault = slow
    readers = [reader(server, cache) for _ in range(2)]
    found = [tuple(map(int, r.check(60).out.split())) for r in readers]
    assert [f[0] for f in found] == [sum(len(content(i)) for i in range(EACH * SHARDS))] * 2
    assert len(server.tars()) == SHARDS and not partial(cache)


def test_a_download_that_was_killed_is_continued(server, cache):
    """The first half comes, the process dies: no lock stays behind, and the next process asks for the second half only."""
    server.fault = lambda path, number, start: "stalls" if path == "s 0.tar" and number == 1 else ""
    first = reader(server, cache)
    deadline, have = time.monotonic() + 60, 0
    while have < 50_000 and time.monotonic() < deadline:
        have = sum(p.stat().st_size for p in cache.glob(".*.tar.part"))  # a side file may be renamed between glob and stat
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    first.wait()
    have = next(cache.glob(".*.tar.part")).stat().st_size
    assert have >= 50_000
    data = DataSet.open(server.url, cache=cache)
    read_all(data)
    second = server.tars()[1]
    assert second[1] == f"bytes={have}-" and second[2]["If-Range"] and not partial(cache)
    assert data.read_costs()["fetch_bytes"] < sum(p.stat().st_size for p in server.folder.iterdir()) - have + 5000
