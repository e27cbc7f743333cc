"""Greedy generation and beam search: GPT-2 and T5 beside transformers' `generate`, the same weights and prompts.

One step is the whole continuation: reading the prompts, then one token at a time with cached keys and
values. There is no end-of-text token, so both sides write the same number of tokens, and every one of
them must be the same before anything is timed. Our weights are laid out as `polymodal generate` does
it after loading (`pipelines/model/prepack.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...seq2seq import gpt2, t5
from ...seq2seq.generation.generate import generate_ids
from ..model.prepack import prepack
from ..model.quantize import quantize
from .case import Agreement, Case, Cases, Contender, Options
from .machine import fast_bfloat16, need
from .systems import copy_weights, fresh, rules_of

PEERS = ("transformers",)


@dataclass(frozen=True)
class Peer:
    """A network and its counterpart in transformers."""

    family: str
    build: Callable[[Any], nn.Module]
    config: str
    network: str


GPT2 = Peer("gpt2", gpt2.GPT2LMHeadModel, "GPT2Config", "GPT2LMHeadModel")
T5 = Peer("t5", t5.T5ForConditionalGeneration, "T5Config", "T5ForConditionalGeneration")


@dataclass(frozen=True)
class Work:
    """Prompts and what follows them."""

    peer: Peer
    config: Any
    batch: int
    prompt: int
    new: int
    beams: int = 1
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    quantize: str | None = None

    def prompts(self) -> Tensor:
        """Random ids [B, S], none of them special."""
        generator = torch.Generator().manual_seed(2)
        return torch.randint(3, self.config.vocab_size, (self.batch, self.prompt), generator=generator).to(self.device)


Writer = Callable[[], Tensor]


def write(writer: Writer) -> Tensor:
    """Prompts and continuations [B, S + new]."""
    return writer()


def ours(work: Work) -> Writer:
    """Our side."""
    net = fresh(partial(work.peer.build, work.config), 0).to(work.device, work.dtype).eval()
    if work.quantize is not None:
        net = quantize(net, work.quantize)
    net = prepack(net)
    prompts = work.prompts()
    return lambda: generate_ids(net, prompts, max_new_tokens=work.new, num_beams=work.beams, eos_token_id=-1)


def theirs(work: Work) -> Writer:
    """transformers, with its default (growing) cache."""
    transformers = need("transformers")
    config = getattr(transformers, work.peer.config)(**work.config.to_dict(), attn_implementation="sdpa")
    net = getattr(transformers, work.peer.network)(config)
    copy_weights(fresh(partial(work.peer.build, work.config), 0), net, rules_of(work.peer.family, work.config))
    net.generation_config.eos_token_id = None
    net.generation_config.decoder_start_token_id = getattr(work.config, "start_id", None)
    net.to(work.device, work.dtype).eval()
    prompts = work.prompts()
    seen = torch.ones_like(prompts)

    def generate() -> Tensor:
        with torch.no_grad():
            return net.generate(prompts, attention_mask=seen, max_new_tokens=work.new, num_beams=work.beams, do_sample=False,
                                pad_token_id=0)

    return generate


def agree(work: Work) -> Agreement:
    """Tokens that differ, of all; in fp32, because in bf16 ties are common."""
    exact = replace(work, dtype=torch.float32)
    a, b = write(ours(exact)), write(theirs(exact))
    apart = (a != b).float().mean().item() if a.shape == b.shape else 1.0
    # on a GPU two nearly equal logits may change places, and all that follows in that text with them
    return Agreement("share of tokens that differ (in float32)", apart, 0.0 if work.device == "cpu" else 0.03)


def near(work: Work) -> Agreement:
    """How far the logits after the prompts move."""
    exact = fresh(partial(work.peer.build, work.config), 0).eval()
    fewer = quantize(fresh(partial(work.peer.build, work.config), 0).eval(), str(work.quantize))
    with torch.inference_mode():
        a, b = (net(work.prompts()).logits[:, -1] for net in (fewer, exact))
    return Agreement("relative change of the logits by int8", ((a - b).norm() / b.norm()).item(), 0.05)


def cases(options: Options) -> Cases:
    """GPT-2 small, one prompt and eight; with 4 beams, and T5 small with 4 beams."""
    options.peer("generate", PEERS)
    nothing: dict[str, Any] = {"eos_token_id": None, "bos_token_id": None}
    small: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 300} if options.quick else {}
    tiny: dict[str, Any] = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "vocab_size": 300}
    decoder = gpt2.GPT2Config(**small, **nothing)
    both = t5.T5Config(**(tiny if options.quick else {}))
    prompt, new = (5, 6) if options.quick else (64, 32)
    batches = (1, 8)
    for dtype in (torch.float32, torch.bfloat16) if fast_bfloat16(options.device) else (torch.float32,):
        works = [Work(GPT2, decoder, batch, prompt, new, 1, options.device, dtype) for batch in batches]
        works += [Work(GPT2, decoder, batch, prompt, new, 4, options.device, dtype) for batch in batches[:2]]
        works += [Work(T5, both, batch, prompt * 4, new, beams, options.device, dtype) for beams in (1, 4) for batch in batches[:2]]
        for work in works:
            yield writing_case(work)
    if options.device != "cpu":
        return
    for batch in batches:
        whole = Work(GPT2, decoder, batch, prompt, new)
        work = replace(whole, quantize="int8")
        sides = (Contender("polymodal", partial(ours, work), write),
                 Contender("polymodal, float32", partial(ours, whole), write, same_work=False),
                 Contender("transformers, float32", partial(theirs, whole), write, same_work=False))
        yield Case(f"GPT-2 greedy int8, batch {batch}", f"{batch} prompts of {prompt} tokens, {new} new tokens each", "tokens", batch * new,
                   sides, partial(near, work))


def writing_case(work: Work) -> Case:
    """One continuation of each prompt beside transformers."""
    title = "GPT-2" if work.peer is GPT2 else "T5-small"
    name = f"{title} {'greedy' if work.beams == 1 else f'{work.beams} beams'}, batch {work.batch}"
    about = f"{work.batch} prompts of {work.prompt} tokens, {work.new} new tokens each, {str(work.dtype).removeprefix('torch.')}"
    sides = (Contender("polymodal", partial(ours, work), write), Contender("transformers", partial(theirs, work), write))
    name += " bf16" if work.dtype == torch.bfloat16 else ""
    flops = gpt2_flops(work) if work.peer is GPT2 else t5_flops(work)
    return Case(name, about, "tokens", work.batch * work.new, sides, partial(agree, work), flops, str(work.dtype).removeprefix("torch."))


def gpt2_flops(work: Work) -> float:
    """Of the matrix products and the attention: prompts are read once, then each beam's tokens one by one; the last is not read."""
    c = work.config
    steps = work.beams * (work.new - 1)
    weights = c.n_layer * (4 * c.n_embd**2 + 2 * c.n_embd * (c.n_inner or 4 * c.n_embd))
    pairs = work.prompt * (work.prompt + 1) / 2 + work.beams * sum(range(work.prompt + 1, work.prompt + work.new))
    products = weights * (work.prompt + steps) + c.vocab_size * c.n_embd * (1 + steps)
    return work.batch * (2.0 * products + 4.0 * c.n_layer * c.n_embd * pairs)


def t5_flops(work: Work) -> float:
    """The same of T5: the encoder reads a text once, so do the decoder's projections of it; the decoder begins with its start token."""
    c = work.config
    text, inner = work.prompt, c.num_heads * c.d_kv
    steps = 1 + work.beams * (work.new - 1)
    square, dense = c.d_model * inner, (3 if c.gated else 2) * c.d_model * c.d_ff
    encoder = c.num_layers * ((4 * square + dense) * text + 2 * inner * text**2)
    pairs = text * steps + 1 + work.beams * sum(range(2, work.new + 1))
    decoder = c.decoder_layers * ((6 * square + dense) * steps + 2 * square * text + 2 * inner * pairs)
    return 2.0 * work.batch * (encoder + decoder + c.vocab_size * c.d_model * steps)


def gpu_cases(options: Options) -> Cases:
    """GPT-2 124M in bf16 (fp32 where the card has none), greedy, one prompt to 64 at a time."""
    nothing: dict[str, Any] = {"eos_token_id": None, "bos_token_id": None}
    small: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 300} if options.quick else {}
    dtype = torch.bfloat16 if options.device == "cuda" and fast_bfloat16("cuda") else torch.float32
    prompt, new = (5, 6) if options.quick else (64, 64)
    for batch in (1, 8, 64):
        work = Work(GPT2, gpt2.GPT2Config(**small, **nothing), batch, prompt, new, 1, options.device, dtype)
        yield replace(writing_case(work), limit=40.0)
