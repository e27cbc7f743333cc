"""Training: text systems, MAE and BEiT beside transformers, CLIP beside open_clip, ViT beside timm; GPT-2 beside plain torch too.

One step is forward, backward, fused AdamW and clearing the gradients, on the same weights, batch,
precision and dropout (`systems.py`). Before the race the loss and the whole gradient, carried over by
the family's rule table, are compared without dropout.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ...multimodal.clip import CLIPConfig
from ...multimodal.clip_config import CLIPTextConfig, CLIPVisionConfig
from ...multimodal.unimo import UnimoConfig
from ...multimodal.uniter import UniterConfig
from ...registry import family
from ...seq2seq.bart import BartConfig
from ...seq2seq.gpt2 import GPT2Config
from ...seq2seq.gpt3 import GPT3Config
from ...seq2seq.mass import MassConfig
from ...seq2seq.t5 import T5Config
from ...seq2seq.unilm import UnilmConfig
from ...shared.convert import to_theirs
from ...shared.loss import at_least_fp32
from ...shared.system import System
from ...text.albert import AlbertConfig
from ...text.bert import BertConfig
from ...text.bigbird import BigBirdConfig
from ...text.elmo import ElmoConfig
from ...text.roberta import RobertaConfig
from ...text.xlnet_config import XLNetConfig
from ...vision.beit import BeitConfig
from ...vision.mae import MAEConfig
from ...vision.vit import ViTConfig
from ..train.layers import compile_parts
from . import hashed, taught, tuned
from .case import Agreement, Case, Cases, Contender, Options
from .machine import fast_bfloat16
from .pairing import Loss, TrainSetup, our_system
from .systems import PAIRINGS, our_loss

USUAL = ("transformers", "open_clip", "timm")
PEERS = tuple(f"{name}{how}" for name in (*USUAL, "plain-torch") for how in ("", "-compiled"))
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
BF16_SHARE = 1.25
"""How much farther than the peer's ours may be from fp32."""
LEARNING_RATE = 1e-5


@dataclass
class Trainer:
    """One side, ready to step."""

    module: nn.Module
    loss: Callable[[], Tensor]
    optimizer: torch.optim.Optimizer


def update(trainer: Trainer) -> Tensor:
    """One training step."""
    loss = trainer.loss()
    loss.backward()
    trainer.optimizer.step()
    trainer.optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def ours(setup: TrainSetup, compiled: bool = False) -> Trainer:
    """Our system; compiled as the trainer does it."""
    system = our_system(setup)
    if compiled:
        compile_parts(system)
    return _trainer(system, our_loss(setup), setup)


def theirs(setup: TrainSetup, compiled: bool = False) -> Trainer:
    """The peer's; compiled as a whole, as its users do it."""
    module, loss = PAIRINGS[setup.system].peer(setup, our_system(setup))
    if compiled:
        module.compile()
    return _trainer(module, loss, setup)


def _trainer(module: nn.Module, loss: Loss, setup: TrainSetup) -> Trainer:
    module.to(setup.device).train()

    def compute() -> Tensor:
        with torch.autocast(setup.device, setup.dtype) if setup.dtype != torch.float32 else nullcontext():
            return loss(module)

    return Trainer(module, compute, torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, weight_decay=0.01, fused=True))


def agree(setup: TrainSetup) -> Agreement:
    """Loss and gradient of the first step, without dropout.

    fp32 that differs by more than the tolerance is compared in fp64 again, which tells rounding (a ReLU that switches) from another
    function. bf16 that does is compared with the peer's fp32, from which ours must not be farther than the peer's bf16 is.
    """
    what, limit, setup = "loss, and norm of the gradients' difference, relative", TOLERANCE[setup.dtype], setup.still()
    mine, peer = _first_step(setup, True), _first_step(setup, False)
    difference = _apart(mine, peer)
    if difference <= limit or setup.device != "cpu":
        return Agreement(what, difference, limit)
    if setup.dtype == torch.bfloat16:
        exact = _first_step(replace(setup, dtype=torch.float32), False)
        return Agreement(f"{what}, to the peer's in fp32", _apart(mine, exact), BF16_SHARE * _apart(peer, exact))
    if PAIRINGS[setup.system].unit == "pictures":
        return Agreement(what, difference, limit)
    mine, peer = (_first_step(setup, is_ours, torch.float64) for is_ours in (True, False))
    return Agreement(f"{what}, in fp64 (in fp32 {difference:.2g})", _apart(mine, peer), limit)


def _first_step(setup: TrainSetup, is_ours: bool, dtype: torch.dtype = torch.float32) -> tuple[float, dict[str, Tensor]]:
    """Loss, and gradients by the peer's names, with weights of this type."""
    trainer = ours(setup) if is_ours else theirs(setup)
    trainer.module.to(dtype)
    loss = trainer.loss()
    loss.backward()
    if not is_ours:
        return loss.item(), {n: _gradient(p) for n, p in trainer.module.named_parameters()}
    net = cast(System, trainer.module).net
    rules = PAIRINGS[setup.system].rules(setup.config)
    found = {n: _gradient(p) for n, p in net.named_parameters(remove_duplicate=False)}
    named = {key for rule in rules for key in rule.our_keys}  # among them tables that are fixed: the peer holds them as parameters
    return loss.item(), to_theirs(rules, found | {n: torch.zeros_like(b) for n, b in net.named_buffers() if n in named})


def _apart(mine: tuple[float, dict[str, Tensor]], peer: tuple[float, dict[str, Tensor]]) -> float:
    """The larger one of both relative differences."""
    a, b = mine[1], peer[1]
    assert a.keys() >= b.keys(), f"no gradient for {sorted(b.keys() - a.keys())[:5]}"
    apart = torch.stack([(a[n] - g).square().sum() for n, g in b.items()]).sum().sqrt()
    size = torch.stack([g.square().sum() for g in b.values()]).sum().sqrt()
    return max(abs(mine[0] - peer[0]) / abs(peer[0]), (apart / size).item())


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else at_least_fp32(parameter.grad)


def training_case(name: str, setup: TrainSetup, compiled: bool = False, *, eager: bool = True) -> Case:
    """A case of training one system; `compiled` adds torch.compile on both sides, without `eager` they are the only ones."""
    pairing = PAIRINGS[setup.system]
    sides: list[Contender] = []
    if eager:
        sides += [Contender("polymodal", partial(ours, setup), update), Contender(pairing.library, partial(theirs, setup), update)]
        if pairing.beside is not None:
            called, other = pairing.beside[0], pairing.beside[1](setup)
            sides.append(Contender(f"polymodal, {called}", partial(ours, other), update, same_work=False))
    if compiled:
        sides += [Contender("polymodal compiled", partial(ours, setup, True), update),
                  Contender(f"{pairing.library} compiled", partial(theirs, setup, True), update)]
    longest, count = max(setup.lengths), len(setup.lengths)
    pictures = pairing.unit == "pictures"
    what = f"{count} {'pictures' if pictures else 'sequences'}"
    if setup.tokens:  # of the sequences or captions
        what += f", {setup.tokens} tokens, longest {longest}"
    about = f"one update, {what}, {str(setup.dtype).removeprefix('torch.')}"
    if setup.tokens < longest * count and not pictures:
        about += f"; padded rows would be {setup.tokens / longest / count:.0%} full"
    amount = count if pictures else setup.tokens
    precision = str(setup.dtype).removeprefix("torch.")
    return Case(name, about, pairing.unit, amount, tuple(sides), partial(agree, setup), pairing.flops(setup), precision)


def natural_lengths(count: int, longest: int, *, mean: float = 4.4, spread: float = 0.85, shortest: int = 8) -> tuple[int, ...]:
    """Log-normal lengths, about 116 tokens on average: a simulated corpus of short documents."""
    drawn = np.exp(np.random.default_rng(0).normal(mean, spread, count))
    return tuple(int(n) for n in np.clip(drawn, shortest, longest))


def caption_lengths(count: int, longest: int) -> tuple[int, ...]:
    """Lengths of captions, about 13 tokens with both ends: simulated."""
    return natural_lengths(count, longest, mean=2.5, spread=0.3, shortest=4)


def region_lengths(count: int, longest: int) -> tuple[int, ...]:
    """Tokens of captions with the regions of their pictures, about 50 (13 and 37): simulated; 10 to 100 regions."""
    return natural_lengths(count, longest, mean=3.8, spread=0.5, shortest=14)


def sentence_lengths(count: int, longest: int) -> tuple[int, ...]:
    """Lengths of sentences, about 24 tokens on average with both ends: simulated."""
    return natural_lengths(count, longest, mean=3.0, spread=0.6, shortest=5)


def window_lengths(count: int, longest: int) -> tuple[int, ...]:
    """Lengths of questions with their texts, about 165 tokens on average: simulated."""
    return natural_lengths(count, longest, mean=5.0, spread=0.45)


def cases(options: Options) -> Cases:
    """The setups of this peer, or of all usual ones; bf16 too where the hardware has it."""
    peer = options.peer("train", PEERS) if options.against else None
    chosen = [name for name, s in PAIRINGS.items() if (s.library in USUAL if peer is None else peer.startswith(s.library))]
    compiled = peer is not None and peer.endswith("-compiled")
    for dtype in (torch.float32, torch.bfloat16) if fast_bfloat16(options.device) else (torch.float32,):
        for name, setup in setups(options.quick):
            if setup.system in chosen and (dtype == torch.float32 or PAIRINGS[setup.system].autocast):
                placed = replace(setup, device=options.device, dtype=dtype)
                yield training_case(name + (" bf16" if dtype == torch.bfloat16 else ""), placed, compiled)


def setups(quick: bool) -> list[tuple[str, TrainSetup]]:
    """The cases for a CPU: the published widths, 4 layers."""
    layers, rows, length = (2, 3, 16) if quick else (4, 4, 512)
    narrow: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 99} if quick else {}
    thin: dict[str, Any] = {"n_embd": 32, "n_head": 2, "vocab_size": 99} if quick else {}
    trunk = BertConfig(num_hidden_layers=layers, max_position_embeddings=length, **narrow)
    base: dict[str, Any] = {**family("roberta").sizes["base"], **narrow, "num_hidden_layers": layers, "max_position_embeddings": length + 2}
    robust = RobertaConfig(**base)
    narrowed: dict[str, Any] = {**family("albert").sizes["base"], **narrow, "num_hidden_layers": layers, "max_position_embeddings": length}
    lite = AlbertConfig(**narrowed)
    small: dict[str, Any] = {**narrow, "block_size": 4, "num_random_blocks": 1} if quick else {}
    by_blocks = BigBirdConfig(num_hidden_layers=layers, **small)
    few_words: dict[str, Any] = {"d_model": 32, "n_head": 2, "d_inner": 64, "vocab_size": 99} if quick else {}
    orders: dict[str, Any] = {**family("xlnet").sizes["base"], **few_words, "n_layer": layers, "mem_len": None}
    permuted = XLNetConfig(**orders)
    unified = UnilmConfig(num_hidden_layers=layers, max_position_embeddings=length, **narrow)
    seen: dict[str, Any] = {**narrow, "visual_feat_dim": 24, "num_object_labels": 7} if quick else {}
    regional = UniterConfig(num_hidden_layers=layers, max_position_embeddings=max(64, length), **seen)
    both: dict[str, Any] = {**base, **seen, "max_position_embeddings": max(66, length + 2)}
    unimodal = UnimoConfig(**both)
    decoder = GPT2Config(n_layer=layers, n_positions=length, **thin)
    banded = GPT3Config(n_layer=layers, n_positions=4096, window_size=5 if quick else 256, **thin)
    pixels: dict[str, Any] = {**SMALL, "image_size": 32, "patch_size": 16} if quick else {}
    words: dict[str, Any] = {**SMALL, "vocab_size": 99, "eos_token_id": 98, "max_position_embeddings": 16} if quick else {}
    towers = CLIPConfig(vision_config=CLIPVisionConfig(num_hidden_layers=layers, **pixels),
                        text_config=CLIPTextConfig(num_hidden_layers=layers, **words))  # fmt: skip
    brief: dict[str, Any] = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_heads": 2, "num_layers": 2, "vocab_size": 99,
                             # one ReLU that bf16 turns over would be a tenth of so small a gradient
                             "feed_forward_proj": "gated-gelu"} if quick else {}
    seq2seq = T5Config(**brief)
    noised: dict[str, Any] = {**family("bart").sizes["base"], "max_position_embeddings": length,
                              **({"d_model": 64, "vocab_size": 99, **{f"{side}_{name}": value for side in ("encoder", "decoder")
                                 for name, value in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 128))}} if quick else {})}
    denoiser, hider = BartConfig(**noised), MassConfig(**noised, attention_dropout=0.0)
    few: dict[str, Any] = {**SMALL, "image_size": 32} if quick else {"num_labels": 1000}
    shape: dict[str, Any] = {**family("vit").sizes["small"], **few, "num_hidden_layers": layers}
    pictures = ViTConfig(**shape)
    thinner: dict[str, Any] = {**few, "decoder_hidden_size": 64, "decoder_num_attention_heads": 2,
                               "decoder_intermediate_size": 128} if quick else {}  # fmt: skip
    halved: dict[str, Any] = {**family("mae").sizes["base"], **thinner, "patch_size": 8 if quick else 16, "num_hidden_layers": layers,
                              "decoder_num_hidden_layers": max(1, layers // 2)}  # fmt: skip
    masked = MAEConfig(**halved)
    tokens: dict[str, Any] = {**family("beit").sizes["base"], **few, "num_hidden_layers": layers, "drop_path_rate": 0.0,
                              **({"patch_size": 4, "vocab_size": 99} if quick else {})}  # fmt: skip
    limitless: dict[str, Any] = {"cell_clip": 0.0, "proj_clip": 0.0, "cutoffs": (), "vocab_size": 99 if quick else 20_000,
                                 **({"hidden_size": 16, "cell_size": 24, "filters": ((1, 4), (3, 8))} if quick else {})}
    full = (length,) * rows
    return [
        ("BERT, full rows", TrainSetup("bert", trunk, full).still()),
        ("BERT, natural lengths", TrainSetup("bert", trunk, natural_lengths(rows * 4, length)).still()),
        ("BERT, full rows, dropout 0.1", TrainSetup("bert", trunk, full)),
        ("RoBERTa, full rows", TrainSetup("roberta", robust, full).still()),
        ("RoBERTa, natural lengths", TrainSetup("roberta", robust, natural_lengths(rows * 4, length)).still()),
        ("ALBERT, full rows", TrainSetup("albert", lite, full).still()),
        ("ALBERT, natural lengths", TrainSetup("albert", lite, natural_lengths(rows * 4, length)).still()),
        ("UniLM, texts with targets, full rows", TrainSetup("unilm", unified, full).still()),
        ("UniLM, texts with targets, natural lengths", TrainSetup("unilm", unified, natural_lengths(rows * 4, length)).still()),
        ("UNITER, masked words, natural lengths", TrainSetup("uniter", regional, region_lengths(rows * 6, 140)).still()),
        ("UNIMO, captions, natural lengths", TrainSetup("unimo", unimodal, region_lengths(rows * 8, 140)).still()),
        ("XLNet, full rows", TrainSetup("xlnet", permuted, full).still()),
        ("Reformer, a row of 4k tokens", hashed.train_setup(quick)),
        ("GPT-2, full rows", TrainSetup("gpt2", decoder, full).still()),
        ("GPT-3, banded layers, a row of 4k tokens", TrainSetup("gpt3", banded, (16 if quick else 4096,))),
        ("T5-small, full rows", TrainSetup("t5", seq2seq, full[: max(2, rows // 2)]).still()),
        ("T5-small, natural lengths", TrainSetup("t5", seq2seq, natural_lengths(rows * 4, length)).still()),
        ("BART, full rows", TrainSetup("bart", denoiser, full[: max(2, rows // 2)]).still()),
        ("BART, natural lengths", TrainSetup("bart", denoiser, natural_lengths(rows * 2, length)).still()),
        ("MASS, full rows", TrainSetup("mass", hider, full).still()),
        ("MASS, natural lengths", TrainSetup("mass", hider, natural_lengths(rows * 4, length)).still()),
        ("BigBird, a row of 4k tokens", TrainSetup("bigbird", by_blocks, (64 if quick else 4096,)).still()),
        ("T5-small, full rows, dropout 0.1", TrainSetup("t5", seq2seq, full[: max(2, rows // 2)])),
        ("ViT-S/16", TrainSetup("vit", pictures, (0,) * (4 if quick else 16))),
        ("MAE ViT-B/16 width", TrainSetup("mae", masked, (0,) * (4 if quick else 16))),
        ("BEiT-B/16 width", TrainSetup("beit", BeitConfig(**tokens), (0,) * (4 if quick else 16))),
        ("CLIP ViT-B/32 width", TrainSetup("clip", towers, caption_lengths(4 if quick else 32, length))),
        ("GPT-2, full rows, plain torch", TrainSetup("gpt2-plain", decoder, full).still()),
        ("ELMo, sentences, plain torch", TrainSetup("elmo", ElmoConfig(**limitless), sentence_lengths(rows * 4, 100)).still()),
        *taught.setups(trunk, {"full rows": full, "natural lengths": natural_lengths(rows * 4, length)}),
        *tuned.setups(trunk, {
            "natural lengths": (natural_lengths(rows * 4, length), natural_lengths(rows * 4, min(384, length))),
            "sentences and windows": (sentence_lengths(rows * 8, length), window_lengths(rows * 4, min(384, length)))}),
    ]


SMALL: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 128}
