r"""Rule tables: how a reference library's state dict maps to ours, exactly, in both directions.

A family keeps one table beside its network. Every rule knows both directions, so there is nothing to
keep in step by hand, and both are strict: a key that no rule mentions, or a key that a rule needs and
does not find, is an error that lists the keys.

    rules = (
        *affine("embeddings.LayerNorm", "embed.norm"),
        *layers(config.num_hidden_layers, (
            *fused(("l.{i}.query", "l.{i}.key", "l.{i}.value"), "blocks.{i}.qkv"),
            Transpose("l.{i}.c_fc.weight", "blocks.{i}.up.weight"),
        )),
        Ignore(r"embeddings\.position_ids"),
    )
    ours = to_ours(rules, theirs)
    theirs = to_theirs(rules, ours)
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from .errors import UserError

State = Mapping[str, Tensor]
SHOWN = 12  # keys that an error lists before it only counts


class Rule(ABC):
    """One entry of a table. `theirs` and `ours` are the keys it connects."""

    @property
    @abstractmethod
    def their_keys(self) -> tuple[str, ...]:
        """Keys that must exist in the reference's state dict."""

    @property
    @abstractmethod
    def our_keys(self) -> tuple[str, ...]:
        """Keys that must exist in our state dict."""

    @abstractmethod
    def read(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """From tensors in the order of `their_keys` to tensors in the order of `our_keys`."""

    @abstractmethod
    def write(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The inverse of `read`."""


@dataclass(frozen=True)
class _OneToOne(Rule):
    theirs: str
    ours: str

    @property
    def their_keys(self) -> tuple[str, ...]:
        """The one key of theirs."""
        return (self.theirs,)

    @property
    def our_keys(self) -> tuple[str, ...]:
        """The one key of ours."""
        return (self.ours,)


@dataclass(frozen=True)
class Rename(_OneToOne):
    """The same tensor under another name."""

    def read(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Keep the tensor."""
        return tensors

    def write(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Keep the tensor."""
        return tensors


@dataclass(frozen=True)
class Transpose(_OneToOne):
    """A matrix stored the other way round, such as GPT-2's `Conv1D` [in, out]."""

    def read(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Transpose the matrix."""
        return [t.t() for t in tensors]

    def write(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Transpose it back."""
        return [t.t() for t in tensors]


@dataclass(frozen=True)
class Reshape(_OneToOne):
    """The same numbers in another shape; -1 once in either shape.

    A patch convolution [D, 3, p, p] and our linear map [D, 3 p p]:
    ``Reshape(theirs, ours, their_shape=(-1, 3, p, p), our_shape=(-1, 3 * p * p))``.
    `permute` is applied to theirs before our shape is taken.
    """

    their_shape: tuple[int, ...]
    our_shape: tuple[int, ...]
    permute: tuple[int, ...] | None = None

    def read(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Bring theirs into our shape."""
        (tensor,) = tensors
        tensor = tensor.reshape(self.their_shape)
        return [(tensor if self.permute is None else tensor.permute(self.permute)).reshape(self.our_shape)]

    def write(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Bring ours into their shape."""
        (tensor,) = tensors
        if self.permute is None:
            return [tensor.reshape(self.their_shape)]
        permuted = tuple(self.their_shape[p] for p in self.permute)
        back = tuple(self.permute.index(d) for d in range(len(self.permute)))
        return [tensor.reshape(permuted).permute(back)]


@dataclass(frozen=True)
class Fuse(Rule):
    """Several of theirs laid end to end along `dim` make one of ours (query, key, value -> qkv).

    `sizes` gives their lengths along `dim` where they are not equal.
    """

    theirs: tuple[str, ...]
    ours: str
    dim: int = 0
    sizes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Take any sequence of names."""
        object.__setattr__(self, "theirs", tuple(self.theirs))

    @property
    def their_keys(self) -> tuple[str, ...]:
        """The parts."""
        return self.theirs

    @property
    def our_keys(self) -> tuple[str, ...]:
        """The whole."""
        return (self.ours,)

    def read(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Join the parts."""
        return [torch.cat(list(tensors), self.dim)]

    def write(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Cut the whole into its parts."""
        return _cut(tensors[0], self.theirs, self.sizes, self.dim)


@dataclass(frozen=True)
class Split(Rule):
    """One of theirs is cut along `dim` into several of ours (a fused in_proj -> q and kv)."""

    theirs: str
    ours: tuple[str, ...]
    dim: int = 0
    sizes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Take any sequence of names."""
        object.__setattr__(self, "ours", tuple(self.ours))

    @property
    def their_keys(self) -> tuple[str, ...]:
        """The whole."""
        return (self.theirs,)

    @property
    def our_keys(self) -> tuple[str, ...]:
        """The parts."""
        return self.ours

    def read(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Cut the whole into its parts."""
        return _cut(tensors[0], self.ours, self.sizes, self.dim)

    def write(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Join the parts."""
        return [torch.cat(list(tensors), self.dim)]


@dataclass(frozen=True)
class Alias(Rule):
    """Their second name for a tensor that `of` (a key of theirs) already names: tied weights.

    May be absent when we read; where it is present it must equal `of`. Written out only with
    `written`, for readers that do not tie by themselves.
    """

    theirs: str
    of: str
    written: bool = False

    @property
    def their_keys(self) -> tuple[str, ...]:
        """None: an alias is optional."""
        return ()

    @property
    def our_keys(self) -> tuple[str, ...]:
        """None: we keep a tied tensor once."""
        return ()

    def read(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Nothing is made of an alias."""
        return ()

    def write(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """See `to_theirs`, which copies `of`."""
        return ()

    def of_source(self, source: Tensor) -> Tensor:
        """What must stand under the second name, from what stands under the first."""
        return source

    @property
    def reason(self) -> str:
        """Why a file with something else is refused."""
        return f"{self.theirs} and {self.of} are tied in this architecture and differ in the file"


@dataclass(frozen=True)
class Zeros(Alias):
    """A buffer [1, V] of theirs that adds nothing: zeros, as many as `of` [V, D] has rows; with other numbers the file is refused."""

    written: bool = True

    def of_source(self, source: Tensor) -> Tensor:
        """The zeros."""
        return source.new_zeros(1, source.shape[0])

    @property
    def reason(self) -> str:
        """Why a file with something else is refused."""
        return f"{self.theirs} is not zero for each row of {self.of}: such a bias is not computed here"


@dataclass(frozen=True)
class Tied(Rule):
    """Our second name for a tensor that `of` (a key of ours) already names: a head that shares a table."""

    ours: str
    of: str

    @property
    def their_keys(self) -> tuple[str, ...]:
        """None: it comes with `of`."""
        return ()

    @property
    def our_keys(self) -> tuple[str, ...]:
        """The second name."""
        return (self.ours,)

    def read(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """See `to_ours`, which takes `of`."""
        return ()

    def write(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """It is written under the first name."""
        return ()


@dataclass(frozen=True)
class Untied(Rename):
    """The same tensor under another name; where they leave it out, it starts as a copy of `of` (a key of theirs)."""

    of: str


@dataclass(frozen=True)
class Ignore(Rule):
    """Keys of theirs that hold nothing learned (index buffers); `pattern` must match the whole key."""

    pattern: str

    @property
    def their_keys(self) -> tuple[str, ...]:
        """None are needed."""
        return ()

    @property
    def our_keys(self) -> tuple[str, ...]:
        """None are needed."""
        return ()

    def read(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Nothing is kept."""
        return ()

    def write(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Nothing is written."""
        return ()


@dataclass(frozen=True)
class Legacy(Ignore):
    """An older spelling of their keys: `pattern` (found anywhere) is read as `replacement`, never written."""

    replacement: str


def affine(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Weight and bias of one module."""
    return tuple(Rename(f"{theirs}.{p}", f"{ours}.{p}") for p in ("weight", "bias"))


def fused(theirs: Sequence[str], ours: str, *, bias: bool = True) -> tuple[Rule, ...]:
    """Weights (and biases) of several linear maps with one input as one map."""
    return tuple(Fuse(tuple(f"{t}.{p}" for t in theirs), f"{ours}.{p}") for p in (("weight", "bias") if bias else ("weight",)))


RuleT = TypeVar("RuleT", bound=Rule)


def layers(count: int, rules: Iterable[Rule], name: str = "i") -> tuple[Rule, ...]:
    """The rules of one layer for layers 0 ... count-1: `{i}` in every name becomes the number.

    Nest calls with different names for stages of blocks (`{s}`, `{i}`).
    """
    table = tuple(rules)
    return tuple(_numbered(rule, "{" + name + "}", str(number)) for number in range(count) for rule in table)


def prefixed(rules: Iterable[Rule], theirs: str = "", ours: str = "") -> tuple[Rule, ...]:
    """The same rules with a prefix before every name of theirs and of ours (`Ignore` and `Legacy` stay as they are)."""

    def moved(rule: RuleT) -> RuleT:
        sides = {"theirs": theirs, "ours": ours, "of": ours if isinstance(rule, Tied) else theirs}
        changed = {}
        for f in fields(rule):  # type: ignore[arg-type]
            if f.name in sides:
                value = getattr(rule, f.name)
                changed[f.name] = tuple(sides[f.name] + v for v in value) if isinstance(value, tuple) else sides[f.name] + value
        return replace(rule, **changed)  # type: ignore[type-var]

    return tuple(moved(rule) for rule in rules)


def to_ours(rules: Sequence[Rule], theirs: State, what: str = "the checkpoint") -> dict[str, Tensor]:
    """Our state dict from the reference's.

    Args:
        rules: the family's table.
        theirs: the reference's state dict.
        what: where it comes from, for the message.

    Raises:
        UserError: keys are missing or unexpected, or tied tensors differ; all are listed.
    """
    theirs = _completed(rules, _respelled(rules, theirs))
    result: dict[str, Tensor] = {}
    used: set[str] = set()
    missing: list[str] = []
    problems: list[str] = []
    for rule in rules:
        absent = [k for k in rule.their_keys if k not in theirs]
        used.update(rule.their_keys)
        missing.extend(absent)
        if isinstance(rule, Alias):
            used.add(rule.theirs)
            if rule.theirs in theirs and rule.of in theirs and not _same(theirs[rule.theirs], rule.of_source(theirs[rule.of])):
                problems.append(rule.reason)
        elif not absent:
            result.update(zip(rule.our_keys, rule.read([theirs[k] for k in rule.their_keys])))
    for rule in rules:
        if isinstance(rule, Tied) and rule.of in result:
            result[rule.ours] = result[rule.of]
    ignored = [re.compile(r.pattern) for r in rules if isinstance(r, Ignore) and not isinstance(r, Legacy)]
    unexpected = [k for k in theirs if k not in used and not any(p.fullmatch(k) for p in ignored)]
    _report(what, missing, unexpected, problems)
    return {k: v.contiguous() for k, v in result.items()}


def to_theirs(rules: Sequence[Rule], ours: State, what: str = "the model") -> dict[str, Tensor]:
    """The reference's state dict from ours: `to_ours` backwards, as strict, every tensor with its own memory."""
    result: dict[str, Tensor] = {}
    used: set[str] = set()
    missing: list[str] = []
    for rule in rules:
        absent = [k for k in rule.our_keys if k not in ours]
        used.update(rule.our_keys)
        missing.extend(absent)
        if rule.our_keys and not absent:
            result.update(zip(rule.their_keys, rule.write([ours[k] for k in rule.our_keys])))
    for rule in rules:
        if isinstance(rule, Alias) and rule.written and rule.of in result:
            result[rule.theirs] = rule.of_source(result[rule.of])
    _report(what, missing, [k for k in ours if k not in used], [])
    return {k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in result.items()}


def _respelled(rules: Sequence[Rule], theirs: State) -> State:
    old = [(re.compile(r.pattern), r.replacement) for r in rules if isinstance(r, Legacy)]
    if not old:
        return theirs
    result: dict[str, Tensor] = {}
    for key, tensor in theirs.items():
        name = key
        for pattern, replacement in old:
            name = pattern.sub(replacement, name)
        result[name] = tensor
    return result


def _completed(rules: Sequence[Rule], theirs: State) -> State:
    absent = {r.theirs: r.of for r in rules if isinstance(r, Untied) and r.theirs not in theirs and r.of in theirs}
    return {**theirs, **{name: theirs[of].clone() for name, of in absent.items()}} if absent else theirs


def _numbered(rule: Rule, placeholder: str, number: str) -> Rule:
    changed = {}
    for f in fields(rule):  # type: ignore[arg-type]
        value = getattr(rule, f.name)
        if isinstance(value, str):
            changed[f.name] = value.replace(placeholder, number)
        elif isinstance(value, tuple) and value and isinstance(value[0], str):
            changed[f.name] = tuple(v.replace(placeholder, number) for v in value)
    return replace(rule, **changed)  # type: ignore[type-var]


def _cut(tensor: Tensor, names: Sequence[str], sizes: tuple[int, ...] | None, dim: int) -> Sequence[Tensor]:
    length = tensor.shape[dim]
    if sizes is None:
        assert length % len(names) == 0, f"{length} rows do not cut into {len(names)} equal parts"
        sizes = (length // len(names),) * len(names)
    return tensor.split(list(sizes), dim)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and (a.is_meta or b.is_meta or bool(torch.equal(a, b)))


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(keys[:SHOWN]) + more


def _report(what: str, missing: Sequence[str], unexpected: Sequence[str], problems: Sequence[str]) -> None:
    parts = [*problems]
    if missing:
        parts.append(f"missing keys: {_listed(missing)}")
    if unexpected:
        parts.append(f"unexpected keys: {_listed(unexpected)}")
    if parts:
        raise UserError(f"{what} does not hold the weights of this architecture; " + "; ".join(parts))
