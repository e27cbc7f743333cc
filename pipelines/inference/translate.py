"""Translations by an encoder-decoder that was trained on pairs of texts.

A text that the model cannot read at once is cut at the borders of sentences, and its pieces are translated one by one. A model with
languages (MASS) is told both; another one reads a text behind the prefix that it was trained with ("translate English to German: "). By
default 4 beams and a length penalty of 0.6 (Raffel et al. 2020, section 3.7), as a power of the length, as in transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Unpack, overload

from torch import nn

from ...seq2seq.generation.defaults import check_beams, options_of
from ...seq2seq.generation.generate import generate_texts
from ...seq2seq.generation.options import FilledOptions, GenerationOptions, GenerationSettings
from ...seq2seq.languages import Multilingual
from ...shared.decoder import EncoderDecoder, longest_source
from ...shared.errors import UserError
from ...shared.tokenizer import Tokenizer
from ..base.console import Console
from .pieces import Pieces
from .summarize import Progress
from .trained import merged, trained

DEFAULTS: GenerationOptions = {"num_beams": 4, "length_penalty": 0.6}
LONGEST = 512
"""Tokens that a model reads and writes at once where nothing says otherwise."""


@overload
def translate(  # pyright: ignore[reportOverlappingOverload]  (a str is a Sequence[str] too; the first match counts)
    model: nn.Module, texts: str, *, tokenizer: Tokenizer, source_language: str = "", target_language: str = "", prefix: str | None = None,
    max_length: int | None = None, batch_size: int = 16, ignore_generation_config: bool = False, **options: Unpack[GenerationOptions],
) -> str: ...
@overload
def translate(
    model: nn.Module, texts: Sequence[str], *, tokenizer: Tokenizer, source_language: str = "", target_language: str = "",
    prefix: str | None = None, max_length: int | None = None, batch_size: int = 16, ignore_generation_config: bool = False,
    **options: Unpack[GenerationOptions],
) -> list[str]: ...
def translate(
    model: nn.Module,
    texts: str | Sequence[str],
    *,
    tokenizer: Tokenizer,
    source_language: str = "",
    target_language: str = "",
    prefix: str | None = None,
    max_length: int | None = None,
    batch_size: int = 16,
    ignore_generation_config: bool = False,
    **options: Unpack[GenerationOptions],
) -> str | list[str]:
    """Translate texts of any length: longer ones are cut at sentences, and the translations of the pieces joined.

    Args:
        model: an encoder-decoder from `polymodal.load` that was fine-tuned on pairs.
        texts: one text or several.
        tokenizer: the model's, from `polymodal.tokenizer`.
        source_language: of the texts, for a model with languages; by default what it was trained with, as far as its directory tells.
        target_language: of the translations, the same.
        prefix: what the model reads before each text; by default what it was trained with.
        max_length: tokens that the model reads at once, prefix included; by default what it was trained with, or what it has positions
            for, or 512.
        batch_size: pieces that run together.
        ignore_generation_config: leave out the model's generation_config.json.
        **options: as in `polymodal.generate`; by default `num_beams=4, length_penalty=0.6` and as many tokens as the model was trained
            to write, or as it reads at once.

    Raises:
        UserError: a text is empty, the model writes no text beside another one, or it does not know the language.
    """
    single = isinstance(texts, str)
    found = translations(model, [texts] if isinstance(texts, str) else texts, tokenizer, source_language=source_language,
                         target_language=target_language, prefix=prefix, max_length=max_length, batch_size=batch_size,
                         ignore_generation_config=ignore_generation_config, **options)
    return found[0] if single else found


def translations(
    model: nn.Module,
    texts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    source_language: str = "",
    target_language: str = "",
    prefix: str | None = None,
    max_length: int | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
    ignore_generation_config: bool = False,
    **options: Unpack[GenerationOptions],
) -> list[str]:
    """The translation of each text; arguments as in `translate`.

    `progress(title, total)` is entered once and gives the bar to advance, as `Console.progress` does.
    """
    known = trained(model)
    filled = options_of(model, options, ignore=ignore_generation_config)
    writer = in_languages(model, source_language, target_language)
    if not isinstance(writer, EncoderDecoder):
        raise UserError(f"{type(model).__name__} writes no text beside another one: load an encoder-decoder that was fine-tuned on pairs")
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise UserError(f"text {number} of {len(texts)} is empty: there is nothing to translate")
    before = known.prefix if prefix is None else prefix
    positions = getattr(getattr(model, "config", None), "longest_input", None) or LONGEST
    limit = max_length or known.max_length or min(positions, tokenizer.max_length or positions)
    whole = filled.get("max_length")
    most = positions - 1 if longest_source(model, 1) is None else positions // 2  # behind the start id, or behind the text
    longest = options.get("max_new_tokens") or (whole - 1 if whole else filled.get("default_new_tokens") or known.max_target_length or most)
    limit = min(limit, longest_source(model, longest) or limit)
    pieces = Pieces(tokenizer, limit, before)
    if pieces.room < 1:
        raise UserError(f"the model reads {limit} tokens at once, which the prefix {before!r} fills: shorten it, or raise max_length")
    settings: FilledOptions = {**merged(DEFAULTS, filled), "max_new_tokens": longest}
    found = GenerationSettings(**settings)
    check_beams(options, beams=found.num_beams > 1)
    if found.num_return_sequences > 1:
        raise UserError("a translation is one text: leave num_return_sequences out")
    cut = [pieces.cut(text) for text in texts]
    ends = [0, *accumulate(map(len, cut))]
    with (progress or Console(quiet=True).progress)("translating", ends[-1]) as bar:
        written = generate_texts(writer, [before + piece for several in cut for piece in several], tokenizer, found,
                                 batch_size=batch_size, advance=bar.advance)
    return [" ".join(w[0].text.strip() for w in written[a:b]) for a, b in pairwise(ends)]


def in_languages(model: nn.Module, source_language: str, target_language: str) -> nn.Module:
    """The model between two languages where it has some, by default those that it was trained with; else the model."""
    if isinstance(model, Multilingual):
        known = trained(model)
        return model.between(source_language or known.source_language, target_language or known.target_language)
    if source_language or target_language:
        raise UserError(f"this model has no languages, so it cannot be told {source_language or target_language!r}: leave it out; another "
                        "model may need a prefix, such as \"translate English to German: \"")
    return model
