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

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Unpack, cast, overload

from torch import nn

from ...seq2seq.generation.decoder import Decoder, EncoderDecoder
from ...seq2seq.generation.defaults import options_of
from ...seq2seq.generation.generate import generate_texts
from ...seq2seq.generation.options import FilledOptions, GenerationOptions, GenerationSettings
from ...shared.errors import UserError
from ...shared.tokenizer import Tokenizer
from ..base.console import Bar, Console
from ..base.inputs import documents
from .sentences import sentences

HINT = "\nTL;DR:"
SENTENCES = 3
DEFAULT_INPUT = 512
ENCODER_DECODER: GenerationOptions = {"num_beams": 4, "no_repeat_ngram_size": 3, "length_penalty": 0.6}
DECODER: GenerationOptions = {"do_sample": True, "top_k": 2, "seed": 0}

Progress = Callable[[str, float | None], AbstractContextManager[Bar]]


@dataclass(frozen=True)
class Piece:
    """A part of a text and its summary."""

    text: str
    summary: str


@dataclass
class Summary:
    """What `summaries` made of one text."""

    text: str = ""
    """The summary."""
    rounds: list[list[Piece]] = field(default_factory=list)
    """The pieces of the text, then those of their summaries put together, and so on; the last round gave the summary."""


@dataclass(frozen=True)
class Trained:
    """What a model was trained with, as far as its directory tells."""

    prefix: str = ""
    max_length: int | None = None
    """Tokens of a text."""
    max_target_length: int | None = None
    """Tokens of what it wrote."""


def trained(model: nn.Module) -> Trained:
    """What a model from `polymodal.load` was fine-tuned with.

    A run, its checkpoints and its export have it in the run's system.json; a directory of transformers has the prefix in
    config.json, under `task_specific_params`.
    """
    directory: Path | None = getattr(getattr(model, "origin", None), "directory", None)
    if directory is None:
        return Trained()
    objective = _json(directory.parent / "system.json").get("objective")
    if directory.name in ("export", "tokenizer") and isinstance(objective, Mapping):
        told = cast("Mapping[str, Any]", objective)
        return Trained(str(told.get("prefix", "")), told.get("max_length"), told.get("max_target_length"))
    tasks: Any = _json(directory / "config.json").get("task_specific_params")
    try:
        return Trained(str(tasks["summarization"]["prefix"]))
    except (KeyError, TypeError):
        return Trained()


def _json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, Mapping) else {}  # pyright: ignore[reportUnknownVariableType]


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
    progress = progress or Console(quiet=True).progress
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise UserError(f"text {number} of {len(texts)} is empty: there is nothing to summarize")
    found = [Summary() for _ in texts]
    waiting = dict(enumerate(texts))
    while waiting:
        pieces = {number: reader.cut(text) for number, text in waiting.items()}
        flat = [piece for several in pieces.values() for piece in several]
        with progress("merging" if found[next(iter(waiting))].rounds else "summarizing", len(flat)) as bar:
            written = iter(reader.write(flat, batch_size, bar.advance))
        waiting = {}
        for number, several in pieces.items():
            summary = found[number]
            summary.rounds.append([Piece(piece, next(written)) for piece in several])
            summary.text = " ".join(p.summary for p in summary.rounds[-1] if p.summary)
            fewer = len(summary.rounds) < 2 or len(several) < len(summary.rounds[-2])
            if len(several) > 1 and fewer and reader.length(summary.text) > reader.longest:
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
        settings: FilledOptions = {**_merged(defaults, options), "max_new_tokens": self.longest}
        self.settings = GenerationSettings(**settings)
        if self.settings.num_return_sequences > 1:
            raise UserError("a summary is one text: leave num_return_sequences out")
        self.room = limit - len(tokenizer.encode(self.before + self.after)) - 1  # one for a border that splits otherwise
        if self.room < 2 * self.longest:
            raise UserError(f"the model reads pieces of {max(self.room, 0)} tokens, and summaries of {self.longest} tokens would not be "
                            f"much shorter: ask for max_new_tokens of at most {max(self.room // 2, 0)}")

    def length(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    def cut(self, text: str) -> list[str]:
        """The text, or pieces of whole sentences that the model can read, of like length."""
        if self.length(text) <= self.room:
            return [text.strip()]
        spans = [part for span in sentences(text) for part in self._fitting(text, *span)]
        # each with the space before it
        sizes = [self.length(text[before:end]) + 1 for before, (_, end) in zip([spans[0][0], *(end for _, end in spans)], spans)]
        count = len(_packed(sizes, self.room, float("inf")))
        groups = _packed(sizes, self.room, sum(sizes) / count)
        return [text[spans[group[0]][0]:spans[group[-1]][1]].strip() for group in groups]

    def _fitting(self, text: str, start: int, end: int) -> list[tuple[int, int]]:
        """The span of a sentence, cut at tokens where it is longer than a whole piece."""
        if self.length(text[start:end]) < self.room:
            return [(start, end)]
        places = [place for place in self.tokenizer.offsets(text[start:end])[1] if place[1] > place[0]]
        step = max(1, self.room // 2)  # a part may have more tokens than it had within the sentence
        borders = [start, *(start + places[i][0] for i in range(step, len(places), step)), end]
        return [(a, b) for a, b in pairwise(borders) if text[a:b].strip()]

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


def _packed(sizes: Sequence[int], room: int, share: float) -> list[list[int]]:
    """Neighbours in groups whose sizes add up to at most `room`; the k-th group ends where the sum is nearest to k * share."""
    groups: list[list[int]] = []
    size = total = 0
    for number, more in enumerate(sizes):
        if not groups or size + more > room or total + more / 2 > share * len(groups):
            groups.append([])
            size = 0
        groups[-1].append(number)
        size, total = size + more, total + more
    return groups


def _merged(defaults: GenerationOptions, options: FilledOptions) -> FilledOptions:
    """The options over the defaults; to search beams means not to draw, and the other way round."""
    merged: FilledOptions = {**defaults, **options}
    if options.get("num_beams", 1) > 1 and "do_sample" not in options:
        merged["do_sample"] = False
    if (options.get("do_sample") or options.get("stop_strings")) and "num_beams" not in options:
        merged["num_beams"] = 1
    return merged


def read_references(path: Path, count: int) -> list[str]:
    """The right summaries of `count` texts: the lines of a file, or all of it where there is one text."""
    found = documents([str(path)], lines=count > 1)
    if len(found) != count:
        raise UserError(f"{path} holds {len(found)} summaries for {count} texts: expected one a line, in the order of the texts")
    return [d.text for d in found]
