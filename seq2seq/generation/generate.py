"""Text generation: greedy, sampled and by beam search, batched, with cached keys and values.

A decoder is any network that offers `decoder_info` and `next_logits`; an encoder-decoder offers `decoder_for`, which gives one.
Prompts of different lengths are padded on the left; padding is invisible, so a prompt's continuation does not depend
on the prompts beside it. Greedy results and beams equal those of transformers' `generate` token for token.

Deviation: repeated n-grams are counted in the prompt without its padding, where transformers counts the padding too.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Literal, Unpack, overload

from torch import Tensor, nn

from ...shared.decoder import DecoderInfo, EncoderDecoder
from ...shared.errors import UserError
from .batch import GeneratedText, encode_prompts, generate_batch, new_tokens, write
from .defaults import settings_of
from .examples import PROMPT, Examples, ending
from .options import GenerationOptions, GenerationSettings
from .sampling import seeded

if TYPE_CHECKING:
    from ...shared.tokenizer import Tokenizer


def generate_ids(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    first_stream: int = 0,
    ignore_generation_config: bool = False,
    **options: Unpack[GenerationOptions],
) -> Tensor:
    """Continue sequences of ids.

    Args:
        model: a network that is a `Decoder`, or an `EncoderDecoder`, which writes a text of its own.
        input_ids: prompts [B, S], padded on the left (on either side where an encoder reads them).
        attention_mask: [B, S], zero at the padding; by default there is none.
        first_stream: number of the first row's stream of draws, where a long list of prompts is cut into batches.
        ignore_generation_config: leave out the defaults that the model brought along (`generate`).
        **options: the fields of `GenerationSettings`, such as `max_new_tokens=20, num_beams=4`; see `generate`.

    Returns:
        Prompts and continuations [B * num_return_sequences, S + N], of an encoder-decoder start id and output
        [B * num_return_sequences, 1 + N]; what follows an end is padding.
    """
    settings = settings_of(model, options, ignore=ignore_generation_config)
    if settings.stop_strings:
        raise UserError("stop strings are for texts: pass texts and a tokenizer to `generate`")
    if settings.logprobs is not None or settings.truncate:
        raise UserError("logprobs and truncate are for texts: pass texts and a tokenizer to `generate`")
    n = settings.num_return_sequences
    seed = seeded(settings).seed or 0
    return generate_batch(model, input_ids, attention_mask, settings,
                          [(seed, first_stream * n + row) for row in range(len(input_ids) * n)]).ids


TextListener = Callable[[str], None]


def _no_progress(count: float) -> None: ...


@overload
def generate(  # pyright: ignore[reportOverlappingOverload]
    model: nn.Module, prompts: str | Sequence[str], *, tokenizer: Tokenizer, details: Literal[True], batch_size: int = 16,
    stream: TextListener | None = None, advance: Callable[[float], None] = _no_progress,
    examples: Sequence[tuple[str, str]] = (), template: str = PROMPT, ignore_generation_config: bool = False,
    **options: Unpack[GenerationOptions],
) -> list[GeneratedText]: ...
@overload
def generate(  # pyright: ignore[reportOverlappingOverload]  (a str is a Sequence[str] too; the first match counts)
    model: nn.Module, prompts: str, *, tokenizer: Tokenizer, batch_size: int = 16, return_full_text: bool = True,
    stream: TextListener | None = None, advance: Callable[[float], None] = _no_progress,
    examples: Sequence[tuple[str, str]] = (), template: str = PROMPT, ignore_generation_config: bool = False,
    **options: Unpack[GenerationOptions],
) -> str: ...
@overload
def generate(
    model: nn.Module, prompts: Sequence[str], *, tokenizer: Tokenizer, batch_size: int = 16, return_full_text: bool = True,
    stream: TextListener | None = None, advance: Callable[[float], None] = _no_progress,
    examples: Sequence[tuple[str, str]] = (), template: str = PROMPT, ignore_generation_config: bool = False,
    **options: Unpack[GenerationOptions],
) -> list[str]: ...
@overload
def generate(
    model: nn.Module, prompts: Tensor, *, tokenizer: Tokenizer | None = None, batch_size: int = 16, return_full_text: bool = True,
    stream: TextListener | None = None, advance: Callable[[float], None] = _no_progress,
    examples: Sequence[tuple[str, str]] = (), template: str = PROMPT, ignore_generation_config: bool = False,
    **options: Unpack[GenerationOptions],
) -> Tensor: ...
def generate(
    model: nn.Module,
    prompts: str | Sequence[str] | Tensor,
    *,
    tokenizer: Tokenizer | None = None,
    batch_size: int = 16,
    return_full_text: bool = True,
    details: bool = False,
    stream: TextListener | None = None,
    advance: Callable[[float], None] = _no_progress,
    examples: Sequence[tuple[str, str]] = (),
    template: str = PROMPT,
    ignore_generation_config: bool = False,
    **options: Unpack[GenerationOptions],
) -> str | list[str] | list[GeneratedText] | Tensor:
    """Continue texts, or with an encoder-decoder answer them: strings in, strings out; a tensor of ids in, sequences out.

    The options have the names of transformers' `generate`. What they leave open, the model's generation_config.json says where it has one,
    as in transformers; else the most probable token is taken each time.

    Args:
        model: a language model from `polymodal.load`.
        prompts: one text, several, or ids.
        tokenizer: the model's, from `polymodal.tokenizer`; needed for texts.
        batch_size: texts that run together.
        return_full_text: put the prompt before each continuation; what an encoder-decoder writes stands alone.
        details: return `GeneratedText`s, which also tell why a text ended, how many tokens there are, the seed, and what was asked for with
            `logprobs`; always a list, of what was written alone.
        stream: called with each piece of new text as soon as it is final, never with a part of a character; for one prompt.
        advance: called with the number of texts that are done, for a progress bar.
        examples: prompts with their answers, which stand before each prompt, as many as have room (a warning tells where not all
            have). They are not part of what is returned, and a text ends with a blank line, where no other end is named.
        template: what becomes of each prompt where there are examples, such as "Question: {prompt} Answer:".
        ignore_generation_config: leave out the defaults that the model brought along; the end of a text is then config.json's.
        **options: any of

            - max_new_tokens: at most this many tokens; by default 50, or what the longest prompt leaves of the model's positions.
            - min_length: at least this many tokens, prompt included.
            - min_new_tokens: at least this many tokens.
            - do_sample: draw tokens; by default where one of the next four is given.
            - temperature: divides the logits before drawing.
            - top_k: draw among the k most probable tokens; by default 50; 0 for all.
            - top_p: draw among the fewest most probable tokens whose probabilities reach p.
            - min_p: draw among the tokens with at least this fraction of the most probable one's probability.
            - seed: of the draws.
            - repetition_penalty: above 1 makes tokens that occurred less probable.
            - no_repeat_ngram_size: no sequence of this many tokens occurs twice (in prompt and continuation together; an
              encoder-decoder counts what it writes).
            - bad_words_ids, suppress_tokens, begin_suppress_tokens: sequences and tokens that never occur, or not as the first.
            - forced_bos_token_id, forced_eos_token_id: the first and the last token of a text that is as long as it may be.
            - renormalize_logits: of beams, make probabilities of the scores again after these rules.
            - num_beams: number of beams of a beam search. Beams exclude do_sample, stop_strings and stream.
            - length_penalty: divide a beam's log-probability by length to this power; above 0 favours long texts.
            - early_stopping: end the search with `num_beams` ended texts (True), when a better one is unlikely (False),
              or when it is impossible ("never").
            - num_return_sequences: draws, or best beams, of each prompt, one behind the other in the list.
            - stop_strings: a text ends before the first of these.
            - logprobs: with `details`, tell the log-probability of each token under the model, and this many most probable tokens.
            - truncate: of a decoder's prompt that leaves no room for the new tokens, read the last tokens that do; else it is refused.
            - eos_token_id: ends a text, or each of several does; by default the model's; -1 for none.
            - pad_token_id, bos_token_id, decoder_start_token_id: instead of the model's.
            - use_cache: False reads everything again for every token; for checks.

    Raises:
        UserError: an option is out of range, two exclude each other, or a prompt does not fit the model.
    """
    if template != PROMPT and not examples:
        raise UserError("template is for examples: pass examples=[(prompt, answer), ...], or leave it out")
    if isinstance(prompts, Tensor):
        if examples:
            raise UserError("examples are for texts: pass texts and a tokenizer")
        if stream is not None:
            raise UserError("streams are for texts: pass texts and a tokenizer")
        if details:
            raise UserError("details are for texts: pass texts and a tokenizer")
        return generate_ids(model, prompts, ignore_generation_config=ignore_generation_config, **options)
    settings = settings_of(model, options, ignore=ignore_generation_config)
    if tokenizer is None:
        raise UserError("generate got texts and no tokenizer: pass tokenizer=polymodal.tokenizer(source)")
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if settings.logprobs is not None and not details:
        raise UserError("logprobs are told with the details of a text: pass details=True")
    if isinstance(prompts, str) and settings.num_return_sequences > 1 and not details:
        raise UserError("num_return_sequences above 1 gives a list of texts: pass a list with the one prompt")
    read = texts
    if examples:
        shots = Examples(examples, template)
        asked, settings = shots.before(texts, model, tokenizer, settings), ending(settings)
        read, texts = [a.text for a in asked], [a.shown for a in asked]
        if line := shots.lacking(asked):
            warnings.warn(line, stacklevel=2)
    found = generate_texts(model, read, tokenizer, settings, batch_size=batch_size, stream=stream, advance=advance)
    if details:
        return [written for several in found for written in several]
    before = return_full_text and not isinstance(model, EncoderDecoder)
    results = [text + w.text if before else w.text for text, several in zip(texts, found) for w in several]
    return results[0] if isinstance(prompts, str) else results


def generate_texts(
    model: nn.Module,
    texts: Sequence[str],
    tokenizer: Tokenizer,
    settings: GenerationSettings,
    *,
    batch_size: int = 16,
    stream: TextListener | None = None,
    advance: Callable[[float], None] = _no_progress,
    known: Collection[int] = (),
    keep: Callable[[Mapping[int, list[GeneratedText]]], None] | None = None,
) -> list[list[GeneratedText]]:
    """The continuations of each text (of an encoder-decoder its answers), `num_return_sequences` of each, best first.

    Arguments as in `generate`. Texts of like length run together; the order and the batches do not change the results.
    The texts numbered in `known` are left out, and have none; `keep` gets those of each batch as it is done, by number.
    """
    if stream is not None and (len(texts) != 1 or settings.copies > 1):
        raise UserError("a stream needs one prompt, one beam and one continuation")
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}, expected at least 1")
    asked = encode_prompts(model, texts, tokenizer, settings)
    lengths = [len(one.ids) for one in asked]
    answers = isinstance(model, EncoderDecoder)
    info: DecoderInfo | None = getattr(model, "decoder_info", None)  # an encoder-decoder has it, too
    if info is not None and (not answers or info.shares_positions) and settings.max_new_tokens is None and settings.max_length is None \
            and asked:  # the same room for every batch
        settings = replace(settings, max_new_tokens=new_tokens(info, max(lengths), settings))
    settings = seeded(settings)
    listener = None if stream is None else lambda copy, piece: stream(piece)
    found: list[list[GeneratedText]] = [[] for _ in texts]
    alike = not answers and (settings.min_length > 0 or (settings.max_new_tokens is None and settings.max_length is not None))
    left = [number for number in range(len(texts)) if number not in known]
    for numbers in _batches(left, lengths, batch_size, alike):
        rows = [replace(asked[i], seed=settings.seed or 0, stream=i * settings.num_return_sequences, stop_strings=settings.stop_strings,
                        listener=listener) for i in numbers]
        for number, several in zip(numbers, write(model, rows, tokenizer, settings)):
            found[number] = several
        if keep is not None:
            keep({number: found[number] for number in numbers})
        advance(len(rows))
    return found


def _batches(numbers: Sequence[int], lengths: Sequence[int], size: int, alike: bool) -> Iterator[list[int]]:
    """The numbers of prompts in batches of like length, longest first; with `alike` of the same length."""
    order = sorted(numbers, key=lambda i: -lengths[i])
    groups = [list(group) for _, group in groupby(order, key=lambda i: lengths[i])] if alike else [order]
    for group in groups:
        yield from (group[first : first + size] for first in range(0, len(group), size))
