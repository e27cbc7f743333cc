"""Passwords and keys of an address are used and never told."""

import base64

import pytest
from over_http import EACH, Server, content, kept
from polymodal.pipelines.data.dataset import DataSet
from polymodal.shared.errors import UserError


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
