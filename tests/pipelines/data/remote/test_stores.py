"""Data sets in object stores: s3 by moto's server, gs by a small server that speaks the two requests of gcsfs; both on loopback."""

import hashlib
import logging
import pickle
import sys
import tarfile
import threading
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import boto3
import fsspec
import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from polymodal.pipelines.data.dataset import DataSet
from polymodal.pipelines.data.index import INDEX, build_index
from polymodal.pipelines.data.layout import BatchLayout
from polymodal.pipelines.data.remote import transport
from polymodal.pipelines.data.remote.fetch import RetryPolicy
from polymodal.pipelines.data.stream import Stream
from polymodal.shared.errors import UserError
from polymodal.shared.system import Batch, Objective

pytestmark = pytest.mark.slow


def content(i):
    return np.random.default_rng(i).bytes(20_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    for s in range(2):
        with tarfile.open(place / f"s {s}.tar", "w") as file:
            for i in range(s * 30, s * 30 + 30):
                info = tarfile.TarInfo(f"{i:04d}.bin")
                info.size = 20_000
                file.addfile(info, BytesIO(content(i)))
    build_index(place)
    return place


class Relay(ThreadingHTTPServer):
    """Hands requests on to a server, or misbehaves: `fault(path, number of the request for this path)`."""

    daemon_threads = True

    def __init__(self, target):
        super().__init__(("127.0.0.1", 0), RelayHandler)
        self.target, self.fault, self.asked = target, lambda path, number: "", []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def handle_error(self, *_):
        pass


class RelayHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = urllib.parse.unquote(self.path.partition("?")[0])
        self.server.asked.append((path, self.headers.get("Range")))
        fault = self.server.fault(path, sum(p == path for p, _ in self.server.asked))
        status, headers, body = self.server.target(self)
        if fault.isdigit():
            status, headers, body = int(fault), {}, b"<Error><Code>InternalError</Code><Message>oops</Message></Error>"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "cut":
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            self.connection.shutdown(2)
        elif fault == "stall":
            threading.Event().wait(6)
        else:
            self.wfile.write(body)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(RetryPolicy, "pause", 0.01)
    monkeypatch.setenv("POLYMODAL_READ_TRIES", "3")
    monkeypatch.setenv("POLYMODAL_READ_TIMEOUT", "10")
    monkeypatch.setattr(transport, "_BLOCK", 200_000)
    for name in ("POLYMODAL_CACHE", "POLYMODAL_CACHE_BYTES"):
        monkeypatch.delenv(name, raising=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)


@pytest.fixture(scope="module")
def moto():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(moto, folder, monkeypatch, tmp_path):
    """The address of the data set in a bucket behind a relay, and the relay."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the-key-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret-key")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    client = boto3.client("s3", endpoint_url=moto)
    bucket = f"b{abs(hash(str(tmp_path))) % 10**9}"
    client.create_bucket(Bucket=bucket)
    for path in folder.iterdir():
        client.put_object(Bucket=bucket, Key=f"sets/one/{path.name}", Body=path.read_bytes())

    def target(handler):
        request = urllib.request.Request(moto + handler.path, headers=dict(handler.headers))
        try:
            with urllib.request.urlopen(request) as answer:
                kept = ("ETag", "Content-Range", "Content-Type", "Last-Modified")
                return answer.status, {k: answer.headers[k] for k in kept if k in answer.headers}, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, {}, error.read()

    relay = Relay(target)
    monkeypatch.setenv("AWS_ENDPOINT_URL", relay.url)
    yield f"s3://{bucket}/sets/one", relay, client, bucket
    relay.shutdown()
    relay.server_close()


@pytest.fixture
def gs(folder, monkeypatch):
    """The same in a bucket of a server that knows `media` requests with ranges."""

    def target(handler):
        path = urllib.parse.unquote(handler.path.partition("?")[0])
        prefix = "/download/storage/v1/b/bucket/o/sets/one/"
        file = folder / path.removeprefix(prefix)
        if not path.startswith(prefix) or not file.is_file():
            return 404, {}, b"{}"
        data = file.read_bytes()
        first, last = handler.headers["Range"].removeprefix("bytes=").split("-")
        if int(first) >= len(data):
            return 416, {}, b""
        part = data[int(first) : int(last) + 1]
        return 206, {"Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"}, part

    relay = Relay(target)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", relay.url)
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
    yield "gs://bucket/sets/one", relay, None, None
    relay.shutdown()
    relay.server_close()


@pytest.fixture(params=["s3", "gs"])
def store(request):
    return request.getfixturevalue(request.param)


def read_all(data):
    for i in range(len(data)):
        assert data.read(i).fields["bin"] == content(i), i


def test_a_data_set_in_a_store(store, tmp_path):
    address, relay, _, _ = store
    data = DataSet.open(address, cache=tmp_path / "cache")
    read_all(pickle.loads(pickle.dumps(data)))
    asked = [r for p, r in relay.asked if p.endswith("s 0.tar")]
    assert asked == ["bytes=0-199999", "bytes=200000-399999", "bytes=400000-599999", "bytes=600000-799999"]  # blocks of a shard
    count = len(relay.asked)
    read_all(DataSet.open(address, cache=tmp_path / "cache"))
    assert len(relay.asked) == count + 1 and data.directory == address


@pytest.mark.parametrize("fault", ["500", "503", "cut", "stall"])
def test_a_store_in_trouble_still_gives_exact_data(s3, tmp_path, fault, monkeypatch):
    address, relay, _, _ = s3
    monkeypatch.setenv("POLYMODAL_READ_TIMEOUT", "2" if fault == "stall" else "10")
    relay.fault = lambda path, number: fault if path.endswith("s 1.tar") and number in (1, 3) else ""
    data = DataSet.open(address, cache=tmp_path / "cache")
    read_all(data)
    assert data.read_costs()["fetch_retries"] == 2 and len([p for p, _ in relay.asked if p.endswith("s 1.tar")]) == 6


def test_gs_in_trouble_still_gives_exact_data(gs, tmp_path):
    address, relay, _, _ = gs
    relay.fault = lambda path, number: "503" if path.endswith("s 1.tar") and number == 2 else ""
    read_all(DataSet.open(address, cache=tmp_path / "cache"))


def test_what_is_not_there_or_not_allowed_fails_at_once(s3, tmp_path, monkeypatch):
    address, relay, client, bucket = s3
    with pytest.raises(UserError, match=r"index\.json does not exist: no index"):
        DataSet.open(address + "/none", cache=tmp_path / "cache")
    data = DataSet.open(address, cache=tmp_path / "cache")
    client.delete_object(Bucket=bucket, Key="sets/one/s 0.tar")
    with pytest.raises(UserError, match=r"s 0\.tar does not exist: the index names it"):
        data.read(0)
    relay.fault = lambda path, number: "403"
    before = len(relay.asked)
    with pytest.raises(UserError, match="AWS_ACCESS_KEY_ID") as caught:
        data.read(30)
    assert len(relay.asked) == before + 1 and "the-secret-key" not in str(caught.value) and "the-key-id" not in str(caught.value)
    relay.fault = lambda path, number: "500"
    with pytest.raises(UserError, match="gave up after 3 tries"):
        DataSet.open(address, cache=tmp_path / "cache")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"access was denied|AWS_ACCESS_KEY_ID"):
        DataSet.open(address, cache=tmp_path / "cache")


def test_an_object_that_changed_is_an_error(s3, folder, tmp_path):
    address, _, client, bucket = s3
    data = DataSet.open(address, cache=tmp_path / "cache")
    size = (folder / "s 0.tar").stat().st_size
    client.put_object(Bucket=bucket, Key="sets/one/s 0.tar", Body=bytes(size))
    with pytest.raises(UserError, match="not what its index says: got"):
        data.read(0)
    client.put_object(Bucket=bucket, Key="sets/one/s 0.tar", Body=bytes(1000))
    with pytest.raises(UserError, match=r"ended after 1000 of|has at most 1000 bytes"):
        data.read(0)


class Raw(Objective):
    def example(self, sample, rng):
        yield sample.fields["bin"]

    def collate(self, examples):
        batch = Batch(counts={"samples": len(examples)})
        batch.task = hashlib.sha256(b"".join(examples)).hexdigest()
        return batch


@pytest.mark.parametrize("workers", [0, 2])
def test_the_stream_reads_from_a_store_in_forked_workers(store, folder, tmp_path, workers):
    """Clients of stores live in threads that a fork leaves behind: each worker makes its own."""
    found = []
    for source in (folder, store[0]):
        data = DataSet.open(source, cache=tmp_path / "cache")
        data.read(0)  # the client of this process is in use before the workers are forked
        loader = Stream(data, Raw(), BatchLayout(10), lanes=2, window=8).loader(1, workers=workers)
        found.append([next(loader).task for _ in range(9)])
        loader.close()
    assert found[0] == found[1]


@pytest.mark.parametrize(("address", "module"), [("s3://bucket/x", "s3fs"), ("gs://bucket/x", "gcsfs")])
def test_what_is_not_installed_is_named(address, module, monkeypatch):
    for name in (module, f"{module}.core"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"needs {module}, which is not installed: pip install '{module}>=[0-9.]+'"):
        DataSet.open(address)


@pytest.mark.parametrize("address", ["s3://key:secret@bucket/x", "s3://", "gs:///x", "s3://bucket?sig=secret/x"])
def test_addresses_that_are_none(address):
    with pytest.raises(UserError, match=r"expected .*BUCKET/PATH") as caught:
        DataSet.open(address)
    assert "secret" not in str(caught.value)


def test_the_index_of_a_store_is_the_one_of_the_folder(store, folder, tmp_path):
    data = DataSet.open(store[0] + "/", cache=tmp_path / "cache")
    assert data.index.to_json() == (folder / INDEX).read_text() and data.fingerprint == DataSet.open(folder).fingerprint
