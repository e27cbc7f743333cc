"""BERT fine-tuned to tag words and to answer questions, beside transformers' own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...shared.attention.position import document_positions
from ...shared.loss import IGNORE
from ...shared.packed import starts
from ...shared.system import System
from ...text.bert import BertConfig
from ...text.span import SpanBatch
from ...text.tag import TagBatch
from .masked import MASK, peer_of
from .pairing import Loss, Pairing, TrainSetup, on, padded, padding_mask, task_rules, transformer_flops

BEGINS = 0.75
"""The share of tokens that begin a word."""


def _texts(setup: TrainSetup, rng: np.random.Generator) -> dict[str, Any]:
    """Random words in sequences, as fields of a batch. (The peer's row for padding learns nothing.)"""
    return {"tokens": setup.tokens, "lengths": setup.lengths, "position_ids": document_positions(setup.lengths),
            "input_ids": torch.from_numpy(rng.integers(MASK + 1, setup.config.vocab_size, setup.tokens))[None],
            "token_type_ids": torch.zeros(1, setup.tokens, dtype=torch.long)}


def tag_batch(setup: TrainSetup) -> TagBatch:
    """Random words of random tags; the first token and the last one of a sentence are special ones."""
    rng = np.random.default_rng(setup.seed)
    texts = _texts(setup, rng)
    rows = [start + 1 + np.flatnonzero(np.append(True, rng.random(length - 3) < BEGINS))
            for start, length in zip(starts(setup.lengths), setup.lengths, strict=True)]
    words = tuple(map(len, rows))
    return TagBatch(counts={"words": sum(words)}, **texts, words=words, word_rows=torch.from_numpy(np.concatenate(rows)),
                    labels=torch.from_numpy(rng.integers(0, setup.config.num_labels, sum(words))))


def span_batch(setup: TrainSetup) -> SpanBatch:
    """Windows of random tokens with random answers."""
    rng = np.random.default_rng(setup.seed)
    texts = _texts(setup, rng)
    places = np.sort([rng.integers(0, length, 2) for length in setup.lengths], axis=1)
    begins, ends = torch.from_numpy(places).unbind(1)
    return SpanBatch(counts={"windows": len(setup.lengths)}, **texts, starts=begins, ends=ends)


def _inputs(setup: TrainSetup, batch: TagBatch | SpanBatch, **more: Tensor) -> dict[str, Tensor]:
    """The batch as padded rows."""
    return on(setup.device, {"input_ids": padded(batch.input_ids[0], setup.lengths, setup.config.pad_token_id or 0),
                             "attention_mask": padding_mask(setup.lengths), **more})


def tag_peer(setup: TrainSetup, ours: System) -> tuple[nn.Module, Loss]:
    """BERT with its head on every token."""
    batch = tag_batch(setup)
    labels = torch.full((batch.tokens,), IGNORE).index_copy(0, batch.word_rows, batch.labels)
    inputs = _inputs(setup, batch, labels=padded(labels, setup.lengths, IGNORE))
    return peer_of(setup, ours, "BertForTokenClassification"), lambda m: m(**inputs).loss


def span_peer(setup: TrainSetup, ours: System) -> tuple[nn.Module, Loss]:
    """BERT with two numbers for each token. Its own loss takes padding for possible answers, so the loss is computed here."""
    batch = span_batch(setup)
    inputs, truth = _inputs(setup, batch), [edge.to(setup.device) for edge in (batch.starts, batch.ends)]
    padding = padded(torch.zeros(setup.tokens, dtype=torch.bool), setup.lengths, True).to(setup.device)

    def loss(module: nn.Module) -> Tensor:
        out = module(**inputs)
        edges = (logits.float().masked_fill(padding, -torch.inf) for logits in (out.start_logits, out.end_logits))
        start, end = (nn.functional.cross_entropy(logits, edge) for logits, edge in zip(edges, truth, strict=True))
        return (start + end) / 2

    return peer_of(setup, ours, "BertForQuestionAnswering"), loss


def tuned_flops(setup: TrainSetup) -> float:
    """Useful operations of a step; see `pairing`."""
    c: BertConfig = setup.config
    trunk = transformer_flops(c.num_hidden_layers, c.hidden_size, c.intermediate_size, setup.lengths, causal=False)
    return trunk + 6 * setup.tokens * c.hidden_size * c.num_labels


def setups(config: BertConfig, lengths: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> list[tuple[str, TrainSetup]]:
    """The cases, without dropout: texts with the tags of four types of entities, and windows of texts, by what their lengths are called."""
    tagger, reader = replace(config, num_labels=9), replace(config, num_labels=2)
    return [case for name, (texts, windows) in lengths.items() for case in (
        (f"BERT tagging, {name}", TrainSetup("bert-tag", tagger, texts, task="tag").still()),
        (f"BERT answering, {name}", TrainSetup("bert-span", reader, windows, task="span").still()))]


PAIRINGS: dict[str, Pairing] = {
    "bert-tag": Pairing(tag_batch, tag_peer, partial(task_rules, "bert", "tag"), tuned_flops),
    "bert-span": Pairing(span_batch, span_peer, partial(task_rules, "bert", "span"), tuned_flops),
}
