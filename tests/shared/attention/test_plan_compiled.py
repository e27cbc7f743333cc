"""Packed documents under torch.compile, with the kernel that they have on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from polymodal.shared.attention import Attention
from polymodal.shared.attention.choose import Documents
from polymodal.shared.attention.mask import Mask, on_device
from polymodal.shared.attention.plan import Shape
from polymodal.shared.block import Block, FeedForward, LayerNorm
from polymodal.shared.stack import Stack
from torch import Tensor
from torch.nn.attention import varlen


@torch.library.custom_op("polymodal_test::documents", mutates_args={})
def documents(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int) -> Tensor:
    """What varlen attention computes, on a CPU, forward only."""
    ends = starts.tolist()
    assert max(b - a for a, b in pairwise(ends)) == longest
    parts = [torch.nn.functional.scaled_dot_product_attention(*(t[a:b].transpose(0, 1)[None] for t in (q, k, v)), is_causal=True)[0]
             for a, b in pairwise(ends)]
    return torch.cat(parts, 1).transpose(0, 1).contiguous()


@documents.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int) -> Tensor:
    return torch.empty(q.shape, dtype=q.dtype)


def varlen_attn(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, ends: Tensor, longest: int, most: int, **settings: Any) -> Tensor:
    assert starts is ends and longest == most and settings == {"scale": None, "window_size": (-1, 0)}
    return torch.ops.polymodal_test.documents(q, k, v, starts, longest)


@pytest.mark.slow
def test_all_layers_are_one_graph_whatever_the_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    make, graphs = Documents.__init__, [0, 0]

    def as_on_cuda(plan: Documents, mask: Mask, shape: Shape, bias: Tensor | None) -> None:
        make(plan, mask, shape, bias)
        plan.varlen = True
        plan.cumulative = plan.key_cumulative = on_device([0, *torch.tensor(mask.lengths).cumsum(0).tolist()], shape.device, torch.int32)

    def backend(graph: torch.fx.GraphModule, examples: list[Tensor]) -> Callable[..., Any]:
        kernels = sum("documents" in str(node.target) for node in graph.graph.nodes)
        graphs[0] += kernels > 0
        assert kernels in (0, 3), "one graph holds all layers"

        def run(*inputs: Tensor) -> Any:
            graphs[1] += kernels > 0
            return graph.forward(*inputs)

        return run

    blocks = [Block(Attention(32, 2), FeedForward(32, 64), norm=lambda: LayerNorm(32), order="pre") for _ in range(3)]
    stack = Stack(blocks, final_norm=LayerNorm(32)).bfloat16().eval()
    compiled = torch.compile(stack, backend=backend)
    with torch.inference_mode():
        for number, lengths in enumerate([(8, 8), (5, 9, 3), (4, 4, 4, 4), (20, 2), *((3,) * n for n in range(5, 15))], 1):
            x, mask = torch.randn(1, sum(lengths), 32).bfloat16(), Mask(causal=True, lengths=lengths)
            expected = stack(x, mask)
            with monkeypatch.context() as m:
                m.setattr(Documents, "__init__", as_on_cuda)
                m.setattr(varlen, "varlen_attn", varlen_attn)
                found = compiled(x, mask)
            assert torch.allclose(found.float(), expected.float(), atol=0.05), lengths
            assert graphs[1] == number
    assert graphs[0] == 2, "compiled for the first lengths, and once for all others"
    torch.compiler.reset()
