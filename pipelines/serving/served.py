"""A model that is served: what it can do, how long its texts may be, and a batch of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import nn

from ...seq2seq.generation.batch import Asked, GeneratedText, write
from ...seq2seq.generation.defaults import options_of
from ...seq2seq.generation.options import GenerationSettings
from ...shared.decoder import Decoder, DecoderInfo, EncoderDecoder
from ...shared.errors import UserError
from ...shared.tokenizer import Tokenizer
from ..inference.embed import embed
from ..model.frontdoor import for_inference, longest_input
from ..model.open import choose_device, fingerprint, open_text_model
from .engine import Item, Piece, Request, Result

COMPLETIONS, EMBEDDINGS = "completions", "embeddings"
UNLIMITED = sys.maxsize - 1
"""From here on, `DecoderInfo.max_positions` means any number."""
LONGEST = 4096
"""Tokens of a prompt and its text where neither the model nor the caller has a limit."""


@dataclass
class Served:
    """A loaded model under a name."""

    name: str
    model: nn.Module
    tokenizer: Tokenizer
    fingerprint: str
    """Of weights and tokenizer."""
    embeds: bool
    """Whether it makes vectors of texts."""
    max_model_len: int | None = None
    """Tokens of a prompt and its text together, or of a text that becomes a vector: at most this many."""
    ignore_generation_config: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def writes(self) -> bool:
        """Whether it continues or answers texts."""
        return isinstance(self.model, (Decoder, EncoderDecoder))

    @property
    def answers(self) -> bool:
        """Whether what it writes stands alone."""
        return isinstance(self.model, EncoderDecoder)

    @property
    def abilities(self) -> list[str]:
        """What can be asked of it."""
        return [*([COMPLETIONS] if self.writes else []), *([EMBEDDINGS] if self.embeds else [])]

    @property
    def info(self) -> DecoderInfo | None:
        """A writer's limits."""
        return getattr(self.model, "decoder_info", None)

    @property
    def shares_positions(self) -> bool:
        """Whether a prompt and its text take positions from each other."""
        return not self.answers or (self.info is not None and self.info.shares_positions)

    @property
    def longest_new(self) -> int:
        """Tokens that it writes at most; with those of the prompt, where they share positions."""
        info = self.info
        return _least(None if info is None else info.max_positions - (not self.shares_positions), self.max_model_len)

    @property
    def longest_text(self) -> int:
        """Tokens of a text that it reads, special tokens included."""
        return _least(longest_input(self.model), self.tokenizer.max_length, self.max_model_len)

    def completion_request(self, settings: GenerationSettings, asked: Sequence[Asked], new: int, *, listen: bool) -> Request:
        """A request for continuations of at most `new` tokens; with `listen` it hears their pieces."""
        common = replace(settings, max_new_tokens=None, seed=None, stop_strings=(), logprobs=None)
        request = Request(partial(self._write, common), room=self.longest_new if self.shares_positions else None,
                          copies=settings.num_return_sequences)
        for place, one in enumerate(asked):
            # what a rule counts must be the same for all rows of a batch: tokens of the prompt, or the last place of a text
            kind = (self.name, COMPLETIONS, common, new if settings.forced_eos_token_id is not None else None,
                    len(one.ids) if settings.min_length else None)
            mine = replace(one, listener=partial(_hear, request, place) if listen else None, wanted=lambda: not request.cancelled,
                           done=partial(_done, request, place))
            request.add(kind, (mine, settings.logprobs), len(one.ids), new)
        return request

    def _write(self, common: GenerationSettings, items: Sequence[Item]) -> None:
        new = max(item.new for item in items)
        payloads = cast("list[tuple[Asked, int | None]]", [item.payload for item in items])
        asked = [replace(one, max_new_tokens=item.new if item.new < new else None) for item, (one, _) in zip(items, payloads)]
        wanted = [count for _, count in payloads if count is not None]
        write(self.model, asked, self.tokenizer, replace(common, max_new_tokens=new, logprobs=max(wanted, default=None)))

    def embedding_request(self, texts: Sequence[str], lengths: Sequence[int]) -> Request:
        """A request for the vectors of texts."""
        request = Request(self._embed)
        for text, length in zip(texts, lengths):
            request.add((self.name, EMBEDDINGS), text, length)
        return request

    def _embed(self, items: Sequence[Item]) -> None:
        vectors = embed(self.model, [item.payload for item in items], self.tokenizer, max_length=self.longest_text, batch_size=len(items))
        for item, vector in zip(items, vectors):
            item.request.tell(Result(item.place, 0, vector))


def _least(*limits: int | None) -> int:
    return min((limit for limit in limits if limit is not None and limit < UNLIMITED), default=LONGEST)


def _hear(request: Request, place: int, copy: int, text: str) -> None:
    request.tell(Piece(place, copy, text))


def _done(request: Request, place: int, copy: int, text: GeneratedText) -> None:
    request.tell(Result(place, copy, text))


def open_served(sources: Sequence[str], device: str | None, quantize: str | None, rows: int, *, max_model_len: int | None = None,
                ignore_generation_config: bool = False) -> dict[str, Served]:
    """The models by their names: `NAME=MODEL`, or MODEL, which is called as its last part.

    Args:
        sources: where they are.
        device: where they compute.
        quantize: fewer bits for the weights.
        rows: that run together, for the layout of the weights.
        max_model_len: as in `Served`.
        ignore_generation_config: leave out the models' own defaults.

    Raises:
        UserError: two have one name, one of them reads no text, or its generation_config.json cannot be honoured.
    """
    named: dict[str, str] = {}
    for given in sources:
        name, found, source = given.partition("=")
        if not found or Path(given).exists():
            name, source = Path(given.rstrip("/")).resolve().name if Path(given).exists() else given.rstrip("/").rpartition("/")[2], given
        if not name or "/" in name:
            raise UserError(f"--model {given}: {name!r} is no name for a model; give NAME=MODEL, with a name without slashes")
        if name in named:
            raise UserError(f"--model {given}: {named[name]} is called {name!r} already; give NAME=MODEL")
        named[name] = source
    place = choose_device(device, quantize)
    opened: dict[str, Served] = {}
    for name, source in named.items():
        model, tokenizer = open_text_model(source, None, place)
        served = Served(name, model, tokenizer, fingerprint(model, tokenizer.fingerprint, str(quantize)), _embeds(model, tokenizer),
                        max_model_len, ignore_generation_config)
        if not served.abilities:
            raise UserError(f"--model {source}: {type(model).__name__} neither writes texts nor makes vectors of them")
        if served.writes:
            options_of(model, {}, ignore=ignore_generation_config)  # a file that asks for what is not there is told now
        served.model = for_inference(model, cast("Any", quantize), prepack=True, rows=rows)
        opened[name] = served
    return opened


def _embeds(model: nn.Module, tokenizer: Tokenizer) -> bool:
    """Whether a network makes vectors of texts alone; tried on one."""
    try:
        return embed(model, ["a"], tokenizer).numel() > 0
    except (UserError, TypeError, AssertionError):  # no reader of texts; or one that needs more than a text
        return False
