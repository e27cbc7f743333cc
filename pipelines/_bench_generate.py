"""Greedy generation: GPT-2 beside transformers' `generate`, the same weights and prompts.

One step is the whole continuation: reading the prompts, then one token at a time with cached keys and
values. There is no end-of-text token, so both sides write the same number of tokens, and every one of
them must be the same before anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..seq2seq import gpt
from ..seq2seq.generate import generate_ids
from ._bench_machine import fast_bfloat16, need
from ._bench_systems import copy_weights, fresh, rules_of
from .bench import Agreement, Case, Cases, Contender, Options

PEERS = ("transformers",)


@dataclass(frozen=True)
class Work:
    """Prompts and what follows them."""

    config: gpt.GPT2Config
    batch: int
    prompt: int
    new: int
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def prompts(self) -> Tensor:
        """Random ids [B, S]."""
        generator = torch.Generator().manual_seed(2)
        return torch.randint(self.config.vocab_size, (self.batch, self.prompt), generator=generator).to(self.device)


Writer = Callable[[], Tensor]


def write(writer: Writer) -> Tensor:
    """Prompts and continuations [B, S + new]."""
    return writer()


def ours(work: Work) -> Writer:
    """Our side."""
    net = fresh(partial(gpt.GPT2LMHeadModel, work.config), 0).to(work.device, work.dtype).eval()
    prompts = work.prompts()
    return lambda: generate_ids(net, prompts, max_new_tokens=work.new)


def theirs(work: Work) -> Writer:
    """transformers, with its default (growing) cache."""
    transformers = need("transformers")
    config = transformers.GPT2Config(**work.config.to_dict(), attn_implementation="sdpa")
    net = transformers.GPT2LMHeadModel(config)
    copy_weights(fresh(partial(gpt.GPT2LMHeadModel, work.config), 0), net, rules_of("gpt2", work.config))
    net.to(work.device, work.dtype).eval()
    prompts = work.prompts()
    seen = torch.ones_like(prompts)

    def generate() -> Tensor:
        with torch.no_grad():
            return net.generate(prompts, attention_mask=seen, max_new_tokens=work.new, do_sample=False, pad_token_id=0)

    return generate


def agree(work: Work) -> Agreement:
    """Tokens that differ, of all. In bf16 both sides' logits are compared in fp32 instead: there ties are common."""
    exact = Work(work.config, work.batch, work.prompt, work.new, work.device)
    a, b = write(ours(exact)), write(theirs(exact))
    apart = (a != b).float().mean().item() if a.shape == b.shape else 1.0
    return Agreement("share of tokens that differ (in float32)", apart, 0.0)


def cases(options: Options) -> Cases:
    """GPT-2 small, one prompt and eight."""
    options.peer("generate", PEERS)
    nothing: dict[str, Any] = {"eos_token_id": None, "bos_token_id": None}
    sizes: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 300} if options.quick else {}
    config = gpt.GPT2Config(**sizes, **nothing)
    prompt, new = (5, 6) if options.quick else (64, 32)
    batches = (1, 8, 64) if options.device == "cuda" else (1, 8)
    for dtype in (torch.float32, torch.bfloat16) if fast_bfloat16(options.device) else (torch.float32,):
        for batch in batches:
            work = Work(config, batch, prompt, new, options.device, dtype)
            name = f"GPT-2 greedy, batch {batch}" + (" bf16" if dtype == torch.bfloat16 else "")
            about = f"{batch} prompts of {prompt} tokens, {new} new tokens each, {str(dtype).removeprefix('torch.')}"
            sides = (Contender("polymodal", partial(ours, work), write), Contender("transformers", partial(theirs, work), write))
            yield Case(name, about, "tokens", batch * new, sides, partial(agree, work))
