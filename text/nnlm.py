"""NNLM: a neural probabilistic language model, which learnt word vectors first.

Bengio, Ducharme, Vincent, Jauvin, "A Neural Probabilistic Language Model", Journal of Machine Learning Research, 2003
(https://www.jmlr.org/papers/v3/bengio03a.html). The vectors of the n - 1 words before a word, side by side, go through a layer
of tanh, and a softmax over the vocabulary says which word follows.

Faithful: y = b + W x + U tanh(d + H x), where x holds the vectors of the words before, the last one first, from one table for all places;
direct connections W that may be left out (`direct_connections`); weight decay of weights and vectors and not of biases; the number of
parameters, |V| (1 + n m + h) + h (1 + (n - 1) m). The first words of a text follow on a token that means its beginning, as rare words
are one token: both are words with vectors of their own. Deviations: the recipes' optimizer; vectors and weights begin as
N(0, 0.02), of which the paper does not speak. There is no mixture with a trigram. Without a reference, tests compare with the formula in
loops, with finite differences, and with the paper's number of parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..shared.config import Config
from ..shared.convert import Rename, Rule
from ..shared.embed import normal_
from ..shared.errors import UserError
from ..shared.family import Card, Context, Family, Format, Net, Task, Vocabulary
from ..shared.loss import linear_cross_entropy_sum, perplexity
from ..shared.sample import Sample
from ..shared.system import Batch, Objective, Preview, Step, System, Term
from ..shared.tokenizer import Tokenizer
from .word_vectors import WordTable, write_gensim, write_glove


@dataclass(frozen=True, kw_only=True)
class NNLMConfig(Config):
    """The shape of the network."""

    vocab_size: int = 16_383
    """|V|."""
    embedding_size: int = 30
    """m, numbers of a word's vector."""
    hidden_size: int = 100
    """h, width of the layer of tanh."""
    order: int = 5
    """n: a word is predicted from the n - 1 before it."""
    direct_connections: bool = True
    """Whether the vectors are also connected with the output directly (W)."""
    initializer_range: float = 0.02
    """Standard deviation of the first weights."""
    special_token_ids: tuple[int, ...] = ()
    """Ids that are no words."""

    AT_LEAST_ONE = ("vocab_size", "embedding_size", "hidden_size")
    NOT_NEGATIVE = ("initializer_range",)

    def problems(self) -> list[str]:
        """What is wrong with the fields."""
        return [*super().problems(), *([f"order is {self.order}, expected at least 2: one word before"] if self.order < 2 else [])]


SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embedding_size": 32, "hidden_size": 64, "order": 4},
    "base": {},
    "ap": {"vocab_size": 17_964, "embedding_size": 100, "hidden_size": 60, "order": 6},
}
"""`base` is the paper's for the Brown corpus, `ap` the one for the Associated Press news."""


class NNLM(WordTable):
    """The network."""

    def __init__(self, config: NNLMConfig) -> None:
        super().__init__()
        c = self.config = config
        self.special_tokens = c.special_token_ids
        before = (c.order - 1) * c.embedding_size
        self.embed = nn.Embedding(c.vocab_size, c.embedding_size)
        self.hidden = nn.Linear(before, c.hidden_size)
        self.output = nn.Linear(c.hidden_size, c.vocab_size)
        self.direct = nn.Linear(before, c.vocab_size, bias=False) if c.direct_connections else None
        normal_(self, c.initializer_range)

    def word_vectors(self) -> Tensor:
        """[V, m]: C."""
        return self.embed.weight

    def features(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """What the softmax's layer reads, [N, F], and its weight [V, F]; `input_ids` as in `forward`."""
        x = self.embed(input_ids).flatten(1)
        state = torch.tanh(self.hidden(x))
        if self.direct is None:
            return state, self.output.weight
        return torch.cat([state, x], dim=1), torch.cat([self.output.weight, self.direct.weight], dim=1)

    def forward(self, input_ids: Tensor) -> Tensor:
        """The logits of the word that follows, [N, V], of the words before, [N, n - 1], the last one first."""
        features, weight = self.features(input_ids)
        return nn.functional.linear(features, weight, self.output.bias)


# ------------------------------------------------------------------------------------------- the data side


@dataclass(frozen=True)
class NNLMSettings:
    """What of the objective can be set: nothing."""


@dataclass(frozen=True)
class NGrams:
    """One example: all words of a sample, each with the words before it."""

    before: np.ndarray
    """int64 [T, n - 1], the last one first."""
    targets: np.ndarray
    """int64 [T]"""


@dataclass(kw_only=True)
class NGramBatch(Batch):
    """Words with what is before them."""

    before: Tensor
    """int64 [T, n - 1]"""
    targets: Tensor
    """int64 [T]"""


class NextWords(Objective[NGrams]):
    """Each word of a text from the words before it.

    Args:
        tokenizer: of words, with a token for the beginning of a text.
        order: n.
    """

    def __init__(self, tokenizer: Tokenizer, order: int) -> None:
        self.tokenizer, self.order = tokenizer, order
        found = next((i for i in (tokenizer.bos_id, tokenizer.cls_id, tokenizer.eos_id) if i is not None), None)
        if found is None:
            raise UserError("nnlm begins each text with a token that stands for its beginning, and this tokenizer has none: train one with "
                            "`polymodal tokenizer train --for nnlm`")
        self.begin: int = found

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterable[NGrams]:
        """All words of the sample's texts; nothing is drawn."""
        if sample.tokenized:
            ids, lengths = sample.tokens()
        else:
            ids = np.array(self.tokenizer.encode(sample.text(), add_special_tokens=False), dtype=np.int64)
            lengths = np.array([len(ids)])
        if not len(ids):
            raise sample.bad("the text has no words")
        first = np.repeat(np.cumsum(lengths) - lengths, lengths)
        places = np.arange(len(ids))[:, None] - np.arange(1, self.order)
        return [NGrams(np.where(places >= first[:, None], ids[places], self.begin), ids)]

    def collate(self, examples: list[NGrams]) -> NGramBatch:
        """Lay them end to end; the loss is counted in words."""
        before, targets = (torch.from_numpy(np.concatenate([getattr(e, name) for e in examples])) for name in ("before", "targets"))
        return NGramBatch(counts={"targets": len(targets)}, tokens=len(targets), before=before, targets=targets)

    def describe(self, example: NGrams) -> Preview:
        """Some words with those before them."""
        rows = zip(example.before[:8, ::-1].tolist(), example.targets[:8].tolist(), strict=True)
        return Preview(tuple((self.tokenizer.show(before), self.tokenizer.show([word])) for before, word in rows))


# ------------------------------------------------------------------------------------------- the loss side


class NNLMSystem(System[NNLM, NextWords]):
    """The language model with its cross-entropy."""

    def forward(self, batch: NGramBatch, carry: Any = None) -> Step:
        """The summed cross-entropy of the words."""
        features, weight = self.net.features(batch.before)
        total = linear_cross_entropy_sum(features, weight, self.net.output.bias, batch.targets)
        return Step({"lm": Term(total, "targets", labels=batch.targets)})

    def measured(self) -> tuple[str, ...]:
        """The names of all numbers of an evaluation but `loss`."""
        return "lm", "lm_chance", "perplexity"

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """The perplexity, with rare words as one."""
        return {"perplexity": perplexity(means["lm"])} if "lm" in means else {}

    @torch.no_grad()
    def preview(self, batch: NGramBatch, limit: int = 4) -> list[Preview]:
        """The most probable words at some places."""
        show = self.objective.tokenizer.show
        best = self.net(batch.before[:limit]).topk(min(5, self.net.config.vocab_size)).indices.tolist()
        rows = zip(batch.before[:limit].flip(1).tolist(), batch.targets[:limit].tolist(), best, strict=True)
        return [Preview((("before", show(before)), ("word", show([word])), ("predicted", show(five)))) for before, word, five in rows]


# ------------------------------------------------------------------------------------------ names in files

MODEL_TYPE = "nnlm"


def rules(config: NNLMConfig) -> Sequence[Rule]:
    """Our own keys."""
    with torch.device("meta"):
        return tuple(Rename(name, name) for name in NNLM(config).state_dict())


FORMAT = Format(
    "polymodal", rules, recognises=lambda record: record.get("model_type") == MODEL_TYPE,
    read=lambda record, directory: NNLMConfig.from_dict(record, f"{directory}/config.json"),
    write=lambda net: {**net.config.to_dict(), "model_type": MODEL_TYPE, "architectures": ["NNLM"]},
)  # fmt: skip


def adapt(config: NNLMConfig, context: Context) -> NNLMConfig:
    """Take vocabulary size and special ids from the tokenizer."""
    t = context.tokenizer
    return config if t is None else replace(config, vocab_size=t.vocab_size, special_token_ids=tuple(sorted(t.special_ids)))


def create(config: NNLMConfig, settings: NNLMSettings, context: Context) -> NNLMSystem:
    """The pretraining system with randomly initialized weights."""
    return NNLMSystem(NNLM(config), context.objective("nnlm", lambda tokenizer: NextWords(tokenizer, config.order)))


CARD = Card(
    title="NNLM",
    paper='Bengio, Ducharme, Vincent, Jauvin, "A Neural Probabilistic Language Model", 2003',
    year=2003,
    url="https://www.jmlr.org/papers/v3/bengio03a.html",
    equation=r"\mathcal{L} = -\frac{1}{T} \sum_{t=1}^{T} \log \mathrm{softmax}\big(b + W x_t + U \tanh(d + H x_t)\big)_{w_t}",
    symbols="x_t holds the vectors of the n - 1 words before w_t side by side.",
    masks={},
    reference="the formula of the paper",
)

FAMILIES = (
    Family(
        name="nnlm",
        card=CARD,
        config=NNLMConfig,
        sizes=SIZES,
        adapt=adapt,
        pretraining=Task("the next word from the n - 1 before it", NNLMSettings, create),
        nets=(Net("NNLM", NNLM, FORMAT, written={"gensim": write_gensim, "glove": write_glove}),),
        vocabulary=Vocabulary("word", "plain"),
    ),
)
