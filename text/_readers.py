"""Words as any network of the library reads them: its layers at each word, which a task mixes (`ScalarMix`).

A reader is the data side of that: it makes tensors of words, in the loader's workers. A network that reads characters (ELMo) gives a
vector of each word; one that reads tokens gives that of a word's first token, as BERT's tasks have it (Devlin et al., 2018, section 5.3);
word vectors (word2vec, GloVe, NNLM) are one layer, which is the same in every sentence.
"""

from __future__ import annotations

import copy
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..shared.errors import UserError
from ..shared.system import Companion
from ..shared.tokenizer import Tokenizer
from ..shared.tokenizer.styles import FIRST
from ._characters import different_words
from .elmo import Elmo
from .word_vectors import HasWordVectors

_WORD = re.compile(r"\w+|[^\w\s]")


def words_of(text: str) -> list[str]:
    """The words and the marks of a text."""
    return _WORD.findall(text)


class Source(Protocol):
    """A network that is read and lies beside the one that is trained: a `Companion`, or what the run trains with it."""

    @property
    def net(self) -> Any:
        """The network."""
        ...

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Its tokenizer; None where it lies without one."""
        ...

    def on(self, device: torch.device) -> Any:
        """The network on a device."""
        ...


class Reader(ABC):
    """Makes tensors of words, and the layers of a network of them. Picklable, no weights."""

    width: int
    """Of a layer."""
    layers: int
    """How many there are."""

    @abstractmethod
    def collate(self, sentences: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        """What the network reads, of sentences of T words in all.

        Raises:
            UserError: a sentence does not fit.
        """

    @abstractmethod
    def states(self, trunk: Any, inputs: dict[str, Tensor], lengths: Sequence[int]) -> list[Tensor]:
        """The layers [T, width]."""

    def fits(self, words: Sequence[str]) -> str | None:
        """Why the network cannot read a sentence; None where it can."""
        return None


class OwnReader(Protocol):
    """Makes the tensors of words that a network reads itself. Picklable, no weights."""

    def collate(self, sentences: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        """Of sentences of T words in all."""
        ...


class CharacterReader(Reader):
    """ELMo: each different word once."""

    def __init__(self, trunk: Elmo) -> None:
        self.width, self.layers = 2 * trunk.config.hidden_size, trunk.config.num_hidden_layers + 1
        self.characters_per_token = trunk.config.max_characters_per_token

    def collate(self, sentences: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        """The characters of the different words, and which each word is."""
        return different_words(sentences, self.characters_per_token)[1]

    def states(self, trunk: Any, inputs: dict[str, Tensor], lengths: Sequence[int]) -> list[Tensor]:
        """See `Reader`."""
        return trunk.states(inputs["characters"], lengths, inputs["words"])


class TokenReader(Reader):
    """A network over tokens: framed sentences, padded."""

    def __init__(self, trunk: nn.Module, tokenizer: Tokenizer) -> None:
        config: Any = trunk.config
        self.width = next(int(v) for name in ("hidden_size", "d_model", "n_embd") if isinstance(v := getattr(config, name, None), int))
        self.layers = 1 + next(int(v) for name in ("num_hidden_layers", "n_layer") if isinstance(v := getattr(config, name, None), int))
        self.longest: int | None = next((v for name in ("longest_input", "max_position_embeddings", "n_positions")
                                         if isinstance(v := getattr(config, name, None), int)), None)
        self.tokenizer = tokenizer.fitting(config.vocab_size)
        self.frame = tokenizer.framing.single
        self.before = next(n for n, (token, _) in enumerate(self.frame.parts) if token == FIRST)

    def _pieces(self, words: Sequence[str]) -> list[list[int]]:
        rows = self.tokenizer.encode_batch([f" {word}" for word in words], add_special_tokens=False)
        return [row or [self.tokenizer.unk_id or 0] for row in rows]

    def fits(self, words: Sequence[str]) -> str | None:
        """See `Reader`."""
        length = sum(map(len, self._pieces(words))) + self.frame.specials
        return f"{length} tokens, the network has {self.longest} positions" if self.longest is not None and length > self.longest else None

    def collate(self, sentences: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        """Ids and mask [B, S], and the places [T] of the words' first tokens."""
        rows, firsts = list[list[int]](), list[np.ndarray]()
        for words in sentences:
            pieces = self._pieces(words)
            rows.append(self.frame.ids([token for piece in pieces for token in piece]))
            firsts.append(self.before + np.cumsum([0, *map(len, pieces[:-1])]))
        width = max(map(len, rows))
        ids, keep = np.full((len(rows), width), self.tokenizer.pad_id or 0), np.zeros((len(rows), width), dtype=np.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row)], keep[number, : len(row)] = row, 1
        places = np.concatenate([first + number * width for number, first in enumerate(firsts)])
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(keep), "places": torch.from_numpy(places)}

    def states(self, trunk: Any, inputs: dict[str, Tensor], lengths: Sequence[int]) -> list[Tensor]:
        """See `Reader`."""
        out = trunk(inputs["input_ids"], inputs["attention_mask"], output_hidden_states=True)
        return [state.flatten(0, 1).index_select(0, inputs["places"]) for state in out.hidden_states]


class WordReader(Reader):
    """Vectors of words: of each as it is spelt, else of the same in lower case; zeros of one that is not known."""

    def __init__(self, net: HasWordVectors, tokenizer: Tokenizer) -> None:
        rows, self.width = net.word_vectors().shape
        self.layers, self.tokenizer = 1, tokenizer.fitting(rows)
        self.special = frozenset({*tokenizer.special_ids, *net.special_tokens})

    def collate(self, sentences: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        """The row of each word, [T]; -1 of unknown ones."""
        words = [word for sentence in sentences for word in sentence]
        spelt = self.tokenizer.encode_batch([*words, *(word.lower() for word in words)], add_special_tokens=False)
        rows = [row[0] if len(row) == 1 and row[0] not in self.special else -1 for row in spelt]
        return {"rows": torch.tensor([lower if row < 0 else row for row, lower in zip(rows, rows[len(words):])])}

    def states(self, trunk: Any, inputs: dict[str, Tensor], lengths: Sequence[int]) -> list[Tensor]:
        """See `Reader`."""
        rows = inputs["rows"]
        return [trunk.word_vectors().index_select(0, rows.clamp(min=0)) * (rows >= 0)[:, None]]


def trunk_of(net: Any) -> Any:
    """The part of a network that makes states."""
    return getattr(net, "trunk", net)


def reader_of(source: Source) -> Reader:
    """How a network reads words."""
    trunk = trunk_of(source.net)
    if isinstance(trunk, Elmo):
        return CharacterReader(trunk)
    if not hasattr(getattr(trunk, "config", None), "vocab_size"):
        raise UserError(f"a {type(source.net).__name__} reads no words, and gives no features of them: name a model of texts, such as an "
                        "elmo or a bert")
    if source.tokenizer is None:
        raise UserError(f"the {type(source.net).__name__} lies without a tokenizer, by which it would read words: put the files of its "
                        "tokenizer beside it")
    return WordReader(trunk, source.tokenizer) if isinstance(trunk, HasWordVectors) else TokenReader(trunk, source.tokenizer)


class Trained:
    """A network that is trained with the one that reads it, in place of a `Companion`."""

    def __init__(self, companion: Companion) -> None:
        self._companion = companion
        self.net: Any = copy.deepcopy(companion.net)
        trunk = trunk_of(self.net)
        for parameter in trunk.parameters():
            parameter.requires_grad_(True)
        if getattr(trunk, "pooler", None) is not None:  # no word reads it
            trunk.pooler.requires_grad_(False)
        if isinstance(trunk, HasWordVectors):  # the rest of it made them
            given = list(self.net.parameters())
            read = torch.autograd.grad(trunk.word_vectors().sum(), given, allow_unused=True)
            for parameter, gradient in zip(given, read, strict=True):
                parameter.requires_grad_(gradient is not None)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """See `Source`."""
        return self._companion.tokenizer

    def on(self, device: torch.device) -> Any:
        """The network, which is where the system is."""
        return self.net


def sources_of(companions: Mapping[str, Companion], tuned: bool) -> tuple[dict[str, Source], nn.ModuleDict]:
    """What is read of companions: these, or with `tuned` networks that begin as they are and are trained; and the modules to train."""
    trained = {name: Trained(companion) for name, companion in companions.items()} if tuned else {}
    return {**companions, **trained}, nn.ModuleDict({name: source.net for name, source in trained.items()})


def layers_of(sources: Mapping[str, Source], readers: Mapping[str, Reader], inputs: Mapping[str, dict[str, Tensor]], lengths: Sequence[int],
              like: Tensor, learning: bool) -> dict[str, Sequence[Tensor]]:
    """The layers of each network that a reader is for, on the device of `like`; with `learning` they have gradients."""
    found: dict[str, Sequence[Tensor]] = {}
    for name, reader in readers.items():
        trunk = trunk_of(sources[name].on(like.device))
        if like.dtype == torch.float64:  # a companion comes in fp32
            trunk = trunk.double()
        with torch.set_grad_enabled(learning and torch.is_grad_enabled()):
            found[name] = reader.states(trunk, inputs[name], lengths)
    return found


def need_sources(sources: Mapping[str, Source], reads: Sequence[str]) -> None:
    """Refuse a network beside which the others do not lie that it reads."""
    if lacking := [name for name in reads if name not in sources]:
        raise UserError(f"this network reads another one ({', '.join(lacking)}), which does not lie beside it: load the directory that it "
                        "was exported to, with the directories in it")
