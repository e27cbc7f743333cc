"""A server that listens until it is told to stop: SIGTERM or Ctrl-C take no new requests and finish those that are there."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager

import uvicorn

from ...shared.errors import UserError
from .app import Limits, application
from .engine import Engine
from .served import Served

KEY = "POLYMODAL_API_KEY"
"""The environment variable with the API key; an argument could be read by every user of the machine."""
_HERE = ["localhost", "127.0.0.1", "[::1]"]


def serve(models: Mapping[str, Served], *, host: str = "127.0.0.1", port: int = 8000, batch_size: int = 16, most_waiting: int = 64,
          limits: Limits | None = None, ready: Callable[[str], None] = lambda address: None) -> None:
    """Serve models until SIGTERM or Ctrl-C.

    Args:
        models: what is served, by name.
        host: the address to listen at; for others than this machine's own, `POLYMODAL_API_KEY` must hold a key.
        port: 0 for any that is free.
        batch_size: rows that run together.
        most_waiting: requests that wait, at most.
        limits: of single requests.
        ready: called with the address once requests are taken.

    Raises:
        UserError: the address cannot be used, or other machines could use the server without a key.
    """
    key = check_host(host)
    listening = _listen(host, port)
    with listening:
        engine = Engine(batch_size, most_waiting)
        engine.start()
        local = is_loopback(host)
        app = application(models, engine, limits=limits, key=key, hosts=_HERE if local else None)
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", ws="none", log_level="warning", access_log=False, server_header=False,
                                               proxy_headers=False))
        shown = f"[{host}]" if ":" in host else host
        ready(f"http://{shown}:{listening.getsockname()[1]}")
        try:
            with _finishing():
                server.run(sockets=[listening])
        finally:
            engine.stop()


def check_host(host: str) -> str | None:
    """The API key, or None where this machine alone can ask and there is none; refused where others could."""
    key = os.environ.get(KEY) or None
    if key is None and not is_loopback(host):
        raise UserError(f"--host {host} lets other machines ask: set the environment variable {KEY} to a key that they have to send, or "
                        "leave --host out")
    return key


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UserError(f"--host {host} --port {port} cannot be used ({error}): choose others") from None


@contextmanager
def _finishing() -> Generator[None]:
    """Inside, SIGTERM is an end like any other: uvicorn finishes and then raises it again."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
