"""Packing of documents into rows of tokens: whole ones by best fit, or all of them in order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GOAL = 0.99
"""Rows are at least this full, on average."""


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens [begin, end) of a document."""

    document: int
    begin: int
    end: int

    @property
    def length(self) -> int:
        """Its tokens."""
        return self.end - self.begin


def fit(lengths: np.ndarray, block: int) -> list[list[Span]]:
    """Put documents into as few rows of at most `block` tokens as possible.

    Longest first, each into the fullest row that still takes it whole. Where that leaves rows less than
    99 % full (documents just over half a block, for instance), the emptiest rows are dissolved and their
    documents cut to fill the gaps of the others.

    Args:
        lengths: tokens of each document, each 1 to `block`.
        block: tokens of a full row.

    Returns:
        The rows.
    """
    assert len(lengths) == 0 or 0 < int(lengths.min()) <= int(lengths.max()) <= block
    rows: list[list[Span]] = []
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
        rows[row].append(Span(document, 0, length))
        left = gap - length
        room[row] = left
        if left:
            by_room[left].append(row)
            free |= 1 << left
    return _fill(rows, room, int(lengths.sum()), block)


def _fill(rows: list[list[Span]], room: list[int], tokens: int, block: int) -> list[list[Span]]:
    """Dissolve the emptiest rows into the gaps of the others, as many as the goal asks for."""
    wanted = max(-(-tokens // block), int(tokens / (GOAL * block)))  # at least what the tokens need
    if len(rows) <= wanted:
        return rows
    order = sorted(range(len(rows)), key=lambda r: (room[r], r))
    shortest = max(1, block // 128)  # a smaller gap is not worth cutting a document
    loose = [p for r in reversed(order[wanted:]) for p in rows[r]]
    gaps = [r for r in order[:wanted] if room[r] >= shortest]  # the widest last
    kept = [rows[r] for r in sorted(order[:wanted])]
    while loose and gaps:
        span, row = loose.pop(), gaps[-1]
        if span.length > room[row]:
            middle = span.begin + room[row]
            loose.append(Span(span.document, middle, span.end))
            span = Span(span.document, span.begin, middle)
        rows[row].append(span)
        room[row] -= span.length
        if room[row] < shortest:
            gaps.pop()
    return kept + _next_fit(loose, block)


def _next_fit(spans: list[Span], block: int) -> list[list[Span]]:
    """Rows for what no gap took."""
    rows: list[list[Span]] = []
    left = 0
    for span in spans:
        if span.length > left:
            rows.append([])
            left = block
        rows[-1].append(span)
        left -= span.length
    return rows


def in_sequence(lengths: np.ndarray, block: int) -> list[list[Span]]:
    """Lay documents end to end and cut every `block` tokens; only the last row may be shorter.

    Args:
        lengths: tokens of each document, each at least 1.
        block: tokens of a full row.

    Returns:
        The rows.
    """
    ends = np.cumsum(lengths.astype(np.int64)).tolist()
    rows: list[list[Span]] = [[] for _ in range(-(-ends[-1] // block))]
    for document, (end, length) in enumerate(zip(ends, lengths.tolist(), strict=True)):
        begin = end - length
        for row in range(begin // block, (end - 1) // block + 1):
            rows[row].append(Span(document, max(begin, row * block) - begin, min(end, (row + 1) * block) - begin))
    return rows
