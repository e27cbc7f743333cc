"""Networks whose weights come from elsewhere, or never."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_DRAWS = frozenset({Tensor.normal_, Tensor.uniform_})


class UndrawnWeights(TorchFunctionMode):
    """A context: parameters that are built in it have whatever lies in their memory, for one who fills all of them afterwards.

    Drawing them takes most of the time in which a network is built; on the meta device working out the shapes of the draws does.
    """

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (),
                           kwargs: Mapping[str, Any] | None = None) -> Any:  # fmt: skip
        named = kwargs or {}
        if func in _DRAWS or getattr(func, "__module__", None) == nn.init.__name__:
            tensor: Tensor = args[0] if args else named["tensor"]
            if tensor.is_meta or isinstance(tensor, nn.Parameter):
                return tensor
        return func(*args, **named)


@contextmanager
def without_weights() -> Generator[None]:
    """A context: parameters that are built in it have a shape and a type, on torch's meta device, and no numbers."""
    with torch.device("meta"), UndrawnWeights():
        yield
