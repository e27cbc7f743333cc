"""Packing of documents into rows of tokens: whole ones by best fit, or all of them in order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GOAL = 0.99
"""Rows are at least this full, on average."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens [begin, end) of a document."""

    document: int
    begin: int
    end: int

    @property
    def length(self) -> int:
        """Its tokens."""
        return self.end - self.begin


def fit(lengths: np.ndarray, block: int) -> tuple[list[list[Piece]], int]:
    """Put documents into as few rows of at most `block` tokens as possible.

    Longest first, each into the fullest row that still takes it whole. Where that leaves rows less than
    99 % full (documents just over half a block, for instance), the emptiest rows are dissolved and their
    documents cut to fill the gaps of the others.

    Args:
        lengths: tokens of each document, each 1 to `block`.
        block: tokens of a full row.

    Returns:
        The rows, and how many documents were cut.
    """
    assert len(lengths) == 0 or 0 < int(lengths.min()) <= int(lengths.max()) <= block
    rows: list[list[Piece]] = []
    room: list[int] = []
    by_room: list[list[int]] = [[] for _ in range(block + 1)]
    free = 0  # bit i is set where some row has room for exactly i tokens
    for document in np.argsort(-lengths.astype(np.int64), kind="stable").tolist():
        length = int(lengths[document])
        fitting = free >> length
        if fitting:
            gap = length + (fitting & -fitting).bit_length() - 1
            row = by_room[gap].pop()
            if not by_room[gap]:
                free &= ~(1 << gap)
        else:
            row, gap = len(rows), block
            rows.append([])
            room.append(block)
        rows[row].append(Piece(document, 0, length))
        left = gap - length
        room[row] = left
        if left:
            by_room[left].append(row)
            free |= 1 << left
    return _fill(rows, room, int(lengths.sum()), block)


def _fill(rows: list[list[Piece]], room: list[int], tokens: int, block: int) -> tuple[list[list[Piece]], int]:
    """Dissolve the emptiest rows into the gaps of the others, as many as the goal asks for."""
    wanted = max(-(-tokens // block), int(tokens / (GOAL * block)))  # at least what the tokens need
    if len(rows) <= wanted:
        return rows, 0
    order = sorted(range(len(rows)), key=lambda r: (room[r], r))
    shortest = max(1, block // 128)  # a smaller gap is not worth cutting a document
    loose = [p for r in reversed(order[wanted:]) for p in rows[r]]
    gaps = [r for r in order[:wanted] if room[r] >= shortest]  # the widest last
    kept = [rows[r] for r in sorted(order[:wanted])]
    cut: set[int] = set()
    while loose and gaps:
        piece, row = loose.pop(), gaps[-1]
        if piece.length > room[row]:
            middle = piece.begin + room[row]
            loose.append(Piece(piece.document, middle, piece.end))
            piece = Piece(piece.document, piece.begin, middle)
            cut.add(piece.document)
        rows[row].append(piece)
        room[row] -= piece.length
        if room[row] < shortest:
            gaps.pop()
    return kept + _next_fit(loose, block), len(cut)


def _next_fit(pieces: list[Piece], block: int) -> list[list[Piece]]:
    """Rows for what no gap took."""
    rows: list[list[Piece]] = []
    left = 0
    for piece in pieces:
        if piece.length > left:
            rows.append([])
            left = block
        rows[-1].append(piece)
        left -= piece.length
    return rows


def in_sequence(lengths: np.ndarray, block: int) -> tuple[list[list[Piece]], int]:
    """Lay documents end to end and cut every `block` tokens; only the last row may be shorter.

    Args:
        lengths: tokens of each document, each at least 1.
        block: tokens of a full row.

    Returns:
        The rows, and how many documents were cut.
    """
    ends = np.cumsum(lengths.astype(np.int64)).tolist()
    rows: list[list[Piece]] = [[] for _ in range(-(-ends[-1] // block))]
    cut = 0
    for document, (end, length) in enumerate(zip(ends, lengths.tolist(), strict=True)):
        begin = end - length
        cut += begin // block != (end - 1) // block
        for row in range(begin // block, (end - 1) // block + 1):
            rows[row].append(Piece(document, max(begin, row * block) - begin, min(end, (row + 1) * block) - begin))
    return rows, cut
