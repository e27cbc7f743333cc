"""Block tables of BigBird (Zaheer et al., 2020, section 2 and appendix D): a window, global blocks, and some at random.

Each block of queries sees the one before it, itself, the one behind it, the first and the last block, and `r` others; the first and the
last block see all. Which others, there are two ways to say: the paper's graph, one for all heads of a layer, and what transformers draws.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes  # pyright: ignore[reportPrivateUsage]

from ..shared.attention.mask import Layout
from ..shared.errors import UserError

NEAR, FIXED = 3, 5
"""Blocks of the window, and with the two global ones."""
_PLANNED = (1024, 3072, 4096)
"""Lengths for which transformers, as Google's code, draws from the first `_WITHIN` tokens alone."""
_WITHIN = 1024


@lru_cache(maxsize=512)
def paper(count: int, size: int, random: int, seed: int) -> Layout:
    """The paper's graph: `random` blocks of those that a block does not see anyway, each with the same probability.

    Args:
        count: blocks of the text.
        size: tokens of a block.
        random: blocks that are drawn.
        seed: the layer's number.
    """
    rng, table = np.random.default_rng((seed, count)), _fixed(count)
    for row in range(1, count - 1):
        others = np.flatnonzero(table[row] == 0)
        table[row, rng.permutation(others)[:random]] = 1
    return _layout(table.astype(np.bool_), size)


@lru_cache(maxsize=512)
def transformers_training(count: int, size: int, random: int, seed: int, heads: int, positions: int) -> Layout:
    """What transformers' BigBird sees when it is trained: drawn for each head, with numpy's generator seeded by the layer's number.

    A block may be drawn that is seen anyway; then its keys count twice.

    Args:
        count: blocks of the text.
        size: tokens of a block.
        random: blocks that are drawn.
        seed: the layer's number.
        heads: of the layer.
        positions: tokens of the longest text.
    """
    rng = np.random.RandomState(seed)
    if count * size in _PLANNED:
        drawn = np.stack([_planned(positions // size, size, random, rng)[:count - 2] for _ in range(heads)])
    else:
        drawn = _spread(count, random, heads, rng)
    return _layout(_with(count, drawn), size)


@lru_cache(maxsize=512)
def transformers_evaluating(count: int, size: int, random: int) -> Layout:
    """What transformers' BigBird sees when it is not trained: for each random block the first one again."""
    return _layout(_with(count, np.zeros((1, count - 2, random), dtype=np.int64))[0], size)


def _layout(table: np.ndarray, size: int) -> Layout:
    """The table for all that read it: it is kept, so it must be no fake tensor of the mode in which it is first asked for."""
    with _disable_current_modes():
        return Layout(torch.from_numpy(table), size)


def _fixed(count: int) -> np.ndarray:
    """The window and the global blocks, uint8 [N, N]."""
    table = np.tril(np.triu(np.ones((count, count), dtype=np.uint8), -(NEAR // 2)), NEAR // 2)
    table[[0, -1]] = 1
    table[:, [0, -1]] = 1
    return table


def _with(count: int, drawn: np.ndarray) -> np.ndarray:
    """The same for each head, with the blocks `drawn` [H, N - 2, r] counted once more by all rows but the first and the last."""
    table = np.repeat(_fixed(count)[None], len(drawn), 0)
    heads, rows, _ = np.indices(drawn.shape)
    np.add.at(table, (heads, rows + 1, drawn), 1)
    return table


def _planned(count: int, size: int, random: int, rng: np.random.RandomState) -> np.ndarray:
    """The draws of one head for the `_PLANNED` lengths, int64 [N - 2, r]: of blocks up to a last one, and near the end of all."""
    inner = np.arange(1, count - 1)
    last = _WITHIN // size - 1 if 2 * size < _WITHIN else count - 1
    drawn = np.zeros((count - 2, random), dtype=np.int64)
    for row in range(1, count - 1):
        if row <= 2:
            others = inner[row + 1:last]
        elif row >= count - 3 or row - 2 > last:
            others = inner[:last]
        elif row + 1 == last:
            others = inner[:row - 2]
        else:
            others = np.concatenate([inner[:row - 2], inner[row + 1:last]])
        if len(others) < random:
            raise UserError(f"transformers' plan for texts of 1024, 3072 or 4096 tokens leaves block {row} (of {size} tokens) "
                            f"{len(others)} blocks to draw {random} from: choose a smaller block_size, or random_layout paper")
        drawn[row - 1] = rng.permutation(others)[:random]
    return drawn


def _spread(count: int, random: int, heads: int, rng: np.random.RandomState) -> np.ndarray:
    """The draws for all other lengths, int64 [H, N - 2, r]: of the first 2 r + 5 blocks, as if these were the text."""
    within = 2 * random + FIXED
    drawn = np.zeros((heads, count - 2, random), dtype=np.int64)
    for row in range(1, count - 1):
        seen = {0, row - 1, row, row + 1, within - 1, within - 2 if row == 1 else 0, 1 if row == within - 2 else 0}
        for head in range(heads):
            drawn[head, row - 1] = [block for block in rng.permutation(within) if block not in seen][:random]
    return drawn
