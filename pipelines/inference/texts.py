"""`polymodal classify` of texts and pairs of texts, by the classes that a network was fine-tuned for."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ...shared.errors import UserError
from ...shared.tokenizer import Tokenizer
from ...text.classify import TextClassifier
from ...text.tasks import SequenceClassifier, reads_alone
from ..base.console import Console
from ..model.frontdoor import tokenizer
from .trained import trained

Text = tuple[str, str | None]
"""A text, and the second text of its pair."""


def text_classifier(model: nn.Module, source: str, labels: Sequence[str] | None, chosen: Sequence[str],
                    speed: float | None = None, vocabulary: Tokenizer | None = None) -> TextClassifier | None:
    """The classifier of a network that classifies texts; None for any other. Its tokenizer lies at `source`, if it is not `vocabulary`."""
    if not isinstance(model, SequenceClassifier):
        if speed is not None:
            raise UserError("--speed is for networks that classify texts with a classifier behind each layer (fastbert): leave it out")
        return None
    if labels or chosen:
        raise UserError("this model has classes of its own: leave --labels and --template out")
    return TextClassifier(model, None if reads_alone(model) else vocabulary or tokenizer(source), speed, trained(model).max_length)


def classify_texts(
    by: TextClassifier, inputs: Sequence[Text], *, top: int, batch_size: int, console: Console
) -> list[list[tuple[str, float]]]:
    """The `top` classes of each text with their probabilities, best first."""
    found: list[list[tuple[str, float]]] = []
    with console.progress("classifying", total=len(inputs)) as bar:
        for start in range(0, len(inputs), batch_size):
            part = inputs[start:start + batch_size]
            scores, best = by.probabilities(part).topk(min(top, len(by.labels)))
            found += [[(by.labels[c], s) for c, s in zip(classes, row, strict=True)]
                      for classes, row in zip(best.tolist(), scores.tolist(), strict=True)]
            bar.advance(len(part))
    return found
