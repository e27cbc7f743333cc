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

from ...seq2seq import bart, gpt2, t5
from ...seq2seq.generation.generate import generate_ids
from ..model.prepack import prepack
from ..model.quantize import quantize
from .case import Agreement, Case, Cases, Contender, Options
from .machine import fast_bfloat16, need
from .pairing import copy_weights, fresh, rules_of

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
BART = Peer("bart", bart.BartForConditionalGeneration, "BartConfig", "BartForConditionalGeneration")


@dataclass(frozen=True)
class GenerateSetup:
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


def ours(setup: GenerateSetup) -> Writer:
    """Our side."""
    net = fresh(partial(setup.peer.build, setup.config), 0).to(setup.device, setup.dtype).eval()
    if setup.quantize is not None:
        net = quantize(net, setup.quantize)
    net = prepack(net, setup.batch * setup.beams)
    prompts = setup.prompts()
    return lambda: generate_ids(net, prompts, max_new_tokens=setup.new, num_beams=setup.beams, eos_token_id=-1)


def theirs(setup: GenerateSetup) -> Writer:
    """transformers, with its default (growing) cache."""
    transformers = need("transformers")
    config = getattr(transformers, setup.peer.config)(**setup.config.to_dict(), attn_implementation="sdpa")
    net = getattr(transformers, setup.peer.network)(config)
    copy_weights(fresh(partial(setup.peer.build, setup.config), 0), net, rules_of(setup.peer.family, setup.config))
    net.generation_config.eos_token_id = net.generation_config.forced_eos_token_id = None
    net.generation_config.decoder_start_token_id = getattr(setup.config, "start_id", None)
    net.to(setup.device, setup.dtype).eval()
    prompts = setup.prompts()
    seen = torch.ones_like(prompts)

    def generate() -> Tensor:
        with torch.no_grad():
            return net.generate(prompts, attention_mask=seen, max_new_tokens=setup.new, num_beams=setup.beams, do_sample=False,
                                pad_token_id=0)

    return generate


def agree(setup: GenerateSetup) -> Agreement:
    """Tokens that differ, of all; in fp32, because in bf16 ties are common."""
    exact = replace(setup, dtype=torch.float32)
    a, b = write(ours(exact)), write(theirs(exact))
    apart = (a != b).float().mean().item() if a.shape == b.shape else 1.0
    # on a GPU two nearly equal logits may change places, and all that follows in that text with them
    return Agreement("share of tokens that differ (in float32)", apart, 0.0 if setup.device == "cpu" else 0.03)


def near(setup: GenerateSetup) -> Agreement:
    """How far the logits after the prompts move."""
    exact = fresh(partial(setup.peer.build, setup.config), 0).eval()
    fewer = quantize(fresh(partial(setup.peer.build, setup.config), 0).eval(), str(setup.quantize))
    with torch.inference_mode():
        a, b = (net(setup.prompts()).logits[:, -1] for net in (fewer, exact))
    return Agreement("relative change of the logits by int8", ((a - b).norm() / b.norm()).item(), 0.05)


def cases(options: Options) -> Cases:
    """GPT-2 small, one prompt and eight; with 4 beams, and T5 small and BART base with 4 beams."""
    options.peer("generate", PEERS)
    nothing: dict[str, Any] = {"eos_token_id": None, "bos_token_id": None}
    small: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 300} if options.quick else {}
    tiny: dict[str, Any] = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "vocab_size": 300}
    decoder = gpt2.GPT2Config(**small, **nothing)
    both = t5.T5Config(**(tiny if options.quick else {}))
    halves: dict[str, Any] = {**bart.SIZES["tiny"], "d_model": 32, "vocab_size": 300} if options.quick else bart.SIZES["base"]
    # no layer's output repeats its input so much that the first token comes again and again
    denoiser = bart.BartConfig(**halves, init_std=0.08)
    prompt, new = (5, 6) if options.quick else (64, 32)
    batches = (1, 8)
    for dtype in (torch.float32, torch.bfloat16) if fast_bfloat16(options.device) else (torch.float32,):
        setups = [GenerateSetup(GPT2, decoder, batch, prompt, new, 1, options.device, dtype) for batch in batches]
        setups += [GenerateSetup(GPT2, decoder, batch, prompt, new, 4, options.device, dtype) for batch in batches[:2]]
        setups += [GenerateSetup(peer, config, batch, prompt * 4, new, beams, options.device, dtype)
                   for peer, config in ((T5, both), (BART, denoiser)) for beams in (1, 4) for batch in batches]
        for setup in setups:
            yield writing_case(setup)
    if options.device != "cpu":
        return
    for batch in batches:
        whole = GenerateSetup(GPT2, decoder, batch, prompt, new)
        setup = replace(whole, quantize="int8")
        sides = (Contender("polymodal", partial(ours, setup), write),
                 Contender("polymodal, float32", partial(ours, whole), write, same_work=False),
                 Contender("transformers, float32", partial(theirs, whole), write, same_work=False))
        yield Case(f"GPT-2 greedy int8, batch {batch}", f"{batch} prompts of {prompt} tokens, {new} new tokens each", "tokens", batch * new,
                   sides, partial(near, setup))


def writing_case(setup: GenerateSetup) -> Case:
    """One continuation of each prompt beside transformers."""
    titled = {"gpt2": ("GPT-2", gpt2_flops), "t5": ("T5-small", t5_flops), "bart": ("BART-base", bart_flops)}
    title, operations = titled[setup.peer.family]
    name = f"{title} {'greedy' if setup.beams == 1 else f'{setup.beams} beams'}, batch {setup.batch}"
    about = f"{setup.batch} prompts of {setup.prompt} tokens, {setup.new} new tokens each, {str(setup.dtype).removeprefix('torch.')}"
    sides = (Contender("polymodal", partial(ours, setup), write), Contender("transformers", partial(theirs, setup), write))
    name += " bf16" if setup.dtype == torch.bfloat16 else ""
    precision = str(setup.dtype).removeprefix("torch.")
    return Case(name, about, "tokens", setup.batch * setup.new, sides, partial(agree, setup), operations(setup), precision)


def gpt2_flops(setup: GenerateSetup) -> float:
    """Of the matrix products and the attention: prompts are read once, then each beam's tokens one by one; the last is not read."""
    c = setup.config
    steps = setup.beams * (setup.new - 1)
    weights = c.n_layer * (4 * c.n_embd**2 + 2 * c.n_embd * (c.n_inner or 4 * c.n_embd))
    pairs = setup.prompt * (setup.prompt + 1) / 2 + setup.beams * sum(range(setup.prompt + 1, setup.prompt + setup.new))
    products = weights * (setup.prompt + steps) + c.vocab_size * c.n_embd * (1 + steps)
    return setup.batch * (2.0 * products + 4.0 * c.n_layer * c.n_embd * pairs)


def t5_flops(setup: GenerateSetup) -> float:
    """The same of T5."""
    c = setup.config
    inner = c.num_heads * c.d_kv
    return written_flops(setup, c.num_layers, c.decoder_layers, inner, (3 if c.gated else 2) * c.d_model * c.d_ff)


def bart_flops(setup: GenerateSetup) -> float:
    """The same of BART, whose sides have the same sizes here."""
    c = setup.config
    return written_flops(setup, c.encoder_layers, c.decoder_layers, c.d_model, 2 * c.d_model * c.encoder_ffn_dim)


def written_flops(setup: GenerateSetup, encoder_layers: int, decoder_layers: int, inner: int, dense: int) -> float:
    """The encoder reads a text once, so do the decoder's projections of it; the decoder begins with its start token.

    Args:
        setup: what is written.
        encoder_layers: blocks.
        decoder_layers: blocks.
        inner: width of the attention.
        dense: weights of a feed-forward net.
    """
    width, text = setup.config.d_model, setup.prompt
    steps = 1 + setup.beams * (setup.new - 1)
    square = width * inner
    encoder = encoder_layers * ((4 * square + dense) * text + 2 * inner * text**2)
    pairs = text * steps + 1 + setup.beams * sum(range(2, setup.new + 1))
    decoder = decoder_layers * ((6 * square + dense) * steps + 2 * square * text + 2 * inner * pairs)
    return 2.0 * setup.batch * (encoder + decoder + setup.config.vocab_size * width * steps)


def gpu_cases(options: Options) -> Cases:
    """GPT-2 124M in bf16 (fp32 where the card has none), greedy, one prompt to 64 at a time."""
    nothing: dict[str, Any] = {"eos_token_id": None, "bos_token_id": None}
    small: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 300} if options.quick else {}
    dtype = torch.bfloat16 if options.device == "cuda" and fast_bfloat16("cuda") else torch.float32
    prompt, new = (5, 6) if options.quick else (64, 64)
    for batch in (1, 8, 64):
        setup = GenerateSetup(GPT2, gpt2.GPT2Config(**small, **nothing), batch, prompt, new, 1, options.device, dtype)
        yield replace(writing_case(setup), limit=40.0)
