"""The feature-based route: a small network on the layers of a trained one.
Peters et al., "Deep contextualized word representations", 2018, sections 3.3 and 4. https://arxiv.org/abs/1802.05365

    words -> a trained network (companion `features`) -> layers [T, D] -> γ Σ s_j h_j -> BiLSTM -> scores of tags -> CRF

Texts and pairs are classified by the same mix and a BiLSTM (`feature_classify`).

The trained network is any of the library that reads text; it is frozen, or trained with the rest (`objective.tuned`). So what an ELMo, a
BERT and a GPT know about words can be compared on the same data, by the same small network.

Faithful: the mix with its size γ, dropout of 0.5 on it, and a BiLSTM with a CRF above it, as section 4 has for named entities, without that
task's own words and characters: what is measured is what the features know.

Deviations, each with its reason:
* No penalty on the weights of the mix: `optim.weight_decay` is for matrices.
* A network over tokens gives a word's first token (Devlin et al., 2018, section 5.3); ELMo reads the word. Word vectors (word2vec, GloVe,
  NNLM) are one layer; a word that they do not know is zeros.
* A sentence that is longer than the trained network reads is refused as a bad sample, not cut.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..shared.config import Config
from ..shared.errors import UserError
from ..shared.family import Card, Context, Family, Net, Task
from ..shared.loss import cross_entropy_sum
from ..shared.sample import Sample
from ..shared.system import Batch, Companion, Objective, Preview, Step, System, Term, map_tensors
from ..shared.tokenizer import Tokenizer
from ._crf import CRF
from ._lstm import BiLSTM
from ._mix import ScalarMix
from ._own import own_format
from ._readers import OwnReader, Reader, Source, layers_of, need_sources, reader_of, sources_of
from .encoder_task import class_names, need_classes, with_classes
from .entities import are_entities
from .feature_classify import FeatureClassifier, TextObjective, TextSystem
from .tag import entity_metrics, tag_number
from .tasks import WordTagger

MODEL_TYPE = "features"
SOURCES = ("elmo", "bert", "roberta", "albert", "electra", "macbert", "ernie", "spanbert", "gpt", "gpt2", "gpt3", "word2vec", "glove",
           "nnlm", "cove")


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig(Config):
    """The small network. What the trained one gives is read off that."""

    feature_size: int = 1024
    """Width of a layer of the trained network."""
    feature_layers: int = 3
    """Its layers, that of the words' vectors included."""
    hidden_size: int = 200
    """H, the width of each direction of the BiLSTM."""
    num_hidden_layers: int = 1
    """Layers of the BiLSTM."""
    dropout: float = 0.5
    """Dropout of what each layer and the tags read."""
    layer_norm: bool = False
    """Normalise each layer before it is weighed, over the whole batch, as AllenNLP does where asked."""
    crf: bool = True
    """Score neighbouring tags; else each word is tagged for itself."""
    num_labels: int = 2
    """Tags."""
    labels: tuple[str, ...] | None = None
    """Their names."""

    AT_LEAST_ONE: ClassVar[tuple[str, ...]] = ("feature_size", "feature_layers", "hidden_size", "num_hidden_layers", "num_labels")
    PROBABILITIES: ClassVar[tuple[str, ...]] = ("dropout",)


SIZES: dict[str, dict[str, Any]] = {"tiny": {"hidden_size": 64, "dropout": 0.2}, "base": {}}


# ---------------------------------------------------------------------------------------------- networks


class TaggerBeside(WordTagger, ABC):
    """A tagger that reads the layers of trained networks, which lie beside it. Its `classifier` scores tags, and so may its `crf`."""

    reads: tuple[str, ...] = ()
    """The names of these networks."""
    classifier: nn.Linear
    crf: CRF | None

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.companions: dict[str, Source] = {}

    @abstractmethod
    def forward(self, layers: Mapping[str, Sequence[Tensor]], lengths: Sequence[int], own: Mapping[str, Tensor]) -> Tensor:
        """Scores of tags [T, K].

        Args:
            layers: of each network that it reads, [T, width] each.
            lengths: words of each sentence; their sum is T.
            own: what it reads itself (`own_reader`).
        """

    def reader(self, name: str, source: Source) -> Reader:
        """How it reads the network of that name."""
        return reader_of(source)

    def own_reader(self, tokenizer: Tokenizer | None) -> OwnReader | None:
        """What makes tensors of words for the tagger itself; None where it reads the networks' layers alone."""
        return None

    def scores(self, readers: Mapping[str, Reader], inputs: Mapping[str, dict[str, Tensor]], lengths: Sequence[int],
               learning: bool = False) -> Tensor:
        """`forward` on what the readers made of words; with `learning` the other networks have gradients."""
        layers = layers_of(self.companions, readers, inputs, lengths, self.classifier.weight, learning)
        return self(layers, lengths, inputs.get("own", {}))

    def loss(self, scores: Tensor, tags: Tensor, lengths: Sequence[int]) -> Tensor:
        """The negative log-likelihood of tags [T] under scores [T, K], summed: by the CRF of each sentence, without one of each word."""
        if self.crf is None:
            return cross_entropy_sum(scores, tags)
        rows, keep = rows_of(scores, lengths)
        return self.crf.loss(rows, rows_of(tags, lengths)[0], keep).sum()

    def best(self, scores: Tensor, lengths: Sequence[int]) -> Tensor:
        """The most probable tags [T]."""
        if self.crf is None:
            return scores.argmax(-1)
        rows, keep = rows_of(scores, lengths)
        return self.crf.best(rows, keep)[keep]

    @torch.no_grad()
    def tag(self, sentences: Sequence[Sequence[str]], tokenizer: Tokenizer | None = None) -> list[list[int]]:
        """See `WordTagger`."""
        need_sources(self.companions, self.reads)
        lengths, device = [len(words) for words in sentences], self.classifier.weight.device
        readers = {name: self.reader(name, source) for name, source in self.companions.items()}
        for words in sentences:
            if problem := next(filter(None, (reader.fits(words) for reader in readers.values())), None):
                raise UserError(f"the sentence {' '.join(words)[:60]!r} has {problem}: cut it")
        inputs = map_tensors(collated(sentences, readers, self.own_reader(tokenizer)), lambda tensor: tensor.to(device))
        return [part.tolist() for part in self.best(self.scores(readers, inputs, lengths), lengths).split(lengths)]


def rows_of(values: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Values [T, ...] as rows [B, S, ...], and which places of them are none of padding, bool [B, S]."""
    rows = nn.utils.rnn.pad_sequence(list(values.split(list(lengths))), batch_first=True)
    return rows, (torch.arange(max(lengths)) < torch.tensor(list(lengths))[:, None]).to(values.device, non_blocking=True)


class FeatureTagger(TaggerBeside):
    """Tags of words from the layers of one trained network."""

    reads = ("features",)

    def __init__(self, config: FeaturesConfig) -> None:
        super().__init__(config)
        self.mix = ScalarMix(config.feature_layers, layer_norm=config.layer_norm)
        self.lstm = BiLSTM(config.feature_size, config.hidden_size, config.num_hidden_layers, config.dropout)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(2 * config.hidden_size, config.num_labels)
        self.crf = CRF(config.num_labels) if config.crf else None

    def forward(self, layers: Mapping[str, Sequence[Tensor]], lengths: Sequence[int], own: Mapping[str, Tensor]) -> Tensor:
        """See `TaggerBeside`."""
        return self.classifier(self.dropout(self.lstm(self.mix(layers["features"]), lengths)))


# ------------------------------------------------------------------------------------------ the data side


@dataclass(frozen=True)
class FeatureSettings:
    """What of the objective can be set."""

    tuned: bool = False
    """Train the network that gives the features, too; else it is frozen."""


@dataclass(frozen=True, slots=True)
class SentenceExample:
    """A sentence."""

    words: tuple[str, ...]
    tags: np.ndarray
    """int64 [S]"""


@dataclass(kw_only=True)
class SentenceBatch(Batch):
    """Sentences of T words in all."""

    inputs: dict[str, dict[str, Tensor]]
    """What each network beside the one that is trained reads."""
    tags: Tensor
    """[T]"""
    lengths: tuple[int, ...]
    words: list[str] = field(default_factory=list)
    """Of each sentence, for people."""


def collated(sentences: Sequence[Sequence[str]], readers: Mapping[str, Reader],
             own: OwnReader | None) -> dict[str, dict[str, Tensor]]:
    """What each network reads of sentences, and under the name "own" what the tagger does."""
    found = {name: reader.collate(sentences) for name, reader in readers.items()}
    return found if own is None else {**found, "own": own.collate(sentences)}


class SentenceObjective(Objective[SentenceExample]):
    """Words with their tags, as the networks read them that lie beside the tagger.

    Args:
        readers: by the names of the networks.
        labels: the tags.
        own: what the tagger reads itself.
    """

    def __init__(self, readers: Mapping[str, Reader], labels: tuple[str, ...], own: OwnReader | None = None) -> None:
        self.readers, self.labels, self.own = dict(readers), labels, own

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterator[SentenceExample]:
        """Yield the sentence."""
        words, tags = sample.tags()
        for reader in self.readers.values():
            if (problem := reader.fits(words)) is not None:
                raise sample.bad(f"{problem}: pack shorter sentences")
        yield SentenceExample(tuple(words), np.array([tag_number(tag, self.labels, sample) for tag in tags]))

    def tokens_of(self, example: SentenceExample) -> int:
        """Its words."""
        return len(example.words)

    def collate(self, examples: list[SentenceExample]) -> SentenceBatch:
        """Sentences one after the other."""
        lengths = tuple(len(e.words) for e in examples)
        sentences = [e.words for e in examples]
        return SentenceBatch(
            counts={"words": sum(lengths)}, tokens=sum(lengths), lengths=lengths, words=[" ".join(words) for words in sentences],
            inputs=collated(sentences, self.readers, self.own),
            tags=torch.from_numpy(np.concatenate([e.tags for e in examples])))  # fmt: skip

    def describe(self, example: SentenceExample) -> Preview:
        """The words and their tags."""
        return Preview((("words and tags", " ".join(f"{w}/{self.labels[t]}" for w, t in zip(example.words, example.tags.tolist()))),))


# ------------------------------------------------------------------------------------------ the loss side


class SentenceSystem(System[TaggerBeside, SentenceObjective]):
    """A tagger on the layers of networks beside it, by the names of these; each is frozen, or trained with it."""

    compiles = False

    def __init__(self, net: TaggerBeside, objective: SentenceObjective, companions: Mapping[str, Companion], *,
                 tuned: bool = False) -> None:
        super().__init__(net, objective)
        self.companions, self.tuned = companions, tuned
        self.labels = class_names(net.config)
        self.with_entities = are_entities(self.labels)
        net.companions, self.sources = sources_of(companions, tuned)

    def scores(self, batch: SentenceBatch) -> Tensor:
        """Of the words' tags, [T, K]."""
        return self.net.scores(self.objective.readers, batch.inputs, batch.lengths, learning=self.tuned)

    def forward(self, batch: SentenceBatch, carry: Any = None) -> Step:
        """The likelihood of the sentences' tags; how many words are right, in evaluations by Viterbi, and the entities."""
        scores = self.scores(batch)
        step = Step({"tagging": Term(self.net.loss(scores, batch.tags, batch.lengths), "words", labels=batch.tags)})
        guesses = scores.detach().argmax(-1) if self.training else self.net.best(scores, batch.lengths)
        step.metrics["accuracy"] = ((guesses == batch.tags).sum(), len(batch.tags))
        if not self.training and self.with_entities:
            step.metrics |= entity_metrics(*(self._sentences(numbers, batch) for numbers in (batch.tags, guesses)))
        return step

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        return "tagging", "tagging_chance", "accuracy", *(("entity_f1", "entity_precision", "entity_recall") if self.with_entities else ())

    def _sentences(self, numbers: Tensor, batch: SentenceBatch) -> list[list[str]]:
        return [[self.labels[n] for n in part.tolist()] for part in numbers.cpu().split(batch.lengths)]

    @torch.no_grad()
    def preview(self, batch: SentenceBatch, limit: int = 4) -> list[Preview]:
        """Sentences with the tags of their words, guessed and true."""
        guesses, truths = (self._sentences(numbers, batch) for numbers in (self.net.best(self.scores(batch), batch.lengths), batch.tags))
        return [Preview((("text", text), ("tags", " ".join(guess)), ("truth", " ".join(truth))))
                for text, guess, truth in zip(batch.words[:limit], guesses, truths)]


# --------------------------------------------------------------------------------------------- the entry


def create(config: FeaturesConfig, settings: FeatureSettings, context: Context) -> SentenceSystem:
    """Build the small network with randomly initialized weights."""
    need_classes(config, context, "tagging", "pack it with --kind tag")
    return system_of(FeatureTagger(config), context, "features", settings.tuned)


def system_of(net: TaggerBeside, context: Context, name: str, tuned: bool = False) -> SentenceSystem:
    """The system of a tagger, with the networks that it reads."""
    found = {each: companion for each in net.reads if (companion := context.companion(each, name)) is not None}
    readers = {each: net.reader(each, companion) for each, companion in found.items()}

    def objective(tokenizer: Tokenizer | None) -> SentenceObjective:
        return SentenceObjective(readers, class_names(net.config), net.own_reader(tokenizer))

    return SentenceSystem(net, context.objective(name, objective) if net.needs_tokenizer else objective(None), found, tuned=tuned)


def create_classifier(config: FeaturesConfig, settings: FeatureSettings, context: Context) -> TextSystem:
    """Build the classifier with randomly initialized weights."""
    need_classes(config, context, "classification", "pack it with --label-field, or as folders of one class each")
    companion = context.companion("features", "features")
    found = {} if companion is None else {"features": companion}
    labels = class_names(config)
    objective = TextObjective({name: reader_of(each) for name, each in found.items()}, labels)
    return TextSystem(FeatureClassifier(config), objective, labels, found, tuned=settings.tuned)


def adapt(config: FeaturesConfig, context: Context) -> FeaturesConfig:
    """Take the tags from the data, and what the features are from the network that gives them."""
    config = with_classes(config, context)
    if (companion := context.companions.get("features")) is None:
        return config
    reader = reader_of(companion)
    return replace(config, feature_size=reader.width, feature_layers=reader.layers)


CARD = Card(
    title="Features",
    paper="Peters, Neumann, Iyyer, Gardner, Clark, Lee, Zettlemoyer. Deep contextualized word representations",
    year=2018,
    url="https://arxiv.org/abs/1802.05365",
    equation=r"x_t = \gamma \sum_j \mathrm{softmax}(s)_j\, h_{t,j}, \qquad "
             r"\mathcal{L} = -\frac{1}{T} \sum_n \log p_{\mathrm{CRF}}(y_n \mid \mathrm{BiLSTM}(x_n))",
    symbols="The layers h of a trained network at word t, weighed by s and γ; y are the tags of sentence n, T all words.",
    masks={},
    reference="the CRF: every sequence of tags, one by one",
)

FAMILIES = (
    Family(
        name="features",
        card=CARD,
        config=FeaturesConfig,
        sizes=SIZES,
        adapt=adapt,
        pretraining=Task("tags of words, on the layers of a trained network", FeatureSettings, create, companions={"features": SOURCES}),
        tasks=(Task("a class for a text or a pair of texts, on the layers of a trained network", FeatureSettings, create_classifier,
                    "classify", adapt, "FeatureClassifier", {"features": SOURCES}),),
        nets=tuple(Net(net.__name__, net, own_format(net, FeaturesConfig, MODEL_TYPE)) for net in (FeatureTagger, FeatureClassifier)),
    ),
)
