"""Sequences side by side in one row, without padding; each sees only itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from .attention.position import document_positions
from .system import Batch


@dataclass(frozen=True)
class Packed:
    """N sequences in one row of T tokens."""

    input_ids: Tensor
    """[1, T]"""
    position_ids: Tensor
    """[1, T], from 0 in each sequence."""
    lengths: tuple[int, ...]
    """N lengths, their sum T."""

    def select(self, numbers: Sequence[int]) -> Packed:
        """The sequences with these numbers, in this order."""
        if list(numbers) == list(range(len(self.lengths))):
            return self
        begins = starts(self.lengths)
        places = torch.cat([torch.arange(begins[n], begins[n] + self.lengths[n]) for n in numbers]).to(self.input_ids.device)
        return Packed(self.input_ids[:, places], self.position_ids[:, places], tuple(self.lengths[n] for n in numbers))


@dataclass(kw_only=True)
class PackedBatch(Batch):
    """A batch of N packed sequences, T tokens; families add what they predict."""

    input_ids: Tensor
    """[1, T]"""
    position_ids: Tensor
    """[1, T], from 0 in each sequence."""
    lengths: tuple[int, ...]
    """N lengths, their sum T."""


def side_by_side(rows: Sequence[np.ndarray | Sequence[int]]) -> Packed:
    """Pack sequences of token ids [S]."""
    lengths = tuple(len(row) for row in rows)
    return Packed(joined(rows), document_positions(lengths), lengths)


def joined(rows: Sequence[np.ndarray | Sequence[int]]) -> Tensor:
    """Whole numbers of N sequences, [S] each, in one row: int64 [1, T]."""
    return torch.from_numpy(np.concatenate([np.asarray(row, dtype=np.int64) for row in rows]))[None]


def starts(lengths: Sequence[int]) -> list[int]:
    """Where each sequence begins, N numbers."""
    return [0, *accumulate(lengths)][:-1]
