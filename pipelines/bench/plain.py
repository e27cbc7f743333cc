"""GPT-2 in torch alone, as nanoGPT writes it: the peer that has nothing but products, SDPA and, where asked for, torch.compile."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...seq2seq.gpt2 import GPT2Config
from ...shared.convert import Rename, Rule, Tied, affine, layers


class PlainBlock(nn.Module):
    """Attention and a feed-forward net, each behind a norm and in a residual."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        width = config.n_embd
        self.heads, self.dropout = config.n_head, config.attn_pdrop
        self.norm_1, self.norm_2 = (nn.LayerNorm(width, eps=config.layer_norm_epsilon) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, config.n_inner or 4 * width), nn.Linear(config.n_inner or 4 * width, width)
        self.drop = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        """Rows [B, S, D]."""
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm_1(x)).chunk(3, dim=2))
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=self.dropout if self.training else 0.0)
        x = x + self.drop(self.out(seen.transpose(1, 2).flatten(2)))
        return x + self.drop(self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh")))


class PlainGPT2(nn.Module):
    """The network with its loss over whole rows; all logits at once."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.word, self.position = nn.Embedding(config.vocab_size, config.n_embd), nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.blocks = nn.ModuleList(PlainBlock(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)

    def forward(self, input_ids: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of rows [B, S] against the targets [B, S], -100 where there is none."""
        x = self.drop(self.word(input_ids) + self.position(torch.arange(input_ids.shape[1], device=input_ids.device)))
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.word.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def rules(config: GPT2Config) -> Sequence[Rule]:
    """Our names to this module's."""
    layer = (
        *affine("blocks.{i}.norm_1", "trunk.stack.blocks.{i}.attention_residual.norm"),
        *affine("blocks.{i}.qkv", "trunk.stack.blocks.{i}.attention.qkv"),
        *affine("blocks.{i}.out", "trunk.stack.blocks.{i}.attention.out"),
        *affine("blocks.{i}.norm_2", "trunk.stack.blocks.{i}.feed_forward_residual.norm"),
        *affine("blocks.{i}.up", "trunk.stack.blocks.{i}.feed_forward.up"),
        *affine("blocks.{i}.down", "trunk.stack.blocks.{i}.feed_forward.down"),
    )
    return (
        Rename("word.weight", "trunk.embed.word.weight"),
        Rename("position.weight", "trunk.embed.position.weight"),
        *layers(config.n_layer, layer),
        *affine("norm", "trunk.stack.final_norm"),
        Tied("head.weight", "trunk.embed.word.weight"),
    )
