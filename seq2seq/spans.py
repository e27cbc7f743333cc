"""The data side of T5: spans cut out of texts, and texts that are read beside texts that are written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..shared.corrupt import cut_spans, noise_spans, span_count, span_lengths
from ..shared.errors import BadSample, UserError, raise_problems
from ..shared.sample import Sample
from ..shared.system import Batch, Objective, Preview
from ..shared.tokenizer import Tokenizer


@dataclass(frozen=True)
class SpanSettings:
    """What of the objective can be set."""

    max_length: int = 512
    """Tokens of an input, sentinels and end-of-text token included; texts are cut so that they fill it."""
    noise_density: float = 0.15
    """Fraction of the tokens that is corrupted."""
    mean_noise_span_length: float = 3.0
    """Tokens of a corrupted span, on average."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        problems: list[str] = []
        if self.max_length < 16:
            problems.append(f"max_length is {self.max_length}, expected at least 16 tokens")
        if not 0 < self.noise_density < 1:
            problems.append(f"noise_density is {self.noise_density}, expected a fraction between 0 and 1")
        if not self.mean_noise_span_length >= 1:
            problems.append(f"mean_noise_span_length is {self.mean_noise_span_length}, expected at least 1 token")
        raise_problems(problems)


@dataclass(frozen=True, slots=True)
class Seq2SeqExample:
    """One corrupted text and its target, both with their end-of-text token."""

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


class SpanObjective(Objective[Seq2SeqExample]):
    """Corrupted spans, from the rest of the text."""

    def __init__(self, tokenizer: Tokenizer, settings: SpanSettings, start_id: int) -> None:
        """Make the data side; `start_id` is what the decoder starts from."""
        self.tokenizer = with_ends(tokenizer)
        self.settings = settings
        self.start_id = start_id
        self.text_length, self.target_length = span_lengths(settings.max_length, settings.noise_density, settings.mean_noise_span_length)
        _, spans = span_count(self.text_length, settings.noise_density, settings.mean_noise_span_length)
        self.sentinels = sentinel_ids(tokenizer)
        if len(self.sentinels) < spans:
            fix = "lower objective.max_length" if len(self.sentinels) else "train one with --style t5"
            raise UserError(f"texts of {self.text_length} tokens need {spans} sentinels (<extra_id_0>, ...), "
                            f"the tokenizer has {len(self.sentinels)}: {fix}")

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterator[Seq2SeqExample]:
        """Yield the pieces of a text, or of the joined documents of a row."""
        ids = self._ids(sample)
        if len(ids) < 2:
            raise BadSample(f"sample {sample.key!r} of {sample.source or 'the data set'}: a text of two tokens or more is needed")
        settings, eos = self.settings, [self.tokenizer.eos_id]
        for start in range(0, len(ids) - 1, self.text_length):
            piece = ids[start:start + self.text_length]
            if len(piece) < 2:
                return
            noise = noise_spans(len(piece), rng, noise_density=settings.noise_density, mean_span_length=settings.mean_noise_span_length)
            text, target = cut_spans(piece, noise, self.sentinels)
            yield Seq2SeqExample(np.concatenate([text, eos]), np.concatenate([target, eos]))

    def _ids(self, sample: Sample) -> np.ndarray:
        """The tokens of a sample, documents joined without the special tokens around them."""
        tokenizer = self.tokenizer
        if not sample.tokenized:
            return np.asarray(tokenizer.encode(sample.text(), add_special_tokens=False), dtype=np.int64)
        ids, _ = sample.tokens()
        edges = (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.bos_id, tokenizer.eos_id)
        return ids[~np.isin(ids, [e for e in edges if e is not None])]

    def collate(self, examples: list[Seq2SeqExample]) -> Seq2SeqBatch:
        """Pad texts and targets on the right."""
        assert self.tokenizer.pad_id is not None
        return pad_pairs(examples, self.tokenizer.pad_id, self.start_id)

    def describe(self, example: Seq2SeqExample) -> Preview:
        """The corrupted text and its target."""
        return Preview((("input", show_tokens(self.tokenizer, example.input_ids)), ("target", show_tokens(self.tokenizer, example.labels))))


def with_ends(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, if it has tokens for padding and for the end of a text."""
    lacking = [role for role in ("pad", "eos") if getattr(tokenizer, f"{role}_id") is None]
    if lacking:
        raise UserError(f"T5 needs tokens for padding and for the end of a text; this tokenizer has no token in the role "
                        f"{' and '.join(lacking)}: train one with --style t5")
    return tokenizer


def fitting(tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    """The tokenizer, if the word table has a row for each of its entries."""
    if tokenizer.vocab_size > vocab_size:
        raise UserError(f"the tokenizer has {tokenizer.vocab_size} entries, model.vocab_size is {vocab_size}")
    return tokenizer


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


def sentinel_ids(tokenizer: Tokenizer) -> np.ndarray:
    """The ids of <extra_id_0>, <extra_id_1>, ... as far as the vocabulary has them, int64."""
    found: list[int] = []
    while (i := tokenizer.token_to_id(f"<extra_id_{len(found)}>")) is not None:
        found.append(i)
    return np.asarray(found, dtype=np.int64)


def show_tokens(tokenizer: Tokenizer, ids: np.ndarray) -> str:
    """A text with its sentinels, without the end-of-text token."""
    special = {int(i): f" {tokenizer.id_to_token(int(i))} " for i in sentinel_ids(tokenizer)}
    out: list[str] = []
    plain: list[int] = []
    for i in [*ids.tolist(), None]:
        if i is None or i in special:
            out.append(tokenizer.decode(plain))
            out.append("" if i is None else special[i])
            plain = []
        else:
            plain.append(i)
    return " ".join("".join(out).split())
