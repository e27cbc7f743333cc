"""What students of a text encoder share: the teacher, which is a companion, and how far their predictions are apart.

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015. https://arxiv.org/abs/1503.02531

The teacher reads the student's batches, packed like them, without dropout and without a gradient. It computes in the number format of the
student: in bf16 where a run does, with weights in bf16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..shared.encoder import Encoder
from ..shared.errors import UserError
from ..shared.family import Context
from ..shared.heads import LMHead
from ..shared.loss import CACHED_LOGITS, SoftmaxGradient, linear_cross_entropy_sum
from ..shared.system import Companion
from ..shared.tokenizer import Tokenizer

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
    total = logits.new_zeros((), dtype=wide)
    rows = max(1, CACHED_LOGITS // logits.shape[1]) if logits.device.type == "cpu" else max(1, len(logits))
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
