"""Reformer's attention by hashes, forward and backward, and its training, beside transformers' on the same weights and rotations.

A layer is a pre-norm, attention in chunks of 64 with one before, 2 rounds, and the output projection: 12 heads of 64, one sequence seen in
both directions, no dropout. Both sides hash into as many buckets as transformers finds right for the length. Full attention (SDPA, the same
widths) runs beside them for orientation; it computes something else.

Training compares one round: with several, transformers' weights of the rounds are off in fp32 where a token sees itself alone (see
`text/reformer.py`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ...shared.attention import Attention
from ...shared.attention.choose import make_plan
from ...shared.attention.mask import Mask
from ...shared.attention.position import document_positions
from ...shared.block import LayerNorm
from ...shared.convert import Rename, Rule, affine, fused, to_theirs
from ...shared.embed import normal_
from ...shared.loss import IGNORE
from ...shared.system import System
from ...text._hashing import Nearby, bucket_factors, rotation
from ...text._sorted import HashedAttention, Rows
from ...text.reformer import HashedBatch
from ...text.reformer_config import ReformerConfig
from .case import Agreement, Case, Cases, Contender, Options
from .layer import LayerRun, step
from .machine import need
from .pairing import Loss, Pairing, TrainSetup, copy_weights, on, rules_of

TOLERANCE = 1e-4
SEED = 0

RULES: tuple[Rule, ...] = (
    *affine("layer_norm", "norm"),
    *fused(("self_attention.query_key", "self_attention.value"), "attention.qkv", bias=False),
    Rename("output.dense.weight", "attention.out.weight"),
)


@dataclass(frozen=True)
class HashedSetup:
    """One layer on one sequence."""

    length: int
    chunk: int = 64
    rounds: int = 2
    hidden: int = 768
    heads: int = 12
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    """bfloat16 runs under autocast."""

    @property
    def factors(self) -> tuple[int, ...]:
        """Of the number of buckets."""
        return bucket_factors(self.length, self.chunk)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the layer."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device, self.dtype)

    def input(self) -> Tensor:
        """The sequence [1, L, D]."""
        generator = torch.Generator().manual_seed(1)
        return torch.randn(1, self.length, self.hidden, generator=generator).to(self.device).requires_grad_()


class Layer(nn.Module):
    """polymodal's attention behind its norm."""

    def __init__(self, setup: HashedSetup, attention: Attention) -> None:
        super().__init__()
        self.norm, self.attention, self.setup = LayerNorm(setup.hidden, eps=1e-12), attention, setup

    def forward(self, x: Tensor) -> Tensor:
        """Map [1, S, D] to [1, S, D]; rotations are drawn anew, as a network does."""
        if not isinstance(self.attention, HashedAttention):
            return self.attention(self.norm(x), make_plan(Mask(), 1, x.shape[1], x.shape[1], x.device))
        s = self.setup
        drawn = rotation(SEED, s.heads, s.hidden // s.heads, s.rounds, s.factors)[None].to(x.device)
        return self.attention.nearby(self.norm(x), Rows(None, s.factors, {self.attention: drawn}), [])


def _layer(setup: HashedSetup, full: bool = False) -> Layer:
    size = setup.hidden // setup.heads
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        near = Nearby(setup.chunk, 1, 0, causal=False, alone=True)
        layer = Layer(setup, Attention(setup.hidden, setup.heads, bias=False) if full else
                      HashedAttention(setup.hidden, setup.heads, size, near, dropout=0.0))
        normal_(layer)
        for parameter in layer.norm.parameters():
            parameter.data.add_(0.02 * torch.randn_like(parameter))
    return layer.to(setup.device)


def ours(setup: HashedSetup, full: bool = False) -> LayerRun:
    """Our layer, or full attention of its widths."""
    layer, x = _layer(setup, full), setup.input()

    def run() -> Tensor:
        with setup.autocast():
            return layer(x)

    return LayerRun(layer, x, run)


def theirs(setup: HashedSetup) -> LayerRun:
    """The layer of transformers: `ReformerAttention`."""
    transformers = need("transformers")
    factors = setup.factors
    config = transformers.ReformerConfig(
        hidden_size=setup.hidden, num_attention_heads=setup.heads, attention_head_size=setup.hidden // setup.heads, attn_layers=["lsh"],
        lsh_attn_chunk_length=setup.chunk, num_hashes=setup.rounds, num_buckets=factors[0] if len(factors) == 1 else list(factors),
        max_position_embeddings=setup.length, axial_pos_embds=False, hidden_dropout_prob=0.0, hash_seed=SEED,
    )  # fmt: skip
    layer = transformers.models.reformer.modeling_reformer.ReformerAttention(config)
    layer.load_state_dict(to_theirs(RULES, _layer(replace(setup, device="cpu")).state_dict()))
    layer.to(setup.device)
    x = setup.input()

    def run() -> Tensor:
        with setup.autocast():
            return layer(x).hidden_states

    return LayerRun(layer, x, run)


def agree(setup: HashedSetup) -> Agreement:
    """Outputs, and gradients of the input, relative to the largest number of each."""
    sides = [ours(setup), theirs(setup)]
    outputs = [step(s) for s in sides]
    gradients = [cast(Tensor, s.x.grad) for s in sides]
    apart = max(((a - b).abs().max() / b.abs().max()).item() for a, b in (outputs, gradients))
    return Agreement("output and input gradient, largest difference, relative", apart, TOLERANCE if setup.device == "cpu" else 2e-3)


def cases(options: Options) -> Cases:
    """Growing lengths."""
    small: dict[str, Any] = {"hidden": 32, "heads": 2, "chunk": 8} if options.quick else {}
    for length in (128,) if options.quick else (1024, 4096, 16384):
        yield hashed_case(HashedSetup(length, device=options.device, **small))


def hashed_case(setup: HashedSetup) -> Case:
    """One layer beside Reformer's; compared in fp32, timed as asked for."""
    sides = (
        Contender("polymodal", partial(ours, setup), step),
        Contender("transformers Reformer", partial(theirs, setup), step),
        Contender("polymodal, full attention", partial(ours, setup, True), step, same_work=False),
    )
    kind = str(setup.dtype).removeprefix("torch.")
    about = (f"one layer, {setup.length} tokens, {setup.rounds} rounds of hashing, chunks of {setup.chunk} and one before, {kind}, forward "
             "and backward")
    return Case(f"attention by hashes, {setup.length} tokens", about, "tokens", setup.length, sides,
                partial(agree, replace(setup, dtype=torch.float32)), flops(setup), kind)


def flops(setup: HashedSetup) -> float:
    """Of one layer, forward and backward: three projections, two products for each pair in each round; and the rotations, once."""
    d, s = setup.hidden, setup.length
    seen = 2.0 * setup.chunk * setup.rounds
    return 3.0 * (6 * s * d**2 + 4 * s * seen * d) + 2.0 * s * d * setup.rounds * sum(setup.factors) / 2


# ---------------------------------------------------------------------------------------------- training


def reformer_batch(setup: TrainSetup) -> HashedBatch:
    """Random words; every token but a sequence's first is predicted from those before it."""
    rng = np.random.default_rng(setup.seed)
    ids = torch.from_numpy(rng.integers(0, setup.config.vocab_size, setup.tokens))
    targets = torch.cat([torch.cat([row[1:], torch.tensor([IGNORE])]) for row in ids.split(list(setup.lengths))])
    return HashedBatch(counts={"targets": setup.tokens - len(setup.lengths)}, tokens=setup.tokens, lengths=setup.lengths,
                       input_ids=ids[None], position_ids=document_positions(setup.lengths), targets=targets,
                       seeds=tuple(range(len(setup.lengths))))  # fmt: skip


def reformer_peer(setup: TrainSetup, ours: System) -> tuple[nn.Module, Loss]:
    """Reformer of transformers, whose rows fill its axial shape, with the head's bias as its version 4 had it."""
    transformers = need("transformers")
    with torch.device(setup.device):
        module = transformers.ReformerModelWithLMHead(transformers.ReformerConfig(**setup.config.to_dict()))
    copy_weights(ours.net, module, rules_of("reformer", setup.config))
    module.lm_head.decoder.bias = module.lm_head.bias
    ids = reformer_batch(setup).input_ids.view(len(setup.lengths), -1)
    inputs = on(setup.device, {"input_ids": ids, "labels": ids})
    return module, lambda m: m(**inputs).loss


def reformer_flops(setup: TrainSetup) -> float:
    """Useful operations of a step; see `pairing`. What is computed again for the backward pass is not useful."""
    c: ReformerConfig = setup.config
    inner, tokens = c.num_attention_heads * c.attention_head_size, setup.tokens
    pairs = sum(c.near(kind).width * (c.num_hashes if kind == "lsh" else 1) for kind in c.attn_layers)  # of a token
    projections = sum((3 if kind == "lsh" else 4) * c.hidden_size * inner for kind in c.attn_layers)
    weights = projections + len(c.attn_layers) * 2 * c.hidden_size * c.feed_forward_size
    head = 6 * (tokens - len(setup.lengths)) * 2 * c.hidden_size * c.vocab_size
    return 6 * weights * tokens + 12 * inner * pairs * tokens + head


PAIRINGS: dict[str, Pairing] = {"reformer": Pairing(reformer_batch, reformer_peer, partial(rules_of, "reformer"), reformer_flops)}


def train_setup(quick: bool) -> TrainSetup:
    """Four layers on a row of 4096 tokens."""
    rows, columns, chunk = (4, 8, 4) if quick else (64, 64, 64)
    widths: dict[str, Any] = {"hidden_size": 768, "axial_pos_embds_dim": (256, 512), "num_attention_heads": 12, "feed_forward_size": 3072,
                              "vocab_size": 258}
    if quick:
        widths = {"hidden_size": 32, "axial_pos_embds_dim": (8, 24), "num_attention_heads": 2, "attention_head_size": 16,
                  "feed_forward_size": 64, "vocab_size": 99}
    config = ReformerConfig(**widths, attn_layers=("local", "lsh") * 2, axial_pos_shape=(rows, columns),
                            max_position_embeddings=rows * columns, lsh_attn_chunk_length=chunk, local_attn_chunk_length=chunk,
                            num_buckets=2 * rows * columns // chunk, hash_seed=SEED, is_decoder=True, axial_norm_std=0.02)
    return TrainSetup("reformer", config, (rows * columns,)).still()
