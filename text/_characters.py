"""Words as characters, and a network that reads a vector off them (Kim et al., 2016, https://arxiv.org/abs/1508.06615).

A word is its UTF-8 bytes between two marks, filled up to a fixed length; a sentence's ends are words of one character of their own. That
is the alphabet of ELMo (bilm-tf and AllenNLP): 0 to 255 are bytes, then begin and end of a sentence, begin and end of a word, filling.
AllenNLP adds 1 to all of them, as 0 masks words there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..shared.block import activation as activation_called

BEGIN, END, WORD_BEGIN, WORD_END, FILLING = range(256, 261)
ALPHABET = 261
SHORTEST = 3
"""Places of the shortest row that holds a word: its marks, and one byte."""


def character_ids(words: Sequence[str], length: int) -> np.ndarray:
    """The characters of words, int16 [N, length]; a word of more than length - 2 bytes loses its end."""
    found = np.full((len(words), length), FILLING, dtype=np.int16)
    for row, word in zip(found, words, strict=True):
        data = np.frombuffer(word.encode("utf-8", "ignore")[: length - 2], dtype=np.uint8)
        row[0], row[1 : 1 + len(data)], row[1 + len(data)] = WORD_BEGIN, data, WORD_END
    return found


def different_words(sentences: Sequence[Sequence[str]], length: int) -> tuple[list[str], dict[str, Tensor]]:
    """The different words of sentences, their `characters` int16 [U, length], and which of them each word is: `words` [T]."""
    places: dict[str, int] = {}
    words = [places.setdefault(word, len(places)) for words in sentences for word in words]
    return list(places), {"characters": torch.from_numpy(character_ids(list(places), length)), "words": torch.tensor(words)}


def end_ids(length: int) -> np.ndarray:
    """The begin and the end of a sentence as words, int16 [2, length]."""
    found = np.full((2, length), FILLING, dtype=np.int16)
    found[:, 0], found[:, 1], found[:, 2] = WORD_BEGIN, (BEGIN, END), WORD_END
    return found


class Highway(nn.Module):
    """A layer whose input partly passes by (Srivastava et al., 2015, https://arxiv.org/abs/1505.00387): y = g x + (1 - g) φ(W x + b).

    Args:
        size: width.
        activation: φ.
    """

    def __init__(self, size: int, activation: str) -> None:
        super().__init__()
        self.linear = nn.Linear(size, 2 * size)
        self.activation = activation_called(activation)
        nn.init.normal_(self.linear.weight, std=size**-0.5)
        with torch.no_grad():
            self.linear.bias[:size].zero_()
            self.linear.bias[size:].fill_(1.0)  # begins by letting pass

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, size] to the same."""
        made, gate = self.linear(x).chunk(2, -1)
        return torch.lerp(self.activation(made), x, gate.sigmoid())


class CharacterCNN(nn.Module):
    """A vector for each word: convolutions over its characters, their maxima, highway layers, a projection.

    Args:
        filters: (width, count) of each convolution.
        embedding_size: width of a character's vector.
        output_size: D; None: there is no projection, and D is the number of convolutions.
        num_highway_layers: layers between the maxima and the projection.
        activation: of the maxima and of the highway layers.
    """

    no_decay = ("embed.weight",)

    def __init__(self, filters: Sequence[tuple[int, int]], embedding_size: int, output_size: int | None, *, num_highway_layers: int = 2,
                 activation: str = "relu") -> None:
        super().__init__()
        self.embed = nn.Embedding(ALPHABET, embedding_size)
        self.convolutions = nn.ModuleList(nn.Conv1d(embedding_size, count, width) for width, count in filters)
        total = sum(count for _, count in filters)
        self.highways = nn.ModuleList(Highway(total, activation) for _ in range(num_highway_layers))
        self.output_size = total if output_size is None else output_size
        self.projection = nn.Identity() if output_size is None else nn.Linear(total, output_size)
        self.activation = activation_called(activation)
        self.widest = max(width for width, _ in filters)
        self.reset()

    def reset(self) -> None:
        """Draw the weights as bilm-tf does."""
        nn.init.uniform_(self.embed.weight, -1.0, 1.0)
        for part in self.convolutions:
            assert isinstance(part, nn.Conv1d) and part.bias is not None
            nn.init.uniform_(part.weight, -0.05, 0.05)
            nn.init.zeros_(part.bias)
        if isinstance(self.projection, nn.Linear):
            nn.init.normal_(self.projection.weight, std=self.projection.in_features**-0.5)
            nn.init.zeros_(self.projection.bias)

    def forward(self, ids: Tensor) -> Tensor:
        """Map the characters of words [N, length] to vectors [N, D].

        A window of filling alone gives the same at every place. So what lies behind the longest word and one such window is not read.
        """
        if ids.device.type == "cpu" and type(ids) is Tensor and len(ids):  # elsewhere looking would cost more than it saves
            longest = int((ids != FILLING).sum(1).max())
            ids = ids[:, : longest + self.widest]
        x = self.embed(ids.int()).transpose(1, 2)
        read = torch.cat([convolution(x).max(-1)[0] for convolution in self.convolutions], -1)
        x = self.activation(read)
        for layer in self.highways:
            x = layer(x)
        return self.projection(x)
