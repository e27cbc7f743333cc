"""For GPUs, in one command under 9 minutes: is every attention backend right there, and how fast are the systems?

1. Numerics: each plan of `shared.plan` and each kernel of SDPA, forward and backward, against the
   definition (a dense mask and a softmax in fp32); then torch.compile against eager on a small system.
2. Speed beside transformers and open_clip: training in bf16 autocast, eager and compiled on both sides,
   window attention, generation. The most important come first, because the time is limited.

The share that is printed is of the matrix-product rate measured on the same card in the same run; the
results file also holds plain FLOP/s, to be divided by any other peak. On a CPU, with `quick`, the same
code runs at tiny sizes; that is how it is tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..multimodal._clip_config import CLIPTextConfig, CLIPVisionConfig
from ..multimodal.clip import CLIPConfig
from ..registry import family
from ..seq2seq.gpt import GPT2Config
from ..shared.flex import Flex
from ..shared.mask import Layout, Mask
from ..shared.plan import Dense, Documents, Plan, Shape
from ..shared.sparse import Blocks, Local
from ..text.bert import BertConfig
from . import _bench_attention, _bench_generate
from ._bench_machine import fast_bfloat16
from ._bench_systems import Work
from ._bench_train import SMALL, Trainer, caption_lengths, natural_lengths, ours, training_case
from .bench import Agreement, Case, Cases, Options

PEERS = ("transformers", "open_clip")
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Of the largest number. fp32 leaves room for kernels that multiply in TF32."""


# ------------------------------------------------------------------------------------------- numerics


@dataclass(frozen=True)
class Problem:
    """One attention to be computed: [1 or 2, H, L, d]."""

    mask: Mask
    length: int
    batch: int = 1
    heads: int = 4
    size: int = 64
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def inputs(self, *, learning: bool = True) -> list[Tensor]:
        """Queries, keys and values."""
        generator = torch.Generator().manual_seed(3)
        shape = (self.batch, self.heads, self.length, self.size)
        return [torch.randn(shape, generator=generator).to(self.device, self.dtype).requires_grad_(learning) for _ in range(3)]


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def definition(problem: Problem) -> Attend:
    """Softmax over what the dense mask shows, in fp32; a query that sees nothing gets zeros."""
    ok = problem.mask.dense(problem.batch, problem.length, problem.length, torch.device(problem.device))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q.float() @ k.float().transpose(2, 3) / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(~ok, float("-inf")).softmax(-1).masked_fill(~ok, 0.0)
        return weights @ v.float()

    return attend


def results(attend: Attend, problem: Problem, *, backward: bool) -> list[Tensor]:
    """The output, and the gradients of queries, keys and values for one fixed output gradient."""
    inputs = problem.inputs(learning=backward)
    out = attend(*inputs)
    if not backward:
        return [out.detach().float()]
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(4)).to(out.device, out.dtype)
    (out * direction).sum().backward()
    return [out.detach().float(), *(cast(Tensor, t.grad).float() for t in inputs)]


def compare(make: Callable[[Problem], Attend], problem: Problem, kernel: Callable[[], AbstractContextManager[Any]] = nullcontext, *,
            backward: bool = True) -> Agreement:
    """The largest difference from the definition, relative to the largest number of each result."""
    torch.compiler.reset()  # or FlexAttention gives up compiling after a few masks
    full = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False  # the definition is exact fp32
    try:
        expected = results(definition(problem), problem, backward=backward)
        with kernel():
            found = results(make(problem), problem, backward=backward)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = full
    apart = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, expected, strict=True))
    what = "output and gradients" if backward else "output"
    return Agreement(f"{what} against the dense definition in fp32, largest difference, relative", apart, TOLERANCE[problem.dtype])


def by_plan(backend: type[Plan], problem: Problem) -> Attend:
    """One of our plans."""
    return problem.mask.plan(problem.batch, problem.length, problem.length, torch.device(problem.device), backend=backend)


def masks(length: int, device: str) -> Iterator[tuple[str, Mask, int]]:
    """(name, mask, batch): every kind of structure, several together."""
    place = torch.device(device)
    reach, cut = length // 8, (length // 2, length // 4 + 3, length // 4 - 3)
    keep = torch.ones(2, length, dtype=torch.bool, device=place)
    keep[1, length // 2 :] = False
    special = torch.zeros(1, length, dtype=torch.bool, device=place)
    special[0, [0, length // 3]] = True
    blocks = length // 16
    table = torch.eye(blocks, dtype=torch.bool) | torch.eye(blocks, dtype=torch.bool).roll(1, 0)
    table[0] = True
    table[:, 0] = True
    yield "everything", Mask(), 2
    yield "causal", Mask(causal=True), 2
    yield "padding", Mask(keep=keep), 2
    yield "documents", Mask(lengths=cut), 1
    yield "causal documents", Mask(causal=True, lengths=cut), 1
    yield "window", Mask(window=(reach, reach)), 2
    yield "causal window", Mask(causal=True, window=(reach, 0)), 2
    yield "windowed documents", Mask(causal=True, window=(reach, 0), lengths=cut), 1
    yield "prefix", Mask(causal=True, prefix=torch.tensor([length // 5, 3], device=place)), 2
    yield "window with global tokens", Mask(window=(reach, reach), global_tokens=special), 1
    yield "block table", Mask(blocks=Layout(table, 16)), 2


def kernels(problem: Problem) -> Iterator[SDPBackend]:
    """SDPA's kernels that take this problem on this device."""
    yield SDPBackend.MATH
    if problem.device != "cuda":
        yield SDPBackend.FLASH_ATTENTION
        return
    from torch.backends.cuda import SDPAParams, can_use_cudnn_attention, can_use_efficient_attention, can_use_flash_attention

    q, k, v = problem.inputs()
    params = SDPAParams(q, k, v, None, 0.0, problem.mask.causal, False)
    for usable, kernel in ((can_use_flash_attention, SDPBackend.FLASH_ATTENTION), (can_use_cudnn_attention, SDPBackend.CUDNN_ATTENTION),
                           (can_use_efficient_attention, SDPBackend.EFFICIENT_ATTENTION)):
        if usable(params):
            yield kernel


def numerics(options: Options) -> Cases:
    """Every plan on every mask it takes, every kernel of SDPA with and without causal order."""
    length = 128 if options.quick else 1024
    on_gpu = options.device == "cuda"
    types = (torch.float32, torch.bfloat16, torch.float16) if on_gpu else (torch.float32,)
    shape_device = torch.device(options.device)
    for name, mask, batch in masks(length, options.device):
        for backend in (Dense, Documents, Flex, Local, Blocks):
            if not backend.supports(mask, Shape(batch, length, length, shape_device), None):
                continue
            for dtype in types:
                problem = Problem(mask, length, batch, device=options.device, dtype=dtype)
                both_ways = on_gpu or backend is not Flex  # FlexAttention has no backward on a CPU
                yield _check(f"{backend.__name__}: {name}", partial(compare, partial(by_plan, backend), problem, backward=both_ways), dtype)
    for causal in (False, True):
        for dtype in types:
            problem = Problem(Mask(causal=causal), length, 2, device=options.device, dtype=dtype)
            for kernel in kernels(problem):
                name = f"SDPA {kernel.name.lower().replace('_', ' ')}{', causal' if causal else ''}"
                yield _check(name, partial(compare, partial(by_plan, Dense), problem, partial(sdpa_kernel, kernel)), dtype)


def _check(name: str, agree: Callable[[], Agreement], dtype: torch.dtype) -> Case:
    kind = str(dtype).removeprefix("torch.")
    return Case(f"numerics, {name}, {kind}", "checked, not timed", "", 0, (), agree, precision=kind)


def same_compiled(work: Work) -> Agreement:
    """Loss and gradient norm of the first step, compiled against eager."""
    found: list[list[float]] = []
    for trainer in (ours(work), ours(work, True)):
        loss = trainer.loss()
        loss.backward()
        found.append([loss.item(), _gradient_norm(trainer)])
    apart = max(abs(a - b) / abs(a) for a, b in zip(*found, strict=True))
    return Agreement("loss and gradient norm, compiled against eager, relative", apart, TOLERANCE[work.dtype])


def _gradient_norm(trainer: Trainer) -> float:
    return torch.stack([p.grad.float().norm() for p in trainer.module.parameters() if p.grad is not None]).norm().item()


# ---------------------------------------------------------------------------------------------- speed


def size(system: str, name: str, **changes: Any) -> Any:
    """The config of a named size."""
    entry = family(system)
    return entry.config.from_dict({**entry.sizes[name], **changes})


def works(options: Options) -> list[tuple[str, Work]]:
    """What is trained, the most important first."""
    dtype = torch.bfloat16 if fast_bfloat16(options.device) else torch.float32
    if options.quick:
        small = BertConfig(hidden_size=32, num_attention_heads=2, intermediate_size=64, vocab_size=99, num_hidden_layers=2,
                           max_position_embeddings=32)  # fmt: skip
        vision = CLIPVisionConfig(num_hidden_layers=2, image_size=32, patch_size=16, **SMALL)
        text = CLIPTextConfig(num_hidden_layers=2, vocab_size=99, eos_token_id=98, max_position_embeddings=16, **SMALL)
        towers = CLIPConfig(vision_config=vision, text_config=text)
        decoder = GPT2Config(n_embd=32, n_head=2, n_layer=2, vocab_size=99)
        return [
            ("GPT-2, full rows", Work("gpt2", decoder, (16,) * 2, options.device).still()),
            ("BERT, natural lengths", Work("bert", small, natural_lengths(4, 32), options.device).still()),
            ("CLIP", Work("clip", towers, caption_lengths(4, 16), options.device)),
        ]
    rows = [
        ("GPT-2 124M, full rows", Work("gpt2", size("gpt2", "base"), (1024,) * 16)),
        ("BERT base, full rows", Work("bert", size("bert", "base"), (512,) * 32)),
        ("CLIP ViT-B/32", Work("clip", size("clip", "base"), caption_lengths(256, 77))),
        ("BERT base, natural lengths", Work("bert", size("bert", "base"), natural_lengths(128, 512))),
        ("GPT-2 medium (350M), full rows", Work("gpt2", size("gpt2", "medium"), (1024,) * 8)),
        ("BERT large, full rows", Work("bert", size("bert", "large"), (512,) * 16)),
    ]
    return [(name, Work(w.system, w.config, w.lengths, options.device, dtype).still()) for name, w in rows]


def cases(options: Options) -> Cases:
    """Numerics, then training, attention and generation."""
    options.peer("gpu", PEERS)
    yield from numerics(options)
    todo = works(options)
    if not options.quick:  # compiling takes long on a CPU, where this is only tested
        yield Case("numerics, torch.compile", "checked, not timed", "", 0, (), partial(same_compiled, todo[1][1]))
    for name, work in todo:
        yield training_case(name, work, compiled=not options.quick)
    yield from _bench_attention.cases(options)
    yield from _bench_generate.cases(options)
