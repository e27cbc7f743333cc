"""Text generation: greedy and sampled, batched, with cached keys and values.

A decoder is any network that offers `decoding` and `next_logits`. Prompts of different lengths are
padded on the left; padding is invisible, so a prompt's continuation does not depend on the prompts
beside it. Greedy results equal transformers' `generate` token for token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, overload, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from ..shared.cache import KVCache
from ..shared.errors import UserError, raise_problems

if TYPE_CHECKING:
    from ..shared.tokenizer import Tokenizer

DEFAULT_NEW_TOKENS = 50


@dataclass(frozen=True)
class Decoding:
    """What generating needs to know of a decoder."""

    max_positions: int
    """The longest sequence, prompt included."""
    num_layers: int
    """Layers that keep keys and values."""
    bos_token_id: int | None = None
    """Starts a text that has no prompt."""
    eos_token_id: int | None = None
    """Ends a text."""
    pad_token_id: int | None = None
    """Fills what follows a text that has ended; None takes 0."""


@runtime_checkable
class Decoder(Protocol):
    """A network that predicts the next token."""

    @property
    def decoding(self) -> Decoding:
        """What generating needs to know."""
        ...

    def next_logits(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: KVCache) -> Tensor:
        """Logits [B, V] of the id after `input_ids` [B, S], which come after what the cache holds.

        `attention_mask` [B, past + S] hides padding, `position_ids` is [B, S].
        """
        ...


@runtime_checkable
class EncoderDecoder(Protocol):
    """A network that reads one text and writes another."""

    def read(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Reading:
        """Encode texts [B, S]; `attention_mask` [B, S] is nonzero where there is no padding, on either side."""
        ...


class Reading(nn.Module):
    """What an encoder-decoder has read: a `Decoder` that writes behind `start`, the ids [B, 1] it begins with."""

    start: Tensor


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from its logits. The fields are transformers' arguments."""

    do_sample: bool = False
    """Draw from the distribution; else take the most probable token."""
    temperature: float = 1.0
    """Divides the logits before drawing."""
    top_k: int = 50
    """Draw among the k most probable tokens; 0 for all."""
    top_p: float = 1.0
    """Draw among the fewest most probable tokens whose probabilities reach p."""
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens that occurred already and multiplies negative ones (Keskar et al. 2019)."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        problems: list[str] = []
        if not self.temperature > 0:
            problems.append(f"temperature is {self.temperature}, expected a number above 0 (without do_sample it has no effect)")
        if self.top_k < 0:
            problems.append(f"top_k is {self.top_k}, expected a number of tokens, or 0 for all")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p is {self.top_p}, expected a probability above 0 and at most 1")
        if not self.repetition_penalty > 0:
            problems.append(f"repetition_penalty is {self.repetition_penalty}, expected a number above 0 (1 for none)")
        raise_problems(problems, "generate")

    def choose(self, logits: Tensor, seen: Tensor, uniform: Tensor | None) -> Tensor:
        """The next ids [B].

        Args:
            logits: [B, V].
            seen: bool [B, V], tokens that occurred in prompt or continuation.
            uniform: fp64 [B] in [0, 1), the draws; None when not sampling.
        """
        logits = logits.float()
        if self.repetition_penalty != 1.0:
            penalised = torch.where(logits < 0, logits * self.repetition_penalty, logits / self.repetition_penalty)
            logits = torch.where(seen, penalised, logits)
        if not self.do_sample:
            return logits.argmax(-1)
        assert uniform is not None
        logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            logits = logits.masked_fill(logits < logits.topk(self.top_k, dim=-1).values[:, -1:], float("-inf"))
        probabilities = logits.softmax(-1)
        if self.top_p < 1.0:
            ordered, places = probabilities.sort(dim=-1)
            tail = ordered.cumsum(-1) <= 1.0 - self.top_p
            tail[:, -1] = False  # at least one token stays
            probabilities = probabilities.masked_fill(torch.zeros_like(tail).scatter(-1, places, tail), 0.0)
        reached = probabilities.double().cumsum(-1)
        return torch.searchsorted(reached, uniform[:, None] * reached[:, -1:], right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


@torch.no_grad()
def generate_ids(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int | None = None,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 50,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    eos_token_id: int | None = None,
    seed: int | None = None,
    first_stream: int = 0,
) -> Tensor:
    """Continue sequences of ids.

    Args:
        model: a network that is a `Decoder`, or an `EncoderDecoder`, which writes a text of its own.
        input_ids: prompts [B, S], padded on the left (on either side where an encoder reads them).
        attention_mask: [B, S], zero at the padding; by default there is none.
        max_new_tokens: at most so many; by default 50, or what the model's positions leave.
        do_sample: draw tokens; else take the most probable one each time.
        temperature: divides the logits before drawing.
        top_k: draw among the k most probable tokens; 0 for all.
        top_p: draw among the fewest most probable tokens whose probabilities reach p.
        repetition_penalty: makes tokens that occurred (padding does not count) less probable; 1 for no effect.
        eos_token_id: ends a sequence; by default the model's. -1 for none.
        seed: of the draws. Each row has its own stream of draws, whatever the other rows are.
        first_stream: number of the first row's stream, where a long list of prompts is cut into batches.

    Returns:
        Prompts and continuations [B, S + N], of an encoder-decoder start id and output [B, 1 + N]; what follows an end is padding.
    """
    if isinstance(model, EncoderDecoder):
        device = next(model.parameters()).device
        reading = model.read(input_ids.to(device), None if attention_mask is None else attention_mask.to(device))
        return generate_ids(reading, reading.start, max_new_tokens=max_new_tokens, do_sample=do_sample, temperature=temperature,
                            top_k=top_k, top_p=top_p, repetition_penalty=repetition_penalty, eos_token_id=eos_token_id, seed=seed,
                            first_stream=first_stream)
    if not isinstance(model, Decoder):
        raise UserError(f"{type(model).__name__} does not generate text: load a language model such as GPT-2")
    sampling = Sampling(do_sample, temperature, top_k, top_p, repetition_penalty)
    decoding = model.decoding
    batch, length = input_ids.shape
    if not length:
        raise UserError("the prompt is empty: give at least one token")
    new = _room(decoding, length, max_new_tokens)
    device = next(model.parameters()).device
    input_ids = input_ids.to(device)
    keep = torch.ones(batch, length + new, dtype=torch.bool, device=device)
    if attention_mask is not None:
        keep[:, :length] = attention_mask.to(device).bool()
        if not bool(keep[:, length - 1].all()):
            raise UserError("prompts must be padded on the left: the last token of each row must be one of the prompt")
    positions = (keep.long().cumsum(-1) - 1).clamp(min=0)
    end = decoding.eos_token_id if eos_token_id is None else eos_token_id
    pad = 0 if decoding.pad_token_id is None else decoding.pad_token_id
    uniform = _draws(range(first_stream, first_stream + batch), new, seed).to(device) if do_sample else None
    out = torch.full((batch, length + new), pad, dtype=torch.long, device=device)
    out[:, :length] = input_ids
    finished = torch.zeros(batch, dtype=torch.bool, device=device)
    cache = KVCache(decoding.num_layers, length + new)
    seen: Tensor | None = None
    training = model.training
    model.eval()
    try:
        start, stop = 0, length
        while stop < length + new:
            logits = model.next_logits(out[:, start:stop], keep[:, :stop], positions[:, start:stop], cache)
            if seen is None:
                seen = torch.zeros_like(logits, dtype=torch.bool)
                seen[torch.arange(batch, device=device)[:, None].expand(-1, length)[keep[:, :length]], input_ids[keep[:, :length]]] = True
            chosen = sampling.choose(logits, seen, None if uniform is None else uniform[:, stop - length])
            chosen = torch.where(finished, pad, chosen)
            seen.scatter_(1, chosen[:, None], True)
            out[:, stop] = chosen
            start, stop = stop, stop + 1
            finished |= chosen == end
            if end is not None and end >= 0 and bool(finished.all()):
                break
    finally:
        model.train(training)
    return out[:, :stop]


def _nothing(count: float) -> None: ...


@overload
def generate(  # pyright: ignore[reportOverlappingOverload]  (a str is a Sequence[str] too; the first match counts)
    model: nn.Module,
    prompts: str,
    *,
    tokenizer: Tokenizer,
    max_new_tokens: int | None = None,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 50,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    batch_size: int = 16,
    return_full_text: bool = True,
    advance: Callable[[float], None] = _nothing,
) -> str: ...
@overload
def generate(
    model: nn.Module,
    prompts: Sequence[str],
    *,
    tokenizer: Tokenizer,
    max_new_tokens: int | None = None,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 50,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    batch_size: int = 16,
    return_full_text: bool = True,
    advance: Callable[[float], None] = _nothing,
) -> list[str]: ...
@overload
def generate(
    model: nn.Module,
    prompts: Tensor,
    *,
    tokenizer: Tokenizer | None = None,
    max_new_tokens: int | None = None,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 50,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    batch_size: int = 16,
    return_full_text: bool = True,
    advance: Callable[[float], None] = _nothing,
) -> Tensor: ...
def generate(
    model: nn.Module,
    prompts: str | Sequence[str] | Tensor,
    *,
    tokenizer: Tokenizer | None = None,
    max_new_tokens: int | None = None,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 50,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    batch_size: int = 16,
    return_full_text: bool = True,
    advance: Callable[[float], None] = _nothing,
) -> str | list[str] | Tensor:
    """Continue texts, or with an encoder-decoder answer them: strings in, strings out; a tensor of ids in, sequences out.

    Args:
        model: a language model from `polymodal.load`.
        prompts: one text, several, or ids.
        tokenizer: the model's, from `polymodal.tokenizer`; needed for texts.
        max_new_tokens: at most so many tokens; by default 50, or what the longest prompt leaves of the model's positions.
        do_sample: draw tokens; else take the most probable one each time.
        temperature: divides the logits before drawing.
        top_k: draw among the k most probable tokens; 0 for all.
        top_p: draw among the fewest most probable tokens whose probabilities reach p.
        repetition_penalty: makes tokens that occurred less probable; 1 for no effect.
        seed: of the draws.
        batch_size: texts that run together.
        return_full_text: put the prompt before each continuation; what an encoder-decoder writes stands alone.
        advance: called with the number of texts that are done, for a progress bar.
    """
    if isinstance(prompts, Tensor):
        return generate_ids(model, prompts, max_new_tokens=max_new_tokens, do_sample=do_sample, temperature=temperature, top_k=top_k,
                            top_p=top_p, repetition_penalty=repetition_penalty, seed=seed)
    if tokenizer is None:
        raise UserError("generate got texts and no tokenizer: pass tokenizer=polymodal.tokenizer(source)")
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    answers = isinstance(model, EncoderDecoder)
    if answers:
        encoded = tokenizer.encode_batch(texts)
    elif isinstance(model, Decoder):
        encoded = [_prompt_ids(model.decoding, tokenizer, text) for text in texts]
        if max_new_tokens is None and encoded:  # the same room for every batch
            max_new_tokens = _room(model.decoding, max(map(len, encoded)), None)
    else:
        raise UserError(f"{type(model).__name__} does not generate text: load a language model such as GPT-2")
    results: list[str] = []
    for first in range(0, len(texts), batch_size):
        rows = encoded[first:first + batch_size]
        ids, mask = _left_padded(rows)
        new = generate_ids(model, ids, mask, max_new_tokens=max_new_tokens, do_sample=do_sample, temperature=temperature, top_k=top_k,
                           top_p=top_p, repetition_penalty=repetition_penalty, seed=seed, first_stream=first)
        if answers:
            results += tokenizer.decode_batch(new[:, 1:])
        else:
            for row, tail, text in zip(rows, new[:, ids.shape[1]:].tolist(), texts[first:first + batch_size]):
                added = _continuation(tokenizer, row, tail)
                results.append(text + added if return_full_text else added)
        advance(len(rows))
    return results[0] if isinstance(prompts, str) else results


def _room(decoding: Decoding, length: int, wanted: int | None) -> int:
    """How many tokens to generate after a prompt of `length`."""
    left = decoding.max_positions - length
    if left < 1:
        raise UserError(f"the prompt has {length} tokens and the model {decoding.max_positions} positions: shorten the prompt")
    if wanted is None:
        return min(DEFAULT_NEW_TOKENS, left)
    if wanted < 1:
        raise UserError(f"max_new_tokens is {wanted}, expected at least 1")
    if wanted > left:
        raise UserError(f"a prompt of {length} tokens and max_new_tokens {wanted} need more than the model's {decoding.max_positions} "
                        f"positions: ask for at most {left}")
    return wanted


def _draws(streams: range, steps: int, seed: int | None) -> Tensor:
    """Uniform numbers fp64 [B, N], one stream for each row."""
    entropy = int(np.random.SeedSequence().generate_state(1, np.uint64)[0]) if seed is None else seed % 2**63
    rows = [np.random.Generator(np.random.Philox(key=[entropy, row])).random(steps) for row in streams]
    return torch.from_numpy(np.stack(rows))


def _prompt_ids(decoding: Decoding, tokenizer: Tokenizer, text: str) -> list[int]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    if ids:
        return ids
    start = decoding.bos_token_id if decoding.bos_token_id is not None else decoding.eos_token_id
    if start is None:
        raise UserError("the prompt is empty, and this model has no token to start from: give a prompt")
    return [start]


def _left_padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(r)) + r for r in rows])
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
    return ids, mask


def _continuation(tokenizer: Tokenizer, prompt: list[int], tail: list[int]) -> str:
    """The text that `tail` adds; decoded behind its prompt, because vocabularies hide spaces at the start of a text."""
    before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *tail])
    return whole[len(before):] if whole.startswith(before) else tokenizer.decode(tail)
