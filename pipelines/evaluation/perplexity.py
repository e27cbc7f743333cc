"""Perplexity: of any system by its own objective, of a causal network by a sliding window, of a masked one word by word."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from ...shared import dist
from ...shared.decoder import Decoder
from ...shared.errors import UserError
from ...shared.heads import LMHead
from ...shared.loss import perplexity
from ...shared.sample import Sample
from ...shared.system import Batch, Objective, System
from ...shared.tokenizer import Tokenizer
from ..model import frontdoor
from ..train.meter import Meter
from .intervals import of_ratio, transformed
from .likelihood import causal_network, nats, nats_of_rows
from .measure import Measure, Numbers, in_order
from .subject import Subject

FEWEST_BATCHES = 10
_WORDS, _BYTES = ":words", ":bytes"  # no count of a system starts with a colon


@dataclass(frozen=True)
class Perplexity:
    """How well a text is predicted."""

    window: int | None = None
    """Tokens of a window that slides over each text; the network's positions where only `stride` is given."""
    stride: int | None = None
    """Tokens by which the window moves on, which are those it scores; half a window where only `window` is given."""
    pseudo: bool = False
    """Mask each token alone."""
    memory: tuple[int, ...] = ()
    """Lengths of the memory to measure with, of a system that has one."""
    eos: bool = True
    """Whether the end of each text is predicted too (with a window)."""
    objective: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the objective, of a model that is not a run."""

    name: ClassVar[str] = "perplexity"
    needs: ClassVar[tuple[str, ...]] = ("text or rows of tokens",)
    batch_size: ClassVar[int] = 8

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        ways = [name for name, given in (("--window or --stride", self.sliding), ("--pseudo", self.pseudo), ("--memory", bool(self.memory)))
                if given]
        if len(ways) > 1:
            raise UserError(f"{' and '.join(ways)} are different ways to measure: give one of them")
        if self.objective and (self.sliding or self.pseudo):
            raise UserError("settings of the objective have no effect with --window, --stride or --pseudo: leave one of them out")
        if any(n < 0 for n in self.memory) or len(set(self.memory)) < len(self.memory):
            raise UserError(f"memory is {', '.join(map(str, self.memory))}: expected different lengths of 0 or more")

    @property
    def sliding(self) -> bool:
        """Whether a window is asked for."""
        return self.window is not None or self.stride is not None

    def measures(self, subject: Subject) -> Mapping[str, Measure]:
        """One pass, or one for each length of the memory."""
        if self.sliding:
            return {"": SlidingWindow(subject, self)}
        if self.pseudo:
            return {"": PseudoPerplexity(subject)}
        system = subject.system(self.objective)
        if not self.memory:
            fields = subject.data.index.fields
            return {task: OwnObjective(subject, system, task=task) for task, own in system.objective.by_turn().items() if own.reads(fields)}
        if not isinstance(system.net, Remembers):
            raise UserError(f"{subject.source} holds a {type(system.net).__name__}, which has no memory: leave --memory out")
        return {f"memory-{n}": OwnObjective(subject, system, n) for n in self.memory}


@runtime_checkable
class Remembers(Protocol):
    """A network whose memory can have another length than in training."""

    memory_length: int


# --- by the objective of its pretraining --------------------------------------------------------------------------------


class _Counted(Objective[tuple[Any, int, int]]):
    """An objective whose batches also count the words and bytes of their samples."""

    def __init__(self, inner: Objective[Any]) -> None:
        self.inner = inner
        self.needs_partner, self.needs_next, self.sequential = inner.needs_partner, inner.needs_next, inner.sequential
        self.tokenizer: Tokenizer | None = getattr(inner, "tokenizer", None)

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterator[tuple[Any, int, int]]:
        made = list(self.inner.example(sample, rng))
        if sample.tokenized:
            text = "" if self.tokenizer is None else self.tokenizer.decode(sample.tokens()[0].tolist(), clean_up_tokenization_spaces=False)
        else:
            text = sample.text()
        for number, example in enumerate(made):
            yield (example, len(text.split()), len(text.encode())) if not number else (example, 0, 0)

    def tokens_of(self, example: tuple[Any, int, int]) -> int:
        return self.inner.tokens_of(example[0])

    def collate(self, examples: list[tuple[Any, int, int]]) -> Batch:
        batch = self.inner.collate([e for e, _, _ in examples])
        batch.counts = {**batch.counts, _WORDS: sum(w for _, w, _ in examples), _BYTES: sum(b for _, _, b in examples)}
        return batch

    def evaluation(self) -> _Counted:
        return _Counted(self.inner.evaluation())


class OwnObjective(Measure):
    """The loss of a system, as the evaluations of its run measure it: every draw is fixed by the seed and the sample."""

    def __init__(self, subject: Subject, system: System, memory: int | None = None, task: str = "") -> None:
        if system.coupled:
            raise UserError(f"{subject.source}: its loss compares the samples of a batch, so it has no perplexity: use `polymodal evaluate "
                            "retrieval` or `zero-shot`")
        self.method = "its own objective" if memory is None else "its own objective, by length of the memory"
        self.objective = _Counted(system.objective.by_turn()[task])
        self.subject, self.system, self.memory = subject, system, memory
        self.meter = Meter(subject.device, chance=True)
        self.records: list[dict[str, Any]] = []
        self.weights: dict[str, float] = {}
        self.carry: Any = None

    def add(self, batch: Batch) -> None:
        """Add the sums and counts of a batch."""
        if self.memory is not None:
            cast("Remembers", self.system.net).memory_length = self.memory
        step = self.system(batch, self.carry)
        self.carry = step.carry
        self.meter.add(step, batch.counts)
        self.weights = {name: term.weight for name, term in step.terms.items()}
        if not self.system.objective.turns and all(term.labels is None for term in step.terms.values()):
            raise UserError(f"{self.subject.source}: its objective has no cross-entropy (its terms are {', '.join(step.terms)}), so it has "
                            "no perplexity: `polymodal inspect` shows the losses of a run's own evaluations (--eval-data)")
        pairs = {name: (term.total, batch.counts[term.count]) for name, term in step.terms.items()} | step.metrics
        found: dict[str, Any] = {
            "sums": {k: [float(total), float(count)] for k, (total, count) in pairs.items()},
            "labelled": [name for name, term in step.terms.items() if term.labels is not None],
            "tokens": batch.tokens, "words": batch.counts[_WORDS], "bytes": batch.counts[_BYTES],
        }
        if batch.sample_ids:
            self.records.append({"index": batch.sample_ids[0], **found})
        else:  # the rest of the batch before
            _add(self.records[-1], found)

    def result(self) -> Numbers:
        """Means as in the run's own evaluations; bits, perplexities and intervals of cross-entropies."""
        records, chances = in_order(self.records), self.meter.chances()
        names = list(dict.fromkeys(name for r in records for name in r["sums"]))
        sums = {name: tuple(math.fsum(r["sums"][name][i] for r in records if name in r["sums"]) for i in (0, 1)) for name in names}
        means = {name: total / count if count else 0.0 for name, (total, count) in sums.items()}
        terms = dist.gather_json(self.weights)
        weights = next(w for w in terms if w)
        # of tasks that take turns some may have none
        labelled = [name for name in weights if any(name in r["labelled"] for r in records)]
        found = Numbers({"loss": math.fsum(w * means[name] for name, w in weights.items())})
        for name in names:
            found.metrics[name] = means[name]
        found.metrics |= {**chances, **self.system.derive(means)}
        tokens, words, size = (sum(r[k] for r in records) for k in ("tokens", "words", "bytes"))
        for name in labelled:
            parts = [r["sums"][name] for r in records if name in r["sums"]]
            # a handful of batches says little, and those of a text that is read in lanes are no independent draws
            alone = len(parts) >= FEWEST_BATCHES and not self.objective.sequential
            inside = of_ratio([t for t, _ in parts], [n for _, n in parts], "batches") if alone else None
            if inside is not None:
                found.intervals[name] = inside
            before = "" if len(labelled) == 1 else f"{name}_"
            found.put(f"{before}perplexity", perplexity(means[name]), transformed(inside, perplexity))
            found.put(f"{before}bits_per_target", means[name] / math.log(2), transformed(inside, lambda x: x / math.log(2)))
            if sums[name][1] == tokens:  # every token is predicted
                _rates(found, sums[name][0], words, size, before)
        found.details["counts"] = {"tokens": tokens, "words": words, "bytes": size, **{n: int(sums[n][1]) for n in labelled}}
        return found


def _add(record: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add another forward pass of the same batch to its record."""
    for name, (total, count) in more["sums"].items():
        before = record["sums"].get(name, (0.0, 0.0))
        record["sums"][name] = [before[0] + total, before[1] + count]
    record["labelled"] = list(dict.fromkeys((*record["labelled"], *more["labelled"])))
    for name in ("tokens", "words", "bytes"):
        record[name] += more[name]


def _rates(found: Numbers, nats: float, words: int, size: int, before: str = "") -> None:
    """Bits for each word and byte of the text, which do not depend on the tokenizer."""
    if words:
        found.put(f"{before}bits_per_word", nats / words / math.log(2))
        found.put(f"{before}word_perplexity", perplexity(nats / words))
    if size:
        found.put(f"{before}bits_per_byte", nats / size / math.log(2))


# --- documents, token by token ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Text:
    """A document, or a part of one."""

    ids: np.ndarray
    """int64 [S]"""
    words: int
    """Words and bytes of the part that is scored."""
    size: int


@dataclass(kw_only=True)
class _Texts(Batch):
    texts: list[_Text] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    """For each text the number of its sample in the batch."""


class _Documents(Objective[tuple[bool, _Text]]):
    """The documents of a sample as ids, without special tokens.

    Args:
        tokenizer: the model's.
        eos: appended to each text; rows of tokens stay as they are.
        skip_first: the first token is only read, and its letters do not count.
    """

    def __init__(self, tokenizer: Tokenizer, eos: int | None, skip_first: bool) -> None:
        self.tokenizer, self.eos, self.skip_first = tokenizer, eos, skip_first

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterable[tuple[bool, _Text]]:
        """The documents; the first of a sample is marked."""
        found = [t for t in self._texts(sample) if len(t.ids) > self.skip_first]
        if not found:
            raise sample.bad(f"no document of {'two tokens' if self.skip_first else 'a token'} or more")
        return [(not number, text) for number, text in enumerate(found)]

    def _texts(self, sample: Sample) -> Iterator[_Text]:
        if sample.tokenized:
            ids, lengths = sample.tokens()
            for part in np.split(ids, np.cumsum(lengths)[:-1]):
                text = self.tokenizer.decode(part[1 if self.skip_first else 0:].tolist(), clean_up_tokenization_spaces=False)
                yield _Text(part, len(text.split()), len(text.encode()))
            return
        text = sample.text()
        row, places = self.tokenizer.offsets(text)
        scored = text[places[0][1]:] if self.skip_first and places else text
        yield _Text(np.array([*row, *([] if self.eos is None else [self.eos])], dtype=np.int64), len(scored.split()), len(scored.encode()))

    def collate(self, examples: list[tuple[bool, _Text]]) -> _Texts:
        """Documents side by side."""
        owners = np.cumsum([first for first, _ in examples]) - 1
        return _Texts(counts={}, tokens=sum(len(t.ids) for _, t in examples), texts=[t for _, t in examples], owners=owners.tolist())


class _ByToken(Measure):
    """Sums the surprise of single tokens, sample by sample."""

    def __init__(self, net: nn.Module, device: torch.device, batch_size: int) -> None:
        self.net: Any = net
        self.device, self.rows = device, batch_size
        self.records: list[dict[str, Any]] = []

    def keep(self, batch: _Texts, totals: Sequence[float], counts: Sequence[int]) -> None:
        """Add up the nats and tokens of each text by sample."""
        for number, index in enumerate(batch.sample_ids):
            mine = [i for i, owner in enumerate(batch.owners) if owner == number]
            self.records.append({
                "index": index, "nats": math.fsum(totals[i] for i in mine), "tokens": sum(counts[i] for i in mine),
                "words": sum(batch.texts[i].words for i in mine), "bytes": sum(batch.texts[i].size for i in mine)})

    def result(self) -> Numbers:
        """Perplexity and bits."""
        records = in_order(self.records)
        nats, tokens = math.fsum(r["nats"] for r in records), sum(r["tokens"] for r in records)
        if not tokens:
            raise UserError("no token of the data can be scored: every one of them is special to the tokenizer")
        inside = of_ratio([r["nats"] for r in records], [r["tokens"] for r in records], "samples")
        found = Numbers({})
        found.put("nats_per_token", nats / tokens, inside)
        found.put("perplexity", perplexity(nats / tokens), transformed(inside, perplexity))
        found.put("bits_per_token", nats / tokens / math.log(2), transformed(inside, lambda x: x / math.log(2)))
        for name, count in (("word", sum(r["words"] for r in records)), ("byte", sum(r["bytes"] for r in records))):
            if count:
                each = of_ratio([r["nats"] for r in records], [r[f"{name}s"] for r in records], "samples")
                found.put(f"bits_per_{name}", nats / count / math.log(2), transformed(each, lambda x: x / math.log(2)))
                if name == "word":
                    found.put("word_perplexity", perplexity(nats / count), transformed(each, perplexity))
        found.details["counts"] = {k: sum(r[k] for r in records) for k in ("tokens", "words", "bytes")}
        return found


class SlidingWindow(_ByToken):
    """Each token but a document's first is scored once, from at least window - stride tokens before it, where there are that many.

    The windows are those of transformers' guide to perplexity: [0, window), [stride, stride + window) and so on, the last one ending
    with the document; each scores what no earlier one has scored.
    """

    def __init__(self, subject: Subject, task: Perplexity) -> None:
        net = causal_network(subject, "a sliding window", "leave --window and --stride out, or use --pseudo for a masked one")
        positions = net.decoder_info.max_positions
        self.window = positions if task.window is None else task.window
        self.stride = max(1, self.window // 2) if task.stride is None else task.stride
        if not 2 <= self.window <= positions:
            raise UserError(f"window is {self.window}, expected 2 to {positions}, the model's positions")
        if not 1 <= self.stride < self.window:
            raise UserError(f"stride is {self.stride}, expected 1 to {self.window - 1}: below the window, so that each token has something "
                            "before it")
        super().__init__(subject.model, subject.device, task.batch_size)
        eos = subject.tokenizer.eos_id if task.eos else None
        self.method = f"sliding window of {self.window}, stride {self.stride}"
        self.objective = _Documents(subject.tokenizer, eos, skip_first=True)

    def add(self, batch: _Texts) -> None:
        """Score every document of a batch."""
        windows = [(number, piece, first) for number, text in enumerate(batch.texts) for piece, first in self._windows(text.ids)]
        totals, counts = [0.0] * len(batch.texts), [len(t.ids) - 1 for t in batch.texts]
        scored = nats(self.net, [(piece, first) for _, piece, first in windows], self.rows, self.device)
        found: dict[int, list[float]] = {}
        for (number, _, _), values in zip(windows, scored):
            found.setdefault(number, []).extend(values)
        for number, values in found.items():
            assert len(values) == counts[number]
            totals[number] = math.fsum(values)
        self.keep(batch, totals, counts)

    def _windows(self, ids: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """The windows of a document, each with the place of the first token it scores."""
        done = 1
        for begin in range(0, len(ids), self.stride):
            end = min(begin + self.window, len(ids))
            yield ids[begin:end], done - begin
            done = end
            if end == len(ids):
                return


class PseudoPerplexity(_ByToken):
    """Every token is masked alone and predicted from all others (Salazar, Liang, Nguyen, Kirchhoff, 2020).

    A text longer than the model's positions is cut into consecutive pieces, which do not see each other.
    """

    method = "pseudo-perplexity: each token masked alone"

    def __init__(self, subject: Subject) -> None:
        tokenizer = subject.tokenizer
        if tokenizer.mask_id is None:
            raise UserError(f"pseudo-perplexity masks words, and the tokenizer of {subject.source} has no mask token: use a masked "
                            "model")
        super().__init__(_masked_network(subject), subject.device, 32)
        self.mask, self.template, self.special = tokenizer.mask_id, tokenizer.framing.single, tokenizer.special_ids
        self.room = self.net.config.longest_input - len(self.template.ids([]))
        self.objective = _Documents(tokenizer, None, skip_first=False)

    def add(self, batch: _Texts) -> None:
        """Score every token of a batch that is not special."""
        totals, counts = list[float](), list[int]()
        for text in batch.texts:
            values: list[float] = []
            for start in range(0, len(text.ids), self.room):
                values += self._piece(torch.tensor(self.template.ids(text.ids[start:start + self.room].tolist()), device=self.device))
            totals.append(math.fsum(values))
            counts.append(len(values))
        self.keep(batch, totals, counts)

    def _piece(self, ids: Tensor) -> list[float]:
        scored = [i for i, token in enumerate(ids.tolist()) if token not in self.special]
        places = torch.tensor(scored, dtype=torch.long, device=self.device)
        found: list[float] = []
        for part in places.split(self.rows):
            if not len(part):
                continue
            copies, rows = ids.repeat(len(part), 1), torch.arange(len(part), device=self.device)
            copies[rows, part] = self.mask
            found += nats_of_rows(self.net, self.net.trunk(copies).last_hidden_state[rows, part], ids[part]).tolist()
        return found


def _masked_network(subject: Subject) -> nn.Module:
    """The network that predicts masked words: the model, or its generator where it has one beside it."""
    for place in ("", "generator"):
        net = subject.model if not place else frontdoor.parts(subject.source, place)
        if net is not None and isinstance(getattr(net, "head", None), LMHead) and not isinstance(net, Decoder):
            return net.to(subject.device).eval()
    raise UserError(f"{subject.source} holds a {type(subject.model).__name__}, which predicts no masked words: "
                    "give a masked language model, such as a BERT")
