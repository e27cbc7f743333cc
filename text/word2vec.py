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
import torch.nn.functional as F
from torch import Tensor, nn

from ..shared.config import Config
from ..shared.convert import Rename, Rule
from ..shared.family import Card, Context, Family, Format, Net, NoData, Task, Vocabulary
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

Scales = tuple[Tensor, Tensor]
"""Factors of the gradients of the rows of both tables, [V] each."""
Predicted = tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]
"""The summed loss, and what makes of the gradient of that sum [] the gradients of both tables [V, D]; it is called once."""


class _ByHand(torch.autograd.Function):
    """A loss with gradients by hand. Factors of rows are applied to the small tables of errors, never to a table of V rows."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, target: Tensor, compute: Callable[[Tensor, Tensor], Predicted]) -> Tensor:
        loss, ctx.gradients = compute(source, target)
        return loss

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, Tensor, None]:
        gradients, ctx.gradients = ctx.gradients, None  # it holds what the forward pass has read
        return *gradients(outer[0]), None


class Predictions(nn.Module):
    """The summed loss of a batch, with gradients by hand: each word's rows are read once for all of its pairs."""

    def forward(self, source: Tensor, target: Tensor, batch: WindowBatch, settings: Word2VecSettings, scales: Scales) -> Tensor:
        """The loss of a batch.

        Args:
            source: the input table [V, D].
            target: the output table [V, D], of words or of inner nodes.
            batch: the words.
            settings: of the objective.
            scales: factors of the rows' gradients, of both tables.
        """
        def compute(source: Tensor, target: Tensor) -> Predicted:
            return _COMPUTED[settings.architecture, settings.output](source, target, batch, settings, scales)

        with torch.autocast(source.device.type, enabled=False):
            return _ByHand.apply(source, target, compute)  # type: ignore[no-any-return]


def _logistic(scores: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The summed weighted loss of scores that should be low, and its gradient; the scores are used up."""
    wrong = torch.sigmoid(scores)
    loss = torch.dot(F.softplus(scores).view(-1), weight.view(-1))
    return loss, wrong.mul_(weight)


def _into(table: Tensor, *rows: tuple[Tensor, Tensor]) -> Tensor:
    """A table of zeros like the given one, with rows [n, D] added to those of ids."""
    made = torch.zeros_like(table)
    for ids, values in rows:
        made.index_add_(0, ids.view(-1), values.reshape(-1, table.shape[1]))
    return made


def _window_mask(batch: WindowBatch, wide: int) -> Tensor:
    """Which words of its block's stretch are in a word's window: bool [blocks, BLOCK, BLOCK + 2 W]."""
    offsets = torch.arange(BLOCK + 2 * wide, device=batch.ids.device) - wide - torch.arange(BLOCK, device=batch.ids.device)[:, None]
    left, right = (side.view(-1, BLOCK, 1) for side in (batch.left, batch.right))
    return (offsets >= -left) & (offsets <= right) & (offsets != 0)


def _skip_gram(source: Tensor, target: Tensor, batch: WindowBatch, s: Word2VecSettings, scales: Scales) -> Predicted:
    """Each word against the words of its window, and against noise as often."""
    width, groups, blocks = source.shape[1], len(batch.ids), len(batch.stretch)
    middle = source[batch.ids.view(-1)].view(blocks, BLOCK, width)
    around = target[batch.stretch.view(-1)].view(*batch.stretch.shape, width)
    mask = _window_mask(batch, s.window).to(source.dtype)
    loss, error = _logistic(-(middle @ around.mT), mask)

    # noise: what is the predicted word itself does not count
    grouped, noise = middle.view(groups, GROUP, width), target[batch.noise.view(-1)].view(*batch.noise.shape, width)
    same = batch.stretch[:, :, None] == batch.noise.repeat_interleave(GROUP // BLOCK, 0)[:, None]
    weight = (mask.sum(-1, keepdim=True) - mask @ same.to(mask.dtype)).view(groups, GROUP, s.noise) * (s.negative / s.noise)
    noise_loss, wrong = _logistic(grouped @ noise.mT, weight)

    def gradients(outer: Tensor) -> tuple[Tensor, Tensor]:
        first, second = (scale * outer for scale in scales)
        own = first[batch.ids]
        to_source = torch.baddbmm(((error * -own.view(blocks, BLOCK, 1)) @ around).view_as(grouped), wrong * own[..., None], noise)
        return _into(source, (batch.ids, to_source)), _into(
            target, (batch.stretch, (error * -second[batch.stretch][:, None]).mT @ middle),
            (batch.noise, (wrong * second[batch.noise][:, None]).mT @ grouped))

    return loss + noise_loss, gradients


def _cbow(source: Tensor, target: Tensor, batch: WindowBatch, s: Word2VecSettings, scales: Scales) -> Predicted:
    """The mean of each window against the word in its middle, and against noise."""
    width, groups, blocks = source.shape[1], len(batch.ids), len(batch.stretch)
    around = source[batch.stretch.view(-1)].view(*batch.stretch.shape, width)
    mask = _window_mask(batch, s.window).to(source.dtype)
    size = mask.sum(-1, keepdim=True)
    mean, there = (mask @ around) / size.clamp(min=1), (size > 0).to(mask.dtype)
    middle = target[batch.ids.view(-1)].view(blocks, BLOCK, width)
    loss, error = _logistic(-(mean * middle).sum(-1, keepdim=True), there)

    grouped, noise = mean.view(groups, GROUP, width), target[batch.noise.view(-1)].view(*batch.noise.shape, width)
    weight = (batch.ids[:, :, None] != batch.noise[:, None]) * there.view(groups, GROUP, 1) * (s.negative / s.noise)
    noise_loss, wrong = _logistic(grouped @ noise.mT, weight)

    def gradients(outer: Tensor) -> tuple[Tensor, Tensor]:
        first, second = (scale * outer for scale in scales)
        handed_on = torch.baddbmm((error * -middle).view_as(grouped), wrong, noise).view_as(mean)
        return _into(source, (batch.stretch, (mask * first[batch.stretch][:, None]).mT @ handed_on)), _into(
            target, (batch.ids, error * -second[batch.ids].view_as(error) * mean),
            (batch.noise, (wrong * second[batch.noise][:, None]).mT @ grouped))

    return loss + noise_loss, gradients


def _by_tree(source: Tensor, target: Tensor, batch: WindowBatch, s: Word2VecSettings, scales: Scales) -> Predicted:
    """Each word of a window, or their mean, against the turns of the path to the word in its middle."""
    (first, second), width, loss = scales, source.shape[1], source.new_zeros(())
    to_source, to_target = torch.zeros_like(source), torch.zeros_like(target)
    laid, left, right = F.pad(batch.ids.view(-1), (s.window, s.window)), batch.left.view(-1), batch.right.view(-1)
    steps = torch.cat([torch.arange(-s.window, 0), torch.arange(1, s.window + 1)]).to(laid.device)
    for words, nodes, codes in zip(batch.chunks, batch.nodes, batch.codes, strict=True):
        mask = ((steps >= -left[words, None]) & (steps <= right[words, None])).to(source.dtype)  # [n, 2 W]
        there, nodes, sign = (nodes >= 0).to(source.dtype), nodes.clamp(min=0), 1.0 - 2.0 * codes.to(source.dtype)  # [n, L]
        ids = laid[words[:, None] + steps + s.window]
        around, path = source[ids], target[nodes]
        if s.architecture == "cbow":
            around = (mask / mask.sum(-1, keepdim=True))[:, None] @ around
        counted = there[:, :, None] * (mask[:, None] if s.architecture == "skip-gram" else 1.0)
        part, error = _logistic(-sign[:, :, None] * (path @ around.mT), counted)  # [n, L, 2 W], or [n, L, 1] of the mean
        loss, error = loss + part, error.mul_(-sign[:, :, None])
        factor = (first[ids] * mask)[..., None]
        handed_on = (factor * error.mT) @ path if s.architecture == "skip-gram" else factor * (error.mT @ path)  # whole to each word
        to_source.index_add_(0, ids.view(-1), handed_on.view(-1, width))
        to_target.index_add_(0, nodes.view(-1), ((error * second[nodes][..., None]) @ around).view(-1, width))

    # chunk by chunk while its rows are in the cache
    return loss, lambda outer: (to_source.mul_(outer), to_target.mul_(outer))


_COMPUTED: Mapping[tuple[str, str], Callable[[Tensor, Tensor, WindowBatch, Word2VecSettings, Scales], Predicted]] = {
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
        shares: Sequence[np.ndarray] = () if settings.max_share is None or isinstance(objective, NoData) else objective.shares()
        for name, share in zip(("source_scale", "target_scale"), shares or (np.zeros(config.vocab_size),) * 2, strict=True):
            scale = np.minimum(1, (settings.max_share or 1) / np.maximum(share, 1e-30))
            self.register_buffer(name, torch.tensor(scale, dtype=torch.float32), persistent=False)

    def forward(self, batch: WindowBatch, carry: Any = None) -> Step:
        """The summed loss."""
        source, target = self.net.input.weight, self.net.output.weight
        scales = (self.get_buffer("source_scale"), self.get_buffer("target_scale"))
        total = self.net.predictions(source, target, batch, self.settings, scales)
        metrics: dict[str, tuple[Tensor, Tensor | int]] = {"prediction": (total.detach(), batch.predictions)}
        if self.settings.output == "hierarchical":
            around = (batch.left + batch.right).view(-1)
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
        ids = list(dict.fromkeys(batch.ids.view(-1).tolist()))
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
