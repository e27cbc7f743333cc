"""ELMo beside the same network with torch's own modules: `nn.LSTM` with a projection for each layer and direction, padded rows, a CNN that
reads every word where it stands. `nn.LSTM` has no limits on cells and states, so neither side has any.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...shared.convert import Alias, Rename, Rule, affine, layers
from ...shared.loss import IGNORE
from ...shared.system import System
from ...text._characters import FILLING, character_ids, end_ids
from ...text.elmo import ElmoConfig, WordsBatch
from .pairing import Loss, Pairing, TrainSetup, copy_weights, padded

LETTERS = np.frombuffer(b"etaoinshrdlucmfwygpbvkxqjz", dtype=np.uint8)


def word_lengths(count: int, rng: np.random.Generator) -> np.ndarray:
    """Letters of words: about 7 on average, up to 16."""
    return np.clip(rng.poisson(6, count) + 1, 1, 16)


def elmo_batch(setup: TrainSetup) -> WordsBatch:
    """Sentences of words whose frequency falls with their rank, as in a text (Zipf), so that many stand there more than once."""
    config: ElmoConfig = setup.config
    rng = np.random.default_rng(setup.seed)
    chances = 1.0 / np.arange(1, config.vocab_size)
    ids = 1 + rng.choice(config.vocab_size - 1, setup.tokens, p=chances / chances.sum())  # no 0: no text ends within a row
    different, place = np.unique(ids, return_inverse=True)
    words = ["".join(chr(c) for c in rng.choice(LETTERS, n)) for n in word_lengths(len(different), rng)]
    width = config.max_characters_per_token
    characters = np.concatenate([end_ids(width), character_ids(words, width)])
    lengths = np.array(setup.lengths)
    first = np.zeros(len(ids), dtype=bool)
    first[np.cumsum(lengths) - lengths] = True
    ahead = np.roll(place + 2, 1)
    ahead[first] = len(characters) + np.arange(len(lengths))
    tensors = [torch.from_numpy(array) for array in (characters, ahead, ids, (place + 2)[~first], np.roll(ids, 1)[~first])]
    names = ("characters", "forward_words", "forward_targets", "backward_words", "backward_targets")
    total = setup.tokens
    return WordsBatch(counts={"targets": total, "backward_targets": total - len(lengths)}, tokens=total, lengths=setup.lengths,
                      last=torch.zeros(len(lengths), dtype=torch.long), **dict(zip(names, tensors, strict=True)))  # fmt: skip


class PlainElmo(nn.Module):
    """ELMo as it is written with torch's modules."""

    def __init__(self, config: ElmoConfig) -> None:
        super().__init__()
        width, total = config.embedding_size, sum(count for _, count in config.filters)
        self.characters = nn.Embedding(FILLING + 1, width)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, count, size) for size, count in config.filters)
        self.highways = nn.ModuleList(nn.Linear(total, 2 * total) for _ in range(config.num_highway_layers))
        self.projection = nn.Linear(total, config.hidden_size)
        self.forwards, self.backwards = (
            nn.ModuleList(nn.LSTM(config.hidden_size, config.cell_size, batch_first=True, proj_size=config.hidden_size)
                          for _ in range(config.num_hidden_layers)) for _ in range(2))
        self.out = nn.Linear(config.hidden_size, config.vocab_size)
        self.dropout = nn.Dropout(config.dropout)

    def vectors(self, ids: Tensor) -> Tensor:
        """Words [..., characters] as [..., D]."""
        x = self.characters(ids.flatten(0, -2)).transpose(1, 2)
        x = torch.cat([convolution(x).amax(-1) for convolution in self.convolutions], -1).relu()
        for highway in self.highways:
            made, gate = highway(x).chunk(2, -1)
            gate = gate.sigmoid()
            x = gate * x + (1 - gate) * made.relu()
        return self.projection(x).unflatten(0, ids.shape[:-1])

    def loss(self, layers: nn.ModuleList, x: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of one direction, of words [B, S, D] in its order."""
        for number, layer in enumerate(layers):
            read = self.dropout(x)
            x = layer(read)[0]
            x = x + read if number else x
        return F.cross_entropy(self.out(self.dropout(x)).flatten(0, 1), targets.flatten())

    def forward(self, ids: Tensor, ahead: Tensor, back: Tensor, turned: Tensor) -> Tensor:
        """The mean of both directions' losses.

        Args:
            ids: characters [B, S + 1, C] of the begin of a sentence and its words.
            ahead: targets [B, S].
            back: targets [B, S - 1] of the words from the last one on.
            turned: [B, S - 1], where these words stand.
        """
        x = self.vectors(ids)
        backwards = x.gather(1, turned[:, :, None].expand(-1, -1, x.shape[-1]))
        return (self.loss(self.forwards, x[:, :-1], ahead) + self.loss(self.backwards, backwards, back)) / 2


def rules(config: ElmoConfig) -> Sequence[Rule]:
    """Our names to this module's."""
    names = (("weight_ih_l0", "input_linearity.weight"), ("weight_hh_l0", "state_linearity.weight"),
             ("bias_hh_l0", "state_linearity.bias"), ("weight_hr_l0", "state_projection.weight"))
    cell = [rule for d in ("forwards", "backwards") for rule in (
        *(Rename(f"{d}.{{i}}.{theirs}", f"trunk.{d}.layers.{{i}}.{ours}") for theirs, ours in names),
        Alias(f"{d}.{{i}}.bias_ih_l0", f"{d}.{{i}}.bias_hh_l0", written=True))]  # it has a second bias, and this the gradient of the first
    return (
        Rename("characters.weight", "trunk.embed.embed.weight"), *affine("projection", "trunk.embed.projection"),
        *layers(len(config.filters), affine("convolutions.{i}", "trunk.embed.convolutions.{i}")),
        *layers(config.num_highway_layers, affine("highways.{i}", "trunk.embed.highways.{i}.linear")),
        *layers(config.num_hidden_layers, cell), Rename("out.weight", "head.weights.0"), Rename("out.bias", "head.biases.0"),
    )  # fmt: skip


def elmo_peer(setup: TrainSetup, ours: System) -> tuple[nn.Module, Loss]:
    """The same sentences, padded."""
    with torch.device(setup.device):
        module = PlainElmo(setup.config)
    copy_weights(ours.net, module, rules(setup.config))
    for layer in (*module.forwards, *module.backwards):
        cells, bias = setup.config.cell_size, cast(Tensor, layer.bias_ih_l0).data
        bias.zero_()[cells : 2 * cells] = 1.0  # what we add to the forget gate
    batch, lengths = elmo_batch(setup), setup.lengths
    ids = [row.tolist() for row in batch.forward_targets.split(list(lengths))]
    # the word before each is what the forward model reads, but where a row begins; a row's last one the backward model reads
    read = {int(i): int(w) for i, w in zip(batch.forward_targets[:-1], batch.forward_words[1:]) if int(w) < len(batch.characters)}
    read |= {row[-1]: int(w) for row, w in zip(ids, batch.backward_words[torch.tensor(np.cumsum([n - 1 for n in lengths]) - 1)])}
    longest = max(lengths)
    rows = torch.full((len(lengths), longest + 1), 1)
    rows[:, 0] = 0
    for number, row in enumerate(ids):
        rows[number, 1 : len(row) + 1] = torch.tensor([read[i] for i in row])
    ahead = padded(batch.forward_targets, lengths, IGNORE)
    back = nn.utils.rnn.pad_sequence([torch.tensor(row[-2::-1]) for row in ids], batch_first=True, padding_value=IGNORE)
    turned = nn.utils.rnn.pad_sequence([torch.arange(n, 1, -1) for n in lengths], batch_first=True)
    given = [tensor.to(setup.device) for tensor in (batch.characters.long()[rows], ahead, back, turned)]
    return module, lambda m: m(*given)


def elmo_flops(setup: TrainSetup) -> float:
    """Useful operations of a step; see `pairing`. The CNN and the highways for each word where it stands."""
    c: ElmoConfig = setup.config
    total = sum(count for _, count in c.filters)
    lengths = word_lengths(setup.tokens, np.random.default_rng(0)) + 2
    convolved = c.embedding_size * sum(width * count for width, count in c.filters) * float(lengths.mean())
    word = convolved + c.num_highway_layers * 2 * total**2 + total * c.hidden_size
    cell = c.num_hidden_layers * (8 * c.cell_size * c.hidden_size + c.cell_size * c.hidden_size) + c.hidden_size * c.vocab_size
    return 6.0 * (word * setup.tokens + cell * (2 * setup.tokens - len(setup.lengths)))


PAIRINGS: dict[str, Pairing] = {"elmo": Pairing(elmo_batch, elmo_peer, rules, elmo_flops, "plain-torch")}
