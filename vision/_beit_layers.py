"""BEiT's layers: a learned bias for each distance of two patches, keys without bias, layer scale; and tables of biases for other grids."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GridBias(nn.Module):
    """A number for each head and relative position of two patches, and three for the class token: as query, as key, and both.

    Args:
        grid: patches of a side, G.
        num_heads: H.
    """

    def __init__(self, grid: int, num_heads: int) -> None:
        super().__init__()
        self.grid = grid
        self.table = nn.Embedding((2 * grid - 1) ** 2 + 3, num_heads)
        nn.init.zeros_(self.table.weight)
        self.register_buffer("index", relative_index(grid), persistent=False)
        self.index: Tensor

    def forward(self, query_length: int, key_length: int, offset: int = 0) -> Tensor:
        """The bias of all tokens, the class token first: [1, H, L, L]; for another grid, bilinear between the table's numbers."""
        if query_length == len(self.index):
            return self.table(self.index).permute(2, 0, 1)[None].contiguous()
        grid, weight = math.isqrt(query_length - 1), self.table.weight
        plane = weight[:-3].T.unflatten(1, (2 * self.grid - 1, -1))[None]
        plane = F.interpolate(plane, size=(2 * grid - 1,) * 2, mode="bilinear")[0].flatten(1).T
        index = relative_index(grid).to(weight.device)
        return F.embedding(index, torch.cat([plane, weight[-3:]])).permute(2, 0, 1)[None].contiguous()


def relative_index(grid: int) -> Tensor:
    """The row of the table for each query and key: int64 [1 + G^2, 1 + G^2]; the last three rows are the class token's."""
    place = torch.arange(grid * grid)
    row, column = place // grid, place % grid
    width = 2 * grid - 1
    index = torch.full((grid * grid + 1,) * 2, width * width)
    index[1:, 1:] = (row[:, None] - row + grid - 1) * width + column[:, None] - column + grid - 1
    index[1:, 0], index[0, 0] = width * width + 1, width * width + 2
    return index


class QueryKeyValue(nn.Linear):
    """Queries, keys and values of one matrix; keys have no bias, which would change nothing."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size, 3 * hidden_size, bias=False)
        self.query_bias = nn.Parameter(torch.zeros(hidden_size))
        self.value_bias = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, input: Tensor) -> Tensor:
        """[..., D] -> [..., 3 D]."""
        return F.linear(input, self.weight, torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias]))


class ScaledLinear(nn.Linear):
    """A linear layer and a factor for each channel of its output (layer scale; Touvron et al. 2021, https://arxiv.org/abs/2103.17239).

    The factor is put into the weights: that takes D^2 multiplications, and its gradient as many, where the output has B S D.
    """

    def __init__(self, in_features: int, out_features: int, scale: float) -> None:
        super().__init__(in_features, out_features)
        self.scale = nn.Parameter(torch.full((out_features,), scale))

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return F.linear(input, self.weight * self.scale[:, None], self.bias * self.scale)


def linear(in_features: int, out_features: int, scale: float) -> nn.Linear:
    """A linear layer, with layer scale where `scale` is not 0."""
    return ScaledLinear(in_features, out_features, scale) if scale else nn.Linear(in_features, out_features)


# ------------------------------------------------------------------------------------- tables for other grids


def geometric(table: Tensor, side: int) -> Tensor:
    """A table [(2 G - 1)^2 + 3, H] for another grid, whose side is `side`: as in the authors' code of fine-tuning.

    Its numbers are taken to stand at distances that grow geometrically to those of the new grid, and a cubic spline goes through them.
    """
    plane, rest = table[:-3].double(), table[-3:]
    old = math.isqrt(len(plane))
    if old == side:
        return table
    low, high, ratio = 1.01, 1.5, 1.0
    while high - low > 1e-6:
        ratio = (low + high) / 2
        low, high = (low, ratio) if (1 - ratio ** (old // 2)) / (1 - ratio) > side // 2 else (ratio, high)
    steps = np.cumsum([ratio**n for n in range(old // 2)])
    places = np.concatenate([-steps[::-1], [0.0], steps])
    matrix = torch.from_numpy(spline(places, np.arange(side) - side // 2.0)).to(table.device)
    fitted = torch.einsum("ai,bj,ijh->abh", matrix, matrix, plane.unflatten(0, (old, old)))
    return torch.cat([fitted.flatten(0, 1).to(table.dtype), rest])


def spline(places: np.ndarray, new: np.ndarray) -> np.ndarray:
    """The matrix [M, N] that takes values at `places` [N] to those at `new` [M] of the cubic spline through them ("not a knot").

    Beyond the ends it keeps their values.
    """
    n, h = len(places), np.diff(places)
    system, right, slopes = np.zeros((n, n)), np.zeros((n, n)), (np.diff(np.eye(n), axis=0) / h[:, None])
    for i in range(1, n - 1):  # second derivatives m: h m + 2 (h + h') m' + h' m'' = 6 times the change of slope
        system[i, i - 1 : i + 2] = h[i - 1], 2 * (h[i - 1] + h[i]), h[i]
        right[i] = 6 * (slopes[i] - slopes[i - 1])
    system[0, :3], system[-1, -3:] = (h[1], -h[0] - h[1], h[0]), (h[-1], -h[-1] - h[-2], h[-2])
    curved, x = np.linalg.solve(system, right), np.clip(new, places[0], places[-1])
    k = np.clip(np.searchsorted(places, x, side="right") - 1, 0, n - 2)
    a, b, width = places[k + 1] - x, x - places[k], h[k]
    a, b, width = a[:, None], b[:, None], width[:, None]
    value, unit = (a**3 * curved[k] + b**3 * curved[k + 1]) / (6 * width), np.eye(n)
    return value + (unit[k] / width - curved[k] * width / 6) * a + (unit[k + 1] / width - curved[k + 1] * width / 6) * b
