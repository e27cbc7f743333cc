"""Attention masks as figures: rows are queries, columns keys, a filled cell means that the query sees the key."""

from __future__ import annotations

from html import escape

import torch

from ...shared.attention.mask import Mask

LENGTH = 16
"""Number of keys in a figure: every field of a drawn mask has this length."""
CELL, EDGE = 11, 18
"""Pixels of a cell and before the first one."""


def draw_mask(title: str, mask: Mask) -> str:
    """The dense form of a mask over `LENGTH` keys as SVG, in colours that read on white and on black.

    With an `offset` (a cache or a memory) the queries are the last `LENGTH - offset` tokens.
    """
    queries = LENGTH - mask.offset
    seen = mask.dense(1, queries, LENGTH, torch.device("cpu"))[0, 0]
    width, height = EDGE + LENGTH * CELL + 1, EDGE + queries * CELL + 1
    grid = "".join(f'<path d="M{EDGE} {EDGE + q * CELL}H{width - 1}"/>' for q in range(queries + 1))
    grid += "".join(f'<path d="M{EDGE + k * CELL} {EDGE}V{height - 1}"/>' for k in range(LENGTH + 1))
    cells = "".join(f'<rect x="{EDGE + k * CELL + 1}" y="{EDGE + q * CELL + 1}" width="{CELL - 1}" height="{CELL - 1}"/>'
                    for q, k in seen.nonzero().tolist())
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
            f'font-family="sans-serif" font-size="11" fill="#808080"><title>{escape(title)}</title>'
            f'<g stroke="#808080" stroke-opacity=".35">{grid}</g><g fill="#159a8c">{cells}</g>'
            f'<text x="{EDGE}" y="12">keys</text><text transform="translate(12 {EDGE}) rotate(-90)" '
            'text-anchor="end">queries</text></svg>\n')
