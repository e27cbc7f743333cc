"""What enters a stack: sums of embedding tables for text, linear projections of patches for images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .errors import UserError


def normal_(module: nn.Module, std: float = 0.02) -> None:
    """Initialise every linear layer and embedding table below `module` with N(0, std), biases with 0.

    PyTorch's own N(0, 1) for embeddings makes denormal gradients, which a CPU multiplies several times slower.
    """
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Linear) and part.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
            nn.init.zeros_(part.bias)


class TokenEmbedding(nn.Module):
    """The sum of word, position and type tables, normalised and dropped out (BERT); GPT-2 leaves some out.

    Args:
        vocab_size: V.
        hidden_size: D, the width of the tables.
        max_positions: rows of the learned position table; 0 for none.
        type_vocab_size: rows of the token type table; 0 for none.
        norm: makes the normalisation of the sum, such as `lambda: LayerNorm(D, eps=1e-12)`; None for none.
        dropout: probability after the normalisation.
        position_offset: the row of the first position (RoBERTa starts after its padding id).
        std: of the tables' normal initialisation.
        output_size: D of the output where it is not that of the tables: a linear map follows (ELECTRA, ALBERT).
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        *,
        max_positions: int = 0,
        type_vocab_size: int = 0,
        norm: Callable[[], nn.Module] | None = None,
        dropout: float = 0.0,
        position_offset: int = 0,
        std: float = 0.02,
        output_size: int | None = None,
    ) -> None:
        super().__init__()
        self.word = nn.Embedding(vocab_size, hidden_size)
        self.position = nn.Embedding(max_positions, hidden_size) if max_positions else None
        self.token_type = nn.Embedding(type_vocab_size, hidden_size) if type_vocab_size else None
        self.norm = norm() if norm is not None else None
        self.dropout = nn.Dropout(dropout)
        self.projection = None if output_size in (None, hidden_size) else nn.Linear(hidden_size, output_size)
        self.position_offset = position_offset
        for table in (self.word, self.position, self.token_type):
            if table is not None:
                nn.init.normal_(table.weight, std=std)
        if self.projection is not None:
            normal_(self.projection, std)

    def forward(
        self, input_ids: Tensor, position_ids: Tensor | None = None, token_type_ids: Tensor | None = None, offset: int = 0
    ) -> Tensor:
        """Embed tokens.

        Args:
            input_ids: [B, S].
            position_ids: [B or 1, S], counted from 0 (`position_offset` is added here); by default offset, offset + 1, ... . They restart
                in packed documents.
            token_type_ids: [B or 1, S]; by default zeros.
            offset: positions that came before, in a cache.

        Returns:
            [B, S, D].
        """
        return self.placed(self.word(input_ids), position_ids, token_type_ids, offset)

    def placed(self, x: Tensor, position_ids: Tensor | None = None, token_type_ids: Tensor | None = None, offset: int = 0) -> Tensor:
        """`forward` for vectors [B, S, D] that stand in place of the words'."""
        if self.position is not None:
            if position_ids is None:
                stop = self.fitting(offset + x.shape[1])
                position_ids = torch.arange(offset, stop, device=x.device)[None]
            x = x + self.position(position_ids + self.position_offset)
        if self.token_type is not None:
            x = x + (self.token_type.weight[0] if token_type_ids is None else self.token_type(token_type_ids))
        if self.norm is not None:
            x = self.norm(x)
        x = self.dropout(x)
        return x if self.projection is None else self.projection(x)

    def fitting(self, length: int) -> int:
        """`length`, where the table of positions is that long; else a `UserError`."""
        room = length if self.position is None else self.position.num_embeddings - self.position_offset
        if length > room:
            raise UserError(f"the model has {room} positions and the text needs {length}: truncate it or load a longer model")
        return length


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images [B, C, H, W] into patches [B, P, C * p * p], row by row; a patch is laid out as [C, p, p]."""
    batch, channels, height, width = images.shape
    if height % patch_size or width % patch_size:
        raise UserError(f"images of {height} x {width} pixels do not divide into patches of {patch_size}: resize them")
    rows, columns = height // patch_size, width // patch_size
    grid = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * patch_size * patch_size)


class PatchEmbedding(nn.Module):
    """Patches through one linear layer (ViT).

    The same numbers as a convolution whose stride is its kernel, in less time on CPUs. A convolution's
    weight [D, C, p, p] is this layer's weight once flattened to [D, C * p * p].

    Args:
        patch_size: p, pixels.
        hidden_size: D.
        channels: of the image, C.
        bias: whether the projection has a bias (CLIP has none).
    """

    def __init__(self, patch_size: int, hidden_size: int, *, channels: int = 3, bias: bool = True) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.projection = nn.Linear(channels * patch_size * patch_size, hidden_size, bias=bias)
        normal_(self)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Embed images [B, C, H, W] as patches [B, P, D], or as those that `keep`, int64 [B, K], numbers: [B, K, D]."""
        patches = patchify(images, self.patch_size)
        return self.projection(patches if keep is None else chosen_rows(patches, keep))


def chosen_rows(x: Tensor, places: Tensor) -> Tensor:
    """The rows of x [B, N, D] that `places`, int64 [B, K], numbers: [B, K, D]."""
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))
