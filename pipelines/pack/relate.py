"""`polymodal relate`: what UNIMO's contrast compares a pair with, made of the corpora: rewritten captions, retrieved texts and pictures.

    json: rewrites   same: the picture's captions, where it has several; other: captions that say something else
          related    sentences of texts that are most like the caption
    near0.*, ...     the regions of the pictures that are most like the picture

Li et al. 2021, section 2.3. Likeness is the cosine of TF-IDF vectors: of the words of caption and sentence; of the detected classes of two
pictures. Retrieved pictures travel with the pair, so that the stream reads nothing else.

A caption is rewritten by exchanging words. What may stand in for a word, the captions say: what stands between the same two neighbours in
another one, else behind or before the same one. So things are exchanged for things, qualities for qualities and relations for relations,
in any language that has spaces and without a parser; the paper takes them from scene graphs. One word changes, or two, or two words of the
caption change places. What means the same the paper gets by translating twice; here a picture's other captions do.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...multimodal.pairs import captions
from ...multimodal.unimo_data import NEAR
from ...shared.errors import BadSample, UserError
from ...shared.regions import BOXES_FIELD, CLASSES_FIELD, FEATURES_FIELD
from ...shared.sample import Sample
from ...text.sentences import sentences
from ..base.console import Console
from ..base.files import write_atomic
from ..data.dataset import DataSet
from ..data.index import INDEX, Index, idx_name
from ..data.order import generator
from .writer import ShardWriter

WORK = ".relate"
_WORD = re.compile(r"\w+")
_LONGEST = 60
"""Words of a sentence that can be retrieved, at most."""
_TRIES = 20


@dataclass(frozen=True)
class RelateSettings:
    """What is made for each pair, at most."""

    rewrites: int = 4
    """Rewritten captions."""
    texts: int = 4
    """Retrieved sentences."""
    pictures: int = 1
    """Retrieved pictures."""
    seed: int = 0
    """Of the rewrites."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("rewrites", "texts", "pictures"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} is {getattr(self, name)}, expected 0 or more")


def relate(source: str, out: str | Path, settings: RelateSettings, *, texts: Sequence[str] = (), pictures: Sequence[str] = (),
           console: Console | None = None) -> Index:
    """Write a data set of the pairs of another one, with what they are compared with.

    Args:
        source: the folder or address of pairs with regions.
        out: the folder of the new data set; must be empty, or not there.
        settings: how much is made.
        texts: data sets of texts to retrieve from; none for no retrieved texts.
        pictures: data sets of pictures with regions to retrieve from; none for no retrieved pictures.
        console: where progress goes; silent by default.

    Raises:
        UserError: a data set lacks what is needed, or a sample cannot be read.
    """
    console, out = console or Console(quiet=True), Path(out)
    data = DataSet.open(source)
    if FEATURES_FIELD not in data.index.fields:
        raise UserError(f"{data.directory} has no regions (its fields are {', '.join(data.index.fields)}): `polymodal regions` adds them")
    if out.exists() and (not out.is_dir() or any(path.name != WORK for path in out.iterdir())):
        raise UserError(f"{str(out)!r} is not an empty folder: choose another --out, or delete it first")
    corpus, album = [DataSet.open(name) for name in texts], [DataSet.open(name) for name in pictures]
    for one in album:
        if not {FEATURES_FIELD, CLASSES_FIELD} <= set(one.index.fields) or CLASSES_FIELD not in data.index.fields:
            raise UserError(f"pictures are retrieved by the classes of their regions, and {one.directory} or {data.directory} has none: "
                            "find regions with classes, with one detector and one --codebook")
        if one.index.schema.get("regions") != data.index.schema.get("regions"):
            raise UserError(f"the regions of {one.directory} and {data.directory} are of different detectors or codebooks: use one")
    folder = out / WORK
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        shards = _write(folder, data, corpus, album, settings, console)
        made = Index(tuple(shards), data.index.kind, {**data.index.schema, "related": {
            "rewrites": settings.rewrites, "texts": settings.texts if corpus else 0, "pictures": settings.pictures if album else 0}},
            (*data.index.source, "relate"))
        for shard in shards:
            for name in (idx_name(shard.name), shard.name):
                (folder / name).replace(out / name)
        write_atomic(out / INDEX, made.to_json().encode())
        return made
    except BadSample as error:
        raise UserError(str(error)) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not (out / INDEX).exists():
            with suppress(OSError):
                out.rmdir()


def _write(folder: Path, data: DataSet, corpus: Sequence[DataSet], album: Sequence[DataSet], settings: RelateSettings,
           console: Console) -> list[Any]:
    """Write every shard of the data again, with what belongs to its samples."""
    with console.progress("reading captions", len(data)) as bar:
        said = [captions(sample) for sample in _samples(data, bar.advance)]
    writer = Rewriter(text for found in said for text in found)
    lines = [line for one in corpus for sample in _samples(one) for line in sentences(sample.text()) if len(line.split()) <= _LONGEST]
    known = Retrieval([words(line) for line in lines])
    places = [(one, number) for one in album for number in range(len(one))]
    seen = Retrieval([classes_of(sample) for one in album for sample in _samples(one)])
    shards: list[Any] = []
    number = 0
    with console.progress("relating", len(data)) as bar:
        for size, source in zip(data.shard_sizes, data.index.shards, strict=True):
            name = f"{len(shards):06d}.tar"
            with (folder / name).open("wb") as file:
                shard = ShardWriter(file, name)
                for at in range(number, number + size):
                    sample = data.read(at)
                    first = said[at][0]
                    record = sample.json() if "json" in sample.fields else {}
                    given = record.get("rewrites") or {}
                    rng = generator(settings.seed, 0, at, "relate")
                    near = [lines[i] for i in known.nearest(words(first), settings.texts + 1) if lines[i] != first][:settings.texts]
                    record |= {"rewrites": {"same": given.get("same") or (said[at] if len(said[at]) > 1 else []),
                                            "other": writer.rewrites(first, settings.rewrites, rng, said[at])}, "related": near}
                    fields = {**sample.fields, "json": json.dumps(record, ensure_ascii=False).encode()}
                    for n, i in enumerate(seen.nearest(classes_of(sample), settings.pictures) if album else ()):
                        one, there = places[i]
                        fields |= {NEAR.format(n) + field: bytes(content) for field, content in one.read(there).fields.items()
                                   if field in (FEATURES_FIELD, BOXES_FIELD, CLASSES_FIELD)}
                    shard.add(sample.key, fields)
                    bar.advance()
                made, where = shard.finish()
                write_atomic(folder / idx_name(name), where.to_bytes())
                file.flush()
                os.fsync(file.fileno())
            shards.append(made)
            number += size
            assert made.samples == source.samples
    return shards


def _samples(data: DataSet, advance: Any = lambda count: None) -> Iterator[Sample]:
    for number in range(len(data)):
        yield data.read(number)
        advance(1)


def words(text: str) -> list[str]:
    """The words of a text, in small letters."""
    return _WORD.findall(text.lower())


def classes_of(sample: Sample) -> list[str]:
    """The most probable class of each region, as words."""
    found = sample.regions().classes
    return [] if found is None else [str(c) for c in (found[:, 1:].argmax(1) + 1).tolist()]


class Retrieval:
    """Bags of words, found by the cosine of their TF-IDF vectors: count * (1 + ln(N / documents with the word)).

    Args:
        bags: the words of each document.
    """

    def __init__(self, bags: Sequence[Sequence[str]]) -> None:
        counts = [Counter(bag) for bag in bags]
        spread = Counter(word for bag in counts for word in bag)
        self.weights = {word: 1 + math.log(len(bags) / n) for word, n in spread.items()}
        postings: dict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
        norms = np.zeros(len(bags))
        for number, bag in enumerate(counts):
            for word, n in bag.items():
                weight = n * self.weights[word]
                postings[word][0].append(number)
                postings[word][1].append(weight)
                norms[number] += weight**2
        self.norms = np.sqrt(np.maximum(norms, 1e-12))
        self.postings = {word: (np.array(numbers), np.array(weights)) for word, (numbers, weights) in postings.items()}

    def scores(self, bag: Sequence[str]) -> np.ndarray:
        """The cosine of each document with a bag of words, [N]."""
        found, own = np.zeros(len(self.norms)), 0.0
        for word, n in Counter(bag).items():
            if word in self.postings:
                numbers, weights = self.postings[word]
                found[numbers] += n * self.weights[word] * weights
                own += (n * self.weights[word]) ** 2
        return found / (self.norms * math.sqrt(max(own, 1e-12)))

    def nearest(self, bag: Sequence[str], count: int) -> list[int]:
        """The documents that share a word with the bag, most like it first; of equal ones the first."""
        scores = self.scores(bag)
        return [int(i) for i in np.argsort(-scores, kind="stable")[:count] if scores[i] > 0]


class Rewriter:
    """Exchanges words of captions for others that stand in the same places of other captions.

    Args:
        texts: all captions.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.between: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self.behind: dict[str, Counter[str]] = defaultdict(Counter)
        self.before: dict[str, Counter[str]] = defaultdict(Counter)
        self.all: Counter[str] = Counter()
        for text in texts:
            tokens = text.split()
            for left, word, right in zip(["", *tokens], tokens, [*tokens[1:], ""]):
                self.between[left, right][word] += 1
                self.behind[left][word] += 1
                self.before[right][word] += 1
                self.all[word] += 1

    def instead(self, tokens: Sequence[str], at: int, rng: np.random.Generator) -> str | None:
        """A word that may stand in for number `at`; None where no caption has any other."""
        left, right = tokens[at - 1] if at else "", tokens[at + 1] if at + 1 < len(tokens) else ""
        for found in (self.between.get((left, right), {}), self.behind.get(left, {}), self.before.get(right, {}), self.all):
            if others := {word: n for word, n in found.items() if word not in tokens}:
                return _drawn(others, rng)
        return None

    def rewrites(self, text: str, count: int, rng: np.random.Generator, own: Sequence[str] = ()) -> list[str]:
        """At most `count` different captions that say something else than `text`, and are none of the picture's `own`."""
        tokens, found, taken = text.split(), list[str](), {" ".join(t.split()) for t in (text, *own)}
        for _ in range(_TRIES * count):
            if len(found) == count:
                break
            made, places = list(tokens), rng.permutation(len(tokens))
            if len(tokens) > 2 and rng.random() < 1 / 3:
                a, b = places[:2].tolist()
                made[a], made[b] = made[b], made[a]
            else:
                for at in places[:1 + int(len(tokens) > 2 and rng.random() < 0.5)].tolist():
                    made[at] = self.instead(made, at, rng) or made[at]
            if (line := " ".join(made)) not in taken:
                taken.add(line)
                found.append(line)
        return found


def _drawn(counts: Mapping[str, int], rng: np.random.Generator) -> str:
    """A word in proportion to its count."""
    names = sorted(counts)
    ends = np.cumsum([counts[name] for name in names])
    return names[int(np.searchsorted(ends, rng.integers(ends[-1]), side="right"))]
