"""TagLM. Peters, Ammar, Bhagavatula and Power, "Semi-supervised sequence tagging with bidirectional language models", 2017.
https://arxiv.org/abs/1705.00108

    word -> [its vector; CNN of its characters] -> BiLSTM 1 -> h_1 -> [h_1; forward LM; backward LM] -> BiLSTM 2 -> scores -> CRF

The language models are trained before, on texts without tags, and frozen (companions `forward` and `backward`). With
`model.language_models=[]` it is the paper's baseline, the same tagger without them.

Faithful: words and characters, two BiLSTMs and the language models' highest states between them (section 3.3: the best place), a dense
layer for the tags' scores, a CRF with Viterbi, dropout on what each LSTM reads and nowhere else, no parameters in common between the two
language models; the sizes of the paper's chunker (section 3: 30 filters of width 3 with tanh, LSTMs of width 200, vectors of width 50).

Deviations, each with its reason:
* Word vectors begin at random; the paper's are Senna's, which no package holds.
* A language model is one half of an ELMo, as the library has no other one from right to left: `forward` reads from left to right,
  `backward` from right to left, and of two runs nothing is shared. One ELMo may be named for both; its halves have learnt their
  characters together.
* No restarts with a tenth of the rate: `schedule` and `checkpoint.keep_best` are the loop's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..shared.config import Config
from ..shared.errors import UserError
from ..shared.family import Card, Context, Family, Net, Task, Vocabulary
from ..shared.tokenizer import Tokenizer
from ._characters import SHORTEST, CharacterCNN, different_words
from ._crf import CRF
from ._lstm import BiLSTM
from ._own import own_format
from ._readers import CharacterReader, Reader, Source, trunk_of
from .elmo import need_whole_words
from .encoder_task import need_classes, with_classes
from .features import SentenceSystem, TaggerBeside, system_of

MODEL_TYPE = "taglm"
DIRECTIONS = ("forward", "backward")


@dataclass(frozen=True, kw_only=True)
class TagLMConfig(Config):
    """The tagger. What the language models give is read off them."""

    vocab_size: int = 20000
    """Words that have a vector of their own."""
    unk_token_id: int = 0
    """The word of all others."""
    embedding_size: int = 50
    """Width of a word's vector."""
    filters: tuple[tuple[int, int], ...] = ((3, 30),)
    """Width and number of each convolution over characters."""
    character_size: int = 25
    """Width of a character's vector."""
    max_characters_per_token: int = 50
    """Characters that are read of a word, both marks included."""
    hidden_size: int = 200
    """H, the width of each direction of both BiLSTMs."""
    language_models: tuple[str, ...] = DIRECTIONS
    """The language models that are read: "forward", "backward", both or none."""
    forward_size: int = 512
    """Width of the forward language model's states."""
    backward_size: int = 512
    """Width of the backward one's."""
    dropout: float = 0.25
    """Dropout of what each BiLSTM reads."""
    num_labels: int = 2
    """Tags."""
    labels: tuple[str, ...] | None = None
    """Their names."""

    AT_LEAST_ONE: ClassVar[tuple[str, ...]] = ("vocab_size", "embedding_size", "character_size", "hidden_size", "forward_size",
                                               "backward_size", "num_labels")
    PROBABILITIES: ClassVar[tuple[str, ...]] = ("dropout",)

    def problems(self) -> list[str]:
        """What is wrong with the fields, alone and together."""
        problems = super().problems()
        if not self.filters or any(width < 1 or count < 1 for width, count in self.filters):
            problems.append(f"filters are {list(map(list, self.filters))}, expected pairs of a width and a number, each at least 1")
        shortest = max(SHORTEST, *(width for width, _ in self.filters), 0)
        if self.max_characters_per_token < shortest:
            problems.append(f"max_characters_per_token is {self.max_characters_per_token}, expected at least {shortest}: a word's marks "
                            "and the widest of the filters need room")
        if not 0 <= self.unk_token_id < max(1, self.vocab_size):
            problems.append(f"unk_token_id is {self.unk_token_id}, expected an id from 0 to vocab_size {self.vocab_size} - 1")
        if self.language_models != tuple(name for name in DIRECTIONS if name in self.language_models):
            problems.append(f"language_models are {list(self.language_models)}, expected forward, backward, both in this order, or none")
        return problems

    @property
    def widths(self) -> Mapping[str, int]:
        """Of the states of each language model that is read."""
        return {name: getattr(self, f"{name}_size") for name in self.language_models}


SIZES: dict[str, dict[str, Any]] = {"tiny": {"hidden_size": 64, "dropout": 0.1}, "base": {}}


# ---------------------------------------------------------------------------------------------- networks


class OneDirection(CharacterReader):
    """The highest layer of one direction of an ELMo."""

    def __init__(self, source: Source, backwards: bool) -> None:
        super().__init__(trunk_of(source.net))
        self.width, self.layers, self.backwards = self.width // 2, 1, backwards

    def states(self, trunk: Any, inputs: dict[str, Tensor], lengths: Sequence[int]) -> list[Tensor]:
        """See `Reader`."""
        return [trunk.one_direction(inputs["characters"], lengths, inputs["words"], backwards=self.backwards)]


class WordsAndCharacters:
    """The tagger's own words, by their ids in its vocabulary, and their characters; each different word once."""

    def __init__(self, tokenizer: Tokenizer, config: TagLMConfig) -> None:
        self.tokenizer, self.unknown, self.length = tokenizer, config.unk_token_id, config.max_characters_per_token

    def collate(self, sentences: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        """Ids [U] and characters [U, C] of the different words, and which of them each word is, [T]."""
        different, found = different_words(sentences, self.length)
        rows = self.tokenizer.encode_batch(different, add_special_tokens=False)
        return {**found, "ids": torch.tensor([row[0] if len(row) == 1 else self.unknown for row in rows])}


class TagLMTagger(TaggerBeside):
    """Both BiLSTMs, with the states of the language models between them."""

    needs_tokenizer = True

    def __init__(self, config: TagLMConfig) -> None:
        super().__init__(config)
        c, self.reads = config, config.language_models
        self.embed = nn.Embedding(c.vocab_size, c.embedding_size)
        self.characters = CharacterCNN(c.filters, c.character_size, None, num_highway_layers=0, activation="tanh")
        self.first = BiLSTM(c.embedding_size + self.characters.output_size, c.hidden_size, dropout=c.dropout)
        self.second = BiLSTM(2 * c.hidden_size + sum(c.widths.values()), c.hidden_size, dropout=c.dropout)
        self.classifier = nn.Linear(2 * c.hidden_size, c.num_labels)
        self.crf = CRF(c.num_labels)
        nn.init.normal_(self.embed.weight, std=c.embedding_size**-0.5)

    def reader(self, name: str, source: Source) -> Reader:
        """See `TaggerBeside`: the highest layer of the direction that the language model is for."""
        return OneDirection(source, name == "backward")

    def own_reader(self, tokenizer: Tokenizer | None) -> WordsAndCharacters | None:
        """See `TaggerBeside`: words and characters."""
        if tokenizer is None:
            raise UserError("TagLM has a vocabulary of words, and no tokenizer is given: pass tokenizer=")
        tokenizer.need("TagLM", "unk")
        need_whole_words(tokenizer, "TagLM")
        return WordsAndCharacters(tokenizer.fitting(self.config.vocab_size), self.config)

    def forward(self, layers: Mapping[str, Sequence[Tensor]], lengths: Sequence[int], own: Mapping[str, Tensor]) -> Tensor:
        """See `TaggerBeside`."""
        words = torch.cat([self.embed(own["ids"]), self.characters(own["characters"])], -1).index_select(0, own["words"])
        state = torch.cat([self.first(words, lengths), *(layers[name][0] for name in self.reads)], -1)
        return self.classifier(self.second(state, lengths))


# --------------------------------------------------------------------------------------------- the entry


@dataclass(frozen=True)
class TagLMSettings:
    """What of the objective can be set: nothing."""


def create(config: TagLMConfig, settings: TagLMSettings, context: Context) -> SentenceSystem:
    """Build the tagger with randomly initialized weights."""
    need_classes(config, context, "tagging", "pack it with --kind tag")
    if unread := [name for name in context.companions if name not in config.language_models]:
        raise UserError(f"companions.{unread[0]} is named, and model.language_models, {list(config.language_models)}, leaves it out: "
                        f"leave one of the two out")
    return system_of(TagLMTagger(config), context, "taglm")


def adapt(config: TagLMConfig, context: Context) -> TagLMConfig:
    """Take the words from the tokenizer, the tags from the data, and the widths from the language models."""
    config, t = with_classes(config, context), context.tokenizer
    if t is not None:
        config = replace(config, vocab_size=t.vocab_size, unk_token_id=t.unk_id or 0)
    widths = {f"{name}_size": trunk_of(companion.net).config.hidden_size for name, companion in context.companions.items()}
    return replace(config, **widths)


CARD = Card(
    title="TagLM",
    paper="Peters, Ammar, Bhagavatula, Power. Semi-supervised sequence tagging with bidirectional language models",
    year=2017,
    url="https://arxiv.org/abs/1705.00108",
    equation=r"\tilde h_t = [\overrightarrow{h}_{t,1}; \overleftarrow{h}_{t,1}; \overrightarrow{h}^{\mathrm{LM}}_t; "
             r"\overleftarrow{h}^{\mathrm{LM}}_t], \qquad "
             r"\mathcal{L} = -\frac{1}{T} \sum_n \log p_{\mathrm{CRF}}(y_n \mid \mathrm{BiLSTM}_2(\tilde h))",
    symbols="The states h of the first BiLSTM at word t and the highest ones of two frozen language models; y are the tags of sentence n, "
            "T all words.",
    masks={},
    reference="the network written out in loops; the CRF: every sequence of tags, one by one",
)

FAMILIES = (
    Family(
        name="taglm",
        card=CARD,
        config=TagLMConfig,
        sizes=SIZES,
        adapt=adapt,
        pretraining=Task("tags of words, beside two language models", TagLMSettings, create,
                         companions={"forward": ("elmo",), "backward": ("elmo",)}),
        nets=(Net("TagLMTagger", TagLMTagger, own_format(TagLMTagger, TagLMConfig, MODEL_TYPE)),),
        vocabulary=Vocabulary("word", "plain"),
    ),
)
