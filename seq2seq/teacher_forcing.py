"""A text that is read and a text that is written: examples, batches, and the loss of every encoder-decoder.

Teacher forcing: the decoder reads the true target behind its start id and predicts each of its tokens from those before it.
What the two texts are is the objective's matter: spans cut out of a text (T5), or a text and its answer (fine-tuning).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..shared.loss import accuracy_sum, cross_entropy_sum, perplexity
from ..shared.system import Batch, Objective, Preview, Step, System, Term
from ..shared.tokenizer import Tokenizer
from .encoder_decoder import EncoderDecoderLM
from .generation.generate import generate_ids


@dataclass(frozen=True, slots=True)
class Seq2SeqExample:
    """A text and its target, both with their end-of-text token."""

    input_ids: np.ndarray
    """int64 [S]"""
    labels: np.ndarray
    """int64 [T]"""


@dataclass(kw_only=True)
class Seq2SeqBatch(Batch):
    """Padded texts and targets. B examples, M target tokens."""

    input_ids: Tensor
    """[B, S]"""
    attention_mask: Tensor
    """bool [B, S]"""
    decoder_input_ids: Tensor
    """[B, T]"""
    target_rows: Tensor
    """[M]: places that are no padding, counted over the flattened targets."""
    targets: Tensor
    """[M]: the ids to predict there."""
    lengths: tuple[int, ...]
    """B lengths of the targets, their sum M."""


class Seq2SeqObjective(Objective[Seq2SeqExample]):
    """What every objective with texts and targets shares; `example` says what they are.

    Args:
        tokenizer: with tokens for padding and for the end of a text.
        start_id: what the decoder starts from.
    """

    def __init__(self, tokenizer: Tokenizer, start_id: int) -> None:
        self.pad_id, self.eos_id = tokenizer.need("a text that is written", "pad", "eos")
        self.tokenizer = tokenizer
        self.start_id = start_id
        self.marks = special_inside(tokenizer)

    def tokens_of(self, example: Seq2SeqExample) -> int:
        """Of the text and its target."""
        return len(example.input_ids) + len(example.labels)

    def collate(self, examples: list[Seq2SeqExample]) -> Seq2SeqBatch:
        """Pad texts and targets on the right."""
        return pad_pairs(examples, self.pad_id, self.start_id)

    def readable(self, ids: np.ndarray) -> str:
        """A text with the special tokens that stand inside it (T5's sentinels), without those around it."""
        out: list[str] = []
        plain: list[int] = []
        for i in ids.tolist():
            if i in self.marks:
                out += [self.tokenizer.decode(plain), self.marks[i]]
                plain = []
            else:
                plain.append(i)
        return " ".join(" ".join([*out, self.tokenizer.decode(plain)]).split())

    def describe(self, example: Seq2SeqExample) -> Preview:
        """The text and its target."""
        return Preview((("input", self.readable(example.input_ids)), ("target", self.readable(example.labels))))


def special_inside(tokenizer: Tokenizer) -> dict[int, str]:
    """Special tokens that may stand inside a text, by id: all but those with another role than the mask's."""
    roles = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.bos_id, tokenizer.eos_id)
    return {i: tokenizer.id_to_token(i) or f"<{i}>" for i in tokenizer.special_ids if i not in roles}


def pad_pairs(examples: list[Seq2SeqExample], pad_id: int, start_id: int) -> Seq2SeqBatch:
    """Pad texts and targets on the right; the decoder reads the target behind `start_id`."""
    texts, labels = [e.input_ids for e in examples], [e.labels for e in examples]
    sizes, lengths = torch.tensor([len(t) for t in texts]), torch.tensor([len(t) for t in labels])
    input_ids, targets = _padded(texts, pad_id), _padded(labels, pad_id)
    rows = (torch.arange(targets.shape[1]) < lengths[:, None]).flatten().nonzero()[:, 0]
    total = len(rows)
    return Seq2SeqBatch(
        counts={"targets": total},
        tokens=int(sizes.sum()) + total,
        input_ids=input_ids,
        attention_mask=torch.arange(input_ids.shape[1]) < sizes[:, None],
        decoder_input_ids=torch.cat([torch.full((len(examples), 1), start_id), targets[:, :-1]], dim=1),
        target_rows=rows,
        targets=targets.flatten()[rows],
        lengths=tuple(lengths.tolist()),
    )


def _padded(rows: list[np.ndarray], filled: int) -> Tensor:
    return nn.utils.rnn.pad_sequence([torch.from_numpy(r) for r in rows], batch_first=True, padding_value=filled)


class Seq2SeqSystem(System[EncoderDecoderLM, Seq2SeqObjective]):
    """An encoder-decoder that writes targets: cross-entropy of their tokens.

    Args:
        net: the network.
        objective: makes the texts and targets.
        label_smoothing: share of the target's probability that is spread over the vocabulary while training.
    """

    captions: tuple[str, str, str] = ("text", "target", "written")
    """What a preview calls the text, its target, and what the network writes."""

    def __init__(self, net: EncoderDecoderLM, objective: Seq2SeqObjective, label_smoothing: float = 0.0) -> None:
        super().__init__(net, objective)
        self.label_smoothing = label_smoothing

    def forward(self, batch: Seq2SeqBatch, carry: Any = None) -> Step:
        """Cross-entropy of the targets, summed; the vocabulary is scored only where there is a target."""
        trunk, head = self.net.trunk, self.net.head
        memory = trunk.encode(batch.input_ids, batch.attention_mask)
        hidden = trunk.decode(batch.decoder_input_ids, memory, batch.attention_mask)
        rows = hidden.flatten(0, 1)[batch.target_rows]  # [M, D]
        if not self.training:
            logits = head(rows)
            return Step({"lm": Term(cross_entropy_sum(logits, batch.targets), "targets", labels=batch.targets)},
                        {"accuracy": (accuracy_sum(logits, batch.targets), len(batch.targets))})
        if not self.label_smoothing:
            return Step({"lm": Term(head.loss(rows, batch.targets), "targets", labels=batch.targets)})
        return Step({"lm": Term(smoothed_sum(head(rows), batch.targets, self.label_smoothing), "targets", labels=batch.targets)})

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """Perplexity of the target tokens."""
        return {"perplexity": perplexity(means["lm"])} if "lm" in means else {}

    @torch.no_grad()
    def preview(self, batch: Seq2SeqBatch, limit: int = 4) -> list[Preview]:
        """Texts, their targets, and what the network writes, greedily."""
        readable = self.objective.readable
        ids, mask = batch.input_ids[:limit], batch.attention_mask[:limit]
        written = generate_ids(self.net, ids, mask, max_new_tokens=max(batch.lengths[:limit]))[:, 1:].cpu().numpy()
        targets = [t.cpu().numpy() for t in batch.targets.split(list(batch.lengths))[:limit]]
        return [
            Preview(tuple((name, readable(part)) for name, part in zip(self.captions, (row[keep].cpu().numpy(), target, guess))))
            for row, keep, target, guess in zip(ids, mask, targets, written)
        ]


def smoothed_sum(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """The summed cross-entropy of logits [M, V] against targets [M] that keep 1 - `smoothing`, the rest evenly over V."""
    scores = logits.float().log_softmax(-1) if logits.dtype in (torch.float16, torch.bfloat16) else logits.log_softmax(-1)
    return -(1 - smoothing) * scores.gather(-1, targets[:, None]).sum() - smoothing * scores.mean(-1).sum()
