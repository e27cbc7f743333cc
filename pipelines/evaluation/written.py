"""Written texts against the ones that were wanted: ROUGE, BLEU and chrF of summaries, answers, translations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

import numpy as np

from ...seq2seq.generation.defaults import options_of
from ...seq2seq.generation.generate import generate
from ...seq2seq.generation.options import DEFAULT_NEW_TOKENS, GenerationOptions
from ...shared.decoder import Decoder, EncoderDecoder, longest_source
from ...shared.errors import UserError
from ...shared.sample import Sample
from ...shared.system import Batch, Objective
from ...shared.tokenizer import Tokenizer
from ..inference.translate import in_languages
from .intervals import of_ratio
from .measure import Measure, Numbers, in_order
from .scores import ROUGE, text_scores
from .subject import Subject


@dataclass(frozen=True)
class Generation:
    """What a model writes for each text, decoded without chance."""

    prefix: str | None = None
    """Stands before every text, such as "summarize: "; by default what it was trained with."""
    max_new_tokens: int | None = None
    """At most this many tokens; by default as many as it was trained to write, or 50."""
    num_beams: int = 1
    """Beams of the search; 1 takes the most probable token each time."""
    length_penalty: float = 1.0
    """Beams are compared by their log probability over their length to this power."""
    no_repeat_ngram_size: int = 0
    """No sequence of this many tokens is written twice; 0 for no limit."""
    max_source_tokens: int | None = None
    """Texts are cut to at most this many tokens, prefix included; by default as many as it was trained with, or reads."""
    source_language: str = ""
    """Language of the texts, for a model that has languages; by default what it was trained with."""
    target_language: str = ""
    """Language to write, the same."""

    name: ClassVar[str] = "generate"
    needs: ClassVar[tuple[str, ...]] = ("text", "targets")
    batch_size: ClassVar[int] = 16

    def __post_init__(self) -> None:
        """Check the ranges; those of generating itself are checked there."""
        for name in ("max_new_tokens", "max_source_tokens", "num_beams"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}, expected at least 1")

    def measures(self, subject: Subject) -> Mapping[str, Measure]:
        """One pass."""
        model = in_languages(subject.model, self.source_language, self.target_language)
        if not isinstance(model, (EncoderDecoder, Decoder)):
            raise UserError(f"{subject.source} holds a {type(model).__name__}, which does not write text: give an encoder-decoder such as "
                            "T5, or a language model such as GPT-2")
        known = subject.trained
        task = replace(self, prefix=known.prefix if self.prefix is None else self.prefix,
                       max_source_tokens=self.max_source_tokens or known.max_length)
        return {"": Scores(task, model, subject.tokenizer, known.max_target_length)}


@dataclass(kw_only=True)
class _Sources(Batch):
    sources: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)


class _SourceTargets(Objective[tuple[str, str]]):
    """Texts with their prefix, and their targets."""

    def __init__(self, prefix: str, tokenizer: Tokenizer, limit: int | None) -> None:
        self.prefix, self.tokenizer, self.limit = prefix, tokenizer, limit

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterable[tuple[str, str]]:
        text = self.prefix + sample.text()
        if self.limit is not None:
            places = self.tokenizer.offsets(text)[1]
            text = text if len(places) <= self.limit else text[:places[self.limit - 1][1]]
        return [(text, sample.target())]

    def collate(self, examples: list[tuple[str, str]]) -> _Sources:
        return _Sources(counts={}, sources=[s for s, _ in examples], targets=[t for _, t in examples])


class Scores(Measure):
    """ROUGE, BLEU and chrF, and how long the texts are."""

    def __init__(self, task: Generation, model: Any, tokenizer: Tokenizer, trained_to_write: int | None = None) -> None:
        self.model, self.tokenizer = model, tokenizer
        search = "greedy" if task.num_beams == 1 else f"{task.num_beams} beams"
        self.options: GenerationOptions = {"do_sample": False, "num_beams": task.num_beams, "length_penalty": task.length_penalty,
                                           "no_repeat_ngram_size": task.no_repeat_ngram_size}
        if task.max_new_tokens is not None:
            self.options["max_new_tokens"] = task.max_new_tokens
        brought = {key: value for key, value in options_of(model, self.options).items() if key not in self.options}
        if task.max_new_tokens is None and trained_to_write is not None and not brought.keys() & {"max_length", "default_new_tokens"}:
            self.options["max_new_tokens"] = trained_to_write
        length = self.options.get("max_new_tokens") or cast("int", brought.get("default_new_tokens", DEFAULT_NEW_TOKENS))
        room = longest_source(model, length)
        limits = [n for n in (task.max_source_tokens, None if room is None else max(1, room - len(tokenizer.encode("")))) if n is not None]
        self.objective = _SourceTargets(task.prefix or "", tokenizer, min(limits, default=None))
        limit = f"at most {brought['max_length']} tokens" if "max_length" in brought else f"at most {length} new tokens"
        before = [f"prefix {task.prefix!r}"] if task.prefix else []
        self.method = ", ".join([*before, search, limit, *(f"{key} {value}" for key, value in sorted(brought.items()))])
        self.records: list[dict[str, Any]] = []

    def add(self, batch: _Sources) -> None:
        """Write a text for each sample."""
        written = cast("Any", generate)(self.model, batch.sources, tokenizer=self.tokenizer, batch_size=len(batch.sources),
                                        return_full_text=False, **self.options)
        for index, source, target, text in zip(batch.sample_ids, batch.sources, batch.targets, written, strict=True):
            self.records.append({"index": index, "text": source, "target": target, "prediction": text.strip()})

    def result(self) -> Numbers:
        """The scores of the whole, with intervals over the samples where a score is a mean over them."""
        records = in_order(self.records)
        written, wanted = [r["prediction"] for r in records], [r["target"] for r in records]
        found = Numbers(text_scores(written, wanted), predictions=records)
        each = [text_scores([a], [b]) for a, b in zip(written, wanted)]
        for name in ROUGE:
            inside = of_ratio([e[name] for e in each], [1.0] * len(each), "samples")
            if inside is not None:
                found.intervals[name] = inside
        found.put("words_written", sum(len(t.split()) for t in written) / len(written))
        found.put("words_wanted", sum(len(t.split()) for t in wanted) / len(wanted))
        found.put("empty", sum(not t for t in written) / len(written))
        return found
