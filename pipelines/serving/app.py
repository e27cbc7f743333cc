"""The routes: OpenAI's `/v1/completions`, `/v1/embeddings` and `/v1/models`, and `/health`.

What comes in is bounded before it is read: the size of a body, the number of texts, the requests that wait. Only `application/json` is
taken, and on a loopback address only names of this machine as `Host`: so no page in a browser can use the server behind its user's back.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request as Http
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ...shared.errors import UserError
from .answers import Completions, embeddings, model_object
from .engine import Busy, Engine, Failed, Request
from .fields import Refused, completion, embedding, refusal
from .served import Served

T = TypeVar("T")

RETRY_AFTER = "1"
"""Seconds after which a client may ask again when too many wait."""


@dataclass(frozen=True)
class Limits:
    """What a client may ask for."""

    body: int = 1 << 20
    """Bytes of a body."""
    texts: int = 128
    """Texts that one request for completions gives."""
    inputs: int = 2048
    """Texts of one request for embeddings (OpenAI's limit)."""


def application(models: Mapping[str, Served], engine: Engine, *, limits: Limits | None = None, key: str | None = None,
                hosts: list[str] | None = None) -> Starlette:
    """The server as an ASGI application.

    Args:
        models: what is served, by name.
        engine: what runs it; started by the caller.
        limits: of requests.
        key: what clients send as `Authorization: Bearer KEY`; None for no question.
        hosts: values of `Host` that are answered; None for any.
    """
    limits = limits or Limits()

    async def completions(http: Http) -> Response:
        body = await _body(http, limits.body)
        wanted = await run_in_threadpool(completion, body, models, limits.texts)
        answer = Completions(wanted, int(time.time()))
        request = wanted.served.completion_request(wanted.settings, wanted.asked, wanted.fields.max_tokens, listen=wanted.fields.stream)
        _submit(engine, request)
        if wanted.fields.stream:
            return StreamingResponse(answer.pieces(request), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        return JSONResponse(await _unless_gone(http, answer.whole(request)))

    async def vectors(http: Http) -> Response:
        wanted = await run_in_threadpool(embedding, await _body(http, limits.body), models, limits.inputs)
        request = wanted.served.embedding_request(wanted.texts, wanted.lengths)
        _submit(engine, request)
        return JSONResponse(embeddings(wanted, await _unless_gone(http, request.results())))

    async def listed(http: Http) -> Response:
        return JSONResponse({"object": "list", "data": [model_object(served) for served in models.values()]})

    async def one(http: Http) -> Response:
        name = http.path_params["name"]
        if name not in models:
            raise Refused(404, f"there is no model {name!r}; there are {', '.join(models)}", param="model", code="model_not_found")
        return JSONResponse(model_object(models[name]))

    async def chat(http: Http) -> Response:
        raise Refused(400, "none of these models has a template for chats: send the whole prompt to /v1/completions",
                      code="no_chat_template")

    async def health(http: Http) -> Response:
        return JSONResponse({"status": "ok", "waiting": engine.waiting, "batches": engine.batches})

    def guarded(handler: Callable[[Http], Awaitable[Response]]) -> Callable[[Http], Awaitable[Response]]:
        async def asked(http: Http) -> Response:
            given = http.headers.get("authorization", "")
            if key is not None and not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
                raise Refused(401, "the API key is missing or wrong: send Authorization: Bearer KEY", code="invalid_api_key")
            return await handler(http)

        return asked

    routes = [Route("/v1/completions", guarded(completions), methods=["POST"]), Route("/v1/embeddings", guarded(vectors), methods=["POST"]),
              Route("/v1/chat/completions", guarded(chat), methods=["POST"]), Route("/v1/models", guarded(listed)),
              Route("/v1/models/{name}", guarded(one)), Route("/health", health)]
    middleware = [] if hosts is None else [Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)]
    return Starlette(routes=routes, middleware=middleware, exception_handlers={
        Refused: _told, UserError: _told, Failed: _told, HTTPException: _unknown, _Gone: _nobody, Exception: _told})


async def _body(http: Http, most: int) -> dict[str, Any]:
    """The object in the body, of at most so many bytes."""
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, f"the content type is {kind or 'missing'}, expected application/json")
    size, parts = 0, list[bytes]()
    async for part in http.stream():
        size += len(part)
        if size > most:
            raise Refused(413, f"the body has more than {most} bytes", code="request_too_large", headers={"Connection": "close"})
        parts.append(part)
    try:
        found: Any = await run_in_threadpool(json.loads, b"".join(parts))
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON") from None
    if not isinstance(found, dict):
        raise Refused(400, "the body must be a JSON object")
    return found


def _submit(engine: Engine, request: Request) -> None:
    try:
        engine.submit(request)
    except Busy:
        raise Refused(429, f"{engine.most_waiting} requests wait already: ask again later", code="rate_limit_exceeded",
                      headers={"Retry-After": RETRY_AFTER}) from None


class _Gone(Exception):
    """The client went away."""


async def _unless_gone(http: Http, work: Awaitable[T]) -> T:
    """What `work` gives; it is given up when the client goes away."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(http))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _Gone
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _left(http: Http) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def _told(http: Http, error: Exception) -> Response:
    """The answer in the shape of OpenAI's errors."""
    answer = refusal(error)
    return JSONResponse(answer.body(), answer.status, answer.headers)


async def _unknown(http: Http, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = http.url.path
    message = {404: f"there is no {path}", 405: f"{path} does not take {http.method}"}.get(error.status_code, error.detail)
    return JSONResponse(Refused(error.status_code, message).body(), error.status_code, error.headers)


async def _nobody(http: Http, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it
