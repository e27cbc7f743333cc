"""Optimizers by name, and which parameters they decay.

Weight decay is for matrices. Biases, gains and other vectors are left alone, as in every paper that this
library follows, and so is what a module names in its attribute `no_decay`: patterns over the names of the
parameters below it, such as ``("cls_token", "position_embeddings")``. Class tokens, ViT's and CLIP's position tables
and Transformer-XL's u and v are named there by the modules that hold them, whatever system these stand in.

For fine-tuning, parts may be frozen (`freeze`), and lower layers may learn more slowly (`layer_decay`). Layers are the lists of
`Block`s in a system, whatever its family: embeddings lie below the first block, everything else above the last.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...shared.block import Block
from ...shared.errors import UserError, raise_problems
from ...shared.rows import numbers, sparse_tables
from ...shared.stack import Stack

Name = Literal["adamw", "adafactor", "lamb", "muon", "sgd", "adagrad", "lars"]


@dataclass(frozen=True)
class OptimSettings:
    """What the recipe says about the optimizer. Names are those of torch's optimizers."""

    name: Name = "adamw"
    lr: float = 1e-3
    """The peak learning rate; `schedule` says how it moves."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW and LAMB; Muon uses them for the parameters it hands to AdamW."""
    eps: float = 1e-8
    momentum: float = 0.9
    """SGD and LARS (0.9), and Muon (0.95 in its paper)."""
    nesterov: bool = False
    """SGD only."""
    clip: float | None = 1.0
    """The largest gradient norm; null turns clipping off (the norm is measured all the same)."""
    layer_decay: float = 1.0
    """Each layer's learning rate as a factor of that of the layer above it; heads have the full rate, embeddings the least."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the weights with this decay, such as 0.9999: evaluations, the export and whoever loads the run
    use it. null: none."""
    ema_warmup: bool = True
    """The decay after update u (from 0) is at most 1 - (1 + u)^(-2/3), timm's warm-up, so that the first weights are soon forgotten."""
    freeze: tuple[str, ...] = ()
    """What keeps its weights: `embed` (embeddings), `layers:N` (the lowest N blocks), patterns of names such as `net.trunk.*`."""

    def __post_init__(self) -> None:
        """Refuse numbers that no optimizer can use."""
        wrong = [f"{name} is {value}, expected {rule}" for name, value, rule, fine in (
            ("lr", self.lr, "a positive number", self.lr > 0),
            ("weight_decay", self.weight_decay, "0 or more", self.weight_decay >= 0),
            ("eps", self.eps, "0 or more", self.eps >= 0),
            ("momentum", self.momentum, "0 <= momentum < 1", 0 <= self.momentum < 1),
            ("betas", self.betas, "two numbers from 0 up to 1", all(0 <= b < 1 for b in self.betas)),
            ("clip", self.clip, "a positive number or null", self.clip is None or self.clip > 0),
            ("ema_decay", self.ema_decay, "a number above 0 and below 1, or null", self.ema_decay is None or 0 < self.ema_decay < 1),
            ("layer_decay", self.layer_decay, "a factor above 0, at most 1", 0 < self.layer_decay <= 1),
        ) if not fine]
        if self.nesterov and (self.name != "sgd" or self.momentum == 0):
            wrong.append("nesterov needs name: sgd and momentum above 0")
        if wrong:
            raise UserError("; ".join(wrong))


def parameter_groups(module: nn.Module, settings: OptimSettings) -> list[dict[str, Any]]:
    """Group the trainable parameters of `module` by what the optimizer does to them.

    Returns:
        Dicts with `params` and `weight_decay` (and `use_fallback` for Muon, `lr_scale` where that is not 1, `fused` where gradients are
        sparse), in the order of the module; a tied parameter is listed once, a frozen one not at all.
    """
    exempt = without_decay(module)
    matrices = {id(p) for p in _hidden_matrices(module)}
    raise_problems(layer_problems(module, settings), "the optimizer")
    depths, sparse = layer_depths(module) if settings.layer_decay != 1 else {}, sparse_tables(module)
    groups: dict[tuple[bool, bool, float, bool, bool], list[Tensor]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim >= 2 and id(parameter) not in exempt
            fallback = settings.name == "muon" and id(parameter) not in matrices
            scale = settings.layer_decay ** depths[name].above if name in depths else 1.0
            divided = hasattr(parameter, "to_local")  # a kernel that steps many tensors at once takes either kind, not both
            groups.setdefault((decayed, fallback, scale, divided, id(parameter) in sparse), []).append(parameter)
    if not groups:
        raise UserError("nothing to train: every parameter is frozen; unlock a part of the model")
    return [
        {"params": parameters, "weight_decay": settings.weight_decay if decayed else 0.0} | ({"use_fallback": True} if fallback else {})
        | ({"lr_scale": scale} if scale != 1 else {}) | ({"fused": False} if rows else {})  # torch's fused kernels read whole tables
        for (decayed, fallback, scale, _, rows), parameters in groups.items()
    ]


def without_decay(module: nn.Module) -> set[int]:
    """The `id`s of the parameters that `module` or a module below it lists in `no_decay`."""
    found: set[int] = set()
    for place, part in module.named_modules():
        for pattern in getattr(part, "no_decay", ()):
            matched = {id(p) for name, p in part.named_parameters(remove_duplicate=False) if _matches(name, pattern)}
            assert matched, f"no_decay of {place or type(part).__name__} names {pattern!r}, which is not a parameter"
            found |= matched
    return found


@dataclass(frozen=True, slots=True)
class Depth:
    """Where a parameter lies among the layers."""

    layer: int
    """0 for the embeddings, 1 for the lowest block."""
    above: int
    """Layers between it and the heads, itself counted: 1 for the highest block."""


def layer_depths(module: nn.Module) -> dict[str, Depth]:
    """Where the embeddings and the blocks of every list of blocks in `module` lie, by parameter name; what is missing lies above them.

    As in timm and BEiT (https://arxiv.org/abs/2106.08254): with N blocks, block i (from 0) has N - i layers above and
    including it, the embeddings N + 1. Every list counts for itself; embeddings that feed two (T5) lie below the deeper one.
    Embeddings are the module `embed` beside a list (beside the `Stack` that has it), what the stack's layers share (position biases),
    and tensors that lie beside it on their own.
    """
    lists = {name: len(m) for name, m in module.named_modules() if isinstance(m, nn.ModuleList) and _are_blocks(m)}
    stacks = {name.rpartition(".")[0] for name in lists} & {name for name, m in module.named_modules() if isinstance(m, Stack)}
    below: dict[str, int] = {}
    for name, count in lists.items():
        holder = name.rpartition(".")[0]
        if holder in stacks:
            holder = holder.rpartition(".")[0]
        below[holder] = max(below.get(holder, 0), count + 1)
    depths: dict[str, Depth] = {}
    for name, _ in module.named_parameters():
        parents = [name[:i] for i, c in enumerate(name) if c == "."]
        blocks = next((p for p in parents if p in lists), None)
        stack = next((p for p in parents if p in stacks), None)
        holder = next((p for p in reversed(["", *parents]) if p in below), None)
        if blocks is not None:
            number = int(name.removeprefix(f"{blocks}.").partition(".")[0])
            depths[name] = Depth(number + 1, lists[blocks] - number)
        elif stack is not None:
            if name.startswith(f"{stack}.position_bias."):
                depths[name] = Depth(0, lists[f"{stack}.blocks"] + 1)
        elif holder is not None and _beside(name, holder):
            depths[name] = Depth(0, below[holder])
    return depths


def _are_blocks(parts: nn.ModuleList) -> bool:
    return len(parts) > 0 and all(isinstance(part, Block) for part in parts)


_NO_LAYERS = "this network has no list of blocks, so nobody knows the order of its layers"


def layer_problems(module: nn.Module, settings: OptimSettings) -> Iterator[str]:
    """What keeps `layer_decay` from doing anything."""
    if settings.layer_decay != 1 and not any(depth.layer for depth in layer_depths(module).values()):
        yield f"optim.layer_decay is {settings.layer_decay}, and {_NO_LAYERS}: leave it out (1)"


def row_problems(module: nn.Module, settings: OptimSettings) -> Iterator[str]:
    """What keeps the optimizer from moving the rows alone that sparse gradients have."""
    moves_rows = settings.name == "adagrad" or (settings.name == "sgd" and settings.momentum == 0)
    if (tables := sparse_tables(module)) and not (moves_rows and settings.weight_decay == 0):
        name = next(name for name, p in module.named_parameters() if id(p) in tables)
        yield (f"gradients of {name} are sparse, and optim.name={settings.name} with momentum={settings.momentum:g} and "
               f"weight_decay={settings.weight_decay:g} moves whole tables: use sgd with momentum=0, or adagrad, with weight_decay=0")


def _beside(name: str, holder: str) -> bool:
    """Whether a parameter of a module that holds layers is one of its embeddings."""
    part, dot, _ = name.removeprefix(f"{holder}." if holder else "").partition(".")
    return part == "embed" or not dot


def freeze(module: nn.Module, parts: Sequence[str]) -> list[str]:
    """Keep the weights of `parts` as they are: `embed`, `layers:N`, or patterns of parameter names; returns the names."""
    names, depths = [name for name, _ in module.named_parameters()], layer_depths(module)
    frozen: list[str] = []
    for part in parts:
        kind, colon, number = part.partition(":")
        if part == "embed":
            found = [n for n in names if n in depths and depths[n].layer == 0]
        elif kind == "layers" and colon:
            highest = max((d.layer for d in depths.values()), default=0)
            if not highest:
                raise UserError(f"optim.freeze: {part!r} needs layers to count, and {_NO_LAYERS}: name parameters by patterns such as "
                                f"{names[0].rpartition('.')[0]}.*")
            if not number.isdigit() or not 1 <= int(number) <= highest:
                raise UserError(f"optim.freeze: {part!r} is not a number of layers, expected layers:1 to layers:{highest}")
            found = [n for n in names if n in depths and 1 <= depths[n].layer <= int(number)]
        else:
            found = [n for n in names if _matches(n, part)]
        if not found:
            raise UserError(f"optim.freeze: {part!r} names no parameter; expected embed, layers:N, or a pattern of names such as "
                            f"{names[0].rpartition('.')[0]}.*")
        frozen += found
    parameters = dict(module.named_parameters())
    for name in frozen:
        parameters[name].requires_grad_(False)
    return list(dict.fromkeys(frozen))


def _matches(name: str, pattern: str) -> bool:
    """Whether `pattern` names the parameter or a module that contains it."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}.*")


def _hidden_matrices(module: nn.Module) -> Iterator[Tensor]:
    """Weights of linear layers that are not also an embedding table: what Muon orthogonalises."""
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    for layer in module.modules():
        if isinstance(layer, nn.Linear) and id(layer.weight) not in tables:
            yield layer.weight


def build_optimizer(module: nn.Module, settings: OptimSettings) -> Optimizer:
    """The optimizer of the recipe over `module`'s trainable parameters."""
    return _BUILDERS[settings.name](parameter_groups(module, settings), settings)


def clip_gradients(parameters: Iterable[Tensor], limit: float) -> Tensor:
    """Scale the gradients so that their norm is at most `limit`; returns the norm before, over all ranks where they are divided.

    Tensors in one piece and divided ones may stand together; the former are the same on every rank and count once. Of a sparse gradient,
    rows that stand in it more than once are added up first.
    """
    trained = [p for p in parameters if p.grad is not None]
    for parameter in trained:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
    kinds = [[p for p in trained if hasattr(p, "to_local") is divided] for divided in (False, True)]
    norms: list[Tensor] = []
    for gradients in ([numbers(p.grad) for p in kind if p.grad is not None] for kind in kinds):
        if gradients:
            norm: Any = torch.nn.utils.get_total_norm(gradients)
            norms.append(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
    total = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    if limit < float("inf"):
        for kind in kinds:
            torch.nn.utils.clip_grads_with_norm_(kind, limit, total)
    return total.detach()


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Use `lr` for the next step; lower layers use their share of it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def _adamw(groups: list[dict[str, Any]], s: OptimSettings) -> Optimizer:
    return torch.optim.AdamW(groups, lr=s.lr, betas=s.betas, eps=s.eps, fused=True)


def _adafactor(groups: list[dict[str, Any]], s: OptimSettings) -> Optimizer:
    return torch.optim.Adafactor(groups, lr=s.lr)


def _lamb(groups: list[dict[str, Any]], s: OptimSettings) -> Optimizer:
    from timm.optim.lamb import Lamb

    # the loop clips; LAMB's own clipping would do it twice
    return Lamb(groups, lr=s.lr, betas=s.betas, eps=s.eps, max_grad_norm=None)


def _muon(groups: list[dict[str, Any]], s: OptimSettings) -> Optimizer:
    from timm.optim.muon import Muon

    # 'match_rms_adamw' scales the updates so that AdamW's learning rates and decay carry over
    return Muon(groups, lr=s.lr, momentum=s.momentum, nesterov=True, betas=s.betas, adjust_lr_fn="match_rms_adamw")


def _sgd(groups: list[dict[str, Any]], s: OptimSettings) -> Optimizer:
    whole = not any(hasattr(p, "to_local") for group in groups for p in group["params"])  # torch has no fused SGD for divided tensors
    return torch.optim.SGD(groups, lr=s.lr, momentum=s.momentum, nesterov=s.nesterov, fused=whole)


def _adagrad(groups: list[dict[str, Any]], s: OptimSettings) -> Optimizer:
    return torch.optim.Adagrad(groups, lr=s.lr, eps=s.eps)


def _lars(groups: list[dict[str, Any]], s: OptimSettings) -> Optimizer:
    from timm.optim.lars import Lars

    # as in MAE's code: matrices have a rate of their own, also without decay; biases and gains have the plain one
    adapted = [group | {"always_adapt": all(p.ndim >= 2 for p in group["params"])} for group in groups]
    return Lars(adapted, lr=s.lr, momentum=cast("Any", s.momentum))  # annotated as an int


_BUILDERS: dict[Name, Callable[[list[dict[str, Any]], OptimSettings], Optimizer]] = {
    "adamw": _adamw, "adafactor": _adafactor, "lamb": _lamb, "muon": _muon, "sgd": _sgd, "adagrad": _adagrad, "lars": _lars,
}
