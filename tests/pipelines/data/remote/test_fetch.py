"""Shards behind http: exact data, or a clear error."""

import io
import json
import pickle
import socket
import tarfile

import numpy as np
import pytest
from over_http import EACH, SHARDS, content, kept, partial, read_all
from polymodal.pipelines.data.dataset import DataSet, verify
from polymodal.pipelines.data.index import INDEX, build_index
from polymodal.pipelines.data.remote.fetch import ReadCosts
from polymodal.shared.errors import UserError


def test_a_healthy_server(server, folder, cache):
    data = DataSet.open(server.url, cache=cache)
    read_all(data)
    shards = data.index.shards
    assert kept(cache) == sorted(f"{s.sha256}.tar" for s in shards) and kept(cache, ".idx") == sorted(f"{s.idx_sha256}.idx" for s in shards)
    assert not partial(cache) and data.fingerprint == DataSet.open(folder).fingerprint
    reads = data.read_costs()
    assert reads["fetch_retries"] == reads["cache_evictions"] == 0 and reads["cache_misses"] == 2 * SHARDS and reads["fetch_wait_s"] > 0
    assert reads["fetch_bytes"] == sum(p.stat().st_size for p in folder.iterdir())
    assert set(reads) == set(ReadCosts.NAMES) and not any(data.read_costs().values())
    asked = len(server.log)
    again = pickle.loads(pickle.dumps(DataSet.open(server.url, cache=cache)))
    read_all(again)
    assert len(server.log) == asked + 1 and again.read_costs()["cache_hits"] == 2 * SHARDS  # only the index was asked for again
    assert not verify(again)


TRANSIENT = {
    "500 now and then": lambda path, number, start: "503" if number % 3 else "",
    "too many requests": lambda path, number, start: "429" if number < 3 else "",
    "cut short": lambda path, number, start: "cut 0.6" if number < 3 else "",
    "cut at the very beginning": lambda path, number, start: "cut 0" if number < 3 else "",
    "cut without a length": lambda path, number, start: "",
    "ignores ranges and cuts": lambda path, number, start: "cut 0.5" if number == 1 else "no ranges",
    "stalls": lambda path, number, start: "stalls" if path == "s 1.tar" and number == 1 else "",
    "trickles": lambda path, number, start: "trickles" if path == "s 2.tar" and number == 1 else "",
    "claims to be longer": lambda path, number, start: "longer" if path.endswith(".tar") else "",
    "claims to be shorter": lambda path, number, start: "shorter" if path.endswith(".tar") and start < 100_000 else "",
    "damages the first answer": lambda path, number, start: "damaged" if path.endswith(".tar") and number == 1 else "",
    "sends another range": lambda path, number, start: ("cut 0.5" if number == 1 else "another range" if number == 2 else "")
    if path.endswith(".tar") else "",
    "has no tags": lambda path, number, start: "cut 0.7" if number == 1 else "no tag",
    "has no length": lambda path, number, start: "no length",
    "redirects": lambda path, number, start: "redirect /s%203.tar" if path == "s 3.tar" and number == 1 else "",
}


@pytest.mark.parametrize("name", TRANSIENT)
def test_a_server_in_trouble_still_gives_exact_data(server, cache, name, monkeypatch):
    if name in ("stalls", "trickles"):
        monkeypatch.setenv("POLYMODAL_READ_TIMEOUT", "0.5")
    server.fault = TRANSIENT[name]
    data = DataSet.open(server.url, cache=cache)
    read_all(data)
    assert len(kept(cache)) == SHARDS and not partial(cache)
    if name in ("500 now and then", "too many requests", "cut short", "stalls", "trickles", "damages the first answer"):
        assert data.read_costs()["fetch_retries"] > 0


def test_a_server_that_cuts_every_answer_costs_no_byte_twice(server, folder, cache):
    big = np.random.default_rng(0).bytes(3_000_000)
    with tarfile.open(folder / "big.tar", "w") as file:
        info = tarfile.TarInfo("x.bin")
        info.size = len(big)
        file.addfile(info, io.BytesIO(big))
    build_index(folder, force=True)
    server.fault = lambda path, number, start: "cut 0.3" if path == "big.tar" else ""
    data = DataSet.open(server.url, cache=cache)
    data.read_costs()
    number = [s.name for s in data.index.shards].index("big.tar")
    with pytest.raises(UserError, match="gave up after 8 tries without progress"):  # the last few bytes come too slowly
        data.sha256_of(number)
    server.fault = lambda path, number, start: "cut 0.3" if path == "big.tar" and start < 2_900_000 else ""
    before = server.sent
    assert data.read(0).fields["bin"] == big
    assert server.asked["big.tar"] > 12 and server.sent - before < 200_000
    assert data.read_costs()["fetch_bytes"] < (folder / "big.tar").stat().st_size + 100_000


@pytest.mark.parametrize(("fault", "message", "requests"), [
    ("403", "403 Forbidden: the credentials are lacking, wrong or expired", 1),
    ("401", "401 Unauthorized: the credentials", 1),
    ("404", "does not exist: the index names it", 1),
    ("410", "does not exist", 1),
    ("400", "400 Bad Request", 1),
    ("500", "500 Internal Server Error; gave up after 4 tries", 4),
    ("compressed", "the server sends it as gzip", 1),
    ("damaged", "not what its index says: got 3", 2),
    ("cut 0.5", "ended after .* bytes; gave up|without progress", None),
    ("stalls", "no answer in time; gave up", None),
    ("redirect file:///etc/passwd", "cannot be read", None),
])
def test_a_server_that_never_recovers_is_a_clear_error(server, cache, monkeypatch, fault, message, requests):
    monkeypatch.setenv("POLYMODAL_READ_TRIES", "4")
    if fault == "stalls":
        monkeypatch.setenv("POLYMODAL_READ_TIMEOUT", "0.2")
    server.fault = lambda path, number, start: fault if path == "s 1.tar" else ""
    data = DataSet.open(server.url, cache=cache)
    read = [data.read(i).fields["bin"] for i in (0, 2 * EACH)]
    assert read == [content(0), content(2 * EACH)]
    with pytest.raises(UserError, match=message) as caught:
        data.read(EACH)
    assert f"{server.url}/s 1.tar" in str(caught.value) and "\n" not in str(caught.value)
    if requests is not None:
        assert server.asked["s 1.tar"] == requests
    with pytest.raises(UserError):  # and not a sample from what is left in the cache
        data.read(EACH)
    server.fault = lambda path, number, start: ""
    read_all(data)


def test_a_shard_that_changed_is_an_error_and_never_mixed(server, folder, cache):
    """Another object of the same size comes between two answers: the first half must not be joined to the new second half."""
    other = bytes(b ^ 0xFF for b in (folder / "s 0.tar").read_bytes())

    def fault(path, number, start):
        if path == "s 0.tar" and number == 2:
            (folder / path).write_bytes(other)
        return "cut 0.5" if path == "s 0.tar" and number == 1 else ""

    server.fault = fault
    data = DataSet.open(server.url, cache=cache)
    with pytest.raises(UserError, match=r"s 0\.tar cannot be read: it is not what its index says"):
        data.read(0)
    assert not partial(cache) and len(server.log[-1][2].get("If-Range", "")) == 0
    second = server.tars()[1]
    assert second[1].startswith("bytes=") and second[2]["If-Range"].startswith('"')  # the rest was asked for on condition


def test_a_shorter_object_is_an_error(server, folder, cache):
    data = DataSet.open(server.url, cache=cache)
    (folder / "s 0.tar").write_bytes((folder / "s 0.tar").read_bytes()[:50_000])
    with pytest.raises(UserError, match="not what its index says: it has at most 50000 bytes"):
        data.read(0)


def test_nobody_there_and_no_such_place(server, cache, monkeypatch):
    monkeypatch.setenv("POLYMODAL_READ_TRIES", "2")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UserError, match="refused; gave up after 2 tries"):
        DataSet.open(f"http://127.0.0.1:{port}", cache=cache)
    with pytest.raises(UserError, match=r"none/index.json does not exist: no index"):
        DataSet.open(f"{server.url}/none", cache=cache)
    for address in ("http://", "https:///x", "http://host:port/x"):
        with pytest.raises(UserError, match="is not an address"):
            DataSet.open(address)


def test_an_index_cannot_lead_out_of_the_cache(server, folder, cache):
    text = (folder / INDEX).read_text()
    (folder / INDEX).write_text(text.replace(json.loads(text)["shards"][0]["sha256"], "../../x"))
    data = DataSet.open(server.url, cache=cache)
    with pytest.raises(UserError, match="which is none"):
        data.read(0)
    assert not (cache.parent.parent / "x.tar").exists()


def test_the_tokenizer_of_a_remote_data_set_is_fetched(server, folder, cache):
    (folder / INDEX).write_text((folder / INDEX).read_text().replace('"schema": {}', '"schema": {"tokenizer": "x"}'))
    with pytest.raises(UserError, match="holds no tokenizer"):
        _ = DataSet.open(server.url, cache=cache).tokenizer_dir
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    server.fault = lambda path, number, start: "500" if number == 1 else ""
    place = DataSet.open(server.url, cache=cache).tokenizer_dir
    assert [p.name for p in place.iterdir()] == ["tokenizer.json"] and (place / "tokenizer.json").read_text() == "{}"
