"""ELMo. Peters, Neumann, Iyyer, Gardner, Clark, Lee and Zettlemoyer, "Deep contextualized word representations", 2018.
https://arxiv.org/abs/1802.05365

Two language models, one from left to right and one from right to left, read the same words as characters. What a task reads is a mean of
their layers, weighed by the task (`ScalarMix`).

    words [T] -> characters [U, 50] of the different ones -> CNN, highways -> [U, D] -> x [T, D]
    forward, backward: x -> LSTM (C cells, projected to D) -> h_1 -> LSTM, + h_1 -> h_2 -> softmax of the next, of the last word
    representations, 2 L + 1 of width D: x, and h_j of both directions; as layers of width 2 D: [x; x], [h_j forward; h_j backward]

Faithful: characters and their marks, the CNN (maxima first, then ReLU) and highways, LSTMs with projection and limits of 3 on cells and
states, a residual connection from the second layer on, one CNN and one softmax for both directions and LSTMs of their own, dropout on what
each layer reads and on what the softmax reads, the mean of both directions' losses, states that are carried from one row to the next, as
in bilm-tf, which trained the published models. AllenNLP's options and weights are read and written.

Deviations, each with its reason:
* The softmax is exact: full, or adaptive (`cutoffs`), where bilm-tf samples 8192 words. It needs no estimate, and what is measured is a
  perplexity in training, too.
* Words are those of a vocabulary (`tokenizer train --kind word`): one that is not in it is read as its unknown token, in training alone.
  `Elmo` itself reads any word.
* A row is read from its end by the backward model, which goes on from the row before, as bilm-tf's does with sentences. A row may begin or
  end within a sentence: its last token is then read and no target of the backward model, as nobody knows what follows.
* The table of characters has 261 rows: AllenNLP's row 0 is all zeros, for padding, which is not computed here. 1 is added to forget gates,
  as TensorFlow does; AllenNLP has it in the bias.
* Each different word of a batch goes through the CNN once.

Data: `polymodal pack --tokenize TOKENIZER --block N --in-order` writes rows of N words, one text after another; with `--split line` each
line is a sentence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..shared.config import Config
from ..shared.convert import Rename, Reshape, Rule, Transpose, layers
from ..shared.errors import UserError
from ..shared.family import Card, Context, Family, Format, Net, Task, Vocabulary
from ..shared.loss import perplexity
from ..shared.sample import Sample
from ..shared.system import Batch, Objective, Preview, Step, System, Term
from ..shared.tokenizer import Tokenizer
from ._adaptive import AdaptiveEmbedding, AdaptiveSoftmax
from ._allennlp import FILE, OPTIONS, Gates, Passing, read_options, write_options
from ._characters import SHORTEST, CharacterCNN, character_ids, end_ids
from ._lstm import LSTM, State, Steps
from ._own import own_format
from ._relative import continued

MODEL_TYPE = "elmo"


@dataclass(frozen=True, kw_only=True)
class ElmoConfig(Config):
    """The defaults are the published model's (`elmo_2x4096_512_2048cnn_2xhighway`)."""

    vocab_size: int = 793471
    """Words of the softmax."""
    hidden_size: int = 512
    """D, the width of a direction's states (`projection_dim`)."""
    cell_size: int = 4096
    """C, cells of an LSTM (`dim`)."""
    num_hidden_layers: int = 2
    """L, LSTMs of a direction."""
    cell_clip: float = 3.0
    """Largest absolute value in a cell; 0: no limit."""
    proj_clip: float = 3.0
    """The same of a state."""
    use_skip_connections: bool = True
    """From the second layer on, what a layer reads is added to what it gives."""
    filters: tuple[tuple[int, int], ...] = ((1, 32), (2, 32), (3, 64), (4, 128), (5, 256), (6, 512), (7, 1024))
    """Width and number of each convolution over characters."""
    embedding_size: int = 16
    """Width of a character's vector."""
    num_highway_layers: int = 2
    """Highway layers behind the convolutions."""
    hidden_act: str = "relu"
    """Activation of convolutions and highways."""
    max_characters_per_token: int = 50
    """Characters that are read of a word, both marks included."""
    cutoffs: tuple[int, ...] = (60000, 100000, 640000)
    """Ids at which the clusters of the adaptive softmax begin; none: one softmax over all words."""
    div_val: int = 4
    """Factor by which each cluster's vectors are narrower than those of the cluster before."""
    dropout: float = 0.1
    """Dropout of what each LSTM and the softmax read."""
    bos_token_id: int | None = None
    """What the backward model predicts where a text begins; by default `eos_token_id`."""
    eos_token_id: int = 0
    """The token between two texts."""

    AT_LEAST_ONE: ClassVar[tuple[str, ...]] = ("vocab_size", "hidden_size", "cell_size", "num_hidden_layers", "embedding_size", "div_val")
    PROBABILITIES: ClassVar[tuple[str, ...]] = ("dropout",)
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = ("cell_clip", "proj_clip", "num_highway_layers")
    ACTIVATION: ClassVar[str] = "hidden_act"

    def problems(self) -> list[str]:
        """What is wrong with the fields, alone and together."""
        problems = super().problems()
        if not self.filters or any(width < 1 or count < 1 for width, count in self.filters):
            problems.append(f"filters are {list(map(list, self.filters))}, expected pairs of a width and a number, each at least 1")
        shortest = max(SHORTEST, *(width for width, _ in self.filters), 0)
        if self.max_characters_per_token < shortest:
            problems.append(f"max_characters_per_token is {self.max_characters_per_token}, expected at least {shortest}: a word's marks "
                            "and the widest of the filters need room")
        if list(self.cutoffs) != sorted({c for c in self.cutoffs if 0 < c < self.vocab_size}):
            problems.append(f"cutoffs are {list(self.cutoffs)}, expected ascending ids above 0 and below vocab_size {self.vocab_size}")
        if not problems and self.hidden_size // self.div_val ** len(self.cutoffs) < 1:
            problems.append(f"hidden_size {self.hidden_size} leaves nothing for the last of {len(self.cutoffs) + 1} clusters at div_val "
                            f"{self.div_val}")
        for name in ("eos_token_id", "bos_token_id"):
            if (token := getattr(self, name)) is not None and not 0 <= token < self.vocab_size:
                problems.append(f"{name} is {token}, expected an id from 0 to vocab_size {self.vocab_size} - 1")
        return problems


SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 128, "cell_size": 256, "filters": ((1, 16), (2, 32), (3, 64), (4, 64), (5, 80)), "cutoffs": ()},
    "base": {},
}


# ---------------------------------------------------------------------------------------------- networks


@dataclass
class ElmoOutput:
    """What both language models make of sentences."""

    last_hidden_state: Tensor
    """[B, S, 2 D]"""
    hidden_states: tuple[Tensor, ...]
    """L + 1 layers [B, S, 2 D]: the words' vectors twice, then the states of both directions, each layer's beside each other."""


class Direction(nn.Module):
    """The LSTMs of one direction."""

    def __init__(self, config: ElmoConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            LSTM(config.hidden_size, config.hidden_size, config.cell_size, cell_clip=config.cell_clip, proj_clip=config.proj_clip)
            for _ in range(config.num_hidden_layers)
        )
        self.skips = config.use_skip_connections
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, steps: Steps, states: Sequence[State] | None = None) -> tuple[list[Tensor], list[State]]:
        """What each layer makes of x [T, D], token by token as they lie, and its state after each row's last token, detached."""
        x = x.index_select(0, steps.order)
        found: list[Tensor] = []
        left: list[State] = []
        for number, layer in enumerate(self.layers):
            read = self.dropout(x)
            x, state = layer(read, steps, None if states is None else states[number])
            x = x + read if number and self.skips else x
            found.append(x.index_select(0, steps.places))
            left.append((state[0].detach(), state[1].detach()))
        return found, left


class Elmo(nn.Module):
    """Both language models without their softmax: what other tasks read."""

    def __init__(self, config: ElmoConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = CharacterCNN(config.filters, config.embedding_size, config.hidden_size, num_highway_layers=config.num_highway_layers,
                                  activation=config.hidden_act)
        self.forwards, self.backwards = Direction(config), Direction(config)

    def characters(self, words: Sequence[str]) -> np.ndarray:
        """The characters of words as the network reads them, int16 [N, C]."""
        return character_ids(words, self.config.max_characters_per_token)

    def forward(self, character_ids: Tensor, attention_mask: Tensor | None = None) -> ElmoOutput:
        """Read sentences, each for itself.

        Args:
            character_ids: [B, S, C]; see `characters`. No ends of sentences: they are added, and taken away again.
            attention_mask: [B, S], nonzero where there is not padding, which stands on the right.
        """
        batch, length = character_ids.shape[:2]
        sizes = [length] * batch if attention_mask is None else (attention_mask != 0).sum(1).tolist()
        there = torch.arange(length, device=character_ids.device) < torch.tensor(sizes, device=character_ids.device)[:, None]
        states = self.states(character_ids[there], sizes)
        hidden = tuple(state.new_zeros(batch, length, state.shape[-1]).masked_scatter(there[:, :, None], state) for state in states)
        return ElmoOutput(hidden[-1], hidden)

    def states(self, characters: Tensor, lengths: Sequence[int], words: Tensor | None = None) -> list[Tensor]:
        """The L + 1 layers [T, 2 D] of sentences that lie one after the other, each between its ends.

        Args:
            characters: [T, C], or [U, C] of the different words.
            lengths: words of each sentence, at least one; their sum is T.
            words: which of the different words each is, [T].
        """
        x, inside, framed = self._between_ends(characters, lengths, words)
        both = [direction(x, Steps.of(framed, x.device, backwards=backwards))[0]
                for direction, backwards in ((self.forwards, False), (self.backwards, True))]
        return [torch.cat(pair, -1).index_select(0, inside) for pair in ((x, x), *zip(*both, strict=True))]

    def one_direction(self, characters: Tensor, lengths: Sequence[int], words: Tensor | None = None, *, backwards: bool) -> Tensor:
        """The highest layer of one language model alone, [T, D]; arguments as in `states`."""
        x, inside, framed = self._between_ends(characters, lengths, words)
        direction = self.backwards if backwards else self.forwards
        return direction(x, Steps.of(framed, x.device, backwards=backwards))[0][-1].index_select(0, inside)

    def _between_ends(self, characters: Tensor, lengths: Sequence[int], words: Tensor | None) -> tuple[Tensor, Tensor, list[int]]:
        """Vectors of sentences with their ends, [T + 2 B, D], where the words are, [T], and how long each sentence is then."""
        device = characters.device
        ends = torch.from_numpy(end_ids(self.config.max_characters_per_token)).to(device, characters.dtype, non_blocking=True)
        vectors = self.embed(torch.cat([ends, characters]))
        count = sum(lengths)
        words = torch.arange(count, device=device) if words is None else words
        rows = np.repeat(np.arange(len(lengths)), lengths)
        inside = torch.from_numpy(np.arange(count) + 2 * rows + 1).to(device, non_blocking=True)
        index = torch.ones(count + 2 * len(lengths), dtype=torch.long, device=device)  # 1 is an end
        index[torch.from_numpy(np.cumsum([0, *(n + 2 for n in lengths[:-1])])).to(device, non_blocking=True)] = 0
        index[inside] = words + 2
        return vectors.index_select(0, index), inside, [n + 2 for n in lengths]


class ElmoForLanguageModeling(nn.Module):
    """Both language models with the softmax that they share."""

    def __init__(self, config: ElmoConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Elmo(config)
        with torch.device("meta"):
            shape = AdaptiveEmbedding(config.vocab_size, config.hidden_size, config.hidden_size, config.cutoffs,
                                      config.div_val if config.cutoffs else 1)
        self.head = AdaptiveSoftmax(shape, tie_words=False, tie_projections=False)
        self.dropout = nn.Dropout(config.dropout)
        for name, parameter in self.head.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=parameter.shape[0 if "projection" in name else 1] ** -0.5)

    def forward(self, character_ids: Tensor, attention_mask: Tensor | None = None) -> ElmoOutput:
        """See `Elmo.forward`."""
        return self.trunk(character_ids, attention_mask)


# ------------------------------------------------------------------------------------------ the data side


@dataclass(frozen=True)
class ElmoSettings:
    """What of the objective can be set."""

    max_length: int | None = None
    """The longest row of words that is taken; None takes the rows as they were packed."""

    def __post_init__(self) -> None:
        """Check the range."""
        if self.max_length is not None and self.max_length < 2:
            raise UserError(f"max_length is {self.max_length}, expected at least 2 words")


def need_whole_words(tokenizer: Tokenizer, system: str) -> None:
    """Refuse a vocabulary of pieces of words."""
    if not tokenizer.whole_words(np.arange(tokenizer.vocab_size)).all():
        raise UserError(f"{system} reads words, and this tokenizer has pieces of words: train one with "
                        f"`polymodal tokenizer train --for {system.lower()}` (--kind word)")


@dataclass(frozen=True, slots=True)
class WordsExample:
    """One row: ids int64 [S]."""

    ids: np.ndarray


@dataclass(kw_only=True)
class WordsBatch(Batch):
    """One row of each lane. T words in B rows, U characters' rows."""

    characters: Tensor
    """int16 [U, C]: the ends of a sentence, then the different words of the batch."""
    lengths: tuple[int, ...]
    """Words of each row."""
    forward_words: Tensor
    """[T]: which of `characters` stands before each word; U + row where the row before says it."""
    forward_targets: Tensor
    """[T]"""
    backward_words: Tensor
    """[T - B]: the words but the first of each row."""
    backward_targets: Tensor
    """[T - B]: what stands before each of them."""
    last: Tensor
    """[B]: which of `characters` stands before the next row."""


class WordsObjective(Objective[WordsExample]):
    """Every word from those before it, and from those behind it, a row at a time."""

    sequential = True

    def __init__(self, tokenizer: Tokenizer, config: ElmoConfig, settings: ElmoSettings) -> None:
        """Make the data side."""
        tokenizer.need("ELMo", "eos")
        need_whole_words(tokenizer, "ELMo")
        self.tokenizer = tokenizer
        self.eos, self.bos = config.eos_token_id, config.eos_token_id if config.bos_token_id is None else config.bos_token_id
        self.characters_per_token = config.max_characters_per_token
        self.max_length = settings.max_length
        self.row_length = settings.max_length or 20

    @cached_property
    def characters(self) -> np.ndarray:
        """Of each word of the vocabulary, int16 [V, C]."""
        return character_ids(list(self.tokenizer.vocabulary()), self.characters_per_token)

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterator[WordsExample]:
        """The row as it is."""
        if not sample.tokenized:
            raise UserError(f"ELMo reads rows of words in the order of the text, and {sample.key!r} of {sample.source or 'the data'} is "
                            "raw text: use `polymodal pack --tokenize TOKENIZER --block 20 --in-order`")
        ids, _ = sample.tokens()
        if self.max_length is not None and len(ids) > self.max_length:
            raise UserError(f"{sample.key!r} of {sample.source or 'the data'} has {len(ids)} tokens and objective.max_length is "
                            f"{self.max_length}: pack with --block {self.max_length}, or raise it")
        yield WordsExample(ids)

    def collate(self, examples: list[WordsExample]) -> WordsBatch:
        """The different words, and where each stands."""
        lengths = np.array([len(e.ids) for e in examples])
        ids = np.concatenate([e.ids for e in examples])
        different, place = np.unique(ids, return_inverse=True)
        characters = np.concatenate([end_ids(self.characters_per_token), self.characters[different]])
        ends = np.cumsum(lengths)
        first = np.zeros(len(ids), dtype=bool)
        first[ends - lengths] = True
        before = np.where(ids == self.eos, 0, place + 2)
        forward = np.roll(before, 1)
        forward[first] = len(characters) + np.arange(len(examples))
        behind = np.where(ids == self.eos, 1, place + 2)[~first]
        targets = np.roll(np.where(ids == self.eos, self.bos, ids), 1)[~first]
        total = len(ids)
        tensors = map(torch.from_numpy, (characters, forward, ids, behind, targets, before[ends - 1]))
        names = ("characters", "forward_words", "forward_targets", "backward_words", "backward_targets", "last")
        return WordsBatch(counts={"targets": total, "backward_targets": total - len(examples)}, tokens=total,
                          lengths=tuple(lengths.tolist()), **dict(zip(names, tensors, strict=True)))

    def describe(self, example: WordsExample) -> Preview:
        """The row's words."""
        return Preview((("row", self.tokenizer.show(example.ids)),
                        ("predict", f"each of the {len(example.ids)} words from those before it, all but the last from those behind it")))


# ------------------------------------------------------------------------------------------ the loss side


class ElmoSystem(System[ElmoForLanguageModeling, WordsObjective]):
    """ELMo's pretraining: two language models that share characters and softmax, with their states as the carry.

    The carry holds `ids` (the samples that were read), `last` [B, C] (the characters before the next row), `keep` bool [B, 1], and
    `states`: of each direction and layer, h [B, D] and c [B, C].
    """

    def forward(self, batch: WordsBatch, carry: Any = None) -> Step:
        """Cross-entropy of every word in both directions, each summed."""
        (ahead, back), states = self._read(batch, carry)
        head = self.net.head
        step = Step({"forward": Term(head.loss(ahead, batch.forward_targets), "targets", 0.5, batch.forward_targets),
                     "backward": Term(head.loss(back, batch.backward_targets), "backward_targets", 0.5, batch.backward_targets)})
        if len(batch.sample_ids) == len(batch.lengths):  # a batch that knows its place in the text
            step.carry = {"ids": list(batch.sample_ids), "last": batch.characters[batch.last], "states": states,
                          "keep": torch.ones(len(batch.lengths), 1, dtype=torch.bool, device=batch.last.device)}
        return step

    def _read(self, batch: WordsBatch, carry: Any) -> tuple[list[Tensor], list[list[State]]]:
        """What the softmax reads in both directions, [T, D] and [T - B, D], and the states that are left."""
        net, device = self.net.trunk, batch.characters.device
        rows = len(batch.lengths)
        last, states = batch.characters[:1].expand(rows, -1), None
        if (found := continued(batch, carry)) is not None:
            there, new = found
            last = there["last"] if new is None else torch.where(new[:, None], last, there["last"])
            states = [[(h * there["keep"], c * there["keep"]) for h, c in direction] for direction in there["states"]]
        vectors = net.embed(torch.cat([batch.characters, last]))
        read: list[Tensor] = []
        left: list[list[State]] = []
        for number, (direction, words, lengths) in enumerate((
            (net.forwards, batch.forward_words, batch.lengths), (net.backwards, batch.backward_words, [n - 1 for n in batch.lengths]),
        )):  # fmt: skip
            steps = Steps.of(lengths, device, backwards=bool(number))
            found_states, after = direction(vectors.index_select(0, words), steps, None if states is None else states[number])
            read.append(self.net.dropout(found_states[-1]))
            left.append(after)
        return read, left

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        return "forward", "forward_chance", "backward", "backward_chance", "perplexity"

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """The perplexity of both directions together."""
        return {"perplexity": perplexity((means["forward"] + means["backward"]) / 2)} if {"forward", "backward"} <= set(means) else {}

    @torch.no_grad()
    def preview(self, batch: WordsBatch, limit: int = 4) -> list[Preview]:
        """Held-out rows, read without a memory, and the word that was most probable from the left at each place."""
        tokenizer = self.objective.tokenizer
        guesses = self.net.head.log_prob(self._read(batch, None)[0][0][: sum(batch.lengths[:limit])]).argmax(-1)
        sizes = list(batch.lengths[:limit])
        return [Preview((("text", tokenizer.decode(ids)), ("guessed from the left, word by word", tokenizer.show(guess.tolist()))))
                for ids, guess in zip(batch.forward_targets[: sum(sizes)].split(sizes), guesses.split(sizes), strict=True)]


# --------------------------------------------------------------------------------------------- the entry


def create(config: ElmoConfig, settings: ElmoSettings, context: Context) -> ElmoSystem:
    """Build ELMo with randomly initialized weights and its objective."""
    objective = context.objective("elmo", lambda tokenizer: WordsObjective(tokenizer.fitting(config.vocab_size), config, settings))
    return ElmoSystem(ElmoForLanguageModeling(config), objective)


def adapt(config: ElmoConfig, context: Context) -> ElmoConfig:
    """Take vocabulary size and special ids from the tokenizer; cutoffs beyond the vocabulary are left out."""
    t = context.tokenizer
    if t is None:
        return config
    return replace(config, vocab_size=t.vocab_size, cutoffs=tuple(c for c in config.cutoffs if c < t.vocab_size),
                   eos_token_id=0 if t.eos_id is None else t.eos_id, bos_token_id=t.bos_id)


def _allennlp(c: ElmoConfig) -> tuple[Rule, ...]:
    """The names of bilm-tf's weights, which AllenNLP reads."""
    total = sum(count for _, count in c.filters)
    convolutions = [rule for i, (width, count) in enumerate(c.filters) for rule in (
        Reshape(f"CNN/W_cnn_{i}", f"embed.convolutions.{i}.weight", (1, width, c.embedding_size, count), (count, c.embedding_size, width),
                permute=(3, 2, 1, 0)),
        Rename(f"CNN/b_cnn_{i}", f"embed.convolutions.{i}.bias"))]
    cells = [rule for number, direction in enumerate(("forwards", "backwards")) for rule in layers(c.num_hidden_layers, (
        Gates(f"RNN_{number}/RNN/MultiRNNCell/Cell{{i}}/LSTMCell/W_0",
              (f"{direction}.layers.{{i}}.input_linearity.weight", f"{direction}.layers.{{i}}.state_linearity.weight"), c.hidden_size),
        Gates(f"RNN_{number}/RNN/MultiRNNCell/Cell{{i}}/LSTMCell/B", (f"{direction}.layers.{{i}}.state_linearity.bias",), c.hidden_size),
        Transpose(f"RNN_{number}/RNN/MultiRNNCell/Cell{{i}}/LSTMCell/W_P_0", f"{direction}.layers.{{i}}.state_projection.weight")))]
    return (
        Rename("char_embed", "embed.embed.weight"), *convolutions,
        *layers(c.num_highway_layers, tuple(Passing(tuple(f"CNN_high_{{i}}/{letter}_{part}" for part in ("transform", "carry")),
                                                    f"embed.highways.{{i}}.linear.{ours}", total)
                                            for letter, ours in (("W", "weight"), ("b", "bias")))),
        Transpose("CNN_proj/W_proj", "embed.projection.weight"), Rename("CNN_proj/b_proj", "embed.projection.bias"), *cells,
    )  # fmt: skip


ALLENNLP = Format(
    "allennlp", _allennlp, config_file=OPTIONS, weights_file=FILE, recognises=lambda record: {"lstm", "char_cnn"} <= record.keys(),
    read=lambda record, directory: ElmoConfig(**read_options(record, f"{directory}/{OPTIONS}"), vocab_size=1, cutoffs=()),
    write=lambda net: write_options(net.config),
)

NETS = (
    Net("ElmoForLanguageModeling", ElmoForLanguageModeling, own_format(ElmoForLanguageModeling, ElmoConfig, MODEL_TYPE)),
    Net("Elmo", Elmo, own_format(Elmo, ElmoConfig, MODEL_TYPE), ALLENNLP),
)

CARD = Card(
    title="ELMo",
    paper="Peters, Neumann, Iyyer, Gardner, Clark, Lee, Zettlemoyer. Deep contextualized word representations",
    year=2018,
    url="https://arxiv.org/abs/1802.05365",
    equation=r"\mathcal{L} = -\frac{1}{2T} \sum_{t=1}^{T} \Big( \log p(w_t \mid w_{<t}; \overrightarrow{\theta}) + "
             r"\log p(w_t \mid w_{>t}; \overleftarrow{\theta}) \Big), \qquad "
             r"\mathrm{ELMo}_t = \gamma \sum_{j=0}^{L} s_j\, [\overrightarrow{h}_{t,j}; \overleftarrow{h}_{t,j}]",
    symbols="Both directions share the characters' network and the softmax. A task reads the mean of the layers j, whose weights s (a "
            "softmax) and size γ it learns.",
    masks={},
    reference="the network written out in plain loops; AllenNLP's files of options and weights",
)

FAMILIES = (
    Family(
        name="elmo",
        card=CARD,
        config=ElmoConfig,
        sizes=SIZES,
        adapt=adapt,
        pretraining=Task("the next and the last word, from characters", ElmoSettings, create),
        nets=NETS,
        vocabulary=Vocabulary("word", "plain"),
    ),
)
