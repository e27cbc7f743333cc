"""Encoders that predict masked words, beside transformers' own."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...seq2seq.cloze import SEQ2SEQ, SOURCE, TARGET, TASKS, ClozeBatch
from ...shared.attention.position import document_positions
from ...shared.corrupt import choose_places, prediction_count, replace_places
from ...shared.encoder import EncoderConfig
from ...shared.loss import IGNORE
from ...shared.system import System
from ...text.bert import BertBatch
from ...text.bigbird import BigBirdConfig, BigBirdModel
from ...text.masking import MaskedBatch
from .machine import need
from .pairing import Loss, Pairing, TrainSetup, copy_weights, on, padded, padding_mask, rules_of, task_rules, transformer_flops

MASK = 4


def masked_batch(setup: TrainSetup) -> MaskedBatch:
    """Random words, masked as BERT masks them."""
    rng = np.random.default_rng(setup.seed)
    config: EncoderConfig = setup.config
    ids: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    start = 0
    for length in setup.lengths:
        inner = np.ones(length, dtype=bool)
        inner[[0, -1]] = False
        words = rng.integers(MASK + 1, config.vocab_size, length)
        places = choose_places(inner, prediction_count(length, 0.15, None), rng)
        noisy = replace_places(words, places, rng, mask_id=MASK, words=config.vocab_size)
        ids.append(noisy.ids)
        rows.append(noisy.positions + start)
        targets.append(noisy.targets)
        start += length
    return MaskedBatch(
        counts={"masked": sum(map(len, rows))}, tokens=setup.tokens, lengths=setup.lengths,
        position_ids=document_positions(setup.lengths),
        input_ids=torch.from_numpy(np.concatenate(ids))[None], token_type_ids=torch.zeros(1, setup.tokens, dtype=torch.long),
        target_rows=torch.from_numpy(np.concatenate(rows)), targets=torch.from_numpy(np.concatenate(targets)),
    )  # fmt: skip


def bert_batch(setup: TrainSetup) -> BertBatch:
    """The same words as two segments, which follow each other or not."""
    masked, pairs = masked_batch(setup), len(setup.lengths)
    # of its own generator, so that a batch without pairs has the same words
    follows = torch.randint(2, (pairs,), generator=torch.Generator().manual_seed(setup.seed))
    fields: dict[str, Any] = {**vars(masked), "counts": {**masked.counts, "pairs": pairs}, "next_sentence": follows,
                              "token_type_ids": torch.cat([(torch.arange(n) > n // 2).long() for n in setup.lengths])[None]}
    return BertBatch(**fields)


def unilm_batch(setup: TrainSetup) -> ClozeBatch:
    """The same words as a text and what stands behind it, half and half, under the sequence-to-sequence mask."""
    masked, first = masked_batch(setup), text_lengths(setup)
    kinds = torch.cat([torch.where(torch.arange(n) < s, SOURCE, TARGET) for n, s in zip(setup.lengths, first)])
    fields: dict[str, Any] = {**vars(masked), "token_type_ids": kinds[None], "next_sentence": torch.zeros(0, dtype=torch.long)}
    return ClozeBatch(**fields, mask=TASKS[SEQ2SEQ].mask(setup.lengths, first))


def text_lengths(setup: TrainSetup) -> tuple[int, ...]:
    """Tokens of the text that each sequence begins with."""
    return tuple(length // 2 for length in setup.lengths)


def inputs_of(setup: TrainSetup, batch: MaskedBatch, **more: Tensor) -> dict[str, Tensor]:
    """The batch as padded rows, with a label at every place that is to be predicted."""
    labels = torch.full((batch.tokens,), IGNORE)
    labels[batch.target_rows] = batch.targets
    filling = setup.config.pad_token_id or 0
    return on(setup.device, {
        "input_ids": padded(batch.input_ids[0], setup.lengths, filling), "attention_mask": padding_mask(setup.lengths),
        "token_type_ids": padded(batch.token_type_ids[0], setup.lengths, 0), "labels": padded(labels, setup.lengths, IGNORE), **more})


def peer_of(setup: TrainSetup, ours: System, name: str, attention: str = "sdpa") -> nn.Module:
    """A class of transformers with our weights: SDPA where it has it, the head on every position, as its class computes it."""
    transformers = need("transformers")
    with torch.device(setup.device):
        cls = getattr(transformers, name)
        module = cls(cls.config_class(**setup.config.to_dict(), attn_implementation=attention))
    rules = task_rules(setup.family, setup.task, setup.config) if setup.task else rules_of(setup.family, setup.config)
    copy_weights(ours.net, module, rules)
    return module


def bert_peer(setup: TrainSetup, ours: System) -> tuple[nn.Module, Loss]:
    """BERT with its two losses."""
    batch = bert_batch(setup)
    inputs = inputs_of(setup, batch, next_sentence_label=batch.next_sentence)
    return peer_of(setup, ours, "BertForPreTraining"), lambda m: m(**inputs).loss


def unilm_peer(setup: TrainSetup, ours: System) -> tuple[nn.Module, Loss]:
    """BERT with a 4-D mask of bools, and its loss of masked words alone."""
    batch = unilm_batch(setup)
    inputs = inputs_of(setup, batch)
    labels, width = inputs.pop("labels"), max(setup.lengths)
    place = torch.arange(width)
    sees = [(place[None] < n) & ((place[None] <= place[:, None]) | (place[None] < s)) for n, s in zip(setup.lengths, text_lengths(setup))]
    inputs["attention_mask"] = torch.stack(sees)[:, None].to(setup.device)
    return peer_of(setup, ours, "BertForPreTraining"), lambda m: nn.functional.cross_entropy(
        m(**inputs).prediction_logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)


def roberta_peer(setup: TrainSetup, ours: System) -> tuple[nn.Module, Loss]:
    """RoBERTa, which finds the positions itself."""
    inputs = inputs_of(setup, masked_batch(setup))
    return peer_of(setup, ours, "RobertaForMaskedLM"), lambda m: m(**inputs).loss


def bigbird_peer(setup: TrainSetup, ours: System) -> tuple[nn.Module, Loss]:
    """BigBird, which has attention of its own; rows without padding, so that both sides have the same blocks."""
    assert len(set(setup.lengths)) == 1
    inputs = inputs_of(setup, masked_batch(setup))
    return peer_of(setup, ours, "BigBirdForMaskedLM", "eager"), lambda m: m(**inputs).loss


def albert_peer(setup: TrainSetup, ours: System) -> tuple[nn.Module, Loss]:
    """ALBERT with its two losses."""
    batch = bert_batch(setup)
    inputs = inputs_of(setup, batch, sentence_order_label=batch.next_sentence)
    return peer_of(setup, ours, "AlbertForPreTraining"), lambda m: m(**inputs).loss


def masked_flops(setup: TrainSetup) -> float:
    """Useful operations of a step; see `pairing`."""
    c: EncoderConfig = setup.config
    trunk = transformer_flops(c.num_hidden_layers, c.hidden_size, c.intermediate_size, setup.lengths, causal=False)
    predicted = sum(prediction_count(length, 0.15, None) for length in setup.lengths)
    width, table = c.hidden_size, c.table_size
    mapped = 0 if table == width else 6 * setup.tokens * table * width
    return trunk + mapped + 6 * predicted * table * (c.vocab_size + width)


def bert_flops(setup: TrainSetup) -> float:
    """The same, and the pooler."""
    return masked_flops(setup) + 6 * len(setup.lengths) * setup.config.hidden_size**2


def bigbird_flops(setup: TrainSetup) -> float:
    """The same as of masked words, without what block tables hide."""
    c: BigBirdConfig = setup.config
    with torch.device("meta"):
        trunk = BigBirdModel(c)
    seen = sum(float(layout.counts.float().mean(0).sum()) * c.block_size**2 if (layout := trunk.layout(n, i)) else float(n * n)
               for n in setup.lengths for i in range(c.num_hidden_layers))
    return masked_flops(setup) - 12 * c.hidden_size * (c.num_hidden_layers * sum(n * n for n in setup.lengths) - seen)


def unilm_flops(setup: TrainSetup) -> float:
    """The same, without what the mask hides."""
    c: EncoderConfig = setup.config
    hidden = sum(s * (n - s) + (n - s) ** 2 / 2 for n, s in zip(setup.lengths, text_lengths(setup)))
    return masked_flops(setup) - 12 * c.num_hidden_layers * c.hidden_size * hidden


PAIRINGS: dict[str, Pairing] = {
    "bert": Pairing(bert_batch, bert_peer, partial(rules_of, "bert"), bert_flops),
    "albert": Pairing(bert_batch, albert_peer, partial(rules_of, "albert"), bert_flops),
    "unilm": Pairing(unilm_batch, unilm_peer, partial(rules_of, "unilm"), unilm_flops),
    "bigbird": Pairing(masked_batch, bigbird_peer, partial(rules_of, "bigbird"), bigbird_flops,
                       autocast=False),  # it scatters bf16 products into fp32 tables, which torch refuses
    "roberta": Pairing(masked_batch, roberta_peer, partial(rules_of, "roberta"), masked_flops),
}
