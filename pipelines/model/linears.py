"""Other layers in the place of a network's linear ones, for inference."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ...shared.heads import LMHead

Make = Callable[[Tensor, Tensor | None], nn.Module]
"""Makes a layer [..., in] -> [..., out] of a weight [out, in] and a bias [out]."""


class Head(LMHead):
    """A language model's head whose matrix lies in another layer; it gives logits, and no loss to learn from."""

    def __init__(self, head: LMHead, project: nn.Module) -> None:
        nn.Module.__init__(self)  # no matrix of its own
        self.transform = head.transform
        self.project = project

    def forward(self, x: Tensor) -> Tensor:
        """The logits of rows [..., D], as [..., V]."""
        return self.project(self.hidden(x))


def replace_linears(module: nn.Module, make: Make) -> int:
    """Put what `make` makes in the place of linear layers and heads, one after the other; how many.

    A head whose matrix is the word table too leaves it there, for the embedding.
    """
    count = 0
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, make(child.weight, child.bias))
            count += 1
            continue
        count += replace_linears(child, make)
        if isinstance(child, LMHead) and not isinstance(child, Head):
            setattr(module, name, Head(child, make(child.weight, child.bias)))
            count += 1
    return count
