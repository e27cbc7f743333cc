"""Pictures for networks that read regions (UNITER): the regions are found, then classes or answers are told of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...multimodal.pair_classes import PairClassifier, UniterForVisualQuestionAnswering
from ...multimodal.pair_zero_shot import PairZeroShotClassifier
from ...multimodal.region_pairs import PairScorer, RegionReader
from ...multimodal.zero_shot import templates
from ...shared.errors import BadSample, UserError
from ...shared.regions import Regions
from ...shared.sample import Sample
from ..model.frontdoor import tokenizer as load_tokenizer


class Finder(Protocol):
    """Finds regions (`pipelines.regions.detectors`)."""

    def prepare(self, sample: Sample) -> Any:
        """What it takes of a sample; raises `BadSample`."""
        ...

    def find(self, items: Sequence[Any]) -> list[Regions]:
        """The regions of each."""
        ...


class RegionClassifier:
    """Classes or answers of pictures by their regions.

    Args:
        finder: of regions.
        reader: checks that they are those that the network was made for.
        labels: of the classes.
        probabilities: of regions, [B, C].
    """

    def __init__(self, finder: Finder, reader: RegionReader, labels: tuple[str, ...], probabilities: Callable[[list[Regions]], Tensor]
                 ) -> None:
        self.finder, self.reader, self.labels = finder, reader, labels
        self._probabilities = probabilities

    def read(self, name: str, source: bytes | Path) -> Any:
        """A picture as the finder takes it; `BadSample` where it cannot be read."""
        try:
            data = source if isinstance(source, bytes) else source.read_bytes()
        except OSError as error:
            raise BadSample(f"{name}: cannot be read ({error.strerror})") from None
        return self.finder.prepare(Sample(Path(name).stem, {"png": data}, source=str(Path(name).parent)))

    def probabilities(self, pictures: Sequence[Any]) -> Tensor:
        """[B, C], on the CPU."""
        try:  # as a data set holds them
            found = [self.reader.regions(Sample("", regions.fields())) for regions in self.finder.find(pictures)]
        except BadSample as error:
            raise UserError(f"{str(error).partition(': ')[2]}: find them with the detector, or the tower, that the model was trained with"
                            ) from None
        return self._probabilities(found)


def reads_regions(model: nn.Module) -> bool:
    """Whether a network reads regions of pictures with a text."""
    return isinstance(model, (PairScorer, UniterForVisualQuestionAnswering))


def by_names(model: nn.Module, source: str, finder: Finder, labels: Sequence[str] | None, chosen: Sequence[str]) -> RegionClassifier:
    """Classes by their names, with a network that scores pairs."""
    if not isinstance(model, PairScorer):
        raise UserError(f"{source} answers texts about pictures: ask with `polymodal answer QUESTION --image PICTURE`")
    if not labels:
        raise UserError("this model classifies by class names: pass --labels cat,dog or --labels FILE (one name a line)")
    by = PairZeroShotClassifier(model, load_tokenizer(source), labels, templates(chosen))
    device = _device_of(model)
    return RegionClassifier(finder, by.reader, by.labels, lambda found: by.of_regions(found, device))


def answers_to(question: str, model: nn.Module, source: str, finder: Finder) -> RegionClassifier:
    """Answers to a question about each picture, or classes of a statement."""
    if not isinstance(model, UniterForVisualQuestionAnswering):
        raise UserError(f"{source} holds a {type(model).__name__}, expected a network that was fine-tuned to answer texts about pictures: "
                        "`polymodal finetune uniter-classify`")
    by = PairClassifier(model, load_tokenizer(source))
    ids = by.reader.framed(question)
    return RegionClassifier(finder, by.reader, by.labels, lambda found: by.probabilities([(ids, regions) for regions in found]))


def _device_of(model: Any) -> torch.device:
    return next(model.parameters()).device
