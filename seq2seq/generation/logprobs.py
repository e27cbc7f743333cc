"""How probable the tokens of a text are under the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...shared.tokenizer import Tokenizer
from .streamer import UNFINISHED


@dataclass(frozen=True)
class TokenLogProb:
    """A token of a text."""

    token: str
    """Its text; as it stands in the vocabulary where it is a special token or a part of a character."""
    id: int
    logprob: float
    """The natural logarithm of its probability."""
    top: tuple[tuple[str, int, float], ...] = ()
    """The most probable tokens in its place, each with id and log-probability."""


class LogProbs:
    """Log-probabilities of the tokens that R rows are given, and of the most probable ones.

    Args:
        top: how many of those.
    """

    def __init__(self, top: int) -> None:
        self.top = top
        self._chosen: list[Tensor] = []
        self._best: list[tuple[Tensor, Tensor]] = []

    def add(self, logits: Tensor, chosen: Tensor) -> None:
        """Take the model's logits [R, V] of a place, and the ids [R] that were written there."""
        found = logits.log_softmax(-1)
        self._chosen.append(found.gather(1, chosen[:, None])[:, 0])
        if self.top:
            values, ids = found.topk(min(self.top, found.shape[1]))
            self._best.append((values, ids))

    def row(self, number: int, ids: Sequence[int], before: int | None, tokenizer: Tokenizer) -> tuple[TokenLogProb, ...]:
        """Those of the `ids` of a row, the first of which stands behind the id `before`."""
        values = [float(step[number]) for step in self._chosen[:len(ids)]]
        best = [list(zip(at[number].tolist(), found[number].tolist())) for found, at in self._best[:len(ids)]] or [[] for _ in ids]
        previous = [before, *ids][:len(ids)]
        texts = iter(_spelled([(p, i) for p, one, several in zip(previous, ids, best) for i in (one, *(k for k, _ in several))], tokenizer))
        return tuple(TokenLogProb(next(texts), one, value, tuple((next(texts), i, v) for i, v in several))
                     for one, value, several in zip(ids, values, best))


def _spelled(pairs: Sequence[tuple[int | None, int]], tokenizer: Tokenizer) -> list[str]:
    """The text that each token adds behind another one."""
    contexts = [[] if before is None else [before] for before, _ in pairs]
    known = tokenizer.decode_batch(contexts, clean_up_tokenization_spaces=False)
    whole = tokenizer.decode_batch([[*c, i] for c, (_, i) in zip(contexts, pairs)], clean_up_tokenization_spaces=False)
    return [text[len(start):] if text.startswith(start) and UNFINISHED not in text[len(start):] and i not in tokenizer.special_ids
            else tokenizer.id_to_token(i) or f"<{i}>" for (_, i), start, text in zip(pairs, known, whole)]
