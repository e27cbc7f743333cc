"""Text generation: greedy, sampled and by beam search, batched, with cached keys and values.

A decoder is any network that offers `decoder_info` and `next_logits`; an encoder-decoder offers `decoder_for`, which gives one.
Prompts of different lengths are padded on the left; padding is invisible, so a prompt's continuation does not depend
on the prompts beside it. Greedy results and beams equal those of transformers' `generate` token for token.

Deviation: repeated n-grams are counted in the prompt without its padding, where transformers counts the padding too.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Unpack, overload

import torch
from torch import Tensor, nn

from ...shared.decoder import Decoder, DecoderInfo, EncoderDecoder
from ...shared.errors import UserError
from .defaults import settings_of
from .examples import PROMPT, Examples, ending
from .options import GenerationOptions, GenerationSettings, as_ids
from .sampling import ScoreRules, uniform_draws
from .search import DecodingState, TokenListener, beam_search, decode
from .streamer import BatchStreamer, RowStreamer

if TYPE_CHECKING:
    from collections.abc import Generator

    from ...shared.tokenizer import Tokenizer
from ...shared.tokenizer.clean import clean_up


@dataclass(frozen=True)
class GeneratedText:
    """One continuation of a prompt."""

    text: str
    score: float | None = None
    """Of a beam: its log-probability over length ** length_penalty."""


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
    return _generate_batch(model, input_ids, attention_mask, settings, range(first_stream, first_stream + len(input_ids)))[0]


TextListener = Callable[[str], None]


def _no_progress(count: float) -> None: ...


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
    stream: TextListener | None = None,
    advance: Callable[[float], None] = _no_progress,
    examples: Sequence[tuple[str, str]] = (),
    template: str = PROMPT,
    ignore_generation_config: bool = False,
    **options: Unpack[GenerationOptions],
) -> str | list[str] | Tensor:
    """Continue texts, or with an encoder-decoder answer them: strings in, strings out; a tensor of ids in, sequences out.

    The options have the names of transformers' `generate`. What they leave open, the model's generation_config.json says where it has one,
    as in transformers; else the most probable token is taken each time.

    Args:
        model: a language model from `polymodal.load`.
        prompts: one text, several, or ids.
        tokenizer: the model's, from `polymodal.tokenizer`; needed for texts.
        batch_size: texts that run together.
        return_full_text: put the prompt before each continuation; what an encoder-decoder writes stands alone.
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
            - do_sample: draw tokens.
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
        return generate_ids(model, prompts, ignore_generation_config=ignore_generation_config, **options)
    settings = settings_of(model, options, ignore=ignore_generation_config)
    if tokenizer is None:
        raise UserError("generate got texts and no tokenizer: pass tokenizer=polymodal.tokenizer(source)")
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if isinstance(prompts, str) and settings.num_return_sequences > 1:
        raise UserError("num_return_sequences above 1 gives a list of texts: pass a list with the one prompt")
    read = texts
    if examples:
        shots = Examples(examples, template)
        asked, settings = shots.before(texts, model, tokenizer, settings), ending(settings)
        read, texts = [a.text for a in asked], [a.shown for a in asked]
        if line := shots.lacking(asked):
            warnings.warn(line, stacklevel=2)
    found = generate_texts(model, read, tokenizer, settings, batch_size=batch_size, stream=stream, advance=advance)
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
    answers = isinstance(model, EncoderDecoder)
    if stream is not None and (len(texts) != 1 or settings.copies > 1):
        raise UserError("a stream needs one prompt, one beam and one continuation")
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}, expected at least 1")
    tokenizer.fitting_model(model)
    info: DecoderInfo | None = getattr(model, "decoder_info", None)  # an encoder-decoder has it, too
    if answers:
        encoded = tokenizer.encode_batch(texts)
    elif isinstance(model, Decoder):
        encoded = [_prompt_ids(model.decoder_info, tokenizer, text, settings) for text in texts]
    else:
        raise _cannot(model)
    if info is not None and (not answers or info.shares_positions) and settings.max_new_tokens is None and settings.max_length is None \
            and encoded:  # the same room for every batch
        settings = replace(settings, max_new_tokens=_new_tokens(info, max(map(len, encoded)), settings))
    if empty := [text for text, ids in zip(texts, encoded) if not ids]:
        raise UserError(f"the text {empty[0]!r} gives no tokens: give at least one word")
    found: list[list[GeneratedText]] = [[] for _ in texts]
    alike = not answers and (settings.min_length > 0 or (settings.max_new_tokens is None and settings.max_length is not None))
    left = [number for number in range(len(texts)) if number not in known]
    for numbers in _batches(left, [len(ids) for ids in encoded], batch_size, alike):
        rows = [encoded[i] for i in numbers]
        befores = [[] if answers else row for row in rows for _ in range(settings.num_return_sequences)]
        streamer = None
        if stream is not None or settings.stop_strings:
            streamer = BatchStreamer([RowStreamer(tokenizer, b, settings.stop_strings) for b in befores], stream)
        ids, mask = _left_padded(rows)
        new, scores = _generate_batch(model, ids, mask, settings, numbers, streamer)
        if streamer is not None:
            written = streamer.finish()
        else:
            ends = _ends(model, settings)
            tails = [_until(row, ends) for row in new[:, 1 if answers else ids.shape[1]:].tolist()]
            written = tokenizer.decode_batch(tails) if answers else [_continuation(tokenizer, *pair) for pair in zip(befores, tails)]
        values = [None] * len(written) if scores is None else scores.tolist()
        for place, (text, value) in enumerate(zip(written, values)):
            found[numbers[place // settings.num_return_sequences]].append(GeneratedText(text, value))
        if keep is not None:
            keep({number: found[number] for number in numbers})
        advance(len(rows))
    return found


# ------------------------------------------------------------------------------------------ one batch


def _generate_batch(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None, settings: GenerationSettings, streams: Sequence[int],
    listener: TokenListener | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Sequences [B * n, S + N] and, of beams, their scores [B * n]; `streams` number the prompts' draws."""
    device = next(model.parameters()).device
    input_ids = input_ids.to(device)
    mask = None if attention_mask is None or bool(attention_mask.all()) else attention_mask.to(device)
    with _evaluating(model):
        if isinstance(model, EncoderDecoder):
            decoder = model.decoder_for(input_ids, mask)
            if settings.decoder_start_token_id is not None:
                decoder.start = torch.full_like(decoder.start, settings.decoder_start_token_id)
            return _generate_batch(decoder, decoder.start, None, settings, streams, listener)
        if not isinstance(model, Decoder):
            raise _cannot(model)
        info = model.decoder_info
        if not input_ids.shape[1]:
            raise UserError("the prompt is empty: give at least one token")
        if mask is not None and not bool(mask[:, -1].all()):
            raise UserError("prompts must be padded on the left: the last token of each row must be one of the prompt")
        new = _new_tokens(info, input_ids.shape[1], settings)
        pad = info.pad_token_id if settings.pad_token_id is None else settings.pad_token_id
        pad = 0 if pad is None else pad
        state = DecodingState(model, input_ids, None if mask is None else mask.bool(), settings, new, pad)
        rules = ScoreRules(settings, input_ids.shape[1], state.max_length, state.keep, _ends(model, settings))
        if settings.num_beams > 1:
            return beam_search(state, settings, rules, pad)
        n = settings.num_return_sequences
        numbers = [stream * n + copy for stream in streams for copy in range(n)]
        uniform = uniform_draws(numbers, new, settings.seed).to(device) if settings.do_sample else None
        return decode(state, settings, rules, uniform, pad, listener), None


@contextmanager
def _evaluating(model: nn.Module) -> Generator[None]:
    """Eval mode without gradients; the mode is as before afterwards."""
    training = model.training
    with torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            model.train(training)


def _ends(model: nn.Module, settings: GenerationSettings) -> tuple[int, ...]:
    """The ids that end a text."""
    if settings.eos_token_id is not None:
        return tuple(end for end in as_ids(settings.eos_token_id) if end >= 0)
    info: DecoderInfo | None = getattr(model, "decoder_info", None)  # an encoder-decoder has it, too
    return () if info is None else as_ids(info.eos_token_id)


def _cannot(model: nn.Module) -> UserError:
    return UserError(f"{type(model).__name__} does not generate text: load a language model such as GPT-2 or T5")


def _new_tokens(info: DecoderInfo, length: int, settings: GenerationSettings) -> int:
    """How many tokens to generate after a prompt of `length`."""
    left, wanted = info.max_positions - length, settings.max_new_tokens
    if left < 1:
        raise UserError(f"the prompt has {length} tokens and the model {info.max_positions} positions: shorten the prompt")
    if wanted is None and settings.max_length is not None:
        wanted = min(settings.max_length - length, left)
        if wanted < 1:
            raise UserError(f"the prompt has {length} tokens, and max_length is {settings.max_length}, prompt included: raise it, "
                            "or ask for max_new_tokens")
    if wanted is None:
        wanted = min(max(settings.default_new_tokens, settings.min_new_tokens), left)
    if max(wanted, settings.min_new_tokens) > left:
        raise UserError(f"a prompt of {length} tokens and {max(wanted, settings.min_new_tokens)} new tokens need more than the model's "
                        f"{info.max_positions} positions: ask for at most {left}")
    return wanted


# ------------------------------------------------------------------------------------------ ids and texts


def _batches(numbers: Sequence[int], lengths: Sequence[int], size: int, alike: bool) -> Iterator[list[int]]:
    """The numbers of prompts in batches of like length, longest first; with `alike` of the same length."""
    order = sorted(numbers, key=lambda i: -lengths[i])
    groups = [list(group) for _, group in groupby(order, key=lambda i: lengths[i])] if alike else [order]
    for group in groups:
        yield from (group[first : first + size] for first in range(0, len(group), size))


def _prompt_ids(info: DecoderInfo, tokenizer: Tokenizer, text: str, settings: GenerationSettings) -> list[int]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    if ids:
        return ids
    starts = [settings.bos_token_id, info.bos_token_id, *as_ids(info.eos_token_id)]
    start = next((start for start in starts if start is not None), None)
    if start is None:
        raise UserError("the prompt is empty, and this model has no token to start from: give a prompt")
    return [start]


def _left_padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(r)) + r for r in rows])
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
    return ids, mask


def _until(ids: list[int], ends: tuple[int, ...]) -> list[int]:
    """The ids up to the first that ends the text; that one may have a text of its own, such as the end of a line."""
    at = next((place for place, i in enumerate(ids) if i in ends), None)
    return ids if at is None else ids[: at + 1]


def _continuation(tokenizer: Tokenizer, prompt: list[int], tail: list[int]) -> str:
    """The text that `tail` adds; decoded behind its prompt, because vocabularies hide spaces at the start of a text."""
    before, whole = tokenizer.decode_batch([prompt, [*prompt, *tail]], clean_up_tokenization_spaces=False)
    if not whole.startswith(before):
        return tokenizer.decode(tail)
    return clean_up(whole[len(before):]) if tokenizer.framing.clean_up else whole[len(before):]
