"""What goes back: the objects of OpenAI's completions and embeddings."""

from __future__ import annotations

import base64
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from torch import Tensor

from ..._version import __version__
from ...seq2seq.generation.batch import GeneratedText
from ...seq2seq.generation.streamer import RowStreamer
from ...shared.tokenizer import Tokenizer
from ..base.files import json_line
from .engine import Piece, Request
from .fields import Completion, Embedding, refusal
from .served import Served


def model_object(served: Served) -> dict[str, Any]:
    """A model of the list; `max_model_len` as vLLM has it."""
    return {"id": served.name, "object": "model", "created": served.created, "owned_by": "polymodal",
            "max_model_len": served.longest_new if served.writes else served.longest_text, "capabilities": served.abilities}


class Completions:
    """The answer to a request for completions, whole or in pieces."""

    def __init__(self, wanted: Completion, now: int) -> None:
        self.wanted = wanted
        self.head: dict[str, Any] = {
            "id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": now, "model": wanted.fields.model,
            "system_fingerprint": f"polymodal-{__version__}-{wanted.served.fingerprint[:12]}"}
        if wanted.settings.do_sample:
            self.head["seed"] = wanted.settings.seed

    def _choice(self, place: int, copy: int, text: str, reason: str | None, logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
        return {"index": place * self.wanted.fields.n + copy, "text": text, "logprobs": logprobs, "finish_reason": reason}

    async def whole(self, request: Request) -> dict[str, Any]:
        """One object with all texts."""
        found: list[list[GeneratedText]] = await request.results()
        w = self.wanted
        choices = [self._choice(place, copy, w.before[place] + text.text, text.finish_reason,
                                _logprobs(text, w.fields.logprobs, w.served, w.asked[place].ids))
                   for place, several in enumerate(found) for copy, text in enumerate(several)]
        return {**self.head, "choices": choices, "usage": _usage(w, [text for several in found for text in several])}

    async def pieces(self, request: Request) -> AsyncIterator[str]:
        """Server-sent events: pieces of the texts as they are written, and at the end usage, where it is asked for."""
        w, done = self.wanted, list[GeneratedText]()
        try:
            for place, before in enumerate(w.before):
                for copy in range(w.fields.n if before else 0):
                    yield self._event([self._choice(place, copy, before, None)])
            async for event in request.events():
                if isinstance(event, Piece):
                    yield self._event([self._choice(event.place, event.copy, event.text, None)])
                else:
                    done.append(event.value)
                    yield self._event([self._choice(event.place, event.copy, "", event.value.finish_reason)])
        except Exception as error:  # the answer has begun: what went wrong can only be told inside it
            yield f"data: {json_line(refusal(error).body())}\n\n"
            return
        finally:
            request.cancelled = True  # also where the client left between two pieces
        if w.fields.stream_options.include_usage:
            yield self._event([], usage=_usage(w, done))
        yield "data: [DONE]\n\n"

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> str:
        return f"data: {json_line({**self.head, 'choices': choices, **more})}\n\n"


def _usage(wanted: Completion, texts: Sequence[GeneratedText]) -> dict[str, int]:
    read, written = sum(len(one.ids) for one in wanted.asked), sum(text.completion_tokens for text in texts)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _logprobs(text: GeneratedText, top: int | None, served: Served, prompt: Sequence[int]) -> dict[str, Any] | None:
    """The lists of OpenAI's completions; the token that was written is always among the most probable ones."""
    if top is None or text.logprobs is None:
        return None
    tokens = text.logprobs
    return {"tokens": [t.token for t in tokens], "token_logprobs": [t.logprob for t in tokens],
            "top_logprobs": [{t.token: t.logprob} | {other: value for other, _, value in reversed(t.top[:top])} for t in tokens]
            if top else None,
            "text_offset": _offsets([t.id for t in tokens], [] if served.answers else prompt, served.tokenizer)}


def _offsets(ids: Sequence[int], before: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Where the text of each token begins in the whole."""
    row, found, length = RowStreamer(tokenizer, before), list[int](), 0
    for token in ids:
        found.append(length)
        length += len(row.push(token))
    return found


def embeddings(wanted: Embedding, vectors: Sequence[Sequence[Tensor]]) -> dict[str, Any]:
    """The vectors, of length 1; `base64` holds little-endian fp32."""
    rows = [several[0] for several in vectors]
    coded = [base64.b64encode(row.numpy().astype("<f4").tobytes()).decode() if wanted.fields.encoding_format == "base64" else row.tolist()
             for row in rows]
    total = sum(wanted.lengths)
    return {"object": "list", "model": wanted.fields.model, "usage": {"prompt_tokens": total, "total_tokens": total},
            "data": [{"object": "embedding", "index": place, "embedding": value} for place, value in enumerate(coded)]}
