"""One request to where remote data lies: http(s) with the standard library, s3 and gs through fsspec.

A transport asks once and tells what came; trying again is for `fetch.py`. Its errors say whether that can help:
`TransientError` may pass, `PermanentError` will not. Credentials come from the address, ~/.netrc, or the provider's own environment
variables and files.
"""

from __future__ import annotations

import base64
import functools
import http.client
import importlib
import os
import ssl
import urllib.error
import urllib.parse
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ....shared.errors import UserError
from ...base.install import install_line
from ...base.redact import redact

_BLOCK = 8 << 20
"""Bytes of one request to an object store."""
_PASSING = (408, 425, 429)
"""Statuses below 500 after which a later request may succeed."""


class TransientError(Exception):
    """A request failed in a way that may pass."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        """`wait`: seconds that the server asks for."""
        super().__init__(reason)
        self.wait = wait


class PermanentError(Exception):
    """A request failed in a way that will not pass."""


class NotFoundError(PermanentError):
    """There is no such file."""


class PastEndError(Exception):
    """The file ends before the bytes that were asked for."""


@dataclass
class Response:
    """What a server sends."""

    start: int
    """Where in the file the body begins, whatever was asked for."""
    size: int | None
    """Bytes of the whole file as the server tells, where it does."""
    tag: str
    """Names this version of the file, so that no other one is taken for its rest; empty where the server has no such name."""
    read: Callable[[int], bytes]
    """At most `size` of the next bytes; empty at the end. Raises `TransientError`."""
    close: Callable[[], object]


class Transport(ABC):
    """A place with named files behind a network. Picklable."""

    root: str
    """The address as people may read it."""

    @abstractmethod
    def open(self, name: str, start: int = 0, end: int | None = None, tag: str = "") -> Response:
        """Ask for the bytes [start, end) of a file, if it still is the version called `tag`; else for all of it.

        Raises:
            TransientError, PermanentError, NotFoundError, PastEndError: see there; the messages hold no secrets.
        """

    def address(self, name: str) -> str:
        """A file's full name for messages."""
        return f"{self.root}/{name}"


class Http(Transport):
    """http(s), one connection for each request. A query string (a signature) goes with every file."""

    def __init__(self, url: str, timeout: float) -> None:
        """`timeout`: seconds to wait for a connection and for each next piece."""
        parts = urllib.parse.urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        try:
            self._login = _login(parts)
            if not parts.hostname or (parts.port is not None and not parts.port):
                raise ValueError
        except ValueError:
            raise UserError(f"{redact(url)} is not an address: expected https://HOST/PATH") from None
        self._base = urllib.parse.urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
        self._query = parts.query
        self._timeout = timeout
        self.root = redact(self._base)

    def open(self, name: str, start: int = 0, end: int | None = None, tag: str = "") -> Response:
        """See `Transport`."""
        address = f"{self._base}/{urllib.parse.quote(name)}" + (f"?{self._query}" if self._query else "")
        request = urllib.request.Request(address, headers={"Accept-Encoding": "identity", "User-Agent": "polymodal"})
        if self._login:
            request.add_unredirected_header("Authorization", self._login)  # not for where a redirect leads
        if start or end is not None:
            request.add_header("Range", f"bytes={start}-{'' if end is None else end - 1}")
            if tag:
                request.add_header("If-Range", tag)
        try:
            answer = _opener().open(request, timeout=self._timeout)
        except urllib.error.HTTPError as error:
            with error:
                raise _status_error(error.code, str(error.reason), error.headers.get("Retry-After", "")) from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise PermanentError(f"the certificate is not trusted ({error.reason.verify_message}); SSL_CERT_FILE names a file with "
                                     "more authorities") from None
            raise TransientError(_describe(error.reason)) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise TransientError(_describe(error)) from None
        encoding = answer.headers.get("Content-Encoding", "identity")
        if encoding != "identity":
            answer.close()
            raise PermanentError(f"the server sends it as {encoding}: have it sent as it is")
        first, size = _extent(answer)
        return Response(first, size, _tag(answer.headers), functools.partial(_read, answer), answer.close)


def _login(parts: urllib.parse.SplitResult) -> str:
    """The header of the user in the address, or of ~/.netrc; empty where there is none."""
    user, password = parts.username, parts.password
    if user is None:
        import netrc

        try:
            found = netrc.netrc(os.environ.get("NETRC")).authenticators(parts.hostname or "")
        except (OSError, netrc.NetrcParseError):
            found = None
        if found is None:
            return ""
        user, password = found[0], found[2]
    else:
        user, password = urllib.parse.unquote(user), urllib.parse.unquote(password or "")
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
    """Follows redirects to http(s) and nowhere else, and heeds the environment's proxies."""
    opener = urllib.request.OpenerDirector()
    for handler in (urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler,
                    urllib.request.HTTPRedirectHandler, urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPErrorProcessor,
                    urllib.request.UnknownHandler):
        opener.add_handler(handler())
    return opener


def _read(answer: http.client.HTTPResponse, count: int) -> bytes:
    try:
        return answer.read1(count)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise TransientError(_describe(error)) from None


def _extent(answer: http.client.HTTPResponse) -> tuple[int, int | None]:
    """(where the body begins, size of the whole file)."""
    if answer.status == http.HTTPStatus.PARTIAL_CONTENT:
        unit, _, extent = answer.headers.get("Content-Range", "").partition(" ")
        span, _, size = extent.partition("/")
        first = span.partition("-")[0]
        if unit != "bytes" or not first.isdigit():
            answer.close()
            raise TransientError("the server sent a part and does not say which")
        return int(first), int(size) if size.isdigit() else None
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _tag(headers: Any) -> str:
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified", "")  # a weak ETag (W/...) does not promise equal bytes


def _describe(error: object) -> str:
    """An error in words without secrets."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    text = redact(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _status_error(status: int, reason: str, wait: str = "") -> Exception:
    """The error that a status stands for."""
    told = f"the server answered {status} {reason}".rstrip()
    if status in (404, 410):
        return NotFoundError(told)
    if status == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return PastEndError(told)
    if status >= 500 or status in _PASSING:
        return TransientError(told, float(wait) if wait.isdigit() else 0.0)
    if status in (401, 403):
        return PermanentError(f"{told}: the credentials are lacking, wrong or expired")
    return PermanentError(told)


_EXTRAS = {"s3": ("s3fs", "s3", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws"),
           "gs": ("gcsfs.core", "gcs", "GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`")}


class ObjectStore(Transport):
    """s3:// and gs:// through fsspec, block by block."""

    def __init__(self, url: str, timeout: float) -> None:
        """`timeout`: seconds for each block."""
        scheme, _, path = url.partition("://")
        self._scheme = "gs" if scheme == "gcs" else scheme
        bucket = path.partition("/")[0]
        if not bucket or set(bucket) & set("@:?#"):
            raise UserError(f"{redact(url)} is not an address: expected {scheme}://BUCKET/PATH, without credentials; they come from "
                            f"{_EXTRAS[self._scheme][2]}")
        self._path = path.rstrip("/")
        self._timeout = timeout
        self._made: tuple[int, Any] | None = None
        self.root = f"{scheme}://{self._path}"
        self._filesystem()  # what is not installed is told now

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}

    def open(self, name: str, start: int = 0, end: int | None = None, tag: str = "") -> Response:
        """See `Transport`. There are no tags: the hash of the whole tells in the end."""
        at = start
        block = self._get(name, start, end)  # errors are told here, as by a server's status
        last = len(block) < _BLOCK

        def read(count: int) -> bytes:
            nonlocal at, block, last
            if not block and not last:
                try:
                    block = self._get(name, at, end)
                except PastEndError:
                    block = b""
                last = len(block) < _BLOCK
            piece, block = block[:count], block[count:]
            at += len(piece)
            return piece

        return Response(start, None, "", read, lambda: None)

    def _get(self, name: str, start: int, end: int | None) -> bytes:
        """At most one block from `start` on."""
        from fsspec.asyn import sync

        try:
            files = self._filesystem()
            stop = start + _BLOCK if end is None else min(end, start + _BLOCK)
            found: Any = sync(files.loop, files._cat_file, f"{self._path}/{name}", start=start, end=stop,  # noqa: SLF001
                              timeout=self._timeout)
            return bytes(found)
        except (MemoryError, UserError):
            raise
        except Exception as error:  # each store has its own classes
            raise self._meaning(error) from None

    def _filesystem(self) -> Any:
        """The store's client, one for each process: it lives in threads, which a fork leaves behind."""
        if self._made is None or self._made[0] != os.getpid():
            module, extra, _ = _EXTRAS[self._scheme]
            options: dict[str, Any] = {"skip_instance_cache": True}
            if self._scheme == "s3":  # trying again is for `fetch.py`, which counts it
                options["config_kwargs"] = {"connect_timeout": self._timeout, "read_timeout": self._timeout,
                                            "retries": {"total_max_attempts": 1}}
            try:  # not by fsspec's registry: its class for gs asks for the kind of each bucket by gRPC, which no fork survives
                make: Any = getattr(importlib.import_module(module), "S3FileSystem" if self._scheme == "s3" else "GCSFileSystem")
            except ImportError:
                name = module.partition(".")[0]
                raise UserError(f"{self._scheme}:// needs {name}, which is not installed: {install_line(extra)}") from None
            files: Any = make(**options)
            files.retries = 1
            self._made = os.getpid(), files
        return self._made[1]

    def _meaning(self, error: BaseException) -> Exception:
        """What a client's error means for us."""
        where = _EXTRAS[self._scheme][2]
        status = _status(error)
        if isinstance(error, FileNotFoundError):
            return NotFoundError("there is no such object")
        if isinstance(error, PermissionError) or "Credential" in type(error).__name__:
            return PermanentError(f"access was denied ({_describe(error)}); credentials come from {where}")
        if status is not None:
            found = _status_error(status, _describe(error))
            return PermanentError(f"{found}; they come from {where}") if status in (401, 403) else found
        return TransientError(_describe(error))


def _status(error: BaseException | None) -> int | None:
    """The HTTP status behind a client's error, where there is one: of botocore, aiohttp or gcsfs."""
    while error is not None:
        response = getattr(error, "response", None)
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else getattr(error, "status", None)
        if found is None and type(error).__name__ == "HttpError":
            found = getattr(error, "code", None)
        if isinstance(found, int) and 400 <= found < 600:
            return found
        error = error.__cause__
    return None
