"""`polymodal classify` of texts and pairs of texts, by the classes that a network was fine-tuned for."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import nn

from ...shared.errors import UserError
from ...text.classify import TextClassifier
from ...text.tasks import SequenceClassifier
from ..base.console import Console
from ..base.files import lines_of
from ..model.frontdoor import tokenizer

STDIN = "-"
Text = tuple[str, str | None]
"""A text, and the second text of its pair."""


def text_classifier(model: nn.Module, source: str, labels: Sequence[str] | None, chosen: Sequence[str]) -> TextClassifier | None:
    """The classifier of a network that classifies texts (loaded from `source`); None for any other."""
    if not isinstance(model, SequenceClassifier):
        return None
    if labels or chosen:
        raise UserError("this model has classes of its own: leave --labels and --template out")
    return TextClassifier(model, tokenizer(source))


def texts(inputs: Sequence[str]) -> list[Text]:
    """What to classify: texts, files with one a line (txt, or jsonl with `text` and perhaps `text_pair`), stdin for "-"."""
    found: list[Text] = []
    for given in inputs:
        path = Path(given)
        # a sentence may end in the name of a file
        file = path.suffix.lower() in (".txt", ".jsonl") and (not any(c.isspace() for c in given) or (len(given) < 200 and path.is_file()))
        if given == STDIN:
            found.extend(_lines(sys.stdin.buffer.read(), "standard input"))
        elif file:
            try:
                data = path.read_bytes()
            except OSError as error:
                raise UserError(f"{given} cannot be read ({error.strerror})") from None
            found.extend(_rows(data, given) if path.suffix.lower() == ".jsonl" else _lines(data, given))
        else:
            found.append((given, None))
    if not any(text.strip() for text, _ in found):
        raise UserError(f"no text in {', '.join(inputs)}: expected texts, or files with one a line")
    return found


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 text ({error.reason} at byte {error.start})") from None


def _lines(data: bytes, where: str) -> Iterator[Text]:
    return ((line.strip(), None) for line in lines_of(_decoded(data, where)) if line.strip())


def _rows(data: bytes, where: str) -> Iterator[Text]:
    for number, line in enumerate(lines_of(_decoded(data, where)), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}, line {number} is not JSON ({error})") from None
        text, pair = (row.get("text"), row.get("text_pair")) if isinstance(row, dict) else (None, None)
        if not isinstance(text, str) or not (pair is None or isinstance(pair, str)):
            raise UserError(f'{where}, line {number}: expected {{"text": ..., "text_pair": ...}} with texts, the second one optional')
        yield text, pair


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
