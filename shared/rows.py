"""Tables of which an update reads some rows: gradients that hold those alone.

torch's own mark says so, `nn.Embedding(sparse=True)`: gradients of its weight are sparse COO tensors [V, D] of whole rows. The loop takes
them like any others: micro-batches add them up, ranks exchange them, their norm is measured and clipped, and the optimizer moves the
rows that they have.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def table_of(ids: Tensor, values: Tensor, size: torch.Size, *, sparse: bool) -> Tensor:
    """A table [V, D] that is zero but for some rows.

    Args:
        ids: the rows, int64 [n], ascending, each once.
        values: what they hold [n, D].
        size: [V, D].
        sparse: whether the zeros are left out.
    """
    if sparse:
        return torch.sparse_coo_tensor(ids[None], values, size, is_coalesced=True, check_invariants=False)
    return values.new_zeros(size).index_copy_(0, ids, values)


def sparse_tables(module: nn.Module) -> set[int]:
    """The `id`s of the parameters whose gradients are sparse."""
    return {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding) and m.sparse and m.weight.requires_grad}


def whole_gradients(module: nn.Module) -> None:
    """Let no parameter have sparse gradients."""
    for table in module.modules():
        if isinstance(table, nn.Embedding):
            table.sparse = False


def numbers(gradient: Tensor) -> Tensor:
    """The numbers of a gradient that need not be zero, as a tensor that shares its memory: of a sparse one whose rows stand in it once."""
    return gradient.values() if gradient.is_sparse else gradient


def nothing_of(parameter: Tensor, *, sparse: bool) -> Tensor:
    """Zero, as a sum over a parameter whose gradient is zero everywhere, and sparse where the parameter's is."""
    rows = F.embedding(torch.zeros(1, dtype=torch.int64, device=parameter.device), parameter, sparse=True) if sparse else parameter
    return (rows * 0).sum()
