"""The likelihood of tokens that follow others, by a causal language model: what a sliding window and few-shot questions add up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...shared.decoder import Decoder
from ...shared.errors import UserError
from ...shared.heads import LMHead
from .subject import Subject

ROWS_AT_A_TIME = 1024
"""Rows that are scored over the vocabulary together: what bounds the memory."""

Piece = tuple[np.ndarray, int]
"""Token ids, int64 [S], and the place of the first one that is scored, at least 1."""


def causal_network(subject: Subject, what: str, instead: str) -> Any:
    """The subject's model, or an error where it does not predict each token from those before; `what` needs it."""
    net: Any = subject.model
    if not isinstance(net, Decoder) or net.decoder_info.reread or not isinstance(getattr(net, "head", None), LMHead):
        raise UserError(f"{subject.source} holds a {type(net).__name__}; {what} needs a causal language model such as GPT-2: {instead}")
    return net


def nats_of_rows(net: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    """-log p of targets [N] from states [N, D]: float64 [N], on the CPU."""
    parts = [F.cross_entropy(net.head(h).float(), t, reduction="none").double().cpu()
             for h, t in zip(hidden.split(ROWS_AT_A_TIME), targets.split(ROWS_AT_A_TIME))]
    return torch.cat(parts)


def nats(net: Any, pieces: Sequence[Piece], rows: int, device: torch.device) -> list[list[float]]:
    """-log p of the scored tokens of each piece, given all before them; `rows` pieces of like length run together."""
    found: list[list[float]] = [[] for _ in pieces]
    order = sorted(range(len(pieces)), key=lambda i: -len(pieces[i][0]))
    for start in range(0, len(order), rows):
        numbers = order[start:start + rows]
        part = [pieces[n] for n in numbers]
        width = max(len(ids) for ids, _ in part) - 1
        inputs = torch.zeros(len(part), width, dtype=torch.long)
        for row, (ids, _) in zip(inputs, part):
            row[:len(ids) - 1] = torch.from_numpy(ids[:-1])
        hidden = net.trunk(inputs.to(device)).last_hidden_state  # causal: padding on the right is never seen
        places = torch.cat([torch.arange(first - 1, len(ids) - 1) + i * width for i, (ids, first) in enumerate(part)])
        targets = torch.from_numpy(np.concatenate([ids[first:] for ids, first in part]))
        values = nats_of_rows(net, hidden.flatten(0, 1)[places.to(device)], targets.to(device))
        for number, scored in zip(numbers, values.split([len(ids) - first for ids, first in part])):
            found[number] = scored.tolist()
    return found
