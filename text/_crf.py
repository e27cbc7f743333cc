"""A linear-chain conditional random field (Lafferty, McCallum and Pereira, 2001) over the tags of sentences.

    s(x, y) = Σ_t e_t(y_t) + Σ_t A(y_{t-1}, y_t) + a(y_1) + z(y_T),    log p(y | x) = s(x, y) - log Σ_y' exp s(x, y')

The sum over all y' is taken by the forward algorithm, the best y' by Viterbi's; both for all sentences of a batch at once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..shared.loss import at_least_fp32


class CRF(nn.Module):
    """Scores of neighbouring tags, of the first and of the last one.

    Args:
        tags: how many tags there are, K.
    """

    no_decay = ("transitions",)

    def __init__(self, tags: int) -> None:
        super().__init__()
        self.transitions = nn.Parameter(torch.zeros(tags, tags))
        """[K, K]: from, to."""
        self.first, self.last = nn.Parameter(torch.zeros(tags)), nn.Parameter(torch.zeros(tags))

    def loss(self, scores: Tensor, tags: Tensor, keep: Tensor) -> Tensor:
        """The negative log-likelihood of each sentence's tags.

        Args:
            scores: e, [B, S, K].
            tags: [B, S]; anything at padding.
            keep: bool [B, S], true at words; padding stands on the right, and no sentence is empty.

        Returns:
            [B], in fp32 at least.
        """
        scores = at_least_fp32(scores)
        return self._partition(scores, keep) - self._score(scores, tags.masked_fill(~keep, 0), keep)

    def _score(self, scores: Tensor, tags: Tensor, keep: Tensor) -> Tensor:
        """S of the given tags, [B]."""
        at = scores.gather(2, tags[:, :, None])[:, :, 0] * keep
        between = self.transitions[tags[:, :-1], tags[:, 1:]] * keep[:, 1:]
        end = tags.gather(1, keep.sum(1, keepdim=True) - 1)[:, 0]
        return at.sum(1) + between.sum(1) + self.first[tags[:, 0]] + self.last[end]

    def _partition(self, scores: Tensor, keep: Tensor) -> Tensor:
        """Log Σ exp s over all tags, [B]."""
        alpha = self.first + scores[:, 0]
        for t in range(1, scores.shape[1]):
            moved = (alpha[:, :, None] + self.transitions).logsumexp(1) + scores[:, t]
            alpha = torch.where(keep[:, t, None], moved, alpha)
        return (alpha + self.last).logsumexp(1)

    @torch.no_grad()
    def best(self, scores: Tensor, keep: Tensor) -> Tensor:
        """The most probable tags [B, S] for scores [B, S, K]; at padding the last word's."""
        scores = at_least_fp32(scores)
        alpha, back = self.first + scores[:, 0], list[Tensor]()
        same = torch.arange(alpha.shape[1], device=scores.device)
        for t in range(1, scores.shape[1]):
            moved, origin = (alpha[:, :, None] + self.transitions).max(1)
            alpha = torch.where(keep[:, t, None], moved + scores[:, t], alpha)
            back.append(torch.where(keep[:, t, None], origin, same))
        tag = (alpha + self.last).argmax(1)
        found = [tag]
        for origin in reversed(back):
            tag = origin.gather(1, tag[:, None])[:, 0]
            found.append(tag)
        return torch.stack(found[::-1], 1)
