"""Reversible residuals: what a half of a layer read is computed from what it gave, so nothing is kept of any layer.

Gomez, Ren, Urtasun and Grosse, "The Reversible Residual Network: Backpropagation Without Storing Activations", 2017,
https://arxiv.org/abs/1707.04585, as Reformer has them (Kitaev et al., 2020, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

Kept = list[Tensor]
"""What a half hands from its first run to the one for the backward pass: what it must not decide again."""


@dataclass(frozen=True, slots=True)
class Half:
    """A function f of the reversible pair (a, b) -> (b, a + f(b)): attention, or a feed-forward net."""

    function: Callable[[Tensor, Kept], Tensor]
    """From [B, S, D] to [B, S, D]; the list is empty in the first run and as that left it in the second."""
    modules: tuple[nn.Module, ...]
    """What computes it: their parameters have gradients."""
    draws: bool = False
    """Whether it draws from torch's generator (dropout): then the second run draws the same."""
    piece: int = 0
    """Tokens that are computed at a time, where each stands for itself; 0: all together."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Of its modules."""
        return [p for module in self.modules for p in module.parameters()]

    def parts(self, x: Tensor) -> Sequence[Tensor]:
        """What is computed at a time of x [B, S, D]."""
        return x.split(self.piece, 1) if self.piece else (x,)

    def __call__(self, x: Tensor, kept: Kept) -> Tensor:
        """All of f(x), without a gradient."""
        found = [self.function(part, kept) for part in self.parts(x)]
        return found[0] if len(found) == 1 else torch.cat(found, 1)


def reversible(x: Tensor, halves: Sequence[Half], seen: list[Tensor] | None = None) -> Tensor:
    """Both streams behind all halves, [B, S, 2 D], begun with x [B, S, D] in each.

    With two halves for each layer these are y1 = x1 + f(x2) and y2 = x2 + g(y1). The memory is that of one half, for any number of them.
    Each parameter of the halves that is trained gets a gradient; an operation of autograd like any other, except that none of its
    gradients can be differentiated.

    Args:
        x: [B, S, D].
        halves: in their order.
        seen: gets the second stream before every other half and behind the last one, without a gradient.
    """
    parameters = [p for half in halves for p in half.parameters]
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in parameters)):
        return cast("Tensor", _Reversible.apply(x, halves, seen, *parameters))
    return torch.cat(_run(x, halves, [[] for _ in halves], [], seen), -1)


def _run(x: Tensor, halves: Sequence[Half], kept: Sequence[Kept], states: list[Tensor | None], seen: list[Tensor] | None
         ) -> tuple[Tensor, Tensor]:
    """Both streams; `states` gets the state of the generator before each half that draws."""
    a = b = x
    for number, half in enumerate(halves):
        if seen is not None and number % 2 == 0:
            seen.append(b.detach())
        states.append(_drawn_from(x.device) if half.draws else None)
        a, b = b, a + half(b, kept[number])
    if seen is not None:
        seen.append(b.detach())
    return a, b


class _Reversible(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, halves: Sequence[Half], seen: list[Tensor] | None, *parameters: Tensor) -> Tensor:
        device = x.device.type
        # no weight is cast twice, and one that is cast here has no gradient to give where it would be used again
        ctx.precision = partial(torch.autocast, device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device), False)
        ctx.halves, ctx.kept, ctx.states = halves, [list[Tensor]() for _ in halves], list[Tensor | None]()
        with ctx.precision():
            out = torch.cat(_run(x, halves, ctx.kept, ctx.states, seen), -1)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *wanted: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (out,) = ctx.saved_tensors
        a, b = out.chunk(2, -1)
        d_a, d_b = wanted[0].chunk(2, -1)
        found: list[list[Tensor | None]] = []
        with ctx.precision():
            for half, kept, state in zip(*(reversed(x) for x in (ctx.halves, ctx.kept, ctx.states)), strict=True):
                with nullcontext() if state is None else _drawing_from(state, a.device):
                    y, d_x, gradients = _differentiate(half, a, d_b, kept)
                a, b = b - y, a
                d_a, d_b = d_b, d_a + d_x
                found.append(gradients)
        return (d_a + d_b, None, None, *(gradient for gradients in reversed(found) for gradient in gradients))


def _differentiate(half: Half, x: Tensor, d_y: Tensor, kept: Kept) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """f(x) again, the gradient of x, and those of the half's parameters, None where one is not trained; a piece at a time."""
    parameters = half.parameters
    trained = [n for n, p in enumerate(parameters) if p.requires_grad]
    gradients: list[Tensor | None] = [None] * len(parameters)
    ys: list[Tensor] = []
    d_xs: list[Tensor] = []
    for part, d_part in zip(half.parts(x), half.parts(d_y), strict=True):
        with torch.enable_grad():
            leaf = part.detach().requires_grad_()
            y = half.function(leaf, kept)
            d_x, *more = torch.autograd.grad(y, [leaf, *(parameters[n] for n in trained)], d_part.to(y.dtype))
        ys.append(y.detach())
        d_xs.append(d_x)
        for n, gradient in zip(trained, more, strict=True):
            before = gradients[n]
            gradients[n] = gradient if before is None else before.add_(gradient)
    if len(ys) == 1:
        return ys[0], d_xs[0], gradients
    return torch.cat(ys, 1), torch.cat(d_xs, 1), gradients


def _drawn_from(device: torch.device) -> Tensor:
    """The state of torch's generator on a device."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


@contextmanager
def _drawing_from(state: Tensor, device: torch.device) -> Generator[None]:
    """What is drawn comes from a generator in this state; afterwards torch's is as it was."""
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        if cuda:
            torch.cuda.set_rng_state(state, device)
        else:
            torch.set_rng_state(state)
        yield
