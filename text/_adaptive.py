"""Adaptive input embeddings and the adaptive softmax (Baevski and Auli, 2019; Grave et al., 2017).

The vocabulary, sorted by frequency, is cut into a shortlist and clusters of rarer words. The softmax first chooses among the words of the
shortlist and the clusters, then, where a cluster was chosen, a word in it: log p(w) = log p(cluster) + log p(w | cluster). A rare
word costs nothing where it is not the target. With `div_val` above 1 the tables of the clusters get narrower, too.

Without cutoffs both are plain: one table, one softmax over everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..shared.attention.mask import on_device
from ..shared.loss import IGNORE, linear_cross_entropy_sum


class AdaptiveEmbedding(nn.Module):
    """Word vectors from one table, or from one for each cluster, projected to D and scaled by sqrt(D).

    Args:
        vocab_size: V.
        embed_size: width of the first table, E.
        hidden_size: D.
        cutoffs: ids at which the clusters begin, ascending; the ids below the first are the shortlist.
        div_val: cluster i has vectors of E / div_val^i numbers; 1 keeps one table of width E for all.
    """

    def __init__(self, vocab_size: int, embed_size: int, hidden_size: int, cutoffs: Sequence[int] = (), div_val: int = 1) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.borders = (0, *cutoffs, vocab_size)
        self.shared_table = div_val == 1
        sizes = [b - a for a, b in pairwise(self.borders)]
        widths = [embed_size // div_val**i for i in range(len(sizes))]
        shapes = [(vocab_size, embed_size)] if self.shared_table else list(zip(sizes, widths, strict=True))
        self.tables = nn.ModuleList(nn.Embedding(*shape) for shape in shapes)
        bare = self.shared_table and embed_size == hidden_size
        self.projections = nn.ParameterList(nn.Parameter(torch.empty(hidden_size, width)) for _, width in ([] if bare else shapes))
        """[D, E] each, none where the one table has width D."""

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embed ids [...] as [..., D]."""
        scale = self.hidden_size**0.5
        if self.shared_table:
            x = self.tables[0](input_ids)
            return (F.linear(x, self.projections[0]) if len(self.projections) else x) * scale
        ids = input_ids.flatten()
        parts: list[Tensor] = []
        places: list[Tensor] = []
        for table, projection, (low, high) in zip(self.tables, self.projections, pairwise(self.borders), strict=True):
            place = ((ids >= low) & (ids < high)).nonzero()[:, 0]  # may be empty: the table still takes part, with a gradient of zero
            parts.append(F.linear(table(ids[place] - low), projection))
            places.append(place)
        x = torch.cat(parts)
        return torch.empty_like(x).index_copy(0, torch.cat(places), x).view(*input_ids.shape, -1) * scale


class AdaptiveSoftmax(nn.Module):
    """The distribution of the next word, in clusters.

    The first softmax has the shortlist's words and then one entry for each cluster, in their order.

    Args:
        embedding: gives the clusters, and the tables and projections that are tied.
        tie_words: share the embedding's tables.
        tie_projections: share the projections of all clusters but the shortlist.
    """

    def __init__(self, embedding: AdaptiveEmbedding, *, tie_words: bool = True, tie_projections: bool = True) -> None:
        super().__init__()
        self.borders = embedding.borders
        self.shared_table = embedding.shared_table
        tables = [_weight(table) for table in embedding.tables]
        self.weights = nn.ParameterList(t if tie_words else nn.Parameter(torch.empty(t.shape)) for t in tables)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(len(t))) for t in tables)
        clusters = len(self.borders) - 2
        width = tables[0].shape[1]
        self.cluster_weight = nn.Parameter(torch.empty(clusters, width)) if clusters else None
        self.cluster_bias = nn.Parameter(torch.zeros(clusters)) if clusters else None
        known = list(embedding.projections)
        theirs = known * (clusters + 1) if self.shared_table else known  # one for each cluster
        self.projections = nn.ParameterList(
            p if i and tie_projections else nn.Parameter(torch.empty(p.shape)) for i, p in enumerate(theirs))

    @property
    def clusters(self) -> int:
        """Clusters besides the shortlist."""
        return len(self.borders) - 2

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The summed cross-entropy of rows [N, D] against targets [N] (-100 is ignored), without holding all logits."""
        weights, biases = self._parts()
        cluster = self._cluster_of(targets)
        first = torch.where(cluster > 0, self.borders[1] + cluster - 1, targets)
        total = linear_cross_entropy_sum(self._projected(hidden, 0), *self._first(weights, biases), first)
        for i in range(1, self.clusters + 1):
            rows = (cluster == i).nonzero()[:, 0]  # may be empty, as above
            x = self._projected(hidden.index_select(0, rows), i)
            total = total + linear_cross_entropy_sum(x, weights[i], biases[i], targets.index_select(0, rows) - self.borders[i])
        return total

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The negative log-probability of each target: rows [N, D], targets [N] -> [N] in the order of the input, 0 where ignored."""
        weights, biases = self._parts()
        cluster = self._cluster_of(targets)
        first = torch.where(cluster > 0, self.borders[1] + cluster - 1, targets)
        result = _nll(self._projected(hidden, 0), *self._first(weights, biases), first)
        for i in range(1, self.clusters + 1):
            rows = (cluster == i).nonzero()[:, 0]
            x = self._projected(hidden.index_select(0, rows), i)
            result = result.index_add(0, rows, _nll(x, weights[i], biases[i], targets.index_select(0, rows) - self.borders[i]))
        return result

    def log_prob(self, hidden: Tensor) -> Tensor:
        """The log-probabilities [..., V] of every word; they sum to one."""
        weights, biases = self._parts()
        first = _log_softmax(self._projected(hidden, 0), *self._first(weights, biases))
        short = self.borders[1]
        rest = [first[..., short + i - 1, None] + _log_softmax(self._projected(hidden, i), weights[i], biases[i])
                for i in range(1, self.clusters + 1)]
        return torch.cat([first[..., :short], *rest], -1)

    def _parts(self) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Weight and bias of the words of each cluster."""
        if not self.shared_table:
            return list(self.weights), list(self.biases)
        sizes = [b - a for a, b in pairwise(self.borders)]
        return self.weights[0].split(sizes), self.biases[0].split(sizes)  # the backward of a split is one concatenation

    def _first(self, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        if self.cluster_weight is None or self.cluster_bias is None:
            return weights[0], biases[0]
        return torch.cat([weights[0], self.cluster_weight]), torch.cat([biases[0], self.cluster_bias])

    def _projected(self, hidden: Tensor, cluster: int) -> Tensor:
        return hidden @ self.projections[cluster] if len(self.projections) else hidden

    def _cluster_of(self, targets: Tensor) -> Tensor:
        """0 for the shortlist (and for what is ignored), else the cluster's number."""
        return torch.bucketize(targets, on_device(self.borders[1:-1], targets.device, targets.dtype), right=True)


def _weight(table: nn.Module) -> nn.Parameter:
    assert isinstance(table, nn.Embedding)
    return table.weight  # pyright: ignore[reportReturnType]  (torch's stubs call it a Tensor)


def _log_softmax(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    logits = F.linear(x, weight, bias)
    return (logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits).log_softmax(-1)


def _nll(x: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    found = _log_softmax(x, weight, bias).gather(-1, targets.clamp(min=0)[:, None])[:, 0]
    return torch.where(targets == IGNORE, 0.0, -found)
