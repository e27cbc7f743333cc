"""A data set behind a server that misbehaves on request."""

import io
import tarfile

import pytest
from over_http import EACH, SHARDS, Server, content
from polymodal.pipelines.data.index import build_index
from polymodal.pipelines.data.remote.fetch import RetryPolicy


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
