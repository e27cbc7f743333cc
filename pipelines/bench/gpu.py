"""For GPUs, in one command under 9 minutes: is every attention backend right there, and how fast are the systems?

1. Numerics: each plan of `shared.plan` and each kernel of SDPA, forward and backward, against the
   definition (a dense mask and a softmax in fp32).
2. Speed beside transformers and open_clip: training in bf16 autocast, window attention, generation; then training once more with
   both sides compiled, after compiled was compared with eager. The most important come first, because the time is limited; each case
   has a limit of its own, and what was left out is listed.

Shares are of the matrix-product rate measured on the same card in the same run, and of the data sheet's dense bf16 rate where the card
is known (`bench.MFU` is the formula). On a CPU, with `quick`, the same code runs at tiny sizes; that is how it is tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...multimodal.clip import CLIPConfig
from ...multimodal.clip_config import CLIPTextConfig, CLIPVisionConfig
from ...registry import family
from ...seq2seq.gpt2 import GPT2Config
from ...shared.attention.choose import Documents, make_plan
from ...shared.attention.flex import Flex
from ...shared.attention.mask import Layout, Mask
from ...shared.attention.plan import Dense, Plan, Shape
from ...shared.attention.sparse import Blocks, Local
from ...text.bert import BertConfig
from . import attention, generate, train
from .case import Agreement, Case, Cases, Options
from .machine import fast_bfloat16
from .pairing import TrainSetup, our_system
from .train import SMALL, Trainer, caption_lengths, natural_lengths, ours, theirs, training_case

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

    def inputs(self, *, learning: bool = True) -> tuple[Tensor, tuple[Tensor, ...]]:
        """A fused projection [B, L, 3, H, d], and the queries, keys and values in it, views as `Attention` makes them."""
        generator = torch.Generator().manual_seed(3)
        shape = (self.batch, self.length, 3, self.heads, self.size)
        fused = torch.randn(shape, generator=generator).to(self.device, self.dtype).requires_grad_(learning)
        return fused, fused.permute(2, 0, 3, 1, 4).unbind(0)


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
    fused, inputs = problem.inputs(learning=backward)
    out = attend(*inputs)
    if not backward:
        return [out.detach().float()]
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(4)).to(out.device, out.dtype)
    (out * direction).sum().backward()
    return [out.detach().float(), *cast(Tensor, fused.grad).float().unbind(2)]


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
    return make_plan(problem.mask, problem.batch, problem.length, problem.length, torch.device(problem.device), backend=backend)


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

    _, (q, k, v) = problem.inputs()
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
                used = dtype == torch.bfloat16 and Flex.pays(mask, Shape(batch, length, length, shape_device))
                if backend is Flex and on_gpu and not used:
                    continue  # each mask compiles for seconds: those that it is chosen for, in the type that is trained with
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


# ---------------------------------------------------------------------------------------------- speed


def same_compiled(setup: TrainSetup) -> Agreement:
    """Loss and gradient norm of the first step, compiled against eager."""
    found: list[list[float]] = []
    for compiled in (False, True):
        trainer = ours(setup, compiled)
        loss = trainer.loss()
        loss.backward()
        found.append([loss.item(), _gradient_norm(trainer)])
        del trainer, loss  # there may be room for one
    apart = max(abs(a - b) / abs(a) for a, b in zip(*found, strict=True))
    return Agreement("loss and gradient norm, compiled against eager, relative", apart, TOLERANCE[setup.dtype])


def _gradient_norm(trainer: Trainer) -> float:
    return torch.stack([p.grad.float().norm() for p in trainer.module.parameters() if p.grad is not None]).norm().item()


def same_as_peer(setup: TrainSetup) -> Agreement:
    """Loss and gradient in exact fp32 on the first sequences, where rounding hides no mistake; then the whole batch's loss as trained."""
    few = 1 + sum(sum(setup.lengths[: i + 1]) <= FEW_TOKENS for i in range(1, len(setup.lengths)))
    convolutions = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        exact = train.agree(replace(setup, dtype=torch.float32, lengths=setup.lengths[:few]))
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
    exact = replace(exact, what=f"{exact.what}; {few} sequences in float32", tolerance=EXACT)
    if not exact.holds:
        return exact
    losses: list[float] = []
    for make in (ours, theirs):
        with torch.no_grad():
            losses.append(make(setup).loss().item())
    apart = abs(losses[0] - losses[1]) / abs(losses[1])
    if apart <= LOSS_APART:
        return exact
    return Agreement(f"loss of the whole batch in {str(setup.dtype).removeprefix('torch.')}, relative", apart, LOSS_APART)


FEW_TOKENS = 2048
EXACT = 2e-3
"""Relative: on CUDA both sides add in other orders."""
LOSS_APART = 1e-2


def size(system: str, name: str, **changes: Any) -> Any:
    """The config of a named size."""
    entry = family(system)
    return entry.config.from_dict({**entry.sizes[name], **changes})


@dataclass(frozen=True)
class Training:
    """A system that is trained."""

    name: str
    setup: TrainSetup
    compiled: bool = False
    """Whether it is also measured with both sides compiled."""
    apart: bool = False


def trainings(options: Options) -> list[Training]:
    """What is trained, the most important first.

    In fp32 with AdamW a weight takes 16 bytes; an activation of a pre-norm block in autocast 36 D bytes a token, twice that where GELU is
    not fused (transformers). GPT at 1.3B on 8 rows so takes 21 + 15 GiB, and the peer 21 + 30 with its logits on top: one at a time.
    """
    dtype = torch.bfloat16 if fast_bfloat16(options.device) else torch.float32
    if options.quick:
        small = BertConfig(hidden_size=32, num_attention_heads=2, intermediate_size=64, vocab_size=99, num_hidden_layers=2,
                           max_position_embeddings=32)  # fmt: skip
        vision = CLIPVisionConfig(num_hidden_layers=2, image_size=32, patch_size=16, **SMALL)
        text = CLIPTextConfig(num_hidden_layers=2, vocab_size=99, eos_token_id=98, max_position_embeddings=16, **SMALL)
        towers = CLIPConfig(vision_config=vision, text_config=text)
        decoder = GPT2Config(n_embd=32, n_head=2, n_layer=2, vocab_size=99)
        both = size("t5", "small", d_model=32, d_kv=16, d_ff=64, num_heads=2, num_layers=2, vocab_size=99)
        rows = [
            Training("GPT-2, full rows", TrainSetup("gpt2", decoder, (16,) * 2)),
            Training("GPT-2, one side at a time", TrainSetup("gpt2", decoder, (16,) * 2), apart=True),
            Training("BERT, natural lengths", TrainSetup("bert", small, natural_lengths(4, 32))),
            Training("T5, full rows", TrainSetup("t5", both, (16,) * 2)),
            Training("CLIP", TrainSetup("clip", towers, caption_lengths(4, 16))),
        ]
        return [replace(t, setup=replace(t.setup, device=options.device).still()) for t in rows]
    billion = size("gpt2", "base", n_embd=2048, n_head=16, n_layer=24)
    rows = [
        Training("GPT-2 124M, full rows", TrainSetup("gpt2", size("gpt2", "base"), (1024,) * 16), compiled=True),
        Training("GPT 1.3B, full rows", TrainSetup("gpt2", billion, (1024,) * 8), compiled=True, apart=True),
        Training("BERT large, full rows", TrainSetup("bert", size("bert", "large"), (512,) * 32), compiled=True),
        Training("CLIP ViT-L/14", TrainSetup("clip", size("clip", "large"), caption_lengths(128, 77)), compiled=True),
        Training("BERT base, full rows", TrainSetup("bert", size("bert", "base"), (512,) * 64), compiled=True),
        Training("CLIP ViT-B/32", TrainSetup("clip", size("clip", "base"), caption_lengths(512, 77)), compiled=True),
        Training("BERT base, natural lengths", TrainSetup("bert", size("bert", "base"), natural_lengths(256, 512))),
        Training("T5 base, full rows", TrainSetup("t5", size("t5", "base"), (512,) * 32)),
        Training("GPT-2 medium (350M), full rows", TrainSetup("gpt2", size("gpt2", "medium"), (1024,) * 8), compiled=True),
        Training("CLIP ViT-B/16", TrainSetup("clip", size("clip", "base16"), caption_lengths(256, 77))),
    ]
    return [replace(t, setup=replace(t.setup, device=options.device, dtype=dtype).still()) for t in rows]


EAGER_SECONDS, COMPILED_SECONDS = 40.0, 80.0
"""Limits of a training case: three quarters of a compiled one is compilation."""


def weight_bytes(setup: TrainSetup) -> int:
    """What training takes at least: weights, gradients and two moments in fp32, weights in bf16."""
    built = our_system(replace(setup, device="meta"))
    return 18 * sum(p.numel() for p in built.parameters())


def cases(options: Options) -> Cases:
    """Numerics, then speed."""
    options.peer("gpu", PEERS)
    yield from numerics(options)
    yield from speed(options)


def speed(options: Options) -> Cases:
    """Every system once, attention, generation; then what pays to compile, compiled."""
    todo = trainings(options)
    for t in todo:
        case = training_case(t.name, t.setup)
        agree = partial(same_as_peer if options.device == "cuda" else train.agree, t.setup)
        yield replace(case, agree=agree, limit=EAGER_SECONDS, apart=t.apart, needs=weight_bytes(t.setup))
    yield from attention.gpu_cases(options)
    yield from generate.gpu_cases(options)
    for t in todo:
        if t.compiled:
            case = training_case(f"{t.name}, compiled", t.setup, compiled=True, eager=False)
            yield replace(case, agree=partial(same_compiled, t.setup), limit=COMPILED_SECONDS, apart=t.apart, needs=weight_bytes(t.setup))
