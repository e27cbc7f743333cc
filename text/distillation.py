"""What students of a text encoder share: the teacher, which is a companion, and how far their predictions are apart.

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015. https://arxiv.org/abs/1503.02531

The teacher reads the student's batches, packed like them, without dropout and without a gradient. It computes in the number format of the
student: in bf16 where a run does, with weights in bf16. What it predicts may be kept (`KeptTeacher`): then it is asked once for each text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..shared.encoder import Encoder, EncoderOutput
from ..shared.errors import UserError
from ..shared.family import Context
from ..shared.heads import LMHead
from ..shared.loss import CACHED_LOGITS, CHUNK_LOGITS, SoftmaxGradient, at_least_fp32, linear_cross_entropy_sum
from ..shared.packed import Packed, starts
from ..shared.system import Companion
from ..shared.tokenizer import Tokenizer
from .logit_cache import LogitCache, Told
from .masking import MaskedBatch

ENCODERS = ("bert", "distilbert", "roberta", "albert", "ernie", "macbert", "spanbert", "electra")
"""Families whose networks have an `Encoder`."""

NetT = TypeVar("NetT", bound=nn.Module)


@dataclass(frozen=True)
class Teacher:
    """A trained network with an `Encoder` as its trunk, beside the one that is trained."""

    companion: Companion

    @property
    def net(self) -> Any:
        """The network, where it was used last."""
        return self.companion.net

    def like(self, student: Tensor) -> Any:
        """The network on the device of the student's tensor, in the number format that the student computes in."""
        kind = student.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else student.dtype
        return self.companion.on(student.device, dtype)

    @torch.no_grad()
    def read(self, student: Tensor, texts: Packed) -> tuple[Any, Tensor]:
        """The network as in `like`, and its last states of T tokens, [T, E]."""
        net = self.like(student)
        out: EncoderOutput = net.trunk(texts.input_ids, None, None, texts.position_ids, lengths=texts.lengths)
        return net, out.last_hidden_state[0]


def find_teacher(context: Context, system: str, kind: type[nn.Module], need: str) -> Teacher | None:
    """The companion `teacher`, checked as far as its files can be; None where a network is built without one.

    Args:
        context: with the companion, and the tokenizer that the student reads with.
        system: who asks.
        kind: the class of its network.
        need: what such a network is, in words.

    Raises:
        UserError: it is lacking, is another kind of network, or was trained with another tokenizer.
    """
    companion = context.companion("teacher", system)
    if companion is None:
        return None
    net, source = companion.net, companion.source
    if not isinstance(net, kind) or not isinstance(getattr(net, "trunk", net), Encoder):
        raise UserError(f"the teacher {source} holds a {type(net).__name__}, expected {need}: set companions.teacher to one")
    theirs, ours = companion.tokenizer, context.tokenizer
    if theirs is not None and ours is not None and theirs.fingerprint != ours.fingerprint:
        raise UserError(f"the teacher {source} reads with another tokenizer ({theirs.vocab_size} entries, {theirs.fingerprint[:12]}) than "
                        f"this run ({ours.vocab_size}, {ours.fingerprint[:12]}): pass --tokenizer {source}, with data that is packed as "
                        "text or with that tokenizer")
    return Teacher(companion)


def check_sizes(teacher: Teacher, config: Any, length: int) -> None:
    """Refuse a teacher with another vocabulary than the student's config, or without positions for the student's `length` tokens."""
    theirs, source = teacher.net.config, teacher.companion.source
    if theirs.vocab_size != config.vocab_size:
        raise UserError(f"the teacher {source} has {theirs.vocab_size} words and the student {config.vocab_size}: leave model.vocab_size "
                        "out, which follows the teacher, or set companions.teacher to one that the student's vocabulary is of")
    if theirs.longest_input < length:
        raise UserError(f"the teacher {source} has {theirs.longest_input} positions and the student reads {length} tokens: set "
                        f"objective.max_length={theirs.longest_input}")


def with_vocabulary(config: Any, context: Context) -> dict[str, Any]:
    """The fields of a student's config that follow its teacher, or its tokenizer where it has none: the vocabulary and the padding id."""
    if (companion := context.companions.get("teacher")) is not None:
        theirs: Any = companion.net.config
        return {"vocab_size": theirs.vocab_size, "pad_token_id": theirs.pad_token_id}
    tokenizer: Tokenizer | None = context.tokenizer
    return {} if tokenizer is None else {"vocab_size": tokenizer.vocab_size, "pad_token_id": tokenizer.pad_id or 0}


# ---------------------------------------------------------------------------------------------- the distance


def divergence_(logits: Tensor, others: Tensor, temperature: float) -> Tensor:
    """T^2 KL(p || q) of q = softmax(logits / T) and p = softmax(others / T), both [N, V], summed over N; the logits become its gradient.

    Hinton's T^2 keeps the gradient at the size that it has without a temperature.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    total, rows = logits.new_zeros((), dtype=wide), _at_a_time(logits)
    for part, other in zip(logits.split(rows), others.split(rows), strict=True):
        log_q, log_p = ((x.to(wide) / temperature).log_softmax(-1) for x in (part, other))
        p = log_p.exp()
        total += torch.dot(p.view(-1), log_p.sub_(log_q).view(-1)).clamp(min=0)  # below 0 it is rounding
        part.copy_(log_q.exp_().sub_(p).mul_(temperature))
    return total * temperature**2


def divergence_sum(head: LMHead, x: Tensor, teacher: LMHead, states: Tensor, temperature: float) -> Tensor:
    """`divergence_` between two heads over one vocabulary, without ever holding all logits of either.

    Args:
        head: the student's.
        x: [N, D], the states that it reads.
        teacher: the other head.
        states: [N, E], the states that that one reads.
        temperature: T.

    Returns:
        The sum, a scalar in fp32 (fp64 for fp64 inputs).
    """
    with torch.no_grad():
        hidden = teacher.hidden(states).to(teacher.weight.dtype)
    return linear_cross_entropy_sum(head.hidden(x), head.weight, head.bias, hidden, soften=_against(teacher, temperature))


def _against(teacher: LMHead, temperature: float) -> SoftmaxGradient:
    return lambda logits, hidden: divergence_(logits, F.linear(hidden, teacher.weight, teacher.bias), temperature)


def _at_a_time(logits: Tensor) -> int:
    """Rows of logits that are made into a gradient together: what a CPU's cache holds."""
    return max(1, CACHED_LOGITS // logits.shape[1]) if logits.device.type == "cpu" else max(1, len(logits))


# --------------------------------------------------------------------------------- what the teacher said before


@dataclass(kw_only=True)
class KeyedBatch(MaskedBatch):
    """Masked texts that a cache knows by name, if there is one."""

    keys: tuple[bytes, ...] = ()
    """`key_of` each of the N texts."""
    places: tuple[int, ...] = ()
    """At how many places of each the teacher is heard."""


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """What can be set of a cache of a teacher's predictions."""

    cache: str | None = None
    """A folder for what the teacher predicts, which is then asked once for each masked text (`polymodal distill --cache`). With
    `alpha_cos: 0`."""
    cache_top: int = 64
    """Of a cache: how many of the teacher's logits are kept at a place, the largest ones."""
    cache_dtype: Literal["float16", "float32"] = "float16"
    """Of a cache: the type of the kept logits."""
    maskings: int | None = None
    """In how many ways a text is masked, which take turns from epoch to epoch; None masks anew each time, with a cache always alike."""

    @property
    def draws(self) -> int | None:
        """See `Objective.draws`."""
        return self.maskings or (None if self.cache is None else 1)

    def cache_problems(self, soft: float, states: float) -> Iterator[str]:
        """What is wrong, where the teacher's predictions and its states have these weights."""
        for name in ("cache_top", "maskings"):
            if (value := getattr(self, name)) is not None and value < 1:
                yield f"{name} is {value}, expected at least 1"
        if self.cache_dtype not in ("float16", "float32"):
            yield f"cache_dtype is {self.cache_dtype!r}, expected float16 or float32"
        if self.cache is not None and states:
            yield "a cache keeps what the teacher predicts and not its states: set objective.alpha_cos=0, or leave the cache out"
        if self.cache is not None and not soft:
            yield "alpha_ce is 0, so there is nothing to keep: leave the cache out"


@dataclass(frozen=True)
class KeptTeacher:
    """A teacher that predicts words, and the folder of what it said.

    Raises:
        UserError: the folder is of another teacher, other data, other masks or other numbers.
    """

    teacher: Teacher
    settings: CacheSettings
    temperature: float
    cache: LogitCache

    @classmethod
    def open(cls, teacher: Teacher, settings: CacheSettings, temperature: float, context: Context, masks: Mapping[str, Any]) -> KeptTeacher:
        """Open the folder; `masks` says how texts are cut and masked."""
        vocabulary, counts = teacher.net.config.vocab_size, context.counts
        return cls(teacher, settings, temperature, LogitCache(Path(str(settings.cache)), {
            "teacher": teacher.companion.fingerprint, "tokenizer": None if context.tokenizer is None else context.tokenizer.fingerprint,
            "counts": None if counts is None else hashlib.sha256(counts.astype("<i8").tobytes()).hexdigest(),
            "vocabulary": vocabulary, "top": min(settings.cache_top, vocabulary), "dtype": settings.cache_dtype,
            "temperature": temperature, "maskings": settings.draws, **masks}))

    def divergence_sum(self, head: LMHead, x: Tensor, batch: KeyedBatch, rows: Tensor) -> tuple[Tensor, Tensor]:
        """`told_divergence_sum` from what the teacher says; it is asked for the texts alone that the cache does not have yet.

        Args:
            head: the student's.
            x: [R, D], the states that it reads.
            batch: N texts.
            rows: [R], their places among the T tokens, text by text.

        Returns:
            The sum, and how many texts were in the cache.
        """
        everything = Packed(batch.input_ids, batch.position_ids, batch.lengths)
        if type(x) is not Tensor:  # `polymodal plan`: these are no numbers that could be kept
            told, known = self._ask(head.weight, everything, rows), 0
        else:
            told, known = self._hear(head.weight, everything, rows, batch)
        return told_divergence_sum(head, x, told, self.temperature), torch.tensor(float(known))

    def _hear(self, student: Tensor, everything: Packed, rows: Tensor, batch: KeyedBatch) -> tuple[Told, int]:
        """As the cache has it, what was asked just now, too: so a first epoch learns from the same numbers as the others."""
        found = self.cache.find(batch.keys, batch.places)
        missing = [number for number, entry in enumerate(found) if entry is None]
        if missing:
            texts, each, begins = everything.select(missing), rows.split(batch.places), starts(batch.lengths)
            moved = [each[n] + (begin - begins[n]) for n, begin in zip(missing, starts(texts.lengths), strict=True)]
            entries = self.cache.encode(self._ask(student, texts, torch.cat(moved)), [batch.places[n] for n in missing])
            self.cache.keep([batch.keys[n] for n in missing], entries)
            for number, entry in zip(missing, entries, strict=True):
                found[number] = entry
        return self.cache.decode([entry for entry in found if entry is not None]).to(rows.device), len(found) - len(missing)

    def _ask(self, student: Tensor, texts: Packed, rows: Tensor) -> Told:
        net, states = self.teacher.read(student, texts)
        return told_by(net.head, states[rows], self.cache.top, self.temperature)


@torch.no_grad()
def told_by(teacher: LMHead, states: Tensor, top: int, temperature: float) -> Told:
    """The `top` largest logits of a head at rows [N, E], and the probability of the others at a temperature."""
    hidden, vocabulary = teacher.hidden(states).to(teacher.weight.dtype), len(teacher.weight)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for part in hidden.split(max(1, CHUNK_LOGITS // vocabulary)):
        logits = at_least_fp32(F.linear(part, teacher.weight, teacher.bias))
        values, indices = logits.topk(top, sorted=False)
        chosen = ((values / temperature).logsumexp(-1) - (logits / temperature).logsumexp(-1)).exp()
        rest = (1 - chosen).clamp(min=0) if top < vocabulary else torch.zeros_like(chosen)  # else it would be rounding
        parts.append((indices, values - values.amax(-1, keepdim=True), rest))
    indices, values, rest = (torch.cat(same) for same in zip(*parts, strict=True))
    return Told(indices, values, rest)


def told_divergence_(logits: Tensor, told: Told, temperature: float) -> Tensor:
    """`divergence_` of logits [N, V] from what is known of the other ones, summed over N; the logits become its gradient.

    The K words that are known are K events, and all others together are one: a proper divergence, of K + 1 probabilities on both sides. It
    is at most the whole one, and is that one for K = V.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    total, rows, tiny = logits.new_zeros((), dtype=wide), _at_a_time(logits), torch.finfo(wide).tiny
    for part, indices, values, rest in zip(*(t.split(rows) for t in (logits, told.indices, told.values, told.rest)), strict=True):
        rest = rest.to(wide)
        p = (values.to(wide) / temperature).softmax(-1) * (1 - rest)[:, None]
        q = (part.to(wide) / temperature).log_softmax(-1)
        log_q = q.gather(1, indices)
        left = q.exp_().scatter_(1, indices, 0.0).sum(-1).clamp(min=tiny)  # not 1 less the others, which would be rounding
        total += ((torch.xlogy(p, p) - p * log_q).sum() + (torch.xlogy(rest, rest) - rest * left.log()).sum()).clamp(min=0)
        part.copy_(q.mul_((1 - rest / left)[:, None]).scatter_(1, indices, log_q.exp() - p).mul_(temperature))
    return total * temperature**2


def told_divergence_sum(head: LMHead, x: Tensor, told: Told, temperature: float) -> Tensor:
    """`told_divergence_` of a head at rows [N, D], a scalar in fp32 at least, without ever holding all logits."""
    def soften(logits: Tensor, numbers: Tensor) -> Tensor:
        return told_divergence_(logits, Told(told.indices[numbers], told.values[numbers], told.rest[numbers]), temperature)

    return linear_cross_entropy_sum(head.hidden(x), head.weight, head.bias, torch.arange(len(x), device=x.device), soften=soften)
