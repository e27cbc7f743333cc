"""Axial positions (Kitaev et al., 2020, appendix D): a table of rows and one of columns in place of one for all positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AxialPositions(nn.Module):
    """Vectors of positions: a part for the row and one for the column in which a position stands.

    Args:
        shape: rows and columns; positions count along the rows.
        widths: of both parts, together D.
        std: of the initial weights.
        dropout: probability of leaving out a column of a text's positions.
    """

    def __init__(self, shape: tuple[int, ...], widths: tuple[int, ...], *, std: float, dropout: float) -> None:
        super().__init__()
        rows, columns = shape
        self.weights = nn.ParameterList([torch.empty(rows, 1, widths[0]), torch.empty(1, columns, widths[1])])
        for weight in self.weights:
            nn.init.normal_(weight, std=std)
        self.dropout = dropout

    def forward(self, positions: Tensor) -> Tensor:
        """Map [B, S] to [B, S, D]."""
        by_row, by_column = self.weights[0][:, 0], self.weights[1][0]
        column = positions % len(by_column)
        found = torch.cat([F.embedding(positions // len(by_column), by_row), F.embedding(column, by_column)], -1)
        if not self.training or not self.dropout:
            return found
        kept = F.dropout(found.new_ones(len(positions), len(by_column)), self.dropout)
        return found * kept.gather(1, column)[..., None]


class AxialEmbedding(nn.Module):
    """Words and axial positions, or without `shape` a table of positions; each has its dropout. See `AxialPositions`.

    Args:
        vocab_size: V.
        hidden_size: D.
        positions: rows of the table of positions.
        shape: of axial positions; None without.
        widths: of their parts.
        std: of their initial weights.
        dropout: of words and positions.
    """

    def __init__(self, vocab_size: int, hidden_size: int, positions: int, shape: tuple[int, ...] | None, widths: tuple[int, ...], *,
                 std: float, dropout: float) -> None:
        super().__init__()
        self.word = nn.Embedding(vocab_size, hidden_size)
        self.axial = shape is not None
        self.position = nn.Embedding(positions, hidden_size) if shape is None else AxialPositions(shape, widths, std=std, dropout=dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Map ids and positions [B, S] to [B, S, D]."""
        where = self.position(positions)
        return self.dropout(self.word(ids)) + (where if self.axial else self.dropout(where))
