"""Languages of an encoder-decoder: a vector for each, added to every token of a text in it (Conneau and Lample 2019; MASS).

The language of a text and that of its target go with an example, and through the batch to both embeddings. In use, `InLanguages` is the
network between two of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from ..shared.errors import UserError, raise_problems
from ..shared.generation_config import defaults_of
from ..shared.sample import Sample
from .encoder_decoder import EncoderDecoderLM, MemoryDecoder
from .teacher_forcing import Seq2SeqBatch, Seq2SeqExample, packed_pairs


@dataclass(frozen=True, slots=True)
class LanguageExample(Seq2SeqExample):
    """A text and its target, with the numbers of their languages."""

    language: int | None = None
    """Of the text; None where the network has no languages."""
    target_language: int | None = None
    """Of the target."""


@dataclass(kw_only=True)
class LanguageBatch(Seq2SeqBatch):
    """Packed texts and targets with their languages."""

    token_type_ids: Tensor | None = None
    """[1, S]: the language of each token; None where the network has no languages."""
    decoder_token_type_ids: Tensor | None = None
    """[1, T]"""


def packed_languages(examples: Sequence[LanguageExample], start_id: int) -> LanguageBatch:
    """`packed_pairs` with the languages."""
    plain = packed_pairs(examples, start_id)
    batch = LanguageBatch(**{f.name: getattr(plain, f.name) for f in fields(plain)})
    if examples[0].language is not None:
        batch.token_type_ids = _each([e.language for e in examples], batch.lengths)
        batch.decoder_token_type_ids = _each([e.target_language for e in examples], batch.decoder_lengths)
    return batch


def _each(numbers: Sequence[int | None], lengths: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.repeat(np.array(numbers, dtype=np.int64), lengths))[None]


class Languages:
    """The languages of a network, by name, and those of samples.

    Args:
        names: in the order of their numbers; none where the network has none.
        classes: of the data set: where these are languages, the class of a sample is its language.
    """

    def __init__(self, names: Sequence[str], classes: Sequence[str] | None = None) -> None:
        self.names = tuple(names)
        self.classes = tuple(classes) if classes is not None and set(classes) <= set(names) else None

    def check(self, **settings: str) -> None:
        """Refuse settings that name a language that is not there."""
        known = f"one of {', '.join(self.names)}" if self.names else "none, as the model has no languages (model.languages)"
        raise_problems([f"objective.{name} is {value!r}, expected {known}" for name, value in settings.items()
                        if value and value not in self.names])

    def of(self, sample: Sample, key: str, default: str) -> int | None:
        """The number of a sample's language: `key` of its json, else its class, else the `default`; None where there are no languages."""
        if not self.names:
            return None
        name = sample.json().get(key) if "json" in sample.fields else None
        if name is None and self.classes is not None and "cls" in sample.fields:
            number = sample.label()
            name = self.classes[number] if 0 <= number < len(self.classes) else f"number {number}"
        name = name or default
        if name not in self.names:
            said = f"the language {name!r}" if name else f"no language: expected {key!r} in json, a class, or objective.{key}"
            raise sample.bad(f"{said}; the model has {', '.join(self.names)}")
        return self.names.index(name)


@runtime_checkable
class Multilingual(Protocol):
    """A network that reads and writes in languages, and must be told which."""

    @property
    def languages(self) -> tuple[str, ...]:
        """Their names."""
        ...

    def between(self, source: str, target: str) -> InLanguages:
        """The network for texts in one language, which it writes in another."""
        ...


class InLanguages(nn.Module):
    """A network that reads texts in given languages and writes in others.

    Args:
        net: with languages.
        language: of the texts, int64 [B, 1], or [1, 1] for all.
        target_language: of what is written, as many.
    """

    def __init__(self, net: EncoderDecoderLM, language: Tensor, target_language: Tensor) -> None:
        super().__init__()
        self.net = net
        self.config = net.config
        self.decoder_info = net.decoder_info
        self.generation_defaults = defaults_of(net)
        self.language = language
        self.target_language = target_language

    def decoder_for(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> MemoryDecoder:
        """See `EncoderDecoderLM.decoder_for`."""
        return MemoryDecoder(self.net, input_ids, attention_mask, token_type_ids=self.language,
                             decoder_token_type_ids=self.target_language)


def between(net: EncoderDecoderLM, names: Sequence[str], source: str, target: str) -> InLanguages:
    """The network with the languages `names` for texts in `source`, which it writes in `target`."""
    for name in (source, target):
        if name not in names:
            raise UserError(f"the language is {name!r}, expected one of {', '.join(names)}" if name else
                            f"the model has the languages {', '.join(names)}: say which one the text is in, and which is to be written")
    place = next(net.parameters()).device
    return InLanguages(net, *(torch.tensor([[names.index(name)]], device=place) for name in (source, target)))
