"""One batch of prompts, from ids to texts: what generating for files, terminals and servers shares.

The tokens of all prompts are chosen alike, by one `GenerationSettings`; each prompt has its own draws, stop strings, length and listener.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from ...shared.decoder import Decoder, DecoderInfo, EncoderDecoder
from ...shared.errors import UserError
from ...shared.tokenizer.clean import clean_up
from .logprobs import TokenLogProb
from .options import GenerationSettings, as_ids
from .sampling import ScoreRules, uniform_draws
from .search import DecodingState, TokenListener, Written, beam_search, decode
from .streamer import BatchStreamer, RowStreamer

if TYPE_CHECKING:
    from collections.abc import Generator

    from ...shared.tokenizer import Tokenizer


@dataclass(frozen=True)
class GeneratedText:
    """One continuation of a prompt, or an answer to it."""

    text: str
    finish_reason: Literal["stop", "length"]
    """``stop``: it ended, by a token or a stop string; ``length``: it is as long as it may be."""
    prompt_tokens: int
    """Tokens that the model read."""
    completion_tokens: int
    """Tokens that it wrote, the one that ended the text included."""
    cut_tokens: int = 0
    """Tokens of the prompt that were left out at its beginning."""
    seed: int | None = None
    """Of draws: what draws the text again, at the same place of a list of prompts."""
    score: float | None = None
    """Of a beam: its log-probability over length ** length_penalty."""
    logprobs: tuple[TokenLogProb, ...] | None = None
    """Of each token that was written, where they were asked for; those behind a stop string's beginning, too."""


@dataclass(frozen=True)
class Asked:
    """One prompt of a batch, and what is its own."""

    ids: list[int]
    seed: int = 0
    """Of its draws."""
    stream: int = 0
    """Number of its first continuation's stream of draws."""
    stop_strings: tuple[str, ...] = ()
    max_new_tokens: int | None = None
    """At most this many tokens, and never more than the batch's; None for those."""
    cut: int = 0
    """Tokens that were left out before `ids`."""
    listener: Callable[[int, str], object] | None = None
    """Called with the number of the continuation, 0 to n - 1, and each piece of text that is final."""
    wanted: Callable[[], bool] | None = None
    """Asked after each token; the texts end where it says no."""
    done: Callable[[int, GeneratedText], object] | None = None
    """Called with the number of the continuation and its text once it is over, which may be before the batch is."""

    @property
    def watched(self) -> bool:
        """Whether its texts are looked at while they are written."""
        return bool(self.stop_strings or self.listener or self.wanted or self.max_new_tokens or self.done)


def write(model: nn.Module, asked: Sequence[Asked], tokenizer: Tokenizer, settings: GenerationSettings) -> list[list[GeneratedText]]:
    """The continuations of each prompt (of an encoder-decoder its answers), `num_return_sequences` of each, best first.

    Args:
        model: a network that is a `Decoder`, or an `EncoderDecoder`.
        asked: the prompts, which run together.
        tokenizer: the model's.
        settings: how tokens are chosen; its stop strings and seed do not count, the prompts have their own.
    """
    answers = isinstance(model, EncoderDecoder)
    n = settings.num_return_sequences
    owners = [(one, copy) for one in asked for copy in range(n)]
    befores = [[] if answers else one.ids for one, _ in owners]
    results: list[GeneratedText | None] = [None] * len(owners)

    def told(row: int, text: str, ended: bool, count: int, score: float | None = None,
             logprobs: tuple[TokenLogProb, ...] | None = None) -> None:
        one, copy = owners[row]
        result = results[row] = GeneratedText(text, "stop" if ended else "length", len(one.ids), count, one.cut,
                                              one.seed if settings.do_sample else None, score, logprobs)
        if one.done is not None:
            one.done(copy, result)

    streamer = None
    if any(one.watched for one in asked):
        rows = [RowStreamer(tokenizer, before, one.stop_strings, limit=one.max_new_tokens, wanted=one.wanted or (lambda: True),
                            listener=None if one.listener is None else partial(one.listener, copy))
                for (one, copy), before in zip(owners, befores)]
        streamer = BatchStreamer(rows)
        if settings.logprobs is None and settings.forced_eos_token_id is None:  # with these, only the batch's end tells all
            for number, row in enumerate(rows):
                row.closing = lambda ended, number=number, row=row: told(number, row.text, ended, row.count)
    ids, mask = left_padded([one.ids for one in asked])
    found = generate_batch(model, ids, mask, settings, [(one.seed, one.stream + copy) for one, copy in owners], streamer)
    lengths, ended = found.lengths.tolist(), found.ended.tolist()
    start = found.ids.shape[1] - max(lengths)
    tails = [row[:length] for row, length in zip(found.ids[:, start:].tolist(), lengths)]
    if streamer is not None:
        texts = streamer.finish()
        ended = [end or row.stopped for end, row in zip(ended, streamer.rows)]
    else:
        texts = tokenizer.decode_batch(tails) if answers else [_continuation(tokenizer, *pair) for pair in zip(befores, tails)]
    for row, text in enumerate(texts):
        if results[row] is None:
            before = befores[row][-1] if befores[row] else None
            told(row, text, ended[row], lengths[row], None if found.scores is None else float(found.scores[row]),
                 None if found.logprobs is None else found.logprobs.row(row, tails[row], before, tokenizer))
    whole = [result for result in results if result is not None]
    assert len(whole) == len(owners)
    return [whole[first:first + n] for first in range(0, len(whole), n)]


def check_writes(model: nn.Module) -> None:
    """Raise `UserError` where a network neither continues nor answers texts."""
    if not isinstance(model, (Decoder, EncoderDecoder)):
        raise UserError(f"{type(model).__name__} does not generate text: load a language model such as GPT-2 or T5")


def encode_prompts(model: nn.Module, texts: Sequence[str], tokenizer: Tokenizer, settings: GenerationSettings) -> list[Asked]:
    """The prompts as a network reads them: a decoder's without special tokens, and cut at the beginning where the settings say so."""
    check_writes(model)
    tokenizer.fitting_model(model)
    if isinstance(model, EncoderDecoder):
        if settings.truncate:
            raise UserError(f"truncate cuts the beginning of what a language model continues, and {type(model).__name__} answers whole "
                            "texts: leave it out")
        found = [Asked(ids) for ids in tokenizer.encode_batch(texts)]
    else:
        assert isinstance(model, Decoder)
        info = model.decoder_info
        rows = [_prompt_ids(info, tokenizer, text, settings) for text in texts]
        cuts = [max(0, len(ids) - room_for_prompt(info, settings)) if settings.truncate else 0 for ids in rows]
        found = [Asked(ids[cut:], cut=cut) for ids, cut in zip(rows, cuts)]
    if empty := [text for text, one in zip(texts, found) if not one.ids]:
        raise UserError(f"the text {empty[0]!r} gives no tokens: give at least one word")
    return found


def room_for_prompt(info: DecoderInfo, settings: GenerationSettings) -> int:
    """Tokens of a prompt that leave a decoder room for the new ones that are asked for."""
    if settings.max_new_tokens is None and settings.max_length is not None:
        return min(settings.max_length, info.max_positions) - 1
    new = max(settings.max_new_tokens or settings.default_new_tokens, settings.min_new_tokens)
    if new >= info.max_positions:
        raise UserError(f"{new} new tokens leave nothing of the model's {info.max_positions} positions for a prompt: ask for fewer")
    return info.max_positions - new


def generate_batch(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None, settings: GenerationSettings, streams: Sequence[tuple[int, int]],
    listener: TokenListener | None = None,
) -> Written:
    """Continue prompts [B, S], padded on the left; `streams` are seed and number of the draws of each of the B * n rows."""
    device = next(model.parameters()).device
    input_ids = input_ids.to(device)
    mask = None if attention_mask is None or bool(attention_mask.all()) else attention_mask.to(device)
    with _evaluating(model):
        if isinstance(model, EncoderDecoder):
            decoder = model.decoder_for(input_ids, mask)
            if settings.decoder_start_token_id is not None:
                decoder.start = torch.full_like(decoder.start, settings.decoder_start_token_id)
            return generate_batch(decoder, decoder.start, None, settings, streams, listener)
        check_writes(model)
        assert isinstance(model, Decoder)
        info = model.decoder_info
        if not input_ids.shape[1]:
            raise UserError("the prompt is empty: give at least one token")
        if mask is not None and not bool(mask[:, -1].all()):
            raise UserError("prompts must be padded on the left: the last token of each row must be one of the prompt")
        new = new_tokens(info, input_ids.shape[1], settings)
        pad = info.pad_token_id if settings.pad_token_id is None else settings.pad_token_id
        pad = 0 if pad is None else pad
        state = DecodingState(model, input_ids, None if mask is None else mask.bool(), settings, new, pad)
        rules = ScoreRules(settings, input_ids.shape[1], state.max_length, state.keep, _ends(model, settings))
        uniform = uniform_draws(streams, new).to(device) if settings.do_sample else None
        found = beam_search(state, settings, rules, pad) if settings.num_beams > 1 else \
            decode(state, settings, rules, uniform, pad, listener)
        if settings.forced_eos_token_id is not None:  # the last token of a text that is cut is no end of its own
            found.ended = found.ended & (found.lengths < new)
        return found


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


def new_tokens(info: DecoderInfo, length: int, settings: GenerationSettings) -> int:
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


def _prompt_ids(info: DecoderInfo, tokenizer: Tokenizer, text: str, settings: GenerationSettings) -> list[int]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    if ids:
        return ids
    starts = [settings.bos_token_id, info.bos_token_id, *as_ids(info.eos_token_id)]
    start = next((start for start in starts if start is not None), None)
    if start is None:
        raise UserError("the prompt is empty, and this model has no token to start from: give a prompt")
    return [start]


def left_padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, S] of rows of any lengths."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(r)) + r for r in rows])
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
    return ids, mask


def _continuation(tokenizer: Tokenizer, prompt: list[int], tail: list[int]) -> str:
    """The text that `tail` adds; decoded behind its prompt, because vocabularies hide spaces at the start of a text."""
    before, whole = tokenizer.decode_batch([prompt, [*prompt, *tail]], clean_up_tokenization_spaces=False)
    if not whole.startswith(before):
        return tokenizer.decode(tail)
    return clean_up(whole[len(before):]) if tokenizer.framing.clean_up else whole[len(before):]
