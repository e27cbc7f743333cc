"""Weights in the order in which a CPU multiplies them fastest: the same numbers, for inference.

Generating one token multiplies every matrix by a few rows. Torch's BLAS then reads the weights at a third of the memory's rate, because it
must gather them from [out, in] at every call; oneDNN can lay a matrix out once, in blocks that its kernels read from front to back. The
products are exact in the weights' own type; sums differ in their order, as they do between any two BLAS libraries, and a row's numbers do
not depend on the rows beside it.

It pays with AVX-512 (measured: 1.2 to 2.6 times the speed of a product). Without, it is slower for single rows, so nothing is changed.
Nor is it on an Intel processor where one to three rows are multiplied in float32: MKL's kernel for them reads the weights once, and is 1.05
to 1.9 times as fast.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...shared.cpu import cpu_features
from .linears import replace_linears

FEWEST = 4
"""Rows that are multiplied at least: oneDNN's kernels for one to three rows are slower than that for four."""


class PackedLinear(nn.Module):
    """`nn.Linear` for inference, with a weight that oneDNN has laid out: [..., in] to [..., out], of the weight's type.

    Args:
        weight: [out, in], float32 or bfloat16, on a CPU that oneDNN knows.
        bias: [out].
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._packed: Any = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)  # noqa: SLF001
        self._bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        rows = x.reshape(-1, self.in_features)
        count = len(rows)
        if count == 1:
            rows = rows.expand(FEWEST, -1)
        elif count < FEWEST:
            rows = F.pad(rows, (0, 0, 0, FEWEST - count))
        out = torch.ops.mkldnn._linear_pointwise(rows, self._packed, self._bias, "none", [], "")[:count]  # noqa: SLF001
        return out.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


def prepack(net: nn.Module, rows: int | None = None) -> nn.Module:
    """Lay out the matrices of a network for this CPU, in place; it can then infer, and neither train nor be saved.

    Where that does not pay (a GPU, no AVX-512, a torch without oneDNN, types other than float32 and bfloat16) nothing changes.
    A table that is also the head's matrix is kept twice.

    Args:
        net: the network.
        rows: that are mostly multiplied together, such as the texts that are written side by side (beams count); None for many.
    """
    return net.requires_grad_(False) if pays(net, rows) and replace_linears(net, PackedLinear) else net


def pays(net: nn.Module, rows: int | None = None) -> bool:
    """Whether `prepack` changes this network here."""
    parameters = list(net.parameters())
    fits = all(p.device.type == "cpu" and p.dtype in (torch.float32, torch.bfloat16) for p in parameters)
    known = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    # oneDNN's bf16 kernels ask for these; it may also have been told to do with less (ONEDNN_MAX_CPU_ISA)
    able = all(cpu_features().get(name) for name in ("avx512_f", "avx512_bw", "avx512_vl", "avx512_dq"))
    if rows is not None and rows < FEWEST and "Intel" in str(cpu_features().get("cpu_name")) and torch.backends.mkl.is_available() \
            and all(p.dtype == torch.float32 for p in parameters):
        return False
    return fits and known and able and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001
