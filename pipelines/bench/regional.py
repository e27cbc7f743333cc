"""UNITER and UNIMO beside transformers' BERT and RoBERTa on padded rows: the published codes' way of reading captions with regions."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...multimodal.region_pairs import MLM, UniterBatch, batch_of_pairs
from ...multimodal.unimo import PLACE, UnimoConfig
from ...multimodal.unimo_data import CAPTION, Row, UnimoBatch, UnimoExample, batch_of_rows
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


# ------------------------------------------------------------------------------------------------- UNIMO


def unimo_batch(setup: TrainSetup) -> UnimoBatch:
    """Random captions behind random regions; `lengths` are of both together, with the one for the whole picture."""
    rng = np.random.default_rng(setup.seed)
    config: UnimoConfig = setup.config
    made: list[UnimoExample] = []
    for length in setup.lengths:
        count = words_of(length - 1)
        ids = rng.integers(MASK + 1, config.vocab_size, count + 1)
        low = rng.uniform(0, 0.5, (length - 1 - count, 2)).astype(np.float32)
        regions = Regions(rng.normal(size=(len(low), config.visual_feat_dim)).astype(np.float32), np.concatenate([low, low + 0.3], axis=1))
        made.append(UnimoExample((Row(ids[:-1], regions, positions=np.arange(count), targets=ids[1:], source=0),)))
    return batch_of_rows(made, CAPTION, config.visual_feat_dim, 0)


class _Parts(nn.Module):
    """Parts that no word of a caption needs, with their names."""

    def __init__(self, config: UnimoConfig, last: dict[str, int], bias: bool = False) -> None:
        super().__init__()
        width = config.hidden_size
        self.dense, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(config.visual_feat_dim)) if bias else None
        for name, size in last.items():
            self.add_module(name, nn.Linear(width, size))


class PaddedUnimo(nn.Module):
    """Transformers' RoBERTa over padded rows of regions and words under a mask, with its head on every place, as its class has it."""

    def __init__(self, config: UnimoConfig) -> None:
        super().__init__()
        transformers, ours = need("transformers"), ("visual_", "num_object", "cls_token", "sep_token")
        theirs = transformers.RobertaConfig(**{k: v for k, v in config.to_dict().items() if not k.startswith(ours)},
                                            attn_implementation="sdpa")
        whole, width = transformers.RobertaForMaskedLM(theirs), config.hidden_size
        self.unimo, self.lm_head = whole.roberta, whole.lm_head
        self.unimo.image_embeddings = nn.ModuleDict({
            "features": nn.Linear(config.visual_feat_dim, width), "location": nn.Linear(PLACE, width),
            "LayerNorm": nn.LayerNorm(width, eps=config.layer_norm_eps)})
        self.unimo.text_pooler, self.unimo.picture_pooler = nn.Linear(width, width), nn.Linear(width, width)
        self.region_regression = _Parts(config, {}, bias=True)
        self.region_classifier = _Parts(config, {"classes": config.num_object_labels})
        self.match = nn.Linear(width, 1)

    def forward(self, ids: Tensor, features: Tensor, location: Tensor, counts: Tensor, order: Tensor, mask: Tensor,
                labels: Tensor) -> Tensor:
        """The loss of captions: ids [N, S], features [N, R], `order` [N, L] of [IMG], regions and words, an additive mask [N, 1, L, L]."""
        roberta: Any = self.unimo
        image = roberta.image_embeddings
        positions = torch.arange(ids.shape[1], device=ids.device)[None] + roberta.config.pad_token_id + 1
        words = roberta.embeddings(input_ids=ids, position_ids=positions.expand_as(ids))
        seen = torch.cat([features.sum(1, keepdim=True) / counts[:, None, None], features], dim=1)
        regions = image["LayerNorm"](image["features"](seen) + image["location"](location))
        x = torch.cat([regions, words], dim=1)
        x = x.gather(1, order[..., None].expand(-1, -1, x.shape[-1]))
        logits = self.lm_head(roberta.encoder(x, attention_mask=mask.to(x.dtype))[0])
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)


def unimo_peer(setup: TrainSetup, ours: System) -> tuple[nn.Module, Loss]:
    """Padded rows, in which the words of a caption see the regions and what stands before them."""
    batch = unimo_batch(setup)
    with torch.device(setup.device):
        module = PaddedUnimo(setup.config)
    copy_weights(ours.net, module, rules_of("unimo", setup.config))
    texts, pictures = batch.lengths, batch.counts_of_regions
    features, location = (nn.utils.rnn.pad_sequence(list(x.split(list(pictures))), batch_first=True)
                          for x in (batch.features, batch.locations[:, [0, 1, 2, 3, 6]]))
    location = torch.cat([location.new_tensor([0, 0, 1, 1, 1]).expand(len(texts), 1, -1), location], dim=1)
    width = location.shape[1]
    order = nn.utils.rnn.pad_sequence([torch.cat([torch.arange(r + 1), width + torch.arange(s)]) for s, r in zip(texts, pictures)],
                                      batch_first=True)
    place = torch.arange(order.shape[1])
    first, last = torch.tensor(pictures)[:, None] + 1, torch.tensor(setup.lengths)[:, None]
    seen = ((place < first)[:, None] | (place <= place[:, None])[None]) & (place < last)[:, None]
    mask = (1.0 - seen.float())[:, None] * torch.finfo(torch.float32).min
    labels = torch.full(order.shape, IGNORE)
    labels[(place >= first) & (place < last)] = batch.targets
    inputs = [x.to(setup.device) for x in (padded(batch.input_ids[0], texts, 0), features, location, torch.tensor(pictures), order, mask,
                                           labels)]
    return module, lambda m: m(*inputs)


def unimo_flops(setup: TrainSetup) -> float:
    """Useful operations of a step; as `uniter_flops`, every word is told, and a row counts as seen whole."""
    c: UnimoConfig = setup.config
    words = sum(words_of(n - 1) for n in setup.lengths)
    trunk = transformer_flops(c.num_hidden_layers, c.hidden_size, c.intermediate_size, setup.lengths, causal=False)
    return trunk + 4 * c.visual_feat_dim * c.hidden_size * (setup.tokens - words) + 6 * words * c.hidden_size * c.vocab_size


PAIRINGS = {"uniter": Pairing(uniter_batch, uniter_peer, partial(rules_of, "uniter"), uniter_flops),
            "unimo": Pairing(unimo_batch, unimo_peer, partial(rules_of, "unimo"), unimo_flops)}
