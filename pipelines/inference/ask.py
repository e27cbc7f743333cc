"""`polymodal.classify`, `polymodal.tag` and `polymodal.answer`: what networks that were trained for a task say of texts and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

from PIL import Image
from torch import Tensor, nn

from ...multimodal.zero_shot import ImageTextModel
from ...shared.errors import UserError
from ...shared.tokenizer import Tokenizer
from ...text.span import AnswerSettings, Found, Reader
from ...text.tag import Tagger
from ...text.tasks import QuestionAnswering, SequenceClassifier, TokenClassifier, reads_alone
from ..base.console import Console
from .embed import directory_of, is_pictures, picture, tokenizer_beside
from .pictures import classifier
from .region_pictures import reads_regions
from .texts import text_classifier
from .trained import trained
from .words import tag_texts


def classify(
    model: nn.Module,
    inputs: Sequence[str] | Sequence[tuple[str, str]] | Sequence[Path] | Sequence[Image.Image],
    *,
    labels: Sequence[str] | None = None,
    templates: Sequence[str] = (),
    tokenizer: Tokenizer | None = None,
    top: int = 5,
    speed: float | None = None,
    batch_size: int = 32,
    on_bad: Literal["raise", "skip"] = "raise",
) -> list[list[tuple[str, float]]]:
    """Tell what texts, pairs of texts or pictures are.

    Args:
        model: from `polymodal.load`: a network with classes of its own (a ViT, a fine-tuned BERT ...), or a CLIP, which needs `labels`.
        inputs: texts (`str`), pairs (`tuple` of two), or pictures: the `Path` of each, or the images themselves.
        labels: class names, for a CLIP.
        templates: prompts with {} for the class name, names of sets of them (openai, simple), or files with one a line, for a CLIP; none:
            "a photo of a {}.".
        tokenizer: the model's; by default the one that lies with it.
        top: how many classes are told of each input.
        speed: of a FastBERT, from 0 to 1: how uncertain a text may be that leaves behind a layer.
        batch_size: inputs that run together.
        on_bad: ``raise`` refuses a picture that cannot be read, ``skip`` tells nothing of it.

    Returns:
        For each input its most probable classes with their probabilities, best first; of a picture that was skipped none.

    Raises:
        UserError: the model cannot classify such inputs, a picture cannot be read, or classes are missing.
    """
    if reads_regions(model):
        raise UserError(f"{type(model).__name__} reads regions of pictures, which a detector finds first: use `polymodal classify --tower`")
    if top < 1:
        raise UserError(f"top is {top}, expected at least 1")
    reads = isinstance(model, ImageTextModel) or (isinstance(model, SequenceClassifier) and not reads_alone(model))
    directory = directory_of(model)
    if reads and tokenizer is None and directory is None:
        tokenizer_beside(model)  # says that there is none
    source = type(model).__name__ if directory is None else str(directory)
    by = text_classifier(model, source, labels, templates, speed, tokenizer)
    paired = by is not None and bool(inputs) and all(isinstance(one, tuple) for one in inputs)
    pictures = False if paired else is_pictures(inputs)
    if inputs and pictures != (by is None):
        raise UserError(f"{type(model).__name__} classifies {'pictures' if by is None else 'texts'}, and the inputs are "
                        f"{'pictures' if pictures else 'texts'}")
    of_pictures = classifier(model, source, labels, templates, tokenizer) if by is None else None

    def ready(one: Any) -> Any:
        if by is not None:
            return one if paired else (one, None)
        try:
            return picture(one)
        except UserError:
            if on_bad == "raise":
                raise
            return None

    chosen: Any = by or of_pictures
    found: list[list[tuple[str, float]]] = []
    for begin in range(0, len(inputs), batch_size):
        given = [ready(one) for one in inputs[begin:begin + batch_size]]
        there = [one for one in given if one is not None]
        rows = iter(_best(chosen.probabilities(there), chosen.labels, top) if there else ())
        found += [[] if one is None else next(rows) for one in given]
    return found


def _best(scores: Tensor, labels: Sequence[str], top: int) -> list[list[tuple[str, float]]]:
    """The `top` classes of each row [B, C]."""
    best = scores.topk(min(top, len(labels)))
    return [[(labels[int(c)], float(s)) for c, s in zip(classes, row, strict=True)]
            for classes, row in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


def tag(model: nn.Module, texts: Sequence[str], *, tokenizer: Tokenizer | None = None, batch_size: int = 32) -> list[dict[str, Any]]:
    """Tag the words of texts with a network that was fine-tuned for it.

    Args:
        model: from `polymodal.load`.
        texts: the texts; words are what stands between spaces and punctuation marks.
        tokenizer: the model's; by default the one that lies with it.
        batch_size: texts that run together.

    Returns:
        Of each text its `text`, `words` and `tags`; and `entities`, where tags mark some: `type`, `text`, and `start` and `end`, the first
        character and the one after the last.

    Raises:
        UserError: the model was not fine-tuned to tag words.
    """
    if is_pictures(texts):
        raise UserError("words of texts are tagged, and the inputs are pictures")
    Tagger.check(model, "the model")
    by = Tagger(cast("TokenClassifier", model), None if reads_alone(model) else tokenizer or tokenizer_beside(model),
                trained(model).max_length)
    return tag_texts(by, texts, batch_size=batch_size, console=Console(quiet=True))


def answer(
    model: nn.Module,
    question: str,
    texts: Sequence[str],
    *,
    tokenizer: Tokenizer | None = None,
    batch_size: int = 8,
    n_best: int = 20,
    max_answer_length: int = 30,
    stride: int = 128,
    no_answer_threshold: float | None = None,
) -> list[list[Found]]:
    """Answer a question by a span of each text, with a network that was fine-tuned for it.

    Args:
        model: from `polymodal.load`.
        question: the question.
        texts: where the answer is looked for; long ones are read in windows.
        tokenizer: the model's; by default the one that lies with it.
        batch_size: texts that are read together, with all their windows.
        n_best: starts and ends of a window that are looked at, and candidates that are kept.
        max_answer_length: tokens of an answer.
        stride: tokens by which the windows of a long text move on.
        no_answer_threshold: no answer (an empty text) stands first where its score exceeds that of the best answer by more than this, and
            among the others else; by default each question has an answer.

    Returns:
        For each text the candidates, best first: `text`, `start` (its first character), `score` and `probability`.

    Raises:
        UserError: the model was not fine-tuned to answer questions.
    """
    settings = AnswerSettings(n_best, max_answer_length, stride, no_answer_threshold)
    if is_pictures(texts):
        raise UserError("answers are spans of texts, and the inputs are pictures: ask with `polymodal answer QUESTION --image PICTURE`")
    Reader.check(model, "the model")
    by = Reader(cast("QuestionAnswering", model), tokenizer or tokenizer_beside(model), settings, trained(model).max_length)
    return [found for begin in range(0, len(texts), batch_size)
            for found in by.answer([(question, text) for text in texts[begin:begin + batch_size]])]
