"""XLNet beside transformers' own: the same order and places, given to it as its dense masks."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from ...shared.system import System
from ...text.permutation import PermutationBatch, PermutationExample, choose_spans, random_order, stacked
from ...text.xlnet_config import XLNetConfig
from .machine import need
from .pairing import Loss, Pairing, TrainSetup, copy_weights, on, rules_of

ONE_IN = 6


def predicted(length: int) -> int:
    """Tokens of a sequence that are predicted: 85 of 512."""
    return max(2, length // ONE_IN)


def xlnet_batch(setup: TrainSetup) -> PermutationBatch:
    """Random words in two halves, the second as two segments; spans and orders as XLNet draws them. No memory: both sides have none."""
    rng = np.random.default_rng(setup.seed)
    examples: list[PermutationExample] = []
    for length in setup.lengths:
        row, total = length - length // 2, predicted(length)
        chosen, ranks = np.zeros(length, dtype=bool), np.zeros(length, dtype=np.int64)
        for part, count, lowest in ((slice(row), total - total // 2, 0), (slice(row, length), total // 2, row + 1)):
            words = np.ones(len(chosen[part]), dtype=bool)
            chosen[part] = choose_spans(words, words, count, 5, rng)
            ranks[part] = random_order(chosen[part], ~words, lowest, rng)
        kinds = (np.arange(length) >= row + (length - row) // 2).astype(np.int64)
        examples.append(PermutationExample(rng.integers(0, setup.config.vocab_size, length), kinds, ranks, np.flatnonzero(chosen), row))
    return stacked(examples)


def xlnet_peer(setup: TrainSetup, ours: System) -> tuple[nn.Module, Loss]:
    """XLNet of transformers, which has einsums and whole rows in both streams."""
    transformers = need("transformers")
    with torch.device(setup.device):
        module = transformers.XLNetLMHeadModel(transformers.XLNetConfig(**setup.config.to_dict()))
    copy_weights(ours.net, module, rules_of("xlnet", setup.config))
    batch = xlnet_batch(setup)
    length = batch.ids.shape[1]
    mapping: Tensor = nn.functional.one_hot(batch.target_rows, length).float() * (batch.targets >= 0)[:, :, None]
    inputs = on(setup.device, {"input_ids": batch.ids, "token_type_ids": batch.token_type_ids, "perm_mask": batch.hidden().float(),
                               "target_mapping": mapping, "labels": batch.targets})
    return module, lambda m: m(**inputs, use_mems=False).loss


def xlnet_flops(setup: TrainSetup) -> float:
    """Useful operations of a step; see `pairing`. A score has two products, and the query stream its places alone."""
    c: XLNetConfig = setup.config
    square, feed = c.d_model**2, 2 * c.d_model * c.d_inner
    total = 0.0
    for s in setup.lengths:
        t = predicted(s)
        content = 6 * s * (4 * square + feed) + 18 * c.d_model * s * s
        query = 6 * t * (2 * square + feed) + 18 * c.d_model * t * s
        # of the last layer's content stream only the keys and values are read
        total += (c.n_layer - 1) * content + 6 * s * 2 * square + c.n_layer * query + 6 * t * c.d_model * c.vocab_size
    return total + c.n_layer * 6 * (2 * max(setup.lengths) - 1) * square


PAIRINGS: dict[str, Pairing] = {"xlnet": Pairing(xlnet_batch, xlnet_peer, partial(rules_of, "xlnet"), xlnet_flops)}
