"""Smaller, faster weights for inference on CPUs: int8 matrices, multiplied as integers.

Generating one token reads every weight once, so its time is that of moving the weights; int8 moves a quarter of the bytes. Each row of a
matrix is divided by its own step (symmetric, 127 steps to its largest entry), the input of a layer by one step for the whole tensor
(dynamic, at every call), and the product is made of integers by FBGEMM, which torch ships. Embedding tables, norms and attention stay
as they are; a table that is also the head's matrix is kept twice.

Because the inputs of a batch share their step, a text's numbers depend a little on the texts beside it.

Processors without AVX512-VNNI add pairs of integers in 16 bits, which 8-bit inputs would overflow. There an input has 7 bits and a step for
each row, and the same call makes a second product, of what the first one rounded away: nearer to the whole weights than with 8 bits, rows
do not depend on one another, and it takes 1.2 to 2 times as long (docs/decisions.md).
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ...shared.errors import UserError
from .linears import replace_linears

Quantization = Literal["int8"]
_STEPS = 63
"""To the largest entry of a row, where inputs have 7 bits."""


class Int8Linear(nn.Module):
    """`nn.Linear` with int8 weights, for inference: [..., in] to [..., out] in float32.

    Args:
        weight: [out, in].
        bias: [out].
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._packed = _pack(weight.detach().float().cpu())
        self._bias = None if bias is None else bias.detach().float().cpu()
        self._eight_bits = takes_eight_bits()

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        inputs = x.float()
        product = torch.ops.quantized.linear_dynamic(inputs, self._packed, False) if self._eight_bits else self._in_two_products(inputs)
        return (product if self._bias is None else product.add_(self._bias)).to(x.dtype)

    def _in_two_products(self, x: Tensor) -> Tensor:
        """The product of 7-bit inputs, and that of what they round away, which is 126 times finer."""
        largest = x.abs().amax(-1, keepdim=True).clamp_(min=1e-30)
        scaled = x * (_STEPS / largest)
        whole = scaled.round()
        finer = 2 * _STEPS  # the rest is at most half a step
        both = torch.stack((whole, (scaled - whole).mul_(finer)))
        found, rest = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(both, 1.0, _STEPS + 1, self._packed)
        return found.add_(rest, alpha=1 / finer).mul_(largest / _STEPS)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


def _pack(weight: Tensor) -> Any:
    """Rows [out, in] as integers, in FBGEMM's order."""
    steps = weight.abs().amax(1).clamp(min=1e-12) / 127
    engine = torch.backends.quantized.engine
    try:
        torch.backends.quantized.engine = "fbgemm"  # what packs here also multiplies
        with warnings.catch_warnings():  # the tensor type is called old; the product is what torch has
            warnings.simplefilter("ignore")
            rows = torch.quantize_per_channel(weight, steps.double(), torch.zeros(len(weight), dtype=torch.int64), 0, torch.qint8)
            return torch.ops.quantized.linear_prepack(rows, None)
    finally:
        torch.backends.quantized.engine = engine


@cache
def takes_eight_bits() -> bool:
    """Whether FBGEMM multiplies 8-bit inputs exactly here: with AVX512-VNNI it does, elsewhere sums of two products overflow 16 bits."""
    largest = torch.ones(1, 64)
    return bool(torch.ops.quantized.linear_dynamic(largest, _pack(largest), False) > 63)  # 64, or half of it


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
