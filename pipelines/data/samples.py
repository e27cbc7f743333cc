"""Samples as an objective gets them: read and checked, with the generator of their draws and the way to a partner."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ...shared.errors import BadSample
from ...shared.sample import Sample
from .dataset import DataSet
from .order import Draws, SampleRef, generator


@dataclass(frozen=True, slots=True)
class PreparedSample:
    """One sample on its way to an objective."""

    ref: SampleRef
    index: int
    """Its number among all data sets: `Sample.index`."""
    sample: Sample | BadSample
    rng: np.random.Generator
    """For all that is drawn for it; good until the next sample is prepared."""


class SampleReader:
    """Reads samples of one or several data sets by `SampleRef`. Picklable.

    Args:
        sets: the data sets; `SampleRef.source` is a number among them.
        seed: of the draws that are made for a sample.
        partner_of: the number, in the same data set, of the sample that is drawn as a partner; None where nobody asks for partners.
        needs_next: whether somebody asks for the sample behind each.
        draws: see `Objective.draws`.
    """

    def __init__(self, sets: Sequence[DataSet], seed: int, partner_of: Callable[[SampleRef], int] | None = None, *,
                 needs_next: bool = False, draws: int | None = None) -> None:
        self.sets, self.seed, self._draws = tuple(sets), seed, draws
        self._partner_of, self._needs_next = partner_of, needs_next
        self._first = tuple(itertools.accumulate((len(d) for d in self.sets), initial=0))

    @property
    def samples(self) -> int:
        """Samples of all data sets together."""
        return self._first[-1]

    def index(self, ref: SampleRef) -> int:
        """The sample's number among all data sets: `Sample.index`."""
        return self._first[ref.source] + ref.sample

    def key_and_shard(self, ref: SampleRef) -> tuple[str, str]:
        """(key, shard) of a sample, without reading it."""
        return self.sets[ref.source].key_and_shard(ref.sample)

    def rng(self, ref: SampleRef) -> np.random.Generator:
        """A new generator for what is drawn for a sample."""
        return generator(self.seed, self._drawn(ref), self.index(ref), "example")

    def prepare(self, refs: Sequence[SampleRef]) -> Iterator[PreparedSample]:
        """The samples in the order asked for; each data set is read in the order of its shards."""
        draws = Draws(self.seed, "example")
        for ref, sample in zip(refs, self._read(refs), strict=True):
            index = self.index(ref)
            if isinstance(sample, Sample):
                sample.index = index
                if self._partner_of is not None:
                    sample.pair_with(partial(self._partner, ref))
                if self._needs_next:
                    sample.followed_by(partial(self._other, ref, ref.sample + 1))
            yield PreparedSample(ref, index, sample, draws.of(self._drawn(ref), index))

    def _drawn(self, ref: SampleRef) -> int:
        """The epoch that the sample's draws are keyed by."""
        return ref.epoch if self._draws is None else ref.epoch % self._draws

    def _read(self, refs: Sequence[SampleRef]) -> list[Sample | BadSample]:
        found: dict[int, Sample | BadSample] = {}
        for source, data in enumerate(self.sets):
            mine = [i for i, ref in enumerate(refs) if ref.source == source]
            found.update(zip(mine, data.read_many([refs[i].sample for i in mine]), strict=True))
        return [found[i] for i in range(len(refs))]

    def _partner(self, ref: SampleRef) -> Sample | None:
        """The partner of a sample; None where it is damaged (which is told when its own turn comes)."""
        assert self._partner_of is not None
        return self._other(ref, self._partner_of(ref))

    def _other(self, ref: SampleRef, number: int) -> Sample | None:
        """Another sample of the same data set; None where there is none of that number, or it is damaged."""
        data = self.sets[ref.source]
        found = data.read_many([number])[0] if number < len(data) else None
        if not isinstance(found, Sample):
            return None
        found.index = self.index(ref._replace(sample=number))
        return found
