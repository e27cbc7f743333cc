"""From the scores of the next token to a token: what is forbidden or made less probable, which tokens stay, and the draw.

Everything comes in the order of transformers' `generate`: repetition penalty, repeated n-grams, bad words, smallest length, forced first
and last token, suppressed tokens; then, for draws alone, temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ...shared.errors import UserError
from .options import GenerationSettings, as_ids

NEVER = float("-inf")


class ScoreRules:
    """What changes the scores of the next tokens, whether they are drawn, taken or searched.

    Args:
        settings: the penalties.
        prompt_length: tokens that were given.
        max_length: tokens of the longest text, prompt included.
        keep: bool [R, S + N], False at padding, which counts as no token; None where there is none.
        ends: the ids that end a text.
    """

    def __init__(
        self, settings: GenerationSettings, prompt_length: int, max_length: int, keep: Tensor | None, ends: tuple[int, ...]
    ) -> None:
        self.settings = settings
        self.prompt_length = prompt_length
        self.max_length = max_length
        self.keep = keep
        self.ends = ends
        self.bad_words = tuple(word for word in map(tuple, settings.bad_words_ids) if word not in {(end,) for end in ends})
        later = prompt_length == 1 and settings.forced_bos_token_id is not None
        self.first = prompt_length + later  # where a text's own tokens begin

    def __call__(self, scores: Tensor, ids: Tensor) -> Tensor:
        """The scores [R, V] (logits or log-probabilities) of what follows `ids` [R, L], after all rules."""
        s, length = self.settings, ids.shape[1]
        if s.repetition_penalty != 1.0:
            # padding is replaced by the newest token, which occurred
            seen = ids if self.keep is None else torch.where(self.keep[:, :length], ids, ids[:, -1:])
            old = scores.gather(1, seen)
            scores = scores.scatter(1, seen, torch.where(old < 0, old * s.repetition_penalty, old / s.repetition_penalty))
        if 0 < s.no_repeat_ngram_size <= length:
            scores = scores.masked_fill(self._repeated(ids, scores.shape[1]), NEVER)
        for word in self.bad_words:
            scores = self._without(scores, ids, word)
        if self.ends and (length - self.prompt_length < s.min_new_tokens or length < s.min_length):
            scores = self._never(scores, self.ends)
        if s.forced_bos_token_id is not None and length == 1:
            scores = self._forced(scores, (s.forced_bos_token_id,))
        if s.forced_eos_token_id is not None and length == self.max_length - 1:
            scores = self._forced(scores, as_ids(s.forced_eos_token_id))
        if s.suppress_tokens:
            scores = self._never(scores, tuple(s.suppress_tokens))
        if s.begin_suppress_tokens and length == self.first:
            scores = self._never(scores, tuple(s.begin_suppress_tokens))
        return scores.log_softmax(-1) if s.renormalize_logits else scores

    def _never(self, scores: Tensor, ids: tuple[int, ...]) -> Tensor:
        return scores.index_fill(1, _places(scores, ids), NEVER)

    def _forced(self, scores: Tensor, ids: tuple[int, ...]) -> Tensor:
        return torch.full_like(scores, NEVER).index_fill(1, _places(scores, ids), 0.0)

    def _without(self, scores: Tensor, ids: Tensor, word: tuple[int, ...]) -> Tensor:
        """The scores without the last token of `word` in rows that end with its other tokens."""
        before, last = torch.tensor(word[:-1], device=ids.device, dtype=ids.dtype), word[-1]
        if len(before) > ids.shape[1]:
            return scores
        start = ids.shape[1] - len(before)
        rows = (ids[:, start:] == before).all(-1)
        if self.keep is not None:
            rows &= self.keep[:, start : ids.shape[1]].all(-1)
        place = _places(scores, (last,))
        return scores.index_copy(1, place, scores.index_select(1, place).masked_fill(rows[:, None], NEVER))

    def _repeated(self, ids: Tensor, size: int) -> Tensor:
        """The tokens that would complete an n-gram a second time, as bool [R, V]."""
        n = self.settings.no_repeat_ngram_size
        windows = ids.unfold(1, n, 1)  # [R, L - n + 1, n]
        start = ids.shape[1] + 1 - n
        same = (windows[..., :-1] == ids[:, None, start:]).all(-1)
        if self.keep is not None:  # an n-gram that reaches into the padding is none
            same &= self.keep[:, :start] & self.keep[:, start:start + 1]
        # those that differ forbid an extra token behind the vocabulary
        forbidden = torch.zeros(len(ids), size + 1, dtype=torch.bool, device=ids.device)
        return forbidden.scatter_(1, torch.where(same, windows[..., -1], size), value=True)[:, :size]


def _places(scores: Tensor, ids: tuple[int, ...]) -> Tensor:
    """The columns of `ids` in scores [R, V]."""
    if wrong := [i for i in ids if not 0 <= i < scores.shape[-1]]:
        raise UserError(f"token {wrong[0]} of a generation option is not in the vocabulary, which has {scores.shape[-1]} entries")
    return torch.tensor(ids, device=scores.device)


def warp(logits: Tensor, settings: GenerationSettings) -> Tensor:
    """The logits [R, V] to draw from: divided by the temperature, and -inf for tokens that are never drawn."""
    s = settings
    logits = logits / s.temperature
    if 0 < s.top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(s.top_k, dim=-1).values[:, -1:], NEVER)
    if s.top_p < 1.0:
        ordered, places = logits.sort(dim=-1)
        tail = ordered.softmax(-1).cumsum(-1) <= 1.0 - s.top_p
        tail[:, -1] = False  # at least one token stays
        logits = logits.masked_fill(torch.zeros_like(tail).scatter(-1, places, tail), NEVER)
    if s.min_p > 0.0:
        probabilities = logits.softmax(-1)
        logits = logits.masked_fill(probabilities < s.min_p * probabilities.amax(-1, keepdim=True), NEVER)
    return logits


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """One id for each row of logits [R, V], by the uniform numbers fp64 [R] in [0, 1)."""
    reached = logits.softmax(-1).double().cumsum(-1)
    return torch.searchsorted(reached, uniform[:, None] * reached[:, -1:], right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def seeded(settings: GenerationSettings) -> GenerationSettings:
    """The settings with a seed, drawn where draws have none, so that a text can be told how to be drawn again."""
    if settings.seed is not None or not settings.do_sample:
        return settings
    return replace(settings, seed=int(np.random.SeedSequence().generate_state(1, np.uint32)[0]))


def uniform_draws(streams: Iterable[tuple[int, int]], steps: int) -> Tensor:
    """Uniform numbers fp64 [R, N]: every row has its own stream, (seed, number)."""
    return torch.from_numpy(np.stack([np.random.Generator(np.random.Philox(key=[seed % 2**63, row])).random(steps)
                                      for seed, row in streams]))
