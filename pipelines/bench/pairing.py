"""What a benchmark of training needs of each system: one batch, one set of weights, two libraries.

Every number follows from a `TrainSetup`. Weights are ours, with the family's initialisation and with vectors
moved off their zeros and ones (so that a bias in the wrong place shows); the family's own rule table
carries them over. The batch is drawn once, packed for polymodal and padded for the peer.

Useful operations of a training step (the same number for both sides; padding and places without a target
are not useful): 6 for each weight of a matrix and each token (2 forward, 4 backward; 4 for the pixels'
projection, which needs no gradient of its input); attention 12 D s^2 a layer and sequence of s tokens,
half of it where causal; the vocabulary head 6 V D a predicted token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from ...registry import family
from ...shared.convert import Rule, to_theirs
from ...shared.family import Context
from ...shared.system import Batch, Companion, System

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True)
class Beside:
    """A network that is read and not trained, with random weights."""

    name: str
    """As a task calls it (`Task.companions`)."""
    family: str
    architecture: str
    config: Any

    def build(self) -> nn.Module:
        """The network."""
        return next(net for net in family(self.family).nets if net.architecture == self.architecture).build(self.config)


@dataclass(frozen=True)
class TrainSetup:
    """What both sides train on: picklable, and with the seed it fixes every number."""

    system: str
    """An entry in `PAIRINGS`: a family, and after a hyphen a task, or another peer than its usual one."""
    config: Any
    lengths: tuple[int, ...]
    """Tokens of each sequence (of each caption)."""
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    """bfloat16 runs under autocast, with fp32 weights."""
    seed: int = 0
    task: str = ""
    """What the network is fine-tuned for; pretraining by default."""
    beside: tuple[Beside, ...] = ()
    """What both sides read beside it."""

    @property
    def family(self) -> str:
        """The family of our side."""
        return self.system.partition("-")[0]

    @property
    def tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(self.lengths)

    def still(self) -> TrainSetup:
        """The same without dropout, which draws differently on each side."""
        off = {name: 0.0 for name in vars(self.config) if name == "dropout" or name.endswith(("_pdrop", "_dropout_prob", "dropout_rate"))}
        return replace(self, config=replace(self.config, **off))


Loss = Callable[[nn.Module], Tensor]
"""The loss of the batch, by a module that may be a compiled one."""


@dataclass(frozen=True)
class Pairing:
    """A system with its peer."""

    batch: Callable[[TrainSetup], Batch]
    peer: Callable[[TrainSetup, System], tuple[nn.Module, Loss]]
    """(the setup, our system with the weights to take over) -> the peer's module, its loss."""
    rules: Callable[[Any], Sequence[Rule]]
    flops: Callable[[TrainSetup], float]
    library: str = "transformers"
    unit: Literal["tokens", "pictures"] = "tokens"
    """What is counted."""
    beside: tuple[str, Callable[[TrainSetup], TrainSetup]] | None = None
    """Another network of ours that is timed for orientation: what it is called, and its setup from this one."""
    autocast: bool = True
    """Whether the peer runs under autocast to bf16."""


def our_system(setup: TrainSetup) -> System:
    """The family's own system on the setup's device, as the trainer would build it, without a tokenizer."""
    task = family(setup.family).task(setup.task)
    companions = {each.name: Companion("here", partial(fresh, each.build, setup.seed)) for each in setup.beside}
    return fresh(lambda: task.build(setup.config, {}, Context(net_only=True, companions=companions)), setup.seed, setup.device)


def fresh(build: Callable[[], ModuleT], seed: int, device: str = "cpu") -> ModuleT:
    """A module with its family's initialisation, and noise on its vectors; drawn on its device, where a billion numbers take no minute."""
    with torch.random.fork_rng(devices=[] if device == "cpu" else None), torch.device(device):
        torch.manual_seed(seed)
        module = build()
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.02 * torch.randn_like(parameter))
    return module


def copy_weights(ours: nn.Module, theirs: nn.Module, rules: Sequence[Rule]) -> None:
    """Give the peer's module our weights; what its own tying or a buffer fills in may be missing, nothing else."""
    found = theirs.load_state_dict(to_theirs(rules, ours.state_dict()), strict=False)
    if hasattr(theirs, "tie_weights"):
        cast(Any, theirs).tie_weights()
    assert not found.unexpected_keys, found.unexpected_keys
    lacking = set(found.missing_keys) & {name for name, _ in theirs.named_parameters()}
    assert not lacking, lacking


def rules_of(system: str, config: Any, layout: str = "transformers") -> Sequence[Rule]:
    """The table of the family's pretraining network, in a peer's layout."""
    return family(system).nets[0].format(layout).rules(config)


def task_rules(system: str, task: str, config: Any) -> Sequence[Rule]:
    """The table of the network of a task, in transformers' layout."""
    entry = family(system)
    net = next(net for net in entry.nets if net.architecture == entry.task(task).architecture)
    return net.format("transformers").rules(config)


def padded(rows: Tensor, lengths: tuple[int, ...], filling: int, width: int = 0) -> Tensor:
    """Packed values [T] as rows [B, longest] (at least `width` wide)."""
    parts = list(rows.split(list(lengths)))
    out = nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=filling)
    return nn.functional.pad(out, (0, max(0, width - out.shape[1])), value=filling)


def padding_mask(lengths: tuple[int, ...]) -> Tensor | None:
    """1 where there is not padding; None without padding, which lets the peer take its fastest path."""
    if len(set(lengths)) == 1:
        return None
    return padded(torch.ones(sum(lengths), dtype=torch.long), lengths, 0)


def on(device: str, inputs: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """The inputs that there are, on the device."""
    return {k: v.to(device) for k, v in inputs.items() if v is not None}


def transformer_flops(layers: int, hidden: int, intermediate: int, lengths: tuple[int, ...], *, causal: bool) -> float:
    """Useful operations, forward and backward, of a stack over sequences of these lengths; see the module."""
    weights = layers * (4 * hidden**2 + 2 * hidden * intermediate)
    attention = layers * hidden * sum(s * s for s in lengths) * (6 if causal else 12)
    return 6 * weights * sum(lengths) + attention
