"""Smaller, faster weights for inference on CPUs: int8 matrices, multiplied as integers.

Generating one token reads every weight once, so its time is that of moving the weights; int8 moves a quarter of the bytes. Each row of a
matrix is divided by its own step (symmetric, 127 steps to its largest entry), the input of a layer by one step for the whole tensor
(dynamic, at every call), and the product is made of integers by FBGEMM, which torch ships. Embedding tables, norms and attention stay
as they are; a table that is also the head's matrix is kept twice.

Because the inputs of a batch share their step, a text's numbers depend a little on the texts beside it.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ...shared.cpu import cpu_features
from ...shared.errors import UserError
from .linears import replace_linears

Quantization = Literal["int8"]


class Int8Linear(nn.Module):
    """`nn.Linear` with int8 weights, for inference: [..., in] to [..., out] in float32.

    Args:
        weight: [out, in].
        bias: [out].
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        weight = weight.detach().float().cpu()
        steps = weight.abs().amax(1).clamp(min=1e-12) / 127
        engine = torch.backends.quantized.engine
        try:
            torch.backends.quantized.engine = "fbgemm"  # what packs here also multiplies
            with warnings.catch_warnings():  # the tensor type is called old; the product is what torch has
                warnings.simplefilter("ignore")
                rows = torch.quantize_per_channel(weight, steps.double(), torch.zeros(len(weight), dtype=torch.int64), 0, torch.qint8)
                self._packed: Any = torch.ops.quantized.linear_prepack(rows, None if bias is None else bias.detach().float().cpu())
        finally:
            torch.backends.quantized.engine = engine
        # without VNNI two products are added in 16 bits, which 8-bit inputs would overflow
        self._seven_bits = not cpu_features().get("avx512_vnni")

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        return torch.ops.quantized.linear_dynamic(x.float(), self._packed, self._seven_bits).to(x.dtype)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


def quantize(net: nn.Module, kind: str) -> nn.Module:
    """Give a network's matrices fewer bits, in place; it can then infer on a CPU, and neither train nor be saved.

    Args:
        net: with weights, on the CPU.
        kind: `int8`.

    Raises:
        UserError: another kind, another device than a CPU that FBGEMM knows, or nothing to quantize.
    """
    if kind not in get_args(Quantization):
        raise UserError(f"quantize is {kind!r}, expected {' or '.join(get_args(Quantization))}")
    if any(p.device.type != "cpu" for p in net.parameters()):
        raise UserError("int8 runs on the CPU and the model is on another device: use device cpu, or leave quantize out")
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        raise UserError("int8 needs FBGEMM, which torch has on x86 processors only: leave quantize out, or use dtype bfloat16")
    if not replace_linears(net, Int8Linear):
        raise UserError(f"a {type(net).__name__} has no linear layers to quantize: leave quantize out")
    return net.requires_grad_(False)
