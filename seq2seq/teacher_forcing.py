"""A text that is read and a text that is written: examples, batches, and the loss of every encoder-decoder.

Teacher forcing: the decoder reads the true target behind its start id and predicts each of its tokens from those before it.
What the two texts are is the objective's matter: spans cut out of a text (T5), or a text and its answer (fine-tuning).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..shared.loss import accuracy_sum, cross_entropy_sum, perplexity
from ..shared.packed import PackedBatch, side_by_side, starts
from ..shared.system import Objective, Preview, Step, System, Term
from ..shared.tokenizer import Tokenizer
from ..shared.tokenizer.styles import FIRST
from .encoder_decoder import EncoderDecoderLM
from .generation.generate import generate_ids


@dataclass(frozen=True, kw_only=True)
class SmoothingSettings:
    """What of every loss of targets can be set."""

    label_smoothing: float = 0.0
    """Share of the target's probability that is spread over the whole vocabulary while training."""

    def smoothing_problems(self) -> list[str]:
        """What is wrong with it."""
        fine = 0 <= self.label_smoothing < 1
        return [] if fine else [f"label_smoothing is {self.label_smoothing}, expected a fraction from 0 up to 1"]


@dataclass(frozen=True, slots=True)
class Seq2SeqExample:
    """A text and its target, both with their end-of-text token."""

    input_ids: np.ndarray
    """int64 [S]"""
    labels: np.ndarray
    """int64 [T]"""


@dataclass(kw_only=True)
class Seq2SeqBatch(PackedBatch):
    """Texts packed in one row of S tokens, and their N targets in one row of T tokens: no padding on either side."""

    decoder_input_ids: Tensor
    """[1, T]"""
    decoder_position_ids: Tensor
    """[1, T], from 0 in each target."""
    decoder_lengths: tuple[int, ...]
    """N lengths of the targets, their sum T."""
    targets: Tensor
    """[T]: the ids to predict."""


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
        parts = [token for token, _ in tokenizer.framing.single.parts]
        at = parts.index(FIRST)
        self.before, self.after = parts[:at], parts[at + 1:]
        if self.eos_id not in self.after:
            self.after.append(self.eos_id)

    @property
    def specials(self) -> int:
        """Special tokens around a text."""
        return len(self.before) + len(self.after)

    def framed(self, ids: np.ndarray | Sequence[int]) -> np.ndarray:
        """A text or target with the special tokens around it, int64: behind it at least the end-of-text token."""
        return np.concatenate([self.before, ids, self.after]).astype(np.int64)

    def written(self, ids: np.ndarray | Sequence[int]) -> np.ndarray:
        """A target, int64: framed, without what the decoder starts from."""
        framed = self.framed(ids)
        return framed[1:] if framed[0] == self.start_id else framed

    def tokens_of(self, example: Seq2SeqExample) -> int:
        """Of the text and its target."""
        return len(example.input_ids) + len(example.labels)

    def collate(self, examples: list[Seq2SeqExample]) -> Seq2SeqBatch:
        """Pack texts, and targets, side by side."""
        return packed_pairs(examples, self.start_id)

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


def packed_pairs(examples: Sequence[Seq2SeqExample], start_id: int) -> Seq2SeqBatch:
    """Texts side by side, and targets side by side; the decoder reads each target behind `start_id`."""
    texts, targets = side_by_side([e.input_ids for e in examples]), side_by_side([e.labels for e in examples])
    begins = starts(targets.lengths)
    decoder_input_ids = targets.input_ids.roll(1, dims=1)
    decoder_input_ids[:, begins] = start_id
    return Seq2SeqBatch(
        counts={"targets": sum(targets.lengths)},
        tokens=sum(texts.lengths) + sum(targets.lengths),
        input_ids=texts.input_ids,
        position_ids=texts.position_ids,
        lengths=texts.lengths,
        decoder_input_ids=decoder_input_ids,
        decoder_position_ids=targets.position_ids,
        decoder_lengths=targets.lengths,
        targets=targets.input_ids[0],
    )


def padded(row: Tensor, lengths: Sequence[int], filled: int) -> tuple[Tensor, Tensor]:
    """Texts packed in a row [1, S] as padded rows [N, L], and where these hold a text, bool [N, L]."""
    rows = nn.utils.rnn.pad_sequence(list(row[0].split(list(lengths))), batch_first=True, padding_value=filled)
    sizes = torch.tensor(lengths, device=row.device)
    return rows, torch.arange(rows.shape[1], device=row.device) < sizes[:, None]


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
        head, rows = self.net.head, self.states(batch)
        if not self.training:
            logits = head(rows)
            return Step({"lm": Term(cross_entropy_sum(logits, batch.targets), "targets", labels=batch.targets)},
                        {"accuracy": (accuracy_sum(logits, batch.targets), len(batch.targets))})
        if not self.label_smoothing:
            return Step({"lm": Term(head.loss(rows, batch.targets), "targets", labels=batch.targets)})
        return Step({"lm": Term(smoothed_sum(head(rows), batch.targets, self.label_smoothing), "targets", labels=batch.targets)})

    def states(self, batch: Seq2SeqBatch) -> Tensor:
        """The decoder's states, from which the targets are predicted: [T, D]."""
        memory = self.net.trunk.encode(batch.input_ids, position_ids=batch.position_ids, lengths=batch.lengths)
        return self.net.trunk.decode(batch.decoder_input_ids, memory, decoder_position_ids=batch.decoder_position_ids,
                                     lengths=batch.decoder_lengths, memory_lengths=batch.lengths)[0]

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        return "lm", "lm_chance", "accuracy", "perplexity"

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """Perplexity of the target tokens."""
        return {"perplexity": perplexity(means["lm"])} if "lm" in means else {}

    def writer(self, batch: Seq2SeqBatch, count: int) -> nn.Module:
        """What writes for the first `count` texts of a batch."""
        return self.net

    @torch.no_grad()
    def preview(self, batch: Seq2SeqBatch, limit: int = 4) -> list[Preview]:
        """Texts, their targets, and what the network writes, greedily."""
        readable, pad = self.objective.readable, self.objective.pad_id
        texts = batch.input_ids[0].split(list(batch.lengths))[:limit]
        targets = batch.targets.split(list(batch.decoder_lengths))[:limit]
        sizes = [len(text) for text in texts]
        ids, mask = padded(batch.input_ids[:, :sum(sizes)], sizes, pad)
        room = self.net.decoder_info.max_positions - 1  # behind the start id
        net = self.writer(batch, len(texts))
        written = generate_ids(net, ids, mask, max_new_tokens=min(room, max(len(target) for target in targets)))[:, 1:]
        return [Preview(tuple((name, readable(part.cpu().numpy())) for name, part in zip(self.captions, parts)))
                for parts in zip(texts, targets, written)]


def smoothed_sum(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """The summed cross-entropy of logits [M, V] against targets [M] that keep 1 - `smoothing`, the rest evenly over V."""
    scores = logits.float().log_softmax(-1) if logits.dtype in (torch.float16, torch.bfloat16) else logits.log_softmax(-1)
    return -(1 - smoothing) * scores.gather(-1, targets[:, None]).sum() - smoothing * scores.mean(-1).sum()
