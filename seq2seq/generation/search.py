"""The next tokens, one after the other: `decode` takes or draws them, `beam_search` keeps several beams of each prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...shared.attention.cache import KVCache
from ...shared.decoder import Decoder
from .logprobs import LogProbs
from .options import GenerationSettings
from .sampling import ScoreRules, draw, warp

LOW = -1.0e9
"""The score of a beam that does not exist (as in transformers)."""

TokenListener = Callable[[list[int], list[bool]], list[bool]]
"""Is called with the next id of each row and which rows have ended; returns which rows end here."""


@dataclass
class Written:
    """What was written for R rows."""

    ids: Tensor
    """int64 [R, S + N]: prompts and continuations; what follows an end is padding."""
    lengths: Tensor
    """int64 [R]: new tokens of each row, the one that ends it included."""
    ended: Tensor
    """bool [R]: rows that a token ended; the others are as long as they may be, or a listener ended them."""
    scores: Tensor | None = None
    """fp32 [R]: of beams, the log-probability over length ** length_penalty."""
    logprobs: LogProbs | None = None


class DecodingState:
    """Rows of ids that a decoder continues: one static buffer for the ids, one for keys and values.

    A prompt is read once, however many rows continue it.

    Args:
        model: a `Decoder`.
        prompts: ids [B, S].
        keep: bool [B, S], False at padding on the left; None where there is none.
        settings: how many rows continue a prompt, and whether keys and values are kept.
        new: tokens there is room for.
        pad: the id of what is not written.
    """

    def __init__(self, model: Decoder, prompts: Tensor, keep: Tensor | None, settings: GenerationSettings, new: int, pad: int) -> None:
        self.model, self.prompts = model, prompts
        batch, self.prompt_length = prompts.shape
        self.length = self.prompt_length
        self.max_length = self.length + new
        self.owner = torch.arange(batch, device=prompts.device).repeat_interleave(settings.copies)
        """int64 [R]: the prompt of each row."""
        self.rows = torch.arange(len(self.owner), device=prompts.device)
        self.out = prompts.new_full((len(self.owner), self.max_length), pad)
        self.out[:, :self.length] = prompts[self.owner]
        self.keep, self.positions = keep, torch.arange(self.max_length, device=prompts.device).expand(len(self.owner), -1)
        if keep is not None:
            self.keep = torch.ones_like(self.out, dtype=torch.bool)
            self.keep[:, :self.length] = keep[self.owner]
            self.positions = (self.keep.long().cumsum(-1) - 1).clamp(min=0)
        self.use_cache, self.reread = settings.use_cache, model.decoder_info.reread
        self.cache = KVCache(model.decoder_info.num_layers, self.max_length)

    @property
    def ids(self) -> Tensor:
        """What is written, prompts included [R, L]."""
        return self.out[:, :self.length]

    def logits(self) -> Tensor:
        """The logits [R, V] of the next id."""
        if not self.use_cache:
            return self._read(self.rows, 0, KVCache(self.model.decoder_info.num_layers, self.length))
        if self.length > self.prompt_length:
            start = max(0, self.length - 1 - self.reread)
            self.cache.rewind(start)
            return self._read(self.rows, start, self.cache)
        copies = len(self.rows) // len(self.prompts)
        logits = self._read(self.rows[::copies], 0, self.cache)
        if copies == 1:
            return logits
        self.cache.reorder(self.owner)
        return logits[self.owner]

    def _read(self, rows: Tensor, start: int, cache: KVCache) -> Tensor:
        part = slice(None) if len(rows) == len(self.rows) else rows
        keep = None if self.keep is None else self.keep[part, :self.length]
        place = slice(start, self.length)
        logits = self.model.next_logits(self.out[part, place], keep, self.positions[part, place], cache)
        return logits if logits.dtype == torch.float64 else logits.float()

    def append(self, ids: Tensor) -> None:
        """Write the next id [R] of each row."""
        self.out[:, self.length] = ids
        self.length += 1

    def reorder(self, rows: Tensor) -> None:
        """Make row i a copy of the former row `rows[i]` of the same prompt; the prompts themselves are not moved."""
        if rows.device.type == "cpu" and torch.equal(rows, self.rows):  # on a GPU the question costs more than the copy
            return
        written = slice(self.prompt_length, self.length)
        self.out[:, written] = self.out[rows, written]
        if self.use_cache:
            self.cache.reorder(rows, start=max(0, self.prompt_length - self.reread))


def decode(
    state: DecodingState, settings: GenerationSettings, rules: ScoreRules, uniform: Tensor | None, pad: int,
    listener: TokenListener | None = None,
) -> Written:  # fmt: skip
    """Write the most probable tokens, or drawn ones, until every row has ended.

    Args:
        state: the rows.
        settings: how the next token is chosen.
        rules: what changes the scores.
        uniform: fp64 [R, N] in [0, 1), the draws; None for the most probable tokens.
        pad: follows an end.
        listener: sees every token and may end rows.
    """
    finished = torch.zeros_like(state.owner, dtype=torch.bool)
    ended, lengths = finished, torch.zeros_like(state.owner)
    ends = torch.tensor(rules.ends, device=finished.device, dtype=torch.long)
    logprobs = None if settings.logprobs is None else LogProbs(settings.logprobs)
    while state.length < state.max_length:
        logits = state.logits()
        scores = rules(logits, state.ids)
        chosen = scores.argmax(-1) if uniform is None else draw(warp(scores, settings), uniform[:, state.length - state.prompt_length])
        if rules.ends or listener is not None:
            chosen = torch.where(finished, pad, chosen)
        if logprobs is not None:
            logprobs.add(logits, chosen)
        state.append(chosen)
        lengths = lengths + ~finished
        if rules.ends:
            ended = ended | (torch.isin(chosen, ends) & ~finished)
            finished = finished | ended
        if listener is not None:
            finished = finished | torch.tensor(listener(chosen.tolist(), finished.tolist()), device=finished.device)
        if (rules.ends or listener is not None) and bool(finished.all()):
            break
    return Written(state.ids, lengths, ended, logprobs=logprobs)


def beam_search(state: DecodingState, settings: GenerationSettings, rules: ScoreRules, pad: int) -> Written:
    """Beam search, hypothesis for hypothesis that of transformers.

    Each step looks at the best 2 K continuations of a prompt's K beams, or (1 + E) K where E > 1 tokens end a text. Those
    among the first K that end become results, if they beat the K results so far by their log-probability over length **
    length_penalty; the best K that do not end go on. `early_stopping` says when a prompt is done.

    Deviation: where results differ in length, the padding token fills the shorter ones (transformers takes the end's
    where the padding is token 0).

    Returns:
        B * num_return_sequences rows, best first.
    """
    k, new, power = settings.num_beams, state.max_length - state.prompt_length, settings.length_penalty
    batch, device = len(state.prompts), state.out.device
    first = torch.arange(batch, device=device)[:, None] * k
    ends_of_text = torch.tensor(rules.ends, device=device, dtype=torch.long)
    wide = max(2, 1 + len(rules.ends))  # so many of which at least K do not end
    near = torch.arange(wide * k, device=device) < k
    scores = torch.full((batch, k), LOW, device=device)
    scores[:, 0] = 0.0  # at first a prompt has one beam
    best = torch.full((batch, k), LOW, device=device)
    done = torch.zeros(batch, k, dtype=torch.bool, device=device)
    results = state.out.new_full((batch, k, new), pad)
    lengths = torch.zeros(batch, k, dtype=torch.long, device=device)
    hopeful = torch.ones(batch, dtype=torch.bool, device=device)
    for made in range(1, new + 1):
        chances = rules(state.logits().log_softmax(-1), state.ids)
        size = chances.shape[-1]
        top, places = (chances.view(batch, k, size) + scores[..., None]).view(batch, -1).topk(wide * k)
        parents, tokens = places // size, places % size  # [B, 2 K] or more
        ends = torch.isin(tokens, ends_of_text) | (made == new)
        if made == new or (rules.ends and bool(ends.any())):
            counts = ends & near & hopeful[:, None]
            if settings.early_stopping is True:
                counts &= ~done.all(1, keepdim=True)
            value = torch.where(counts, top / made**power, LOW)
            best, chosen = torch.cat([best, value.to(best.dtype)], 1).topk(k)
            written = state.out[:, state.prompt_length:].view(batch, k, new).take_along_dim(parents[..., None], 1)
            written[..., made - 1] = tokens
            results = torch.cat([results, written], 1).take_along_dim(chosen[..., None], 1)
            lengths = torch.cat([lengths, torch.full_like(parents, made)], 1).gather(1, chosen)
            done = torch.cat([done, counts], 1).gather(1, chosen)
        scores, order = (top + ends * LOW).topk(k)
        length = new if settings.early_stopping == "never" and power > 0 else made
        worst = torch.where(done, best.amin(1, keepdim=True), LOW)
        hopeful = hopeful & (scores[:, :1] / length**power > worst).any(1)
        open_ = hopeful & ~done.all(1) if settings.early_stopping is True else hopeful
        if made == new or not bool(open_.any()):
            break
        rows = (first + parents.gather(1, order)).flatten()
        state.reorder(rows)
        state.append(tokens.gather(1, order).flatten())
    n = settings.num_return_sequences
    lengths = lengths[:, :n].flatten()
    results = results[:, :n, :int(lengths.max())].flatten(0, 1)
    ended = torch.isin(results.gather(1, (lengths[:, None] - 1).clamp(min=0))[:, 0], ends_of_text)
    return Written(torch.cat([state.prompts.repeat_interleave(n, 0), results], 1), lengths, ended, best[:, :n].flatten())
