"""UNITER beside transformers' BERT on padded rows: the published code's way of reading captions with regions."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...multimodal.region_pairs import MLM, UniterBatch, batch_of_pairs
from ...multimodal.uniter import LOCATION, UniterConfig
from ...shared.corrupt import choose_places, prediction_count
from ...shared.loss import IGNORE
from ...shared.packed import starts
from ...shared.regions import Regions
from ...shared.system import System
from .machine import need
from .pairing import Loss, Pairing, TrainSetup, copy_weights, padded, padding_mask, rules_of, transformer_flops

MASK = 4


def words_of(length: int) -> int:
    """Tokens of the caption in a row of tokens and regions: about a quarter, as 13 tokens stand before 36 regions."""
    return min(max(3, round(0.27 * length)), 60, length - 1)


def uniter_batch(setup: TrainSetup) -> UniterBatch:
    """Random captions, of which words are masked, and random regions; `lengths` are of both together."""
    rng = np.random.default_rng(setup.seed)
    config: UniterConfig = setup.config
    texts: list[np.ndarray] = []
    pictures: list[Regions] = []
    rows: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    for start, length in zip(starts(setup.lengths), setup.lengths, strict=True):
        count = words_of(length)
        ids = rng.integers(MASK + 1, config.vocab_size, count)
        inner = np.ones(count, dtype=bool)
        inner[[0, -1]] = False
        places = choose_places(inner, prediction_count(count, 0.15, None), rng)
        rows.append(places + start)
        targets.append(ids[places])
        texts.append(np.where(np.isin(np.arange(count), places), MASK, ids))
        low = rng.uniform(0, 0.5, (length - count, 2)).astype(np.float32)
        pictures.append(Regions(rng.normal(size=(length - count, config.visual_feat_dim)).astype(np.float32),
                                np.concatenate([low, low + 0.3], axis=1)))
    fields = batch_of_pairs(texts, pictures)
    return UniterBatch(kind=MLM, counts={"words": sum(map(len, rows))}, **fields, target_rows=torch.from_numpy(np.concatenate(rows)),
                       targets=torch.from_numpy(np.concatenate(targets)), region_rows=torch.zeros(0, dtype=torch.long),
                       region_targets=torch.zeros(0, 0), match=torch.zeros(0, dtype=torch.long))


class _Regions(nn.Module):
    """The image side with the published names."""

    def __init__(self, config: UniterConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.img_linear, self.pos_linear = nn.Linear(config.visual_feat_dim, width), nn.Linear(LOCATION, width)
        self.img_layer_norm, self.pos_layer_norm, self.LayerNorm = (nn.LayerNorm(width, eps=config.layer_norm_eps) for _ in range(3))
        self.mask_embedding = nn.Embedding(2, config.visual_feat_dim, padding_idx=0)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, features: Tensor, location: Tensor, kind: Tensor) -> Tensor:
        x = self.img_layer_norm(self.img_linear(features)) + self.pos_layer_norm(self.pos_linear(location)) + kind
        return self.dropout(self.LayerNorm(x))


class _Head(nn.Module):
    def __init__(self, config: UniterConfig, classes: bool) -> None:
        super().__init__()
        width = config.hidden_size
        last = [nn.Linear(width, config.num_object_labels)] if classes else []
        self.net = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps=config.layer_norm_eps), *last)
        self.bias = None if classes else nn.Parameter(torch.zeros(config.visual_feat_dim))


class PaddedUniter(nn.Module):
    """Transformers' BERT over padded rows of words and regions, with the head of masked words on every place, as its class has it."""

    def __init__(self, config: UniterConfig) -> None:
        super().__init__()
        transformers = need("transformers")
        theirs = transformers.BertConfig(**{k: v for k, v in config.to_dict().items() if not k.startswith(("visual_", "num_object"))},
                                         attn_implementation="sdpa")
        whole = transformers.BertForPreTraining(theirs)
        self.uniter, self.cls = whole.bert, nn.ModuleDict({"predictions": whole.cls.predictions})
        self.uniter.img_embeddings = _Regions(config)
        self.feat_regress, self.region_classifier = _Head(config, False), _Head(config, True)
        self.itm_output = nn.Linear(config.hidden_size, 2)

    def forward(self, ids: Tensor, features: Tensor, location: Tensor, order: Tensor, mask: Tensor | None, labels: Tensor) -> Tensor:
        """The loss of masked words: ids [N, S], regions [N, R], `order` [N, L] of both in a row, an additive mask [N, 1, 1, L]."""
        bert: Any = self.uniter
        words = bert.embeddings(input_ids=ids)
        regions = bert.img_embeddings(features, location, bert.embeddings.token_type_embeddings.weight[1])
        x = torch.cat([words, regions], dim=1)
        x = x.gather(1, order[..., None].expand(-1, -1, x.shape[-1]))
        states = bert.encoder(x, attention_mask=None if mask is None else mask.to(x.dtype))[0]
        logits = self.cls["predictions"](states)
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)


def uniter_peer(setup: TrainSetup, ours: System) -> tuple[nn.Module, Loss]:
    """Padded rows in which each caption's regions follow it, so that padding stands at the end."""
    batch = uniter_batch(setup)
    with torch.device(setup.device):
        module = PaddedUniter(setup.config)
    copy_weights(ours.net, module, rules_of("uniter", setup.config))
    texts, pictures = batch.lengths, batch.counts_of_regions
    ids = padded(batch.input_ids[0], texts, 0)
    features, location = (nn.utils.rnn.pad_sequence(list(x.split(list(pictures))), batch_first=True)
                          for x in (batch.features, batch.locations))
    order = nn.utils.rnn.pad_sequence([torch.cat([torch.arange(s), ids.shape[1] + torch.arange(r)]) for s, r in zip(texts, pictures)],
                                      batch_first=True)
    labels = torch.full((setup.tokens,), IGNORE)
    labels[batch.target_rows] = batch.targets
    there = padding_mask(setup.lengths)
    mask = None if there is None else ((1.0 - there.float()) * torch.finfo(torch.float32).min)[:, None, None]
    inputs = [x if x is None else x.to(setup.device) for x in (ids, features, location, order, mask, padded(labels, setup.lengths, IGNORE))]
    return module, lambda m: m(*inputs)


def uniter_flops(setup: TrainSetup) -> float:
    """Useful operations of a step; see `pairing`. A region's projection needs no gradient of its input."""
    c: UniterConfig = setup.config
    words = [words_of(n) for n in setup.lengths]
    told = sum(prediction_count(n, 0.15, None) for n in words)
    trunk = transformer_flops(c.num_hidden_layers, c.hidden_size, c.intermediate_size, setup.lengths, causal=False)
    return trunk + 4 * c.visual_feat_dim * c.hidden_size * (setup.tokens - sum(words)) + 6 * told * c.hidden_size * c.vocab_size


PAIRINGS = {"uniter": Pairing(uniter_batch, uniter_peer, partial(rules_of, "uniter"), uniter_flops)}
