"""What is like a text or a picture, among those that `embed` made vectors of.

Two methods with one interface: `exact` compares with every vector; `hnsw` follows a graph over them (Malkov and Yashunin 2016, by faiss),
which is built once, kept beside the vectors, and may miss some of the nearest.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ...shared.errors import UserError
from ...shared.tokenizer import Tokenizer
from ..base.files import temporary_path
from ..base.install import install_line
from ..model.frontdoor import load
from ..model.frontdoor import tokenizer as find_tokenizer
from ..model.open import fingerprint
from .embed import PictureFeatures, TextFeatures, embed_pictures, embed_texts, is_pictures, tokenizer_beside
from .embedded import Embedded

Method = Literal["exact", "hnsw"]
_BLOCK = 1 << 15
"""Vectors that are read at a time."""
_QUERIES = 256
"""Queries that are compared with a block at a time: with `_BLOCK`, 32 MiB of scores."""
_LINKS, _BUILD, _LOOK = 32, 80, 128
"""Of the graph: neighbours of a vector, and candidates while it is built and searched."""


class Nearest(Protocol):
    """Finds the vectors that are nearest to others."""

    def nearest(self, queries: Tensor, top: int) -> tuple[Tensor, Tensor]:
        """Cosines and rows of the `top` nearest of each query, best first: [Q, top] of unit vectors [Q, D]."""
        ...


def search(
    vectors: str | Path,
    queries: Sequence[str] | Sequence[Path] | Sequence[Image.Image],
    *,
    model: nn.Module | str | Path | None = None,
    tokenizer: Tokenizer | None = None,
    top: int = 10,
    method: Method = "exact",
    batch_size: int = 32,
    device: str = "cpu",
    say: Callable[[str], None] = lambda line: None,
) -> list[list[dict[str, Any]]]:
    """Find what is most like each query, among the texts or pictures that `polymodal embed` made vectors of.

    A CLIP finds pictures by texts and texts by pictures; other networks find texts by texts or pictures by pictures.

    Args:
        vectors: the `.npy` file that `polymodal embed --out` wrote.
        queries: texts, or pictures (a `Path` or an image each).
        model: the network that made the vectors, or where it is; by default where it was then.
        tokenizer: its tokenizer; by default the one that lies with it.
        top: how many are found, at most.
        method: `exact` compares with every vector; `hnsw` follows a graph that is built once and kept, with faiss-cpu.
        batch_size: queries that run through the network together.
        device: of a network that is loaded here.
        say: told that a graph is built.

    Returns:
        For each query the nearest, best first: `row` of the vectors, what it is of (`text`, `image`, or `sample` and `key` of a data set),
        and `cosine`.

    Raises:
        UserError: another network made the vectors, or it has no vectors of what the queries are.
    """
    if top < 1:
        raise UserError(f"top is {top}, expected at least 1")
    if method not in get_args(Method):
        raise UserError(f"the method is {method!r}, expected {' or '.join(get_args(Method))}")
    if isinstance(queries, str):
        raise UserError("queries is one text: give a list of them")
    if not queries:
        return []
    embedded = Embedded.open(vectors)
    asked = _asked(embedded, queries, model, tokenizer, batch_size, device)
    finder = Graph(embedded, say) if method == "hnsw" else Exact(embedded)
    scores, rows = finder.nearest(asked, min(top, len(embedded.vectors)))
    records = embedded.records(rows.flatten().tolist())
    return [[{"row": row, **records[row], "cosine": cosine} for row, cosine in zip(found, cosines, strict=True)]
            for found, cosines in zip(rows.tolist(), scores.tolist(), strict=True)]


def _asked(embedded: Embedded, queries: Sequence[Any], model: nn.Module | str | Path | None, tokenizer: Tokenizer | None, batch_size: int,
           device: str) -> Tensor:
    """The queries' vectors, by the network that made the file's."""
    maker, pictures = embedded.maker, is_pictures(queries)
    source = model if isinstance(model, (str, Path)) else maker.model
    try:
        net = model if isinstance(model, nn.Module) else load(source, device=device)
    except UserError as error:
        if model is not None:
            raise
        raise UserError(f"{error} ({embedded.path} was made with it: say with --model where it is now)") from None
    if (found := fingerprint(net)) != maker.weights:
        raise UserError(f"{embedded.path} was made by another model (weights {maker.weights[:12]}, from {maker.model}) than this one "
                        f"({found[:12]}): vectors of two models cannot be compared; use that one, or embed again with this one")
    if (maker.of == "image") != pictures and not (isinstance(net, PictureFeatures) and isinstance(net, TextFeatures)):
        have, given = ("pictures", "texts") if maker.of == "image" else ("texts", "pictures")
        raise UserError(f"{embedded.path} holds vectors of {have}, and {type(net).__name__} has no vectors of {given} beside them: ask "
                        f"with {have}, or embed them with a CLIP, which has both")
    if pictures:
        return embed_pictures(net, queries, batch_size=batch_size)
    vocabulary = tokenizer or (tokenizer_beside(net) if isinstance(model, nn.Module) else find_tokenizer(source))
    if maker.of == "text" and vocabulary.fitting_model(net).fingerprint != maker.tokenizer:
        raise UserError(f"{embedded.path} was made with another tokenizer than this one: give the same with --tokenizer, or embed again")
    return embed_texts(net, queries, vocabulary, max_length=maker.max_length, batch_size=batch_size)


class Exact:
    """Compares with every vector, in blocks: all of them never have to fit the memory."""

    def __init__(self, embedded: Embedded) -> None:
        self._embedded = embedded

    def nearest(self, queries: Tensor, top: int) -> tuple[Tensor, Tensor]:
        """See `Nearest`; of equal ones in a block and between blocks the first."""
        scores, rows = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long)
        for first, block, lengths in _blocks(self._embedded):
            found = [(part @ block.T / lengths).topk(min(top, len(block))) for part in queries.split(_QUERIES)]
            scores = torch.cat([scores, torch.cat([f.values for f in found])], dim=1)
            rows = torch.cat([rows, torch.cat([f.indices for f in found]) + first], dim=1)
            order = rows.argsort(dim=1)
            scores, rows = scores.gather(1, order), rows.gather(1, order)
            best = scores.sort(dim=1, descending=True, stable=True).indices[:, :top]
            scores, rows = scores.gather(1, best), rows.gather(1, best)
        return scores, rows


class Graph:
    """Follows a graph over the vectors (HNSW), which lies beside them as `NAME.HASH.hnsw`, where HASH is of the vectors."""

    def __init__(self, embedded: Embedded, say: Callable[[str], None] = lambda line: None) -> None:
        """Read the graph, or build it and keep it."""
        self._faiss = _faiss()
        name = embedded.path.stem
        file = embedded.path.with_name(f"{name}.{embedded.sha256[:16]}.hnsw")
        if not file.is_file():
            say(f"building a graph over {len(embedded.vectors)} vectors, which is kept in {file}")
            self._write(self._build(embedded), file)
            for old in embedded.path.parent.glob("*.hnsw"):
                if old != file and old.name.startswith(f"{name}.") and len(old.name) == len(file.name):
                    old.unlink(missing_ok=True)  # of vectors that were there before
        try:
            self._index: Any = self._faiss.read_index(str(file))
        except RuntimeError:
            raise UserError(f"{file} is damaged: remove it, and it is built again") from None
        if (self._index.ntotal, self._index.d) != embedded.vectors.shape:
            raise UserError(f"{file} is of other vectors: remove it, and it is built again")

    def _build(self, embedded: Embedded) -> Any:
        index = self._faiss.IndexHNSWFlat(embedded.vectors.shape[1], _LINKS, self._faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = _BUILD
        for _, block, lengths in _blocks(embedded):
            index.add((block / lengths[:, None]).numpy())
        return index

    def _write(self, index: Any, file: Path) -> None:
        temporary = temporary_path(file)
        try:
            self._faiss.write_index(index, str(temporary))
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)

    def nearest(self, queries: Tensor, top: int) -> tuple[Tensor, Tensor]:
        """See `Nearest`."""
        self._index.hnsw.efSearch = max(_LOOK, 2 * top)
        scores, rows = self._index.search(np.ascontiguousarray(queries.numpy()), top)
        return torch.from_numpy(scores), torch.from_numpy(rows)


def _blocks(embedded: Embedded) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The vectors in blocks [n, D], each with the number of its first row and the lengths [n]; 1 for zeros, which are like nothing."""
    for first in range(0, len(embedded.vectors), _BLOCK):
        block = torch.from_numpy(np.array(embedded.vectors[first:first + _BLOCK]))
        lengths = torch.linalg.vector_norm(block, dim=-1)
        if not bool(lengths.isfinite().all()):
            row = first + int((~lengths.isfinite()).nonzero()[0])
            raise UserError(f"row {row} of {embedded.path} is not finite: its model overflowed there; embed again without it")
        yield first, block, torch.where(lengths == 0, 1.0, lengths)


def _faiss() -> Any:
    try:
        return importlib.import_module("faiss")
    except ImportError:
        raise UserError(f"the method hnsw needs faiss: {install_line('search')}; the method exact needs nothing") from None
