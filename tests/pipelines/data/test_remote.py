"""Data sets behind http, from a server that misbehaves in every way we know of."""

import base64
import gzip
import hashlib
import io
import json
import pickle
import signal
import socket
import sys
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import processes
import pytest
from polymodal.pipelines import cli
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.data.account import plan_lines
from polymodal.pipelines.data.dataset import DataSet, verify
from polymodal.pipelines.data.held_out import chosen_samples, evaluation_batches, even_batches
from polymodal.pipelines.data.index import INDEX, build_index
from polymodal.pipelines.data.layout import BatchLayout
from polymodal.pipelines.data.remote.fetch import ReadCosts, RetryPolicy
from polymodal.pipelines.data.stream import Stream
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.pipelines.run.directory import Run
from polymodal.shared.errors import UserError
from polymodal.shared.system import Batch, Objective
from polymodal.shared.tokenizer import Tokenizer

EACH, SHARDS = 40, 5


def content(i):
    """The bytes of sample i: 4 to 12 KiB that no compressor would shrink."""
    return np.random.default_rng(i).bytes(4096 + i % 9 * 1024)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "data"
    place.mkdir()
    for s in range(SHARDS):
        with tarfile.open(place / f"s {s}.tar", "w", format=tarfile.USTAR_FORMAT) as file:
            for i in range(s * EACH, (s + 1) * EACH):
                info = tarfile.TarInfo(f"{i:04d}.bin")
                info.size = len(content(i))
                file.addfile(info, io.BytesIO(content(i)))
    build_index(place)
    return place


class Server(ThreadingHTTPServer):
    """Serves a folder; `fault(path, number of the request for this path, start)` says how to misbehave."""

    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.fault = folder, lambda path, number, start: ""
        self.asked, self.sent, self.log, self.lock = {}, 0, [], threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def handle_error(self, *_):
        pass  # clients that went away

    def tars(self):
        return [entry for entry in self.log if entry[0].endswith(".tar")]


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        path = self.path.partition("?")[0].lstrip("/").replace("%20", " ")
        wanted = self.headers.get("Range")
        first, last = wanted.removeprefix("bytes=").split("-") if wanted else (0, "")
        first = int(first)
        with server.lock:
            number = server.asked[path] = server.asked.get(path, 0) + 1
            server.log.append((path, wanted, dict(self.headers), self.path))
        fault = server.fault(path, number, first)
        if fault.isdigit():
            self.send_response(int(fault))
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"oops")
            return
        if fault.startswith("redirect "):
            self.send_response(302)
            self.send_header("Location", fault.removeprefix("redirect "))
            self.end_headers()
            return
        try:
            data = (server.folder / path).read_bytes()
        except OSError:
            self.send_error(404)
            return
        if fault == "damaged":
            data = data[:1000] + bytes([data[1000] ^ 1]) + data[1001:]
        if fault == "compressed":
            data = gzip.compress(data)
        tag = f'"{hashlib.md5(data).hexdigest()}"'
        whole = not wanted or fault == "no ranges" or self.headers.get("If-Range", tag) != tag
        if not whole and first >= len(data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self.end_headers()
            return
        begin, end = (0, len(data)) if whole else (first, min(int(last or len(data)) + 1, len(data)))
        if fault == "another range":
            begin += 7
        body = data[begin:end]
        self.send_response(200 if whole else 206)
        if fault == "compressed":
            self.send_header("Content-Encoding", "gzip")
        if fault != "no tag":
            self.send_header("ETag", tag)
        length = len(body)
        if fault == "longer":
            length += 100
        elif fault == "shorter":
            length -= length // 3
        if fault != "no length":
            self.send_header("Content-Length", str(length))
        if not whole:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
        self.end_headers()
        if fault == "stalls":
            self.send(body[: len(body) // 2])
            time.sleep(2)
        elif fault == "trickles":
            for _ in range(200):
                self.send(body[:1])
                body = body[1:]
                time.sleep(0.02)
        elif fault.startswith("cut "):
            self.send(body[: int(len(body) * float(fault.removeprefix("cut ")))])
        else:
            self.send(body)

    def send(self, body):
        for i in range(0, len(body), 16384):
            self.wfile.write(body[i : i + 16384])
            with self.server.lock:
                self.server.sent += len(body[i : i + 16384])


@pytest.fixture
def server(folder):
    served = Server(folder)
    yield served
    served.shutdown()
    served.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Short pauses and time-outs, and nothing of the caller's environment."""
    monkeypatch.setattr(RetryPolicy, "pause", 0.01)
    monkeypatch.setenv("POLYMODAL_READ_TIMEOUT", "10")
    for name in ("POLYMODAL_CACHE", "POLYMODAL_CACHE_BYTES", "POLYMODAL_READ_TRIES", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def read_all(data):
    for i in range(len(data)):
        assert data.read(i).fields["bin"] == content(i), i


def kept(cache, suffix=".tar"):
    return sorted(p.name for p in cache.glob(f"*{suffix}"))


def partial(cache):
    return sorted(p.name for p in cache.glob(".*part*"))


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


# --- single samples ---------------------------------------------------------------------------------------------------


@pytest.fixture
def wide(folder, server):
    """A data set whose shard is worth reading by samples."""
    with tarfile.open(folder / "wide.tar", "w") as file:
        for i in range(200):
            info = tarfile.TarInfo(f"w{i:04d}.bin")
            info.size = 65_536
            file.addfile(info, io.BytesIO(np.random.default_rng(i).bytes(info.size)))
    for path in folder.glob("s *"):
        path.unlink()
    build_index(folder, force=True)
    return server


def test_a_few_samples_of_a_large_shard_come_alone(wide, cache):
    data = DataSet.open(wide.url, cache=cache)
    for i in (150, 3):
        assert data.read(i).fields["bin"] == np.random.default_rng(i).bytes(65_536)
    assert not kept(cache) and all(asked[1] for asked in wide.tars()) and data.read_costs()["fetch_bytes"] < 200_000
    for i in range(10):  # in the end the whole is cheaper
        assert data.read(i).fields["bin"] == np.random.default_rng(i).bytes(65_536)
    assert len(kept(cache)) == 1 and len(wide.tars()) == 4
    assert data.key_and_shard(9) == ("w0009", "wide.tar")


@pytest.mark.parametrize("fault", ["no ranges", "another range", "404", "damaged alone"])
def test_where_samples_do_not_come_alone_the_whole_is_read(wide, folder, cache, fault):
    """A sample that does not fit its checksum is settled by the whole shard, which a hash proves."""
    good = (folder / "wide.tar").read_bytes()

    def behave(path, number, start):
        if fault == "damaged alone":
            (folder / "wide.tar").write_bytes(good if number > 1 else bytes(len(good)))
            return ""
        return fault if path.endswith(".tar") and number <= (1 if fault == "404" else 100) and start else ""

    wide.fault = behave
    data = DataSet.open(wide.url, cache=cache)
    wide.asked.clear()
    assert data.read(150).fields["bin"] == np.random.default_rng(150).bytes(65_536)
    assert len(kept(cache)) == 1


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


# --- many processes, and processes that die ---------------------------------------------------------------------------

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


# --- secrets ----------------------------------------------------------------------------------------------------------


def test_the_secrets_of_an_address_are_used_and_never_told(server, cache, monkeypatch):
    monkeypatch.setenv("POLYMODAL_READ_TRIES", "1")
    secret = server.url.replace("http://", "http://user:hun%40ter2@") + "?sig=topsecret&se=5"
    data = DataSet.open(secret, cache=cache)
    assert data.read(0).fields["bin"] == content(0)
    for path, _, headers, full in server.log:
        assert full.endswith("?sig=topsecret&se=5"), path
        assert headers["Authorization"] == "Basic " + base64.b64encode(b"user:hun@ter2").decode()
    assert data.directory == server.url and "***" not in data.directory
    told = [repr(data), data.directory]
    for fault in ("403", "500", "404", "damaged", "cut 0.2"):
        server.fault = lambda path, number, start, fault=fault: fault if path == "s 3.tar" else ""
        with pytest.raises(UserError) as caught:
            DataSet.open(secret, cache=cache).read(3 * EACH)
        told.append(str(caught.value))
    with pytest.raises(UserError) as caught:
        DataSet.open("ftp://user:hunter2@host/x?sig=topsecret")
    told.append(str(caught.value))
    with pytest.raises(UserError) as caught:
        DataSet.open("http://user:hunter2@host:port/x?sig=topsecret")
    told.append(str(caught.value))
    assert not [t for t in told if "hun" in t or "topsecret" in t or "user" in t], told
    assert not [p for p in cache.rglob("*") if p.is_file() and p.suffix != ".tar" and b"topsecret" in p.read_bytes()]


def test_a_redirect_gets_no_password(server, folder, cache):
    other = Server(folder)
    server.fault = lambda path, number, start: f"redirect {other.url}/s%200.tar" if path == "s 0.tar" else ""
    data = DataSet.open(server.url.replace("http://", "http://user:secret@"), cache=cache)
    assert data.read(0).fields["bin"] == content(0)
    assert other.log and not [entry for entry in other.log if "Authorization" in entry[2]]
    other.shutdown()
    other.server_close()


def test_netrc_gives_the_password(server, tmp_path, cache, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password pw\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    DataSet.open(server.url, cache=cache).read(0)
    assert {entry[2]["Authorization"] for entry in server.log} == {"Basic " + base64.b64encode(b"me:pw").decode()}


def test_settings_of_the_environment_are_checked(server, monkeypatch, tmp_path):
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path / "elsewhere"))
    DataSet.open(server.url).read(0)
    assert len(kept(tmp_path / "elsewhere")) == 1
    for name, value in (("POLYMODAL_CACHE_BYTES", "many"), ("POLYMODAL_CACHE_BYTES", "0"), ("POLYMODAL_READ_TIMEOUT", "-1"),
                        ("POLYMODAL_READ_TRIES", "1.5"), ("POLYMODAL_READ_TRIES", "nan")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises(UserError, match=f"{name} is '{value}'"):
                DataSet.open(server.url)


# --- the stream -------------------------------------------------------------------------------------------------------


class Raw(Objective):
    """Batches of bytes, as a tuple that can be compared."""

    def example(self, sample, rng):
        yield sample.fields["bin"]

    def collate(self, examples):
        batch = Batch(counts={"samples": len(examples)})
        batch.task = hashlib.sha256(b"".join(examples)).hexdigest()
        return batch


def first_batches(source, cache, count, workers=0, **layout):
    stream = Stream(DataSet.open(source, cache=cache), Raw(), BatchLayout(20, **layout), lanes=4, window=16)
    loader = stream.loader(3, workers=workers)
    found = [next(loader) for _ in range(count)]
    loader.close()
    return found


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


# --- training ---------------------------------------------------------------------------------------------------------

OVERRIDES = ["model.n_embd=16", "model.n_layer=1", "model.n_head=2", "model.n_positions=32", "data.global_batch=8", "data.window=16",
             "data.lanes=4", "max_updates=8", "log.every=4", "log.tensorboard=false", "precision=32", "accelerator=cpu"]


def test_the_plan_says_what_the_cache_must_hold(server, cache, monkeypatch):
    def told():
        lines = plan_lines(Stream(DataSet.open(server.url, cache=cache), Raw(), BatchLayout(20), lanes=1, window=20))
        return [line for line in lines if "remote" in line or "POLYMODAL_CACHE_BYTES" in line]

    assert told() == ["remote: 1 shards (0 MiB) are read side by side by all ranks; what was read is kept while the disk has room"]
    monkeypatch.setenv("POLYMODAL_CACHE_BYTES", "3K")
    assert len(told()) == 2 and "at most 0 MiB" in told()[0]


@pytest.fixture
def texts(tmp_path):
    rng = np.random.default_rng(0)
    lines = [" ".join("".join(rng.choice(list("abcdef"), size=3)) for _ in range(8)) for _ in range(90)]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    Tokenizer.train(lines, "byte-bpe", 300).save(tmp_path / "tok")
    pack([tmp_path / "train.txt"], tmp_path / "texts", PackSettings(Reading(split="line"), shard_bytes=40_000), workers=Workers(1),
         console=Console(quiet=True))
    served = Server(tmp_path / "texts")
    yield served
    served.shutdown()
    served.server_close()


def losses(out):
    return [(row["update"], row["loss"]) for row in Run(out).metrics("train")]


def test_a_run_on_a_bad_line_is_the_run_from_disk(texts, tmp_path, monkeypatch, capsys):
    """Same losses, what it cost in the metrics, and no secret in the run's directory or output."""
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path / "cache"))
    secret = texts.url.replace("http://", "http://user:hunter2@") + "?sig=topsecret"
    arguments = ["pretrain", "gpt2-tiny", "--tokenizer", str(tmp_path / "tok"), *(p for o in OVERRIDES for p in ("--set", o))]
    assert cli.run([*arguments, "--data", str(tmp_path / "texts"), "--out", str(tmp_path / "local")]) == 0
    texts.fault = lambda path, number, start: "500" if number == 1 else "cut 0.7" if number == 2 else ""
    command = [*arguments, "--data", secret, "--out", str(tmp_path / "remote")]
    monkeypatch.setattr(sys, "argv", ["polymodal", *command])
    assert cli.run(command) == 0
    assert losses(tmp_path / "remote") == losses(tmp_path / "local") and len(losses(tmp_path / "local")) == 2
    rows = Run(tmp_path / "remote").metrics("train")
    cost = {name: sum(row[name] for row in rows) for name in ReadCosts.NAMES}  # each may be met by the reader or by reading ahead
    assert cost["fetch_retries"] >= 4 and cost["fetch_bytes"] > 40_000 and cost["cache_hits"] + cost["cache_misses"] >= 4
    assert cost["cache_evictions"] == 0
    assert not set(ReadCosts.NAMES) & set(Run(tmp_path / "local").metrics("train")[0])
    shown = "".join(capsys.readouterr())
    for word in ("hunter2", "topsecret"):
        assert word not in shown
        assert not [p for p in (tmp_path / "remote").rglob("*") if p.is_file() and word.encode() in p.read_bytes()]
    assert "http://***@" in (tmp_path / "remote" / "environment.json").read_text()


@pytest.mark.slow
def test_two_ranks_share_the_cache_and_add_up_what_they_fetched(texts, tmp_path):
    sets = [p for o in [*OVERRIDES, "data.workers=1"] for p in ("--set", o)]
    processes.together(processes.ranks(2, "pretrain", "gpt2-tiny", "--data", texts.url, "--tokenizer", tmp_path / "tok",
                                       "--out", tmp_path / "run", *sets,
                                       env={"POLYMODAL_CACHE": str(tmp_path / "cache"), "POLYMODAL_READ_TIMEOUT": "20"}))
    rows = Run(tmp_path / "run").metrics("train")
    tars = {asked[0] for asked in texts.tars()}
    assert len(texts.tars()) == len(tars) > 1  # every shard came once, to both ranks together
    assert sum(row["fetch_bytes"] for row in rows) >= sum((texts.folder / name).stat().st_size for name in tars)
