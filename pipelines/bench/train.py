"""Training: BERT, GPT-2 and T5 beside transformers, CLIP beside open_clip, ViT beside timm; GPT-2 beside plain torch too.

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
from ...registry import family
from ...seq2seq.gpt2 import GPT2Config
from ...seq2seq.t5 import T5Config
from ...shared.convert import to_theirs
from ...shared.system import System
from ...text.bert import BertConfig
from ...vision.vit import ViTConfig
from ..train.layers import compile_parts
from .case import Agreement, Case, Cases, Contender, Options
from .machine import fast_bfloat16
from .systems import SUBJECTS, Loss, Work, our_loss, our_system

USUAL = ("transformers", "open_clip", "timm")
PEERS = tuple(f"{name}{how}" for name in (*USUAL, "plain-torch") for how in ("", "-compiled"))
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
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


def ours(work: Work, compiled: bool = False) -> Trainer:
    """Our system; compiled as the trainer does it."""
    system = our_system(work)
    if compiled:
        compile_parts(system)
    return _trainer(system, our_loss(work), work)


def theirs(work: Work, compiled: bool = False) -> Trainer:
    """The peer's; compiled as a whole, as its users do it."""
    module, loss = SUBJECTS[work.system].peer(work, our_system(work))
    if compiled:
        module.compile()
    return _trainer(module, loss, work)


def _trainer(module: nn.Module, loss: Loss, work: Work) -> Trainer:
    module.to(work.device).train()

    def compute() -> Tensor:
        with torch.autocast(work.device, work.dtype) if work.dtype != torch.float32 else nullcontext():
            return loss(module)

    return Trainer(module, compute, torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, weight_decay=0.01, fused=True))


def agree(work: Work) -> Agreement:
    """Loss and gradient of the first step, without dropout."""
    work = work.still()
    mine, peer = ours(work), theirs(work)
    losses = [t.loss() for t in (mine, peer)]
    for loss in losses:
        loss.backward()
    net = cast(System, mine.module).net
    a = to_theirs(SUBJECTS[work.system].rules(work.config), {n: _gradient(p) for n, p in net.named_parameters(remove_duplicate=False)})
    b = {n: _gradient(p) for n, p in peer.module.named_parameters()}
    assert a.keys() >= b.keys(), f"no gradient for {sorted(b.keys() - a.keys())[:5]}"
    apart = torch.stack([(a[n] - g).square().sum() for n, g in b.items()]).sum().sqrt()
    size = torch.stack([g.square().sum() for g in b.values()]).sum().sqrt()
    loss_apart = abs(losses[0].item() - losses[1].item()) / abs(losses[1].item())
    return Agreement("loss, and norm of the gradients' difference, relative", max(loss_apart, (apart / size).item()), TOLERANCE[work.dtype])


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.float()


def training_case(name: str, work: Work, compiled: bool = False, *, eager: bool = True) -> Case:
    """A case of training one system; `compiled` adds torch.compile on both sides, without `eager` they are the only ones."""
    subject = SUBJECTS[work.system]
    sides: list[Contender] = []
    if eager:
        sides += [Contender("polymodal", partial(ours, work), update), Contender(subject.library, partial(theirs, work), update)]
    if compiled:
        sides += [Contender("polymodal compiled", partial(ours, work, True), update),
                  Contender(f"{subject.library} compiled", partial(theirs, work, True), update)]
    pictures = work.system in ("clip", "vit")
    longest, count = max(work.lengths), len(work.lengths)
    what = f"{count} {'pictures' if pictures else 'sequences'}"
    if work.tokens:  # of the sequences or captions
        what += f", {work.tokens} tokens, longest {longest}"
    about = f"one update, {what}, {str(work.dtype).removeprefix('torch.')}"
    if work.tokens < longest * count and not pictures:
        about += f"; padded rows would be {work.tokens / longest / count:.0%} full"
    unit, amount = ("pictures", count) if pictures else ("tokens", work.tokens)
    return Case(name, about, unit, amount, tuple(sides), partial(agree, work), subject.flops(work), str(work.dtype).removeprefix("torch."))


def natural_lengths(count: int, longest: int, *, mean: float = 4.4, spread: float = 0.85, shortest: int = 8) -> tuple[int, ...]:
    """Log-normal lengths, about 116 tokens on average: a simulated corpus of short documents."""
    drawn = np.exp(np.random.default_rng(0).normal(mean, spread, count))
    return tuple(int(n) for n in np.clip(drawn, shortest, longest))


def caption_lengths(count: int, longest: int) -> tuple[int, ...]:
    """Lengths of captions, about 13 tokens with both ends: simulated."""
    return natural_lengths(count, longest, mean=2.5, spread=0.3, shortest=4)


def cases(options: Options) -> Cases:
    """The works of this peer, or of all usual ones; bf16 too where the hardware has it."""
    peer = options.peer("train", PEERS) if options.against else None
    chosen = [name for name, s in SUBJECTS.items() if (s.library in USUAL if peer is None else peer.startswith(s.library))]
    compiled = peer is not None and peer.endswith("-compiled")
    for dtype in (torch.float32, torch.bfloat16) if fast_bfloat16(options.device) else (torch.float32,):
        for name, work in works(options.quick):
            if work.system in chosen:
                placed = replace(work, device=options.device, dtype=dtype)
                yield training_case(name + (" bf16" if dtype == torch.bfloat16 else ""), placed, compiled)


def works(quick: bool) -> list[tuple[str, Work]]:
    """The cases for a CPU: the published widths, 4 layers."""
    layers, rows, length = (2, 3, 16) if quick else (4, 4, 512)
    narrow: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 99} if quick else {}
    thin: dict[str, Any] = {"n_embd": 32, "n_head": 2, "vocab_size": 99} if quick else {}
    trunk = BertConfig(num_hidden_layers=layers, max_position_embeddings=length, **narrow)
    decoder = GPT2Config(n_layer=layers, n_positions=length, **thin)
    pixels: dict[str, Any] = {**SMALL, "image_size": 32, "patch_size": 16} if quick else {}
    words: dict[str, Any] = {**SMALL, "vocab_size": 99, "eos_token_id": 98, "max_position_embeddings": 16} if quick else {}
    towers = CLIPConfig(vision_config=CLIPVisionConfig(num_hidden_layers=layers, **pixels),
                        text_config=CLIPTextConfig(num_hidden_layers=layers, **words))  # fmt: skip
    brief: dict[str, Any] = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_heads": 2, "num_layers": 2, "vocab_size": 99,
                             # one ReLU that bf16 turns over would be a tenth of so small a gradient
                             "feed_forward_proj": "gated-gelu"} if quick else {}
    seq2seq = T5Config(**brief)
    few: dict[str, Any] = {**SMALL, "image_size": 32} if quick else {"num_labels": 1000}
    shape: dict[str, Any] = {**family("vit").sizes["small"], **few, "num_hidden_layers": layers}
    pictures = ViTConfig(**shape)
    full = (length,) * rows
    return [
        ("BERT, full rows", Work("bert", trunk, full).still()),
        ("BERT, natural lengths", Work("bert", trunk, natural_lengths(rows * 4, length)).still()),
        ("BERT, full rows, dropout 0.1", Work("bert", trunk, full)),
        ("GPT-2, full rows", Work("gpt2", decoder, full).still()),
        ("T5-small, full rows", Work("t5", seq2seq, full[: max(2, rows // 2)]).still()),
        ("T5-small, full rows, dropout 0.1", Work("t5", seq2seq, full[: max(2, rows // 2)])),
        ("ViT-S/16", Work("vit", pictures, (0,) * (4 if quick else 16))),
        ("CLIP ViT-B/32 width", Work("clip", towers, caption_lengths(4 if quick else 32, length))),
        ("GPT-2, full rows, plain torch", Work("gpt2-plain", decoder, full).still()),
    ]


SMALL: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 128}
