"""Summaries of texts of any length, by an encoder-decoder that was trained to write them, or by a decoder behind "TL;DR:".

A text that the model cannot read at once is cut at sentence borders into pieces of like length, each piece is summarized
(map), and the summaries are put one behind the other. Where they are longer than one summary may be, they are a text to be
summarized again (reduce), until they are not. What the parts of a long text have to do with one another is lost on the way:
this is what a model with a short input can do.

An encoder-decoder reads a piece behind the prefix it was trained with ("summarize: "), and beam search writes: 4 beams and a
length penalty of 0.6 (Raffel et al. 2020, section 3.7), no three tokens twice (Paulus et al. 2018). The penalty is a power of
the length, as in transformers, where the paper takes Wu et al.'s power of (5 + length) / 6.

A decoder continues the piece and "TL;DR:" as in Radford et al. 2019, section 3.6: 100 tokens drawn among the 2 most
probable ones, of which the first three sentences are the summary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Unpack, overload

from torch import nn

from ...seq2seq.generation.defaults import check_beams, options_of
from ...seq2seq.generation.generate import generate_texts
from ...seq2seq.generation.options import FilledOptions, GenerationOptions, GenerationSettings
from ...shared.decoder import Decoder, EncoderDecoder, longest_source
from ...shared.errors import UserError
from ...shared.tokenizer import Tokenizer
from ..base.console import Bar, Console
from .pieces import Pieces
from .sentences import sentences
from .trained import merged, trained

HINT = "\nTL;DR:"
SENTENCES = 3
DEFAULT_INPUT = 512
ENCODER_DECODER: GenerationOptions = {"num_beams": 4, "no_repeat_ngram_size": 3, "length_penalty": 0.6}
DECODER: GenerationOptions = {"do_sample": True, "top_k": 2, "seed": 0}

Progress = Callable[[str, float | None], AbstractContextManager[Bar]]


@dataclass(frozen=True)
class Passage:
    """A part of a text and its summary."""

    text: str
    summary: str


@dataclass
class Summary:
    """What `summaries` made of one text."""

    text: str = ""
    """The summary."""
    rounds: list[list[Passage]] = field(default_factory=list)
    """The pieces of the text, then those of their summaries put together, and so on; the last round gave the summary."""


@overload
def summarize(  # pyright: ignore[reportOverlappingOverload]  (a str is a Sequence[str] too; the first match counts)
    model: nn.Module, texts: str, *, tokenizer: Tokenizer, prefix: str | None = None, max_length: int | None = None,
    batch_size: int = 16, ignore_generation_config: bool = False, **options: Unpack[GenerationOptions],
) -> str: ...
@overload
def summarize(
    model: nn.Module, texts: Sequence[str], *, tokenizer: Tokenizer, prefix: str | None = None, max_length: int | None = None,
    batch_size: int = 16, ignore_generation_config: bool = False, **options: Unpack[GenerationOptions],
) -> list[str]: ...
def summarize(
    model: nn.Module,
    texts: str | Sequence[str],
    *,
    tokenizer: Tokenizer,
    prefix: str | None = None,
    max_length: int | None = None,
    batch_size: int = 16,
    ignore_generation_config: bool = False,
    **options: Unpack[GenerationOptions],
) -> str | list[str]:
    """Summarize texts of any length: longer ones are cut at sentences, and the summaries of the pieces merged.

    Args:
        model: a text-to-text model (a fine-tuned T5) or a language model (GPT-2) from `polymodal.load`.
        texts: one text or several.
        tokenizer: the model's, from `polymodal.tokenizer`.
        prefix: what an encoder-decoder reads before each text; by default what it was trained with, as far as its
            directory tells.
        max_length: tokens that the model reads at once, prefix included; by default what it was trained with, or 512, or
            what a decoder's positions leave.
        batch_size: pieces that run together.
        ignore_generation_config: leave out the model's generation_config.json.
        **options: as in `polymodal.generate`; `max_new_tokens` is the longest a summary may be. What they leave open, the model's
            generation_config.json says where it has one. By default an
            encoder-decoder has `num_beams=4, no_repeat_ngram_size=3, length_penalty=0.6` and summaries as long as it was
            trained with, or 128 tokens; a decoder has `do_sample=True, top_k=2, seed=0` and 100 tokens.

    Raises:
        UserError: a text is empty, the model writes no text, or a summary would not be shorter than what is read.
    """
    single = isinstance(texts, str)
    given = [texts] if isinstance(texts, str) else list(texts)
    found = summaries(model, given, tokenizer, prefix=prefix, max_length=max_length, batch_size=batch_size,
                      ignore_generation_config=ignore_generation_config, **options)
    return found[0].text if single else [s.text for s in found]


def summaries(
    model: nn.Module,
    texts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    prefix: str | None = None,
    max_length: int | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
    ignore_generation_config: bool = False,
    **options: Unpack[GenerationOptions],
) -> list[Summary]:
    """The summaries of texts with the pieces that they were made of; arguments as in `summarize`.

    `progress(title, total)` is entered once a round and gives the bar to advance, as `Console.progress` does.
    """
    reader = _Reader(model, tokenizer, prefix, max_length, options_of(model, options, ignore=ignore_generation_config))
    check_beams(options, beams=reader.settings.num_beams > 1)
    progress = progress or Console(quiet=True).progress
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise UserError(f"text {number} of {len(texts)} is empty: there is nothing to summarize")
    found = [Summary() for _ in texts]
    waiting = dict(enumerate(texts))
    while waiting:
        pieces = {number: reader.pieces.cut(text) for number, text in waiting.items()}
        flat = [piece for several in pieces.values() for piece in several]
        with progress("merging" if found[next(iter(waiting))].rounds else "summarizing", len(flat)) as bar:
            written = iter(reader.write(flat, batch_size, bar.advance))
        waiting = {}
        for number, several in pieces.items():
            summary = found[number]
            summary.rounds.append([Passage(piece, next(written)) for piece in several])
            summary.text = " ".join(p.summary for p in summary.rounds[-1] if p.summary)
            fewer = len(summary.rounds) < 2 or len(several) < len(summary.rounds[-2])
            if len(several) > 1 and fewer and reader.pieces.length(summary.text) > reader.longest:
                waiting[number] = summary.text
    return found


class _Reader:
    """How a model reads pieces and writes their summaries."""

    def __init__(
        self, model: nn.Module, tokenizer: Tokenizer, prefix: str | None, max_length: int | None, options: FilledOptions
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        known = trained(model)
        if isinstance(model, EncoderDecoder):
            self.before, self.after, defaults = known.prefix if prefix is None else prefix, "", ENCODER_DECODER
            limit = max_length or known.max_length or tokenizer.max_length or DEFAULT_INPUT
            whole = options.get("max_length")
            longest = whole - 1 if whole else options.get("default_new_tokens") or known.max_target_length or min(128, limit // 4)
        elif isinstance(model, Decoder):
            if prefix:
                raise UserError('prefix is for encoder-decoders; a decoder gets "TL;DR:" behind the text')
            self.before, self.after, defaults = "", HINT, DECODER
            positions = model.decoder_info.max_positions
            longest = options.get("default_new_tokens") or min(100, positions // 4)
            positions -= options.get("max_new_tokens") or longest
            limit = min(max_length or positions, positions)
        else:
            raise UserError(f"{type(model).__name__} writes no text: load a fine-tuned T5, or a GPT-2")
        self.longest = options.get("max_new_tokens") or longest
        limit = min(limit, longest_source(model, self.longest) or limit)
        settings: FilledOptions = {**merged(defaults, options), "max_new_tokens": self.longest}
        self.settings = GenerationSettings(**settings)
        if self.settings.num_return_sequences > 1:
            raise UserError("a summary is one text: leave num_return_sequences out")
        self.pieces = Pieces(tokenizer, limit, self.before + self.after)
        room = max(self.pieces.room, 0)
        if room < 2 * self.longest:
            raise UserError(f"the model reads pieces of {room} tokens, and summaries of {self.longest} tokens would not be "
                            f"much shorter: ask for max_new_tokens of at most {room // 2}")

    def write(self, pieces: Sequence[str], batch_size: int, advance: Callable[[float], None]) -> list[str]:
        """The summary of each piece."""
        prompts = [self.before + piece + self.after for piece in pieces]
        found = generate_texts(self.model, prompts, self.tokenizer, self.settings, batch_size=batch_size, advance=advance)
        return [self._clean(several[0].text) for several in found]

    def _clean(self, text: str) -> str:
        text = text.strip()
        if not self.after:
            return text
        first = sentences(text)[:SENTENCES]
        return text[:first[-1][1]] if first else ""
