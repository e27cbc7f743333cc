"""A server of data sets that misbehaves in every way we know of, and what its tests share."""

import gzip
import hashlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from polymodal.pipelines.data.dataset import DataSet
from polymodal.pipelines.data.layout import BatchLayout
from polymodal.pipelines.data.stream import Stream
from polymodal.shared.system import Batch, Objective

EACH, SHARDS = 40, 5


def content(i):
    """The bytes of sample i: 4 to 12 KiB that no compressor would shrink."""
    return np.random.default_rng(i).bytes(4096 + i % 9 * 1024)


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


def read_all(data):
    for i in range(len(data)):
        assert data.read(i).fields["bin"] == content(i), i


def kept(cache, suffix=".tar"):
    return sorted(p.name for p in cache.glob(f"*{suffix}"))


def partial(cache):
    return sorted(p.name for p in cache.glob(".*part*"))


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
