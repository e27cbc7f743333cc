"""The layers of a system, each for itself: compiled, or computed again for the backward pass.

Chen et al., "Training Deep Nets with Sublinear Memory Cost" (https://arxiv.org/abs/1604.06174). No family is known here: a layer is a
`Block`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...shared.block import Block
from ...shared.errors import raise_problems
from ...shared.heads import LMHead
from ...shared.loss import softmax_gradient_
from ...shared.system import System


def compile_parts(system: System) -> None:
    """Compile every block for itself, and what a head does to its logits; of a network without blocks each part.

    Blocks of one shape share their code, and none sees a batch's lengths, so little is compiled, and nothing again when documents
    change. Evaluation and previews are not compiled: text that is generated has another shape in every step. What gathers weights
    (hooks around a block) stays outside. To be called before the module is sharded.

    Raises:
        UserError: the system does not compile (`System.compiles`).
    """
    raise_problems([*uncompiled(system)], "nothing is compiled")
    blocks = [m for m in system.modules() if isinstance(m, Block)]
    for part in blocks or list(system.net.children()):
        part.forward = partial(_in_training, torch.compile(part.forward), part.forward)  # type: ignore[method-assign]
    for head in (m for m in system.modules() if isinstance(m, LMHead)):
        head.soften = torch.compile(softmax_gradient_)


def uncompiled(system: System) -> Iterator[str]:
    """Why a system is not compiled."""
    if not system.compiles:
        yield "compile would unroll this network's loops over words anew for each length: set compile=false"


def _in_training(compiled: Callable[..., Tensor], plain: Callable[..., Tensor], *arguments: Any, **named: Any) -> Tensor:
    return (compiled if torch.is_grad_enabled() else plain)(*arguments, **named)


def recompute_blocks(module: nn.Module) -> None:
    """Keep only the input of every block for the backward pass and compute the rest again, with the same dropout."""
    for block in module.modules():
        if isinstance(block, Block):
            block.forward = partial(_recomputed, block.forward)  # type: ignore[method-assign]


def _recomputed(forward: Callable[..., Tensor], *arguments: Any, **named: Any) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(*arguments, **named)
    from torch.utils.checkpoint import checkpoint

    return checkpoint(forward, *arguments, use_reentrant=False, **named)
