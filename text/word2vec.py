"""Word2vec: vectors of words that predict the words around them.

Mikolov, Chen, Corrado, Dean, "Efficient Estimation of Word Representations in Vector Space", 2013 (https://arxiv.org/abs/1301.3781)
and Mikolov, Sutskever, Chen, Corrado, Dean, "Distributed Representations of Words and Phrases and their Compositionality", 2013
(https://arxiv.org/abs/1310.4546). Skip-gram predicts each word of a window from the word in its middle, CBOW the middle
from the mean of the window (`objective.architecture`); a prediction tells the word from noise words, or follows its path through
a Huffman tree (`objective.output`).

Faithful, to the published C tool: subsampling before windows, windows of 1 to 5 words drawn for each word, noise by the counts to
the power of 3/4, a noise word that is the predicted one is skipped, initial weights (U(-0.5, 0.5) / D, and 0 for the outputs), a rate
that falls linearly with the words that are read, CBOW's mean with its error handed on undivided to each word. (That is not the gradient
of the mean, and is better.) The counts come from the data set (`polymodal pack --tokenize`), so vocabulary, tree and noise are the same on
every rank and after every resume.
Deviations: an update is the sum over some thousand words, in place of a step after each one; `max_share` keeps the frequent
words' steps small. 64 words share 64 noise words, weighted to be `negative` each: the expected loss is the same. With a skip-gram the
middle is the input, as in the papers; the tool has it the other way round, in the same pairs. No tables of the exponential, and no
end of a sentence as a word. Inner nodes of the tree have the rows of a table of V rows, of which V - 1 are used.
Unknown words and special tokens are left out before windows are drawn, as in the tool.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..shared.config import Config
from ..shared.convert import Rename, Rule
from ..shared.family import Card, Context, Family, Format, Net, NoData, Task, Vocabulary
from ..shared.rows import table_of
from ..shared.system import Preview, Step, System, Term
from ._windows import BLOCK, GROUP, WindowBatch, Windows, Word2VecSettings
from .word_vectors import WordTable, neighbours, vectors_of, write_gensim, write_glove


@dataclass(frozen=True, kw_only=True)
class Word2VecConfig(Config):
    """The shape of the tables."""

    vocab_size: int = 30_000
    """V."""
    hidden_size: int = 300
    """D, numbers of a vector."""
    special_token_ids: tuple[int, ...] = ()
    """Ids that are no words."""

    AT_LEAST_ONE = ("vocab_size", "hidden_size")


SIZES: dict[str, dict[str, Any]] = {"tiny": {"hidden_size": 64}, "base": {}}
"""`base` is the papers': 300 numbers."""

Computed = tuple[Tensor, Callable[[], tuple[Tensor, Tensor]]]
"""The summed loss, and what makes the gradients of the rows of both tables that a batch reads, [U, D] and [T, D]; it is called once."""


class _ByHand(torch.autograd.Function):
    """A loss with gradients by hand, of the rows of both tables that a batch reads."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, target: Tensor, batch: WindowBatch, settings: Word2VecSettings,
                scales: Sequence[Tensor], sparse: bool) -> Tensor:
        rows = batch.source_rows, batch.target_rows
        loss, ctx.gradients = _COMPUTED[settings.architecture, settings.output](source[rows[0]], target[rows[1]], batch, settings)
        ctx.factors = [scale[ids] for scale, ids in zip(scales, rows, strict=True)]
        ctx.rows, ctx.shape, ctx.sparse = rows, source.shape, sparse
        return loss

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients(), None  # it holds what the forward pass has read
        scaled = (gradient.mul_((factor * outer[0])[:, None]) for gradient, factor in zip(gradients, ctx.factors, strict=True))
        tables = (table_of(ids, rows, ctx.shape, sparse=ctx.sparse) for ids, rows in zip(ctx.rows, scaled, strict=True))
        return *tables, None, None, None, None


class Predictions(nn.Module):
    """The summed loss of a batch, with gradients by hand: each word's rows are read once for all of its pairs."""

    def forward(self, source: nn.Embedding, target: nn.Embedding, batch: WindowBatch, settings: Word2VecSettings,
                scales: Sequence[Tensor]) -> Tensor:
        """The loss of a batch.

        Args:
            source: the input table, [V, D]. Both tables' gradients are sparse, or both are not.
            target: the output table, [V, D], of words or of inner nodes.
            batch: the words.
            settings: of the objective.
            scales: factors of the rows' gradients, [V] for each table.
        """
        with torch.autocast(source.weight.device.type, enabled=False):
            return _ByHand.apply(source.weight, target.weight, batch, settings, scales, source.sparse)  # type: ignore[no-any-return]


def _logistic(scores: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The summed weighted loss of scores that should be high, and its gradient; the scores are used up."""
    right = scores.sigmoid_()
    loss = -torch.dot(right.clamp(min=torch.finfo(right.dtype).tiny).log_().view(-1), weight.view(-1))
    return loss, right.sub_(1).mul_(weight)


def _stretches(laid: Tensor, wide: int) -> Tensor:
    """What stands in each block and up to `wide` words beside it, of [W + N + W, ...]: a view [blocks, ..., W + BLOCK + W]."""
    return laid.unfold(0, BLOCK + 2 * wide, BLOCK) if len(laid) > 2 * wide else laid.new_zeros((0, *laid.shape[1:], BLOCK + 2 * wide))


def _window_mask(batch: WindowBatch, wide: int) -> Tensor:
    """Which words of its block's stretch are in a word's window: bool [blocks, BLOCK, W + BLOCK + W]."""
    offsets = torch.arange(BLOCK + 2 * wide, device=batch.ids.device) - wide - torch.arange(BLOCK, device=batch.ids.device)[:, None]
    offsets, left, right = offsets.to(torch.int8), batch.left.view(-1, BLOCK, 1), batch.right.view(-1, BLOCK, 1)
    return (offsets >= -left) & (offsets <= right) & (offsets != 0)


def _skip_gram(source: Tensor, target: Tensor, batch: WindowBatch, s: Word2VecSettings) -> Computed:
    """Each word against the words of its window, and against noise as often."""
    width, ids = source.shape[1], batch.sources[s.window : len(batch.sources) - s.window]
    middle, around = source[ids].view(-1, BLOCK, width), _stretches(target[batch.targets], s.window).mT  # [blocks, W + BLOCK + W, D]
    mask = _window_mask(batch, s.window).to(source.dtype)
    loss, error = _logistic(middle @ around.mT, mask)

    # noise: what is the predicted word itself does not count
    grouped, noise, stretch = middle.view(-1, GROUP, width), target[batch.noise.view(-1)].view(*batch.noise.shape, width), _stretches(
        batch.targets, s.window)
    same = stretch[:, :, None] == batch.noise.repeat_interleave(GROUP // BLOCK, 0)[:, None]
    weight = (mask.sum(-1, keepdim=True) - mask @ same.to(mask.dtype)).view(-1, GROUP, s.noise).mul_(s.negative / s.noise)
    noise_loss, wrong = _logistic(_product(grouped, noise.mT, -1), weight)

    def gradients() -> tuple[Tensor, Tensor]:
        to_middle = torch.baddbmm((error @ around).view_as(grouped), wrong, noise, alpha=-1)
        to_target = torch.zeros_like(target).index_add_(0, stretch.reshape(-1), (error.mT @ middle).view(-1, width))
        return (torch.zeros_like(source).index_add_(0, ids, to_middle.view(-1, width)),
                to_target.index_add_(0, batch.noise.view(-1), (wrong.mT @ grouped).view(-1, width), alpha=-1))

    return loss + noise_loss, gradients


def _cbow(source: Tensor, target: Tensor, batch: WindowBatch, s: Word2VecSettings) -> Computed:
    """The mean of each window against the word in its middle, and against noise."""
    width, ids = source.shape[1], batch.targets[s.window : len(batch.targets) - s.window]
    mask = _window_mask(batch, s.window).to(source.dtype)
    size = mask.sum(-1, keepdim=True)
    mean, there = (mask / size.clamp(min=1)) @ _stretches(source[batch.sources], s.window).mT, (size > 0).to(mask.dtype)
    middle = target[ids].view_as(mean)
    loss, error = _logistic((mean * middle).sum(-1, keepdim=True), there)

    grouped, noise = mean.view(-1, GROUP, width), target[batch.noise.view(-1)].view(*batch.noise.shape, width)
    weight = (ids.view(-1, GROUP, 1) != batch.noise[:, None]) * there.view(-1, GROUP, 1) * (s.negative / s.noise)
    noise_loss, wrong = _logistic(_product(grouped, noise.mT, -1), weight)

    def gradients() -> tuple[Tensor, Tensor]:
        handed_on = torch.baddbmm((error * middle).view_as(grouped), wrong, noise, alpha=-1).view_as(mean)
        stretch = _stretches(batch.sources, s.window).reshape(-1)
        to_target = torch.zeros_like(target).index_add_(0, ids, (error * mean).view(-1, width))
        return (torch.zeros_like(source).index_add_(0, stretch, (mask.mT @ handed_on).view(-1, width)),
                to_target.index_add_(0, batch.noise.view(-1), (wrong.mT @ grouped).view(-1, width), alpha=-1))

    return loss + noise_loss, gradients


def _product(first: Tensor, second: Tensor, factor: float) -> Tensor:
    """A batched product times a factor, in one pass."""
    return torch.baddbmm(first.new_zeros(()), first, second, beta=0, alpha=factor)


def _by_tree(source: Tensor, target: Tensor, batch: WindowBatch, s: Word2VecSettings) -> Computed:
    """Each word of a window, or their mean, against the turns of the path to the word in its middle."""
    width, loss = source.shape[1], source.new_zeros(())
    to_source, to_target = torch.zeros_like(source), torch.zeros_like(target)
    steps = torch.cat([torch.arange(-s.window, 0), torch.arange(1, s.window + 1)]).to(batch.ids.device)
    for words, nodes, codes in zip(batch.chunks, batch.nodes, batch.codes, strict=True):
        mask = ((steps >= -batch.left[words, None]) & (steps <= batch.right[words, None])).to(source.dtype)  # [n, 2 W]
        there, nodes, sign = (nodes >= 0).to(source.dtype), nodes.clamp(min=0), 1.0 - 2.0 * codes.to(source.dtype)  # [n, L]
        ids = batch.sources[words[:, None] + steps + s.window]
        around, path = source[ids], target[nodes]
        if s.architecture == "cbow":
            around = (mask / mask.sum(-1, keepdim=True))[:, None] @ around
        counted = there[:, :, None] * (mask[:, None] if s.architecture == "skip-gram" else 1.0)
        part, error = _logistic(sign[:, :, None] * (path @ around.mT), counted)  # [n, L, 2 W], or [n, L, 1] of the mean
        loss, error = loss + part, error.mul_(sign[:, :, None])
        handed_on = error.mT @ path if s.architecture == "skip-gram" else mask[..., None] * (error.mT @ path)  # whole to each word
        to_source.index_add_(0, ids.view(-1), handed_on.view(-1, width))
        to_target.index_add_(0, nodes.view(-1), (error @ around).view(-1, width))

    # chunk by chunk while its rows are in the cache
    return loss, lambda: (to_source, to_target)


_COMPUTED: Mapping[tuple[str, str], Callable[[Tensor, Tensor, WindowBatch, Word2VecSettings], Computed]] = {
    ("skip-gram", "negative"): _skip_gram, ("cbow", "negative"): _cbow,
    ("skip-gram", "hierarchical"): _by_tree, ("cbow", "hierarchical"): _by_tree,
}  # fmt: skip


class Word2Vec(WordTable):
    """Two tables: the word vectors, and the outputs that only training needs."""

    def __init__(self, config: Word2VecConfig) -> None:
        super().__init__()
        c = self.config = config
        self.special_tokens = c.special_token_ids
        self.input = nn.Embedding(c.vocab_size, c.hidden_size)
        self.output = nn.Embedding(c.vocab_size, c.hidden_size)
        self.predictions = Predictions()
        nn.init.uniform_(self.input.weight, -0.5 / c.hidden_size, 0.5 / c.hidden_size)
        nn.init.zeros_(self.output.weight)

    def word_vectors(self) -> Tensor:
        """[V, D]: the input table, which the tool writes."""
        return self.input.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        """Vectors of words, of any shape: [..., D]."""
        return self.input(input_ids)


class Word2VecSystem(System[Word2Vec, Windows]):
    """Word2vec with its loss for each word that is read."""

    def __init__(self, config: Word2VecConfig, settings: Word2VecSettings, objective: Windows) -> None:
        super().__init__(Word2Vec(config), objective)
        self.settings = settings
        self.net.input.sparse = self.net.output.sparse = settings.sparse
        shares: Sequence[np.ndarray] = () if settings.max_share is None or isinstance(objective, NoData) else objective.shares()
        for name, share in zip(("source_scale", "target_scale"), shares or (np.zeros(config.vocab_size),) * 2, strict=True):
            scale = np.minimum(1, (settings.max_share or 1) / np.maximum(share, 1e-30))
            self.register_buffer(name, torch.tensor(scale, dtype=torch.float32), persistent=False)

    def forward(self, batch: WindowBatch, carry: Any = None) -> Step:
        """The summed loss."""
        scales = (self.get_buffer("source_scale"), self.get_buffer("target_scale"))
        total = self.net.predictions(self.net.input, self.net.output, batch, self.settings, scales)
        metrics: dict[str, tuple[Tensor, Tensor | int]] = {"prediction": (total.detach(), batch.predictions)}
        if self.settings.output == "hierarchical":
            around = batch.left.long() + batch.right
            lengths = [(around[words] if self.settings.architecture == "skip-gram" else 1) * (nodes >= 0).sum(-1)
                       for words, nodes in zip(batch.chunks, batch.nodes, strict=True)]
            metrics["code"] = (torch.cat([*lengths, around[:0]]).sum().to(total.dtype), batch.predictions)
        return Step({"word": Term(total, "words")}, metrics)

    def measured(self) -> tuple[str, ...]:
        """The names of all numbers of an evaluation but `loss`."""
        return "word", "prediction", *(("code",) if self.settings.output == "hierarchical" else ()), "prediction_chance"

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """What a prediction would lose that does not look at the input: as likely as it is right on average, or a bit for each turn."""
        if "prediction" not in means:
            return {}
        if self.settings.output == "hierarchical":
            return {"prediction_chance": means["code"] * math.log(2)} if "code" in means else {}
        k = self.settings.negative
        return {"prediction_chance": math.log(1 + k) + k * math.log(1 + 1 / k)}

    @torch.no_grad()
    def preview(self, batch: WindowBatch, limit: int = 4) -> list[Preview]:
        """The nearest words of some words of the batch."""
        found = vectors_of(self.net, self.objective.tokenizer)
        ids = list(dict.fromkeys(batch.ids.tolist()))
        return neighbours(found, [self.objective.tokenizer.id_to_token(i) or "" for i in ids], limit)


# ------------------------------------------------------------------------------------------ names in files

MODEL_TYPE = "word2vec"


def rules(config: Word2VecConfig) -> Sequence[Rule]:
    """Our own keys."""
    return tuple(Rename(name, name) for name in ("input.weight", "output.weight"))


FORMAT = Format(
    "polymodal", rules, recognises=lambda record: record.get("model_type") == MODEL_TYPE,
    read=lambda record, directory: Word2VecConfig.from_dict(record, f"{directory}/config.json"),
    write=lambda net: {**net.config.to_dict(), "model_type": MODEL_TYPE, "architectures": ["Word2Vec"]},
)  # fmt: skip


def adapt(config: Word2VecConfig, context: Context) -> Word2VecConfig:
    """Take vocabulary size and special ids from the tokenizer."""
    t = context.tokenizer
    return config if t is None else replace(config, vocab_size=t.vocab_size, special_token_ids=tuple(sorted(t.special_ids)))


def create(config: Word2VecConfig, settings: Word2VecSettings, context: Context) -> Word2VecSystem:
    """The pretraining system with randomly initialized weights."""
    return Word2VecSystem(config, settings, context.counted("word2vec", lambda tokenizer, counts: Windows(tokenizer, counts, settings)))


CARD = Card(
    title="Word2vec",
    paper='Mikolov, Sutskever, Chen, Corrado, Dean, "Distributed Representations of Words and Phrases and their Compositionality", 2013',
    year=2013,
    url="https://arxiv.org/abs/1310.4546",
    equation=r"\mathcal{L} = -\sum_{t} \sum_{0 < |j| \le b_t} \Big[ \log \sigma(u_{w_{t+j}} \cdot v_{w_t}) "
             r"+ k \, \mathbb{E}_{n \sim P} \log \sigma(-u_n \cdot v_{w_t}) \Big]",
    symbols="v and u are the input and output vectors, b_t is drawn from 1 to 5 for each place t, P is the unigram distribution to the "
            "power of 3/4, and k the number of noise words. CBOW puts the mean of the window's v in the place of v and predicts w_t; "
            "a Huffman tree puts the turns of the path to a word in the place of the noise.",
    masks={},
    reference="the formulas of the papers, and gensim for files",
)  # fmt: skip

FAMILIES = (
    Family(
        name="word2vec",
        card=CARD,
        config=Word2VecConfig,
        sizes=SIZES,
        adapt=adapt,
        pretraining=Task("words of a window by negative sampling or a Huffman tree", Word2VecSettings, create, reads_counts=True),
        nets=(Net("Word2Vec", Word2Vec, FORMAT, written={"gensim": write_gensim, "glove": write_glove}),),
        vocabulary=Vocabulary("word", "plain"),
    ),
)
