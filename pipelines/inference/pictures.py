"""`polymodal classify` of pictures: what is in them, by a CLIP-like model and class names, or by a trained head."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torch import Tensor, nn

from ...multimodal.clip_config import CLIPTextConfig
from ...multimodal.zero_shot import ImageTextModel, ZeroShotClassifier, templates
from ...shared.errors import BadSample, UserError
from ...shared.picture import EXPECTED, is_picture
from ...shared.sample import Sample
from ...shared.tokenizer import NoTokenizer, Tokenizer
from ...vision.classify import ImageClassifier, TrainedClassifier
from ..base.console import Console
from ..base.files import lines_of
from ..base.inputs import PICTURES, STDIN, inside
from ..model.frontdoor import tokenizer as load_tokenizer

OPEN_CLIP_VOCABULARY = 49408


class Classifier(Protocol):
    """What turns pictures into probabilities."""

    labels: tuple[str, ...]

    def probabilities(self, pictures: Sequence[Any]) -> Tensor:
        """[B, C], of what `read` of `classify` makes of pictures."""
        ...


@dataclass
class Found:
    """The classes of one picture, best first."""

    image: str
    predictions: list[tuple[str, float]]


@dataclass
class Result:
    """What `classify` found."""

    found: list[Found] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    """Pictures that could not be read, with the reason."""


def classifier(model: nn.Module, source: str, labels: Sequence[str] | None, chosen: Sequence[str],
               vocabulary: Tokenizer | None = None) -> Classifier:
    """The classifier that fits `model` (loaded from `source`): by class names for one of pictures and texts, else by its own classes."""
    if isinstance(model, ImageTextModel):
        if not labels:
            raise UserError("this model classifies by class names: pass --labels cat,dog or --labels FILE (one name a line)")
        return ZeroShotClassifier(model, vocabulary or clip_tokenizer(model, source), labels, templates(chosen))
    if isinstance(model, ImageClassifier):
        if labels or chosen:
            raise UserError("this model has classes of its own: leave --labels and --template out")
        return TrainedClassifier(model)
    raise UserError(f"{source} holds a {type(model).__name__}, which classifies neither pictures nor texts; expected a CLIP, a ViT, "
                    "or a network that was fine-tuned to classify texts")


def clip_tokenizer(model: ImageTextModel, source: str) -> Tokenizer:
    """The tokenizer beside the model; open_clip's own where open_clip left it out, as it does for its standard vocabulary."""
    try:
        return load_tokenizer(source)
    except NoTokenizer:
        shape = model.config.text_config
        if not isinstance(shape, CLIPTextConfig) or shape.vocab_size != OPEN_CLIP_VOCABULARY:
            raise
        return Tokenizer.load("open_clip")


def pictures(inputs: Sequence[str], warn: Callable[[str], None] = lambda line: None) -> list[tuple[str, bytes | Path]]:
    """What to classify, by name: files, the pictures in folders (and below), or stdin for "-".

    Standard input holds one picture, or the paths of pictures, one a line. A path that is not there is the user's
    mistake and stops everything before a model runs. `warn` is told how many files of a folder are no pictures.
    """
    found: list[tuple[str, bytes | Path]] = []
    for text in inputs:
        if text == STDIN:
            found.extend(_from_stdin(sys.stdin.buffer.read(), warn))
        else:
            found.extend(_from_path(text, warn))
    if not found:
        raise UserError(f"no pictures in {', '.join(inputs)}: expected files ending in {', '.join(PICTURES)}")
    return found


def _from_stdin(data: bytes, warn: Callable[[str], None]) -> Iterator[tuple[str, bytes | Path]]:
    if is_picture(data):
        yield "<stdin>", data
        return
    try:
        lines = lines_of(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise UserError(f"standard input holds neither a picture ({EXPECTED}) nor lines with paths") from None
    for line in lines:
        if line.strip():
            yield from _from_path(line.strip(), warn)


def _from_path(text: str, warn: Callable[[str], None]) -> Iterator[tuple[str, bytes | Path]]:
    path = Path(text)
    if path.is_dir():
        yield from ((str(inner), inner) for inner in inside(path, PICTURES, warn))
    elif path.exists():
        yield text, path
    else:
        raise UserError(f"there is no picture or folder at {text!r}")


def classify(
    by: Classifier, inputs: Sequence[tuple[str, bytes | Path]], *, top: int, batch_size: int, console: Console,
    read: Callable[[str, bytes | Path], Any] | None = None,
) -> Result:
    """Classify pictures in batches. One that cannot be read (`decode`, by default) gets one warning and is counted; all bad is an error."""
    result = Result()
    waiting: list[tuple[str, Any]] = []
    read = read or decode

    def run() -> None:
        scores, best = by.probabilities([p for _, p in waiting]).topk(min(top, len(by.labels)))
        for (name, _), row, classes in zip(waiting, scores.tolist(), best.tolist(), strict=True):
            result.found.append(Found(name, [(by.labels[c], s) for c, s in zip(classes, row, strict=True)]))
        waiting.clear()

    with console.progress("classifying", total=len(inputs)) as bar:
        for name, source in inputs:
            try:
                waiting.append((name, read(name, source)))
            except BadSample as error:
                reason = str(error).partition(": ")[2] or str(error)  # without the sample's name: the path says more
                result.bad.append((name, reason))
                console.warn(f"{name}: {reason}")
            if len(waiting) == batch_size:
                run()
            bar.advance()
        if waiting:
            run()
    if not result.found:
        raise UserError(f"none of {len(inputs)} pictures could be read; expected {EXPECTED}")
    return result


def decode(name: str, source: bytes | Path) -> Image.Image:
    """The picture, by the same safe decoder as training uses; `BadSample` where it cannot be read."""
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        raise BadSample(f"{name}: cannot be read ({error.strerror})") from None
    # the decoder looks at the bytes, not at the ending
    return Sample(Path(name).name, {"png": data}, source=str(Path(name).parent)).image()
