"""MASS. Song, Tan, Qin, Lu and Liu, "MASS: Masked Sequence to Sequence Pre-training for Language Generation", 2019.
https://arxiv.org/abs/1905.02450

    place         0    1    2    3    4    5    6    7
    text         <s>  x1   x2   x3   x4   x5   x6   </s>
    encoder      <s>  x1   [M]  [M]  [M]  [M]  x6   </s>   --> memory of places 0, 1, 6, 7
    decoder            x1   x2   x3   x4                       stands at places 1 to 4, sees the memory
    predicts           x2   x3   x4   x5

One span of half the text is hidden from the encoder and written by the decoder, which reads nothing else of the text: what it needs beside
the span it must take from the encoder.

Faithful: of the paper, section 3: the span, half of the tokens long, and the decoder's input at its places in the text. Where the authors'
two codes differ, it is that of unsupervised translation (microsoft/MASS, Unsupervised/src/trainer.py):

                              unsupervised translation (here)               summarisation (MASS-summarization)
    where the span begins     1/5 at the front, 1/5 at the end, else        anywhere
                              anywhere
    its tokens, each alone    80 % masked, 15 % random, 5 % kept            80 % masked, 10 % random, 10 % kept
    masked places             hidden from the cross-attention               seen by it
    span                      one of the text, half of it, rounded          one in each block of 64 tokens, rounded down
    closing token             can be in the span                            can be in the span
    word vectors              as they are                                   times the square root of the width
    languages                 a vector for each, added to every token       none

The first token is never hidden. k = 1 would be a masked language model, k = all a language model (section 3.2): `span_ratio`.

Translation: with `languages`, each has a vector on both sides. A text's is its class (`pack --label-field`), `language` of its json, or
`objective.language`; fine-tuned on pairs, `source_language` and `target_language`.

Files: without languages the network is BART's, with other positions in pretraining only. It is written as transformers'
`BartForConditionalGeneration`, and loads there; `languages` in its config.json, which transformers does not read, says here that it is
MASS. With languages it has a format of ours, `polymodal`.

Deviations, each with its reason:
* Half of a text is half of its own tokens; the code takes half of the longest one of a batch, so that its rows are alike. Here texts are
  packed, and a text does not depend on its neighbours.
* The network is BART's: its norms have an epsilon of 1e-5 (1e-12 in the code), and one table of words serves both sides and the output,
  which has no bias. So it is computed as fast, and transformers loads it.
* Random tokens are no special tokens.
* Longer documents are cut where a text is full.
* Back-translation is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..shared.attention.mask import Mask
from ..shared.convert import Rename, Rule
from ..shared.corrupt import replace_places
from ..shared.documents import documents
from ..shared.errors import UserError, raise_problems
from ..shared.family import Card, Context, Family, Net, Task, Vocabulary, or_our_own, transformers
from ..shared.generation_config import defaults_files, read_defaults
from ..shared.packed import starts
from ..shared.sample import Sample
from ..shared.system import Preview
from ..shared.tokenizer import Tokenizer
from ..text.framing import longest
from . import bart
from .bart import BartConfig, BartEmbedding, BartForConditionalGeneration, BartModel
from .languages import InLanguages, LanguageBatch, LanguageExample, Languages, between, packed_languages
from .teacher_forcing import Seq2SeqBatch, Seq2SeqObjective, Seq2SeqSystem, SmoothingSettings
from .text2text import Text2TextObjective, Text2TextSettings


@dataclass(frozen=True, kw_only=True)
class MassConfig(BartConfig):
    """transformers' `BartConfig` with the positions of both codes, and `languages`."""

    max_position_embeddings: int = 512
    """The longest text and the longest target, in tokens."""
    attention_dropout: float = 0.1
    """Dropout of the attention weights."""
    decoder_start_token_id: int = 0
    """Id the decoder starts from, the first one of every text."""
    languages: tuple[str, ...] = ()
    """Names of the languages, each with a vector on both sides; none, or at least two."""

    def problems(self) -> list[str]:
        """What is wrong with the fields, alone and together."""
        found = super().problems()
        if len(self.languages) == 1 or len(set(self.languages)) < len(self.languages) or "" in self.languages:
            found.append(f"languages are {list(self.languages)}, expected none, or at least two different names")
        return found


_LARGE: dict[str, Any] = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in (("layers", 6),
                                                                                                         ("attention_heads", 8))}
SIZES: dict[str, dict[str, Any]] = {"tiny": bart.SIZES["tiny"], "base": bart.SIZES["base"], "large": _LARGE}
"""`base` is that of the summarisation code, `large` the paper's model for translation."""


# ---------------------------------------------------------------------------------------------- networks


class MassEmbedding(BartEmbedding):
    """BART's, and vectors of languages."""

    def __init__(self, config: MassConfig) -> None:
        super().__init__(config, type_vocab_size=len(config.languages))
        self.languages = config.languages

    def forward(
        self, input_ids: Tensor, position_ids: Tensor | None = None, token_type_ids: Tensor | None = None, offset: int = 0
    ) -> Tensor:
        """Embed tokens [B, S]; `token_type_ids` [B or 1, S or 1] are the languages. See `TokenEmbedding.forward`."""
        if token_type_ids is None:
            raise UserError(f"the model has the languages {', '.join(self.languages)}: say which one a text is in and which one is to be "
                            "written (`polymodal translate`, in Python `net.between(source, target)`)")
        return super().forward(input_ids, position_ids, token_type_ids, offset)


class MassForConditionalGeneration(BartForConditionalGeneration):
    """BART's network with languages."""

    def __init__(self, config: MassConfig) -> None:
        super().__init__(config, BartModel(config, MassEmbedding))

    @property
    def languages(self) -> tuple[str, ...]:
        """Their names."""
        return self.config.languages

    def between(self, source: str, target: str) -> InLanguages:
        """The network for texts in one language, which it writes in another."""
        return between(self, self.languages, source, target)


def build(config: MassConfig) -> BartForConditionalGeneration:
    """The network of a config; without languages it is BART's."""
    return MassForConditionalGeneration(config) if config.languages else BartForConditionalGeneration(config)


# ------------------------------------------------------------------------------------------ the data side


@dataclass(frozen=True)
class MassSettings(SmoothingSettings):
    """What of the objective can be set."""

    max_length: int | None = None
    """Tokens of a text, special ones included; longer documents are cut into several. None takes the model's positions."""
    span_ratio: float = 0.5
    """Share of a text that the span has."""
    front_prob: float = 0.2
    """Probability that the span stands at the front of the text, behind its first token."""
    end_prob: float = 0.2
    """Probability that it stands at the end; otherwise it stands anywhere."""
    replaced_by_mask: float = 0.8
    """Share of the span's tokens that become mask tokens in the encoder's input."""
    replaced_at_random: float = 0.15
    """Share of them that become random tokens; the rest stays."""
    language: str = ""
    """Language of texts that do not say theirs, where the model has languages."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        problems = [f"{name} is {getattr(self, name)}, expected a share from 0 to 1"
                    for name in ("span_ratio", "front_prob", "end_prob", "replaced_by_mask", "replaced_at_random")
                    if not 0 <= getattr(self, name) <= 1]
        for one, other in (("front_prob", "end_prob"), ("replaced_by_mask", "replaced_at_random")):
            if getattr(self, one) + getattr(self, other) > 1:
                problems.append(f"{one} and {other} are {getattr(self, one)} and {getattr(self, other)}, expected a sum of at most 1")
        if self.max_length is not None and self.max_length < 8:
            problems.append(f"max_length is {self.max_length}, expected at least 8 tokens")
        raise_problems([*problems, *self.smoothing_problems()])


@dataclass(frozen=True, slots=True, kw_only=True)
class MassExample(LanguageExample):
    """A text with a hidden span, which is the target."""

    before: int
    """The token before the span, which the decoder reads first."""
    place: int
    """Its place in the text."""


@dataclass(kw_only=True)
class MassBatch(LanguageBatch):
    """Packed texts, and their hidden spans."""

    seen: Tensor
    """int64 [K]: the places of the row that the decoder sees, all but the masked ones."""
    seen_lengths: tuple[int, ...]
    """How many of each text, N numbers with sum K."""


class MassObjective(Seq2SeqObjective):
    """Texts with a hidden span.

    Args:
        tokenizer: with tokens for padding, masking, and both ends of a text.
        settings: which span, and what becomes of it.
        max_length: tokens of a text, special ones included.
        languages: of the network.
    """

    def __init__(self, tokenizer: Tokenizer, settings: MassSettings, max_length: int, languages: Languages) -> None:
        (self.mask_id,) = tokenizer.need("masked spans", "mask")
        super().__init__(tokenizer, first_token(tokenizer))
        self.settings = settings
        self.max_length = max_length
        self.languages = languages
        self.words = np.setdiff1d(np.arange(tokenizer.vocab_size), list(tokenizer.special_ids))

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterator[MassExample]:
        """Yield the pieces of a text, or of each document of a row."""
        room = self.max_length - self.specials
        language = self.languages.of(sample, "language", self.settings.language)
        for document in documents(sample, self.tokenizer):
            for begin in range(0, len(document), room):
                ids, s = self.framed(document[begin:begin + room]), self.settings
                span = hidden_span(len(ids), s.span_ratio, s.front_prob, s.end_prob, rng)
                noisy = replace_places(ids, np.arange(*span), rng, mask_id=self.mask_id, words=self.words,
                                       replaced_by_mask=s.replaced_by_mask, replaced_at_random=s.replaced_at_random)
                yield MassExample(noisy.ids, noisy.targets, language, language, before=int(ids[span[0] - 1]), place=span[0] - 1)

    def collate(self, examples: list[MassExample]) -> MassBatch:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Pack texts, and spans at the places that they have in their texts, side by side."""
        return collate_spans(examples, self.mask_id)


def collate_spans(examples: Sequence[MassExample], mask_id: int) -> MassBatch:
    """The batch of texts whose masked places hold `mask_id`."""
    plain = packed_languages(examples, mask_id)
    plain.decoder_input_ids[0, starts(plain.decoder_lengths)] = torch.tensor([e.before for e in examples])
    places = torch.from_numpy(np.repeat(np.array([e.place for e in examples]), plain.decoder_lengths))
    visible = [e.input_ids != mask_id for e in examples]
    return MassBatch(
        **{f.name: getattr(plain, f.name) for f in fields(plain) if f.name != "decoder_position_ids"},
        decoder_position_ids=plain.decoder_position_ids + places,
        seen=torch.from_numpy(np.flatnonzero(np.concatenate(visible))),
        seen_lengths=tuple(int(v.sum()) for v in visible),
    )


def first_token(tokenizer: Tokenizer) -> int:
    """The special token that every text begins with, and a decoder starts from."""
    first = tokenizer.framing.single.parts[0][0]
    if first < 0:
        raise UserError("MASS needs a special token before each text, and this tokenizer has none: train one with --style roberta")
    return first


def hidden_span(length: int, ratio: float, front_prob: float, end_prob: float, rng: np.random.Generator) -> tuple[int, int]:
    """Begin and end of the span of a text of `length` tokens, of which the first is never hidden."""
    size = min(max(round(length * ratio), 1), length - 1)
    last = length - size
    where = rng.random()
    if where < front_prob:
        begin = 1
    elif where < front_prob + end_prob:
        begin = last
    else:
        begin = int(rng.integers(1, last + 1))
    return begin, begin + size


@dataclass(frozen=True)
class MassText2TextSettings(Text2TextSettings):
    """What of the objective can be set."""

    source_language: str = ""
    """Language of texts that do not say theirs, where the model has languages."""
    target_language: str = ""
    """Language of targets that do not say theirs."""


class MassText2TextObjective(Text2TextObjective):
    """Pairs of texts with their languages.

    Args:
        tokenizer: the vocabulary.
        settings: prefix, lengths, languages.
        languages: of the network.
        positions: of the network.
    """

    def __init__(self, tokenizer: Tokenizer, settings: MassText2TextSettings, languages: Languages, positions: int) -> None:
        super().__init__(tokenizer, settings, first_token(tokenizer), positions)
        self.default = settings
        self.languages = languages

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterator[LanguageExample]:
        """Yield the one example of a sample."""
        languages = [self.languages.of(sample, key, getattr(self.default, key)) for key in ("source_language", "target_language")]
        yield LanguageExample(*self.pair(sample), *languages)

    def collate(self, examples: list[LanguageExample]) -> LanguageBatch:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Pack texts, and targets, side by side."""
        return packed_languages(examples, self.start_id)


# ------------------------------------------------------------------------------------------ the loss side


class MassText2TextSystem(Seq2SeqSystem):
    """MASS that learns to answer texts with texts, perhaps in another language."""

    def states(self, batch: Seq2SeqBatch) -> Tensor:
        """The decoder's states [T, D]; what is masked in the texts is hidden from it."""
        assert isinstance(batch, LanguageBatch)
        trunk, lengths = self.net.trunk, batch.lengths
        memory = trunk.encode(batch.input_ids, position_ids=batch.position_ids, token_type_ids=batch.token_type_ids, lengths=lengths)
        if isinstance(batch, MassBatch):
            memory, lengths = memory.index_select(1, batch.seen), batch.seen_lengths
        return trunk.decode(batch.decoder_input_ids, memory, decoder_position_ids=batch.decoder_position_ids, lengths=batch.decoder_lengths,
                            decoder_token_type_ids=batch.decoder_token_type_ids, memory_lengths=lengths)[0]

    def writer(self, batch: Seq2SeqBatch, count: int) -> nn.Module:
        """The network, in the languages of the first texts."""
        assert isinstance(batch, LanguageBatch)
        if batch.token_type_ids is None or batch.decoder_token_type_ids is None:
            return self.net
        first = [ids[0, starts(lengths)[:count]][:, None] for ids, lengths in (
            (batch.token_type_ids, batch.lengths), (batch.decoder_token_type_ids, batch.decoder_lengths))]
        return InLanguages(self.net, *first)


class MassSystem(MassText2TextSystem):
    """MASS's pretraining: the hidden span is written."""

    captions = ("text", "span", "guesses")

    @torch.no_grad()
    def preview(self, batch: Seq2SeqBatch, limit: int = 4) -> list[Preview]:
        """Texts with their spans, and the most probable token at each place of a span, behind its true ones."""
        guesses = self.net.head(self.states(batch)).argmax(-1).split(list(batch.decoder_lengths))
        parts = batch.input_ids[0].split(list(batch.lengths)), batch.targets.split(list(batch.decoder_lengths)), guesses
        return [Preview(tuple((name, self.objective.readable(ids.cpu().numpy())) for name, ids in zip(self.captions, row)))
                for row, _ in zip(zip(*parts), range(limit))]


# --------------------------------------------------------------------------------------------- the entry


def _languages(config: MassConfig, context: Context, **settings: str) -> Languages:
    found = Languages(config.languages, context.classes)
    found.check(**settings)
    return found


def create(config: MassConfig, settings: MassSettings, context: Context) -> MassSystem:
    """Build MASS with randomly initialized weights and its objective."""
    bart.without_source(config, context)
    languages = _languages(config, context, language=settings.language)

    def objective(tokenizer: Tokenizer) -> MassObjective:
        return MassObjective(tokenizer.fitting(config.vocab_size), settings, longest(config, settings.max_length), languages)

    return MassSystem(build(config), context.objective("mass", objective), settings.label_smoothing)


def create_text2text(config: MassConfig, settings: MassText2TextSettings, context: Context) -> MassText2TextSystem:
    """Build MASS for pairs of texts."""
    bart.without_source(config, context)
    languages = _languages(config, context, source_language=settings.source_language, target_language=settings.target_language)

    def objective(tokenizer: Tokenizer) -> MassText2TextObjective:
        return MassText2TextObjective(tokenizer.fitting(config.vocab_size), settings, languages, config.longest_input)

    return MassText2TextSystem(build(config), context.objective("text2text", objective), settings.label_smoothing)


def adapt(config: MassConfig, context: Context) -> MassConfig:
    """Take vocabulary size and special ids from the tokenizer; the decoder starts from what every text begins with."""
    config = bart.adapt(config, context)
    t = context.tokenizer
    return config if t is None else replace(config, decoder_start_token_id=first_token(t))


def _rules(config: MassConfig) -> Sequence[Rule]:
    rules = bart.NETS[0].format("transformers").rules(config)
    if not config.languages:
        return rules
    return (*rules, *(Rename(f"model.{side}.embed_languages.weight", f"trunk.{ours}.token_type.weight")
                      for side, ours in (("encoder", "embed"), ("decoder", "decoder_embed"))))


def _beyond(config: MassConfig) -> str:
    return f"languages ({', '.join(config.languages)})" if config.languages else ""


def _is_mass(record: Mapping[str, Any]) -> bool:
    return record.get("model_type") == "bart" and record.get("architectures") == ["BartForConditionalGeneration"] and "languages" in record


NETS = (or_our_own(
    Net("BartForConditionalGeneration", build,
        replace(transformers(_rules, files=defaults_files, finish=read_defaults), recognises=_is_mass)),
    MassConfig, "polymodal-mass", _beyond),)

CARD = Card(
    title="MASS",
    paper="Song, Tan, Qin, Lu, Liu. MASS: Masked Sequence to Sequence Pre-training for Language Generation",
    year=2019,
    url="https://arxiv.org/abs/1905.02450",
    equation=r"\mathcal{L} = -\frac{1}{v-u+1} \sum_{t=u}^{v} \log p_\theta(x_t \mid x_{u-1}, \ldots, x_{t-1}, \tilde{x})",
    symbols="The span from u to v, half of the text, is hidden in the text x with a tilde: 80 % of it are mask tokens, which the decoder "
            "does not see, 15 % random tokens and 5 % are kept. The mean is over the whole global batch.",
    masks={"Encoder": Mask(keep=torch.arange(16)[None] < 13), "Decoder": Mask(causal=True),
           "Decoder to encoder": Mask(keep=(torch.arange(16)[None] < 4) | (torch.arange(16)[None] > 11))},
    reference="transformers.BartForConditionalGeneration, with the decoder's positions",
)

FAMILIES = (
    Family(
        name="mass",
        card=CARD,
        config=MassConfig,
        sizes=SIZES,
        adapt=adapt,
        pretraining=Task("a hidden span", MassSettings, create),
        tasks=(Task("a text from a text", MassText2TextSettings, create_text2text, "text2text",
                    architecture="BartForConditionalGeneration"),),
        nets=NETS,
        heads=("head",),
        model_type="bart",
        vocabulary=Vocabulary("byte-bpe", "roberta"),
    ),
)
