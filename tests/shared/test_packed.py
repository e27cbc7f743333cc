"""Sequences side by side in one row."""

import numpy as np
import torch
from polymodal.shared.packed import joined, side_by_side, starts


def test_sequences_stand_side_by_side_and_positions_restart():
    packed = side_by_side([[5, 6, 7], np.array([8], dtype=np.int32), (9, 10)])
    assert packed.input_ids.dtype == packed.position_ids.dtype == torch.int64
    assert packed.input_ids.tolist() == [[5, 6, 7, 8, 9, 10]] and packed.position_ids.tolist() == [[0, 1, 2, 0, 0, 1]]
    assert packed.lengths == (3, 1, 2) and starts(packed.lengths) == [0, 3, 4]
    assert joined([[1], [], [2, 3]]).tolist() == [[1, 2, 3]]


def test_some_of_them_in_another_order():
    packed = side_by_side([[5, 6, 7], [8], [9, 10]])
    chosen = packed.select([2, 0])
    assert chosen.input_ids.tolist() == [[9, 10, 5, 6, 7]] and chosen.position_ids.tolist() == [[0, 1, 0, 1, 2]]
    assert chosen.lengths == (2, 3)
    assert packed.select(range(3)) is packed
